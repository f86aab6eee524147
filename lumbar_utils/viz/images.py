"""Series and studies as pictures: all slices of a series, the three views of a study, the discs on sagittal T2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from ..errors import DataError
from ..geometry import OrientedGrid
from ..labels import AXIAL_T2, CONDITIONS, LEVELS, SAGITTAL_T1, SAGITTAL_T2, level_title
from .planes import ImagePlane, draw_absent, draw_plane, grey_window, justified_panels
from .style import FAMILY_COLORS, LEVEL_COLORS, finish, notice, outline, pictured, write_on

if TYPE_CHECKING:
    from ..crops.extraction import StudyCrops
    from ..dicom.series import Series, Stack
    from ..localization import DiscPoints
    from ..studies.study import Study

DISC_LINE_MM = 42.0
"""From the middle of the canal to the front of the disc: half a canal and a disc's depth, with a little to spare."""
FAR_MM = 10.0
"""An axial slice farther from a disc's point shows another place; slices lie up to 6 mm apart."""
FORAMEN_OFFSET_MM = 17.0
"""From the midline to a foramen: in the competition's T1 series left and right lie 7 slices of 4.5 mm apart."""


@pictured
def show_series(
    series: Series, *, columns: int = 6, limit: int = 24, synthetic: bool = False, theme: str | None = None
) -> Figure:
    """All slices of a series in anatomical order, largest stack first; at most `limit`, evenly chosen."""
    places = [(s, i) for s, stack in enumerate(series.stacks) for i in range(len(stack))]
    if len(places) > limit:
        places = [places[i] for i in np.linspace(0, len(places) - 1, limit).round().astype(int)]
    planes = [slice_plane(series.stacks[s], i) for s, i in places]
    window = grey_window(planes[len(planes) // 2].image)
    figure = _gallery(planes, columns, largest=9.0 / sum(plane.aspect for plane in planes[:columns]))
    for n, (panel, plane, (s, i)) in enumerate(zip(figure.axes, planes, places, strict=True)):
        number = series.stacks[s].instance_numbers[i]
        draw_plane(panel, plane, window=window, caption=f"{number}", scale_mm=50 if n == 0 else None)
    title = f"{series.view or 'unknown view'}   study {series.study_id}   series {series.series_id}"
    stacks = f", {len(series.stacks)} stacks" if len(series.stacks) > 1 else ""
    return finish(figure, title=f"{title}   {series.n_slices} slices{stacks}", synthetic=synthetic)


@pictured
def show_study(
    study: Study,
    *,
    points: pd.DataFrame | None = None,
    discs: DiscPoints | None = None,
    synthetic: bool = False,
    theme: str | None = None,
) -> Figure:
    """The three views of a study with what is known about it drawn in: points of the tables, located discs.

    Upper row: sagittal T2 in the midline with the cuts of the axial slices below, sagittal T1 through the right
    and the left foramina. Lower row: the axial T2 slice of each level.

    points: those of the tables in the patient, from `CompetitionFolder.world_points(study)`, drawn filled on the slice
    shown and hollow up to 6 mm beside it; discs: drawn, and used to choose slices where the table has no points.
    """
    points = pd.DataFrame(columns=["condition", "level", "x", "y", "z"]) if points is None else points
    located = discs.points if discs is not None else None
    canal = _level_points(points, CONDITIONS[:1], located)
    aside = np.array([FORAMEN_OFFSET_MM, 0, 0])
    right = _level_points(points, CONDITIONS[2:3], canal - aside)
    left = _level_points(points, CONDITIONS[1:2], canal + aside)
    recess = _level_points(points, CONDITIONS[3:], canal if located is None else located)
    t2, t1, axial_t2 = (study.by_view(view) for view in (SAGITTAL_T2, SAGITTAL_T1, AXIAL_T2))
    middle = _nearest_plane(t2, canal, 0.5)
    upper = [middle, _nearest_plane(t1, right, 0.27), _nearest_plane(t1, left, 0.73)]
    axial = [_nearest_plane(axial_t2, point[None], (i + 0.5) / 5) for i, point in enumerate(recess)]
    for i, plane in enumerate(axial):  # a series that ends above a level shows nothing of it
        if plane is not None and abs(plane.project(recess[i])[1]) > FAR_MM:
            axial[i] = None
    shapes = [[plane.aspect if plane else absent for plane in row] for row, absent in ((upper, 0.8), (axial, 1.0))]
    figure, axes = justified_panels(shapes, largest=4.4)
    names = ("Sagittal T2\nmidline", "Sagittal T1\nright foramina", "Sagittal T1\nleft foramina")
    captions, shades = [*names, *map(level_title, LEVELS)], [None, None, None, *LEVEL_COLORS]
    for panel, plane, caption, shade in zip(figure.axes, [*upper, *axial], captions, shades, strict=True):
        if plane is None:
            draw_absent(panel, f"{caption}\nnot in this study")
        else:
            draw_plane(panel, plane, caption=caption, caption_color=shade, scale_mm=50)
            _mark_table_points(panel, plane, points)
    if middle is not None:
        for i, plane in enumerate(axial):
            cut = middle.cut_by(plane) if plane is not None else None
            if cut is not None:
                axes[0][0].plot(*cut.T, color=LEVEL_COLORS[i], lw=0.8, ls=(0, (4, 3)), alpha=0.8)
        if discs is not None:
            mark_discs(axes[0][0], middle, discs, lines=False)
    return finish(figure, title=f"Study {study.study_id}", synthetic=synthetic)


@pictured
def show_disc_points(
    study: Study,
    discs: DiscPoints,
    *,
    truth: np.ndarray | None = None,
    crops: StudyCrops | None = None,
    synthetic: bool = False,
    width: float = 5.2,
    theme: str | None = None,
) -> Figure:
    """The five levels on the sagittal T2 slice nearest to them, with the discs' planes.

    truth: true canal points (5, 3), LPS mm, nan where unknown, drawn as rings, with the error in mm; crops: draws the
    boxes that were cut out of the sagittal T2 series.
    """
    plane = localized_plane(study, discs)
    figure, axes = justified_panels([[plane.aspect]], width=width, largest=9.0)
    draw_localized(axes[0][0], plane, discs, truth, crops, scale_mm=50)
    return finish(figure, title=f"Study {study.study_id}", synthetic=synthetic)


@pictured
def show_localizations(
    studies: Sequence[Study],
    discs: Sequence[DiscPoints],
    *,
    truths: Sequence[np.ndarray | None] | None = None,
    columns: int = 4,
    synthetic: bool = False,
    title: str = "",
    theme: str | None = None,
) -> Figure:
    """`show_disc_points` for several studies side by side; `truths` holds (5, 3) arrays or None."""
    truths = truths if truths is not None else [None] * len(studies)
    if not len(studies) == len(discs) == len(truths):
        raise DataError(f"got {len(studies)} studies, {len(discs)} disc points and {len(truths)} truths")
    if not studies:
        return notice(f"{title or 'Located discs'}: no study to show")
    planes = [localized_plane(study, item) for study, item in zip(studies, discs, strict=True)]
    figure = _gallery(planes, columns, largest=4.2, width=11.0)
    for panel, plane, found, truth, study in zip(figure.axes, planes, discs, truths, studies, strict=True):
        draw_localized(panel, plane, found, truth, None, caption=study.study_id, small=True)
    return finish(figure, title=title, synthetic=synthetic)


def _gallery(planes: Sequence[ImagePlane], columns: int, **options) -> Figure:
    """A figure with a panel for each plane, so many a row."""
    aspects = [plane.aspect for plane in planes]
    return justified_panels([aspects[n : n + columns] for n in range(0, len(planes), columns)], **options)[0]


def slice_plane(stack: Stack, index: int) -> ImagePlane:
    """One slice of a stack, turned for display."""
    return ImagePlane.from_slice(stack.pixels[index], stack.geometry[index])


@dataclass(frozen=True, eq=False)
class SlicePile:
    """All slices of a series in anatomical order: from the patient's right to the left, front to back, head to feet."""

    series: Series

    @cached_property
    def axis(self) -> int:
        """The axis of the patient along which the slices follow each other."""
        return int(np.abs(self.series.stacks[0].geometry.normal).argmax())

    @cached_property
    def places(self) -> list[tuple[Stack, int]]:
        """(stack, number) of every slice."""
        places = [(stack, i) for stack in self.series.stacks for i in range(len(stack))]
        sign = -1 if self.axis == 2 else 1
        return sorted(places, key=lambda place: sign * slice_plane(*place).middle[self.axis])

    def __len__(self) -> int:
        return len(self.places)

    def image(self, index: int) -> ImagePlane:
        return slice_plane(*self.places[index])

    def costs(self, points: np.ndarray) -> np.ndarray:
        """Of each slice, the median distance of points (n, 3) in mm; a point beyond its edges counts as far away."""
        costs = []
        for stack, i in self.places:
            xy, distance = stack.geometry[i].world_to_pixel(points)
            outside = ((xy < 0) | (xy > np.array(stack.geometry.shape[::-1]) - 1)).any(axis=-1)
            costs.append(np.median(np.abs(distance) + 1000.0 * outside))
        return np.array(costs)


def localized_plane(study: Study, discs: DiscPoints) -> ImagePlane:
    """The sagittal slice (T2 when there is one, else T1) nearest to the located points."""
    series = study.by_view(SAGITTAL_T2) or study.by_view(SAGITTAL_T1)
    plane = _nearest_plane(series, discs.points, 0.5)
    if plane is None:
        raise DataError(f"study {study.study_id}: no sagittal series to show the discs on")
    return plane


def _level_points(points: pd.DataFrame, conditions: Sequence[str], default: np.ndarray | None) -> np.ndarray:
    """(5, 3): mean table point per level of the conditions; else `default` or nan."""
    result = np.full((len(LEVELS), 3), np.nan) if default is None else np.array(default, dtype=np.float64)
    for level, rows in points[points["condition"].isin(conditions)].groupby("level"):
        result[LEVELS.index(level)] = rows[["x", "y", "z"]].to_numpy(dtype=float).mean(axis=0)
    return result


def _nearest_plane(series: Sequence[Series], points: np.ndarray, fraction: float) -> ImagePlane | None:
    """The slice of all the series that lies nearest to most of the points and holds them; else by position."""
    piles = [SlicePile(item) for item in series]
    known = points[np.isfinite(points).all(axis=1)]
    if not piles or not len(known):
        return piles[0].image(round(fraction * (len(piles[0]) - 1))) if piles else None
    costs = [pile.costs(known) for pile in piles]
    best = int(np.argmin([cost.min() for cost in costs]))
    return piles[best].image(int(costs[best].argmin()))


def _mark_table_points(panel: Axes, plane: ImagePlane, points: pd.DataFrame) -> None:
    """Points of the table near the plane: filled on it, hollow within 6 mm of it."""
    family = dict(zip(CONDITIONS, (0, 1, 1, 2, 2), strict=True))
    height, width = plane.size
    for row in points.itertuples():
        xy, distance = plane.project(np.array([row.x, row.y, row.z]))
        if abs(distance) <= 6 and 0 <= xy[0] <= width and 0 <= xy[1] <= height:
            shade = FAMILY_COLORS[family[row.condition]]
            face, edge = (shade, "white") if abs(distance) < 1.5 else ("none", shade)
            panel.plot(*xy, "o", ms=5, mfc=face, mec=edge, mew=0.8, path_effects=outline(2.5))


def mark_discs(panel: Axes, plane: ImagePlane, discs: DiscPoints, *, lines: bool = True, small: bool = False) -> None:
    """Each level's point, the line of its disc towards the front, and its name behind the canal."""
    forward = discs.forward()
    points, _ = plane.project(discs.points)
    fronts, _ = plane.project(discs.points + DISC_LINE_MM * forward)
    for i, level in enumerate(LEVELS):
        shade, back = LEVEL_COLORS[i], points[i] - (fronts[i] - points[i]) * 0.32
        if lines:
            panel.plot(*np.stack([points[i], fronts[i]]).T, color=shade, lw=1.2, alpha=0.9, path_effects=outline(2))
        panel.plot(*points[i], "o", ms=4 if small else 5, color=shade, mec="black", mew=0.6)
        flag = f" ({discs.flags[i]})" if discs.flags[i] else ""
        look = {"color": shade, "fontsize": 6.5 if small else 8.5, "fontweight": "bold", "transform": panel.transData}
        write_on(panel, *back, level_title(level) + flag, ha="left", va="center", **look)


def draw_localized(panel, plane, discs, truth, crops, *, caption="", scale_mm=None, small=False) -> None:
    draw_plane(panel, plane, caption=caption, scale_mm=scale_mm)
    if crops is not None:
        for i, shade in enumerate(LEVEL_COLORS):
            if crops.sources[SAGITTAL_T2][i] is not None:
                corners, _ = plane.project(box_outline(crops.grid(SAGITTAL_T2, i)))
                panel.add_patch(Polygon(corners, fill=False, edgecolor=shade, lw=0.9, alpha=0.75))
    mark_discs(panel, plane, discs, small=small)
    if truth is None:
        return
    truth = np.asarray(truth, dtype=np.float64)
    known = np.isfinite(truth).all(axis=1)
    xy, _ = plane.project(truth[known])
    panel.plot(*xy.T, "o", ms=9 if small else 11, mfc="none", mec="white", mew=1.1)
    error = np.linalg.norm(truth[known] - discs.points[known], axis=1)
    text = f"error, mm: median {np.median(error):.1f}\nlargest {error.max():.1f}" if known.any() else "truth not known"
    write_on(panel, 0.025, 0.015, text, ha="left", va="bottom", fontsize=6.5 if small else 8.5)


def box_outline(grid: OrientedGrid) -> np.ndarray:
    """Corners of a crop's box in its middle plane, LPS mm (4, 3), clockwise from the top left as displayed."""
    down, right = (0.5 * grid.extent[k] * grid.axes[k] for k in (1, 2))
    return np.stack([grid.center + a * down + b * right for a, b in ((-1, -1), (-1, 1), (1, 1), (1, -1))])
