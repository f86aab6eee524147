"""Where the annotators clicked: the points of `train_label_coordinates.csv`, with their jitter and their mistakes.

One canal point per level on sagittal T2, a left and a right foramen on sagittal T1, a left and a right lateral
recess on axial T2. A study without the right sagittal series gets its points on the other one, which is what the
five canal points on a T1 series in the real table are.

Rates: counted in the competition's table (9,875 canal labels, 48,692 points).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..geometry import StackGeometry
from ..labels import AXIAL_T2, N_CONDITIONS, N_LEVELS, SAGITTAL_T1, SAGITTAL_T2
from ..studies.annotations import POINT_VIEWS

ANNOTATOR_SD_MM = 0.8  # jitter of a click, per in-plane axis: about 1.4 pixels on sagittal T2, 2 on axial
SLICE_SLIP = (0.10, 0.30, 0.30, 0.19, 0.19)
"""Chance per condition that the click is on a neighbour of the nearest slice. With 0.19 the two recesses of a
level lie on one slice in 62 % of levels, as in the real table: the spine's tilt does the rest."""
MAX_DISTANCE = 0.8  # in slice spacings: a point further than this from every slice is not on the series

NO_CANAL_POINTS_RATE = 28 / 1975  # studies without any canal point: they make up the 141 missing ones
CORNER_RATE = 13 / 9875
WRONG_LEVEL_RATE = 0.004  # studies in which one condition's whole chain of points is a level too high or too low
FORAMEN_SWAP_RATE, RECESS_SWAP_RATE = 0.0025, 0.0001
NO_POINT_RATE = 5 / 48692
POINT_WITHOUT_LABEL_SHARE = 35 / 572  # of the missing labels, those that have a point all the same


@dataclass(frozen=True)
class StoredSeries:
    """A series as it lies on disk: `stacks` and, per stack, the instance number of each slice."""

    series_id: str
    view: str
    stacks: Sequence[StackGeometry]
    instance_numbers: Sequence[np.ndarray]


class ClickedPoint(NamedTuple):
    """One row of the table: pixel (x, y) on an instance of a series, and the target's index."""

    series_id: str
    instance_number: int
    target: int
    x: float
    y: float


def annotate(
    series: Sequence[StoredSeries], places: np.ndarray, labelled: np.ndarray, rng: np.random.Generator
) -> tuple[list[ClickedPoint], np.ndarray]:
    """The points of one study, and which targets (25,) can be seen: where no series covers a place there is no label.
    `places` (5, 5, 3) are the true ones of conditions x levels, LPS mm; `labelled` (25,) says which have a label."""
    meant = _with_wrong_levels(places, rng)
    shown_on = {view: _sagittal_for(series, view, rng) for view in (SAGITTAL_T2, SAGITTAL_T1)}
    shown_on[AXIAL_T2] = [s for s in series if s.view == AXIAL_T2]
    no_canal_points = rng.random() < NO_CANAL_POINTS_RATE
    visible = np.zeros((N_CONDITIONS, N_LEVELS), dtype=bool)
    points: dict[int, ClickedPoint] = {}
    for c, view in enumerate(POINT_VIEWS.values()):
        candidates = shown_on[view]
        hits = [_nearest(item, meant[c]) for item in candidates]
        for item in candidates:
            visible[c] |= _nearest(item, places[c])[2]
        for level in range(N_LEVELS):
            target = c * N_LEVELS + level
            unlabelled = not labelled[target] or not visible[c, level]
            skipped = rng.random() >= POINT_WITHOUT_LABEL_SHARE if unlabelled else rng.random() < NO_POINT_RATE
            # With several axial series the two sides of a level are often clicked on different ones.
            order = rng.permutation(len(candidates))
            chosen = next((i for i in order if hits[i][2][level]), None)
            slip, jitter = rng.random(2), rng.standard_normal(2)
            if chosen is None or skipped or (c == 0 and no_canal_points):
                continue
            stack, index, _ = (values[level] for values in hits[chosen])
            shift = (1 if slip[1] < 0.5 else -1) if slip[0] < SLICE_SLIP[c] else 0
            points[target] = _click(candidates[chosen], stack, index + shift, meant[c, level], target, jitter)
    return list(_with_wrong_points(points, rng).values()), visible.ravel()


def _sagittal_for(series: Sequence[StoredSeries], view: str, rng: np.random.Generator) -> list[StoredSeries]:
    """One series of a sagittal view, or of the other sagittal view where there is none; empty without either."""
    other = SAGITTAL_T1 if view == SAGITTAL_T2 else SAGITTAL_T2
    found = [s for s in series if s.view == view] or [s for s in series if s.view == other]
    return [found[int(rng.integers(len(found)))]] if found else []


def _nearest(series: StoredSeries, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stack and slice nearest to each place (n, 3), and whether the series shows it: int, int, bool, each (n,)."""
    best = np.full(len(places), np.inf)
    stacks, slices = np.zeros((2, len(places)), dtype=int)
    for k, stack in enumerate(series.stacks):
        nearest = stack.nearest_slice(places)
        offset = places - stack.positions[nearest]
        x, y = offset @ stack.row_cosine / stack.spacing[1], offset @ stack.column_cosine / stack.spacing[0]
        distance = np.abs(offset @ stack.normal)
        inside = (x >= 0) & (y >= 0) & (x <= stack.shape[1] - 1) & (y <= stack.shape[0] - 1)
        reach = MAX_DISTANCE * (stack.slice_spacing if len(stack) > 1 else 4.0)
        better = inside & (distance <= reach) & (distance < best)
        best, stacks, slices = (
            np.where(better, new, old) for new, old in ((distance, best), (k, stacks), (nearest, slices))
        )
    return stacks, slices, np.isfinite(best)


def _click(
    series: StoredSeries, stack: int, index: int, place: np.ndarray, target: int, jitter: np.ndarray
) -> ClickedPoint:
    """A click at a place on a slice; `jitter` are two standard normals."""
    geometry = series.stacks[stack]
    index = int(np.clip(index, 0, len(geometry) - 1))
    xy, _ = geometry[index].world_to_pixel(place)
    xy = xy + jitter * ANNOTATOR_SD_MM / np.array(geometry.spacing[::-1])
    x, y = np.clip(xy, 0, np.array(geometry.shape[::-1]) - 1)
    return ClickedPoint(series.series_id, int(series.instance_numbers[stack][index]), target, float(x), float(y))


def _with_wrong_levels(places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rarely, move one condition's chain by a level; its free end goes where the next disc would be."""
    happens, condition, down = rng.random() < WRONG_LEVEL_RATE, int(rng.integers(len(places))), rng.random() < 0.5
    result = places.copy()
    if happens:
        chain = places[condition, :: 1 if down else -1]
        result[condition, :: 1 if down else -1] = [*chain[1:], 2 * chain[-1] - chain[-2]]
    return result


def _with_wrong_points(points: dict[int, ClickedPoint], rng: np.random.Generator) -> dict[int, ClickedPoint]:
    """Canal points in the image corner, left and right exchanged."""
    result = dict(points)
    corner, swap = rng.random(N_LEVELS), rng.random((2, N_LEVELS))
    for level in range(N_LEVELS):
        if corner[level] < CORNER_RATE and level in result:
            x, y = rng.uniform(3, 7, 2)
            result[level] = result[level]._replace(x=float(x), y=float(y))
        for left_condition, rate in ((1, FORAMEN_SWAP_RATE), (3, RECESS_SWAP_RATE)):
            left, right = left_condition * N_LEVELS + level, (left_condition + 1) * N_LEVELS + level
            if swap[left_condition // 2, level] < rate and left in result and right in result:
                result[left], result[right] = result[right]._replace(target=left), result[left]._replace(target=right)
    return result
