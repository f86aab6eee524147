"""Tiny trainings that must learn a planted signal, resume exactly, and predict what they reported."""

import json
import math
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from crops_on_disk import kill_at_first_checkpoint, training, write_training_data
from planted_crops import FAST, planted_cohort, study_crops, tiny_config

from lumbar_utils.crops.cache import CropCache
from lumbar_utils.crops.extraction import CropSpec
from lumbar_utils.devices import running_average
from lumbar_utils.errors import DataError
from lumbar_utils.inference.predictor import Predictor
from lumbar_utils.labels import PROBABILITY_COLUMNS, TARGETS, VIEWS, encode_severities, row_ids
from lumbar_utils.metrics.score import competition_score, read_predictions, score_frames, weighted_prior
from lumbar_utils.models.run_folder import load_model
from lumbar_utils.studies.competition import SYNTHETIC_MARK
from lumbar_utils.training import __main__ as command_line
from lumbar_utils.training import cross_validation
from lumbar_utils.training.augmentation import AugmentConfig
from lumbar_utils.training.config import TrainConfig
from lumbar_utils.training.datasets import folds_by_study, training_split
from lumbar_utils.training.loop import Trainer
from lumbar_utils.training.train import fit


@pytest.fixture(scope="module")
def cohort():
    return planted_cohort(32, seed=1)


@pytest.fixture(scope="module")
def run(cohort, tmp_path_factory):
    crops, labels = cohort
    settings = tiny_config(classifier=FAST, epochs=8, learning_rate=3e-3, evaluate_every=4)
    return fit(crops, labels, settings, tmp_path_factory.mktemp("run"), synthetic_only=True, progress=False)


def test_a_tiny_training_learns_the_planted_signal(run):
    assert run.scores["model"].total < run.scores["weighted_prior"].total - 0.15
    assert run.history["loss"].iloc[-1] < run.history["loss"].iloc[0]
    assert run.history["held_out_score"].notna().tolist() == [False, False, False, True] * 2


def test_a_training_can_start_from_a_run(run, cohort, tmp_path):
    crops, labels = cohort
    settings = tiny_config(classifier=FAST, epochs=1, learning_rate=1e-6, initial=str(run.folder))
    again = fit(crops, labels, settings, tmp_path / "again", progress=False)
    assert again.scores["model"].total == pytest.approx(run.scores["model"].total, abs=0.02)
    scratch = fit(crops, labels, replace(settings, initial=None), tmp_path / "again", progress=False)
    assert scratch.scores["model"].total > again.scores["model"].total + 0.1, "another training, not the finished one"
    wide = replace(settings, classifier=replace(FAST, width=FAST.width // 2))
    fit(crops, labels, wide, tmp_path / "wide", progress=False)  # its head starts anew
    with pytest.raises(DataError, match="its encoder is another one"):
        fit(crops, labels, replace(settings, classifier=replace(FAST, family="2d")), tmp_path / "other", progress=False)


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


@pytest.mark.parametrize("mark", [True, False])
def test_the_training_command_knows_a_synthetic_cohort_by_its_mark(cohort, tmp_path, monkeypatch, mark):
    crops, labels = cohort
    data = write_training_data(tmp_path, dict(list(crops.items())[:2]), labels, tiny_config(classifier=FAST))
    if mark:
        (data / SYNTHETIC_MARK).touch()
    calls = []
    nothing = SimpleNamespace(scores={})
    assert cross_validation.fit is fit, "imported before its name is another's"
    monkeypatch.setattr(command_line, "fit", lambda *words, **options: calls.append(options) or nothing)
    command = [str(data / "crops"), str(data / "train.csv"), str(tmp_path / "run")]
    command_line.main(command)
    command_line.main([*command, "--synthetic", "--training-labels", str(data / "train.csv")])
    assert [options["synthetic_only"] for options in calls] == [mark, True]
    assert not calls[0]["progress"], "bars are for terminals"
    assert "training_labels" not in calls[0] and calls[1]["training_labels"].equals(
        pd.read_csv(data / "train.csv", dtype={"study_id": str})
    )


def test_a_study_stays_in_its_fold_whatever_crops_of_others_are_lost(cohort, caplog):
    crops, labels = cohort
    settings = tiny_config()
    of = folds_by_study(labels, settings.folds, seed=settings.fold_seed)
    out = [s for s in crops if of[s] == 0]
    whole = training_split(crops, crops, labels, settings)
    assert whole.held_out == out and len(out) > 4 and not set(whole.train) & set(out)
    lost = next(s for s in crops if of[s] == 1)
    fewer = {s: item for s, item in crops.items() if s != lost}
    assert training_split(fewer, fewer, labels, settings).held_out == out
    unseen = {s: item for s, item in crops.items() if s != out[0]}
    assert training_split(crops, unseen, labels, settings).held_out == out[1:]
    assert f"1 of {len(out)} held-out studies have no crops" in caplog.text
    trained = {s: item for s, item in crops.items() if of[s] != 0}
    with pytest.raises(DataError, match=r"only 0 of 24 studies .*fold 0 of 4.*another fold.*--found"):
        training_split(trained, trained, labels, settings)
    apart = {s: crops[s] for s in out}
    assert training_split(trained, apart, labels, settings).train == whole.train


def test_the_learning_rate_rises_then_falls_and_averages_follow_the_weights():
    settings = TrainConfig(learning_rate=0.1, warmup=0.2)
    rates = [settings.rate(progress) for progress in np.linspace(0, 1, 101)]
    assert np.argmax(rates) == 20 and rates[20] == pytest.approx(0.1)
    assert rates[0] < 0.01 and rates[-1] == pytest.approx(0.001)
    assert (np.diff(rates[:21]) > 0).all() and (np.diff(rates[20:]) < 0).all()
    two = TrainConfig(learning_rate=0.1, warmup=0.2, head_share=0.5)
    assert [two.rate(p) for p in (0.1, 0.6)] == pytest.approx([0.1, 0.1]), "each step has its own rise"

    update = running_average(0.9)
    average, counted = [torch.zeros(3)], [torch.tensor(0)]  # torch hands over what is of one type
    for n in range(1, 201):
        update(average, [torch.ones(3)], torch.tensor(n))
        update(counted, [torch.tensor(n)], torch.tensor(n))
        if n == 1:
            assert average[0][0] == pytest.approx(1 - 2 / 11), "the random start is soon forgotten"
    assert torch.allclose(average[0], torch.ones(3), atol=1e-3) and counted == [torch.tensor(200)]
    update(average, [torch.zeros(3)], torch.tensor(200))
    assert average[0][0] == pytest.approx(0.9, abs=1e-3)


def test_no_step_is_longer_than_the_clip(cohort, tmp_path, monkeypatch):
    crops, labels = cohort
    norms = []
    real = torch.nn.utils.clip_grad_norm_

    def clipped(parameters, largest):
        parameters = list(parameters)
        before = real(parameters, largest)
        after = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]))
        norms.append((float(before), float(after)))
        return before

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clipped)
    settings = tiny_config(classifier=FAST, epochs=1, clip=1e-3)
    fit(crops, labels, settings, tmp_path, progress=False)
    assert norms and all(before > 1e-3 and after < 1.01e-3 for before, after in norms)


def test_prior_comes_from_the_training_part_only(run, cohort):
    _, labels = cohort
    seen = labels[~labels["study_id"].isin(run.study_ids)]
    assert np.allclose(Predictor(run.folder, "cpu").prior, weighted_prior(encode_severities(seen)), atol=1e-8)


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
    first = fit(crops, labels, tiny_config(classifier=FAST, epochs=1), tmp_path / "a", progress=False)
    again = fit(crops, labels, tiny_config(classifier=FAST, epochs=1), tmp_path / "b", progress=False)
    other = fit(crops, labels, tiny_config(classifier=FAST, epochs=1, seed=1), tmp_path / "c", progress=False)
    assert np.array_equal(first.probabilities, again.probabilities)
    assert first.study_ids == other.study_ids and not np.allclose(first.probabilities, other.probabilities)
    again = training_split(crops, crops, labels, tiny_config(fold_seed=1))
    assert again.held_out != list(first.study_ids), "folds have a seed of their own"


class Killed(BaseException):
    pass


HEAD_LAST = {"head_share": 0.5}
IN_WORKERS = {"workers": 2, "augment": AugmentConfig(intensity=1.0)}


@pytest.mark.parametrize(("values", "die_at", "left"), [({}, 9, 12), (HEAD_LAST, 14, 6), (IN_WORKERS, 9, 12)])
def test_a_killed_run_resumes_to_the_same_result(cohort, tmp_path, monkeypatch, values, die_at, left):
    crops, labels = cohort
    settings = tiny_config(classifier=FAST, epochs=3, checkpoint_seconds=0.0, **values)
    whole = fit(crops, labels, settings, tmp_path / "whole", progress=False)
    step, calls = Trainer._train_step, []

    def killing(self, batch, rate):
        calls.append(rate)
        if len(calls) == die_at:  # in the middle of an epoch of six steps
            raise Killed
        return step(self, batch, rate)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", killing)
        with pytest.raises(Killed):
            fit(crops, labels, settings, tmp_path / "cut", progress=False)
    assert (tmp_path / "cut" / "checkpoint.safetensors").is_file()
    with pytest.raises(DataError, match="no weights"):
        Predictor(tmp_path / "cut", "cpu")

    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", lambda self, b, r: (calls.append(r), step(self, b, r))[1])
        resumed = fit(crops, labels, settings, tmp_path / "cut", progress=False)
    assert len(calls) == left, "epochs that were finished are not done again"
    assert np.allclose(resumed.probabilities, whole.probabilities, atol=1e-6)
    assert len(resumed.history) == 3
    assert not (tmp_path / "cut" / "checkpoint.safetensors").exists()


def test_a_run_that_is_killed_from_outside_goes_on_to_the_same_result(cohort, tmp_path):
    config = tiny_config(classifier=FAST, epochs=5, checkpoint_seconds=0.0)
    data = write_training_data(tmp_path, *cohort, config)
    kill_at_first_checkpoint(training(data, tmp_path / "cut"), tmp_path / "cut")
    labels = pd.read_csv(data / "train.csv", dtype={"study_id": str})
    threads, seen = torch.get_num_threads(), []
    torch.set_num_threads(1)  # as in the process that was killed
    try:
        whole = fit(*cohort, config, tmp_path / "whole", progress=False)
        crops = CropCache.open(data / "crops")
        again = fit(crops, labels, config, tmp_path / "cut", on_epoch=lambda h: seen.append(len(h)), progress=False)
    finally:
        torch.set_num_threads(threads)
    assert seen[0] >= 2 and seen[-1] == 5, "it went on from where it was killed"
    assert again.study_ids == whole.study_ids
    assert np.allclose(again.probabilities, whole.probabilities, atol=1e-4)


def test_a_disk_that_is_full_keeps_the_last_checkpoint(cohort, tmp_path):
    resource = pytest.importorskip("resource", reason="this system cannot limit the size of files")
    crops, labels = cohort
    settings = tiny_config(classifier=FAST, epochs=3, checkpoint_seconds=0.0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / ".checkpoint.safetensors.x1y2z3a4.lumbar-partial").mkdir()  # of a run that was killed
    seen = []

    def fill_the_disk(history):
        if len(history) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))

    try:
        with pytest.raises(DataError, match=r"checkpoint.safetensors: cannot be written .*disk full"):
            fit(crops, labels, settings, tmp_path, on_epoch=fill_the_disk, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    result = fit(crops, labels, settings, tmp_path, on_epoch=lambda h: seen.append(len(h)), progress=False)
    assert seen == [2, 3], "it went on from the checkpoint of the first epoch"
    assert len(result.history) == 3


def test_crops_cut_otherwise_than_the_others_are_named(cohort, tmp_path):
    crops, labels = cohort
    shapes = {view: (depth, 20, 20) for view, (depth, _, _) in crops["1000"].spec.shapes.items()}
    images = {view: np.zeros((5, *shape)) for view, shape in shapes.items()}
    other = study_crops("1007", images, spec=CropSpec(shapes=shapes))
    with pytest.raises(DataError, match=r"study 1007: its crops are cut as .*20, 20.* those of others"):
        fit({**crops, "1007": other}, labels, tiny_config(classifier=FAST, fold=1), tmp_path, progress=False)


def test_two_trainings_of_one_folder_do_not_mix(cohort, tmp_path):
    crops, labels = cohort
    settings, refused = tiny_config(classifier=FAST, epochs=1), []

    def another(history):
        with pytest.raises(DataError, match=r"run: another training is under way there") as error:
            fit(crops, labels, tiny_config(classifier=FAST, epochs=2), tmp_path / "run", progress=False)
        refused.append(str(error.value))

    first = fit(crops, labels, settings, tmp_path / "run", on_epoch=another, progress=False)
    assert len(refused) == 1 and "\n" not in refused[0]
    assert np.array_equal(fit(crops, labels, settings, tmp_path / "run", progress=False).study_ids, first.study_ids)
    fit(crops, labels, tiny_config(classifier=FAST, epochs=2), tmp_path / "run", progress=False)


def test_a_finished_run_is_read_and_anything_new_is_trained(cohort, tmp_path, monkeypatch):
    crops, labels = cohort
    settings, shown = tiny_config(classifier=FAST, epochs=2), []
    first = fit(crops, labels, settings, tmp_path, on_epoch=shown.append, progress=False)
    assert [history["epoch"].tolist() for history in shown] == [[1], [1, 2]]
    assert set(shown[0].columns) == set(first.history.columns)

    def trained(self, batch, rate):
        raise Killed

    monkeypatch.setattr(Trainer, "_train_step", trained)
    again = fit(crops, labels, settings, tmp_path, progress=False)
    assert np.allclose(again.probabilities, first.probabilities, atol=1e-8)
    assert again.study_ids == first.study_ids and again.scores["model"].total == pytest.approx(
        first.scores["model"].total, abs=1e-6
    )
    assert again.history["loss"].tolist() == pytest.approx(first.history["loss"].tolist())

    one = next(s for s in crops if s not in first.study_ids)
    other_crops = crops | {one: crops[first.study_ids[0]]}
    other_labels = labels.copy()
    other_labels.loc[labels["study_id"] == one, TARGETS[0]] = None
    for changed in (
        (other_crops, labels, settings),
        (crops, other_labels, settings),
        (crops, labels, tiny_config(classifier=FAST, epochs=2, clip=2.0)),
    ):
        with pytest.raises(Killed):
            fit(*changed, tmp_path, progress=False)
    with pytest.raises(Killed):
        fit(crops, labels, settings, tmp_path, resume=False, progress=False)


def test_the_training_uses_training_labels_and_the_validation_held_out_crops(cohort, tmp_path):
    crops, labels = cohort
    out = [str(s) for s in labels["study_id"][:5]]
    mild = labels.assign(**dict.fromkeys(TARGETS, "Normal/Mild"))
    known = {s: item for s, item in crops.items() if s not in out}
    found = {s: crops[other] for s, other in zip(out, reversed(out), strict=True)}
    settings = tiny_config(classifier=FAST, epochs=1)
    result = fit(
        known, labels, settings, tmp_path, held_out=out, held_out_crops=found, training_labels=mild, progress=False
    )
    assert result.history["loss"].iloc[0] < 0.2 < result.scores["model"].total, "it has never seen a severe case"
    codes = encode_severities(labels.set_index("study_id").loc[out].reset_index())
    assert result.scores["model"].total == pytest.approx(competition_score(codes, result.probabilities).total)
    p = Predictor(tmp_path, "cpu", precision="float32").predict_crops(found[s] for s in out)
    assert np.allclose(p, result.probabilities, atol=1e-6)
    with pytest.raises(DataError, match="training labels lack"):
        fit(crops, labels, settings, tmp_path, training_labels=mild[:3], progress=False)


def test_the_second_phase_trains_the_head_alone_on_encoders_that_were_trained_unweighted(cohort, tmp_path, monkeypatch):
    begin, stages = Trainer._begin, []

    def noted(self, stage):
        begin(self, stage)
        weights = {name: value.clone() for name, value in self.average.module.state_dict().items()}
        stages.append((self.loss.class_weights, weights))

    monkeypatch.setattr(Trainer, "_begin", noted)
    fit(*cohort, tiny_config(classifier=FAST, epochs=2, head_share=0.5), tmp_path, progress=False)
    assert [class_weights for class_weights, _ in stages] == [False, True]
    start, middle = (weights for _, weights in stages)
    end = load_model(tmp_path)[0].state_dict()
    encoders = [name for name in end if name.startswith("encoders.")]
    assert any(name.endswith("running_var") for name in encoders)
    for name in encoders:
        stored_half = end[name].ndim >= 2
        assert torch.equal(end[name], middle[name].half().float() if stored_half else middle[name]), name
        assert not torch.equal(start[name], middle[name]), name
    assert not torch.equal(end["bias"], middle["bias"])


def test_mixed_studies_train(cohort, tmp_path):
    settings = tiny_config(classifier=FAST, epochs=1, augment=AugmentConfig(cutmix=0.5, mixup=0.5))
    result = fit(*cohort, settings, tmp_path, progress=False)
    assert math.isfinite(result.history["loss"].iloc[0]) and np.isfinite(result.probabilities).all()


def test_a_step_that_overflows_leaves_nothing_in_the_buffers(cohort, tmp_path, monkeypatch, caplog):
    step, spoilt = Trainer._train_step, []

    def inf_voxel(self, batch, rate):
        if self.step % 6 == 2:
            batch["images"][VIEWS[0]][0, 2, 3, 4, 5] = math.inf
            spoilt.append(self.step + 1)
        return step(self, batch, rate)

    monkeypatch.setattr(Trainer, "_train_step", inf_voxel)
    settings = tiny_config(classifier=FAST, precision="float16", checkpoint_seconds=0.0, evaluate_every=1)
    result = fit(*cohort, settings, tmp_path, progress=False)
    assert len(spoilt) == 2 and all(f"step {number}: the loss is nan" in caplog.text for number in spoilt)
    assert all(bool(t.isfinite().all()) for t in load_model(tmp_path)[0].state_dict().values())
    assert result.history["held_out_score"].notna().all() and "held-out studies got no finite" not in caplog.text


def test_a_validation_without_a_finite_number_is_an_error(cohort, tmp_path, monkeypatch):
    nothing = lambda model, inputs, *_, **__: np.full((len(inputs), 25, 3), np.nan)  # noqa: E731
    monkeypatch.setattr("lumbar_utils.training.train.predict_probabilities", nothing)
    with pytest.raises(DataError, match="no finite number for any held-out study"):
        fit(*cohort, tiny_config(classifier=FAST, epochs=1), tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_run_or_a_broken_one_is_not_used(cohort, tmp_path, monkeypatch, caplog):
    crops, labels = cohort
    folder = tmp_path / "run"
    monkeypatch.setattr("lumbar_utils.training.checkpoints.Checkpoint.remove", lambda self: None)
    fit(crops, labels, tiny_config(classifier=FAST, epochs=2, checkpoint_seconds=0.0), folder, progress=False)
    fit(crops, labels, tiny_config(classifier=FAST, epochs=1), folder, progress=False)
    assert "another configuration" in caplog.text
    (folder / "checkpoint.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{broken")
    fit(crops, labels, tiny_config(classifier=FAST, epochs=1, batch_size=8), folder, progress=False)
    assert "cannot be read" in caplog.text


def answer(folder, crops):
    return Predictor(folder, "cpu", precision="float32").predict_crops([crops["1000"]]).tolist()


def test_a_finished_run_stays_while_another_is_trained_and_when_the_disk_is_full_at_its_end(cohort, tmp_path):
    resource = pytest.importorskip("resource", reason="this system cannot limit the size of files")
    crops, labels = cohort
    fit(crops, labels, tiny_config(classifier=FAST, epochs=1), tmp_path, progress=False)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk(history):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))

    other = tiny_config(classifier=replace(FAST, head="unified"), epochs=1)
    try:
        with pytest.raises(DataError, match=r"model.safetensors: cannot be written .*disk full"):
            fit(crops, labels, other, tmp_path, on_epoch=fill_the_disk, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(("first", "second"), [("single", "other"), ("single", "folds"), ("folds", "single")])
def test_a_kill_while_a_run_takes_the_place_of_another_leaves_one_of_them(cohort, tmp_path, monkeypatch, first, second):
    config, seen = tiny_config(classifier=FAST, epochs=1, folds=2), []
    other = replace(config, classifier=replace(FAST, head="unified"))
    trainings = {"single": (fit, config), "other": (fit, other), "folds": (cross_validation.fit_folds, other)}

    def train(name):
        function, settings = trainings[name]
        function(*cohort, settings, tmp_path, progress=False)
        return answer(tmp_path, cohort[0])

    def looking(move):
        return lambda *paths, **options: (seen.append(answer(tmp_path, cohort[0])), move(*paths, **options))[1]

    old = train(first)
    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "rmdir"):
            patch.setattr(os, name, looking(getattr(os, name)))
        new = train(second)
    switched = seen.index(new)
    assert switched > 5 and new != old
    assert all(p == old for p in seen[:switched]) and all(p == new for p in seen[switched:])


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
    for value in (None, [], "x"):
        with pytest.raises(DataError, match=r"my\.json.* augment must be an object"):
            TrainConfig.from_json({"augment": value}, "my.json")
    assert TrainConfig.from_json({"learning_rate": 1, "time_limit_minutes": 3}).learning_rate == 1
    with pytest.raises(DataError, match="fold must"):
        tiny_config(fold=9)
    wrong = [("warmup", 1), ("ema_decay", 1.5), ("learning_rate", -1), ("clip", 0), ("weight_decay", -0.1)]
    for name, value in [*wrong, ("workers", -1), ("time_limit_minutes", 0), ("time_limit_minutes", "4")]:
        with pytest.raises(DataError, match=name):
            tiny_config(**{name: value})
    for name in ("mirror", "slice_dropout", "intensity"):
        with pytest.raises(DataError, match=f"{name} must be at most 1"):
            AugmentConfig(**{name: 1.5})
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
    result = fit(crops, labels, tiny_config(classifier=FAST, epochs=1, folds=1), tmp_path / "all", progress=False)
    assert result.scores == {} and math.isfinite(result.history["loss"].iloc[0])
    assert (pd.read_csv(tmp_path / "all" / "oof.csv").columns == ["row_id", *PROBABILITY_COLUMNS]).all()


def test_time_limit_ends_the_schedule(cohort, tmp_path):
    crops, labels = cohort
    result = fit(
        crops,
        labels,
        tiny_config(classifier=FAST, epochs=500, time_limit_minutes=0.05),
        tmp_path / "run",
        progress=False,
    )
    assert len(result.history) < 100 and result.seconds < 60
