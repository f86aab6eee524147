"""Slices, stacks and sampling grids in DICOM patient coordinates. Pure numpy, no files.

One frame crosses between series: LPS (x to the patient's left, y to the back, z to the head), millimetres,
float64. Pixel coordinates exist only together with the slice they belong to; they count from the centre of
the first pixel, `x` along a row (column index), `y` down a column (row index).

Reference: DICOM PS3.3 C.7.6.2.1.1, Image Position (Patient) and Image Orientation (Patient).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy import ndimage, optimize

from .errors import GeometryError

LEFT = np.array([1.0, 0.0, 0.0])
ANTERIOR, POSTERIOR = np.array([0.0, -1.0, 0.0]), np.array([0.0, 1.0, 0.0])
INFERIOR, SUPERIOR = np.array([0.0, 0.0, -1.0]), np.array([0.0, 0.0, 1.0])

# No threshold is a number that scans are made with (1 degree, 0.1 mm, half a field of view, twice the spacing): there
# the last bit would decide.
PARALLEL_TOLERANCE_DEGREES = 0.95
"""Slices whose normals differ by less belong to one stack; angulated lumbar blocks differ by several degrees."""
DUPLICATE_TOLERANCE_MM = 0.15
"""Two slices of a stack closer than this show the same place; real neighbours are at least 0.5 mm apart."""
MAX_SHIFT = 0.45
"""Fraction of the field of view by which slices of one stack may be shifted in plane against the first."""
REACH = 0.75
"""Slice spacings up to which a slice shows what lies beside it: more than half a spacing, which uneven spacing needs,
and less than a whole one, at which a lost slice lies."""
WIDEST_SPACING_MM = 7.0
"""Slices of one lumbar scan are at most 6.6 mm apart; larger steps lead to another block, or over lost slices."""
ON_BORDER = 1e-6
"""Voxels by which rounding may move a point over the border of what is covered."""
SMOOTHING_PER_OCTAVE = 0.4
"""Standard deviation, in target samples, of the low-pass that precedes sampling coarser than the pixels."""
UNIT_TOLERANCE = 1e-2
"""Largest error of length or right angle of direction cosines that is corrected; scanners write 6 digits, some 3."""


@dataclass(frozen=True)
class SliceGeometry:
    """Where one image lies in the patient; raises `GeometryError` for numbers that do not describe one."""

    position: np.ndarray  # LPS mm of the centre of the first pixel (ImagePositionPatient)
    row_cosine: np.ndarray  # along which the column index grows (ImageOrientationPatient, first three numbers)
    column_cosine: np.ndarray  # along which the row index grows
    spacing: tuple[float, float]  # mm between rows and between columns (PixelSpacing)
    shape: tuple[int, int]  # rows and columns

    def __post_init__(self):
        names = ("position", "row_cosine", "column_cosine")
        position, row, column = (_vector(getattr(self, name), name) for name in names)
        if np.abs([row @ row - 1, column @ column - 1, row @ column]).max() > UNIT_TOLERANCE:
            raise GeometryError(f"direction cosines must be perpendicular unit vectors, got {row} and {column}")
        row = row / np.linalg.norm(row)
        column = column - (column @ row) * row
        column = column / np.linalg.norm(column)
        spacing, shape = tuple(float(s) for s in self.spacing), tuple(int(n) for n in self.shape)
        if len(spacing) != 2 or not all(np.isfinite(s) and s > 0 for s in spacing):
            raise GeometryError(f"pixel spacing must be two positive numbers, got {self.spacing}")
        if len(shape) != 2 or min(shape) < 1:
            raise GeometryError(f"shape must be two positive integers (rows, columns), got {self.shape}")
        for name, value in zip((*names, "spacing", "shape"), (position, row, column, spacing, shape), strict=True):
            object.__setattr__(self, name, value)

    @cached_property
    def normal(self) -> np.ndarray:
        """Unit normal, row direction cross column direction, shape (3,)."""
        (a, b, c), (d, e, f) = self.row_cosine.tolist(), self.column_cosine.tolist()
        return np.array([b * f - c * e, c * d - a * f, a * e - b * d])  # np.cross takes ten times as long

    def pixel_to_world(self, xy: np.ndarray) -> np.ndarray:
        """Pixel coordinates (..., 2) as (x, y) to LPS mm (..., 3)."""
        xy = _points(xy, 2, "pixel coordinates")
        per_column, per_row = self.spacing[1] * self.row_cosine, self.spacing[0] * self.column_cosine
        return self.position + xy[..., :1] * per_column + xy[..., 1:] * per_row

    def world_to_pixel(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """LPS mm (..., 3) to pixel coordinates (..., 2) as (x, y) and the signed distance (...) in mm."""
        offset = _points(points, 3, "points") - self.position
        x, y = offset @ self.row_cosine / self.spacing[1], offset @ self.column_cosine / self.spacing[0]
        return np.stack([x, y], axis=-1), offset @ self.normal


@dataclass(frozen=True)
class StackGeometry:
    """Parallel slices of one matrix, sorted along their common normal; the spacing may be uneven."""

    positions: np.ndarray  # (n, 3), LPS mm of every slice's first pixel; the rest as in `SliceGeometry`
    row_cosine: np.ndarray
    column_cosine: np.ndarray
    spacing: tuple[float, float]
    shape: tuple[int, int]
    _plane: SliceGeometry = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        positions = _points(self.positions, 3, "positions")
        if positions.ndim != 2 or len(positions) == 0:
            raise GeometryError(f"positions must have shape (n, 3) with n >= 1, got {positions.shape}")
        plane = SliceGeometry(positions[0], self.row_cosine, self.column_cosine, self.spacing, self.shape)
        if np.any(np.diff(positions @ plane.normal) <= 0):
            raise GeometryError("slices must be sorted along their normal without duplicates")
        object.__setattr__(self, "positions", positions)
        object.__setattr__(self, "_plane", plane)
        for name in ("row_cosine", "column_cosine", "spacing", "shape"):
            object.__setattr__(self, name, getattr(plane, name))

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def normal(self) -> np.ndarray:
        """Unit normal, shape (3,); slice index grows along it."""
        return self._plane.normal

    @cached_property
    def offsets(self) -> np.ndarray:
        """mm of every slice along the normal, from the frame's origin, ascending, shape (n,)."""
        return self.positions @ self.normal

    @cached_property
    def slice_spacing(self) -> float:
        """Usual distance of neighbouring slices in mm; nan for a single slice.

        The median of all distances, or, of each slice, of the larger one beside it: in a series that is stored twice,
        a little apart, every other distance is small.
        """
        if len(self) == 1:
            return float("nan")
        steps = np.diff(self.offsets)
        larger = np.maximum(np.append(steps, 0), np.append(0, steps))
        return float(max(np.median(steps), min(np.median(larger), WIDEST_SPACING_MM)))

    @property
    def _step(self) -> float:
        return self.slice_spacing if len(self) > 1 else 1.0

    @cached_property
    def center(self) -> np.ndarray:
        """LPS mm of the middle of the stack, shape (3,)."""
        middle = [(self.shape[1] - 1) / 2, (self.shape[0] - 1) / 2]
        return (self[0].pixel_to_world(middle) + self[len(self) - 1].pixel_to_world(middle)) / 2

    def __getitem__(self, index: int) -> SliceGeometry:
        """Geometry of one slice."""
        return SliceGeometry(self.positions[index], self.row_cosine, self.column_cosine, self.spacing, self.shape)

    def nearest_slice(self, points: np.ndarray) -> np.ndarray:
        """Index of the slice nearest to each point: LPS mm (..., 3) to int (...)."""
        distance = _points(points, 3, "points")[..., None, :] @ self.normal - self.offsets
        return np.abs(distance).argmin(axis=-1)

    def world_to_voxel(self, points: np.ndarray) -> np.ndarray:
        """LPS mm (..., 3) to fractional (slice, row, column) (..., 3).

        The slice coordinate is linear between neighbouring slices, however far apart they are, and goes on beyond the
        ends with `slice_spacing`. In-plane shifts between slices are followed.
        """
        points = _points(points, 3, "points")
        along, offsets = points @ self.normal, self.offsets
        beyond = np.minimum(along - offsets[0], 0) + np.maximum(along - offsets[-1], 0)
        k = np.interp(along, offsets, np.arange(len(self))) + beyond / self._step
        origin = self._origin_at(k)
        row = ((points @ self.column_cosine) - origin[..., 1]) / self.spacing[0]
        column = ((points @ self.row_cosine) - origin[..., 0]) / self.spacing[1]
        return np.stack([k, row, column], axis=-1)

    def voxel_to_world(self, voxels: np.ndarray) -> np.ndarray:
        """The inverse of `world_to_voxel`: fractional (slice, row, column) (..., 3) to LPS mm (..., 3)."""
        voxels = _points(voxels, 3, "voxels")
        k, last = voxels[..., 0], len(self) - 1
        along = np.interp(k, np.arange(len(self)), self.offsets)
        along += self._step * (np.minimum(k, 0) + np.maximum(k - last, 0))
        in_plane = self._origin_at(k) + voxels[..., :0:-1] * self.spacing[::-1]
        own = np.stack([self.row_cosine, self.column_cosine, self.normal])
        return np.concatenate([in_plane, along[..., None]], axis=-1) @ own

    def _origin_at(self, k: np.ndarray) -> np.ndarray:
        """In-plane coordinates (across, down) in mm of the first pixel at fractional slice `k`."""
        index, directions = np.arange(len(self)), (self.row_cosine, self.column_cosine)
        return np.stack([np.interp(k, index, self.positions @ d) for d in directions], axis=-1)


@dataclass(frozen=True)
class OrientedGrid:
    """A box of sample points with its own axes; the samples sit in the middle of `shape` equal cells."""

    center: np.ndarray  # LPS mm of the middle of the box
    axes: np.ndarray  # (3, 3): row i is the unit direction of array axis i; perpendicular, of either hand
    extent: tuple[float, float, float]  # mm of the whole box along each array axis
    shape: tuple[int, int, int]  # samples along each array axis

    def __post_init__(self):
        center = _vector(self.center, "center")
        axes = np.asarray(self.axes, dtype=np.float64)
        if axes.shape != (3, 3) or not np.abs(axes @ axes.T - np.eye(3)).max() <= 1e-5:  # nan, too
            raise GeometryError(f"axes must be three perpendicular unit rows, got {axes.tolist()}")
        extent, shape = tuple(float(e) for e in self.extent), tuple(int(n) for n in self.shape)
        if len(extent) != 3 or min(extent) <= 0 or len(shape) != 3 or min(shape) < 1:
            raise GeometryError(f"extent and shape must be three positive numbers each, got {extent} and {shape}")
        for name, value in zip(("center", "axes", "extent", "shape"), (center, axes, extent, shape), strict=True):
            object.__setattr__(self, name, value)

    @property
    def spacing(self) -> np.ndarray:
        """mm between samples along each array axis, shape (3,)."""
        return np.asarray(self.extent) / np.asarray(self.shape)

    def points(self) -> np.ndarray:
        """LPS mm of every sample, shape (*shape, 3)."""
        steps = [
            ((np.arange(n) + 0.5) / n - 0.5)[:, None] * (e * axis)
            for n, e, axis in zip(self.shape, self.extent, self.axes, strict=True)
        ]
        return self.center + steps[0][:, None, None] + steps[1][None, :, None] + steps[2][None, None, :]

    def world_to_voxel(self, points: np.ndarray) -> np.ndarray:
        """LPS mm (..., 3) to fractional array indices (..., 3)."""
        offset = (_points(points, 3, "points") - self.center) @ self.axes.T
        return offset / self.spacing + (np.asarray(self.shape) - 1) / 2

    def voxel_to_world(self, voxels: np.ndarray) -> np.ndarray:
        """Fractional array indices (..., 3) to LPS mm (..., 3)."""
        offset = (_points(voxels, 3, "voxels") - (np.asarray(self.shape) - 1) / 2) * self.spacing
        return self.center + offset @ self.axes


def sample_stack(
    pixels: np.ndarray, geometry: StackGeometry, points: np.ndarray, *, resolution: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Trilinear values of a stack (n, rows, columns) at points (..., 3) of the patient, LPS mm, and which it covers.

    Where pixels are finer than `resolution`, the distance of the points in mm, the images are first smoothed in plane
    so that nothing aliases; default: no smoothing. Only the part of the stack round the points is touched, so that
    small boxes from large stacks are cheap. Returns float32 (...), 0 where not covered, and bool (...): a point is not
    covered further than `REACH` from both slices beside it, or further than half a spacing beyond the ends.
    """
    if pixels.shape != (len(geometry), *geometry.shape):
        raise GeometryError(f"pixels must have shape {(len(geometry), *geometry.shape)}, got {pixels.shape}")
    voxels = geometry.world_to_voxel(points)
    covered = voxels_covered(geometry, voxels)
    values, sigma = np.zeros(covered.shape, dtype=np.float32), np.zeros(3)
    if not covered.any():
        return values, covered
    inside = voxels[covered]
    if resolution is not None:
        ratio = np.maximum(resolution / np.asarray(geometry.spacing), 1.0)
        sigma[1:] = SMOOTHING_PER_OCTAVE * np.sqrt(ratio**2 - 1)
    margin = np.ceil(3 * sigma).astype(int) + 1
    last = np.array(pixels.shape) - 1
    low = np.clip(np.floor(inside.min(axis=0)).astype(int) - margin, 0, last)
    high = np.clip(np.ceil(inside.max(axis=0)).astype(int) + margin, 0, last) + 1
    block = np.asarray(pixels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], dtype=np.float32)
    if sigma.any():
        block = ndimage.gaussian_filter(block, sigma, mode="nearest", truncate=3.0)
    values[covered] = ndimage.map_coordinates(block, (inside - low).T, order=1, mode="nearest", prefilter=False)
    return values, covered


def voxels_covered(geometry: StackGeometry, voxels: np.ndarray) -> np.ndarray:
    """Which fractional (slice, row, column) coordinates (..., 3) the scan covers; see `sample_stack`."""
    k, last = voxels[..., 0], len(geometry) - 1
    covered = np.ones(k.shape, dtype=bool)
    for axis, n in enumerate((len(geometry), *geometry.shape)):
        covered &= np.abs(voxels[..., axis] - (n - 1) / 2) <= n / 2 + ON_BORDER
    if last > 0:
        gaps = np.diff(geometry.offsets)[np.clip(np.floor(k).astype(int), 0, last - 1)]
        from_slice = np.abs(k - np.rint(k)) * gaps
        covered &= (from_slice <= (REACH + ON_BORDER) * geometry.slice_spacing) | (k <= 0) | (k >= last)
    return covered


def anatomical_axes(geometry: StackGeometry, axes: Sequence[np.ndarray]) -> np.ndarray:
    """The stack's own directions (3, 3), permuted and signed to lie nearest to the three wanted ones.

    Row `i` is the stack's normal, column or row cosine, with either sign, for the array axis that is to run along
    `axes[i]`, as in `(LEFT, INFERIOR, POSTERIOR)`.
    """
    own = np.stack([geometry.normal, geometry.column_cosine, geometry.row_cosine])
    cosines = np.stack(list(axes)) @ own.T
    order = optimize.linear_sum_assignment(-np.abs(cosines))[1]
    return own[order] * np.where(cosines[range(3), order] >= 0, 1.0, -1.0)[:, None]


def _vector(value, name: str) -> np.ndarray:
    vector = np.array(value, dtype=np.float64)
    if vector.shape != (3,) or not np.all(np.isfinite(vector)):
        raise GeometryError(f"{name} must be three finite numbers, got {np.asarray(value).tolist()}")
    vector.setflags(write=False)
    return vector


def _points(value, width: int, name: str) -> np.ndarray:
    points = np.asarray(value, dtype=np.float64)
    if points.ndim < 1 or points.shape[-1] != width:
        raise GeometryError(f"{name} must have shape (..., {width}), got {points.shape}")
    return points
