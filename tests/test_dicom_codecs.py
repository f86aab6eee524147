"""Every way in which pixels are written: bits, byte order and compression."""

from __future__ import annotations

import gdcm
import numpy as np
import pydicom
import pytest
from dicom_files import image, recompress, write
from pydicom.data import get_testdata_file
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from lumbar_utils.dicom import pixels as dicom_pixels
from lumbar_utils.dicom.elements import check_image
from lumbar_utils.dicom.parsing import read_dataset
from lumbar_utils.dicom.pixels import stored_frames
from lumbar_utils.dicom.series import read_slices
from lumbar_utils.errors import DicomError

RAW = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
ENCODERS = {
    "jpeg lossless, any predictor": gdcm.TransferSyntax.JPEGLosslessProcess14,
    "jpeg lossless, first order": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    "jpeg-ls lossless": gdcm.TransferSyntax.JPEGLSLossless,
    "jpeg 2000 lossless": gdcm.TransferSyntax.JPEG2000Lossless,
    "rle": gdcm.TransferSyntax.RLELossless,
}


def bundled(name: str) -> str:
    return get_testdata_file(name, download=False)


def noise(*, bits: int, signed: bool, shape=(13, 17)) -> np.ndarray:
    """Random values that use the whole range, both ends included; the odd size makes odd lengths."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    values = np.random.default_rng(bits).integers(low, high, shape, endpoint=True)
    values.flat[:2] = low, high
    return values


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_expb.dcm",
        "MR_small_implicit.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_padded.dcm",
    ],
)
def test_one_image_reads_the_same_in_every_encoding(name):
    (reference,) = read_slices(bundled("MR_small.dcm"))
    (read,) = read_slices(bundled(name))
    np.testing.assert_array_equal(read.pixels, reference.pixels)
    np.testing.assert_allclose(read.geometry.position, [-83.9063, -91.2, 6.6406])
    assert read.pixels.dtype == np.float32
    assert reference.pixels.max() == pydicom.dcmread(bundled("MR_small.dcm")).pixel_array.max()


@pytest.mark.parametrize("name", ["693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm", "JPEG2000.dcm", "image_dfl.dcm"])
def test_odd_streams_decode_as_pydicom_decodes_them(name):
    expected = pydicom.dcmread(bundled(name)).pixel_array
    dataset, read = read_dataset(bundled(name)), np.empty(expected.shape, np.float32)
    dataset.pop("PixelPaddingValue", None)  # pydicom gives it as it is stored
    stored_frames(dataset, check_image(dataset, name), name)[0].write(read)
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("syntax", RAW, ids=lambda uid: uid.name)
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize(
    ("bits", "stored", "high"), [(8, 8, 7), (16, 16, 15), (16, 12, 11), (16, 12, 15), (16, 10, 12)]
)
def test_raw_bits_come_back_whatever_the_byte_order_and_place_in_the_word(tmp_path, syntax, signed, bits, stored, high):
    values = noise(bits=stored, signed=signed)
    path = write(tmp_path / "a.dcm", image(pixels=values, bits=bits, stored=stored, high=high), syntax)
    np.testing.assert_array_equal(read_slices(path)[0].pixels, values)


def test_big_endian_8_bit_pixels_in_words_are_put_in_order(tmp_path):
    dataset = image(pixels=noise(bits=8, signed=False), bits=8)
    dataset["PixelData"].VR = "OW"
    path = write(tmp_path / "a.dcm", dataset, ExplicitVRBigEndian)
    np.testing.assert_array_equal(read_slices(path)[0].pixels, noise(bits=8, signed=False))


def test_big_endian_8_bit_pixels_in_words_without_their_last_byte_are_refused(tmp_path):
    """Of an odd number of pixels the last one shares its word with padding, and comes after it."""
    dataset = image(pixels=noise(bits=8, signed=False, shape=(5, 5)), bits=8)
    dataset["PixelData"].VR = "OW"
    path = write(tmp_path / "a.dcm", dataset, ExplicitVRBigEndian)
    content = path.read_bytes()
    length = content.rindex(b"OW") + 4
    path.write_bytes(content[:length] + (25).to_bytes(4, "big") + content[length + 4 : -1])
    with pytest.raises(DicomError, match=r"a\.dcm: PixelData has 25 bytes, expected 26 .*cut off"):
        read_slices(path)


def test_bits_above_the_stored_ones_are_not_part_of_the_value(tmp_path):
    values = noise(bits=12, signed=False)
    dataset = image(pixels=values, stored=12)
    dataset.PixelData = (values.astype("<u2") | 0xA000).tobytes() + b"\0" * (values.size * 2 % 2)
    np.testing.assert_array_equal(read_slices(write(tmp_path / "a.dcm", dataset))[0].pixels, values)


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
@pytest.mark.parametrize(("bits", "stored"), [(8, 8), (16, 12), (16, 16)])
def test_lossless_compression_is_lossless(tmp_path, encoder, bits, stored):
    values = noise(bits=stored, signed=False, shape=(14, 18))  # gdcm's encoders cannot write odd lengths
    path = recompress(write(tmp_path / "a.dcm", image(pixels=values, bits=bits, stored=stored)), encoder)
    assert read_dataset(path).file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(read_slices(path)[0].pixels, values)


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
def test_signed_values_survive_compression(tmp_path, encoder):
    values = noise(bits=16, signed=True, shape=(14, 18))
    path = recompress(write(tmp_path / "a.dcm", image(pixels=values)), encoder)
    np.testing.assert_array_equal(read_slices(path)[0].pixels, values)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_pydicoms_own_encoders_are_read_too(tmp_path, syntax):
    values = noise(bits=12, signed=True, shape=(64, 51))
    path = write(tmp_path / "a.dcm", image(pixels=values, stored=12))
    dataset = pydicom.dcmread(path)
    dataset.compress(syntax)
    dataset.save_as(path)
    np.testing.assert_array_equal(read_slices(path)[0].pixels, values)


def test_rescale_is_applied_and_monochrome1_turned_over(tmp_path):
    values = noise(bits=12, signed=False)
    tags = {"RescaleSlope": "0.5", "RescaleIntercept": "-10"}
    plain = read_slices(write(tmp_path / "a.dcm", image(pixels=values, stored=12, **tags)))[0].pixels
    np.testing.assert_allclose(plain, values * 0.5 - 10)
    tags["PhotometricInterpretation"] = "MONOCHROME1"
    inverted = read_slices(write(tmp_path / "b.dcm", image(pixels=4095 - values, stored=12, **tags)))[0].pixels
    np.testing.assert_allclose(inverted, plain)


def test_monochrome1_of_signed_values_keeps_their_range(tmp_path):
    values = noise(bits=16, signed=True)
    path = write(tmp_path / "a.dcm", image(pixels=-1 - values, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(read_slices(path)[0].pixels, values)


def test_truncated_pixels_are_refused_by_name():
    with pytest.raises(DicomError, match=r"MR_truncated\.dcm: PixelData has 8130 bytes, expected 8192.*cut off"):
        read_slices(bundled("MR_truncated.dcm"))


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"Rows": 48, "Columns": 40}, "PixelData has 960 bytes, expected 3840.*cut off"),
        ({"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}, "expected 1920 .*and 32 bits"),
        ({"Rows": 65535, "Columns": 65535}, "more than the .* pixels accepted"),
        ({"NumberOfFrames": 2000000}, "more than the .* pixels accepted"),
        ({"Rows": 0}, "Rows, Columns or NumberOfFrames is below 1"),
        ({"Rows": None}, "without rows and columns: the file is cut off"),
        ({"Columns": None}, "Columns is missing"),
        ({"BitsAllocated": 12}, "BitsAllocated is none of 8, 16 and 32"),
        ({"BitsStored": 20}, "contradict each other"),
        ({"HighBit": 3}, "contradict each other"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "is a colour image"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "is a colour image"),
        ({"PixelData": None}, "holds no pixels"),
    ],
)
def test_false_claims_about_pixels_are_refused(tmp_path, tags, message):
    path = write(tmp_path / "7.dcm", image(**{"pixels": np.ones((24, 20), np.uint16)} | tags))
    with pytest.raises(DicomError, match=r"7\.dcm: .*" + message):
        read_slices(path)


def test_too_many_pixel_bytes_are_refused_but_padding_is_not(tmp_path):
    pixels = np.ones((64, 64), np.uint16)
    dataset = image(pixels=pixels)
    dataset.PixelData += bytes(128)
    np.testing.assert_array_equal(read_slices(write(tmp_path / "a.dcm", dataset))[0].pixels, pixels)
    dataset.PixelData += bytes(2000)
    with pytest.raises(DicomError, match="rows, columns or bits are wrong"):
        read_slices(write(tmp_path / "b.dcm", dataset))


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
def test_a_compressed_image_of_another_size_is_refused(tmp_path, encoder):
    path = recompress(write(tmp_path / "a.dcm", image(pixels=noise(bits=12, signed=False, shape=(14, 18)))), encoder)
    dataset = pydicom.dcmread(path)
    dataset.Rows, dataset.Columns = 512, 512
    dataset.save_as(path)
    with pytest.raises(DicomError, match=r"a\.dcm: .*(the header says 512 x 512|cannot be decoded)"):
        read_slices(path)


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
def test_a_cut_off_compressed_file_is_refused(tmp_path, encoder):
    values = noise(bits=12, signed=False, shape=(64, 64))
    path = recompress(write(tmp_path / "a.dcm", image(pixels=values, stored=12)), encoder)
    content = path.read_bytes()
    path.write_bytes(content[: -len(content) // 3])
    with pytest.raises(DicomError, match=r"a\.dcm: "):
        read_slices(path)


def test_a_missing_decoder_says_what_to_install(tmp_path, monkeypatch):
    path = recompress(write(tmp_path / "a.dcm", image()), gdcm.TransferSyntax.JPEGLosslessProcess14_1)
    decoder = dicom_pixels.get_decoder(read_dataset(path).file_meta.TransferSyntaxUID)
    monkeypatch.setattr(decoder, "_available", {})
    with pytest.raises(DicomError, match="pip install python-gdcm"):
        read_slices(path)


def test_a_compression_that_nothing_decodes_is_named(tmp_path):
    path = recompress(write(tmp_path / "a.dcm", image()), gdcm.TransferSyntax.RLELossless)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = MPEG2MPML
    dataset.save_as(path)
    with pytest.raises(DicomError, match=r"compressed as MPEG2 .*, which is not supported"):
        read_slices(path)


def test_an_unknown_transfer_syntax_is_refused(tmp_path):
    path = write(tmp_path / "a.dcm", image())
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.113619.5.2"
    dataset.save_as(path, implicit_vr=False, little_endian=True)
    with pytest.raises(DicomError, match="TransferSyntaxUID is not known"):
        read_slices(path)
