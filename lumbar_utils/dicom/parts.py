"""Taking apart what lies in one series: patients, contrasts, planes, stacks of parallel slices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.cluster import hierarchy

from ..geometry import DUPLICATE_TOLERANCE_MM, MAX_SHIFT, PARALLEL_TOLERANCE_DEGREES, SliceGeometry
from ..labels import SAGITTAL_T1
from .acquisitions import NO_VIEW, Acquisition, split_acquisitions
from .pixels import StoredFrame
from .recognition import AXIAL, SAGITTAL, main_plane, plane_of

SCOUT_ANGLE_DEGREES = 40.0
"""Slices of another plane are scouts when turned further than this against every stack of the series' main plane.
Blocks along neighbouring discs differ by 25 or so; the block along a steep L5/S1 can look coronal and must stay."""
MIN_SCAN_SLICES, MAX_SCAN_STEP_MM = 6, 8.0
"""Of a stack in another plane that is no scout; scouts have 3 to 5 slices, or 10 mm between them."""
MAX_JUMP_MM = 20.0
"""In plane, from a slice of a stack to the nearest other one; slices along a tilted axis step by some mm."""


class Slice(NamedTuple):
    """One image of a file: where it lies, how it was made, its number, what is stored, (slope, intercept).

    `file` is the file's name, `shown` what it may be called in what is written.
    """

    geometry: SliceGeometry
    acquisition: Acquisition
    instance_number: int = -1
    stored: StoredFrame | None = None
    rescale: tuple[float, float] = (1.0, 0.0)
    file: str = ""
    shown: str = ""

    @property
    def pixels(self) -> np.ndarray:
        """Float32 (rows, columns), rescaled, bright = large."""
        pixels = np.empty(self.geometry.shape, dtype=np.float32)
        self.stored.write(pixels, *self.rescale)
        return pixels


class Part(NamedTuple):
    """Images of one series that make a series of their own; indices of slices by stack, and of those left out."""

    view: str
    acquisition: Acquisition
    stacks: list[list[int]]
    planes: list[str]
    doubles: list[int]
    scouts: list[int]
    note: str

    @property
    def n_slices(self) -> int:
        return len(self.planes)


def parts_of(slices: Sequence[Slice], view: str = "") -> list[Part]:
    """Take apart what lies in one series: patients, contrasts (see `acquisitions`), and planes.

    Parts that are none of the views are left out unless all are. The first part is the one that suits the given view,
    which it gets; without one, that with the fewest drawbacks and the most slices.
    """
    parts = []
    for indices in split_acquisitions([item.acquisition for item in slices]):
        geometries = [slices[i].geometry for i in indices]
        stacks = [[indices[i] for i in in_order(geometries, group)] for group in group_into_stacks(geometries)]
        doubles = sorted(set(indices).difference(*stacks))
        of_planes, scouts = _by_plane(slices, stacks)
        for own in of_planes:
            planes = [plane_of(slices[i].geometry) for stack in own for i in stack]
            frames = {slices[i].acquisition.frame_of_reference for stack in own for i in stack}
            acquisition = slices[own[0][0]].acquisition
            acquisition = replace(acquisition, frame_of_reference=frames.pop() if len(frames) == 1 else "")
            shown, note = acquisition.view(planes)
            parts.append(Part(shown, acquisition, own, planes, doubles, scouts, note))
            doubles, scouts = [], []
    wanted = AXIAL if view.startswith("Axial") else SAGITTAL

    def rank(part: Part) -> tuple:
        made, as_view = part.acquisition, view or part.view
        turned = bool(view) and main_plane(part.planes) != wanted
        # Of two echoes the later one is more of a T2, the earlier one more of a T1; a few images more decide nothing.
        echo = (made.header["EchoTime"] or 0.0) * (1 if as_view == SAGITTAL_T1 else -1)
        misfits = (made.kind in NO_VIEW, turned, not part.view or part.view != as_view)
        return *misfits, sum(made.drawbacks(as_view).values()), -part.n_slices.bit_length(), echo, -part.n_slices

    parts.sort(key=rank)
    if view:
        shown = main_plane(parts[0].planes)
        note = "" if shown in ("", wanted) else f"listed as {view} but its slices are {shown}"
        parts[0] = parts[0]._replace(view=view, note=note)
    return [part for part in parts if part.view] or [max(parts, key=lambda part: part.n_slices)]


def part_id(series_id: str, number: int) -> str:
    """The id of a part of a series, counted from 0."""
    return f"{series_id}-{number + 1}" if number else series_id


def _by_plane(slices: Sequence[Slice], stacks: list[list[int]]) -> tuple[list[list[list[int]]], list[int]]:
    """The stacks of each plane, those of the main plane first, and the slices of scouts.

    Stacks of other planes, turned far from all stacks of the main one, are scouts when they are few or far apart.
    """
    of_plane: dict[str, list[list[int]]] = {}
    for stack in stacks:
        of_plane.setdefault(plane_of(slices[stack[0]].geometry), []).append(stack)
    counts = Counter({plane: sum(map(len, own)) for plane, own in of_plane.items()})
    main = main_plane(list(counts.elements()))
    if not main and not (len(counts) == 3 and len(set(counts.values())) == 1):  # as in a scout of three planes
        scans = sorted(plane for plane, own in of_plane.items() if _is_scan(slices, own))
        main = max(scans, key=counts.__getitem__) if len(scans) > 1 else ""
    if not main:
        return [stacks], []
    normals = np.stack([slices[stack[0]].geometry.normal for stack in of_plane[main]])
    limit = np.cos(np.radians(SCOUT_ANGLE_DEGREES))

    def beside_main(stack: list[int]) -> bool:
        return bool(np.abs(normals @ slices[stack[0]].geometry.normal).max() >= limit)

    parts, scouts = [[stack for stack in stacks if stack in of_plane[main] or beside_main(stack)]], []
    for plane in sorted(of_plane.keys() - {main}):
        others = [stack for stack in of_plane[plane] if not beside_main(stack)]
        if _is_scan(slices, others):
            parts.append(others)
        else:
            scouts += [index for stack in others for index in stack]
    return parts, sorted(scouts)


def _is_scan(slices: Sequence[Slice], stacks: list[list[int]]) -> bool:
    """Whether slices of one plane are too many and too close for a scout."""
    steps = [np.diff([slices[i].geometry.position for i in stack], axis=0) for stack in stacks]
    distances = np.linalg.norm(np.concatenate(steps), axis=1) if steps else np.empty(0)
    return sum(map(len, stacks)) >= MIN_SCAN_SLICES and len(distances) > 0 and np.median(distances) <= MAX_SCAN_STEP_MM


def group_into_stacks(slices: Sequence[SliceGeometry]) -> list[list[int]]:
    """Indices of slices by stack of parallel planes, sorted along the first one's normal; the largest stack first.

    Works on any order. Directions may differ by `PARALLEL_TOLERANCE_DEGREES`, in the normal and in the plane; the
    stations of a composed scan stay apart (`MAX_SHIFT`). A slice at the place of an earlier one
    (`DUPLICATE_TOLERANCE_MM`) is left out.
    """
    limit = np.cos(np.radians(PARALLEL_TOLERANCE_DEGREES))
    groups: list[list[int]] = []
    for index, item in enumerate(slices):
        for group in groups:
            first = slices[group[0]]
            if (
                item.shape == first.shape
                and item.row_cosine @ first.row_cosine >= limit
                and item.column_cosine @ first.column_cosine >= limit
                and (item.spacing == first.spacing or np.allclose(item.spacing, first.spacing, rtol=1e-3))
                and np.abs(first.world_to_pixel(item.position)[0] / first.shape[::-1]).max() <= MAX_SHIFT
            ):
                group.append(index)
                break
        else:
            groups.append([index])
    stacks = [stack for group in groups for stack in _without_duplicates(slices, group)]
    return sorted(stacks, key=len, reverse=True)


def _without_duplicates(slices: Sequence[SliceGeometry], group: list[int]) -> list[list[int]]:
    """Sort parallel slices; two in one plane are duplicates, or else belong to stations of a composed scan."""
    first = slices[group[0]]
    kept: list[int] = []
    for index in sorted(group, key=lambda i: (float(slices[i].position @ first.normal), i)):
        step = slices[index].position - slices[kept[-1]].position if kept else first.normal
        if not kept or step @ first.normal >= DUPLICATE_TOLERANCE_MM:
            kept.append(index)
        elif np.abs(step).max() > MAX_JUMP_MM:
            places = np.stack([slices[i].position for i in group]) @ np.stack([first.row_cosine, first.column_cosine]).T
            labels = hierarchy.fcluster(hierarchy.linkage(places), MAX_JUMP_MM, "distance").tolist()
            stations = [[i for i, label in zip(group, labels, strict=True) if label == one] for one in set(labels)]
            if len(stations) > 1:
                return [stack for station in sorted(stations) for stack in _without_duplicates(slices, station)]
    return [kept]


def in_order(geometries: list[SliceGeometry], group: list[int]) -> list[int]:
    """A group of `group_into_stacks`, sorted along the normal of the slice that will stand for all.

    Directions differ within the tolerance, so along another slice's normal slices that nearly touch can change places.
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
