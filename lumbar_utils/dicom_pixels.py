"""One DICOM file: is it one, what does it hold, and its pixels as numbers.

Scanners, archives and anonymisers bend the format in many ways, and a wrong guess here is an image that looks
almost right. So this module checks before it reads: what is claimed (rows, columns, frames, bits) against what
is there, before any memory is taken; and what does not fit is refused by name instead of patched up.
Uncompressed and RLE bits are placed here, because BitsStored, HighBit and the sign are needed together;
everything else is decoded by pydicom's plugins (python-gdcm, pylibjpeg-openjpeg).

References: DICOM PS3.3 C.7.6.3.1 (image pixel), PS3.5 section 8 and annex D (how pixels are written and in
which transfer syntax), PS3.10 section 7 (the file's head).
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import RLELossless
from pydicom.valuerep import VR

from .errors import DicomError

LARGEST_FILE = 4 * 2**30
"""Bytes. A whole enhanced MR series is below 1 GB; what is larger is not a lumbar MR scan."""
LARGEST_IMAGE = 2**28
"""Rows x columns x frames that are accepted: 1 GiB as float32, 30 times the largest series of the competition."""
LARGEST_PADDING = 1024
"""Bytes after the last pixel that are ignored; some writers pad to a block. More means wrong rows or columns."""
NOT_IMAGES = frozenset({"SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "PR", "SR", "KO", "REG", "RWV", "FID", "DOC"})
"""Modalities whose pixels, where they have any, are not an image of the patient."""
PREFERRED_DECODER = "pylibjpeg"
"""Where several plugins can decode; it brings the newer OpenJPEG. JPEG lossless and JPEG-LS have python-gdcm only."""

_PREAMBLE = 128
_MAGIC = b"DICM"
_VRS = frozenset(str(vr).encode() for vr in VR if len(str(vr)) == 2)


def read_dataset(path: Path | str, *, headers_only: bool = False, tags: list[str] | None = None) -> Dataset:
    """Parse one file, without decoding its pixels.

    Files without preamble or without file meta are read when their first element looks like DICOM.

    Parameters
    ----------
    path : path-like
    headers_only : bool
        Stop before the pixels, for surveys of many files.
    tags : list of str, optional
        Keywords to keep; other elements are skipped.

    Raises
    ------
    DicomError
        Naming the file, when it cannot be opened or is not DICOM.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise DicomError("is not a file", path=path)
        if size == 0:
            raise DicomError("the file is empty (0 bytes)", path=path)
        if size > LARGEST_FILE:
            raise DicomError(f"the file has {size} bytes, more than the {LARGEST_FILE} accepted", path=path)
        with path.open("rb") as file:
            head = file.read(_PREAMBLE + 4)
            start, force = _find_start(head, path)
            if headers_only and start == 0:
                file.seek(0)
                return _parse(file, path, force=force, stop_before_pixels=True, tags=tags)
            # One read of the whole file: a false length inside it can then not make Python reserve gigabytes.
            data = io.BytesIO(head[start:] + file.read())
    except OSError as error:
        raise DicomError(f"the file cannot be opened: {error.strerror or error}", path=path) from error
    return _parse(data, path, force=force, stop_before_pixels=headers_only, tags=tags)


def decode_frames(dataset: Dataset, path: Path | str) -> np.ndarray:
    """The stored values of all frames, bright = large, before rescale slope and intercept.

    Parameters
    ----------
    dataset : Dataset
        As `read_dataset` returns it, with its pixels.
    path : path-like
        Named in errors.

    Returns
    -------
    ndarray of float32, shape (n_frames, rows, columns)
        `MONOCHROME1` is turned over inside the range of the stored bits, so that the same value means the same
        brightness in all slices of a series.

    Raises
    ------
    DicomError
        When the dataset holds no greyscale image, claims what cannot be, or its pixels cannot be decoded.
    """
    frames, rows, columns = check_image(dataset, path)
    allocated = integer(dataset, "BitsAllocated", path)
    stored = integer(dataset, "BitsStored", path, default=allocated)
    high = integer(dataset, "HighBit", path, default=stored - 1)
    signed = integer(dataset, "PixelRepresentation", path, default=0)
    if allocated not in (8, 16, 32):
        raise DicomError(f"BitsAllocated is {allocated}, expected 8, 16 or 32", path=path)
    if not (1 <= stored <= allocated and stored - 1 <= high < allocated and signed in (0, 1)):
        raise DicomError(
            f"BitsAllocated {allocated}, BitsStored {stored}, HighBit {high} and PixelRepresentation {signed} "
            "contradict each other",
            path=path,
        )
    compressed, little_endian, syntax = _encoding(dataset, path)
    if not compressed:
        values = _native_values(dataset, path, frames * rows * columns, allocated, little_endian)
    else:
        values = _decoded_values(dataset, path, syntax, (frames, rows, columns))
    if not compressed or syntax == RLELossless:
        values = _place_bits(values, allocated, stored, high, bool(signed))
    values = values.reshape(frames, rows, columns).astype(np.float32)
    if text(dataset, "PhotometricInterpretation") == "MONOCHROME1":
        lowest, highest = (-(2 ** (stored - 1)), 2 ** (stored - 1) - 1) if signed else (0, 2**stored - 1)
        np.subtract(np.float32(lowest + highest), values, out=values)
    return values


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence pydicom, which warns about every value that bends the standard; what matters is checked and raises."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"pydicom|pylibjpeg|openjpeg")
        yield


def check_image(dataset: Dataset, path: Path | str) -> tuple[int, int, int]:
    """(frames, rows, columns) of a greyscale image of acceptable size; raises `DicomError` for anything else."""
    if "DirectoryRecordSequence" in dataset:
        raise DicomError("is a DICOMDIR, the index of a medium; give the folder of the images instead", path=path)
    kind = _class_name(dataset)
    if text(dataset, "Modality") in NOT_IMAGES:
        raise DicomError(f"holds no MR image but {kind}", path=path)
    if "Rows" not in dataset:
        hint = ": the file is cut off, or only a header" if "Image Storage" in kind else ""
        raise DicomError(f"holds {kind or 'a DICOM object'} without rows and columns{hint}", path=path)
    rows, columns = integer(dataset, "Rows", path), integer(dataset, "Columns", path)
    frames = integer(dataset, "NumberOfFrames", path, default=1) or 1  # some writers put 0 for "not multi-frame"
    if min(rows, columns, frames) < 1:
        raise DicomError(f"claims {rows} rows, {columns} columns and {frames} frames, expected 1 or more", path=path)
    if rows * columns * frames > LARGEST_IMAGE:
        raise DicomError(
            f"claims {rows} x {columns} pixels in {frames} frames, more than the {LARGEST_IMAGE} pixels accepted",
            path=path,
        )
    samples = integer(dataset, "SamplesPerPixel", path, default=1)
    interpretation = text(dataset, "PhotometricInterpretation") or "MONOCHROME2"
    if samples != 1 or not interpretation.startswith("MONOCHROME"):
        raise DicomError(
            f"is a colour image ({interpretation}, {samples} samples a pixel), expected a greyscale one", path=path
        )
    return frames, rows, columns


def text(dataset: Dataset, keyword: str) -> str:
    """An element as stripped text, several values joined with a blank; "" where it is missing or broken."""
    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom converts lazily and raises whatever the broken value leads to
        return ""
    if value is None:
        return ""
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        return str(value).strip()
    return " ".join(str(v).strip() for v in value)


def numbers(dataset: Dataset, keyword: str, path: Path | str, count: int) -> list[float] | None:
    """An element as `count` finite numbers, None where it is missing or empty; raises `DicomError` when broken."""
    try:
        value = dataset.get(keyword)
        if value is None or value == "" or (hasattr(value, "__len__") and len(value) == 0):
            return None
        values = [float(v) for v in value] if hasattr(value, "__iter__") else [float(value)]
    except Exception as error:
        raise DicomError(f"{keyword} cannot be read as numbers: {error}", path=path) from error
    if len(values) != count or not all(map(math.isfinite, values)):
        raise DicomError(f"{keyword} is {values}, expected {count} finite number{'s' * (count > 1)}", path=path)
    return values


def integer(dataset: Dataset, keyword: str, path: Path | str, *, default: int | None = None) -> int:
    """An element as a whole number, `default` where it is missing; raises `DicomError` when broken."""
    values = numbers(dataset, keyword, path, 1)
    if values is None:
        if default is None:
            raise DicomError(f"{keyword} is missing", path=path)
        return default
    if values[0] != int(values[0]):
        raise DicomError(f"{keyword} is {values[0]}, expected a whole number", path=path)
    return int(values[0])


def _find_start(head: bytes, path: Path) -> tuple[int, bool]:
    """Where the parser should start, and whether it must do without the magic word."""
    if head[_PREAMBLE:] == _MAGIC:
        return 0, False
    start = len(_MAGIC) if head.startswith(_MAGIC) else 0
    first = head[start : start + 8]
    for order in ("little", "big"):
        group, element = (int.from_bytes(first[i : i + 2], order) for i in (0, 2))
        length = int.from_bytes(first[4:8], order)
        plausible = first[4:6] in _VRS or (order == "little" and element <= 0x1F and length <= 128)
        if len(first) == 8 and group in (0x0002, 0x0008) and plausible:
            return start, True
    printable = all(32 <= byte < 127 or byte in b"\r\n\t" for byte in head)
    raise DicomError(
        f"is not a DICOM file: it starts with {first!r} and has no DICM mark" + (" (plain text)" if printable else ""),
        path=path,
    )


def _parse(file, path: Path, *, force: bool, stop_before_pixels: bool, tags: list[str] | None) -> Dataset:
    with without_warnings():
        try:
            dataset = pydicom.dcmread(file, force=force, stop_before_pixels=stop_before_pixels, specific_tags=tags)
        except Exception as error:  # a broken file can raise anything from struct.error to RecursionError
            raise DicomError(f"cannot be parsed as DICOM: {error or type(error).__name__}", path=path) from error
    if len(dataset) == 0:
        raise DicomError("holds no DICOM elements: cut off, or not a DICOM file", path=path)
    return dataset


def _encoding(dataset: Dataset, path: Path | str) -> tuple[bool, bool, pydicom.uid.UID]:
    """(compressed, little endian, transfer syntax); the syntax is "" where the file has no meta header."""
    if "PixelData" not in dataset:
        float_pixels = "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset
        raise DicomError(
            "holds floating-point pixels, expected whole numbers (PixelData)"
            if float_pixels
            else "holds no pixels although it has rows and columns: the file is cut off, or only a header",
            path=path,
        )
    syntax = pydicom.uid.UID(text(getattr(dataset, "file_meta", Dataset()), "TransferSyntaxUID"))
    if syntax:
        try:
            return syntax.is_compressed, syntax.is_little_endian, syntax
        except ValueError as error:
            raise DicomError(f"TransferSyntaxUID {syntax} is not known", path=path) from error
    if dataset["PixelData"].is_undefined_length:
        raise DicomError("is compressed but does not say how: TransferSyntaxUID is missing", path=path)
    _, little_endian = dataset.original_encoding
    return False, little_endian is not False, syntax


def _native_values(dataset: Dataset, path, count: int, allocated: int, little_endian: bool) -> np.ndarray:
    """Uncompressed pixels as unsigned integers, shape (count,)."""
    element = dataset["PixelData"]
    data = element.value or b""
    size = count * allocated // 8
    # 8-bit pixels written as 16-bit words: each pair of bytes has changed places (PS3.5 section 8.1.2).
    swapped = allocated == 8 and not little_endian and element.VR == "OW"
    size += size % 2 if swapped else 0
    excess = len(data) - size
    if not 0 <= excess <= LARGEST_PADDING:
        raise DicomError(
            f"PixelData has {len(data)} bytes, expected {size} for its rows, columns, frames and {allocated} bits: "
            + ("the file is cut off" if excess < 0 else "rows, columns or bits are wrong"),
            path=path,
        )
    if swapped:
        return np.frombuffer(data, np.uint16, size // 2).byteswap().view(np.uint8)[:count]
    dtype = np.dtype(f"u{allocated // 8}").newbyteorder("<" if little_endian else ">")
    return np.frombuffer(data, dtype, count)


def _decoded_values(dataset: Dataset, path, syntax: pydicom.uid.UID, shape: tuple[int, int, int]) -> np.ndarray:
    """Compressed pixels, shape (frames, rows, columns)."""
    frames, rows, columns = shape
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise DicomError(f"its pixels are compressed as {syntax.name}, which is not supported", path=path) from error
    with without_warnings():
        try:
            if syntax != RLELossless:
                for stream in generate_frames(dataset.PixelData, number_of_frames=frames):
                    encoded = _encoded_size(stream) or (rows, columns)
                    if encoded != (rows, columns):
                        raise DicomError(
                            f"the compressed image has {encoded[0]} x {encoded[1]} pixels, "
                            f"the header says {rows} x {columns}",
                            path=path,
                        )
            options = {"correct_unused_bits": False} if syntax == RLELossless else {}
            if PREFERRED_DECODER in decoder.available_plugins:
                options["decoding_plugin"] = PREFERRED_DECODER
            values, _ = decoder.as_array(dataset, raw=True, **options)
        except DicomError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            if "missing dependencies" in reason:
                reason = "no decoder is installed for it; pip install python-gdcm pylibjpeg-openjpeg"
            raise DicomError(f"its pixels ({syntax.name}) cannot be decoded: {reason}", path=path) from error
    if values.size != frames * rows * columns:
        raise DicomError(
            f"its pixels ({syntax.name}) decode to shape {values.shape}, expected {shape}",
            path=path,
        )
    return values


def _place_bits(values: np.ndarray, allocated: int, stored: int, high: int, signed: bool) -> np.ndarray:
    """Cut the stored bits out of their words: shift the highest to the top, then all down, keeping the sign."""
    unsigned = values.view(values.dtype.str.replace("i", "u"))
    if stored < allocated and high < allocated - 1:
        unsigned = np.left_shift(unsigned, allocated - 1 - high)
    # astype first: a view of big-endian words as signed words would keep the order of bytes, a shift does not.
    placed = unsigned.astype(np.dtype(f"u{allocated // 8}"), copy=False)
    if signed:
        placed = placed.view(np.dtype(f"i{allocated // 8}"))
    return np.right_shift(placed, allocated - stored) if stored < allocated else placed


def _encoded_size(stream: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 stream claims; None when they are not found.

    Decoders reserve memory by these numbers, so they are compared with the header first.
    """
    if stream[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000: SOC, SIZ; size less offset (ISO 15444-1 A.5.1)
        x1, y1, x0, y0 = (int.from_bytes(stream[i : i + 4], "big") for i in (8, 12, 16, 20))
        return y1 - y0, x1 - x0
    at = 2
    while stream[:2] == b"\xff\xd8" and at + 9 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:  # start of frame
            return int.from_bytes(stream[at + 5 : at + 7], "big"), int.from_bytes(stream[at + 7 : at + 9], "big")
        else:
            at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return None


def _class_name(dataset: Dataset) -> str:
    uid = text(dataset, "SOPClassUID")
    return pydicom.uid.UID(uid).name if uid else text(dataset, "Modality")
