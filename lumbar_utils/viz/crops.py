"""The crops of a study as a reader would want them on the light box: levels side by side, views below each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import DataError
from ..labels import (
    AXIAL_T2,
    CONDITIONS,
    LEVELS,
    N_LEVELS,
    SAGITTAL_T1,
    SAGITTAL_T2,
    VIEWS,
    level_title,
)
from .grade_strip import checked, draw_grades, draw_key
from .heat import draw_heat
from .images import FORAMEN_OFFSET_MM
from .planes import ImagePlane, draw_absent, draw_plane, justified_panels
from .style import (
    CONDITION_NAMES,
    color,
    finish,
    level_ink,
    outline,
    pictured,
)

if TYPE_CHECKING:
    from ..crops.extraction import StudyCrops
    from ..explain.attribution import StudyAttribution

CROP_WINDOW = (0.0, 1.05)
"""Crops hold about 0 to 1; see `crops.INTENSITY_PERCENTILES`."""
MONTAGE_ROWS = (
    (SAGITTAL_T2, 0.0, "Sagittal T2\nmidline"),
    (AXIAL_T2, 0.0, "Axial T2\nat the disc"),
    (SAGITTAL_T1, -FORAMEN_OFFSET_MM, "Sagittal T1\nright foramen"),
    (SAGITTAL_T1, FORAMEN_OFFSET_MM, "Sagittal T1\nleft foramen"),
)
"""What the montage shows of each level: view, mm from the canal along the crop's first axis, name."""
CONDITION_PANELS = {
    0: ((SAGITTAL_T2, 0.0), (AXIAL_T2, 0.0)),
    1: ((SAGITTAL_T1, FORAMEN_OFFSET_MM), (AXIAL_T2, 0.0)),
    2: ((SAGITTAL_T1, -FORAMEN_OFFSET_MM), (AXIAL_T2, 0.0)),
    3: ((AXIAL_T2, 0.0), (AXIAL_T2, 4.0)),
    4: ((AXIAL_T2, 0.0), (AXIAL_T2, 4.0)),
}


@pictured
def show_crops(
    crops: StudyCrops,
    *,
    probabilities: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    rows: Sequence[tuple[str, float, str]] = MONTAGE_ROWS,
    synthetic: bool = False,
    width: float = 9.0,
) -> Figure:
    """Five levels side by side, one row a view; below them the prediction and the labels.

    Parameters
    ----------
    probabilities : ndarray, shape (25, 3), optional
        For example `StudyPrediction.probabilities`. Drawn as bars, normal/mild, moderate, severe.
    labels : ndarray of int, shape (25,), optional
        0, 1, 2, or -1 for not labelled. Drawn as squares, with a frame where the prediction's most probable class
        is another.
    rows : sequence of (view, mm from the canal along the crop's first axis, name)
    width : float
        Inches; 100 pixels each in a notebook.
    """
    probabilities, labels = checked(probabilities, labels)
    with_strip = probabilities is not None or labels is not None
    shapes = [[1.0] * N_LEVELS for _ in rows] + ([[2.0] * N_LEVELS] if with_strip else [])
    gaps, footer = [0.24] + [0.0] * (len(shapes) - 1), 0.3 if with_strip else 0.06
    figure, axes = justified_panels(shapes, width=width, left=1.06, row_gaps=gaps, footer=footer)
    for panels, (view, offset, name) in zip(axes, rows, strict=False):
        places = [(level, offset, None) for level in range(N_LEVELS)]
        draw_row(panels, crops, view, places)
        row_name(figure, panels[0], name)
    level_names(figure, axes[0])
    if with_strip:
        for level in range(N_LEVELS):
            draw_grades(axes[-1][level], level, probabilities, labels, names=level == 0)
        draw_key(figure, axes[-1][0], probabilities is not None, labels is not None)
    return finish(figure, title=f"Study {crops.study_id}", synthetic=synthetic)


@pictured
def show_crop_slices(
    crops: StudyCrops, view: str, *, limit: int = 8, synthetic: bool = False, width: float = 9.0
) -> Figure:
    """All slices of one view, a row for each level; at most `limit` slices, evenly chosen.

    Sagittal crops run from the patient's right to the left, axial ones from the head to the feet.
    """
    if view not in VIEWS:
        raise DataError(f"unknown view {view!r}, expected one of {VIEWS}")
    depth = crops.spec.shapes[view][0]
    chosen = np.unique(np.linspace(0, depth - 1, min(depth, limit)).round().astype(int))
    offsets = (chosen - (depth - 1) / 2) * crops.spec.extents[view][0] / depth
    width = min(width, 0.7 + 1.6 * len(chosen))
    figure, axes = justified_panels(
        [[1.0] * len(chosen)] * N_LEVELS, width=width, left=0.55, gap=0.03, row_gaps=[0.22] + [0.0] * (N_LEVELS - 1)
    )
    for level in range(N_LEVELS):
        for n, offset in enumerate(offsets):
            panel, first = axes[level][n], level == 0 and n == 0
            draw_crop(panel, crops, view, level, offset, letters=first, scale_mm=20 if first else None)
            if level == 0:
                box, name = panel.get_position(), _offset_name(view, offset)
                x = (box.x0 + box.x1) / 2
                figure.text(x, box.y1 + 0.004, name, ha="center", va="bottom", fontsize=8, color=color("muted"))
        box = axes[level][0].get_position()
        figure.text(
            box.x0 - 0.05 / width * 2,
            (box.y0 + box.y1) / 2,
            level_title(LEVELS[level]),
            ha="right",
            va="center",
            fontsize=9,
            fontweight="bold",
            color=level_ink(level),
        )
    return finish(figure, title=f"{view}   study {crops.study_id}", synthetic=synthetic)


@pictured
def show_condition(
    crops: StudyCrops,
    condition: int | str,
    *,
    probabilities: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    activation: StudyAttribution | None = None,
    synthetic: bool = False,
    width: float = 9.0,
) -> Figure:
    """One condition across the five levels, in the views in which it is read, with prediction and label.

    Parameters
    ----------
    condition : int or str
        Of `labels.CONDITIONS`.
    activation : StudyAttribution, optional
        From `activation.explain`. Each panel then shows the slice in which the network saw most, with the map on it,
        instead of the slice where the condition is usually read. The slice's distance from the canal stands on it.
    probabilities, labels, width
        As in `show_crops`.
    """
    index = CONDITIONS.index(condition) if isinstance(condition, str) else int(condition)
    panels = CONDITION_PANELS[index]
    if activation is not None:  # one slice a view, and the map says which
        panels = tuple(dict.fromkeys((view, 0.0) for view, _ in panels))
    rows = [
        (view, offset, view.replace("/STIR", "") + ("" if activation else "\n" + _offset_name(view, offset)))
        for view, offset in panels
    ]
    return condition_figure(crops, index, rows, probabilities, labels, activation, synthetic, width)


def condition_figure(crops, condition: int, rows, probabilities, labels, activation, synthetic, width) -> Figure:
    """Rows of (view, mm from the canal, name), a column a level, one condition's grades below."""
    probabilities, labels = checked(probabilities, labels)
    with_strip = probabilities is not None or labels is not None
    strips = [[7.0] * N_LEVELS] if with_strip else []
    shapes = [[1.0] * N_LEVELS] * len(rows) + strips
    figure, axes = justified_panels(
        shapes, width=width, left=1.06, row_gaps=[0.24, *[0.0] * (len(shapes) - 1)], footer=0.3
    )
    for panels, (view, offset, name) in zip(axes, rows, strict=False):
        places = [(level, offset, activation and activation.slice_of(view, condition, level)) for level in range(5)]
        heats = [activation and activation.scaled(view, condition, level) for level in range(N_LEVELS)]
        draw_row(panels, crops, view, places, heats)
        row_name(figure, panels[0], name)
    level_names(figure, axes[0])
    if with_strip:
        for level in range(N_LEVELS):
            draw_grades(axes[-1][level], level, probabilities, labels, names=level == 0, conditions=(condition,))
        draw_key(figure, axes[-1][0], probabilities is not None, labels is not None)
    return finish(figure, title=f"{CONDITION_NAMES[condition]}   study {crops.study_id}", synthetic=synthetic)


def crop_plane(
    crops: StudyCrops, view: str, level: int, offset_mm: float = 0.0, *, index: int | None = None
) -> ImagePlane:
    """One slice of a crop: number `index`, else the one nearest to `offset_mm` from the canal along the first axis."""
    grid = crops.grid(view, level)
    index = nearest_index(crops, view, offset_mm) if index is None else index
    return ImagePlane.from_grid(crops.images[view][level], grid, index, crops.covered[view][level])


def slice_offset(crops: StudyCrops, view: str, index: int) -> float:
    """mm from the canal to slice `index` of a crop along the crop's first axis: to the left, or to the feet."""
    depth = crops.spec.shapes[view][0]
    return (index - (depth - 1) / 2) * crops.spec.extents[view][0] / depth


def draw_crop(panel: Axes, crops: StudyCrops, view, level, offset, *, letters=True, scale_mm=None) -> None:
    """One slice of a crop with its letters, or why it is not there."""
    if crops.sources[view][level] is None and not crops.covered[view][level].any():
        draw_absent(panel, "not in the scan" if crops.covered[view].any() else "no series")
        return
    plane = crop_plane(crops, view, level, offset)
    draw_plane(panel, plane, window=CROP_WINDOW, letters=letters, scale_mm=scale_mm, fontsize=7)


def draw_row(panels: Sequence[Axes], crops: StudyCrops, view: str, places, heats=None) -> None:
    """Slices of one view, (level, mm from the canal, slice number or None) each; the first that is there has a scale.

    `heats` holds a map (D, H, W) of 0 to 1 or None for each; with one, the slice says where it lies.
    """
    unscaled = True
    for n, (panel, (level, offset, index)) in enumerate(zip(panels, places, strict=True)):
        there = bool(crops.covered[view][level].any())
        at = offset if index is None else slice_offset(crops, view, index)
        draw_crop(panel, crops, view, level, at, scale_mm=20 if there and unscaled else None)
        unscaled = unscaled and not there
        if not there or heats is None or heats[n] is None:
            continue
        plane = crop_plane(crops, view, level, at)
        draw_heat(panel, plane, heats[n][nearest_index(crops, view, at)])
        name = _offset_name(view, at) if index is not None else "nothing here"
        words = {"fontsize": 7, "color": "white", "path_effects": outline(), "transform": panel.transAxes}
        panel.text(0.03, 0.97, name, ha="left", va="top", **words)


def nearest_index(crops: StudyCrops, view: str, offset_mm: float) -> int:
    """Number of the slice nearest to `offset_mm` from the canal along the crop's first axis."""
    depth, extent = crops.spec.shapes[view][0], crops.spec.extents[view][0]
    return int(np.clip(np.round(offset_mm * depth / extent + (depth - 1) / 2), 0, depth - 1))


def row_name(figure: Figure, panel: Axes, name: str) -> None:
    """A view's name at the left of its row."""
    box, width = panel.get_position(), figure.get_size_inches()[0]
    figure.text(
        box.x0 - 0.08 / width,
        (box.y0 + box.y1) / 2,
        name,
        ha="right",
        va="center",
        fontsize=8.5,
        color=color("ink"),
        linespacing=1.5,
    )


def level_names(figure: Figure, panels: Sequence[Axes]) -> None:
    """The levels' names above a row of five panels."""
    for level, panel in enumerate(panels):
        box = panel.get_position()
        figure.text(
            (box.x0 + box.x1) / 2,
            box.y1 + 0.005,
            level_title(LEVELS[level]),
            ha="center",
            va="bottom",
            fontsize=10,
            fontweight="bold",
            color=level_ink(level),
        )


def _offset_name(view: str, offset: float) -> str:
    directions = ("up", "down") if view == AXIAL_T2 else ("right", "left")
    return f"{abs(offset):.0f} mm {directions[int(offset > 0)]}" if abs(offset) >= 0.5 else "middle"
