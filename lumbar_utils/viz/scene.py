"""Two series side by side as in a reading room: sagittal and axial slices, each with the line where the other cuts it.

`Scene` knows what there is to see and draws it on a `Raster`; it has no widgets, so that it can be tested and used
without a browser. `browser` puts sliders and buttons around it. A `Raster` is a quick picture without matplotlib: a
step of a viewer has some 50 ms, a figure takes several hundred, and here a slice is scaled, windowed, marked and
encoded in about ten.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from ..errors import DataError
from ..labels import LEVELS, VIEWS, level_title
from .images import DISC_LINE_MM, SlicePile
from .planes import EDGES, ImagePlane, grey_window, length_name
from .style import LEVEL_COLORS

if TYPE_CHECKING:
    from ..crops.extraction import StudyCrops
    from ..localization import DiscPoints
    from ..studies.study import Study

SAGITTAL, AXIAL = "sagittal", "axial"
PLANES = {SAGITTAL: 0, AXIAL: 2}
"""With the axis of the patient along which the slices follow each other."""
LETTER_COLOR = "#c8d2dc"
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


class Raster:
    """A slice on a canvas of pixels, on which patient coordinates have their place.

    `size` is the largest height and width in pixels, of which the slice fills one and keeps its proportions; `window`
    the intensities that become black and white. `image` is the canvas, an RGB `PIL.Image`; `scale` its pixels a mm.
    """

    def __init__(self, plane: ImagePlane, size: tuple[int, int], window: tuple[float, float]):
        height, width = plane.size
        self.plane = plane
        self.scale = min(size[0] / height, size[1] / width)
        low, high = window
        grey = np.clip((np.asarray(plane.image, dtype=np.float32) - low) * (255 / max(high - low, 1e-6)), 0, 255)
        shape = max(1, round(width * self.scale)), max(1, round(height * self.scale))
        scaled = Image.fromarray(grey.astype(np.uint8)).resize(shape, Image.Resampling.BILINEAR)
        if plane.covered is not None and not plane.covered.all():
            there = Image.fromarray(plane.covered.astype(np.uint8) * 255).resize(shape, Image.Resampling.NEAREST)
            scaled = Image.composite(scaled, Image.new("L", shape, 40), there)
        self.image = scaled.convert("RGB")
        self._pen = ImageDraw.Draw(self.image)

    def pixels(self, xy: np.ndarray) -> np.ndarray:
        """(x, y) mm on the plane, (..., 2), as `ImagePlane.project` gives them, to (x, y) pixels of the canvas."""
        # The middle of the slice's first pixel is half a pixel of the slice away from its edge, and so on the canvas.
        half = np.array([self.plane.spacing[1], self.plane.spacing[0]]) / 2
        return (np.asarray(xy, dtype=np.float64) + half) * self.scale - 0.5

    def millimetres(self, pixels: np.ndarray) -> np.ndarray:
        """The inverse of `pixels`."""
        half = np.array([self.plane.spacing[1], self.plane.spacing[0]]) / 2
        return (np.asarray(pixels, dtype=np.float64) + 0.5) / self.scale - half

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """LPS mm (..., 3) to (x, y) pixels (..., 2) and the distance from the plane in mm (...)."""
        xy, distance = self.plane.project(points)
        return self.pixels(xy), distance

    def line(self, ends: np.ndarray, color: str, width: int = 1) -> None:
        """A straight or broken line through pixels (n, 2)."""
        self._pen.line([tuple(end) for end in np.asarray(ends)], fill=color, width=width)

    def dot(self, at: np.ndarray, color: str, *, radius: float = 4, filled: bool = True) -> None:
        """A round mark at a pixel."""
        x, y = at
        box = (x - radius, y - radius, x + radius, y + radius)
        self._pen.ellipse(box, fill=color if filled else None, outline="black" if filled else color, width=1)

    def text(self, at: Sequence[float], text: str, color: str, *, size: int = 12, anchor: str = "lt") -> None:
        """Text with a dark rim; `anchor` as in PIL, `lt` for the left top corner."""
        place = float(at[0]), float(at[1])
        self._pen.text(place, text, fill=color, font=font(size), anchor=anchor, stroke_width=1, stroke_fill="black")

    def letters(self, size: int = 12) -> None:
        """What lies at each edge, in the patient."""
        width, height = self.image.size
        for edge, letter in self.plane.letters().items():
            x, y = EDGES[edge]
            at = 3 + x * (width - 6), 3 + y * (height - 6)
            anchor = ("lmr"[round(2 * x)]) + "tmb"[round(2 * y)]
            self.text(at, letter, LETTER_COLOR, size=size, anchor=anchor)

    def scale_bar(self, length: float, size: int = 11) -> None:
        """A bar of `length` mm at the right bottom."""
        width, height = self.image.size
        x, y = width - 8, height - 7
        self.line([(x - length * self.scale, y), (x, y)], "white", 3)
        self.text((x - length * self.scale / 2, y - 3), length_name(length), "white", size=size, anchor="mb")

    def png(self) -> bytes:
        """The canvas as a PNG file's bytes, compressed lightly because a viewer waits for it."""
        buffer = io.BytesIO()
        self.image.save(buffer, format="PNG", compress_level=1)
        return buffer.getvalue()


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """The font of the figures, which comes with matplotlib, in pixels."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
