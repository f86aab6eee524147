"""Which stack of which series shows a disc best: the one that covers most of its box and lies nearest to its plane."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..dicom.series import Series
from ..geometry import INFERIOR, LEFT, POSTERIOR, StackGeometry
from ..labels import AXIAL_T2, N_LEVELS, SAGITTAL_T1, SAGITTAL_T2
from ..localization import DiscPoints
from .sampling import coverage

VIEW_AXES = {
    SAGITTAL_T2: (LEFT, INFERIOR, POSTERIOR),
    AXIAL_T2: (INFERIOR, POSTERIOR, LEFT),
    SAGITTAL_T1: (LEFT, INFERIOR, POSTERIOR),
}
"""Directions in which the three array axes of a crop grow, per view."""

ANGLE_COST_PER_DEGREE = 0.02
"""How much coverage (as a fraction of the box) an axial stack may lack for each degree that it lies nearer to the
disc's plane: an angulated block of four slices beats a straight block that cuts the disc at 20 degrees."""
MIN_COVERAGE = 0.05
"""A stack that covers less of the box than this does not show the disc."""


def best_stacks(
    series: Sequence[Series], view: str, discs: DiscPoints, extent: tuple[float, float, float]
) -> dict[int, tuple[Series, int, np.ndarray, float]]:
    """By index of the level: the series, the index of its stack, the axes of the box and its angle to the disc."""
    best, best_fit = {}, np.full(N_LEVELS, -np.inf)
    tangents = discs.tangents()
    for item in series:
        for index, stack in enumerate(item.stacks):
            axes = _axes_of(stack.geometry, VIEW_AXES[view])
            angles = np.zeros(N_LEVELS)
            if view == AXIAL_T2:
                angles = np.degrees(np.arccos(np.clip(np.abs(tangents @ stack.geometry.normal), 0, 1)))
            shown = coverage(stack.geometry, discs.points, axes, extent)
            fit = np.where(shown < MIN_COVERAGE, -np.inf, shown - ANGLE_COST_PER_DEGREE * angles)
            for level in np.flatnonzero(fit > best_fit + 1e-9):  # of equals the first
                best[int(level)] = item, index, axes, float(angles[level])
                best_fit[level] = fit[level]
    return best


def _axes_of(geometry: StackGeometry, wanted: Sequence[np.ndarray]) -> np.ndarray:
    """The stack's own directions (3, 3), signed as the wanted ones; first the normal, however steep the slices."""
    column, row = geometry.column_cosine, geometry.row_cosine
    straight = abs(column @ wanted[1]) + abs(row @ wanted[2])
    own = (geometry.normal, column, row)
    if straight < abs(row @ wanted[1]) + abs(column @ wanted[2]):
        own = (geometry.normal, row, column)
    return np.stack([v if v @ w >= 0 else -v for v, w in zip(own, wanted, strict=True)])
