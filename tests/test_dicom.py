"""Files to slices, slices to series: every pixel keeps its place, and what cannot be read is named."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from dicom_files import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    enhanced,
    error_of_brightness,
    group,
    image,
    stack_positions,
    turned,
    write,
    write_series,
)
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from lumbar_utils.dicom.acquisitions import acquisition_of
from lumbar_utils.dicom.headers import functional_groups
from lumbar_utils.dicom.series import read_series, read_slices, scan_headers
from lumbar_utils.errors import DataError, DicomError
from lumbar_utils.labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2

OBLIQUE = turned(turned(SAGITTAL, 2, 17), 0, 9)


def numbers_in_order(series) -> list[int]:
    return [n for stack in series.stacks for n in stack.instance_numbers]


# Geometry ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "orientation",
    [SAGITTAL, AXIAL, CORONAL, OBLIQUE, turned(AXIAL, 0, 25), (0, -1, 0, 0, 0, 1), (-1, 0, 0, 0, -1, 0)],
    ids=["sagittal", "axial", "coronal", "oblique", "tilted", "upside down", "turned half round"],
)
@pytest.mark.parametrize("shape", [(24, 20), (20, 31)])
def test_every_pixel_lies_where_its_header_says(tmp_path, orientation, shape):
    series = read_series(write_series(tmp_path, orientation=orientation, spacing=(0.8, 1.3), shape=shape))
    assert series.n_slices == 5 and series.issues == ()
    assert series.stacks[0].geometry.spacing == (0.8, 1.3)
    assert error_of_brightness(series.stacks[0]) <= 0.501


@pytest.mark.parametrize("order", ["reversed", "shuffled", "gaps"])
def test_order_of_numbers_and_names_does_not_matter(tmp_path, order):
    numbers = {"reversed": [9, 8, 7, 6, 5], "shuffled": [3, 1, 5, 2, 4], "gaps": [2, 4, 40, 41, 307]}[order]
    series = read_series(write_series(tmp_path, orientation=OBLIQUE, numbers=numbers))
    assert numbers_in_order(series) == numbers
    assert error_of_brightness(series.stacks[0]) <= 0.501
    for k, number in enumerate(numbers):
        assert series.slice_of(number) == (0, k)
    assert series.slice_of(999) is None


def test_files_are_given_in_any_order(tmp_path):
    folder = write_series(tmp_path, offsets=range(0, 48, 4))
    files = sorted(folder.iterdir())
    random.Random(1).shuffle(files)
    assert numbers_in_order(read_series(files)) == numbers_in_order(read_series(folder)) == list(range(1, 13))


def test_uneven_spacing_is_kept(tmp_path):
    series = read_series(write_series(tmp_path, offsets=[0, 4, 9, 21, 22]))
    np.testing.assert_allclose(np.diff(series.stacks[0].geometry.offsets), [4, 5, 12, 1], atol=1e-4)
    assert error_of_brightness(series.stacks[0]) <= 0.501


def test_angulated_blocks_become_stacks_the_largest_first(tmp_path):
    for block, (angle, n) in enumerate([(0, 3), (12, 5), (32, 4)]):
        write_series(
            tmp_path,
            orientation=turned(AXIAL, 0, angle),
            offsets=np.arange(n) * 4.0,
            numbers=range(1 + 10 * block, 1 + 10 * block + n),
            start=(-10, -12, -40.0 * block),
        )
    series = read_series(tmp_path)
    assert [len(stack) for stack in series.stacks] == [5, 4, 3]
    assert series.view == AXIAL_T2
    assert max(map(error_of_brightness, series.stacks)) <= 0.501
    assert series.slice_of(21) == (1, 0)


def test_duplicates_are_left_out_and_noted(tmp_path):
    write_series(tmp_path)
    write(tmp_path / "99.dcm", image(position=stack_positions((-8, -20, 30), SAGITTAL, [8])[0], number=99))
    series = read_series(tmp_path)
    assert series.n_slices == 5 and series.slice_of(99) is None
    assert tuple(map(str, series.issues)) == ("99.dcm: lies where another slice does (duplicate), left out",)


def test_many_duplicates_are_one_note_whatever_the_names_of_their_files(tmp_path):
    write_series(tmp_path, offsets=range(0, 40, 4))
    for file in list(write_series(tmp_path / "again", offsets=range(0, 40, 4), numbers=range(11, 21)).iterdir()):
        file.rename(tmp_path / f"0{file.name}")
    series = read_series(tmp_path)
    assert numbers_in_order(series) == list(range(1, 11))
    names = "011.dcm, 012.dcm, 013.dcm, 014.dcm, 015.dcm and 5 more"
    assert f"{names}: lies where another slice does (duplicate), left out" in list(map(str, series.issues))


def test_two_matrices_in_one_series_are_two_stacks(tmp_path):
    write_series(tmp_path)
    write_series(tmp_path, numbers=[11, 12], offsets=[40, 44], shape=(30, 30), spacing=(0.5, 0.5))
    series = read_series(tmp_path)
    assert [stack.geometry.shape for stack in series.stacks] == [(24, 20), (30, 30)]


@pytest.mark.parametrize("beside", [0.0, 1.0])
def test_two_stations_of_the_table_in_one_series_are_two_stacks(tmp_path, beside):
    """The upper and the lower half of a spine lie in the same planes, or nearly; neither is a duplicate."""
    write_series(tmp_path, start=(-8, -20, 30))
    write_series(tmp_path, start=(-8 + beside, -20, 52), numbers=range(11, 16))
    series = read_series(tmp_path)
    assert [stack.instance_numbers for stack in series.stacks] == [(5, 4, 3, 2, 1)[::-1], (11, 12, 13, 14, 15)]
    assert max(map(error_of_brightness, series.stacks)) <= 0.501 and series.issues == ()


def test_slightly_turned_slices_that_nearly_touch_do_not_break_the_series(tmp_path):
    """The first slice, by whose normal all were sorted, is a duplicate; along the next one's the order differs."""
    turned_slightly = turned(SAGITTAL, 2, 0.9)
    wide = {"shape": (24, 220)}
    write(tmp_path / "1.dcm", image(position=(0, 0, 30), **wide))
    write(tmp_path / "2.dcm", image(position=(0.05, 0, 30), orientation=turned_slightly, **wide))
    for number, x in enumerate([0.5, 0.9, 1.3, 1.7], 3):
        place = {"position": (-x, 50 * (-1) ** number, 30), "orientation": turned_slightly}
        write(tmp_path / f"{number}.dcm", image(**place, **wide))
    series = read_series(tmp_path)
    assert "1.dcm: lies where another slice does" in str(series.issues[0])
    assert len(series.stacks) == 1 and series.n_slices == 5
    assert np.all(np.diff(series.stacks[0].geometry.offsets) > 0)
    assert error_of_brightness(series.stacks[0]) <= 0.501


def test_a_bundled_file_lies_where_its_header_says():
    (one,) = read_slices(get_testdata_file("MR_small.dcm", download=False))
    np.testing.assert_allclose(one.geometry.position, [-83.9063, -91.2, 6.6406])
    assert one.geometry.spacing == (0.3125, 0.3125) and one.instance_number == 1


# Multi-frame ---------------------------------------------------------------------------------------------------


def test_enhanced_multi_frame_with_shared_and_per_frame_groups(tmp_path):
    positions = stack_positions((-8, -20, 30), OBLIQUE, [12, 0, 4, 8])
    slopes = [1.0, 0.5, 0.25, 1.0]
    path = write(tmp_path / "many.dcm", enhanced(positions, OBLIQUE, slopes=slopes, SeriesDescription="sag"))
    series = read_series(path)
    assert series.stacks[0].instance_numbers == (2, 3, 4, 1)
    assert series.stacks[0].files == ("many.dcm",) * 4
    assert error_of_brightness(series.stacks[0]) <= 0.501
    assert (series.header["RepetitionTime"], series.header["EchoTime"]) == (3500.0, 102.0)
    assert series.view == SAGITTAL_T2 and series.issues == ()


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_multi_frame_images_may_be_compressed(tmp_path, syntax):
    positions = stack_positions((-8, -20, 30), SAGITTAL, [0, 4, 8])
    dataset = pydicom.dcmread(write(tmp_path / "a.dcm", enhanced(positions, SAGITTAL, shape=(64, 48))))
    dataset.compress(syntax)
    dataset.save_as(tmp_path / "a.dcm")
    assert error_of_brightness(read_series(tmp_path).stacks[0]) <= 0.501


def test_frames_may_differ_in_orientation(tmp_path):
    dataset = enhanced(stack_positions((-8, -20, 30), AXIAL, [0, 4, 8]), AXIAL)
    del dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    for item, angle in zip(dataset.PerFrameFunctionalGroupsSequence, [0, 0, 20], strict=True):
        item.PlaneOrientationSequence = group(ImageOrientationPatient=list(turned(AXIAL, 0, angle)))
    series = read_series(write(tmp_path / "a.dcm", dataset))
    assert [len(stack) for stack in series.stacks] == [2, 1]


def test_frames_without_positions_are_refused(tmp_path):
    dataset = enhanced(stack_positions((0, 0, 0), SAGITTAL, [0, 4]), SAGITTAL)
    del dataset.PerFrameFunctionalGroupsSequence[1]
    with pytest.raises(DicomError, match="functional groups for 1 frames, unlike NumberOfFrames"):
        read_slices(write(tmp_path / "a.dcm", dataset))
    del dataset.PerFrameFunctionalGroupsSequence
    with pytest.raises(DicomError, match="several frames but no positions of them"):
        read_slices(write(tmp_path / "b.dcm", dataset))


# Files that are not as they should be --------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=lambda uid: uid.name)
def test_a_file_without_preamble_and_meta_is_read(tmp_path, syntax):
    path = write(tmp_path / "a.dcm", image(), syntax, meta=False)
    assert path.read_bytes()[128:132] != b"DICM"
    expected = read_slices(write(tmp_path / "b.dcm", image()))[0]
    np.testing.assert_array_equal(read_slices(path)[0].pixels, expected.pixels)


def test_a_file_without_preamble_but_with_meta_is_read(tmp_path):
    content = write(tmp_path / "a.dcm", image()).read_bytes()
    for start in (128, 132):
        (tmp_path / "b.dcm").write_bytes(content[start:])
        assert read_slices(tmp_path / "b.dcm")[0].pixels.shape == (24, 20)


def test_missing_optional_tags_are_none(tmp_path):
    dataset = image(
        SOPClassUID=None, Modality=None, SeriesDescription=None, PhotometricInterpretation=None, SamplesPerPixel=None
    )
    for keyword in ("BitsStored", "HighBit", "PixelRepresentation", "StudyInstanceUID", "SeriesInstanceUID"):
        delattr(dataset, keyword)
    series = read_series(write(tmp_path / "a.dcm", dataset, meta=False))
    assert error_of_brightness(series.stacks[0]) <= 0.501
    assert series.description == "" and set(series.header.values()) == {None}


def test_a_missing_instance_number_is_taken_from_the_name(tmp_path):
    assert read_slices(write(tmp_path / "IM-0001-0042.dcm", image(number=None)))[0].instance_number == 42
    assert read_slices(write(tmp_path / "x.dcm", image(number=None)))[0].instance_number == -1


def test_names_number_the_slices_where_tables_count_by_name(tmp_path):
    write(tmp_path / "7.dcm", image(number=70))
    assert numbers_in_order(read_series(tmp_path)) == [70]
    assert numbers_in_order(read_series(tmp_path, numbered_by_file_name=True)) == [7]


def text_file(path: Path):
    path.write_text("patient,level\n1,l1_l2\n" * 20)


def empty_file(path: Path):
    path.write_bytes(b"")


def cut_in_header(path: Path):
    write(path, image())
    path.write_bytes(path.read_bytes()[:420])


def cut_in_pixels(path: Path):
    write(path, image())
    path.write_bytes(path.read_bytes()[:-300])


def only_preamble(path: Path):
    path.write_bytes(bytes(128) + b"DICM")


def archive(path: Path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("1.dcm", bytes(300))


def png(path: Path):
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(300))


BROKEN = {
    text_file: r"is not a DICOM file.*plain text",
    empty_file: r"the file is empty \(0 bytes\)",
    cut_in_header: r"MR Image Storage without rows and columns: the file is cut off",
    cut_in_pixels: r"PixelData has 660 bytes, expected 960.*cut off",
    only_preamble: r"holds no DICOM elements",
    archive: "is not a DICOM file but a ZIP archive; unpack it first",
    png: "is not a DICOM file: it has no DICM mark",
}
WRONG_TAGS = [
    ({"ImagePositionPatient": None}, "ImagePositionPatient is missing"),
    ({"ImagePositionPatient": ""}, "ImagePositionPatient is missing"),
    ({"ImageOrientationPatient": None}, "ImageOrientationPatient is missing"),
    ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "perpendicular unit vectors"),
    ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "perpendicular unit vectors"),
    ({"PixelSpacing": None}, "PixelSpacing is missing"),
    ({"PixelSpacing": None, "ImagerPixelSpacing": [1, 1]}, "ImagerPixelSpacing is no substitute"),
    ({"PixelSpacing": [0, 0]}, "two positive numbers"),
    ({"PixelSpacing": [-1, 1]}, "two positive numbers"),
    ({"RescaleSlope": 0}, "RescaleSlope is 0"),
    ({"RescaleSlope": "1e300"}, "leave no numbers that float32 can hold"),
    ({"RescaleSlope": "1e-50"}, "leave no numbers that float32 can hold"),
    ({"RescaleIntercept": "-1e40"}, "leave no numbers that float32 can hold"),
]


@pytest.mark.parametrize("make", BROKEN, ids=lambda make: make.__name__)
def test_broken_files_are_refused_by_name_and_cost_only_themselves(tmp_path, make):
    make(tmp_path / "3.dcm")
    with pytest.raises(DicomError, match=r"3\.dcm: .*(" + BROKEN[make] + ")"):
        read_slices(tmp_path / "3.dcm")
    write_series(tmp_path, numbers=[1, 2, 4, 5, 6])
    series = read_series(tmp_path)
    assert series.n_slices == 5
    assert len(series.issues) == 1 and str(series.issues[0]).startswith("3.dcm: ")


@pytest.mark.parametrize(("tags", "message"), WRONG_TAGS)
def test_slices_without_a_place_or_size_are_refused(tmp_path, tags, message):
    with pytest.raises(DicomError, match=r"3\.dcm: .*" + message):
        read_slices(write(tmp_path / "3.dcm", image(**tags)))


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PixelSpacing", b"nan\\nan "),
        ("PixelSpacing", b"abc\\1 "),
        ("PixelSpacing", b"1.0 "),
        ("ImagePositionPatient", b"1\\inf\\2 "),
    ],
)
def test_numbers_that_are_none_are_refused(tmp_path, keyword, value):
    path = write(tmp_path / "3.dcm", image())
    dataset = pydicom.dcmread(path)
    tag = pydicom.tag.Tag(keyword)
    dataset[tag] = pydicom.dataelem.RawDataElement(tag, "DS", len(value), value, 0, False, True)
    dataset.save_as(path)
    with pytest.raises(DicomError, match=rf"3\.dcm: {keyword} (is|cannot be read)"):
        read_slices(path)


def test_an_element_of_no_known_kind_costs_only_its_file(tmp_path):
    """pydicom looks at an element when it is asked for, and then raises what is no error of the library."""
    write_series(tmp_path)
    content = (tmp_path / "3.dcm").read_bytes()
    (tmp_path / "3.dcm").write_bytes(content.replace(b"\xe0\x7f\x10\x00OW", b"\xe0\x7f\x10\x00OZ"))
    series = read_series(tmp_path)
    assert series.n_slices == 4
    assert tuple(map(str, series.issues)) == ("3.dcm: cannot be read (NotImplementedError)",)


def test_a_broken_time_of_a_multi_frame_image_costs_only_itself():
    dataset = enhanced(stack_positions((0, 0, 0), SAGITTAL, [0, 4]), SAGITTAL)
    tag = pydicom.tag.Tag("MREchoSequence")
    broken = pydicom.dataelem.RawDataElement(tag, "OZ", 4, b"1234", 0, False, True)
    dataset.SharedFunctionalGroupsSequence[0][tag] = broken
    header = acquisition_of(functional_groups(dataset, 2, Path("a.dcm"))[0]).header
    assert (header["RepetitionTime"], header["EchoTime"], header["FlipAngle"]) == (3500.0, None, 150.0)


def test_objects_that_are_no_images_are_refused(tmp_path):
    with pytest.raises(DicomError, match="is a DICOMDIR"):
        read_slices(get_testdata_file("DICOMDIR", download=False))
    with pytest.raises(DicomError, match=r"holds no MR image but .*SR"):
        read_slices(get_testdata_file("reportsi.dcm", download=False))
    with pytest.raises(DicomError, match="holds no MR image but RT Plan"):
        read_slices(get_testdata_file("rtplan.dcm", download=False))
    with pytest.raises(DicomError, match="holds no MR image but Segmentation"):
        read_slices(get_testdata_file("liver_1frame.dcm", download=False))
    with pytest.raises(DicomError, match="the file cannot be opened"):
        read_slices(tmp_path / "nowhere.dcm")
    with pytest.raises(DicomError, match="is not a file"):
        read_slices(tmp_path)


def test_a_false_length_of_pixels_is_refused_without_taking_memory(tmp_path):
    content = write(tmp_path / "a.dcm", image()).read_bytes()
    at = content.rindex(b"\xe0\x7f\x10\x00OW") + 8
    (tmp_path / "a.dcm").write_bytes(content[:at] + (0xFFFFFFF0).to_bytes(4, "little") + content[at + 4 : -8])
    with pytest.raises(DicomError, match=r"a\.dcm: PixelData has 952 bytes, expected 960"):
        read_slices(tmp_path / "a.dcm")


def test_a_series_with_nothing_readable_names_itself_and_the_first_fault(tmp_path):
    text_file(tmp_path / "1.dcm")
    text_file(tmp_path / "2.dcm")
    with pytest.raises(
        DicomError, match=r"study S, series 12, .*none of its 2 files can be read; 1\.dcm: is not a DICOM"
    ):
        read_series(tmp_path, study_id="S", series_id="12")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DicomError, match="holds no files"):
        read_series(tmp_path / "empty")


def test_files_that_lie_beside_images_are_passed_over(tmp_path):
    write_series(tmp_path)
    for name in (".DS_Store", "notes.txt", "table.csv", "Thumbs.db"):
        (tmp_path / name).write_text("x")
    assert read_series(tmp_path).issues == ()


def test_nothing_that_identifies_the_patient_is_kept(tmp_path):
    tags = {"PatientAge": "054Y", "InstitutionName": "General", "StudyDate": "20200101", "AccessionNumber": "A77"}
    tags |= {"ReferringPhysicianName": "Roe", "PatientSex": "F", "DeviceSerialNumber": "998877"}
    write(tmp_path / "1.dcm", image(**tags, Manufacturer="Maker", EchoTime=100))
    series = read_series(tmp_path)
    kept = repr(series) + repr(series.header)
    for secret in ("Doe", "4711", "1970", "054Y", "General", "2020", "A77", "Roe", "998877"):
        assert secret not in kept
    assert series.header["Manufacturer"] == "Maker" and series.header["EchoTime"] == 100.0


# Views ---------------------------------------------------------------------------------------------------------

SPIN_T1 = {"RepetitionTime": 550, "EchoTime": 10, "ScanningSequence": "SE"}
TEXT = {"SeriesDescription": "lumbar", "SpecificCharacterSet": "ISO_IR 192"}
SPIN_T2 = {"RepetitionTime": 3500, "EchoTime": 102, "ScanningSequence": "SE"}


@pytest.mark.parametrize(
    ("orientation", "tags", "view"),
    [
        (SAGITTAL, SPIN_T1, SAGITTAL_T1),
        (SAGITTAL, SPIN_T2, SAGITTAL_T2),
        (AXIAL, SPIN_T2, AXIAL_T2),
        (OBLIQUE, SPIN_T1, SAGITTAL_T1),
        (turned(AXIAL, 0, 42), SPIN_T2, AXIAL_T2),
        (AXIAL, SPIN_T1, ""),
        (CORONAL, SPIN_T2, ""),
        (SAGITTAL, {"RepetitionTime": 4000, "EchoTime": 45, "InversionTime": 160}, SAGITTAL_T2),
        (SAGITTAL, {"RepetitionTime": 2200, "EchoTime": 20, "InversionTime": 860}, SAGITTAL_T1),
        (SAGITTAL, {"SeriesDescription": "SAG T1 TSE"}, SAGITTAL_T1),
        (SAGITTAL, {"SeriesDescription": "t2_tse_sag_p2"}, SAGITTAL_T2),
        (SAGITTAL, {"SeriesDescription": "STIR_SAG"}, SAGITTAL_T2),
        (SAGITTAL, {"SeriesDescription": "sT1W_TSE"}, SAGITTAL_T1),
        (SAGITTAL, {"SeriesDescription": "T12-S1 SAGT2"}, SAGITTAL_T2),
        (SAGITTAL, {"SeriesDescription": "lumbar", "ProtocolName": "t1_tse_sag"}, SAGITTAL_T1),
        (SAGITTAL, {"SeriesDescription": "Sagittal T2/STIR"}, SAGITTAL_T2),
        (SAGITTAL, {"SeriesDescription": "SAG T1 FLAIR", "RepetitionTime": 2200, "EchoTime": 24}, SAGITTAL_T1),
        (
            AXIAL,
            {"SeriesDescription": "AX T2* MERGE", "ScanningSequence": "GR", "EchoTime": 12, "RepetitionTime": 600},
            AXIAL_T2,
        ),
        (AXIAL, {"SeriesDescription": "AX T1"}, ""),
        (SAGITTAL, {"SeriesDescription": "3-plane localizer"}, ""),
        (SAGITTAL, {"SeriesDescription": "SAG DWI b800"} | SPIN_T2, ""),
        (SAGITTAL, {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]} | SPIN_T2, ""),
        (SAGITTAL, {"Modality": "CT", "SeriesDescription": "SAG"}, ""),
        (SAGITTAL, {"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]} | SPIN_T2, ""),
        (SAGITTAL, {"ImageType": ["DERIVED", "SECONDARY", "PROJECTION IMAGE", "MIP"]} | SPIN_T2, ""),
        (SAGITTAL, {"ImageType": ["DERIVED", "PRIMARY", "MPR"]} | SPIN_T2, SAGITTAL_T2),
        (SAGITTAL, {"BodyPartExamined": "LSPINE"} | SPIN_T2, SAGITTAL_T2),
        (SAGITTAL, {"BodyPartExamined": "CSPINE", "SeriesDescription": "t2 sag LWS"} | SPIN_T2, SAGITTAL_T2),
        (SAGITTAL, {"SeriesDescription": "T2 sag thoracolumbar"} | SPIN_T2, SAGITTAL_T2),
        *(
            (SAGITTAL, {"SeriesDescription": words} | SPIN_T2, "")
            for words in (
                *(
                    "PILOT",
                    "Sag Locator",
                    "LOKALIZER T2",
                    "Localizador T2 sag",
                    "Übersicht",
                    "repérage sag",
                    "TriPilot",
                ),
                *("localizzatore", "lokalizator", "SURVEY_MST", "3-pl LOC", "T2 Überzicht Planung", "локалайзер T2"),
            )
        ),
        *(
            (SAGITTAL, {"BodyPartExamined": "LSPINE", "SeriesDescription": words} | SPIN_T2, SAGITTAL_T2)
            for words in (
                *("SAG T2 head first", "T2 SAG SPINE NECK COIL OFF", "t2_sag_FeetFirst", "T2 SAG head/neck array"),
                *(
                    "sag T2 Kopf voran",
                    "T2 sag tête en avant",
                    "T2 decúbito dorsal",
                    "T2 SAG Spule Hals",
                    "T2 sag brain",
                ),
            )
        ),
    ],
)
def test_views_are_recognised_from_orientation_times_and_words(tmp_path, orientation, tags, view):
    series = read_series(write_series(tmp_path, orientation=orientation, **TEXT | tags))
    assert series.view == view
    assert series.issues == ()


@pytest.mark.parametrize(("orientation", "view"), [(SAGITTAL, SAGITTAL_T2), (AXIAL, AXIAL_T2)])
def test_without_times_and_words_it_is_taken_as_t2_and_said(tmp_path, orientation, view):
    series = read_series(write_series(tmp_path, orientation=orientation, SeriesDescription=None))
    assert series.view == view
    assert len(series.issues) == 1 and "tell T1 from T2; taken as T2" in str(series.issues[0])


def test_times_win_over_words_and_it_is_said(tmp_path):
    series = read_series(write_series(tmp_path, SeriesDescription="SAG T2", **SPIN_T1))
    assert series.view == SAGITTAL_T1
    assert "described as T2 but" in str(series.issues[0]) and "taken as T1" in str(series.issues[0])


@pytest.mark.parametrize(
    "tags",
    [
        {"SeriesDescription": "T2 sag c-spine"},
        {"SeriesDescription": "", "BodyPartExamined": "HEAD"},
        {"SeriesDescription": "t2_tse_sag", "ProtocolName": "HWS"},
        {"SeriesDescription": "PD TSE SAG KNEE", "BodyPartExamined": "EXTREMITY"},
        {"SeriesDescription": "T2 sag cervical", "BodyPartExamined": "LSPINE"},
        *(
            {"SeriesDescription": f"T2_sag_{words}"}
            for words in (
                *(
                    "DORSAL",
                    "CSP",
                    "TSP",
                    "C-SP",
                    "D SPINE",
                    "HWS",
                    "rachis dorsal",
                    "columna torácica",
                    "colonna dorsale",
                ),
                *(
                    "cervicale",
                    "Halswirbelsäule",
                    "thorakal",
                    "thoracaal",
                    "szyjny",
                    "piersiowy",
                    "servikal",
                    "torakal",
                ),
                *(
                    "Schädel",
                    "tête",
                    "cráneo",
                    "encefalo",
                    "cabeça",
                    "hoofd",
                    "głowa",
                    "beyin",
                    "cou",
                    "cuello",
                    "pescoço",
                ),
                *("шейный отдел", "грудной", "颈椎矢状", "CervSag"),
            )
        ),
    ],
)
def test_other_parts_of_the_body_are_no_view_and_it_is_said(tmp_path, tags):
    series = read_series(write_series(tmp_path, **SPIN_T2, **TEXT | tags))
    assert series.view == "" and "no lumbar view" in str(series.issues[0])


def test_scouts_in_a_series_are_left_out_and_noted(tmp_path):
    write_series(tmp_path, orientation=turned(AXIAL, 0, 20), offsets=np.arange(9) * 4.0, SeriesDescription="AX T2")
    write(tmp_path / "50.dcm", image(orientation=SAGITTAL, number=50))
    write(tmp_path / "51.dcm", image(orientation=CORONAL, number=51))
    series = read_series(tmp_path)
    assert series.view == AXIAL_T2 and series.n_slices == 9
    assert tuple(map(str, series.issues)) == ("50.dcm, 51.dcm: scout in another plane than the series, left out",)


def test_a_steep_block_is_no_scout(tmp_path):
    """In a strong lordosis the block along L5/S1 is tilted by more than 60 degrees against the one along L1/L2."""
    for block, angle in enumerate([-22, -10, 5, 30, 58]):
        write_series(
            tmp_path,
            orientation=turned(AXIAL, 0, angle),
            offsets=np.arange(4) * 4.0,
            numbers=range(1 + 10 * block, 5 + 10 * block),
            start=(-10, -12, -40.0 * block),
        )
    write(tmp_path / "99.dcm", image(orientation=SAGITTAL, number=99))
    series = read_series(tmp_path)
    assert series.view == AXIAL_T2 and len(series.stacks) == 5 and series.n_slices == 20
    assert tuple(map(str, series.issues)) == ("99.dcm: scout in another plane than the series, left out",)


def test_a_three_plane_localizer_is_no_view(tmp_path):
    for k, orientation in enumerate([SAGITTAL, AXIAL, CORONAL]):
        write_series(tmp_path, orientation=orientation, numbers=range(10 * k, 10 * k + 3), offsets=[0, 10, 20])
    series = read_series(tmp_path)
    assert series.view == "" and series.n_slices == 9


def test_the_table_s_view_holds_but_a_wrong_plane_is_noted(tmp_path):
    write_series(tmp_path, orientation=AXIAL)
    series = read_series(tmp_path, view=SAGITTAL_T1)
    assert series.view == SAGITTAL_T1
    assert tuple(map(str, series.issues)) == ("listed as Sagittal T1 but its slices are axial",)
    with pytest.raises(DataError, match="view 'T1' is not known"):
        read_series(tmp_path, view="T1")


# Surveys -------------------------------------------------------------------------------------------------------


def test_headers_of_a_tree_are_scanned_without_pixels(tmp_path):
    write_series(tmp_path / "b", series_uid="1.9", **SPIN_T2, SeriesDescription="SAG T2")
    write_series(tmp_path / "a", orientation=AXIAL, series_uid="1.8", shape=(30, 40), spacing=(0.5, 0.6))
    text_file(tmp_path / "b" / "9.dcm")
    headers = scan_headers(tmp_path)
    assert [h.path.name for h in headers] == [f"{n}.dcm" for n in (1, 2, 3, 4, 5)] * 2 + ["9.dcm"]
    first, last = headers[0], headers[-1]
    assert (first.series_uid, first.shape, first.spacing, first.plane) == ("1.8", (1, 30, 40), (0.5, 0.6), "axial")
    assert str(headers[5].acquisition) == "'SAG T2', TR 3500 TE 102"
    assert last.issue.startswith("is not a DICOM file") and first.issue == ""


def test_a_link_that_leads_back_does_not_scan_for_ever(tmp_path):
    write_series(tmp_path / "a")
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(scan_headers(tmp_path)) == 5


def test_real_series_are_recognised_as_their_description_says(real_mri):
    cases = sorted(folder for folder in real_mri.iterdir() if folder.is_dir())
    assert [case.name for case in cases] == sorted(set(pd.read_csv(real_mri / "points.csv")["case"]))
    for case in cases:
        series = read_series(case)
        expected = {"Sagittal T1": SAGITTAL_T1, "Sagittal T2": SAGITTAL_T2}[series.description]
        assert series.view == expected and series.issues == ()
        assert series.header["EchoTime"] is None, "these headers hold no times, so the words decide"
