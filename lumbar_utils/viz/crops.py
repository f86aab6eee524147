"""The crops of a study as on a light box, levels side by side and views below each other, and attribution maps; below
them predictions and labels as a strip: a column a level, a bar a condition."""

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
    MISSING,
    N_CONDITIONS,
    N_LEVELS,
    N_SEVERITIES,
    N_TARGETS,
    SAGITTAL_T1,
    SAGITTAL_T2,
    SEVERITIES,
    VIEWS,
    level_title,
    target_index,
)
from .images import FORAMEN_OFFSET_MM
from .planes import ImagePlane, draw_absent, draw_heat, draw_plane, justified_panels
from .style import CONDITION_NAMES, SEVERITY_COLORS, color, finish, pictured, write_on

if TYPE_CHECKING:
    from ..crops.extraction import StudyCrops
    from ..explain.attribution import StudyAttribution

DARK_INK = "#0b0f14"
"""Text on the severities' colours, in either theme."""
ROOM = 0.9
"""Width of the bars when the labels stand at their right."""
CROP_WINDOW = (0.0, 1.05)
"""Crops hold about 0 to 1; see `crops.extraction.INTENSITY_PERCENTILES`."""
MONTAGE_ROWS = (
    (SAGITTAL_T2, 0, "Sagittal T2\nmidline"),
    (AXIAL_T2, None, "Axial T2\nat the disc"),
    (SAGITTAL_T1, 2, "Sagittal T1\nright foramen"),
    (SAGITTAL_T1, 1, "Sagittal T1\nleft foramen"),
)
"""What the montage shows of each level: view, the condition whose place it is (None: the crop's middle), name."""
CONDITION_VIEWS = (SAGITTAL_T2, SAGITTAL_T1, SAGITTAL_T1)
"""On which the canal and the foramina are shown at their own place; a recess is shown on axial slices at the disc."""


@pictured
def show_crops(
    crops: StudyCrops,
    *,
    probabilities: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    synthetic: bool = False,
    width: float = 9.0,
    theme: str | None = None,
) -> Figure:
    """Five levels side by side, one row a view; below them the prediction and the labels.

    probabilities: plain frequencies (25, 3), such as `StudyPrediction.probabilities`, drawn as bars; labels: int (25,),
    -1 for not labelled, drawn as squares, framed where the prediction's most probable class is another; width: inches,
    100 pixels each in a notebook.
    """
    figure = _montage(crops, MONTAGE_ROWS, range(N_CONDITIONS), probabilities, labels, width)
    return finish(figure, title=f"Study {crops.study_id}", synthetic=synthetic)


@pictured
def show_attribution(
    crops: StudyCrops,
    attribution: StudyAttribution,
    condition: int | str,
    *,
    probabilities: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    synthetic: bool = False,
    width: float = 9.0,
    theme: str | None = None,
) -> Figure:
    """One condition across the five levels in all three views: what spoke for a narrowing, and how strongly.

    Each panel shows the slice with the map's highest point, says where it lies, and has a row of small bars at its
    left bottom: the map's mass in each slice, from the patient's right to the left, or from head to feet. Maps are
    scaled one by one, so that a faint map looks as warm as a strong one; the prediction below says how much it led to.

    attribution: from `explain.attribution_maps`; condition: of `labels.CONDITIONS`, by name or number; the rest as in
    `show_crops`.
    """
    index = CONDITIONS.index(condition) if isinstance(condition, str) else int(condition)
    rows = [(view, None, view.replace("/STIR", "")) for view in VIEWS]
    figure = _montage(crops, rows, (index,), probabilities, labels, width, attribution)
    return finish(figure, title=f"{CONDITION_NAMES[index]}   study {crops.study_id}", synthetic=synthetic)


@pictured
def show_crop_slices(
    crops: StudyCrops,
    view: str,
    *,
    limit: int = 8,
    synthetic: bool = False,
    width: float = 9.0,
    theme: str | None = None,
) -> Figure:
    """All slices of one view, a row for each level; at most `limit` slices, evenly chosen.

    Sagittal crops run from the patient's right to the left, axial ones from the head to the feet.
    """
    if view not in VIEWS:
        raise DataError(f"unknown view {view!r}, expected one of {VIEWS}")
    depth = crops.spec.shapes[view][0]
    chosen = np.unique(np.linspace(0, depth - 1, min(depth, limit)).round().astype(int))
    look = {"width": min(width, 0.7 + 1.6 * len(chosen)), "left": 0.55, "header": 0.56, "gap": 0.03}
    figure, axes = justified_panels([[1.0] * len(chosen)] * N_LEVELS, **look)
    for level, panels in enumerate(axes):
        for panel, index in zip(panels, chosen, strict=True):
            first = panel is axes[0][0]
            draw_crop(panel, crops, view, level, index, letters=first, scale_mm=20 if first else None)
        look = {"fontsize": 9, "fontweight": "bold", "color": color("level", level)}
        _name_row(figure, panels[0], level_title(LEVELS[level]), **look)
    for panel, index in zip(axes[0], chosen, strict=True):
        _name_column(figure, panel, _place(crops, view, index), fontsize=8, color=color("muted"))
    return finish(figure, title=f"{view}   study {crops.study_id}", synthetic=synthetic)


def _montage(
    crops: StudyCrops,
    rows: Sequence[tuple[str, int | None, str]],
    conditions: Sequence[int],
    probabilities: np.ndarray | None,
    labels: np.ndarray | None,
    width: float,
    attribution: StudyAttribution | None = None,
) -> Figure:
    """Rows as `MONTAGE_ROWS`, a column a level, and the grades of `conditions` below.

    With an attribution each panel shows the slice that holds the highest point of the first condition's map.
    """
    probabilities, labels = checked(probabilities, labels)
    with_strip = probabilities is not None or labels is not None
    shapes = [[1.0] * N_LEVELS] * len(rows)
    shapes += [[2.0 if len(conditions) > 1 else 7.0] * N_LEVELS] if with_strip else []
    footer = 0.3 if with_strip else 0.06
    figure, axes = justified_panels(shapes, width=width, left=1.06, header=0.58, footer=footer)
    offsets = target_offsets(crops)
    for panels, (view, place_of, name) in zip(axes, rows, strict=False):
        unscaled = True  # the first level that is there has a scale bar
        for level, panel in enumerate(panels):
            peak = attribution.slice_of(view, conditions[0], level) if attribution is not None else None
            offset = 0.0 if place_of is None else offsets[place_of, level]
            index = nearest_index(crops, view, offset) if peak is None else peak
            there = draw_crop(panel, crops, view, level, index, scale_mm=20 if unscaled else None)
            unscaled = unscaled and not there
            if attribution is not None and there:
                draw_heat(
                    panel, _plane(crops, view, level, index), attribution.scaled(view, conditions[0], level)[index]
                )
                place = "nothing here" if peak is None else _place(crops, view, index)
                write_on(panel, 0.03, 0.97, place, fontsize=7, ha="left", va="top")
            if attribution is not None:
                _draw_profile(panel, attribution.slice_shares(view, conditions[0], level), peak)
        _name_row(figure, panels[0], name)
    for level, panel in enumerate(axes[0]):
        look = {"fontsize": 10, "fontweight": "bold", "color": color("level", level)}
        _name_column(figure, panel, level_title(LEVELS[level]), **look)
    if with_strip:
        for level, panel in enumerate(axes[-1]):
            draw_grades(panel, level, probabilities, labels, names=level == 0, conditions=conditions)
        draw_key(figure, axes[-1][0], probabilities is not None, labels is not None)
    return figure


def _draw_profile(panel: Axes, mass: np.ndarray, shown: int | None) -> None:
    """Small bars at the left bottom of a panel: the map's mass in each slice; that of the slice `shown` stands out."""
    if mass.any():
        slices = np.arange(len(mass))
        inset = panel.inset_axes((0.03, 0.03, 0.3, 0.12))
        inset.bar(slices, mass, width=0.8, color=np.where(slices == shown, "#ffd166", "#c8d2dc"), lw=0)
        inset.set(xlim=(-0.6, len(mass) - 0.4), xticks=[], yticks=[], facecolor=(0, 0, 0, 0.5))
        inset.spines[:].set_visible(False)


def crop_plane(crops: StudyCrops, view: str, level: int, offset_mm: float = 0.0) -> ImagePlane:
    """The slice of a crop nearest to `offset_mm` from the canal along the crop's first axis: to the left, or down."""
    return _plane(crops, view, level, nearest_index(crops, view, offset_mm))


def _plane(crops: StudyCrops, view: str, level: int, index: int) -> ImagePlane:
    return ImagePlane.from_grid(crops.images[view][level], crops.grid(view, level), index, crops.covered[view][level])


def draw_crop(
    panel: Axes, crops: StudyCrops, view: str, level: int, index: int, *, letters=True, scale_mm=None
) -> bool:
    """Slice `index` of a crop, or why it is not there; whether the scan shows any of the crop."""
    there = bool(crops.covered[view][level].any())
    if crops.sources[view][level] is None and not there:
        draw_absent(panel, "not in the scan" if crops.covered[view].any() else "no series")
    else:
        look = {"letters": letters, "scale_mm": scale_mm if there else None, "fontsize": 7}
        draw_plane(panel, _plane(crops, view, level, index), window=CROP_WINDOW, **look)
    return there


def target_offsets(crops: StudyCrops) -> np.ndarray:
    """Where to look for the canal on sagittal T2 and for the left and the right foramen on T1, shape (3, 5): mm from a
    crop's middle along its first axis, as found on the crops, or else as it usually is."""
    from ..crops.target_points import points_on_crops

    places = points_on_crops(crops)[0][:3]
    through = np.stack([crops.axes[view][:, 0] for view in CONDITION_VIEWS])
    found = ((places - crops.centers) * through).sum(axis=-1)
    return np.where(np.isfinite(found), found, np.array([0.0, FORAMEN_OFFSET_MM, -FORAMEN_OFFSET_MM])[:, None])


def nearest_index(crops: StudyCrops, view: str, offset_mm: float) -> int:
    """Number of the slice nearest to `offset_mm` from the canal along the crop's first axis."""
    depth, extent = crops.spec.shapes[view][0], crops.spec.extents[view][0]
    return int(np.clip(np.round(offset_mm * depth / extent + (depth - 1) / 2), 0, depth - 1))


def _place(crops: StudyCrops, view: str, index: int) -> str:
    """Where slice `index` lies from the canal: `"13 mm left"`, `"4 mm down"`, `"middle"`."""
    depth = crops.spec.shapes[view][0]
    offset = (index - (depth - 1) / 2) * crops.spec.extents[view][0] / depth
    directions = ("up", "down") if view == AXIAL_T2 else ("right", "left")
    return f"{abs(offset):.0f} mm {directions[int(offset > 0)]}" if abs(offset) >= 0.5 else "middle"


def _name_row(figure: Figure, panel: Axes, name: str, **look) -> None:
    """A name at the left of a row's first panel."""
    box, width = panel.get_position(), figure.get_size_inches()[0]
    look = {"fontsize": 8.5, "color": color("ink"), "linespacing": 1.5} | look
    figure.text(box.x0 - 0.08 / width, (box.y0 + box.y1) / 2, name, ha="right", va="center", **look)


def _name_column(figure: Figure, panel: Axes, name: str, **look) -> None:
    """A name above a column's first panel."""
    box = panel.get_position()
    figure.text((box.x0 + box.x1) / 2, box.y1 + 0.005, name, ha="center", va="bottom", **look)


def checked(probabilities, labels) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Probabilities as float (25, 3) and labels as int (25,), None where not given. Raises `DataError`."""
    wanted = {"probabilities": (N_TARGETS, N_SEVERITIES), "labels": (N_TARGETS,)}
    for (name, shape), values in zip(wanted.items(), (probabilities, labels), strict=True):
        if values is not None and np.shape(values) != shape:
            raise DataError(f"{name} must have shape {shape}, got {np.shape(values)}")
    probabilities = None if probabilities is None else np.asarray(probabilities, dtype=np.float64)
    return probabilities, None if labels is None else np.asarray(labels).astype(int)


def draw_grades(
    panel: Axes,
    level: int,
    probabilities: np.ndarray | None,
    labels: np.ndarray | None,
    *,
    names: bool,
    conditions: Sequence[int] = range(N_CONDITIONS),
) -> None:
    """Thin bars, one a condition: predicted probabilities, and the label as a square at the right end."""
    panel.set(facecolor=color("back"), xlim=(0, 1), ylim=(len(conditions) - 0.4, -0.6), xticks=[])
    panel.spines[:].set_visible(False)
    room = ROOM if labels is not None else 1.0
    for row, condition in enumerate(conditions):
        target = target_index(condition, level)
        if probabilities is not None:
            draw_bar(panel, row, probabilities[target], length=room, height=0.74)
        if labels is None or labels[target] == MISSING:
            continue
        shade = SEVERITY_COLORS[labels[target]]
        if probabilities is None:
            panel.barh(row, 1.0, height=0.74, color=shade, lw=0)
            continue
        edge = color("ink") if int(np.argmax(probabilities[target])) != labels[target] else "none"
        panel.plot(0.955, row, "s", ms=6.5, color=shade, mec=edge, mew=1.3)
    panel.set_yticks(range(len(conditions)) if names else [], [CONDITION_NAMES[c] for c in conditions] if names else [])
    panel.tick_params(length=0, labelsize=7.5)


def draw_bar(
    panel: Axes,
    row: float,
    probabilities: Sequence[float],
    *,
    length: float = 1.0,
    height: float = 0.8,
    unit: str = "",
    least: float = 0.18,
) -> None:
    """A bar in the severities' colours, `length` long, with per cents in the parts that are at least `least`."""
    start = 0.0
    for p, shade in zip(map(float, probabilities), SEVERITY_COLORS, strict=True):
        panel.barh(row, p * length, left=start * length, height=height, color=shade, lw=0)
        if p > least:
            look = {"ha": "center", "va": "center_baseline", "fontsize": 7, "color": DARK_INK}
            panel.text((start + p / 2) * length, row, f"{100 * p:.0f}{unit}", **look)
        start += p


def draw_key(figure: Figure, panel: Axes, with_bars: bool, with_labels: bool) -> None:
    """What the colours, bars and squares mean, below a panel."""
    box, (width, height) = panel.get_position(), figure.get_size_inches()
    x, y = box.x0, box.y0 - 0.17 / height
    for shade, name in zip(SEVERITY_COLORS, SEVERITIES, strict=True):
        figure.text(x, y, "■ ", color=shade, fontsize=9, va="center", gid="mark")
        figure.text(x + 0.15 / width, y, name.lower(), color=color("muted"), fontsize=7.5, va="center")
        x += (0.35 + 0.066 * len(name)) / width
    texts = ["bars: predicted frequency, %"] * with_bars
    if with_labels:
        texts.append("squares: label (framed: another bar is longest)" if with_bars else "bars: label")
    figure.text(x + 0.15 / width, y, "   ".join(texts), color=color("muted"), fontsize=7.5, va="center")
