"""The network: shapes, exact mirror symmetry of the sided streams, missing views, weights, quietness."""

import numpy as np
import pytest
import torch
from planted_crops import SPEC, planted_cohort, study_crops
from safetensors.torch import save_file
from torch import nn

from lumbar_utils.devices import choose_compute
from lumbar_utils.errors import DataError
from lumbar_utils.labels import AXIAL_T2, MISSING, SAGITTAL_T1, SAGITTAL_T2, VIEWS
from lumbar_utils.models.classifier import ClassifierConfig, LumbarClassifier, predict_probabilities, split_sides
from lumbar_utils.models.encoders import build_encoder
from lumbar_utils.models.inputs import CENTER, SCALE, batch_of, mirror_images, mirror_probabilities, study_input
from lumbar_utils.training.datasets import CropDataset, assign_folds

SMALL = "resnet10t"
CPU = choose_compute("cpu", "float32")


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(0)
    return {view: torch.randn(2, 5, *SPEC.shapes[view]) for view in VIEWS}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return LumbarClassifier(ClassifierConfig(encoder=SMALL)).eval()


ALL = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(("head", "split"), [("unified", False), ("per_level", True), ("per_level", False)])
def test_shapes_of_both_heads(batch, head, split):
    model = LumbarClassifier(ClassifierConfig(encoder=SMALL, head=head, split_sides=split))
    output = model(batch, ALL)
    assert output["logits"].shape == (2, 25, 3)
    assert {v: tuple(x.shape) for v, x in output["aux"].items()} == dict.fromkeys(VIEWS, (2, 25, 3))
    output["logits"].sum().backward()
    assert all(p.grad is not None for p in model.encoders.parameters())


def test_the_source_network_is_one_call_away(batch):
    config = ClassifierConfig.source()
    assert (config.encoder, config.family, config.dropout, config.view_dropout) == ("resnet18", "3d", 0, 0)
    model = LumbarClassifier(config)
    assert model.train()(batch, ALL)["aux"] == {}
    for encoder in model.encoders:
        assert encoder.conv1.stride == (2, 2, 2) and encoder.num_features == 512
        assert sum(p.numel() for p in encoder.parameters()) == 33_160_000
    assert model.head.linear.weight.shape == (75, 5 * 3 * 512)


def test_an_untrained_network_predicts_the_prior(batch):
    prior = np.random.default_rng(0).dirichlet([5, 2, 1], size=25)
    model = LumbarClassifier(ClassifierConfig(encoder=SMALL), prior).eval()
    p = model(batch, ALL)["logits"].softmax(-1).detach().numpy()
    assert np.abs(p - prior).max() < 0.1


def test_halves_run_from_lateral_to_medial():
    axial = torch.arange(12.0).expand(1, 2, 3, 12)
    right, left = split_sides(axial, AXIAL_T2, 1 / 6)
    assert right[0, 0, 0].tolist() == list(range(8)), "right half, over the mid-line by a sixth of the box"
    assert left[0, 0, 0].tolist() == list(range(11, 3, -1))
    right, left = split_sides(axial, AXIAL_T2, 0.5)
    assert torch.equal(right, axial) and torch.equal(left, axial.flip(-1)), "either side with the other behind it"
    sagittal = torch.arange(16.0)[:, None, None].expand(1, 16, 2, 2)
    right, left = split_sides(sagittal, SAGITTAL_T1, 0.0)
    assert right[0, :, 0, 0].tolist() == list(range(8)) and left[0, :, 0, 0].tolist() == list(range(15, 7, -1))


def test_a_mirrored_study_gets_mirrored_predictions(network, batch):
    present = torch.tensor([[False, True, True]] * 2)  # sagittal T2 is read as a whole
    with torch.inference_mode():
        straight = network(batch, present)["logits"]
        mirrored = network(mirror_images(batch), present)["logits"]
    assert torch.allclose(mirror_probabilities(mirrored), straight, atol=1e-4)


def test_side_signal_reaches_its_side_only(batch):
    torch.manual_seed(0)
    model = LumbarClassifier(ClassifierConfig(encoder=SMALL, view_dropout=0)).eval()
    changed = {v: i.clone() for v, i in batch.items()}
    changed[SAGITTAL_T1][:, 3, :8] += 1.0  # the right half of L4/L5
    with torch.inference_mode():
        difference = (model(changed, ALL)["aux"][SAGITTAL_T1] - model(batch, ALL)["aux"][SAGITTAL_T1]).abs().sum((0, 2))
    touched = set(np.flatnonzero(difference.numpy() > 1e-5).tolist())
    assert touched == {3, 13, 23}, "canal, right foramen and right recess of L4/L5"


def test_a_missing_view_does_not_reach_the_output(network, batch):
    present = torch.tensor([[True, False, True], [True, True, True]])
    other = {v: i.clone() for v, i in batch.items()}
    other[AXIAL_T2][0] = torch.nan
    with torch.inference_mode():
        a, b = network(batch, present)["logits"], network(other, present)["logits"]
    assert torch.allclose(a, b, atol=1e-6) and torch.isfinite(b).all()
    none = torch.zeros(2, 3, 5, dtype=torch.bool)
    with torch.inference_mode():
        assert torch.isfinite(network(batch, none)["logits"]).all()


def test_single_levels_may_be_missing(network, batch):
    present = torch.ones(2, 3, 5, dtype=torch.bool)
    present[:, 1, 0] = False
    other = {v: i.clone() for v, i in batch.items()}
    other[AXIAL_T2][:, 0] = 7.0
    with torch.inference_mode():
        assert torch.allclose(network(batch, present)["logits"], network(other, present)["logits"], atol=1e-5)


def test_view_dropout_never_takes_everything(network):
    torch.manual_seed(0)
    model = LumbarClassifier(ClassifierConfig(encoder=SMALL, view_dropout=0.5))
    present = torch.ones(400, 3, 5, dtype=torch.bool)
    kept = model._drop_views(present)
    assert kept.flatten(1).any(1).all()
    assert 0.5 < kept[:, 0, 0].float().mean() < 0.65, "one half, and the eighth that would have lost every view"
    assert (kept.any(2) == kept.all(2)).all(), "a view goes for all levels at once"


def test_encoders_are_quiet_and_say_what_they_do_not_know(capsys):
    build_encoder(SMALL)
    assert capsys.readouterr().out == ""
    with pytest.raises(DataError, match=r"resnet19.*resnet18"):
        build_encoder("resnet19")
    with pytest.raises(DataError, match=r"efficentnet_b0.*timm has.*efficientnet_b0"):
        build_encoder("efficentnet_b0", family="2.5d")
    with pytest.raises(DataError, match="head"):
        ClassifierConfig(head="both")


def test_depth_strides_can_be_reduced():
    encoder = build_encoder("resnet18", depth_strides=(1, 1))
    assert encoder.conv1.stride == (2, 2, 1) and encoder.maxpool.stride == (2, 2, 1)
    deep = build_encoder(SMALL, depth_strides=(1, 2))  # a stem of three convolutions
    assert deep.conv1[0].stride == (2, 2, 1) and deep.maxpool.stride in (2, (2, 2, 2))


@pytest.mark.parametrize(("strides", "left"), [((2, 2), 2), ((1, 2), 4), ((1, 1), 8)])
@pytest.mark.parametrize("name", ["resnet10t", "resnet14t"])  # basic blocks and bottlenecks, both with average pooling
def test_kept_slices_are_there_and_the_numbers_are_those_of_plain_convolutions(name, strides, left):
    torch.manual_seed(0)
    encoder = build_encoder(name, keep_slices=True, depth_strides=strides).double()
    x = torch.randn(2, 1, 32, 32, 8, dtype=torch.float64)
    thin = encoder.forward_features(x)
    assert thin.shape == (2, encoder.num_features, 1, 1, left)
    for module in encoder.modules():
        if isinstance(module, nn.Conv3d):
            module.__class__ = nn.Conv3d
    assert torch.allclose(thin, encoder.forward_features(x), atol=1e-9)
    if left == 8:  # what the shortcut passes on keeps its slice: nothing is shifted against the main path
        pooled = next(m for m in encoder.layer2.modules() if isinstance(m, nn.AvgPool3d))
        ramp = torch.arange(8.0).expand(1, 1, 4, 4, 8)
        assert torch.equal(pooled(ramp)[0, 0, 0, 0], torch.arange(8.0))


def test_networks_whose_slices_cannot_be_kept_say_so():
    for name in ("efficientnet_b0", "resnetblur18"):
        with pytest.raises(DataError, match=rf"plain ResNets only, not for '{name}'"):
            build_encoder(name, keep_slices=True)
    with pytest.raises(DataError, match=r"family '3d'.*'2.5d' keeps every slice"):
        ClassifierConfig(family="2.5d", keep_slices=True)


def test_a_network_that_needs_larger_crops_names_itself_and_the_crop(batch):
    model = LumbarClassifier(ClassifierConfig(encoder="convnext_atto"))
    with pytest.raises(
        DataError, match=r"Sagittal T2.*3d encoder 'convnext_atto' failed on 8 slices of 16 x 16.*CropS"
    ):
        model(batch, ALL)


def test_two_dimensional_weights_are_inflated_from_a_local_file(tmp_path, capsys):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    flat = timm.create_model("resnet18", pretrained=False)
    for name in ("weights.safetensors", "weights.pth"):
        path = tmp_path / name
        save_file(flat.state_dict(), path) if name.endswith("safetensors") else torch.save(flat.state_dict(), path)
        encoder = build_encoder("resnet18", pretrained=path)
        weight = encoder.layer1[0].conv1.weight
        expected = flat.layer1[0].conv1.weight
        assert torch.allclose(weight.sum(-1), expected, atol=1e-5)
        assert torch.allclose(weight[..., 0], expected / 3, atol=1e-5), "spread evenly over the slices"
        assert torch.allclose(encoder.conv1.weight.sum((1, 4)), flat.conv1.weight.sum(1), atol=1e-5)
        assert encoder.conv1.weight.shape == (64, 1, 7, 7, 7)
        sliced = build_encoder("resnet18", family="2.5d", pretrained=path).network.state_dict()
        assert all(torch.equal(tensor, flat.state_dict()[name]) for name, tensor in sliced.items())
    assert capsys.readouterr().out == ""


def test_three_dimensional_weights_load_as_they_are(tmp_path):
    torch.manual_seed(0)
    first = build_encoder(SMALL)
    save_file({k: v.contiguous() for k, v in first.state_dict().items()}, tmp_path / "volume.safetensors")
    again = build_encoder(SMALL, pretrained=tmp_path / "volume.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    with pytest.raises(DataError, match=r"volume.safetensors.*2.5d encoder 'resnet10t'.*shape.*got \(24, 1, 3, 3, 3\)"):
        build_encoder(SMALL, family="2.5d", pretrained=tmp_path / "volume.safetensors")


@pytest.mark.parametrize("family", ["3d", "2.5d"])
def test_weights_that_are_not_there_or_do_not_fit(tmp_path, family):
    timm = pytest.importorskip("timm")

    def load(name: str):
        build_encoder("resnet18", family=family, pretrained=tmp_path / name)

    with pytest.raises(DataError, match=r"no pretrained weights here.*local file"):
        load("absent.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(DataError, match="cannot be read"):
        load("text.pth")
    save_file({"conv1.weight": torch.zeros(3, 3, 7, 7)}, tmp_path / "part.safetensors")
    with pytest.raises(DataError, match=r"do not fit.*'resnet18'.*absent"):
        load("part.safetensors")
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "other.pth")
    with pytest.raises(DataError, match=r"other.pth: these weights do not fit the .*'resnet18'"):
        load("other.pth")


def test_input_of_a_study_marks_what_is_not_covered():
    images = {v: np.full((5, *SPEC.shapes[v]), CENTER + SCALE) for v in VIEWS}
    covered = {v: np.ones(images[v].shape, bool) for v in VIEWS}
    covered[SAGITTAL_T1][:, :3] = False
    covered[AXIAL_T2][0] = False
    covered[SAGITTAL_T2][:] = False
    result = study_input(study_crops("7", images, covered))
    assert (result.images[SAGITTAL_T1][:, :3] == 0).all()
    assert np.allclose(result.images[SAGITTAL_T1][:, 3:], 1, atol=1e-2)
    assert result.present.tolist() == [[False] * 5, [False, True, True, True, True], [True] * 5]


def test_batched_equals_one_by_one(network):
    crops, _ = planted_cohort(3)
    inputs = [study_input(c) for c in crops.values()]
    together = predict_probabilities(network, inputs, CPU, batch_size=3)
    single = np.concatenate([predict_probabilities(network, [i], CPU) for i in inputs])
    assert np.allclose(together, single, atol=1e-5) and np.allclose(together.sum(-1), 1)
    assert predict_probabilities(network, [], CPU).shape == (0, 25, 3)


class OnApple(torch.Tensor):
    """A tensor of a device without float64."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(result, torch.Tensor) and func is not torch.Tensor.cpu and result.dtype == torch.float64:
            raise TypeError("the MPS framework doesn't support float64")
        return result.as_subclass(torch.Tensor) if func is torch.Tensor.cpu else result


def test_predictions_need_no_float64_on_the_device(network, monkeypatch):
    forward = network.forward
    monkeypatch.setattr(network, "forward", lambda *a: {"logits": forward(*a)["logits"].as_subclass(OnApple)})
    inputs = [study_input(c) for c in planted_cohort(1)[0].values()]
    for mirror in (False, True):
        p = predict_probabilities(network, inputs, CPU, mirror=mirror)
        assert type(p) is np.ndarray and p.dtype == np.float64 and np.allclose(p.sum(-1), 1, atol=1e-12)


def test_mirror_averaging_is_symmetric(network):
    crops, _ = planted_cohort(2)
    inputs = [study_input(c) for c in crops.values()]
    mirrored = [type(i)(i.study_id, mirror_images(i.images), i.present) for i in inputs]
    a, b = (
        predict_probabilities(network, inputs, CPU, mirror=True),
        predict_probabilities(network, mirrored, CPU, mirror=True),
    )
    assert np.allclose(a, mirror_probabilities(b), atol=1e-5)


def test_dataset_in_memory_equals_from_the_cache():
    crops, _ = planted_cohort(2)
    labels = np.zeros((2, 25), int)
    kept = CropDataset(crops, list(crops), labels, progress=False)
    read = CropDataset(crops, list(crops), labels, in_memory=False)
    for i in range(2):
        assert all(torch.equal(kept[i]["images"][v], read[i]["images"][v]) for v in VIEWS)
    stacked = batch_of([study_input(c) for c in crops.values()])
    assert torch.equal(stacked["images"][SAGITTAL_T2][1], kept[1]["images"][SAGITTAL_T2])
    with pytest.raises(DataError, match="labels must have shape"):
        CropDataset(crops, list(crops), labels[:1], progress=False)


def test_folds_spread_every_class():
    rng = np.random.default_rng(0)
    labels = rng.choice(3, p=[0.8, 0.15, 0.05], size=(200, 25))
    labels[rng.random(labels.shape) < 0.02] = MISSING
    folds = assign_folds(labels, 5, seed=1)
    sizes = np.bincount(folds, minlength=5)
    assert sizes.sum() == 200 and sizes.max() - sizes.min() <= 4
    severe = np.array([(labels[folds == f] == 2).sum(0) for f in range(5)])
    even = (labels == 2).sum(0) / 5
    assert np.abs(severe - even).max() <= 3
    assert np.array_equal(folds, assign_folds(labels, 5, seed=1))
    with pytest.raises(DataError, match="folds"):
        assign_folds(labels[:3], 5)


def test_device_and_precision_say_why():
    compute = choose_compute("cpu", "auto")
    assert compute.device.type == "cpu" and "CPU" in compute.reason
    with pytest.raises(DataError, match="precision"):
        choose_compute("cpu", "float8")
    with pytest.raises(DataError, match="unknown device 'gpu'"):
        choose_compute("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(DataError, match="cannot be used"):
            choose_compute("cuda", "auto")
