"""Headers of all files below a folder, without pixels: what lies there, before anything is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DicomError
from ..notebook_html import progress_bar
from .acquisitions import HEADER_NUMBERS, HEADER_TEXTS, OTHER_KEYWORDS, Acquisition, acquisition_of, signature
from .elements import check_image, numbers, text, without_warnings
from .headers import frame_geometry, instance_number_of, walk_files
from .identity import IDENTITY
from .parsing import read_dataset
from .recognition import plane_of

_TAGS = [
    "StudyInstanceUID", "SeriesInstanceUID", "InstanceNumber", "Rows", "Columns",
    "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PixelSpacing", "ImagePositionPatient",
    "ImageOrientationPatient", "DirectoryRecordSequence", "PatientIdentityRemoved",
    *HEADER_NUMBERS, *HEADER_TEXTS, *OTHER_KEYWORDS, *IDENTITY,
]  # fmt: skip


@dataclass(frozen=True)
class FileHeader:
    """What one file says about itself, without its pixels; `issue` is "" for an image that seems readable.

    `shape` is (frames, rows, columns), `plane` the anatomical plane or "" (also for multi-frame files).
    """

    path: Path
    study_uid: str = ""
    series_uid: str = ""
    instance_number: int = -1
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
    return FileHeader(
        path,
        text(dataset, "StudyInstanceUID"),
        text(dataset, "SeriesInstanceUID"),
        instance_number_of(dataset, path),
        shape,
        spacing,
        plane,
        issue,
        known[said],
    )
