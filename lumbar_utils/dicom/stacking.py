"""Slices to stacks of parallel planes, by their geometry alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.cluster import hierarchy

from ..geometry import DUPLICATE_TOLERANCE_MM, MAX_SHIFT, PARALLEL_TOLERANCE_DEGREES, SliceGeometry

MAX_JUMP_MM = 20.0
"""In plane, from a slice of a stack to the nearest other one; slices along a tilted axis step by some mm."""


def group_into_stacks(slices: Sequence[SliceGeometry]) -> list[list[int]]:
    """Group slices into stacks of parallel planes with one matrix and one pixel spacing.

    Works on any order. Directions may differ by `PARALLEL_TOLERANCE_DEGREES`, in the normal and in the plane; the
    stations of a composed scan stay apart (`MAX_SHIFT`). A slice at the place of an earlier one
    (`DUPLICATE_TOLERANCE_MM`) is left out.

    Returns
    -------
    list of lists of int
        Per stack the indices of its slices, sorted along the first slice's normal; the largest stack first.
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
