"""What headers say: where a slice lies, and what the files below a folder are, before anything is read.

Attributes of enhanced multi-frame images are looked up where the standard allows them: in the functional groups
of the frame, in those shared by all frames, in the header itself.

References: DICOM PS3.3 C.7.6.2 (image plane), C.7.6.16 (functional groups), C.11.1 (rescale slope and intercept).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from ..errors import DicomError, GeometryError
from ..geometry import SliceGeometry
from ..notebook_html import progress_bar
from .acquisitions import HEADER_NUMBERS, HEADER_TEXTS, OTHER_KEYWORDS, Acquisition, acquisition_of, signature
from .elements import check_image, integer, numbers, text, without_warnings
from .identity import IDENTITY
from .parsing import read_dataset, reason_of
from .recognition import plane_of

OTHER_FILES = (
    *(".csv", ".txt", ".md", ".json", ".xml", ".html", ".htm", ".pdf", ".png", ".jpg", ".jpeg", ".gif", ".tif"),
    *(".zip", ".gz", ".nii", ".npz", ".npy", ".py", ".ipynb", ".log", ".db", ".ini", ".xlsx", ".parquet"),
    *(".safetensors", ".sqlite", ".yaml", ".yml"),
)
"""Suffixes of files that lie beside images and are passed over without a word."""

MAX_MM = 1e5
"""mm from the scanner's centre; a table travels two metres."""
SPACINGS_MM = (1e-2, 1e2)
"""mm, smallest and largest distance of pixels that is believed; MR has 0.1 to 5."""
MAX_RESCALE = 1e12
"""Rescale slopes and intercepts beyond, or slopes below its inverse, do not survive in float32."""

MAX_ITEMS = 2**18
"""Items of all depths in functional groups; an image of 1,000 frames has 20,000 or so."""
_ITEM = b"\xfe\xff\x00\xe0"
_TAGS = [
    *("StudyInstanceUID", "SeriesInstanceUID", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"),
    *("PhotometricInterpretation", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"),
    *("DirectoryRecordSequence", "PatientIdentityRemoved"),
    *(*HEADER_NUMBERS, *HEADER_TEXTS, *OTHER_KEYWORDS, *IDENTITY),
]


def list_files(source: Path | str | Iterable[Path | str]) -> list[Path]:
    """The files of a folder (one level), of one path, or as given, in natural order (2 before 10)."""
    if not isinstance(source, (str, Path)):
        return sorted((Path(p) for p in source), key=_natural)
    source = Path(source)
    if source.is_dir():
        try:
            with os.scandir(source) as entries:
                names = [entry.name for entry in entries if entry.is_file() and _may_be_dicom(entry.name)]
        except OSError as error:
            raise DicomError(f"the folder cannot be listed: {error.strerror or error}", path=source) from error
        return sorted((source / name for name in names), key=_natural)
    return [source]


def walk_files(folder: Path | str) -> Iterator[Path]:
    """All files below a folder that may be DICOM, in natural order; links are followed, but no folder twice."""
    folder = Path(folder)
    if not folder.is_dir():
        yield folder
        return
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted((f for f in folders if not f.startswith(".")), key=_natural)
        yield from (Path(parent) / name for name in sorted(filter(_may_be_dicom, names), key=_natural))


def _may_be_dicom(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() not in OTHER_FILES


def _natural(path: Path | str) -> list:
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def functional_groups(dataset: Dataset, frames: int, path: Path) -> list[list[Dataset]]:
    """For every frame the places where its attributes are looked up, the most specific first."""
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        raw = dataset.get_item(keyword)  # not parsed yet: each item of 8 bytes would become a thousand
        if isinstance(raw, RawDataElement) and (raw.value or b"").count(_ITEM) > MAX_ITEMS:
            raise DicomError(f"{keyword} has more items than any image", path=path)
    try:
        shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]
        per_frame = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    except Exception as error:
        raise DicomError(f"functional groups cannot be read ({reason_of(error)})", path=path) from error
    if per_frame and len(per_frame) != frames:
        raise DicomError(f"has functional groups for {len(per_frame)} frames, unlike NumberOfFrames", path=path)
    if frames > 1 and not per_frame:
        raise DicomError("has several frames but no positions of them (functional groups)", path=path)
    return [[*per_frame[i : i + 1], *shared, dataset] for i in range(frames)]


def _lookup(group: list[Dataset], sequence: str, keyword: str, path: Path, count: int) -> list[float] | None:
    """An attribute of a frame: in its own functional group, the shared one, or the header itself."""
    for place in group[:-1]:
        items = place.get(sequence)
        values = numbers(items[0], keyword, path, count) if items else None
        if values is not None:
            return values
    return numbers(group[-1], keyword, path, count)


def frame_geometry(group: list[Dataset], shape: tuple[int, int], path: Path) -> SliceGeometry:
    """Where a frame of `shape` (rows, columns) lies, from its `functional_groups`; raises `DicomError` when unknown."""
    position = _lookup(group, "PlanePositionSequence", "ImagePositionPatient", path, 3)
    orientation = _lookup(group, "PlaneOrientationSequence", "ImageOrientationPatient", path, 6)
    spacing = _lookup(group, "PixelMeasuresSequence", "PixelSpacing", path, 2)
    if position is None or orientation is None:
        absent = "ImagePositionPatient" if position is None else "ImageOrientationPatient"
        raise DicomError(f"{absent} is missing, so the slice has no place in the patient", path=path)
    if spacing is None:
        # ImagerPixelSpacing is measured at a detector and differs by the magnification; MR has no use for it.
        hint = "; ImagerPixelSpacing is no substitute" if "ImagerPixelSpacing" in group[-1] else ""
        raise DicomError(f"PixelSpacing is missing, so the image has no size{hint}", path=path)
    if max(map(abs, position)) > MAX_MM:
        raise DicomError("ImagePositionPatient lies in no scanner", path=path)
    if min(spacing) > 0 and not SPACINGS_MM[0] <= min(spacing) <= max(spacing) <= SPACINGS_MM[1]:
        raise DicomError(f"PixelSpacing is not {SPACINGS_MM[0]} to {SPACINGS_MM[1]} mm", path=path)
    try:
        return SliceGeometry(position, orientation[:3], orientation[3:], (spacing[0], spacing[1]), shape)
    except GeometryError as error:
        raise DicomError(str(error).partition(", got")[0], path=path) from error


def frame_rescale(group: list[Dataset], path: Path) -> tuple[float, float]:
    """(slope, intercept) of a frame, (1, 0) where not given; raises `DicomError` for what leaves no image."""
    slope = _lookup(group, "PixelValueTransformationSequence", "RescaleSlope", path, 1) or [1.0]
    intercept = _lookup(group, "PixelValueTransformationSequence", "RescaleIntercept", path, 1) or [0.0]
    if slope[0] == 0:
        raise DicomError("RescaleSlope is 0, which makes every pixel the same", path=path)
    if not 1 / MAX_RESCALE <= abs(slope[0]) <= MAX_RESCALE or abs(intercept[0]) > MAX_RESCALE:
        raise DicomError("RescaleSlope and RescaleIntercept leave no numbers that float32 can hold", path=path)
    return slope[0], intercept[0]


def instance_number_of(dataset: Dataset, path: Path) -> int:
    """InstanceNumber, or the number in the file's name where it is missing or broken, else -1."""
    try:
        return integer(dataset, "InstanceNumber", path)
    except DicomError:
        digits = re.findall(r"\d+", path.stem)
        return int(digits[-1]) if digits else -1


@dataclass(frozen=True)
class FileHeader:
    """What one file says about itself, without its pixels; `issue` is "" for an image that seems readable.

    `shape` is (frames, rows, columns), `plane` the anatomical plane or "" (also for multi-frame files).
    """

    path: Path
    study_uid: str = ""
    series_uid: str = ""
    shape: tuple[int, int, int] = (0, 0, 0)
    spacing: tuple[float, ...] = ()
    plane: str = ""
    issue: str = ""
    acquisition: Acquisition = field(default=Acquisition("", {}), repr=False)


def scan_headers(folder: Path | str, *, progress: bool = False) -> list[FileHeader]:
    """Headers of all files below a folder (or of one file), without pixels, in natural order of their paths.

    A file that is no readable image comes with its `issue`, so that nothing is passed over in silence, except
    hidden files and the suffixes of `OTHER_FILES`.
    """
    paths = list(walk_files(folder))
    known: dict[tuple, Acquisition] = {}
    return [_scan(path, known) for path in progress_bar(paths, desc="headers", unit="file", disable=not progress)]


@without_warnings()
def _scan(path: Path, known: dict[tuple, Acquisition]) -> FileHeader:
    try:
        dataset = read_dataset(path, headers_only=True, tags=_TAGS)
    except DicomError as error:
        return FileHeader(path, issue=error.issue)
    issue, shape, spacing, plane = "", (0, 0, 0), (), ""
    try:
        shape = check_image(dataset, path)
        spacing = tuple(numbers(dataset, "PixelSpacing", path, 2) or ())
        if shape[0] == 1 and "ImageOrientationPatient" in dataset:
            plane = plane_of(frame_geometry([dataset], shape[1:], path))
    except DicomError as error:
        issue = error.issue
    said = signature(dataset, full=True)
    if said not in known:
        known[said] = acquisition_of([dataset])
    uids = text(dataset, "StudyInstanceUID"), text(dataset, "SeriesInstanceUID")
    return FileHeader(path, *uids, shape, spacing, plane, issue, known[said])
