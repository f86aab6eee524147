"""Boxes that follow their stack: the same values and the same coverage as sampling point by point."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest

from lumbar_utils.crops import sampling
from lumbar_utils.crops.sampling import coverage, sample_box
from lumbar_utils.geometry import OrientedGrid, StackGeometry, sample_stack

RNG = np.random.default_rng(0)
ROW, COLUMN = np.array([0.96, 0.28, 0.0]), np.array([0.0, 0.0, -1.0])
NORMAL = np.cross(ROW, COLUMN)


def stack(offsets, shift=0.0, shape=(60, 50), spacing=(0.8, 0.9)) -> tuple[np.ndarray, StackGeometry]:
    """Smooth images of random waves at `offsets` mm, each slice shifted down by `shift` mm against the last."""
    offsets = np.asarray(offsets, dtype=float)
    positions = offsets[:, None] * NORMAL + shift * np.arange(len(offsets))[:, None] * COLUMN + [5.0, -20.0, 30.0]
    down, across = np.mgrid[: shape[0], : shape[1]]
    pixels = [np.sin(down / 5 + k) + np.cos(across / 4 - k) + 0.3 * RNG.normal(size=shape) for k in range(len(offsets))]
    return np.float32(pixels) * 100, StackGeometry(positions, ROW, COLUMN, spacing, shape)


def box(geometry: StackGeometry, order=(0, 1, 2), signs=(1, 1, 1), move=(0.0, 0.0, 0.0), shape=(8, 20, 18), size=30.0):
    own = np.stack([geometry.normal, geometry.column_cosine, geometry.row_cosine])
    axes = own[list(order)] * np.array(signs)[:, None]
    return OrientedGrid(geometry.center + np.asarray(move), axes, (size, size, 0.9 * size), shape)


def pointwise(pixels, geometry, grid):
    return sample_stack(pixels, geometry, grid.points(), resolution=float(min(grid.spacing[1:])))


def assert_same(pixels, geometry, grid):
    values, covered = sample_box(pixels, geometry, grid)
    expected, expected_covered = pointwise(pixels, geometry, grid)
    assert values.shape == covered.shape == grid.shape and values.dtype == np.float32
    np.testing.assert_array_equal(covered, expected_covered)
    np.testing.assert_allclose(values, expected, atol=2e-3)  # of 200
    return covered


@pytest.fixture
def quick(monkeypatch):
    """Fails when a box is sampled point by point."""

    def never(*_, **__):
        raise AssertionError("sampled point by point")

    monkeypatch.setattr(sampling, "sample_stack", never)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_any_turn_and_mirroring_of_the_stacks_axes(order, quick):
    pixels, geometry = stack(np.arange(9) * 4.0)
    for signs in product((1, -1), repeat=3):
        assert assert_same(pixels, geometry, box(geometry, order, signs)).all()


@pytest.mark.parametrize("size", [10.0, 30.0, 90.0])
@pytest.mark.parametrize("move", [(0, 0, 0), (20, 0, 0), (0, 25, 0), (-8, 9, 21), (0, 0, -300)])
def test_boxes_that_leave_the_scan_and_any_resolution(move, size, quick):
    pixels, geometry = stack([0, 4, 8, 13, 17, 21])
    covered = assert_same(pixels, geometry, box(geometry, move=move, size=size))
    far = move == (0, 0, -300) or (move == (0, 25, 0) and size == 10.0)
    assert covered.any() != far


def test_gaps_uneven_spacing_and_a_single_slice(quick):
    # No plane of samples lies exactly where a gap begins: there the last bit decides.
    for offsets, planes in (([0, 3, 6, 30, 33, 36], 24), ([0, 1.1, 9, 10.5], 24), ([4], 25)):
        pixels, geometry = stack(offsets)
        covered = assert_same(pixels, geometry, box(geometry, shape=(planes, 20, 18)))
        assert covered.any() and not covered.all()


def test_slices_shifted_in_plane_and_oblique_boxes_are_sampled_point_by_point():
    pixels, geometry = stack(np.arange(9) * 4.0, shift=1.5)
    assert_same(pixels, geometry, box(geometry))
    pixels, geometry = stack(np.arange(9) * 4.0)
    patient = OrientedGrid(geometry.center, np.eye(3), (20.0, 20.0, 20.0), (5, 6, 7))
    for found, expected in zip(
        sample_box(pixels, geometry, patient), pointwise(pixels, geometry, patient), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_a_broken_pixel_stays_where_it_is():
    pixels, geometry = stack(np.arange(9) * 4.0)
    pixels[4, 30, 25] = np.nan
    values, _ = sample_box(pixels, geometry, box(geometry))
    assert 0 < np.isnan(values).mean() < 0.2


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_coverage_of_many_boxes_is_that_of_each_alone(shift):
    """In a stack with a gap, with and without slices that are shifted in plane."""
    _, geometry = stack([0, 3, 6, 30, 33, 36], shift=shift)
    boxes = [box(geometry, move=move) for move in ((0, 0, 0), (9, 0, 0), (0, -17, 12), (-15, 9, 21), (0, 0, -300))]
    expected = [
        sampling.voxels_covered(geometry, geometry.world_to_voxel(replace(b, shape=sampling.COARSE).points())).mean()
        for b in boxes
    ]
    found = coverage(geometry, np.stack([b.center for b in boxes]), boxes[0].axes, boxes[0].extent)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found[-1] == 0 and 0.1 < found[0] < 0.9
