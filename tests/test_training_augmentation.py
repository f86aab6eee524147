"""Augmentation on planted landmarks: left and right never get mixed up, and one draw goes through a stack."""

import json
import warnings
from dataclasses import asdict

import numpy as np
import pytest
import torch
from planted_crops import SPEC

from lumbar_utils.crops.extraction import VIEW_AXES
from lumbar_utils.errors import DataError
from lumbar_utils.labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2, VIEWS, target_index
from lumbar_utils.models.inputs import mirror_images, mirror_labels, mirror_probabilities
from lumbar_utils.models.run_folder import strict
from lumbar_utils.training.augmentation import MIN_SHIFT_MM, AugmentConfig, IntensityAugmentation, augment_batch

NOTHING = AugmentConfig(**dict.fromkeys(AugmentConfig.__dataclass_fields__, 0.0))


def blank(batch=2, dtype=torch.float32):
    return {view: torch.zeros(batch, 5, *SPEC.shapes[view], dtype=dtype) for view in VIEWS}


def options(**values):
    return AugmentConfig(**{**dict.fromkeys(AugmentConfig.__dataclass_fields__, 0.0), **values})


def test_mirroring_flips_the_right_left_axis_of_each_view():
    images = blank()
    images[SAGITTAL_T1][0, 0, 1, 3, 4] = 1  # axis 0 runs from right to left
    images[AXIAL_T2][0, 0, 1, 3, 4] = 1  # the last axis does
    flipped = mirror_images(images)
    assert flipped[SAGITTAL_T1][0, 0, -2, 3, 4] == 1
    assert flipped[AXIAL_T2][0, 0, 1, 3, -5] == 1
    back = mirror_images(flipped)
    assert all(torch.equal(back[v], images[v]) for v in VIEWS)
    as_arrays = mirror_images({v: i.numpy() for v, i in images.items()})
    assert all(np.array_equal(as_arrays[v], flipped[v].numpy()) for v in VIEWS)


def test_mirroring_swaps_left_and_right_targets():
    labels = np.zeros((1, 25), int)
    labels[0, target_index("left_subarticular_stenosis", "l4_l5")] = 2
    labels[0, target_index("spinal_canal_stenosis", "l3_l4")] = 1
    mirrored = mirror_labels(labels)
    assert mirrored[0, target_index("right_subarticular_stenosis", "l4_l5")] == 2
    assert mirrored[0, target_index("left_subarticular_stenosis", "l4_l5")] == 0
    assert mirrored[0, target_index("spinal_canal_stenosis", "l3_l4")] == 1
    assert np.array_equal(mirror_labels(torch.as_tensor(labels)).numpy(), mirrored)
    p = np.random.default_rng(0).random((2, 25, 3))
    assert np.array_equal(mirror_probabilities(mirror_probabilities(p)), p)
    assert np.array_equal(mirror_probabilities(torch.as_tensor(p)).numpy(), mirror_probabilities(p))


def test_a_mirrored_batch_has_mirrored_images_and_labels():
    images = {v: torch.randn(4, 5, *SPEC.shapes[v]) for v in VIEWS}
    labels = torch.randint(0, 3, (4, 25))
    same, same_labels = augment_batch(images, labels, NOTHING, SPEC)
    assert all(torch.equal(same[v], images[v]) for v in VIEWS) and torch.equal(same_labels, labels)
    turned, turned_labels = augment_batch(images, labels, options(mirror=1.0), SPEC)
    assert all(torch.equal(turned[v], mirror_images(images)[v]) for v in VIEWS)
    assert torch.equal(turned_labels, mirror_labels(labels))
    half = torch.Generator().manual_seed(3)
    mixed, mixed_labels = augment_batch(images, labels, options(mirror=0.5), SPEC, half)
    for i in range(4):
        was = torch.equal(mixed[SAGITTAL_T2][i], images[SAGITTAL_T2][i])
        assert torch.equal(mixed_labels[i], labels[i] if was else mirror_labels(labels[i]))
        assert torch.equal(mixed[AXIAL_T2][i], (images if was else mirror_images(images))[AXIAL_T2][i])


def centre(image):
    """Centre of mass (slice, row, column) of one crop."""
    weight = image.double().numpy()
    grid = np.indices(weight.shape).reshape(3, -1)
    return (grid * weight.ravel()).sum(1) / weight.sum()


def displacements(images, moved, view):
    """How far (n, 3) the centre of each crop's content moved along the crop's axes, in mm."""
    spacing = np.array(SPEC.extents[view]) / SPEC.shapes[view]
    pairs = zip(moved[view].flatten(0, 1), images[view].flatten(0, 1), strict=True)
    return np.array([(centre(after) - centre(before)) * spacing for after, before in pairs])


def planted_blocks(batch):
    images = blank(batch)
    for view in VIEWS:
        d, h, w = (size // 2 for size in SPEC.shapes[view])
        images[view][:, :, d - 1 : d + 1, h - 1 : h + 1, w - 1 : w + 1] = 1.0
    return images


@pytest.mark.parametrize("axis", range(3))
def test_shifts_are_in_millimetres_along_the_axes_of_the_patient(axis):
    images = planted_blocks(40)
    config = options(shift_mm=tuple(4.0 * (i == axis) for i in range(3)))
    moved, _ = augment_batch(images, torch.zeros(40, 25), config, SPEC, torch.Generator().manual_seed(0))
    for view in VIEWS:
        along = [abs(float(direction[axis])) for direction in VIEW_AXES[view]]
        spread = displacements(images, moved, view).std(0)
        assert np.allclose(spread, 4 * np.array(along), atol=0.5)
        assert spread[np.array(along) == 0].max() < 1e-3, "nothing moves along the other axes"


def test_the_same_shift_moves_all_views_of_a_disc():
    images = planted_blocks(4)
    moved, _ = augment_batch(images, torch.zeros(4, 25), options(shift_mm=2.0), SPEC, torch.Generator().manual_seed(2))
    # Back to L, P, S; each view's axes are an orthonormal matrix.
    world = {view: displacements(images, moved, view) @ np.stack(VIEW_AXES[view]) for view in VIEWS}
    assert np.allclose(world[SAGITTAL_T1], world[SAGITTAL_T2], atol=0.05)
    assert np.allclose(world[SAGITTAL_T1], world[AXIAL_T2], atol=0.05)
    assert len(np.unique(world[AXIAL_T2].round(3), axis=0)) == 20, "every disc has its own"


def test_through_plane_shifts_interpolate_between_slices():
    images, depth = blank(2), SPEC.shapes[AXIAL_T2][0]
    images[AXIAL_T2] += torch.arange(1.0, depth + 1)[:, None, None]
    config = options(shift_mm=(0, 0, 3.0))
    moved, _ = augment_batch(images, torch.zeros(2, 25), config, SPEC, torch.Generator().manual_seed(1))
    for crop in moved[AXIAL_T2].flatten(0, 1):
        profile = crop[:, 0, 0].numpy()
        assert torch.equal(crop, crop[:, :1, :1].expand_as(crop))
        k = np.arange(depth)
        step = np.median(profile - (k + 1))  # the ramp rises by one a slice, so a shift adds to it
        beyond_the_box_is_nothing = np.interp(k + step, np.arange(-1, depth + 1), [0, *(k + 1), 0])
        assert np.allclose(profile, beyond_the_box_is_nothing, atol=1e-4)


def test_the_shift_can_be_the_localizers_own_error():
    errors = np.random.default_rng(0).normal([1.0, 0, 0], [0.0, 2.0, 0.01], (400, 5, 3))
    errors[:20] = [0, 0, 35.0]  # taken for the neighbour
    errors[20, 0] = np.nan
    left, posterior, superior = options(mirror=0.5).with_localizer_errors(errors).shift_mm
    assert left == pytest.approx(1.48, abs=0.01), "a steady offset counts"
    assert posterior == pytest.approx(2.0, rel=0.1) and superior == MIN_SHIFT_MM
    assert options(mirror=0.5).with_localizer_errors(errors).mirror == 0.5
    with pytest.raises(DataError, match="shape"):
        AugmentConfig().with_localizer_errors(errors[..., :2])
    with pytest.raises(DataError, match="no finite row"):
        AugmentConfig().with_localizer_errors(np.full((5, 3), np.nan))


def test_the_configuration_survives_json():
    for config in (AugmentConfig(shift_mm=(0.5, 1.5, 2.5), cutmix=0.5), AugmentConfig(shift_mm=2.0)):
        assert strict(AugmentConfig, json.loads(json.dumps(asdict(config)))) == config
    assert AugmentConfig(shift_mm=2.0).shift_mm == (2.0, 2.0, 2.0)


def test_rotation_keeps_the_centre_and_the_draw_is_shared_by_the_slices():
    images = blank(8)
    images[AXIAL_T2][..., 7:9, 3:13] = 1.0
    turned, _ = augment_batch(
        images, torch.zeros(8, 25), options(rotation_degrees=10.0), SPEC, torch.Generator().manual_seed(1)
    )
    crops = turned[AXIAL_T2].flatten(0, 1)
    assert not torch.allclose(crops[0], crops[1]), "every disc has its own draw"
    for crop in crops:
        assert torch.allclose(crop, crop[:1].expand_as(crop), atol=1e-5), "all slices of a crop have the same"
        assert np.allclose(centre(crop), [3.5, 7.5, 7.5], atol=0.1)


def test_what_is_not_covered_stays_empty_and_seeds_repeat():
    images = {v: torch.randn(2, 5, *SPEC.shapes[v]) for v in VIEWS}
    images[SAGITTAL_T1][:, :, :4] = 0
    config = options(contrast=0.3, brightness=0.5, noise=0.5)
    before = {v: images[v].clone() for v in VIEWS}
    first, _ = augment_batch(images, torch.zeros(2, 25), config, SPEC, torch.Generator().manual_seed(5))
    again, _ = augment_batch(images, torch.zeros(2, 25), config, SPEC, torch.Generator().manual_seed(5))
    assert (first[SAGITTAL_T1][:, :, :4] == 0).all()
    assert not torch.equal(first[SAGITTAL_T1], images[SAGITTAL_T1])
    assert all(torch.equal(first[v], again[v]) for v in VIEWS)
    assert all(torch.equal(before[v], images[v]) for v in VIEWS), "the batch that came in is left alone"
    outside = dict(images) | {SAGITTAL_T1: torch.zeros_like(images[SAGITTAL_T1])}
    full = AugmentConfig(shift_mm=3.0, slice_dropout=0.5, noise=0.5)
    assert (augment_batch(outside, torch.zeros(2, 25), full, SPEC)[0][SAGITTAL_T1] == 0).all()


def test_slice_dropout_blanks_whole_slices():
    images = {v: torch.ones(2, 5, *SPEC.shapes[v]) for v in VIEWS}
    out, _ = augment_batch(images, torch.zeros(2, 25), options(slice_dropout=1.0), SPEC)
    per_slice = out[SAGITTAL_T2].flatten(3).mean(-1)
    assert ((per_slice == 0) | (per_slice == 1)).all() and ((per_slice == 0).sum(-1) == 1).all()


def test_few_slices_stand_for_the_whole_crop():
    number = {v: torch.arange(1.0, SPEC.shapes[v][0] + 1)[:, None, None].expand(2, 5, *SPEC.shapes[v]) for v in VIEWS}
    draw = torch.Generator().manual_seed(0)
    out, _ = augment_batch(number, torch.zeros(2, 25), options(few_slices=1.0), SPEC, draw)
    depth = SPEC.shapes[SAGITTAL_T1][0]
    middle = {view: tuple(n // 2 for n in SPEC.shapes[view][1:]) for view in VIEWS}
    seen = {view: out[view][..., middle[view][0], middle[view][1]].reshape(10, -1) for view in VIEWS}
    for row in seen[SAGITTAL_T1]:
        right, left = row[: depth // 2], row[depth // 2 :]
        assert (row > 0).all() and right.max() <= left.min(), "each half shows slices of its own"
        assert len(right.unique()) <= 5 and (row.diff() >= 0).all()
    for view in (SAGITTAL_T2, AXIAL_T2):
        shown = seen[view] > 0
        assert (shown.sum(1) < shown.shape[1]).all() and shown.any(1).all()
        assert all(torch.equal(row[row > 0], number[view][0, 0, :, 0, 0][row > 0]) for row in seen[view])
    pictured = (out[AXIAL_T2] > 0).any(2).float().mean((2, 3))
    assert (pictured > 0.3).all() and (pictured < 0.75).all(), "axial pictures are cut to the canal's surroundings"
    same, _ = augment_batch(number, torch.zeros(2, 25), NOTHING, SPEC)
    assert all(torch.equal(same[v], number[v]) for v in VIEWS)


def test_appearance_uses_one_draw_for_a_series():
    pytest.importorskip("albumentations")
    one_slice = np.random.default_rng(0).random((16, 16)).astype(np.float32) + 0.5
    image = np.tile(one_slice, (5, 8, 1, 1))
    image[:, :, :3] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # albumentations only warns of a parameter that it does not know
        pipeline = IntensityAugmentation(1.0, seed=1)
    outs = [pipeline({AXIAL_T2: image})[AXIAL_T2] for _ in range(12)]
    assert sum(not np.allclose(out, image, atol=0.03) for out in outs) > 6
    for out in outs:
        assert out.shape == image.shape and out.dtype == image.dtype
        assert (out[:, :, :3] == 0).all()
        assert np.allclose(out, out[0, 0], atol=1e-5)
    full = IntensityAugmentation(1.0, seed=2)
    assert all(np.isfinite(full({AXIAL_T2: image})[AXIAL_T2]).all() for _ in range(20))
    full.reseed(3)
    first = [full({AXIAL_T2: image})[AXIAL_T2] for _ in range(3)]
    full.reseed(3)
    assert all(np.array_equal(full({AXIAL_T2: image})[AXIAL_T2], a) for a in first), "an epoch can be repeated"
    assert not np.array_equal(first[0], first[1])


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"shift_mm": -1}, "shift_mm"),
        ({"shift_mm": (1.0, 2.0)}, "shift_mm"),
        ({"shift_mm": "far"}, "shift_mm"),
        ({"noise": float("nan")}, "noise"),
        ({"mixup": 0.7, "cutmix": 0.6}, "at most 1"),
        ({"cutmix": 0.5, "cutmix_alpha": 0}, "cutmix_alpha"),
    ],
)
def test_impossible_settings_are_refused(values, named):
    with pytest.raises(DataError, match=named):
        AugmentConfig(**values)
