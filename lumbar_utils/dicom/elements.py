"""Single elements of a header as text and numbers, and the size of the image that it describes.

Errors name the element and never what it holds, which may be about somebody, in whatever element.
"""

from __future__ import annotations

import math
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.valuerep import PersonName

from ..errors import DicomError
from .plain_files import tag_of

MAX_IMAGE = 2**28
"""Rows x columns x frames that are accepted: 1 GiB as float32, 30 times the largest series of the competition."""
NOT_IMAGES = frozenset({"SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "PR", "SR", "KO", "REG", "RWV", "FID", "DOC"})
"""Modalities whose pixels, where they have any, are not an image of the patient."""
MODALITIES = NOT_IMAGES | {"MR", "CT", "CR", "DX", "ES", "MG", "NM", "OT", "PT", "RF", "SC", "US", "XA", "XC"}
"""Those that are called by their code; others are not, because an element may hold anything."""
MAX_NUMBERS = 8
"""Values of an element that are looked at; no attribute of a place or a size has more than six."""
MAX_TEXT = 256
"""Characters of an element that are kept; the standard allows 64 in a description."""

_LETTERS = str.maketrans({"ł": "l", "ø": "o", "đ": "d", "ı": "i", "æ": "ae", "œ": "oe"})
"""Letters that Unicode takes for letters of their own."""
_NUMBERS = frozenset({"DS", "IS", "US"})
_CODES = frozenset({"CS", "UI"})
"""Value representations that are converted here, where they are written as they should be."""


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
    if text(dataset, "Modality") in NOT_IMAGES:
        raise DicomError(f"holds no MR image but {_class_name(dataset)}", path=path)
    if "Rows" not in dataset:
        kind = _class_name(dataset)
        hint = ": the file is cut off, or only a header" if "Image Storage" in kind else ""
        raise DicomError(f"holds {kind or 'a DICOM object'} without rows and columns{hint}", path=path)
    rows, columns = integer(dataset, "Rows", path), integer(dataset, "Columns", path)
    frames = integer(dataset, "NumberOfFrames", path, default=1) or 1  # some writers put 0 for "not multi-frame"
    if min(rows, columns, frames) < 1:
        raise DicomError("Rows, Columns or NumberOfFrames is below 1", path=path)
    if rows * columns * frames > MAX_IMAGE:
        raise DicomError(f"Rows, Columns and NumberOfFrames make more than the {MAX_IMAGE} pixels accepted", path=path)
    samples = integer(dataset, "SamplesPerPixel", path, default=1)
    interpretation = text(dataset, "PhotometricInterpretation") or "MONOCHROME2"
    if samples != 1 or not interpretation.startswith("MONOCHROME"):
        raise DicomError("is a colour image, expected a greyscale one", path=path)
    return frames, rows, columns


def text(dataset: Dataset, keyword: str) -> str:
    """An element as one line of printable text, several values joined with a blank; "" where missing or broken."""
    try:
        raw = _raw(dataset, keyword)
        if raw is not None and raw.VR in _CODES and raw.value and raw.value.isascii() and b"\\" not in raw.value:
            return printable(raw.value.decode().rstrip("\0 "))[:MAX_TEXT].strip()
        value = dataset.get(keyword)
        if value is None:
            return ""
        several = not isinstance(value, (str, bytes, PersonName)) and hasattr(value, "__iter__")
        words = " ".join(str(v).strip() for v in islice(value, MAX_TEXT)) if several else str(value)
    except Exception:  # pydicom converts lazily and raises whatever the broken value leads to
        return ""
    return printable(words)[:MAX_TEXT].strip()


def printable(words: str) -> str:
    """Text on one line: runs of blanks, line ends and other controls become one blank, invisible characters nothing.

    Descriptions end in logs, tables and on terminals; controls can forge lines there, colour them or turn them round.
    """
    words = words[: 4 * MAX_TEXT]
    if words.isascii() and words.isprintable():  # nearly all are: no look at every letter
        return " ".join(words.split())
    kept = (" " if c.isspace() or unicodedata.category(c) == "Cc" else c for c in words)
    return " ".join("".join(c for c in kept if unicodedata.category(c)[0] != "C").split())


def folded(words: str) -> str:
    """Lower case without accents and ligatures, to compare by: "Übersicht" becomes "ubersicht"."""
    if words.isascii():
        return words.lower()
    plain = "".join(c for c in unicodedata.normalize("NFKD", words.casefold()) if not unicodedata.combining(c))
    return unicodedata.normalize("NFC", plain).translate(_LETTERS)


def numbers(dataset: Dataset, keyword: str, path: Path | str, count: int) -> list[float] | None:
    """An element as `count` finite numbers, None where it is missing or empty; raises `DicomError` when broken."""
    try:
        values = _plain_numbers(_raw(dataset, keyword))
        if values is not None and len(values) == count and all(map(math.isfinite, values)):
            return values
        value = dataset.get(keyword)
        if value is None or value == "" or (hasattr(value, "__len__") and len(value) == 0):
            return None
        several = hasattr(value, "__iter__") and not isinstance(value, (str, bytes))
        values = [float(v) for v in islice(value, MAX_NUMBERS)] if several else [float(value)]
    except Exception as error:
        raise DicomError(f"{keyword} cannot be read as numbers", path=path) from error
    if len(values) != count or not all(map(math.isfinite, values)):
        raise DicomError(f"{keyword} is not {count} finite number{'s' * (count > 1)}", path=path)
    return values


def _raw(dataset: Dataset, keyword: str) -> RawDataElement | None:
    """An element that pydicom has not converted yet, None where it has, or where there is none."""
    element = dataset.get_item(tag_of(tag_for_keyword(keyword)))
    return element if isinstance(element, RawDataElement) else None


def _plain_numbers(raw: RawDataElement | None) -> list[float] | None:
    """Numbers of an element that are written as they should be, None otherwise; pydicom takes 20 times as long."""
    if raw is None or not raw.value or raw.VR not in _NUMBERS:
        return None
    if raw.VR == "US":
        order = "little" if raw.is_little_endian else "big"
        return [float(int.from_bytes(raw.value, order))] if len(raw.value) == 2 else None
    try:
        return [float(number) for number in raw.value.decode("ascii").rstrip("\0").split("\\", MAX_NUMBERS)]
    except ValueError:
        return None


def integer(dataset: Dataset, keyword: str, path: Path | str, *, default: int | None = None) -> int:
    """An element as a whole number, `default` where it is missing; raises `DicomError` when broken."""
    values = numbers(dataset, keyword, path, 1)
    if values is None:
        if default is None:
            raise DicomError(f"{keyword} is missing", path=path)
        return default
    if values[0] != int(values[0]):
        raise DicomError(f"{keyword} is no whole number", path=path)
    return int(values[0])


def _class_name(dataset: Dataset) -> str:
    """What the standard calls its SOP class, else its modality's code, "" where neither is known."""
    uid, modality = pydicom.uid.UID(text(dataset, "SOPClassUID")), text(dataset, "Modality")
    return uid.name if uid.name != uid else modality if modality in MODALITIES else ""
