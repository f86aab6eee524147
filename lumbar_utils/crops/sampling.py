"""Values in a box that follows its stack: those of `geometry.sample_stack`, in a fraction of the time.

When the axes of a box are the stack's own, the slice, the row and the column of a sample each depend on one index of
the box alone. Smoothing and interpolation together are then one small matrix for the rows, one for the columns and one
for the slices, instead of a search for each of 100,000 samples.
"""

from __future__ import annotations

import numpy as np

from ..geometry import SMOOTHING_PER_OCTAVE, OrientedGrid, StackGeometry, sample_stack, voxels_covered

ALIGNED = 1e-9
"""Largest deviation of a cosine from 0 or 1 at which a box still follows the stack."""
SAME_PIXEL = 1e-3
"""Pixels by which the slices that a box needs may be shifted against each other; positions are rounded to 1e-6 mm or
so. Stacks with a shift are left to `sample_stack`."""
TRUNCATE = 3.0
"""Standard deviations at which the low-pass ends, as in `sample_stack`."""


def sample_box(pixels: np.ndarray, geometry: StackGeometry, grid: OrientedGrid) -> tuple[np.ndarray, np.ndarray]:
    """Trilinear values of a stack in a box, and which samples the scan covers.

    Where pixels are finer than the box's samples are in plane, the images are first smoothed so that nothing aliases.

    Parameters
    ----------
    pixels : ndarray, shape (n, rows, columns)
        The stack's images, in the order of `geometry.positions`.
    geometry : StackGeometry
    grid : OrientedGrid
        Its first axis is through-plane. Of any orientation; one that follows the stack is quick.

    Returns
    -------
    values : ndarray of float32, shape `grid.shape`
        0 where not covered.
    covered : ndarray of bool, shape `grid.shape`
    """
    resolution = float(min(grid.spacing[1:]))
    coordinates = _coordinates(geometry, grid)
    if coordinates is None:
        return sample_stack(pixels, geometry, grid.points(), resolution=resolution)
    order, (k, row, column) = coordinates
    covered_along = [_covered(geometry, axis, c) for axis, c in enumerate((k, row, column))]
    covered = covered_along[0][:, None, None] & covered_along[1][:, None] & covered_along[2]
    values = None
    if covered.any():
        ratio = np.maximum(resolution / np.asarray(geometry.spacing), 1.0)
        sigma = (0.0, *(SMOOTHING_PER_OCTAVE * np.sqrt(ratio**2 - 1)))
        wanted = [c[along] for c, along in zip((k, row, column), covered_along, strict=True)]
        parts = [_weights(c, n, s) for c, n, s in zip(wanted, pixels.shape, sigma, strict=True)]
        block = np.asarray(pixels[tuple(slice(low, high) for low, high, _ in parts)], dtype=np.float32)
        if not np.isfinite(block).all():  # a matrix would spread one such pixel over rows and columns
            return sample_stack(pixels, geometry, grid.points(), resolution=resolution)
        through, down, across = (matrix for _, _, matrix in parts)
        in_plane = down @ block @ across.T
        values = np.tensordot(through, in_plane, axes=1)
    if values is None or values.shape != covered.shape:  # a part of the box lies outside
        inside, part = np.ix_(*(np.flatnonzero(along) for along in covered_along)), values
        values = np.zeros(covered.shape, dtype=np.float32)
        if part is not None:
            values[inside] = part
    # From slice, row, column to the order of the box's own axes.
    back = np.argsort(order)
    return values.transpose(back), covered.transpose(back)


def _coordinates(
    geometry: StackGeometry, grid: OrientedGrid
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]] | None:
    """Which axis of the box runs along slices, rows and columns, and the fractional coordinates of its samples there.

    None when the box does not follow the stack, or when row and column depend on the slice.
    """
    own = np.stack([geometry.normal, geometry.column_cosine, geometry.row_cosine])
    cosines = own @ grid.axes.T
    order = np.abs(cosines).argmax(axis=1)
    ideal = np.zeros((3, 3))
    ideal[np.arange(3), order] = np.sign(cosines[np.arange(3), order])
    if sorted(order) != [0, 1, 2] or np.abs(cosines - ideal).max() > ALIGNED:
        return None
    first = geometry.world_to_voxel(grid.voxel_to_world(np.zeros(3)))
    lines = []
    for axis, along in enumerate(order):
        voxels = np.zeros((grid.shape[along], 3))
        voxels[:, along] = np.arange(grid.shape[along])
        lines.append(geometry.world_to_voxel(grid.voxel_to_world(voxels)))
        others = [other for other in range(3) if other != axis]
        if np.abs(lines[-1][:, others] - first[others]).max() > SAME_PIXEL:
            return None
    return order, tuple(line[:, axis] for axis, line in enumerate(lines))


def _covered(geometry: StackGeometry, axis: int, coordinates: np.ndarray) -> np.ndarray:
    """Which coordinates along one axis of the stack the scan covers."""
    voxels = np.zeros((len(coordinates), 3))
    voxels[:, axis] = coordinates
    return voxels_covered(geometry, voxels)


def _weights(coordinates: np.ndarray, n: int, sigma: float) -> tuple[int, int, np.ndarray]:
    """Low-pass and linear interpolation along one axis of n pixels: the pixels needed, and a weight for each of them.

    Returns
    -------
    low, high : int
        Pixels low to high - 1 are needed.
    matrix : ndarray of float32, shape (len(coordinates), high - low)
        Beyond the ends the last pixel goes on.
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
    return low, high, matrix.astype(np.float32)
