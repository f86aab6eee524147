"""Two series side by side as in a reading room: sagittal and axial slices, each with the line where the other cuts it.

`Scene` knows what there is to see and draws it as PNG bytes; it has no widgets, so that it can be tested and used
without a browser. `browser` puts sliders and buttons around it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError
from ..labels import LEVELS, VIEWS, level_title
from .images import DISC_LINE_MM, SlicePile
from .planes import ImagePlane, grey_window
from .raster import Raster
from .style import LEVEL_COLORS

if TYPE_CHECKING:
    from ..crops.extraction import StudyCrops
    from ..localization import DiscPoints
    from ..studies.study import Study

SAGITTAL, AXIAL = "sagittal", "axial"
PLANES = {SAGITTAL: 0, AXIAL: 2}
"""With the axis of the patient along which the slices follow each other."""
LINE_COLOR = "#c8ff4a"
"""Of the line where the other slice cuts: unlike any level's colour."""
DRAWN_WITHIN_MM = 25.0
"""A disc's line is drawn on slices so near to its point; farther off it would lie on other anatomy."""
ANGLE_COST_MM = 0.3
"""How many mm farther from a disc an axial slice may lie for each degree that it is nearer to the disc's plane."""


class Scene:
    """A study's series, and what is drawn on a slice of one given a slice of the other.

    Discs are drawn as their points and planes, crops as the boxes that were cut out of each series; `size` is the
    largest height and width of a picture in pixels. `piles` holds the series by plane, "sagittal" and "axial", each a
    list of `SlicePile` with the views of the task first. Raises `DataError` when the study has neither.
    """

    def __init__(
        self,
        study: Study,
        discs: DiscPoints | None = None,
        crops: StudyCrops | None = None,
        *,
        size: tuple[int, int] = (470, 440),
        synthetic: bool = False,
    ):
        self.study, self.discs, self.crops, self.size, self.synthetic = study, discs, crops, size, synthetic
        order = {view: n for n, view in enumerate(VIEWS)}
        piles = map(SlicePile, sorted(study.series, key=lambda s: (order.get(s.view, len(order)), -s.n_slices)))
        by_axis = [[], [], []]
        for pile in piles:
            by_axis[pile.axis].append(pile)
        self.piles = {plane: by_axis[axis] for plane, axis in PLANES.items()}
        if not any(self.piles.values()):
            raise DataError(f"study {study.study_id}: no sagittal and no axial series to show")
        self._windows: dict[SlicePile, tuple[float, float]] = {}

    def index_of_level(self, plane: str, number: int, level: int) -> int:
        """The slice of the plane's series `number` in which a level is looked at; the middle one without discs."""
        pile = self.piles[plane][number]
        if self.discs is None:
            return len(pile) // 2
        costs = pile.costs(self.discs.points[level : level + 1])
        if plane == AXIAL:
            normals = np.array([stack.geometry[i].normal for stack, i in pile.places])
            lean = np.abs(normals @ self.discs.tangents()[level])
            costs = costs + ANGLE_COST_MM * np.degrees(np.arccos(np.clip(lean, 0, 1)))
        return int(costs.argmin())

    def draw(
        self,
        plane: str,
        number: int,
        index: int,
        other: ImagePlane | None = None,
        *,
        width: float = 100.0,
        level: float = 50.0,
        marks: bool = True,
    ) -> Raster:
        """Slice `index` of the plane's series `number`, with the line where the slice `other` cuts it.

        Window width and level are in per cent of the series' own: 100 and 50 leave it, half the width doubles the
        contrast. `marks` says whether discs and boxes are drawn.
        """
        pile = self.piles[plane][number]
        if pile not in self._windows:
            self._windows[pile] = grey_window(pile.image(len(pile) // 2).image)
        low, high = self._windows[pile]
        middle, half = low + (high - low) * level / 100, (high - low) * width / 200
        raster = Raster(pile.image(index), self.size, (middle - half, middle + half))
        if marks:
            self._draw_boxes(raster, pile)
            self._draw_discs(raster, pile, flat=plane == SAGITTAL)
        cut = raster.plane.cut_by(other) if other is not None else None
        if cut is not None:
            raster.line(raster.pixels(cut), LINE_COLOR, 1)
        raster.letters()
        raster.scale_bar(50 if raster.plane.size[1] > 150 else 20)
        raster.text((6, 5), f"{pile.series.view or 'unknown view'}  {index + 1}/{len(pile)}", "white")
        if self.synthetic:
            raster.text((6, raster.image.size[1] - 6), "synthetic", "#f6d365", anchor="lb")
        return raster

    def _draw_boxes(self, raster: Raster, pile: SlicePile) -> None:
        view, crops = pile.series.view, self.crops
        for level, source in enumerate(crops.sources[view] if crops is not None and view in VIEWS else ()):
            if source is not None and source.series_id == pile.series.series_id:
                corners = raster.plane.cut_of(crops.grid(view, level))
                if corners is not None:
                    raster.line(raster.pixels(np.concatenate([corners, corners[:1]])), LEVEL_COLORS[level], 1)

    def _draw_discs(self, raster: Raster, pile: SlicePile, *, flat: bool) -> None:
        """The points on the slice or near it; `flat` where the discs' lines lie in the slice."""
        if self.discs is None:
            return
        spacing = pile.series.stacks[0].geometry.slice_spacing
        on_it = max(2.0, spacing / 2 if np.isfinite(spacing) else 2.0)
        points, distance = raster.project(self.discs.points)
        fronts, _ = raster.project(self.discs.points + DISC_LINE_MM * self.discs.forward())
        for level, (point, front, shade) in enumerate(zip(points, fronts, LEVEL_COLORS, strict=True)):
            away = abs(distance[level])
            if away > (DRAWN_WITHIN_MM if flat else on_it):
                continue
            if flat:
                raster.line(np.stack([point, front]), shade, 1)
            raster.dot(point, shade, filled=bool(away <= on_it))
            beside = point - (front - point) * 0.25 if flat else point
            raster.text(beside + np.array([8, 0]), level_title(LEVELS[level]), shade, size=13, anchor="lm")
