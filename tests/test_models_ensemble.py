"""Several networks as one: the list on disk, their mean, and what happens when one of them fails.

The networks are hardly more than their biases, which hold the class prior, so that every expectation can be computed.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from planted_crops import SPEC, disc_points, planted_study, study_crops
from safetensors.torch import load_file, save_file

import lumbar_utils.inference.networks as networks_module
import lumbar_utils.inference.preprocessing as preprocessing_module
from lumbar_utils.crops.extraction import CropSpec
from lumbar_utils.errors import DataError
from lumbar_utils.inference.predictor import Predictor
from lumbar_utils.inference.preprocessing import preprocess_study
from lumbar_utils.kaggle.workspace import find_weights
from lumbar_utils.labels import AXIAL_T2, N_TARGETS, SAGITTAL_T1, SAGITTAL_T2
from lumbar_utils.metrics.calibration import Calibration
from lumbar_utils.metrics.score import FAMILY_TARGETS
from lumbar_utils.models.classifier import ClassifierConfig, LumbarClassifier
from lumbar_utils.models.ensemble import Ensemble, Member, member_folders, name_of, run_of
from lumbar_utils.models.run_folder import RunConfig, load_model, save_run
from lumbar_utils.studies.study import Study

SMALL = CropSpec(shapes={SAGITTAL_T2: (8, 12, 12), AXIAL_T2: (8, 12, 12), SAGITTAL_T1: (8, 12, 12)})
PRIORS = {"fold_0": (0.6, 0.3, 0.1), "fold_1": (0.2, 0.3, 0.5), "other/fold_0": (0.3, 0.4, 0.3)}
CALIBRATION = Calibration(bias={**dict.fromkeys(FAMILY_TARGETS, (0, 0, 0)), "spinal": (0, 0, 1.0)})


def write_run(folder, prior, *, spec=SPEC, synthetic_only=False, training=None):
    """A run folder with an untrained network, which predicts the prior."""
    torch.manual_seed(0)
    config = ClassifierConfig(encoder="resnet10t", head="unified", auxiliary=False)
    prior = np.tile(prior, (N_TARGETS, 1))
    model = LumbarClassifier(config, prior)
    save_run(folder, model, RunConfig(config, spec, prior, training or {}, synthetic_only))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`classifier/` with two folds on one kind of crops and one member of another family on smaller crops."""
    folder = tmp_path_factory.mktemp("a run") / "classifier"
    write_run(folder / "fold_0", PRIORS["fold_0"])
    write_run(folder / "fold_1", PRIORS["fold_1"], synthetic_only=True)
    write_run(folder / "other/fold_0", PRIORS["other/fold_0"], spec=SMALL)
    write_run(folder / "broken", (0.1, 0.1, 0.8))
    return folder


def listed(folder, *members, name="ensemble.json", calibration=None):
    """Write a list beside the members under another name, so that the tests do not disturb each other."""
    path = Ensemble(tuple(Member(*m) if isinstance(m, tuple) else Member(m) for m in members), calibration).save(folder)
    return path.rename(folder / name)


def predictor(path, **options):
    return Predictor(path, "cpu", precision="float32", **options)


@pytest.fixture(scope="module")
def crops():
    """Three studies, each cut by both specifications."""
    rng = np.random.default_rng(0)
    big = [planted_study(str(i), rng.integers(0, 3, N_TARGETS), rng) for i in range(3)]
    small = [study_crops(c.study_id, {v: c.images[v][:, :8, :12, :12] for v in SMALL.shapes}, spec=SMALL) for c in big]
    return big, small


@pytest.fixture(scope="module")
def alone(runs, crops):
    """What each network says on its own, (3, 25, 3)."""
    big, small = crops
    return {name: predictor(runs / name).predict_crops(small if "other" in name else big) for name in PRIORS}


def test_the_mean_is_weighted_and_then_calibrated(runs, crops, alone):
    big, _ = crops
    p0, p1 = alone["fold_0"], alone["fold_1"]
    path = listed(runs, ("fold_0", 3), ("fold_1", 1.0), name="weighted.json", calibration=CALIBRATION)
    both = predictor(path, batch_size=2)
    assert np.allclose(both.predict_crops(iter(big)), CALIBRATION.apply(0.75 * p0 + 0.25 * p1), atol=1e-9)
    assert not np.allclose(p0, p1, atol=0.1)
    assert np.allclose(both.prior, 0.75 * np.array(PRIORS["fold_0"]) + 0.25 * np.array(PRIORS["fold_1"]))
    assert both.synthetic_only, "one of them has seen nothing but phantoms"
    assert both.predict_crops([]).shape == (0, N_TARGETS, 3)


def test_a_single_run_is_an_ensemble_of_one(runs, crops, alone):
    big, _ = crops
    assert Ensemble.load(runs / "fold_0") == Ensemble((Member("."),))
    listed_alone = predictor(listed(runs, "fold_0", name="one.json"))
    assert np.array_equal(alone["fold_0"], listed_alone.predict_crops(big))
    assert listed_alone.specs == (SPEC,) and not listed_alone.synthetic_only


def test_members_with_other_crops_get_their_own(runs, crops, alone, monkeypatch):
    big, small = crops
    mixed = predictor(listed(runs, "fold_0", "other/fold_0", name="mixed.json"))
    assert mixed.specs == (SPEC, SMALL) and mixed.spec == SPEC
    expected = (alone["fold_0"] + alone["other/fold_0"]) / 2
    assert np.allclose(mixed.predict_crops(zip(small, big, strict=True)), expected, atol=1e-9)
    with pytest.raises(DataError, match=r"study 0: .* but a network was trained on"):
        mixed.predict_crops(big)

    cut = []

    def fake_extract(study, discs, spec):
        cut.append(spec)
        return (big if spec == SPEC else small)[int(study.study_id)]

    monkeypatch.setattr(preprocessing_module, "extract_crops", fake_extract)
    three = predictor(listed(runs, "fold_0", "fold_1", "other/fold_0", name="three.json"))
    result = three.predict_study(Study("1", (), ()), disc_points("1"))
    assert cut == [SPEC, SMALL], "cut once per specification, not once per member"
    assert np.allclose(result.weighted, three.predict_crops([(big[1], small[1])])[0]) and result.synthetic_only


def test_a_network_without_a_finite_answer_does_not_poison_the_mean(runs, crops, alone, monkeypatch):
    big, _ = crops
    monkeypatch.setattr(preprocessing_module, "extract_crops", lambda study, discs, spec: big[int(study.study_id)])
    path = listed(runs, ("fold_0", 1), ("broken", 5), ("fold_1", 3), name="one broken.json")
    given = predictor(path)
    torch.nn.init.constant_(given.models[1].bias, float("inf"))
    p0, p1 = alone["fold_0"], alone["fold_1"]
    assert np.allclose(given.predict_crops(big), 0.25 * p0 + 0.75 * p1, atol=1e-9)
    result = given.predict_study(Study("2", (), ()), disc_points("2"))
    assert not result.fallback and np.allclose(result.weighted, 0.25 * p0[2] + 0.75 * p1[2], atol=1e-9)
    assert "1 of 3 networks gave no finite number" in str(result.issues[-1])

    none = predictor(listed(runs, "broken", name="all broken.json", calibration=CALIBRATION))
    torch.nn.init.constant_(none.models[0].bias, float("inf"))
    result = none.predict_study(Study("2", (), ()), disc_points("2"))
    assert result.fallback and np.allclose(result.weighted, none.prior)
    assert "no finite number" in str(result.issues[-1])


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path):
    write_run(tmp_path, PRIORS["fold_0"])
    path = tmp_path / "model.safetensors"
    (model, config), tensors = load_model(tmp_path), load_file(path)
    name = next(name for name in tensors if name.endswith("running_var"))
    model.get_buffer(name)[0] = tensors[name][0] = float("inf")
    with pytest.raises(DataError, match=rf"model.safetensors: {name} holds numbers that are not finite"):
        save_run(tmp_path, model, config)
    load_model(tmp_path)
    save_file(tensors, path)
    with pytest.raises(DataError, match=rf"model.safetensors: {name} holds numbers that are not finite"):
        predictor(tmp_path)


@pytest.mark.parametrize(
    ("other", "warned"), [({"fold": 1}, False), ({"seed": 4}, False), ({"fold_seed": 1}, True), ({"folds": 4}, True)]
)
def test_networks_of_different_folds_are_named(tmp_path, caplog, other, warned):
    for name, values in (("a", {}), ("b", other)):
        write_run(tmp_path / name, PRIORS["fold_0"], training={"folds": 5, "fold_seed": 0, "seed": 3, **values})
    predictor(listed(tmp_path, "a", "b"))
    assert ("different folds" in caplog.text) is warned


def test_an_overflow_in_one_study_costs_that_study_one_voice(runs, crops, alone, monkeypatch):
    big, _ = crops
    monkeypatch.setattr(preprocessing_module, "extract_crops", lambda study, discs, spec: big[int(study.study_id)])
    both, predict_probabilities = (
        predictor(listed(runs, "fold_0", "fold_1", name="overflow.json")),
        networks_module.predict_probabilities,
    )

    def overflowing(model, inputs, *arguments, **options):
        p = predict_probabilities(model, inputs, *arguments, **options)
        if model is both.models[0]:
            p[[i for i, item in enumerate(inputs) if item.study_id == "1"], 3] = np.nan
        return p

    monkeypatch.setattr(networks_module, "predict_probabilities", overflowing)
    prepared = [preprocess_study(Study(str(i), (), ()), None, both.specs, disc_points(str(i))) for i in range(3)]
    results = list(both._predict(prepared, both.plan))
    assert [bool(r.issues) for r in results] == [False, True, False] and not any(r.fallback for r in results)
    assert np.allclose(results[1].weighted, alone["fold_1"][1], atol=1e-9)


def test_the_list_on_disk(tmp_path):
    ensemble = Ensemble((Member("fold_0"), Member("2.5d/fold_0", 0.5)), CALIBRATION)
    path = ensemble.save(tmp_path)
    assert path == tmp_path / "ensemble.json" and list(tmp_path.iterdir()) == [path]
    assert Ensemble.load(path) == Ensemble.load(tmp_path) == ensemble
    assert member_folders(tmp_path) == [tmp_path / "fold_0", tmp_path / "2.5d" / "fold_0"]
    assert np.allclose(ensemble.weights, [2 / 3, 1 / 3])
    values = json.loads(path.read_text())
    assert values["version"] == 1 and values["members"][0] == {"run": "fold_0", "weight": 1.0}
    for wrong, words in (
        ({**values, "version": 2}, "format 2"),
        ({**values, "name": "best"}, "expected the keys"),
        ({**values, "members": []}, "at least one member"),
        ({**values, "members": ["fold_0"]}, "a list of objects"),
        ({**values, "members": [{"run": "a", "wieght": 1.0}]}, "wieght"),
        ({**values, "members": [{"run": "a"}, {"run": "a"}]}, "none twice"),
        ({**values, "members": [{"run": "a", "weight": 0}]}, "must be positive"),
        ({**values, "members": [{"run": 3}]}, "must be of type str"),
        ({**values, "calibration": {"temperature": 1}}, "calibration"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(DataError, match=words) as raised:
            Ensemble.load(tmp_path)
        assert str(path) in str(raised.value)


@pytest.mark.parametrize("run", ["/tmp/run", "../run", "a/../../b", "C:\\run", "\\\\server\\run", ""])
def test_members_must_lie_below_the_list(run):
    with pytest.raises(DataError, match="must be a folder below"):
        Member(run)


def test_missing_members_are_named_and_a_list_goes_before_a_single_run(tmp_path, caplog):
    Ensemble((Member("fold_0"), Member("fold_1"))).save(tmp_path)
    write_run(tmp_path / "fold_0", PRIORS["fold_0"])
    with pytest.raises(DataError, match="fold_1: no such run folder"):
        predictor(tmp_path)
    write_run(tmp_path / "fold_1", PRIORS["fold_1"])
    write_run(tmp_path, PRIORS["fold_1"])
    assert len(predictor(tmp_path).models) == 2 and "holds both" in caplog.text


def test_the_run_of_a_fold_is_that_of_its_ensemble(tmp_path):
    """Where the localizer lies that cut the training crops: a single fold must not get another one."""
    folder = tmp_path / "run" / "classifier"
    (folder / "fold_0").mkdir(parents=True)
    assert run_of(folder) == tmp_path / "run"
    path = Ensemble((Member("fold_0"),)).save(folder)
    assert run_of(folder) == run_of(path) == run_of(folder / "fold_0") == tmp_path / "run"
    for near in (folder, tmp_path / "run"):  # the list of several runs may lie in the run folder itself
        (near / "localizer").mkdir()
    assert run_of(tmp_path / "run") == tmp_path / "run" and run_of(folder / "fold_0") == folder


def test_the_run_of_runs_in_a_list_above_them_is_the_first_that_has_a_localizer(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "classifier" / "fold_0").mkdir(parents=True)
        (tmp_path / name / "classifier" / "model.safetensors").touch()
    Ensemble((Member("a/classifier"), Member("b/classifier/fold_0"))).save(tmp_path)
    (tmp_path / "b" / "localizer").mkdir()
    assert run_of(tmp_path) == tmp_path / "b"
    assert name_of(tmp_path) == tmp_path.name and name_of(tmp_path / "a" / "classifier") == "a"
    (tmp_path / "ensemble.json").rename(tmp_path / "mix.json")
    assert run_of(tmp_path / "mix.json") == tmp_path / "b" and name_of(tmp_path / "mix.json") == tmp_path.name
    (tmp_path / "mix.json").rename(tmp_path / "ensemble.json")
    assert find_weights("classifier", tmp_path) == tmp_path
    (tmp_path / "classifier").mkdir()  # a single run beside the list does not go before it
    (tmp_path / "classifier" / "model.safetensors").touch()
    assert find_weights("classifier", tmp_path) == find_weights("classifier", run=tmp_path) == tmp_path
