"""An image on the page that still knows where it lies in the patient.

An `ImagePlane` is turned to the radiological display (sagittal and coronal: head up; sagittal: front on the
left; axial: the patient's right on the left, front up) and is drawn in millimetres, so that points of the
patient, other planes and scale bars land on it without pixel arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from ..geometry import INFERIOR, LEFT, POSTERIOR, OrientedGrid, SliceGeometry
from .style import add_panel, new_figure, outline, write_on

PAGES = ((INFERIOR, POSTERIOR), (INFERIOR, LEFT), (POSTERIOR, LEFT))
"""Down and right on the page of slices that follow each other along x, y and z."""
_LETTERS = (("R", "L"), ("A", "P"), ("I", "S"))
OBLIQUE_LETTER = 0.38
"""A direction that leans by more than this sine (22 degrees) to a second axis gets that axis' letter too."""

EDGES = {"left": (0, 0.5), "right": (1, 0.5), "top": (0.5, 0), "bottom": (0.5, 1)}
"""The middle of each edge of the page, as fractions to the right and down."""
WINDOW_PERCENTILES = (1.0, 99.2)
HEAT = "inferno"
"""Ordered in lightness, so that warmer is lighter for every reader."""
MIN_HEAT = 0.15
"""Below this fraction of an attribution map's largest value nothing is drawn."""


@dataclass(frozen=True)
class ImagePlane:
    """One image (rows, columns) in display orientation.

    origin: LPS mm (3,) of the middle of the top left pixel as displayed; down, right: unit directions (3,) of the page
    in the patient; spacing: mm between rows and between columns; covered: bool (rows, columns), where the scan holds
    something, the rest is hatched.
    """

    image: np.ndarray
    origin: np.ndarray
    down: np.ndarray
    right: np.ndarray
    spacing: tuple[float, float]
    covered: np.ndarray | None = None

    @classmethod
    def from_slice(cls, pixels: np.ndarray, geometry: SliceGeometry) -> ImagePlane:
        """A slice of a series, flipped or transposed to the display convention; pixels are not resampled."""
        wanted_down, wanted_right = PAGES[np.abs(geometry.normal).argmax()]
        image, origin = pixels, geometry.position
        down, right, spacing = geometry.column_cosine, geometry.row_cosine, geometry.spacing
        if abs(right @ wanted_right) < abs(down @ wanted_right):
            image, down, right, spacing = image.T, right, down, spacing[::-1]
        if down @ wanted_down < 0:
            origin, down, image = origin + down * spacing[0] * (image.shape[0] - 1), -down, image[::-1]
        if right @ wanted_right < 0:
            origin, right, image = origin + right * spacing[1] * (image.shape[1] - 1), -right, image[:, ::-1]
        return cls(image, origin, down, right, (float(spacing[0]), float(spacing[1])))

    @classmethod
    def from_grid(cls, values: np.ndarray, grid: OrientedGrid, index: int, covered=None) -> ImagePlane:
        """Slice `index` along axis 0 of a crop; `values` and `covered` have the grid's shape."""
        origin = grid.voxel_to_world(np.array([index, 0, 0]))
        spacing = (float(grid.spacing[1]), float(grid.spacing[2]))
        image = np.asarray(values[index], dtype=np.float32)
        return cls(image, origin, grid.axes[1], grid.axes[2], spacing, None if covered is None else covered[index])

    @property
    def size(self) -> tuple[float, float]:
        """(height, width) in mm."""
        return self.image.shape[0] * self.spacing[0], self.image.shape[1] * self.spacing[1]

    @property
    def middle(self) -> np.ndarray:
        """LPS mm of the middle, shape (3,)."""
        down, right = (np.array(self.size) - self.spacing) / 2
        return self.origin + down * self.down + right * self.right

    @property
    def aspect(self) -> float:
        """Width over height."""
        return self.size[1] / self.size[0]

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """mm of the edges left, right, bottom and top, for `Axes.imshow`: (0, 0) is the middle of the first pixel."""
        height, width = self.size
        half_y, half_x = self.spacing[0] / 2, self.spacing[1] / 2
        return (-half_x, width - half_x, height - half_y, -half_y)

    @property
    def normal(self) -> np.ndarray:
        """Unit normal of the plane, shape (3,)."""
        return np.cross(self.right, self.down)

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """LPS mm (..., 3) to (x, y) mm on the page (..., 2) and to the distance from the plane in mm (...)."""
        offset = np.asarray(points, dtype=np.float64) - self.origin
        return np.stack([offset @ self.right, offset @ self.down], axis=-1), offset @ self.normal

    def letters(self) -> dict[str, str]:
        """What lies at each edge of the page: `{"left": "A", "right": "P", "top": "S", "bottom": "I"}`."""
        edges = {"left": -self.right, "right": self.right, "top": -self.down, "bottom": self.down}
        return {edge: direction_letters(direction) for edge, direction in edges.items()}

    def cut_by(self, other: ImagePlane) -> np.ndarray | None:
        """The line along which another image cuts this one, as two (x, y) points in mm, or None."""
        down, right = other.size[0] * other.down, other.size[1] * other.right
        corners = other.origin + np.array([np.zeros(3), right, down + right, down])
        ends = self._crossings(corners, ((0, 1), (1, 2), (2, 3), (3, 0)))
        return ends if len(ends) == 2 else None

    def cut_of(self, grid: OrientedGrid) -> np.ndarray | None:
        """Where this image cuts a crop's box: corners (n, 2) of the polygon in order, (x, y) in mm, or None."""
        signs = np.array(list(product((-1, 1), repeat=3)))
        edges = [(i, j) for i, j in combinations(range(8), 2) if np.abs(signs[i] - signs[j]).sum() == 2]
        corners = self._crossings(grid.center + (signs * np.asarray(grid.extent) / 2) @ grid.axes, edges)
        if len(corners) < 3:
            return None
        x, y = (corners - corners.mean(axis=0)).T
        return corners[np.argsort(np.arctan2(y, x))]

    def _crossings(self, corners: np.ndarray, edges: Iterable[tuple[int, int]]) -> np.ndarray:
        """(x, y) mm at which edges, pairs of corners, pass through the plane."""
        xy, distance = self.project(corners)
        through = [(i, j) for i, j in edges if (distance[i] < 0) != (distance[j] < 0)]
        return np.array([xy[i] + (xy[j] - xy[i]) * distance[i] / (distance[i] - distance[j]) for i, j in through])


def direction_letters(direction: np.ndarray) -> str:
    """Letters of a direction in the patient, the main axis first: `"S"`, or `"SA"` when it leans forward."""
    order = np.argsort(-np.abs(direction))
    kept = [axis for n, axis in enumerate(order[:2]) if n == 0 or abs(direction[axis]) > OBLIQUE_LETTER]
    return "".join(_LETTERS[axis][int(direction[axis] > 0)] for axis in kept)


def grey_window(images: np.ndarray) -> tuple[float, float]:
    """Display range: `WINDOW_PERCENTILES` over the middle of images (..., rows, columns), background left out. Fat
    under the skin next to the coil is several times brighter than the spine in the middle and would leave it dark."""
    rows, columns = images.shape[-2:]
    middle = images[..., rows // 5 : rows - rows // 5, columns // 5 : columns - columns // 5]
    values = middle[np.isfinite(middle)]
    values = values[values > values.min()] if values.size else values
    if values.size == 0:
        return 0.0, 1.0
    bottom, top = np.percentile(values, WINDOW_PERCENTILES)
    return float(bottom), float(max(top, bottom + 1e-6))


def justified_panels(
    rows: Sequence[Sequence[float]],
    *,
    width: float = 9.0,
    left: float = 0.08,
    header: float = 0.34,
    gap: float = 0.05,
    largest: float = 6.0,
    footer: float = 0.06,
) -> tuple[Figure, list[list[Axes]]]:
    """A figure whose rows of panels each fill its width, as in a picture gallery; `rows` hold widths over heights.

    In inches: the figure's width, space for row names, titles and between panels, a row's greatest height, space below.
    """
    heights = [min(largest, (width - left - 0.08 - gap * (len(row) - 1)) / sum(row)) for row in rows]
    y = sum(heights) + gap * (len(rows) - 1) + footer
    figure, axes = new_figure(width, y + header), []
    for row, height in zip(rows, heights, strict=True):
        starts = left + height * np.cumsum([0.0, *row[:-1]]) + gap * np.arange(len(row))
        panels = zip(starts, row, strict=True)
        axes.append([add_panel(figure, x, y - height, ratio * height, height) for x, ratio in panels])
        y -= height + gap
    return figure, axes


def draw_plane(
    axes: Axes,
    plane: ImagePlane,
    *,
    window: tuple[float, float] | None = None,
    caption: str = "",
    caption_color: str | None = None,
    scale_mm: float | None = None,
    letters: bool = True,
    fontsize: float = 7.5,
) -> None:
    """Draw a plane in mm with its orientation letters, an optional caption and a scale bar of `scale_mm`."""
    extent = plane.extent
    low, high = window or grey_window(plane.image)
    axes.imshow(plane.image, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="bicubic", aspect="equal")
    if plane.covered is not None and not plane.covered.all():
        axes.imshow(_hatched(plane.covered), extent=extent, interpolation="nearest", aspect="equal")
    axes.set(xlim=extent[:2], ylim=extent[2:])
    blank(axes)
    for edge, letter in plane.letters().items() if letters else ():
        x, y = EDGES[edge]
        align = {"ha": edge if y == 0.5 else "center", "va": edge if x == 0.5 else "center"}
        write_on(axes, 0.02 + 0.96 * x, 0.985 - 0.97 * y, letter, color="#b8c4cf", fontsize=fontsize, **align)
    if caption:
        look = {"color": caption_color or "white", "fontsize": fontsize, "fontweight": "bold"}
        write_on(axes, 0.025, 0.985, caption, ha="left", va="top", **look)
    if scale_mm:
        height, width = plane.size
        x, y = width * 0.965 - plane.spacing[1] / 2, height * 0.965
        axes.plot([x - scale_mm, x], [y, y], color="white", lw=2, solid_capstyle="butt", path_effects=outline(3))
        look = {"transform": axes.transData, "fontsize": fontsize, "ha": "center", "va": "bottom"}
        write_on(axes, x - scale_mm / 2, y - height * 0.012, length_name(scale_mm), **look)


def draw_heat(axes: Axes, plane: ImagePlane, values: np.ndarray) -> None:
    """Tint a panel on which `plane` is drawn: low values of a map of 0 to 1, of the plane's shape, stay grey."""
    warm = np.clip((np.clip(np.asarray(values, dtype=np.float64), 0, 1) - MIN_HEAT) / (1 - MIN_HEAT), 0, 1)
    rgba = mpl.colormaps[HEAT](0.25 + 0.7 * warm)
    rgba[..., 3] = 0.6 * np.sqrt(warm)
    axes.imshow(rgba, extent=plane.extent, interpolation="bilinear", aspect="equal")


def length_name(length: float) -> str:
    """`"50 mm"`, `"10 cm"`: what stands at a scale bar of that many mm."""
    return f"{length:g} mm" if length < 100 else f"{length / 10:g} cm"


def blank(axes: Axes) -> None:
    """Take ticks and frame away and paint the panel black."""
    axes.set(xticks=[], yticks=[], facecolor="black")
    axes.spines[:].set_visible(False)


def draw_absent(axes: Axes, text: str) -> None:
    """A panel for what is not there: hatched, with the reason."""
    blank(axes)
    axes.imshow(_hatched(np.zeros((90, 90), dtype=bool)), extent=(0, 1, 0, 1), aspect="auto", interpolation="nearest")
    write_on(axes, 0.5, 0.5, text, ha="center", va="center", color="#e6edf3", fontsize=8)


def _hatched(covered: np.ndarray) -> np.ndarray:
    """RGBA (rows, columns, 4): diagonal stripes where not covered, transparent elsewhere; drawn 4x finer."""
    absent = ~np.kron(covered, np.ones((4, 4), dtype=bool))
    i, j = np.indices(absent.shape)
    stripe = ((i + j) // max(4, min(absent.shape) // 32)) % 2
    return np.array([to_rgba("#39424e"), to_rgba("#262d37"), (0, 0, 0, 0)])[np.where(absent, stripe, 2)]
