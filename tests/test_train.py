"""Tiny trainings that must learn a planted signal, resume exactly, and predict what they reported."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from planted_crops import planted_cohort, study_crops, tiny_config

import lumbar_utils.runs as runs
from lumbar_utils.classifier import ClassifierConfig
from lumbar_utils.errors import DataError
from lumbar_utils.labels import PROBABILITY_COLUMNS, TARGETS, VIEWS, encode_severities, row_ids
from lumbar_utils.metrics import competition_score, read_predictions, score_frames, weighted_prior
from lumbar_utils.predict import Predictor
from lumbar_utils.train import fit
from lumbar_utils.train_config import TrainConfig


@pytest.fixture(scope="module")
def cohort():
    return planted_cohort(32, seed=1)


@pytest.fixture(scope="module")
def run(cohort, tmp_path_factory):
    crops, labels = cohort
    settings = tiny_config(epochs=8, learning_rate=2e-3, evaluate_every=4)
    return fit(crops, labels, settings, tmp_path_factory.mktemp("run"), synthetic_only=True, progress=False)


def test_a_tiny_training_learns_the_planted_signal(run):
    assert run.scores["model"].total < run.scores["weighted_prior"].total - 0.15
    assert run.history["loss"].iloc[-1] < run.history["loss"].iloc[0]
    assert run.history["held_out_score"].notna().tolist() == [False, False, False, True] * 2


def test_the_run_folder_is_complete(run, cohort):
    _, labels = cohort
    names = {p.name for p in run.folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "history.csv", "oof.csv", "manifest.json"}
    assert all(p.stat().st_mode & 0o044 == 0o044 for p in run.folder.iterdir()), "others may read the weights"
    manifest = json.loads((run.folder / "manifest.json").read_text())
    assert manifest["scores"]["model"]["total"] == pytest.approx(run.scores["model"].total)
    assert manifest["synthetic_only"] is True and manifest["versions"]["torch"]
    assert not set(manifest["train_studies"]) & set(manifest["held_out_studies"])
    assert len(manifest["train_studies"]) == 24
    oof = pd.read_csv(run.folder / "oof.csv")
    assert oof["row_id"].tolist() == row_ids(run.study_ids)
    assert score_frames(labels, oof, only_submitted=True).total == pytest.approx(run.scores["model"].total, abs=1e-6)


def test_prior_comes_from_the_training_part_only(run, cohort):
    _, labels = cohort
    train = labels[~labels["study_id"].isin(run.study_ids)]
    assert np.allclose(Predictor(run.folder, "cpu").prior, weighted_prior(encode_severities(train)), atol=1e-8)


def test_inference_repeats_what_training_reported(run, cohort):
    crops, _ = cohort
    predictor = Predictor(run.folder, "cpu", precision="float32")
    p = predictor.predict_crops(crops[s] for s in run.study_ids)
    assert np.allclose(p, run.probabilities, atol=1e-5)
    written = read_predictions(pd.read_csv(run.folder / "oof.csv"), run.study_ids)
    assert np.allclose(written, p, atol=1e-5)


def test_mirror_averaging_keeps_the_score(run, cohort):
    crops, labels = cohort
    p = Predictor(run.folder, "cpu", precision="float32", mirror=True).predict_crops(crops[s] for s in run.study_ids)
    codes = encode_severities(labels.set_index("study_id").loc[list(run.study_ids)].reset_index())
    assert competition_score(codes, p).total < run.scores["weighted_prior"].total - 0.15


def test_same_seed_same_result(cohort, tmp_path):
    crops, labels = cohort
    first = fit(crops, labels, tiny_config(epochs=1), tmp_path / "a", progress=False)
    again = fit(crops, labels, tiny_config(epochs=1), tmp_path / "b", progress=False)
    other = fit(crops, labels, tiny_config(epochs=1, seed=1), tmp_path / "c", progress=False)
    assert np.array_equal(first.probabilities, again.probabilities)
    assert first.study_ids != other.study_ids or not np.allclose(first.probabilities, other.probabilities)


class Killed(BaseException):
    pass


def test_a_killed_run_resumes_to_the_same_result(cohort, tmp_path, monkeypatch):
    crops, labels = cohort
    settings = tiny_config(epochs=3, checkpoint_seconds=0.0)
    whole = fit(crops, labels, settings, tmp_path / "whole", progress=False)

    import lumbar_utils.trainer as trainer

    step, calls = trainer.Trainer._train_step, []

    def killing(self, batch, rate):
        calls.append(rate)
        if len(calls) == 9:  # in the middle of the second epoch of six steps
            raise Killed
        return step(self, batch, rate)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_train_step", killing)
        with pytest.raises(Killed):
            fit(crops, labels, settings, tmp_path / "cut", progress=False)
    assert (tmp_path / "cut" / "checkpoint.safetensors").is_file()
    with pytest.raises(DataError, match="no weights"):
        Predictor(tmp_path / "cut", "cpu")

    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_train_step", lambda self, b, r: (calls.append(r), step(self, b, r))[1])
        resumed = fit(crops, labels, settings, tmp_path / "cut", progress=False)
    assert len(calls) == 12, "the first epoch is not done again"
    assert np.allclose(resumed.probabilities, whole.probabilities, atol=1e-6)
    assert len(resumed.history) == 3
    assert not (tmp_path / "cut" / "checkpoint.safetensors").exists()


def test_a_checkpoint_of_another_run_or_a_broken_one_is_not_used(cohort, tmp_path, monkeypatch, caplog):
    crops, labels = cohort
    folder = tmp_path / "run"
    monkeypatch.setattr("lumbar_utils.checkpoints.Checkpoint.remove", lambda self: None)
    fit(crops, labels, tiny_config(epochs=2, checkpoint_seconds=0.0), folder, progress=False)
    fit(crops, labels, tiny_config(epochs=1), folder, progress=False)
    assert "another configuration" in caplog.text
    (folder / "checkpoint.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{broken")
    fit(crops, labels, tiny_config(epochs=1, batch_size=8), folder, progress=False)
    assert "cannot be read" in caplog.text


def test_an_older_runs_weights_never_stand_beside_a_newer_configuration(cohort, tmp_path, monkeypatch):
    crops, labels = cohort
    fit(crops, labels, tiny_config(epochs=1), tmp_path, progress=False)
    before = Predictor(tmp_path, "cpu", precision="float32").predict_crops([crops["1000"]])

    def killed(self, batch, rate):
        raise Killed

    monkeypatch.setattr("lumbar_utils.trainer.Trainer._train_step", killed)
    other = tiny_config(classifier=ClassifierConfig(encoder="resnet10t", head="unified"))
    with pytest.raises(Killed):
        fit(crops, labels, other, tmp_path, progress=False)
    after = Predictor(tmp_path, "cpu", precision="float32").predict_crops([crops["1000"]])
    assert np.array_equal(after, before)


def test_a_full_disk_is_a_clear_error_and_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_text("old")

    def full(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"model.safetensors: cannot be written .*No space left"):
        runs.atomically(path, full)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_unknown_keys_and_wrong_values_are_refused(cohort, tmp_path):
    with pytest.raises(DataError, match=r"my.json.*learning_rat"):
        TrainConfig.from_json({"learning_rat": 1}, "my.json")
    with pytest.raises(DataError, match=r"classifier.*heads"):
        TrainConfig.from_json({"classifier": {"heads": 1}})
    settings = tiny_config(epochs=3)
    assert TrainConfig.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    for values in (
        {"epochs": "ten"},
        {"epochs": 2.5},
        {"in_memory": 1},
        {"epochs": True},
        {"classifier": {"width": "x"}},
    ):
        with pytest.raises(DataError, match=r"my\.json.* must be of type"):
            TrainConfig.from_json(values, "my.json")
    assert TrainConfig.from_json({"learning_rate": 1, "time_limit_minutes": 3}).learning_rate == 1
    with pytest.raises(DataError, match="fold must"):
        tiny_config(fold=9)
    crops, labels = cohort
    with pytest.raises(DataError, match="none of the 32 labelled studies has crops"):
        fit({"x": crops["1000"]}, labels, tiny_config(), tmp_path)
    with pytest.raises(DataError, match="lack crops or labels"):
        fit(crops, labels, tiny_config(), tmp_path, held_out=["nobody"])


def test_missing_labels_and_views_train(tmp_path):
    crops, labels = planted_cohort(6, seed=3, missing=0.5)
    ids = list(crops)
    for study_id, view in zip(ids[:3], VIEWS, strict=True):
        item = crops[study_id]
        covered = {v: np.zeros_like(c) if v == view else c for v, c in item.covered.items()}
        crops[study_id] = study_crops(study_id, item.images, covered)
    labels.loc[5, list(TARGETS)] = None
    result = fit(crops, labels, tiny_config(epochs=1, folds=1), tmp_path / "all", progress=False)
    assert result.scores == {} and math.isfinite(result.history["loss"].iloc[0])
    assert (pd.read_csv(tmp_path / "all" / "oof.csv").columns == ["row_id", *PROBABILITY_COLUMNS]).all()


def test_time_limit_ends_the_schedule(cohort, tmp_path):
    crops, labels = cohort
    result = fit(crops, labels, tiny_config(epochs=500, time_limit_minutes=0.05), tmp_path / "run", progress=False)
    assert len(result.history) < 100 and result.seconds < 60
