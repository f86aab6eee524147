"""Values in a box that follows its stack: those of `geometry.sample_stack`, in a fraction of the time.

When the axes of a box are the stack's own, the slice, the row and the column of a sample each depend on one index of
the box alone. Smoothing and interpolation together are then one small matrix for the rows, one for the columns and one
for the slices, instead of a search for each of 100,000 samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..geometry import SMOOTHING_PER_OCTAVE, OrientedGrid, StackGeometry, sample_stack, voxels_covered

SAME_PIXEL = 1e-3
"""Pixels by which a line of samples along one axis of a box may leave its line in the stack; positions are rounded to
1e-6 mm or so. Boxes that are turned further and slices that are shifted further are left to `sample_stack`."""
TRUNCATE = 3.0
"""Standard deviations at which the low-pass ends, as in `sample_stack`."""
BAND = 16
"""Rows of a matrix of weights that are multiplied at a time. Its weights lie near the diagonal: the wider the band,
the more zeros are multiplied, the narrower, the more calls; 8 to 32 take about as long."""
COARSE = (8, 6, 6)
"""Samples of a box from which `coverage` is estimated."""


def sample_box(pixels: np.ndarray, geometry: StackGeometry, grid: OrientedGrid) -> tuple[np.ndarray, np.ndarray]:
    """Values (float32, 0 where not covered) of a stack in a box, and which samples it covers (bool), as `sample_stack`.

    The first axis of the box is through-plane. It may have any orientation; one that follows the stack is quick. Where
    pixels are finer than the samples are in plane, the images are first smoothed so that nothing aliases.
    """
    resolution = float(min(grid.spacing[1:]))
    lines = _lines(geometry, grid.center, grid.axes, grid.extent, grid.shape)
    if lines is None:
        return sample_stack(pixels, geometry, grid.points(), resolution=resolution)
    order, coordinates, covered_along = lines
    covered = covered_along[0][:, None, None] & covered_along[1][:, None] & covered_along[2]
    if not covered.any():
        return np.zeros(grid.shape, dtype=np.float32), covered
    ratio = np.maximum(resolution / np.asarray(geometry.spacing), 1.0)
    sigma = (0.0, *(SMOOTHING_PER_OCTAVE * np.sqrt(ratio**2 - 1)))
    along = [coordinates[i] for i in np.argsort(order)]  # slices, rows, columns of the stack
    needed, (through, down, across) = zip(*map(_weights, along, pixels.shape, sigma), strict=True)
    block = np.asarray(pixels[needed], dtype=np.float32)
    with np.errstate(invalid="ignore"):
        in_plane = _multiply(across, _multiply(down, block).swapaxes(1, 2)).swapaxes(1, 2)
    if not np.isfinite(in_plane).all():  # a matrix spreads one broken pixel over rows and columns
        return sample_stack(pixels, geometry, grid.points(), resolution=resolution)
    values = np.tensordot(through, in_plane, axes=1).transpose(order)
    values *= covered
    return values, covered


def coverage(
    geometry: StackGeometry, centers: np.ndarray, axes: np.ndarray, extent: tuple[float, float, float]
) -> np.ndarray:
    """Fraction (n,) of boxes of one size and orientation at centers (n, 3) that a scan covers, of `COARSE` samples."""
    lines = _lines(geometry, centers, axes, extent, COARSE)
    if lines is not None:
        return np.prod([along.mean(axis=-1) for along in lines[2]], axis=0)
    boxes = (OrientedGrid(center, axes, extent, COARSE).points() for center in centers)
    return np.array([voxels_covered(geometry, geometry.world_to_voxel(points)).mean() for points in boxes])


def _lines(
    geometry: StackGeometry, centers: np.ndarray, axes: np.ndarray, extent: Sequence[float], shape: Sequence[int]
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]] | None:
    """Where the samples of boxes at `centers` (..., 3) lie along their three axes, each an axis of the stack.

    Returns which axis of the stack (slice, row, column) each axis of the boxes runs along, and, of each, the samples'
    fractional indices on it (..., samples) and which of them the scan covers. None when the boxes do not follow the
    stack, or when row and column depend on the slice.
    """
    own = np.stack([geometry.normal, geometry.column_cosine, geometry.row_cosine])
    order = np.abs(own @ axes.T).argmax(axis=0)
    if sorted(order) != [0, 1, 2]:
        return None
    relative = [((np.arange(n) + 0.5) / n - 0.5) * e for n, e in zip(shape, extent, strict=True)]
    steps = np.concatenate([r[:, None] * axis for r, axis in zip(relative, axes, strict=True)])
    middle = geometry.world_to_voxel(centers)[..., None, :]
    voxels = geometry.world_to_voxel(np.asarray(centers)[..., None, :] + steps)
    own_axis = np.arange(3) == np.repeat(order, shape)[:, None]
    if np.abs(np.where(own_axis, 0.0, voxels - middle)).max() > SAME_PIXEL:
        return None
    voxels = np.where(own_axis, voxels, 0.0)  # the other two are 0, which any stack covers
    ends = np.cumsum(shape)[:2]
    covered = voxels_covered(geometry, voxels)
    return order, np.split(voxels.sum(axis=-1), ends, axis=-1), np.split(covered, ends, axis=-1)


def _multiply(matrix: np.ndarray, images: np.ndarray) -> np.ndarray:
    """`matrix @ images`, shapes (m, k) and (n, k, l), for a matrix of `_weights`, which is 0 far from its diagonal."""
    product = np.empty((len(images), len(matrix), images.shape[2]), dtype=np.float32)
    for start in range(0, len(matrix), BAND):
        band = matrix[start : start + BAND]
        used = np.flatnonzero(band.any(axis=0))
        part = slice(used[0], used[-1] + 1)
        np.matmul(band[:, part], images[:, part], out=product[:, start : start + BAND])
    return product


def _weights(coordinates: np.ndarray, n: int, sigma: float) -> tuple[slice, np.ndarray]:
    """Low-pass and linear interpolation along one axis of n pixels: the pixels needed, and each one's weights.

    The weights are float32 (len(coordinates), pixels needed). Beyond the ends the last pixel goes on.
    """
    radius = int(TRUNCATE * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / max(sigma, 1e-12)) ** 2)
    kernel /= kernel.sum()
    place = np.clip(coordinates, 0, n - 1)
    lower = np.floor(place).astype(int)
    share = place - lower
    taps = np.concatenate([[0.0], kernel]) * share[:, None] + np.concatenate([kernel, [0.0]]) * (1 - share)[:, None]
    index = np.clip(lower[:, None] + np.arange(-radius, radius + 2), 0, n - 1)
    low, high = int(index.min()), int(index.max()) + 1
    matrix = np.zeros((len(place), high - low))
    np.add.at(matrix, (np.arange(len(place))[:, None], index - low), taps)
    return slice(low, high), matrix.astype(np.float32)
