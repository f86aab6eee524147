"""From DICOM files to series of stacks in patient coordinates.

Every slice is placed by ImagePositionPatient, ImageOrientationPatient and PixelSpacing. File names and instance
numbers only identify slices, because scanners number them in any direction and archives renumber them. One file
that cannot be read never costs the series: it is named in `Series.issues`, and the rest is used.

References: DICOM PS3.3 C.7.6.2 (image plane), C.7.6.16 (functional groups of multi-frame images), C.11.1
(rescale slope and intercept).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset

from ..errors import DataError, DicomError, GeometryError, Issue
from ..geometry import DUPLICATE_TOLERANCE_MM, SliceGeometry, StackGeometry, group_into_stacks
from ..labels import VIEWS
from .elements import check_image, text, without_warnings
from .headers import (
    FileHeader,
    acquisition,
    frame_geometry,
    frame_rescale,
    functional_groups,
    identity_of,
    instance_number_of,
    list_files,
    scan_headers,
    without_identity,
)
from .parsing import library_message, read_dataset
from .pixels import StoredFrame, stored_frames
from .recognition import AXIAL, SAGITTAL, main_plane, plane_of, recognise

__all__ = [
    "FileHeader",
    "Series",
    "Slice",
    "Stack",
    "read_series",
    "read_slices",
    "recognise_view",
    "scan_headers",
    "without_identity",
]

SCOUT_ANGLE_DEGREES = 40.0
"""Slices of another plane are scouts when turned further than this against every stack of the series' main plane.
Blocks along neighbouring discs differ by 25 or so; the block along a steep L5/S1 can look coronal and must stay."""
MAX_SLICES, MAX_PIXELS = 2000, 2**28
"""Slices, and pixels, of one series that are read: ten times, and thirty times, what the competition's largest has.
Beyond, a folder of small compressed files could fill any memory, and grouping would take minutes."""
NAMES_IN_A_NOTE = 5
"""File names spelt out in one note; a dynamic series can hold hundreds of duplicates."""


class Slice(NamedTuple):
    """One image of a file: where it lies, what is stored, (slope, intercept), number, header without pixels."""

    geometry: SliceGeometry
    stored: StoredFrame
    rescale: tuple[float, float]
    instance_number: int
    dataset: Dataset

    @property
    def pixels(self) -> np.ndarray:
        """Float32 (rows, columns), rescaled, bright = large."""
        pixels = np.empty(self.geometry.shape, dtype=np.float32)
        self.stored.write(pixels, *self.rescale)
        return pixels


@dataclass(frozen=True)
class Stack:
    """Parallel slices of a series, sorted along their normal.

    Parameters
    ----------
    pixels : ndarray of float32, shape (n, rows, columns)
        After rescale slope and intercept, bright = large.
    geometry : StackGeometry
    instance_numbers : tuple of int, length n
        Of a multi-frame file the number of the frame, counted from 1.
    files : tuple of str, length n
        File names without folder.
    """

    pixels: np.ndarray = field(repr=False)
    geometry: StackGeometry = field(repr=False)
    instance_numbers: tuple[int, ...]
    files: tuple[str, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.geometry)


@dataclass(frozen=True)
class Series:
    """One acquisition: one stack, or several where blocks of slices are angulated.

    Parameters
    ----------
    study_id, series_id : str
    view : str
        One of `labels.VIEWS`, or "" when the series is none of them.
    stacks : tuple of Stack
        The largest first.
    description : str
        SeriesDescription of the header, "" where missing.
    header : dict
        By DICOM keyword `headers.HEADER_NUMBERS` as float (times in ms, field in T, lengths in mm) and
        `HEADER_TEXTS` as str, None where missing. Holds nothing that identifies the patient.
    issues : tuple of Issue
        What was left out or guessed, and why.
    """

    study_id: str
    series_id: str
    view: str
    stacks: tuple[Stack, ...]
    description: str = ""
    header: dict = field(default_factory=dict, repr=False)
    issues: tuple[Issue, ...] = ()

    @property
    def n_slices(self) -> int:
        """Number of slices in all stacks."""
        return sum(len(stack) for stack in self.stacks)

    def slice_of(self, instance_number: int) -> tuple[int, int] | None:
        """(stack index, slice index) of an instance number, None when the series does not hold it."""
        return self._places.get(int(instance_number))

    @cached_property
    def _places(self) -> dict[int, tuple[int, int]]:
        places: dict[int, tuple[int, int]] = {}
        for s, stack in enumerate(self.stacks):
            for k, number in enumerate(stack.instance_numbers):
                places.setdefault(number, (s, k))
        return places


@without_warnings()
def read_slices(path: Path | str) -> list[Slice]:
    """Read one file: one slice, or one for every frame of an enhanced multi-frame image.

    Raises
    ------
    DicomError
        Naming the file and what was wrong: not DICOM, no greyscale image, no position, orientation or
        PixelSpacing, contradictory sizes, pixels that cannot be decoded.
    """
    path = Path(path)
    try:
        return _read_slices(path)
    except DicomError:
        raise
    except Exception as error:  # pydicom converts lazily: any look at a broken element can raise anything
        raise DicomError(f"cannot be read: {library_message(error)}", path=path) from error


def _read_slices(path: Path) -> list[Slice]:
    dataset = read_dataset(path)
    frames, rows, columns = size = check_image(dataset, path)
    # The geometry comes first: it is cheap, and an image without a place is of no use however well it decodes.
    groups = functional_groups(dataset, frames, path)
    geometries = [frame_geometry(group, (rows, columns), path) for group in groups]
    rescales = [frame_rescale(group, path) for group in groups]
    stored = stored_frames(dataset, size, path)
    del dataset.PixelData
    numbered = range(1, frames + 1) if frames > 1 else [instance_number_of(dataset, path)]
    return [Slice(*parts, dataset) for parts in zip(geometries, stored, rescales, numbered, strict=True)]


@without_warnings()
def read_series(
    source: Path | str | Iterable[Path | str],
    *,
    study_id: str = "",
    series_id: str = "",
    view: str = "",
    numbered_by_file_name: bool = False,
) -> Series:
    """Read the files of one series into stacks.

    Parameters
    ----------
    source : path or iterable of paths
        A folder (its files, not those of folders inside it), one file, or the files.
    study_id, series_id : str
        Kept in the result and named in errors.
    view : str
        One of `labels.VIEWS` when known; "" recognises it from orientation, times and description.
    numbered_by_file_name : bool
        Take `7.dcm` as instance 7 whatever its header says: the competition's tables count by file name.

    Returns
    -------
    Series
        Duplicates, scouts in another plane and unreadable files are left out and named in `issues`.

    Raises
    ------
    DicomError
        When no file can be read.
    """
    paths = list_files(source)
    if view and view not in VIEWS:
        raise DataError(f"view {view!r} is not known, expected one of {VIEWS} or ''")
    where = {"path": source if isinstance(source, (str, Path)) else None, "study_id": study_id, "series_id": series_id}
    if not paths:
        raise DicomError("holds no files, expected the DICOM files of one series", **where)
    slices: list[Slice] = []
    names: list[str] = []
    issues: list[Issue] = []
    place = (study_id, series_id)
    pixels = 0
    for number, path in enumerate(paths):
        if len(slices) >= MAX_SLICES or pixels >= MAX_PIXELS:
            message = f"{len(paths) - number} more files are not read: {len(slices)} slices, {pixels} pixels"
            issues.append(Issue("files_not_read", message, *place))
            break
        try:
            read = read_slices(path)
        except DicomError as error:
            issues.append(Issue("file_unreadable", error.issue, *place, path.name))
            continue
        if numbered_by_file_name and len(read) == 1 and path.stem.isdecimal():
            read = [read[0]._replace(instance_number=int(path.stem))]
        pixels += sum(item.stored.words.size for item in read)
        slices.extend(read[: MAX_SLICES - len(slices)])
        read = read[: len(slices) - len(names)]
        names.extend([path.name] * len(read))
    if not slices:
        first = without_identity(str(replace(issues[0], series_id="")), scan_headers(paths[0])[0].identity)
        raise DicomError(f"none of its {len(paths)} files can be read; {first}", **where)
    try:
        return _assemble(slices, names, issues, study_id=study_id, series_id=series_id, view=view)
    except GeometryError as error:
        raise DicomError(f"its slices make no stack: {error}", **where) from error


def _assemble(
    slices: list[Slice], names: list[str], issues: list[Issue], *, study_id: str, series_id: str, view: str
) -> Series:
    """The series of slices that were read; `names` are those of their files."""
    geometries = [item.geometry for item in slices]
    groups = [_in_order(geometries, group) for group in group_into_stacks(geometries)]
    doubles = sorted(set(range(len(slices))) - {index for group in groups for index in group})
    place = (study_id, series_id)
    issues += _left_out("slice_duplicate", "lies where another slice does (duplicate)", doubles, names, place)
    groups, scouts = _without_scouts(slices, groups)
    issues += _left_out("slice_scout", "scout in another plane than the series", scouts, names, place)
    first = slices[groups[0][0]].dataset
    identity = identity_of(first)
    header, description = acquisition(first, identity), text(first, "SeriesDescription")
    planes = [plane_of(slices[i].geometry) for group in groups for i in group]
    if view:
        note = _check_view(view, planes)
    else:
        view, note = recognise(planes, header, description)
    issues += [Issue("view_low_confidence", note, *place)] if note else []
    stacks = tuple(_stack(slices, names, group) for group in groups)
    issues = [issue.rewritten(lambda words: without_identity(words, identity)) for issue in issues]
    return Series(study_id, series_id, view, stacks, without_identity(description, identity), header, tuple(issues))


def recognise_view(series: Series) -> str:
    """One of `labels.VIEWS` by orientation, times and description, "" when it is none; see `recognition`."""
    planes = [plane_of(stack.geometry[0]) for stack in series.stacks for _ in range(len(stack))]
    return recognise(planes, series.header, series.description)[0]


def _left_out(code: str, why: str, indices: Iterable[int], names: list[str], place: tuple[str, str]) -> list[Issue]:
    """One issue about slices that are not used, none when there are none."""
    affected = list(dict.fromkeys(names[i] for i in indices))
    more = f" and {len(affected) - NAMES_IN_A_NOTE} more" if len(affected) > NAMES_IN_A_NOTE else ""
    named = f"{', '.join(affected[:NAMES_IN_A_NOTE])}{more}"
    return [Issue(code, f"{why}, left out", *place, named)] if affected else []


def _without_scouts(slices: list[Slice], groups: list[list[int]]) -> tuple[list[list[int]], list[int]]:
    """Split off the stacks of other planes that are turned far from all stacks of the main plane, if there is one."""
    stack_planes = [plane_of(slices[group[0]].geometry) for group in groups]
    plane = main_plane([one for one, group in zip(stack_planes, groups, strict=True) for _ in group])
    normals = np.stack([slices[group[0]].geometry.normal for group in groups])
    of_main = np.array([one == plane for one in stack_planes])
    if not of_main.any():
        return groups, []
    nearest = np.abs(normals @ normals[of_main].T).max(axis=1)
    keep = of_main | (nearest >= np.cos(np.radians(SCOUT_ANGLE_DEGREES)))
    kept = [group for group, wanted in zip(groups, keep, strict=True) if wanted]
    return kept, sorted(i for group, wanted in zip(groups, keep, strict=True) if not wanted for i in group)


def _check_view(view: str, planes: list[str]) -> str:
    wanted, found = AXIAL if view.startswith("Axial") else SAGITTAL, main_plane(planes)
    return "" if found in ("", wanted) else f"listed as {view} but its slices are {found}"


def _in_order(geometries: list[SliceGeometry], group: list[int]) -> list[int]:
    """A group of `group_into_stacks`, sorted along the normal of the slice that will stand for all (`_stack`).

    Directions inside a group differ by up to its tolerance. When the slice that it was sorted by is itself left out
    as a duplicate, slices that nearly touch can change places along the normal of another one.
    """
    reference = min(group)
    normal = geometries[reference].normal
    kept: list[int] = []
    for index in sorted(group, key=lambda i: float(geometries[i].position @ normal)):
        step = (geometries[index].position - geometries[kept[-1]].position) @ normal if kept else np.inf
        if step >= DUPLICATE_TOLERANCE_MM / 2:
            kept.append(index)
        elif index == reference:
            kept[-1] = index
    return kept


def _stack(slices: list[Slice], names: list[str], group: list[int]) -> Stack:
    one = slices[min(group)].geometry
    positions = np.stack([slices[i].geometry.position for i in group])
    pixels = np.empty((len(group), *one.shape), dtype=np.float32)
    for out, index in zip(pixels, group, strict=True):
        slices[index].stored.write(out, *slices[index].rescale)
    return Stack(
        pixels,
        StackGeometry(positions, one.row_cosine, one.column_cosine, one.spacing, one.shape),
        tuple(slices[i].instance_number for i in group),
        tuple(names[i] for i in group),
    )
