"""Augmentation on planted landmarks: left and right never get mixed up, and one draw goes through a stack."""

import numpy as np
import pytest
import torch
from planted_crops import SPEC

from lumbar_utils.augment import (
    Appearance,
    AugmentConfig,
    augment_batch,
    mirror_images,
    mirror_labels,
    mirror_probabilities,
)
from lumbar_utils.errors import DataError
from lumbar_utils.labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2, VIEWS, target_index

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


@pytest.mark.parametrize("view", VIEWS)
def test_shifts_are_in_millimetres(view):
    images = blank(40)
    d, h, w = SPEC.shapes[view]
    images[view][:, :, d // 2 - 1 : d // 2 + 1, h // 2 - 1 : h // 2 + 1, w // 2 - 1 : w // 2 + 1] = 1.0
    spacing = np.array(SPEC.extents[view]) / SPEC.shapes[view]
    moved, _ = augment_batch(images, torch.zeros(40, 25), options(shift_mm=5.0), SPEC, torch.Generator().manual_seed(0))
    found = np.array([centre(c) for c in moved[view].flatten(0, 1)]) * spacing
    expected = (np.array(SPEC.shapes[view]) - 1) / 2 * spacing
    assert np.abs(found[:, 0] - expected[0]).max() < 1e-3, "nothing moves through the plane"
    assert (found[:, 1:].std(0) > 4).all() and (found[:, 1:].std(0) < 6).all()
    deep, _ = augment_batch(
        images, torch.zeros(40, 25), options(through_plane_mm=3.0), SPEC, torch.Generator().manual_seed(0)
    )
    found = np.array([centre(c) for c in deep[view].flatten(0, 1)]) * spacing
    assert 2.4 < found[:, 0].std() < 3.6
    assert np.abs(found[:, 1:] - expected[1:]).max() < 1e-3


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
    first, _ = augment_batch(images, torch.zeros(2, 25), config, SPEC, torch.Generator().manual_seed(5))
    again, _ = augment_batch(images, torch.zeros(2, 25), config, SPEC, torch.Generator().manual_seed(5))
    assert (first[SAGITTAL_T1][:, :, :4] == 0).all()
    assert not torch.equal(first[SAGITTAL_T1], images[SAGITTAL_T1])
    assert all(torch.equal(first[v], again[v]) for v in VIEWS)


def test_slice_dropout_blanks_whole_slices():
    images = {v: torch.ones(2, 5, *SPEC.shapes[v]) for v in VIEWS}
    out, _ = augment_batch(images, torch.zeros(2, 25), options(slice_dropout=1.0), SPEC)
    per_slice = out[SAGITTAL_T2].flatten(3).mean(-1)
    assert ((per_slice == 0) | (per_slice == 1)).all() and ((per_slice == 0).sum(-1) == 1).all()


def test_appearance_uses_one_draw_for_a_series():
    pytest.importorskip("albumentations")
    one_slice = np.random.default_rng(0).random((16, 16)).astype(np.float32) + 0.5
    image = np.tile(one_slice, (5, 8, 1, 1))
    image[:, :, :3] = 0
    pipeline = Appearance(1.0, seed=1)
    pipeline.pipeline.transforms[1].p = 0.0  # noise differs from slice to slice by nature; look at the contrast
    out = pipeline({AXIAL_T2: image})[AXIAL_T2]
    assert out.shape == image.shape and out.dtype == image.dtype
    assert (out[:, :, :3] == 0).all()
    assert np.allclose(out, out[0, 0], atol=1e-5)
    full = Appearance(1.0, seed=2)
    assert all(np.isfinite(full({AXIAL_T2: image})[AXIAL_T2]).all() for _ in range(20))
    full.reseed(3)
    first = [full({AXIAL_T2: image})[AXIAL_T2] for _ in range(3)]
    full.reseed(3)
    assert all(np.array_equal(full({AXIAL_T2: image})[AXIAL_T2], a) for a in first), "an epoch can be repeated"
    assert not np.array_equal(first[0], first[1])


def test_negative_strength_is_refused():
    with pytest.raises(DataError, match="shift_mm"):
        AugmentConfig(shift_mm=-1)
