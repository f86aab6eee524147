"""Mixup and cutmix on planted constants: labels count by what the picture holds, and nothing fills the unseen."""

import pytest
import torch
from planted_crops import SPEC

from lumbar_utils.labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2, VIEWS
from lumbar_utils.training.augmentation import AugmentConfig, mix_batch

SEEN = torch.ones(8, 3, 5, dtype=torch.bool)
EVERY = {"mixup": AugmentConfig(mixup=1.0, mixup_alpha=1.0), "cutmix": AugmentConfig(cutmix=1.0)}
LABELS = torch.arange(8)[:, None].expand(8, 25)
"""Each study's labels are its own number, so that a mixed study shows whom it was mixed with."""


def numbered():
    """Eight studies whose every voxel is the study's number plus one."""
    number = torch.arange(1.0, 9.0)[:, None, None, None, None]
    return {view: number.expand(8, 5, *SPEC.shapes[view]).clone() for view in VIEWS}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", EVERY)
def test_the_share_is_what_the_picture_really_holds(kind):
    mixed = mix_batch(numbered(), LABELS, SEEN, EVERY[kind], seeded())
    assert torch.equal(mixed.labels, LABELS)
    partner = mixed.partner_labels[:, 0]
    assert torch.equal(mixed.partner_labels, partner[:, None].expand(8, 25))
    assert sorted(partner.tolist()) == list(range(8)) and not (partner == torch.arange(8)).any()
    expected = mixed.share * (LABELS[:, 0] + 1) + (1 - mixed.share) * (partner + 1)
    held = torch.stack([mixed.images[view].flatten(1).mean(1) for view in VIEWS]).mean(0)
    assert torch.allclose(held, expected, atol=1e-4)
    assert mixed.share.std() > 0.1, "every study draws its own share"


def test_cutmix_pastes_one_box_through_all_slices_and_levels_and_mixup_none():
    box = mix_batch(numbered(), LABELS, SEEN, EVERY["cutmix"], seeded())
    blend = mix_batch(numbered(), LABELS, SEEN, EVERY["mixup"], seeded())
    for i in range(8):
        own, other = float(i + 1), float(box.partner_labels[i, 0] + 1)
        for view in VIEWS:
            image = box.images[view][i]
            assert set(image.unique().tolist()) <= {own, other}
            assert torch.equal(image, image[:1, :1].expand_as(image))
            pasted = image[0, 0] == other
            rows, columns = pasted.any(1), pasted.any(0)
            assert torch.equal(pasted, rows[:, None] & columns), "a rectangle"
            assert len(blend.images[view][i].unique()) == 1


def test_cutmix_takes_the_same_anatomy_out_of_every_view():
    mixed = mix_batch(numbered(), LABELS, SEEN, EVERY["cutmix"], seeded())
    pasted = {view: (mixed.images[view] != numbered()[view])[:, 0, 0] for view in VIEWS}
    assert pasted[AXIAL_T2].any()
    assert torch.equal(pasted[SAGITTAL_T1], pasted[SAGITTAL_T2])
    # Columns of a sagittal crop and rows of an axial one both run from front to back.
    assert torch.equal(pasted[SAGITTAL_T2].any(1), pasted[AXIAL_T2].any(2))


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("per_level", [True, False])
def test_only_studies_with_the_same_views_are_mixed(kind, per_level):
    present, images = SEEN.clone(), numbered()
    present[:3, 1] = False
    present[7, 0] = False
    for i, view in enumerate(VIEWS):
        images[view][~present[:, i, 0]] = 0
    mixed = mix_batch(images, LABELS, present if per_level else present[..., 0], EVERY[kind], seeded())
    partner = mixed.partner_labels[:, 0].tolist()
    assert sorted(partner[:3]) == [0, 1, 2] and sorted(partner[3:7]) == [3, 4, 5, 6]
    assert partner[7] == 7 and mixed.share[7] == 1, "nobody else lacks that view"
    assert all(torch.equal(mixed.images[view][7], images[view][7]) for view in VIEWS)
    assert (mixed.share[:7] < 1).all()
    for i, view in enumerate(VIEWS):
        assert (mixed.images[view][~present[:, i, 0]] == 0).all(), "a view that is not there stays empty"


@pytest.mark.parametrize("kind", EVERY)
def test_what_neither_study_covers_stays_empty(kind):
    images = {view: torch.randn(8, 5, *SPEC.shapes[view], generator=seeded(3)) for view in VIEWS}
    images[SAGITTAL_T1][:, :, :4] = 0
    images[AXIAL_T2][:4, :, :, :, :5] = 0
    mixed = mix_batch(images, LABELS, SEEN, EVERY[kind], seeded(1))
    assert (mixed.images[SAGITTAL_T1][:, :, :4] == 0).all()
    both = (mixed.partner_labels[:, 0] < 4) & (LABELS[:, 0] < 4)
    assert both.any() and (mixed.images[AXIAL_T2][both][..., :5] == 0).all()


def test_probabilities_are_of_studies_and_seeds_repeat():
    half = AugmentConfig(mixup=0.3, cutmix=0.3, mixup_alpha=1.0)
    images = numbered()
    before = {view: images[view].clone() for view in VIEWS}
    kinds = []
    for seed in range(40):
        mixed = mix_batch(images, LABELS, SEEN, half, seeded(seed))
        whole = mixed.share == 1
        assert torch.equal(mixed.partner_labels[whole], LABELS[whole])
        assert torch.equal(mixed.images[AXIAL_T2][whole], images[AXIAL_T2][whole])
        flat = mixed.images[AXIAL_T2].flatten(1)
        blended = (flat == flat[:, :1]).all(1) & ~whole
        kinds.append((whole.float().mean(), blended.float().mean()))
    whole, blended = torch.tensor(kinds).mean(0).tolist()
    assert whole == pytest.approx(0.4, abs=0.1) and blended == pytest.approx(0.3, abs=0.1)
    assert all(torch.equal(images[view], before[view]) for view in VIEWS), "the batch that came in is left alone"
    again = mix_batch(images, LABELS, SEEN, half, seeded(39))
    assert torch.equal(again.share, mixed.share)
    assert all(torch.equal(again.images[view], mixed.images[view]) for view in VIEWS)


def test_without_mixing_the_batch_passes_through():
    images = numbered()
    mixed = mix_batch(images, LABELS, SEEN, AugmentConfig(), seeded())
    assert all(torch.equal(mixed.images[view], images[view]) for view in VIEWS)
    assert mixed.labels is LABELS and mixed.partner_labels is LABELS and (mixed.share == 1).all()
    alone = mix_batch({v: images[v][:1] for v in VIEWS}, LABELS[:1], SEEN[:1], EVERY["mixup"], seeded())
    assert alone.share.tolist() == [1.0], "a batch of one has no partner"
