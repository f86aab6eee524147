"""From DICOM files to series of stacks in patient coordinates.

Every slice is placed by ImagePositionPatient, ImageOrientationPatient and PixelSpacing. File names and instance
numbers only identify slices, because scanners number them in any direction and archives renumber them. One file
that cannot be read never costs the series: it is named in `Series.issues`, and the rest is used.

References: DICOM PS3.3 C.7.6.2 (image plane), C.7.6.16 (functional groups of multi-frame images), C.11.1
(rescale slope and intercept).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import DataError, DicomError, GeometryError, Issue
from ..geometry import StackGeometry
from ..labels import VIEWS
from .acquisitions import Acquisition, acquisition_of, frame_values, signature
from .elements import check_image, without_warnings
from .headers import frame_geometry, frame_rescale, functional_groups, instance_number_of, list_files
from .identity import shown_file, without_identity
from .parsing import read_dataset, reason_of
from .parts import Part, Slice, part_id, parts_of
from .pixels import stored_frames
from .scan import FileHeader, scan_headers

__all__ = ["FileHeader", "Series", "Slice", "Stack", "read_series", "read_slices", "scan_headers", "without_identity"]

MAX_SLICES, MAX_PIXELS = 2000, 2**28
"""Slices, and pixels, of one series that are read: ten times, and thirty times, what the competition's largest has.
Beyond, a folder of small compressed files could fill any memory, and grouping would take minutes."""
NAMES_IN_A_NOTE = 5
"""File names spelt out in one note; a dynamic series can hold hundreds of duplicates."""


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
    acquisition : Acquisition
        Of its images, without words that identify the patient.
    """

    study_id: str
    series_id: str
    view: str
    stacks: tuple[Stack, ...]
    description: str = ""
    header: dict = field(default_factory=dict, repr=False)
    issues: tuple[Issue, ...] = ()
    acquisition: Acquisition = field(default=Acquisition("", {}), repr=False)

    @cached_property
    def drawbacks(self) -> dict[str, int]:
        """What speaks against it as its view, beside a plain scan, and how much; see `Acquisition.drawbacks`."""
        return self.acquisition.drawbacks(self.view) if self.view else {}

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
    return _read_slices(Path(path), {})


def _read_slices(path: Path, known: dict[tuple, Acquisition]) -> list[Slice]:
    """`read_slices`; `known` are the acquisitions that were met before, by what headers say about them."""
    try:
        dataset = read_dataset(path)
        frames, rows, columns = size = check_image(dataset, path)
        # The geometry comes first: it is cheap, and an image without a place is of no use however well it decodes.
        groups = functional_groups(dataset, frames, path)
        geometries = [frame_geometry(group, (rows, columns), path) for group in groups]
        rescales = [frame_rescale(group, path) for group in groups]
        stored = stored_frames(dataset, size, path)
        common = signature(dataset)
        acquisitions = []
        for group in groups:
            key = common if len(group) == 1 else (common, frame_values(group))
            if key not in known:
                known[key] = acquisition_of(group)
            acquisitions.append(known[key])
        numbered = range(1, frames + 1) if frames > 1 else [instance_number_of(dataset, path)]
        return list(map(Slice, geometries, acquisitions, numbered, stored, rescales))
    except DicomError:
        raise
    except Exception as error:  # pydicom converts lazily: any look at a broken element can raise anything
        raise DicomError(f"cannot be read ({reason_of(error)})", path=path) from error


def read_series(
    source: Path | str | Iterable[Path | str],
    *,
    study_id: str = "",
    series_id: str = "",
    view: str = "",
    numbered_by_file_name: bool = False,
) -> Series:
    """Read the files of one series into stacks; where they hold several acquisitions, those of the best suited one.

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
    return read_parts(source, study_id, series_id, view, numbered_by_file_name=numbered_by_file_name)[0]


@without_warnings()
def read_parts(
    source: Path | str | Iterable[Path | str],
    study_id: str = "",
    series_id: str = "",
    view: str = "",
    *,
    numbered_by_file_name: bool = False,
) -> list[Series]:
    """All series that lie in the files of one, the one that `read_series` returns first; see `parts_of`.

    The others are called `<series_id>-2` and so on, and what was left out stands in the issues of the first.
    """
    paths = list_files(source)
    if view and view not in VIEWS:
        raise DataError(f"view {view!r} is not known, expected one of {VIEWS} or ''")
    where = {"path": source if isinstance(source, (str, Path)) else None, "study_id": study_id, "series_id": series_id}
    if not paths:
        raise DicomError("holds no files, expected the DICOM files of one series", **where)
    found: list[tuple[Slice, int]] = []
    known: dict[tuple, Acquisition] = {}
    issues: list[Issue] = []
    place = (study_id, series_id)
    pixels = 0
    for number, path in enumerate(paths):
        if len(found) >= MAX_SLICES or pixels >= MAX_PIXELS:
            message = f"{len(paths) - number} more files are not read: {len(found)} slices, {pixels} pixels"
            issues.append(Issue("files_not_read", message, *place))
            break
        try:
            read = _read_slices(path, known)
        except DicomError as error:
            issues.append(Issue("file_unreadable", error.issue, *place, shown_file(path, number + 1, len(paths))))
            continue
        if numbered_by_file_name and len(read) == 1 and path.stem.isdecimal():
            read = [read[0]._replace(instance_number=int(path.stem))]
        pixels += sum(item.stored.words.size for item in read)
        found += [(item, number) for item in read[: MAX_SLICES - len(found)]]
    if not found:
        first = without_identity(str(replace(issues[0], series_id="")), scan_headers(paths[0])[0].acquisition.identity)
        raise DicomError(f"none of its {len(paths)} files can be read; {first}", **where)
    found.sort(key=lambda one: one[0].instance_number)  # of duplicates the first counts, whatever the files' names
    slices, files = [item for item, _ in found], [paths[number].name for _, number in found]
    names = [shown_file(paths[number], number + 1, len(paths)) for _, number in found]
    try:
        parts = parts_of(slices, view)
        series = [
            _series_of(part, slices, files, names, study_id, part_id(series_id, k)) for k, part in enumerate(parts)
        ]
    except GeometryError as error:
        raise DicomError(f"its slices make no stack: {error}", **where) from error
    issues += _taken_apart(parts, slices, names, place)
    identity = frozenset().union(*(one.identity for one in known.values()))
    issues = [issue.rewritten(lambda words: without_identity(words, identity)) for issue in issues]
    return [replace(series[0], issues=(*issues, *series[0].issues)), *series[1:]]


def _taken_apart(parts: list[Part], slices: list[Slice], names: list[str], place: tuple[str, str]) -> list[Issue]:
    """What lay in one series, where that was more than one acquisition."""
    used = {i for part in parts for group in (*part.stacks, part.doubles, part.scouts) for i in group}
    left: dict[str, list[int]] = defaultdict(list)
    for index in sorted(set(range(len(slices))) - used):
        left[str(slices[index].acquisition)].append(index)
    issues: list[Issue] = []
    for made, indices in left.items():
        issues += _left_out("contrast_left_out", f"of another acquisition ({made})", indices, names, place)
    if len(parts) > 1:
        words = [f"{part.n_slices} images {part.acquisition}, {part.view or 'no view'}" for part in parts]
        issues.append(Issue("series_taken_apart", f"holds several acquisitions: {'; '.join(words)}", *place))
    return issues


def _series_of(
    part: Part, slices: list[Slice], files: list[str], names: list[str], study_id: str, series_id: str
) -> Series:
    place, identity = (study_id, series_id), part.acquisition.identity
    issues = _left_out("slice_duplicate", "lies where another slice does (duplicate)", part.doubles, names, place)
    issues += _left_out("slice_scout", "scout in another plane than the series", part.scouts, names, place)
    issues += [Issue("view_low_confidence", part.note, *place)] if part.note else []
    return Series(
        study_id,
        series_id,
        part.view,
        tuple(_stack(slices, files, group) for group in part.stacks),
        part.acquisition.description,
        part.acquisition.header,
        tuple(issue.rewritten(lambda words: without_identity(words, identity)) for issue in issues),
        replace(part.acquisition, identity=frozenset()),
    )


def _left_out(code: str, why: str, indices: Iterable[int], names: list[str], place: tuple[str, str]) -> list[Issue]:
    """One issue about slices that are not used, none when there are none."""
    affected = list(dict.fromkeys(names[i] for i in indices))
    more = f" and {len(affected) - NAMES_IN_A_NOTE} more" if len(affected) > NAMES_IN_A_NOTE else ""
    named = f"{', '.join(affected[:NAMES_IN_A_NOTE])}{more}"
    return [Issue(code, f"{why}, left out", *place, named)] if affected else []


def _stack(slices: list[Slice], files: list[str], group: list[int]) -> Stack:
    one = slices[min(group)].geometry
    positions = np.stack([slices[i].geometry.position for i in group])
    pixels = np.empty((len(group), *one.shape), dtype=np.float32)
    for out, index in zip(pixels, group, strict=True):
        slices[index].stored.write(out, *slices[index].rescale)
    return Stack(
        pixels,
        StackGeometry(positions, one.row_cosine, one.column_cosine, one.spacing, one.shape),
        tuple(slices[i].instance_number for i in group),
        tuple(files[i] for i in group),
    )
