"""All folds: every study predicted once by a network that has not seen it, and an ensemble that adds them up."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from planted_crops import FAST, planted_cohort, tiny_config

from lumbar_utils.cli import main
from lumbar_utils.errors import DataError
from lumbar_utils.inference.predictor import Predictor
from lumbar_utils.labels import SEVERITY_WEIGHTS, decode_severities, encode_severities, row_ids
from lumbar_utils.metrics.score import competition_score, read_predictions
from lumbar_utils.models.ensemble import Ensemble
from lumbar_utils.training.cross_validation import _summary, fit_folds
from lumbar_utils.training.loop import Trainer
from lumbar_utils.training.train import fit

SETTINGS = tiny_config(classifier=FAST, epochs=5, learning_rate=3e-3, folds=2)


@pytest.fixture(scope="module")
def cohort():
    return planted_cohort(24, seed=1)


@pytest.fixture(scope="module")
def result(cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "classifier"
    return fit_folds(*cohort, SETTINGS, folder, synthetic_only=True, progress=False)


@pytest.fixture
def steps(monkeypatch):
    """How often the optimiser was run, in a list of one number."""
    step, count = Trainer._train_step, [0]

    def counted(self, batch, rate):
        count[0] += 1
        return step(self, batch, rate)

    monkeypatch.setattr(Trainer, "_train_step", counted)
    return count


def codes_of(labels, study_ids):
    return encode_severities(labels.set_index("study_id").loc[list(study_ids)].reset_index())


def test_every_study_is_predicted_once_by_a_network_that_has_not_seen_it(cohort, result):
    crops, labels = cohort
    assert sorted(result.study_ids) == sorted(crops)
    oof = pd.read_csv(result.folder / "oof.csv", dtype={"row_id": str})
    assert oof["row_id"].tolist() == row_ids(result.study_ids)
    for fold in result.folds:
        manifest = json.loads((fold.folder / "manifest.json").read_text())
        assert sorted([*manifest["train_studies"], *fold.study_ids]) == sorted(crops)
        alone = Predictor(fold.folder, "cpu", precision="float32").predict_crops(crops[s] for s in fold.study_ids)
        assert np.allclose(read_predictions(oof, fold.study_ids), alone, atol=1e-6)
    assert result.scores["model"].total == pytest.approx(
        competition_score(codes_of(labels, result.study_ids), result.probabilities).total
    )
    assert result.scores["model"].total < result.scores["weighted_prior"].total - 0.1


def test_the_folder_says_what_it_is_and_is_an_ensemble(cohort, result):
    crops, _ = cohort
    assert {path.name for path in result.folder.iterdir()} == {
        "fold_0", "fold_1", "ensemble.json", "oof.csv", "manifest.json",
    }  # fmt: skip
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert set(manifest["scores"]) == {"model", "calibrated", "weighted_prior", "uniform"}
    assert manifest["scores"]["model"]["total"] == pytest.approx(result.scores["model"].total)
    assert manifest["folds"] == {f"fold_{i}": list(fold.study_ids) for i, fold in enumerate(result.folds)}
    together = Predictor(result.folder, "cpu", precision="float32").predict_crops([crops["1000"]])
    members = [Predictor(f.folder, "cpu", precision="float32").predict_crops([crops["1000"]]) for f in result.folds]
    mean = np.mean(members, axis=0)
    assert np.allclose(together, mean if result.calibration is None else result.calibration.apply(mean), atol=1e-6)


def test_only_a_calibration_that_helps_is_kept(cohort, result):
    helps = result.scores["calibrated"].total < result.scores["model"].total
    assert helps == (Ensemble.load(result.folder).calibration is not None)

    _, labels = cohort
    sharpened = [replace(f, probabilities=normalised(f.probabilities**4)) for f in result.folds]
    assert _summary(result.folder, sharpened, labels).calibration is not None

    # Labels that are drawn by the predictions themselves, which then are as good as they can be for weights of 1/2/4.
    ids, p = list(result.study_ids), result.probabilities
    draws = np.random.default_rng(0).random((len(ids), 25, 1))
    drawn = (normalised(p / SEVERITY_WEIGHTS).cumsum(-1) < draws).sum(-1)
    summary = _summary(result.folder, result.folds, decode_severities(drawn, ids))
    assert summary.calibration is None and summary.scores["calibrated"].total > summary.scores["model"].total


def normalised(p):
    return p / p.sum(axis=-1, keepdims=True)


def test_the_run_is_scored_by_the_command(cohort, result, tmp_path, capsys):
    _, labels = cohort
    labels.to_csv(tmp_path / "train.csv", index=False)
    for given in (result.folder, result.folder.parent):
        assert main(["score", str(tmp_path / "train.csv"), str(given)]) == 0
        head, *_, last = capsys.readouterr().out.splitlines()
        assert "calibrated" in head and "weighted prior" in head
        wanted = [result.scores[name].total for name in ("model", "calibrated", "weighted_prior")]
        assert [float(word) for word in last.split()[1:]] == pytest.approx(wanted, abs=2e-6)


def test_a_second_call_trains_nothing_and_finished_folds_are_not_trained_again(cohort, result, steps, tmp_path):
    again = fit_folds(*cohort, SETTINGS, result.folder, synthetic_only=True, progress=False)
    assert steps == [0]
    assert again.study_ids == result.study_ids and np.allclose(again.probabilities, result.probabilities, atol=1e-8)

    short = replace(SETTINGS, epochs=1)
    fit(*cohort, replace(short, fold=0), tmp_path / "fold_0", progress=False)  # then it was interrupted
    steps[0] = 0
    both = fit_folds(*cohort, short, tmp_path, progress=False)
    trained = len(cohort[0]) - len(both.folds[1].study_ids)
    assert steps == [trained // SETTINGS.batch_size], "the second fold alone was trained"
    assert sorted(both.study_ids) == sorted(cohort[0])


def test_a_single_run_and_an_ensemble_take_each_others_place(cohort, tmp_path):
    crops, _ = cohort
    short = replace(SETTINGS, epochs=1)
    fit(*cohort, short, tmp_path, progress=False)
    fit_folds(*cohort, short, tmp_path, progress=False)
    assert len(Ensemble.load(tmp_path).members) == 2
    Predictor(tmp_path, "cpu").predict_crops([crops["1000"]])
    single = fit(*cohort, short, tmp_path, progress=False)
    p = Predictor(tmp_path, "cpu", precision="float32").predict_crops(crops[s] for s in single.study_ids)
    assert np.allclose(p, single.probabilities, atol=1e-6)


def test_one_fold_is_refused(cohort, tmp_path):
    with pytest.raises(DataError, match="two folds or more"):
        fit_folds(*cohort, replace(SETTINGS, folds=1), tmp_path)
