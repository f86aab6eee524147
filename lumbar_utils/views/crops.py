"""The crops of a study as a reader would want them on the light box: levels side by side, views below each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import DataError
from ..labels import (
    AXIAL_T2,
    CONDITIONS,
    LEVELS,
    MISSING,
    N_CONDITIONS,
    N_LEVELS,
    N_SEVERITIES,
    SAGITTAL_T1,
    SAGITTAL_T2,
    SEVERITIES,
    VIEWS,
    level_title,
    target_index,
)
from .images import FORAMEN_OFFSET_MM
from .planes import ImagePlane, draw_absent, draw_plane, justified_panels
from .style import CONDITION_NAMES, LEVEL_COLORS, SEVERITY_COLORS, color, finish, theme

if TYPE_CHECKING:
    from ..crops import StudyCrops

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


def show_crops(
    crops: StudyCrops,
    *,
    probabilities: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    rows: Sequence[tuple[str, float, str]] = MONTAGE_ROWS,
    synthetic: bool = False,
    width: float = 10.0,
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
    """
    probabilities, labels = _checked(probabilities, labels)
    with_strip = probabilities is not None or labels is not None
    shapes = [[1.0] * N_LEVELS for _ in rows] + ([[2.1] * N_LEVELS] if with_strip else [])
    left = 1.06
    with mpl.rc_context(theme("dark")):
        gaps, footer = [0.24] + [0.0] * (len(shapes) - 1), 0.3 if with_strip else 0.06
        figure, axes = justified_panels(shapes, width=width, left=left, row_gaps=gaps, footer=footer)
        for i, (view, offset, name) in enumerate(rows):
            for level in range(N_LEVELS):
                scale = 20 if level == 0 else None
                draw_crop(axes[i][level], crops, view, level, offset, scale_mm=scale)
            _row_name(figure, axes[i][0], name)
        _level_names(figure, axes[0])
        if with_strip:
            for level in range(N_LEVELS):
                _draw_grades(axes[-1][level], level, probabilities, labels, names=level == 0)
            _severity_legend(figure, axes[-1][0], probabilities is not None, labels is not None)
        return finish(figure, title=f"Study {crops.study_id}", synthetic=synthetic)


def show_crop_slices(
    crops: StudyCrops, view: str, *, limit: int = 8, synthetic: bool = False, width: float = 11.0
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
    with mpl.rc_context(theme("dark")):
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
                color=LEVEL_COLORS[level],
            )
        return finish(figure, title=f"{view}   study {crops.study_id}", synthetic=synthetic)


def show_condition(
    crops: StudyCrops,
    condition: int | str,
    *,
    probabilities: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    synthetic: bool = False,
    width: float = 10.0,
) -> Figure:
    """One condition across the five levels, in the views in which it is read, with prediction and label."""
    index = CONDITIONS.index(condition) if isinstance(condition, str) else int(condition)
    probabilities, labels = _checked(probabilities, labels)
    panels = CONDITION_PANELS[index]
    with mpl.rc_context(theme("dark")):
        figure, axes = justified_panels(
            [[1.0] * N_LEVELS] * len(panels), width=width, left=0.9, row_gaps=[0.42, *[0.0] * (len(panels) - 1)]
        )
        for row, (view, offset) in zip(axes, panels, strict=True):
            for level in range(N_LEVELS):
                draw_crop(row[level], crops, view, level, offset, scale_mm=20 if level == 0 else None)
            _row_name(figure, row[0], view.replace("/STIR", "") + (f"\n{offset:+g} mm" if offset else ""))
        for level, panel in enumerate(axes[0]):
            target, box, words = target_index(index, level), panel.get_position(), []
            if probabilities is not None:
                words.append(" / ".join(f"{p:.0%}" for p in probabilities[target]))
            if labels is not None and labels[target] != MISSING:
                words.append(SEVERITIES[labels[target]].lower())
            heading = "\n".join([level_title(LEVELS[level]), "  ".join(words)])
            figure.text(
                (box.x0 + box.x1) / 2,
                box.y1 + 0.006,
                heading,
                ha="center",
                va="bottom",
                fontsize=8.5,
                color=LEVEL_COLORS[level],
                fontweight="bold",
            )
        return finish(figure, title=f"{CONDITION_NAMES[index]}   study {crops.study_id}", synthetic=synthetic)


def crop_plane(crops: StudyCrops, view: str, level: int, offset_mm: float = 0.0) -> ImagePlane:
    """The slice of a crop nearest to `offset_mm` from the canal along the crop's first axis."""
    grid = crops.grid(view, level)
    index = int(np.clip(np.round(offset_mm / grid.spacing[0] + (grid.shape[0] - 1) / 2), 0, grid.shape[0] - 1))
    return ImagePlane.from_grid(crops.images[view][level], grid, index, crops.covered[view][level])


def draw_crop(panel: Axes, crops: StudyCrops, view, level, offset, *, letters=True, scale_mm=None) -> None:
    if crops.sources[view][level] is None:
        draw_absent(panel, "not in the scan" if crops.covered[view].any() else "no series")
        return
    plane = crop_plane(crops, view, level, offset)
    draw_plane(panel, plane, window=(0.0, 1.05), letters=letters, scale_mm=scale_mm, fontsize=7)


def _draw_grades(panel: Axes, level: int, probabilities, labels, *, names: bool) -> None:
    """Five thin bars, one a condition: predicted probabilities, and the label's colour at the right end."""
    panel.set_facecolor(color("back"))
    panel.set_xlim(0, 1.0)
    panel.set_ylim(N_CONDITIONS - 0.4, -0.6)
    panel.set_xticks([])
    for spine in panel.spines.values():
        spine.set_visible(False)
    room = 0.9 if labels is not None else 1.0
    for c in range(N_CONDITIONS):
        target = target_index(c, level)
        if probabilities is not None:
            start = 0.0
            for k in range(N_SEVERITIES):
                p = float(probabilities[target, k])
                panel.barh(c, p * room, left=start * room, height=0.74, color=SEVERITY_COLORS[k], lw=0)
                if p > 0.22:
                    panel.text(
                        (start + p / 2) * room,
                        c,
                        f"{100 * p:.0f}",
                        ha="center",
                        va="center",
                        fontsize=6.5,
                        color="#0b0f14",
                    )
                start += p
        if labels is not None and labels[target] != MISSING:
            shade = SEVERITY_COLORS[labels[target]]
            if probabilities is None:
                panel.barh(c, 1.0, height=0.74, color=shade, lw=0)
                continue
            edge = "white" if int(np.argmax(probabilities[target])) != labels[target] else "none"
            panel.plot(0.955, c, "s", ms=6.5, color=shade, mec=edge, mew=1.1)
    panel.set_yticks(range(N_CONDITIONS) if names else [], CONDITION_NAMES if names else [])
    panel.tick_params(length=0, labelsize=7.5)


def _severity_legend(figure: Figure, panel: Axes, with_bars: bool, with_labels: bool) -> None:
    box, height = panel.get_position(), figure.get_size_inches()[1]
    x, y = box.x0, box.y0 - 0.17 / height
    for shade, name in zip(SEVERITY_COLORS, SEVERITIES, strict=True):
        figure.text(x, y, "■ ", color=shade, fontsize=9, va="center")
        figure.text(x + 0.016, y, name.lower(), color=color("muted"), fontsize=7.5, va="center")
        x += 0.035 + 0.0068 * len(name)
    words = ["bars: predicted probability in %"] * with_bars
    if with_labels:
        words.append("squares: label (framed where the likeliest class differs)" if with_bars else "bars: label")
    figure.text(x + 0.02, y, "   ".join(words), color=color("muted"), fontsize=7.5, va="center")


def _row_name(figure: Figure, panel: Axes, name: str) -> None:
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


def _level_names(figure: Figure, panels: Sequence[Axes]) -> None:
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
            color=LEVEL_COLORS[level],
        )


def _offset_name(view: str, offset: float) -> str:
    directions = ("up", "down") if view == AXIAL_T2 else ("right", "left")
    return f"{abs(offset):.0f} mm {directions[int(offset > 0)]}" if abs(offset) >= 0.5 else "middle"


def _checked(probabilities, labels) -> tuple[np.ndarray | None, np.ndarray | None]:
    n = N_CONDITIONS * N_LEVELS
    if probabilities is not None:
        probabilities = np.asarray(probabilities, dtype=np.float64)
        if probabilities.shape != (n, N_SEVERITIES):
            raise DataError(f"probabilities must have shape ({n}, {N_SEVERITIES}), got {probabilities.shape}")
    if labels is not None:
        labels = np.asarray(labels).astype(int)
        if labels.shape != (n,):
            raise DataError(f"labels must have shape ({n},), got {labels.shape}")
    return probabilities, labels
