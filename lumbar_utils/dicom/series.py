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
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from ..errors import DataError, DicomError, GeometryError, Issue
from ..geometry import SliceGeometry, StackGeometry
from ..labels import VIEWS
from .acquisitions import Acquisition, acquisition_of, frame_values, signature
from .elements import check_image, without_warnings
from .headers import (
    FileHeader,
    frame_geometry,
    frame_rescale,
    functional_groups,
    instance_number_of,
    list_files,
    scan_headers,
)
from .identity import shown_file, without_identity
from .parsing import read_dataset, reason_of
from .parts import Part, Slice, part_id, parts_of
from .pixels import stored_frames

__all__ = ["FileHeader", "Series", "Slice", "Stack", "read_series", "read_slices", "scan_headers", "without_identity"]

MAX_SLICES, MAX_PIXELS = 2000, 2**28
"""Slices, and pixels, of one series that are read: ten times, and thirty times, what the competition's largest has.
Beyond, a folder of small compressed files could fill any memory, and grouping would take minutes."""
NAMES_IN_A_NOTE = 5
"""File names spelt out in one note; a dynamic series can hold hundreds of duplicates."""


@dataclass(frozen=True)
class Stack:
    """Parallel slices of a series, sorted along their normal.

    `pixels` are float32 (n, rows, columns) after rescale, bright = large. `instance_numbers` of a multi-frame file are
    the numbers of its frames, counted from 1; `files` are names without folder.
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
def read_slices(path: Path | str, known: dict[tuple, Acquisition] | None = None) -> list[Slice]:
    """Read one file: one slice, or one for every frame of a multi-frame image; `DicomError` says what was wrong.

    `known` are the acquisitions that were met before, by what headers say about them.
    """
    path, known = Path(path), {} if known is None else known
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

    `source` is a folder (its files, not those of folders inside it), one file, or the files. Without a `view` it is
    recognised; `numbered_by_file_name` takes `7.dcm` as instance 7, as the competition's tables do. Duplicates, scouts
    in another plane and unreadable files are left out and named in `issues`; `DicomError` when no file can be read.
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
    slices: list[Slice] = []
    known: dict[tuple, Acquisition] = {}
    issues: list[Issue] = []
    place = (study_id, series_id)
    pixels = 0
    for number, path in enumerate(paths):
        if len(slices) >= MAX_SLICES or pixels >= MAX_PIXELS:
            message = f"{len(paths) - number} more files are not read: {len(slices)} slices, {pixels} pixels"
            issues.append(Issue("files_not_read", message, *place))
            break
        shown = shown_file(path, number + 1, len(paths))
        try:
            read = read_slices(path, known)
        except DicomError as error:
            issues.append(Issue("file_unreadable", error.issue, *place, shown))
            continue
        if numbered_by_file_name and len(read) == 1 and path.stem.isdecimal():
            read = [read[0]._replace(instance_number=int(path.stem))]
        pixels += sum(item.stored.words.size for item in read)
        slices += [item._replace(file=path.name, shown=shown) for item in read[: MAX_SLICES - len(slices)]]
    if not slices:
        first = without_identity(str(replace(issues[0], series_id="")), scan_headers(paths[0])[0].acquisition.identity)
        raise DicomError(f"none of its {len(paths)} files can be read; {first}", **where)
    slices.sort(key=lambda item: item.instance_number)  # of duplicates the first counts, whatever the files' names
    try:
        parts = parts_of(slices, view)
        series = [_series_of(part, slices, study_id, part_id(series_id, k)) for k, part in enumerate(parts)]
    except GeometryError as error:
        raise DicomError(f"its slices make no stack: {error}", **where) from error
    issues += _taken_apart(parts, slices, place)
    series[0] = replace(series[0], issues=(*issues, *series[0].issues))
    hide = partial(without_identity, identity=frozenset().union(*(one.identity for one in known.values())))
    return [replace(one, issues=tuple(issue.rewritten(hide) for issue in one.issues)) for one in series]


def _taken_apart(parts: list[Part], slices: list[Slice], place: tuple[str, str]) -> list[Issue]:
    """What lay in one series, where that was more than one acquisition."""
    used = {i for part in parts for group in (*part.stacks, part.doubles, part.scouts) for i in group}
    left: dict[str, list[Slice]] = defaultdict(list)
    for index, item in enumerate(slices):
        if index not in used:
            left[str(item.acquisition)].append(item)
    issues: list[Issue] = []
    for made, unused in left.items():
        issues += _left_out("contrast_left_out", f"of another acquisition ({made})", unused, place)
    if len(parts) > 1:
        words = [f"{part.n_slices} images {part.acquisition}, {part.view or 'no view'}" for part in parts]
        issues.append(Issue("series_taken_apart", f"holds several acquisitions: {'; '.join(words)}", *place))
    return issues


def _series_of(part: Part, slices: list[Slice], study_id: str, series_id: str) -> Series:
    place, made = (study_id, series_id), part.acquisition
    doubles, scouts = ([slices[i] for i in indices] for indices in (part.doubles, part.scouts))
    issues = [
        *_left_out("slice_duplicate", "lies where another slice does (duplicate)", doubles, place),
        *_left_out("slice_scout", "scout in another plane than the series", scouts, place),
        *([Issue("view_low_confidence", part.note, *place)] if part.note else []),
    ]
    stacks = tuple(_stack([slices[i] for i in group], slices[min(group)].geometry) for group in part.stacks)
    acquisition = replace(made, identity=frozenset())
    return Series(*place, part.view, stacks, made.description, made.header, tuple(issues), acquisition)


def _left_out(code: str, why: str, unused: list[Slice], place: tuple[str, str]) -> list[Issue]:
    """One issue about slices that are not used, none when there are none."""
    names = list(dict.fromkeys(item.shown for item in unused))
    more = f" and {len(names) - NAMES_IN_A_NOTE} more" if len(names) > NAMES_IN_A_NOTE else ""
    return [Issue(code, f"{why}, left out", *place, ", ".join(names[:NAMES_IN_A_NOTE]) + more)] if names else []


def _stack(slices: list[Slice], one: SliceGeometry) -> Stack:
    """Slices in order, with the directions, spacing and shape of one of them."""
    pixels = np.empty((len(slices), *one.shape), dtype=np.float32)
    for out, item in zip(pixels, slices, strict=True):
        item.stored.write(out, *item.rescale)
    positions = np.stack([item.geometry.position for item in slices])
    geometry = StackGeometry(positions, one.row_cosine, one.column_cosine, one.spacing, one.shape)
    return Stack(pixels, geometry, tuple(s.instance_number for s in slices), tuple(s.file for s in slices))
