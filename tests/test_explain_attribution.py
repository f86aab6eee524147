"""Attribution maps: they lie where they belong on planted truth, for every kind of network, and not by chance.

The sanity test is a forced choice. In axial crops in which canal and both recesses are equally bright, the map of
each condition has to be highest at its own place out of three: a trained network must, a random one may not.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted_crops import FAST, SMALL, SPEC, planted_cohort, planted_study, study_crops
from torch import nn

from lumbar_utils.crops.extraction import CropSpec, StudyCrops
from lumbar_utils.errors import DataError
from lumbar_utils.explain import attribution_maps
from lumbar_utils.explain.attribution import attributions, log_odds
from lumbar_utils.labels import AXIAL_T2, N_LEVELS, SAGITTAL_T1, SAGITTAL_T2, VIEWS, encode_severities, target_index
from lumbar_utils.models.classifier import LumbarClassifier
from lumbar_utils.models.inputs import batch_of, study_input

AXIAL_PLACES = {0: np.s_[:, 2:6, 6:10], 3: np.s_[:, 9:14, 11:15], 4: np.s_[:, 9:14, 1:5]}
"""Where `planted_study` makes canal, left and right recess bright in an axial crop, by condition."""
NETWORKS = {
    "3d": SMALL,
    "3d, attention": replace(SMALL, slice_pooling="attention", keep_slices=True),
    "3d, unified": replace(SMALL, head="unified", split_sides=False),
    "2.5d": FAST,
    "2.5d, unified, attention": replace(FAST, head="unified", split_sides=False, slice_pooling="attention"),
    "2.5d, recurrent": replace(FAST, slice_pooling="recurrent"),
}


@pytest.fixture(scope="module")
def severe() -> list[StudyCrops]:
    """Studies in which all places are bright."""
    rng = np.random.default_rng(5)
    return [planted_study(str(i), np.full(25, 2), rng) for i in range(3)]


@pytest.fixture(scope="module")
def trained() -> LumbarClassifier:
    """A tiny network that has learnt to read planted crops."""
    torch.manual_seed(0)
    model = LumbarClassifier(FAST).train()
    crops, labels = planted_cohort(64, missing=0)
    inputs = [study_input(item) for item in crops.values()]
    grades = torch.as_tensor(encode_severities(labels)).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        chosen = torch.randperm(len(inputs), generator=generator)[:8]
        batch = batch_of([inputs[i] for i in chosen])
        output = model(batch["images"], batch["present"])
        loss = nn.functional.cross_entropy(output["logits"].flatten(0, 1), grades[chosen].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def own_place(model: LumbarClassifier, studies: list[StudyCrops]) -> float:
    """How often a condition's axial map is highest at its own place out of three; a third is chance."""
    hits = []
    for crops in studies:
        targets = [target_index(c, level) for c in AXIAL_PLACES for level in (0, 3)]
        attribution = attribution_maps(model, crops, targets=targets)
        for condition, own in AXIAL_PLACES.items():
            for level in (0, 3):
                values = attribution.of(AXIAL_T2, condition, level)
                height = max(values[place].mean() for place in AXIAL_PLACES.values())
                hits.append(height > 0 and values[own].mean() == height)
    return float(np.mean(hits))


def test_maps_of_a_trained_network_lie_at_the_condition_and_those_of_random_ones_do_not(trained, severe):
    found = own_place(trained, severe)
    by_chance = []
    for seed in range(4):
        torch.manual_seed(100 + seed)
        by_chance.append(own_place(LumbarClassifier(FAST), severe))
    assert found > 0.9, f"{found:.0%} of the maps lie at their own place"
    assert np.mean(by_chance) < 0.6, f"random networks: {np.round(by_chance, 2)}, chance is a third"


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_network_gives_maps_over_its_crops_and_scores_that_are_its_log_odds(name, severe):
    torch.manual_seed(0)
    model = LumbarClassifier(NETWORKS[name])
    model.train()
    attribution = attribution_maps(model, severe[0], targets=[target_index(1, 2)])
    assert model.training, "left as it was"
    assert all(p.grad is None for p in model.parameters()), "weights get no gradient"
    with torch.inference_mode():
        batch = batch_of([study_input(severe[0])])
        logits = model.eval()(batch["images"], batch["present"])["logits"][0].double()
    odds = logits[:, 1:].logsumexp(-1) - logits[:, 0]
    assert attribution.scores[target_index(1, 2)] == pytest.approx(float(odds[target_index(1, 2)]), abs=1e-4)
    for view in VIEWS:
        values = attribution.of(view, 1, 2)
        assert values.shape == SPEC.shapes[view] and (values >= 0).all() and np.isfinite(values).all()
        assert not attribution.of(view, 1, 3).any(), "not asked for"
    left = attribution.of(SAGITTAL_T1, "left_neural_foraminal_narrowing", "l3_l4")
    if NETWORKS[name].sides:  # the left foramen is read from the left half; smoothing spreads it a bit
        assert left[8:].sum() > 0.9 * left.sum() > 0


def test_a_mirrored_study_has_mirrored_maps():
    """With split sides a left target's map is the mirror image of the right one's on mirrored crops."""
    torch.manual_seed(0)
    model = LumbarClassifier(SMALL)
    rng = np.random.default_rng(0)
    images = {view: rng.random((5, *SPEC.shapes[view])) for view in VIEWS}
    covered = {view: np.ones(images[view].shape, bool) for view in VIEWS}
    covered[SAGITTAL_T2][:] = False  # which is read as a whole
    mirrored = {AXIAL_T2: images[AXIAL_T2][..., ::-1], SAGITTAL_T1: images[SAGITTAL_T1][:, ::-1]}
    mirrored[SAGITTAL_T2] = images[SAGITTAL_T2]
    one = attribution_maps(model, study_crops("1", images, covered), targets=[target_index(3, 1)])
    other = attribution_maps(model, study_crops("1", mirrored, covered), targets=[target_index(4, 1)])
    for view, flipped in ((AXIAL_T2, np.s_[..., ::-1]), (SAGITTAL_T1, np.s_[::-1])):
        map_of_one, mirrored_map = one.of(view, 3, 1), other.of(view, 4, 1)[flipped]
        assert (
            np.corrcoef(map_of_one.ravel(), mirrored_map.ravel())[0, 1] > 0.98
        )  # gradients in bfloat16 where the processor has it


class Copy(nn.Module):
    """An encoder whose features are the image itself at every second pixel of every axis, averaged."""

    num_features = 1

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 3, stride=2, padding=1, bias=False)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[0, 0, 1, 1, 1] = 1

    def forward(self, x):
        return self.conv(x).mean(dim=(2, 3, 4))


def test_a_map_lies_where_the_network_looked_to_the_voxel():
    """One bright voxel, and a network that only passes it on: the map is highest at that voxel."""
    model = LumbarClassifier(replace(SMALL, head="unified", split_sides=False, auxiliary=False))
    model.encoders = nn.ModuleList([Copy() for _ in VIEWS])
    model.missing_view_embeddings = nn.Parameter(torch.zeros(len(VIEWS), 1))
    model.head.linear = nn.Linear(len(VIEWS) * N_LEVELS, 75)
    with torch.no_grad():
        model.head.linear.weight.zero_()
        model.head.linear.bias.zero_()
        model.head.linear.weight[target_index(0, 1) * 3 + 2, 1] = 1.0  # a severe canal at L2/L3, by sagittal T2
        model.bias.zero_()
    images = {view: np.full((5, *SPEC.shapes[view]), 0.35) for view in VIEWS}  # which becomes 0 for the network
    images[SAGITTAL_T2][1, 4, 10, 6] = 1.35
    # The voxel is seen in the steps whose shift puts it on the encoder's grid.
    attribution = attribution_maps(model, study_crops("1", images), targets=[target_index(0, 1)], severity=2)
    values = attribution.of(SAGITTAL_T2, 0, 1)
    assert np.unravel_index(values.argmax(), values.shape) == (4, 10, 6)
    assert attribution.scaled(SAGITTAL_T2, 0, 1).max() == pytest.approx(1)
    assert attribution.slice_of(SAGITTAL_T2, 0, 1) == attribution.slice_shares(SAGITTAL_T2, 0, 1).argmax() == 4
    assert attribution.slice_of(AXIAL_T2, 0, 1) is None and not attribution.slice_shares(AXIAL_T2, 0, 1).any()


@pytest.mark.parametrize("name", ["3d", "3d, unified", "2.5d"])
def test_integrated_gradients_add_up_to_what_the_crop_did_to_the_score(name, severe):
    torch.manual_seed(0)
    model = LumbarClassifier(NETWORKS[name]).eval()
    inputs = batch_of([study_input(severe[0])])
    images, present = inputs["images"], inputs["present"]
    with torch.no_grad():
        whole = log_odds(model(images, present)["logits"][0], None)
        known = [model._encode(i, images[view], present[:, i]) for i, view in enumerate(VIEWS)]
        emptied = images[AXIAL_T2].clone()
        emptied[:, 2] = 0
        without = log_odds(model({**images, AXIAL_T2: emptied}, present)["logits"][0], None)
    i = VIEWS.index(AXIAL_T2)
    target = target_index(3, 2)
    found = attributions(model, images[AXIAL_T2][0, 2], known, i, 2, [target], steps=48, shifts=(0, 0, 0))[target]
    expected = float(whole[target] - without[target])
    assert float(found.sum()) == pytest.approx(expected, rel=0.1, abs=1e-3)


def test_what_was_not_scanned_has_no_map(severe):
    covered = {view: np.ones((5, *SPEC.shapes[view]), bool) for view in VIEWS}
    covered[AXIAL_T2][:] = False
    covered[SAGITTAL_T1][2] = False
    covered[SAGITTAL_T2][:, :, :5] = False
    crops = study_crops("1", severe[0].images, covered)
    torch.manual_seed(0)
    attribution = attribution_maps(LumbarClassifier(FAST), crops)
    assert not attribution.maps[AXIAL_T2].any()
    assert not attribution.of(SAGITTAL_T1, 1, 2).any() and attribution.of(SAGITTAL_T1, 1, 3).any()
    assert not attribution.maps[SAGITTAL_T2][:, :, :5].any() and attribution.maps[SAGITTAL_T2].any()


def test_a_predictor_is_explained_by_the_mean_of_its_networks(severe):
    class Two:
        specs = (SPEC,)
        weights = np.array([0.75, 0.25])

    torch.manual_seed(0)
    source = Two()
    source.models = (LumbarClassifier(FAST), LumbarClassifier(FAST))
    one, other = (attribution_maps(model, severe[0], targets=[0]).of(SAGITTAL_T2, 0, 0) for model in source.models)
    both = attribution_maps(source, severe[0], targets=[0]).of(SAGITTAL_T2, 0, 0)
    assert np.allclose(both, 0.75 * one + 0.25 * other, atol=1e-7)
    source.specs = (CropSpec(),)
    with pytest.raises(DataError, match="explain its networks one by one"):
        attribution_maps(source, severe[0])


def test_wrong_questions_are_refused(severe):
    model = LumbarClassifier(FAST)
    with pytest.raises(DataError, match="numbers from 0 to 24"):
        attribution_maps(model, severe[0], targets=[25])
    with pytest.raises(DataError, match="severity must be 0, 1 or 2"):
        attribution_maps(model, severe[0], severity=3)
