"""Pooling over slices and the 2.5D encoders: what they start from, what they can learn, which slice sees which."""

import pytest
import timm
import torch
from planted_crops import SPEC, planted_cohort
from torch import nn

from lumbar_utils.devices import choose_compute
from lumbar_utils.errors import DataError
from lumbar_utils.labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2, VIEWS, encode_severities
from lumbar_utils.models.classifier import ClassifierConfig, LumbarClassifier
from lumbar_utils.models.encoders import SLICE_POOLINGS, STACK_CHANNELS, build_encoder, with_neighbours
from lumbar_utils.models.inputs import batch_of, study_input

SMALL = "resnet10t"


def accuracy(pooling: str, slices: torch.Tensor, targets: torch.Tensor, steps: int = 100) -> float:
    """Of a pooling of 12 features and one linear layer, trained on the first three quarters, on the last quarter."""
    torch.manual_seed(0)
    module = nn.Sequential(SLICE_POOLINGS[pooling](12), nn.Linear(12, 2))
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-3)
    split = len(slices) * 3 // 4
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(slices[:split]), targets[:split]).backward()
        optimizer.step()
    with torch.inference_mode():
        return float((module(slices[split:]).argmax(1) == targets[split:]).float().mean())


@pytest.mark.parametrize("name", SLICE_POOLINGS)
@pytest.mark.parametrize("depth", [1, 8, 16])
def test_every_pooling_starts_as_the_average(name, depth):
    torch.manual_seed(0)
    slices = torch.randn(3, depth, 12)
    assert torch.allclose(SLICE_POOLINGS[name](12)(slices), slices.mean(1), atol=1e-5)


def test_attention_finds_the_slice_that_matters():
    torch.manual_seed(0)
    slices, marked, targets = torch.randn(800, 8, 12), torch.randint(8, (800,)), torch.randint(2, (800,))
    rows = torch.arange(800)
    slices[rows, marked, 0] = 4.0  # here is what matters
    slices[rows, marked, 1] = targets * 2.0 - 1.0  # and this is it, drowned in the other slices' noise
    assert accuracy("attention", slices, targets) > 0.9
    assert accuracy("average", slices, targets) < 0.8


def test_attention_knows_where_a_slice_lies():
    torch.manual_seed(0)
    slices, targets = torch.randn(800, 8, 12), torch.randint(2, (800,))
    slices[:, 2, 0] = targets * 2.0 - 1.0  # always the third slice, which looks like the others
    assert accuracy("attention", slices, targets) > 0.9
    assert accuracy("average", slices, targets) < 0.8


def test_attention_weights_are_shares():
    pooling = SLICE_POOLINGS["attention"](12)
    nn.init.normal_(pooling.score.weight)
    weights = pooling.weights(torch.randn(5, 8, 12))
    assert torch.allclose(weights.sum(1), torch.ones(5)) and weights.std() > 0.01


def test_recurrence_tells_the_order_of_slices():
    torch.manual_seed(0)
    targets = torch.randint(2, (400,))
    ramp = torch.linspace(-1, 1, 8) * (targets[:, None] * 2.0 - 1.0)  # rising or falling
    slices = ramp[..., None] + 0.3 * torch.randn(400, 8, 12) + torch.randn(400, 1, 12)  # no single slice gives it away
    assert accuracy("recurrent", slices, targets) > 0.95
    assert accuracy("average", slices, targets) < 0.65


def test_a_slice_goes_with_its_two_neighbours():
    x = torch.arange(4.0).expand(2, 1, 5, 6, 4)  # every slice holds its own number
    images = with_neighbours(x)
    assert images.shape == (8, 3, 5, 6) and images.is_contiguous(memory_format=torch.channels_last)
    assert images[:4, :, 0, 0].tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]
    assert torch.equal(images[:4], images[4:])
    assert with_neighbours(x[..., :1])[:, :, 0, 0].tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("pooling", SLICE_POOLINGS)
def test_both_families_share_one_interface(pooling):
    x = torch.randn(2, 1, 32, 32, 8)
    for family in ("3d", "2.5d"):
        encoder = build_encoder(SMALL, family=family, slice_pooling=pooling)
        assert encoder(x).shape == (2, encoder.num_features)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "efficientnet_b0", "convnext_atto"])
def test_timm_networks_by_name(name):
    encoder = build_encoder(name, family="2.5d", slice_pooling="attention")
    assert encoder(torch.randn(2, 1, 32, 32, 3)).shape == (2, encoder.num_features)


def test_the_average_over_slices_forgets_their_order_and_neighbours_do_not():
    torch.manual_seed(0)
    encoder = build_encoder(SMALL, family="2.5d").eval()
    x = torch.randn(1, 1, 16, 16, 8)
    order = torch.tensor([0, 4, 2, 6, 1, 5, 3, 7])
    with torch.inference_mode():
        same, other = encoder(x), encoder(x[..., order])
        still = encoder(x[..., 3:4].expand(-1, -1, -1, -1, 8))
        alone = encoder(x[..., 3:4])
    assert not torch.allclose(same, other, atol=1e-4), "a slice is read with its neighbours"
    assert torch.allclose(still, alone, atol=1e-5), "eight times the same slice is that slice"


def test_three_dimensional_positions_are_pooled_like_slices():
    """With the average's starting weights the wrapped network gives what the bare one gives."""
    torch.manual_seed(0)
    bare = build_encoder(SMALL, keep_slices=True).eval()
    wrapped = build_encoder(SMALL, keep_slices=True, slice_pooling="attention").eval()
    wrapped.network.load_state_dict(bare.state_dict())
    x = torch.randn(2, 1, 16, 16, 8)
    with torch.inference_mode():
        assert torch.allclose(bare(x), wrapped(x), atol=1e-5)


def test_names_are_checked():
    with pytest.raises(DataError, match=r"slice_pooling.*attention.*'mean'"):
        ClassifierConfig(slice_pooling="mean")
    with pytest.raises(DataError, match=r"family.*2.5d.*'4d'"):
        ClassifierConfig(family="4d")


@pytest.mark.parametrize("pooling", ["attention", "recurrent"])
def test_poolings_learn_in_half_precision(pooling):
    torch.manual_seed(0)
    model = LumbarClassifier(ClassifierConfig(encoder=SMALL, family="2.5d", slice_pooling=pooling, view_dropout=0))
    poolings = {name: p for name, p in model.encoders.named_parameters() if ".pooling." in name}
    for parameter in poolings.values():  # some start at zero, which holds back the gradients of what comes before
        nn.init.normal_(parameter, std=0.1)
    images = {view: torch.randn(2, 5, *SPEC.shapes[view]) for view in VIEWS}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images, torch.tensor([[True, True, True], [True, False, True]]))
    output["logits"].square().sum().backward()
    assert torch.isfinite(output["logits"]).all()
    assert not [name for name, p in poolings.items() if not p.grad.abs().sum() > 0], "no gradient"


@pytest.mark.slow
def test_a_network_of_slices_learns_the_tiny_cohort():
    crops, labels = planted_cohort(8, missing=0.0)
    codes = torch.as_tensor(encode_severities(labels)).long()
    images = batch_of([study_input(c) for c in crops.values()])["images"]
    torch.manual_seed(0)
    config = ClassifierConfig(encoder=SMALL, family="2.5d", slice_pooling="attention", width=64, dropout=0)
    model = LumbarClassifier(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    compute = choose_compute("cpu")
    losses = []
    for _ in range(22):
        with compute.autocast():
            logits = model(images, torch.ones(8, 3, dtype=torch.bool))["logits"]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], f"from {losses[0]:.2f} to {losses[-1]:.2f} only"


def test_a_stack_is_read_with_its_slices_as_channels(tmp_path):
    torch.manual_seed(0)
    encoder = build_encoder(SMALL, family="2d").eval()
    x = torch.randn(2, 1, 32, 32, STACK_CHANNELS)
    with torch.inference_mode():
        assert torch.allclose(encoder(x), encoder.network(x[:, 0].permute(0, 3, 1, 2)), atol=1e-5)
        assert not torch.allclose(encoder(x), encoder(x.flip(-1)), atol=1e-3)
        assert encoder(x[..., :8]).shape == (2, encoder.num_features), "other numbers of slices are resampled"
        constant = torch.randn(2, 1, 32, 32, 1)
        wide = encoder(constant.expand(-1, -1, -1, -1, 8))
        assert torch.allclose(wide, encoder(constant.expand(-1, -1, -1, -1, STACK_CHANNELS)), atol=1e-4)
    colours = timm.create_model(SMALL, num_classes=0).eval()
    torch.save(colours.state_dict(), tmp_path / "colours.pt")
    loaded = build_encoder(SMALL, family="2d", pretrained=tmp_path / "colours.pt").eval()
    grey = torch.randn(2, 1, 32, 32, 1)
    with torch.inference_mode():
        expected = colours(grey[:, 0].permute(0, 3, 1, 2).expand(-1, 3, -1, -1))
        assert torch.allclose(loaded(grey.expand(-1, -1, -1, -1, STACK_CHANNELS)), expected, atol=1e-3)


def test_one_encoder_can_read_all_views_or_both_sagittal_ones():
    shared, pair, own = (
        LumbarClassifier(ClassifierConfig(SMALL, family="2d", share_encoder=share))
        for share in ("all", "sagittal", "none")
    )
    assert [len(model.encoders) for model in (shared, pair, own)] == [1, 2, len(VIEWS)]
    read = []
    for number, encoder in enumerate(pair.encoders):
        encoder.register_forward_hook(lambda *_, number=number: read.append(number))
    pair({view: torch.rand(1, 5, *SPEC.shapes[view]) for view in VIEWS}, torch.ones(1, 3, dtype=torch.bool))
    assert dict(zip(VIEWS, read, strict=True)) == {SAGITTAL_T2: 0, AXIAL_T2: 1, SAGITTAL_T1: 0}
    images = {view: torch.rand(1, 5, *SPEC.shapes[view]) for view in VIEWS}
    shared.eval()
    with torch.inference_mode():
        logits = shared(images, torch.ones(1, 3, dtype=torch.bool))["logits"]
    assert logits.shape == (1, 25, 3) and logits.isfinite().all()
