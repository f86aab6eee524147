"""Two series side by side as in a reading room: sagittal and axial slices, each with the line where the other cuts it.

`Scene` knows what there is to see and draws it as PNG bytes; it has no widgets, so that it can be tested and used
without a browser. `browser` puts sliders and buttons around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError
from ..labels import LEVELS, N_LEVELS, VIEWS, level_title
from .images import DISC_LINE_MM, slice_plane
from .planes import ImagePlane, grey_window
from .raster import Raster
from .style import LEVEL_COLORS

if TYPE_CHECKING:
    from ..crops.extraction import StudyCrops
    from ..dicom.series import Series
    from ..localization import DiscPoints
    from ..studies.study import Study

SAGITTAL, AXIAL = "sagittal", "axial"
PLANES = (SAGITTAL, AXIAL)
_MAIN_AXIS = {SAGITTAL: 0, AXIAL: 2}
LINE_COLOR = "#c8ff4a"
"""Of the line where the other slice cuts: unlike any level's colour."""
DRAWN_WITHIN_MM = 25.0
"""A disc's line is drawn on slices so near to its point; farther off it would lie on other anatomy."""
ANGLE_COST_MM = 0.3
"""How many mm farther from a disc an axial slice may lie for each degree that it is nearer to the disc's plane."""


@dataclass(frozen=True, eq=False)
class SlicePile:
    """All slices of one series in anatomical order: from the patient's right to the left, or from head to feet.

    Parameters
    ----------
    series : Series
    plane : {"sagittal", "axial"}
    """

    series: Series
    plane: str

    @cached_property
    def places(self) -> tuple[tuple[int, int], ...]:
        """(stack, slice) of every slice."""
        axis = _MAIN_AXIS[self.plane]
        sign = -1 if self.plane == AXIAL else 1
        found = []
        for s, stack in enumerate(self.series.stacks):
            rows, columns = stack.geometry.shape
            for i in range(len(stack)):
                middle = stack.geometry[i].pixel_to_world([(columns - 1) / 2, (rows - 1) / 2])
                found.append((sign * middle[axis], s, i))
        return tuple((s, i) for _, s, i in sorted(found))

    def __len__(self) -> int:
        return len(self.places)

    def image(self, index: int) -> ImagePlane:
        """One slice, turned for display."""
        s, i = self.places[index]
        return slice_plane(self.series.stacks[s], i)

    @cached_property
    def window(self) -> tuple[float, float]:
        """The intensities that are black and white at first."""
        return grey_window(self.image(len(self) // 2).image)

    @property
    def name(self) -> str:
        """For a menu."""
        return f"{self.series.view or self.series.description or 'unknown view'}  (series {self.series.series_id[-8:]})"

    def nearest(self, point: np.ndarray, direction: np.ndarray | None = None) -> int:
        """The slice that shows a point best: near, with the point inside of its edges, along the disc's plane."""
        costs = []
        for s, i in self.places:
            geometry = self.series.stacks[s].geometry[i]
            xy, distance = geometry.world_to_pixel(point)
            outside = (xy < 0).any() or (xy > np.array(geometry.shape[::-1]) - 1).any()
            cost = abs(float(distance)) + 1000.0 * outside
            if direction is not None:
                angle = np.degrees(np.arccos(np.clip(abs(geometry.normal @ direction), 0, 1)))
                cost += ANGLE_COST_MM * float(angle)
            costs.append(cost)
        return int(np.argmin(costs))


class Scene:
    """A study's series, and what is drawn on a slice of one given a slice of the other.

    Parameters
    ----------
    study : Study
    discs : DiscPoints, optional
        Draws the points and the discs' planes.
    crops : StudyCrops, optional
        Draws the boxes that were cut out of each series.
    size : (int, int)
        Largest height and width of a picture in pixels.
    synthetic : bool
        Stamps every picture.

    Attributes
    ----------
    piles : dict `"sagittal"`, `"axial"` -> list of SlicePile
        The views of the task first, in the order of `labels.VIEWS`.

    Raises
    ------
    DataError
        When the study has neither sagittal nor axial series.
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
        series = sorted(study.series, key=lambda s: (order.get(s.view, len(order)), -s.n_slices))
        self.piles = {
            plane: [SlicePile(item, plane) for item in series if _main_axis(item) == _MAIN_AXIS[plane]]
            for plane in PLANES
        }
        if not any(self.piles.values()):
            raise DataError(f"study {study.study_id}: no sagittal and no axial series to show")

    def index_of_level(self, plane: str, number: int, level: int) -> int:
        """The slice of the plane's series `number` in which a level is looked at; the middle one without discs."""
        pile = self.piles[plane][number]
        if self.discs is None:
            return len(pile) // 2
        direction = self.discs.tangents()[level] if plane == AXIAL else None
        return pile.nearest(self.discs.points[level], direction)

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
        """Slice `index` of the plane's series `number`.

        Parameters
        ----------
        other : ImagePlane, optional
            The slice on the other side, whose cut is drawn.
        width, level : float
            Window and level in per cent of the series' own: 100 and 50 leave it; half the width doubles contrast.
        marks : bool
            Whether discs and boxes are drawn.
        """
        pile = self.piles[plane][number]
        low, high = pile.window
        middle, half = low + (high - low) * level / 100, (high - low) * width / 200
        raster = Raster(pile.image(index), self.size, (middle - half, middle + half))
        if marks:
            self._draw_boxes(raster, pile)
            self._draw_discs(raster, pile)
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
        view = pile.series.view
        if self.crops is None or view not in VIEWS:
            return
        for level, source in enumerate(self.crops.sources[view]):
            if source is None or source.series_id != pile.series.series_id:
                continue
            corners = raster.plane.cut_of(self.crops.grid(view, level))
            if corners is not None:
                raster.line(raster.pixels(np.concatenate([corners, corners[:1]])), LEVEL_COLORS[level], 1)

    def _draw_discs(self, raster: Raster, pile: SlicePile) -> None:
        if self.discs is None:
            return
        spacing = pile.series.stacks[0].geometry.slice_spacing
        on_it = max(2.0, spacing / 2 if np.isfinite(spacing) else 2.0)
        forward = self.discs.forward()
        points, distance = raster.project(self.discs.points)
        fronts, _ = raster.project(self.discs.points + DISC_LINE_MM * forward)
        for level in range(N_LEVELS):
            near = abs(distance[level]) <= (DRAWN_WITHIN_MM if pile.plane == SAGITTAL else on_it)
            if not near:
                continue
            shade = LEVEL_COLORS[level]
            if pile.plane == SAGITTAL:
                raster.line(np.stack([points[level], fronts[level]]), shade, 1)
            raster.dot(points[level], shade, filled=bool(abs(distance[level]) <= on_it))
            beside = points[level] - (fronts[level] - points[level]) * 0.25 if pile.plane == SAGITTAL else points[level]
            raster.text(beside + np.array([8, 0]), level_title(LEVELS[level]), shade, size=13, anchor="lm")


def _main_axis(series: Series) -> int:
    return int(np.abs(series.stacks[0].geometry.normal).argmax())
