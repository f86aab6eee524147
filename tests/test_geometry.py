"""Slices, stacks and grids: points planted in the patient must come back to the tenth of a micrometre."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lumbar_utils.dicom.parts import group_into_stacks
from lumbar_utils.errors import GeometryError
from lumbar_utils.geometry import (
    INFERIOR,
    LEFT,
    POSTERIOR,
    OrientedGrid,
    SliceGeometry,
    StackGeometry,
    anatomical_axes,
    sample_stack,
)


def oblique_slices(n=7, *, seed=0, step=4.4, shape=(40, 56), spacing=(0.7, 0.5)):
    """Parallel slices in a random orientation, with uneven spacing and in-plane shifts between slices."""
    rng = np.random.default_rng(seed)
    row, column, normal = Rotation.random(random_state=seed).as_matrix()
    offsets = np.cumsum(rng.uniform(0.6, 1.4, n)) * step
    shifts = rng.uniform(-3, 3, (n, 2))
    return [
        SliceGeometry(o * normal + a * row + b * column + [10, -20, 30], row, column, spacing, shape)
        for o, (a, b) in zip(offsets, shifts, strict=True)
    ]


def stack_of(slices):
    first = slices[0]
    return StackGeometry(
        [s.position for s in slices], first.row_cosine, first.column_cosine, first.spacing, first.shape
    )


def test_pixel_to_world_follows_the_dicom_equation():
    """PS3.3 C.7.6.2.1.1: moving one column goes PixelSpacing[1] along the first three numbers of IOP."""
    geometry = SliceGeometry([1, 2, 3], [0, 1, 0], [0, 0, -1], (0.7, 0.5), (10, 12))
    np.testing.assert_allclose(geometry.pixel_to_world([4, 0]), [1, 2 + 4 * 0.5, 3])
    np.testing.assert_allclose(geometry.pixel_to_world([0, 4]), [1, 2, 3 - 4 * 0.7])


@pytest.mark.parametrize("seed", range(5))
def test_slice_round_trip_in_any_orientation(seed):
    geometry = oblique_slices(1, seed=seed)[0]
    xy = np.random.default_rng(seed).uniform(-5, 60, (50, 2))
    back, distance = geometry.world_to_pixel(geometry.pixel_to_world(xy))
    np.testing.assert_allclose(back, xy, atol=1e-7)
    np.testing.assert_allclose(distance, 0, atol=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_stack_round_trip_with_uneven_and_shifted_slices(seed):
    stack = stack_of(oblique_slices(seed=seed))
    voxels = np.random.default_rng(seed).uniform([-2, -5, -5], [9, 45, 60], (200, 3))
    np.testing.assert_allclose(stack.world_to_voxel(stack.voxel_to_world(voxels)), voxels, atol=1e-7)


def test_stack_agrees_with_its_slices():
    slices = oblique_slices(seed=3)
    stack = stack_of(slices)
    for k, item in enumerate(slices):
        point = item.pixel_to_world([11.25, 20.5])
        np.testing.assert_allclose(stack.world_to_voxel(point), [k, 20.5, 11.25], atol=1e-7)
        assert stack.nearest_slice(point) == k


def test_grouping_finds_angulated_blocks_in_any_order_and_drops_duplicates():
    blocks = [oblique_slices(5, seed=1), oblique_slices(4, seed=2)]
    slices = blocks[0] + blocks[1] + [blocks[0][2]]
    order = np.random.default_rng(0).permutation(len(slices))
    stacks = group_into_stacks([slices[i] for i in order])
    assert [len(s) for s in stacks] == [5, 4]
    for stack, block in zip(stacks, blocks, strict=True):
        positions = np.array([slices[order[i]].position for i in stack])
        np.testing.assert_allclose(positions, [s.position for s in block])


def test_grouping_keeps_matrices_apart():
    slices = oblique_slices(4, seed=1) + oblique_slices(4, seed=1, shape=(32, 32))
    assert [len(s) for s in group_into_stacks(slices)] == [4, 4]


@pytest.mark.parametrize("reverse", [False, True])
def test_sampling_returns_a_planted_linear_field(reverse):
    """Trilinear sampling is exact for a linear field, whatever the obliquity, spacing or direction of the stack."""
    slices = oblique_slices(seed=4)
    if reverse:
        slices = [SliceGeometry(s.position, -s.row_cosine, s.column_cosine, s.spacing, s.shape) for s in slices][::-1]
    stack = stack_of(slices)
    gradient = np.array([0.3, -1.1, 0.7])
    rows, columns = np.mgrid[: stack.shape[0], : stack.shape[1]]
    pixels = np.stack([s.pixel_to_world(np.stack([columns, rows], -1)) @ gradient for s in slices]).astype(np.float32)
    grid = OrientedGrid(stack.center, np.eye(3), (15, 12, 12), (5, 9, 9))
    values, covered = sample_stack(pixels, stack, grid.points())
    assert covered.mean() > 0.5
    np.testing.assert_allclose(values[covered], (grid.points() @ gradient)[covered], atol=0.02)


def test_what_lies_outside_is_not_covered():
    stack = StackGeometry([[0, 0, z] for z in (0, 4, 8, 30, 34)], [1, 0, 0], [0, 1, 0], (1, 1), (20, 20))
    pixels = np.ones((5, 20, 20), dtype=np.float32)
    points = np.array([[5, 5, 6], [5, 5, 20], [5, 5, 40], [5, 5, 35.5], [-3, 5, 6]])
    values, covered = sample_stack(pixels, stack, points)
    assert covered.tolist() == [True, False, False, True, False]
    assert values.tolist() == [1, 0, 0, 1, 0]


def coverage_of(offsets, noise=0.0):
    """Share of a dense box inside of the slices at `offsets` mm that they cover, with rounding errors of a sign."""
    positions = [[0, 0, z + noise * (-1) ** i] for i, z in enumerate(sorted(offsets))]
    stack = StackGeometry(positions, [1, 0, 0], [0, 1, 0], (1, 1), (20, 20))
    low, high = min(offsets), max(offsets)
    grid = OrientedGrid([9.5, 9.5, (low + high) / 2], np.eye(3)[::-1], (high - low, 5, 5), (2000, 1, 1))
    return sample_stack(np.ones((len(stack), 20, 20), np.float32), stack, grid.points())[1].mean()


@pytest.mark.parametrize("step", [3.0, 3.3, 4.4, 6.6])
@pytest.mark.parametrize("lost", [1, 2])
def test_a_lost_slice_costs_its_own_place_whatever_the_last_bit_says(step, lost):
    offsets = np.delete(np.arange(16) * step, range(6, 6 + lost))
    shares = [coverage_of(offsets, noise) for noise in (0.0, 4e-15, -4e-15, 1e-9, -1e-9)]
    assert max(shares) - min(shares) < 0.002
    assert shares[0] == pytest.approx(1 - (lost - 0.5) / 15, abs=0.002)
    assert coverage_of(np.arange(16) * step) == 1


@pytest.mark.parametrize("apart", [0.2, 0.4, 1.0, 1.6, 2.2])
@pytest.mark.parametrize(("copies", "step"), [(2, 4.4), (2, 5.5), (3, 5.0)])
def test_a_series_stored_twice_a_little_apart_covers_what_it_covers(copies, step, apart):
    offsets = (np.arange(15)[:, None] * step + np.arange(copies) * apart).ravel()
    assert coverage_of(offsets) == pytest.approx(1, abs=0.01)


def test_slices_at_exactly_a_tolerance_of_a_round_number_are_grouped_alike():
    for angle, alike in ((0.5, 1), (1.0, 2)):
        turned = [Rotation.from_euler("x", a, degrees=True).as_matrix().T for a in (30, 30 + angle)]
        slices = [SliceGeometry(4 * k * r[2], r[0], r[1], (1, 1), (8, 8)) for r in turned for k in range(4)]
        assert len(group_into_stacks(slices)) == alike
    stations = [
        SliceGeometry([10 * k, 0, 4 * i], [1, 0, 0], [0, 1, 0], (1, 1), (20, 20)) for k in (0, 1) for i in (0, 1)
    ]
    assert len(group_into_stacks(stations)) == 2


def test_sampling_coarser_than_the_pixels_does_not_alias():
    """A fine checkerboard seen at four times its pixel size must look grey."""
    stack = StackGeometry([[0, 0, z] for z in range(3)], [1, 0, 0], [0, 1, 0], (0.5, 0.5), (128, 128))
    pixels = np.broadcast_to(np.indices((128, 128)).sum(0) % 2, (3, 128, 128)).astype(np.float32)
    grid = OrientedGrid([31.75, 31.75, 1], np.eye(3), (40, 40, 1), (20, 20, 1))
    raw, _ = sample_stack(pixels, stack, grid.points() + np.array([0.13, 0.13, 0]))
    smooth, _ = sample_stack(pixels, stack, grid.points() + np.array([0.13, 0.13, 0]), resolution=2.0)
    assert np.abs(smooth - 0.5).max() < 0.02 < np.abs(raw - 0.5).max()


def test_anatomical_axes_do_not_depend_on_how_the_scanner_ran():
    rotation = Rotation.from_euler("xyz", [6, -8, 4], degrees=True).as_matrix()
    x, y, z = rotation.T
    wanted = (LEFT, INFERIOR, POSTERIOR)
    for row, column in ((y, -z), (-y, -z), (y, z), (-y, z)):
        geometry = StackGeometry([[0, 0, 0]], row, column, (1, 1), (8, 8))
        np.testing.assert_allclose(anatomical_axes(geometry, wanted), [x, -z, y], atol=1e-12)


def test_grid_round_trip_and_cell_centres():
    axes = Rotation.random(random_state=8).as_matrix()
    grid = OrientedGrid([5, -4, 300], axes, (30, 70, 70), (8, 64, 48))
    points = grid.points()
    index = np.array([3, 10, 47])
    np.testing.assert_allclose(grid.world_to_voxel(points[tuple(index)]), index, atol=1e-9)
    np.testing.assert_allclose(grid.voxel_to_world(index.astype(float)), points[tuple(index)], atol=1e-9)
    np.testing.assert_allclose(points.reshape(-1, 3).mean(0), grid.center, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"position": [0, np.nan, 0]}, "position must be three finite numbers"),
        ({"row_cosine": [1, 1, 0]}, "perpendicular unit vectors"),
        ({"spacing": (0.5, 0)}, "spacing must be two positive"),
        ({"spacing": (0.5, np.nan)}, "spacing must be two positive"),
        ({"shape": (0, 12)}, "two positive integers"),
    ],
)
def test_bad_geometry_is_refused_with_a_reason(change, words):
    good = dict(position=[0, 0, 0], row_cosine=[1, 0, 0], column_cosine=[0, 1, 0], spacing=(1, 1), shape=(8, 8))
    SliceGeometry(**good)
    with pytest.raises(GeometryError, match=words):
        SliceGeometry(**{**good, **change})
