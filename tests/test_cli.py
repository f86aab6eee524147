"""The command line: it teaches, it answers fast, and a user's mistake gives one clear line."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lumbar_utils import localization
from lumbar_utils.cli import inputs, main
from lumbar_utils.errors import DataError
from lumbar_utils.kaggle.workspace import split_studies
from lumbar_utils.labels import PROBABILITY_COLUMNS, SEVERITIES, TARGETS, decode_severities, row_ids
from lumbar_utils.localization import DiscLocalizer
from lumbar_utils.metrics.score import competition_score, plain_frequencies
from lumbar_utils.models import run_folder
from lumbar_utils.studies.study import CompetitionFolder, find_studies
from lumbar_utils.training import label_denoising as denoising
from lumbar_utils.training import train as train_module

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("phantom", "localize", "crops", "train", "predict", "score", "doctor", "kaggle")


def lumbar(*arguments, cwd=ROOT) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "lumbar_utils", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def fails(capsys, *arguments) -> str:
    """Run a command that must fail; its message, which must be one line."""
    assert main([str(a) for a in arguments]) == 1
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("lumbar: error: "), captured.err
    assert "Traceback" not in captured.err and "unexpected" not in captured.err
    return lines[0]


@pytest.fixture
def tables(tmp_path):
    """A solution in `train.csv` form, one in long form, a submission, and the score computed from arrays."""
    rng = np.random.default_rng(3)
    ids = [str(i) for i in rng.choice(10**9, 40, replace=False)]
    labels = rng.choice([-1, 0, 1, 2], p=[0.05, 0.6, 0.2, 0.15], size=(40, 25))
    probabilities = rng.dirichlet([4, 2, 1], size=(40, 25))
    decode_severities(labels, ids).to_csv(tmp_path / "train.csv", index=False)

    submission = pd.DataFrame(probabilities.reshape(-1, 3), columns=list(PROBABILITY_COLUMNS))
    submission.insert(0, "row_id", row_ids(ids))
    submission.sample(frac=1, random_state=0).to_csv(tmp_path / "submission.csv", index=False)

    known = labels.ravel() >= 0
    long = pd.DataFrame(np.eye(3, dtype=int)[labels.ravel()], columns=list(PROBABILITY_COLUMNS))
    long.insert(0, "row_id", row_ids(ids))
    long["sample_weight"] = np.array([1, 2, 4])[labels.ravel()]
    long[known].to_csv(tmp_path / "solution.csv", index=False)
    return tmp_path, competition_score(labels, probabilities)


def test_help_answers_within_half_a_second():
    best = 9.0
    for _ in range(5):  # the machine may be busy
        started = time.perf_counter()
        done = lumbar("--help")
        best = min(best, time.perf_counter() - started)
    assert done.returncode == 0
    assert best < 0.5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "example" in text and f"lumbar {command}" in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("lumbar_utils ")


@pytest.mark.parametrize("arguments", [[], ["grade"], ["phantom"], ["phantom", "x", "--studies", "0"], ["train"]])
def test_a_command_line_that_is_not_understood_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "lumbar" in capsys.readouterr().err


@pytest.mark.parametrize("solution", ["train.csv", "solution.csv"])
def test_score_prints_the_four_terms_and_the_score_to_six_decimals(tables, solution, capsys):
    folder, expected = tables
    assert main(["score", str(folder / solution), str(folder / "submission.csv")]) == 0
    lines = [line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    terms = (expected.spinal, expected.foraminal, expected.subarticular, expected.any_severe_spinal)
    assert [value for _, value in lines] == [f"{value:.6f}" for value in (*terms, expected.total)]
    assert lines[-1][0] == "score"


def test_score_of_tables_that_are_not_there_or_not_tables(tables, capsys):
    folder, _ = tables
    good = folder / "submission.csv"
    assert "absent.csv" in fails(capsys, "score", folder / "absent.csv", good)
    (folder / "empty.csv").write_text("")
    assert "empty.csv" in fails(capsys, "score", folder / "empty.csv", good)
    (folder / "picture.csv").write_bytes(bytes(range(256)) * 10)
    assert "picture.csv" in fails(capsys, "score", folder / "picture.csv", good)
    assert "folder" in fails(capsys, "score", folder, good)
    pd.read_csv(good).iloc[5:].to_csv(folder / "short.csv", index=False)
    assert "lacks" in fails(capsys, "score", folder / "train.csv", folder / "short.csv")
    table = pd.read_csv(folder / "train.csv", dtype=str)
    table.loc[0, TARGETS[0]] = "Mild"
    table.to_csv(folder / "strange.csv", index=False)
    assert "'Mild'" in fails(capsys, "score", folder / "strange.csv", good)
    assert SEVERITIES[0] in fails(capsys, "score", folder / "strange.csv", good)


@pytest.mark.parametrize("solution", ["train.csv", "solution.csv"])
def test_a_fold_is_scored_against_the_whole_table(tables, solution, capsys):
    folder, _ = tables
    submission = pd.read_csv(folder / "submission.csv", dtype={"row_id": str})
    first = submission["row_id"].str.startswith(tuple("12345"))
    submission[first].to_csv(folder / "fold.csv", index=False)
    message = fails(capsys, "score", folder / solution, folder / "fold.csv")
    assert "lacks" in message and "studies" in message and "--predicted-only" in message
    assert main(["score", str(folder / solution), str(folder / "fold.csv"), "--predicted-only"]) == 0
    fold = capsys.readouterr().out
    table = pd.read_csv(folder / "train.csv", dtype={"study_id": str})
    table[table["study_id"].str.startswith(tuple("12345"))].to_csv(folder / "part.csv", index=False)
    assert main(["score", str(folder / "part.csv"), str(folder / "fold.csv")]) == 0
    assert capsys.readouterr().out == fold


def test_a_trained_classifiers_folder_is_scored_by_its_out_of_fold_predictions(tables, capsys):
    folder, _ = tables
    run = folder / "run" / "classifier"
    run.mkdir(parents=True)
    assert "without oof.csv" in fails(capsys, "score", folder / "train.csv", folder / "run")
    submission = pd.read_csv(folder / "submission.csv", dtype={"row_id": str})
    first = submission["row_id"].str.startswith(tuple("12345"))
    submission[first].to_csv(run / "oof.csv", index=False)
    assert main(["score", str(folder / "train.csv"), str(run / "oof.csv"), "--predicted-only"]) == 0
    expected = [line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    for given in (run, folder / "run"):  # without a manifest: the same as the table's
        assert main(["score", str(folder / "train.csv"), str(given)]) == 0
        assert [line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()] == expected

    terms = ("spinal", "foraminal", "subarticular", "any_severe_spinal", "total")
    prior = {name: 0.5 + i / 10 for i, name in enumerate(terms)}
    scores = {"model": prior, "weighted_prior": prior, "uniform": prior}
    (run / "manifest.json").write_text(json.dumps({"scores": scores}))
    assert main(["score", str(folder / "train.csv"), str(run)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split("  ")[-1].strip() == "weighted prior" and "out-of-fold" in head and "uniform" not in head
    assert [line.split()[-1] for line in lines] == [f"{prior[name]:.6f}" for name in terms]
    assert [line.split()[-2] for line in lines] == [value for _, value in expected]
    (run / "manifest.json").write_text("{")
    assert "manifest.json" in fails(capsys, "score", folder / "train.csv", run)


def test_paths_and_weights_that_are_not_there(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out.csv"
    assert "nowhere" in fails(capsys, "localize", "nowhere", "--out", out)
    assert "nowhere" in fails(capsys, "predict", "nowhere", "--weights", tmp_path, "--out", out)
    assert "Kaggle" in fails(capsys, "localize", "--out", out)
    (tmp_path / "scans").mkdir()
    assert "weights of a localizer" in fails(capsys, "localize", "scans", "--weights", tmp_path, "--out", out)
    assert "is not a folder" in fails(capsys, "localize", "scans", "--weights", "nowhere", "--out", out)
    assert "weights of a classifier" in fails(capsys, "predict", "scans", "--weights", tmp_path, "--out", out)
    monkeypatch.setattr(run_folder, "SHIPPED_CLASSIFIER", tmp_path / "nothing")  # the default of --weights
    assert "runs/demo/classifier" in fails(capsys, "predict", "scans")
    crops = ("crops", "scans", "--points", "points.csv", "--out", tmp_path / "crops", "--no-progress")
    assert "scans: holds no file that may be DICOM; archives" in fails(capsys, *crops)
    (tmp_path / "scans" / "note.txt").write_text("no DICOM here")
    assert "scans" in fails(capsys, *crops)
    assert "scans" in fails(capsys, "train", "localizer", "scans", "--run", tmp_path / "run")
    assert not out.exists()


def test_crops_are_cut_at_given_points_or_found_ones_not_both(tmp_path, capsys):
    (tmp_path / "scans").mkdir()
    both = ("--points", tmp_path / "points.csv", "--weights", tmp_path)
    message = fails(capsys, "crops", tmp_path / "scans", "--out", tmp_path / "crops", *both)
    assert "--points" in message and "--weights" in message and "one of the two" in message
    assert not (tmp_path / "crops").exists()


def test_a_result_that_is_a_folder_is_refused_before_the_work(tmp_path, capsys):
    (tmp_path / "scans").mkdir()
    for part in ("localizer", "classifier"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "model.safetensors").touch()
    for command in ("localize", "predict"):
        message = fails(capsys, command, tmp_path / "scans", "--weights", tmp_path, "--out", tmp_path)
        assert "--out names the file to write" in message


def test_a_place_where_nothing_can_be_written_is_refused_before_the_work(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("scans").mkdir()
    Path("file").touch()
    for part in ("localizer", "classifier"):
        Path(part).mkdir()
        Path(part, "model.safetensors").touch()
    for command, out in (("localize", "file/a/points.csv"), ("predict", "file/grades.csv"), ("crops", "file")):
        message = fails(capsys, command, "scans", "--weights", ".", "--out", out)
        assert "file is a file, expected a folder; choose another place for --out" in message
    pytest.importorskip("highdicom")
    message = fails(capsys, "predict", "scans", "--weights", ".", "--sr", "file/sr")
    assert "choose another place for --sr" in message
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != Path("scans"))  # root may write anywhere
    message = fails(capsys, "localize", "scans", "--weights", ".", "--out", "scans/points.csv")
    assert "nothing may be written in scans" in message
    assert [path.name for path in Path("scans").iterdir()] == []


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("target"), os.mkfifo])
@pytest.mark.parametrize("command", ["localize", "predict"])
def test_a_link_or_a_pipe_is_refused_before_the_work(tmp_path, capsys, command, make):
    for part in ("localizer", "classifier"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "model.safetensors").touch()
    make(tmp_path / "out.csv")
    message = fails(capsys, command, tmp_path, "--weights", tmp_path, "--out", tmp_path / "out.csv")
    assert "only a plain file may be replaced" in message


def test_a_terminal_without_the_letters_ends_nothing(monkeypatch):
    monkeypatch.setattr("lumbar_utils.cli.predict.score", lambda args: print(args.solution))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert main(["score", "M\u00fcll", "M\udcfcll"]) == 0
    assert sys.stdout.buffer.getvalue() == b"M\\xfcll\n"


def test_an_unexpected_error_is_one_line_and_debug_shows_where(monkeypatch, capsys, caplog):
    def broken(args):
        raise KeyError("broken")

    monkeypatch.setattr("lumbar_utils.cli.predict.score", broken)
    assert main(["score", "a", "b"]) == 1
    assert "--debug" in capsys.readouterr().err and "Traceback" not in caplog.text
    assert main(["score", "a", "b", "--debug"]) == 1
    assert "in broken" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "no memory"),
        ImportError("libtorch_cuda.so: failed to map segment from shared object"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("unable to mmap 87748666 bytes from file <x>: Cannot allocate memory (12)"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_too_little_memory_is_said_as_that(monkeypatch, capsys, error, wrapped):
    def fail(args):
        try:
            raise error
        except Exception as cause:
            raise (DataError("model.safetensors: these weights cannot be used") if wrapped else error) from cause

    monkeypatch.setattr("lumbar_utils.cli.predict.score", fail)
    message = fails(capsys, "score", "a", "b")
    assert "not enough memory; use fewer --jobs" in message and "weights" not in message and "pip" not in message


def test_interrupted(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    for function in ("predict.score", "train.train_localizer", "train.train_classifier"):
        monkeypatch.setattr(f"lumbar_utils.cli.{function}", interrupted)
    # A localizer's training starts again, so nothing is promised.
    for command in (["score", "a", "b"], ["train", "localizer", "a", "--run", "b"]):
        assert main(command) == 130
        assert capsys.readouterr().err.strip() == "lumbar: interrupted"
    assert main(["train", "classifier", "a", "--run", "b"]) == 130
    assert capsys.readouterr().err.strip().endswith("resumes where it was")


def test_phantom_writes_a_cohort(tmp_path):
    done = lumbar("phantom", tmp_path / "a cohort", "--studies", 2, "--seed", 5, "--jobs", 1, "--no-progress")
    assert done.returncode == 0, done.stderr
    assert "2 synthetic studies" in done.stdout and done.stderr == ""
    table = pd.read_csv(tmp_path / "a cohort" / "train_series_descriptions.csv")
    assert set(table["series_description"]) <= {"Sagittal T1", "Sagittal T2/STIR", "Axial T2"}
    assert (tmp_path / "a cohort" / "truth" / "discs.csv").is_file()


@pytest.fixture(scope="module")
def trained_run(cohort, tmp_path_factory) -> Path:
    """A run folder made by the command line: both networks, hardly trained."""
    run = tmp_path_factory.mktemp("run") / "a run"
    quiet = ("--run", run, "--seed", 1, "--jobs", 1, "--device", "cpu", "--no-progress")
    done = lumbar("train", "localizer", cohort, *quiet, "--steps", 2)
    assert done.returncode == 0, done.stderr
    assert "localizer: shipped with lumbar_utils" in done.stdout  # where the fine-tuning begins
    assert "studies_shifted_unflagged" in done.stdout and "exact_slice" in done.stdout
    truth = pd.read_csv(cohort / "truth" / "discs.csv", dtype={"study_id": str})
    points = truth.rename(columns={f"canal_{axis}": axis for axis in "xyz"})
    points = points[["study_id", "level", "x", "y", "z"]].assign(series_id="", confidence=1.0, flag="")
    points.to_csv(run / "points.csv", index=False)
    done = lumbar("train", "classifier", cohort, *quiet, "--epochs", 1, "--points", run / "points.csv")
    assert done.returncode == 0, done.stderr
    assert "weighted prior" in done.stdout
    return run


@pytest.mark.slow
def test_both_networks_hold_out_the_same_studies(cohort, trained_run, monkeypatch):
    from lumbar_utils import localization as localizer

    def only_noted(folder, study_ids, **options):
        learnt.extend(study_ids)
        raise DataError("enough")

    learnt = []
    monkeypatch.setattr(localizer, "train_localizer", only_noted, raising=False)
    assert main(["train", "localizer", str(cohort), "--run", str(trained_run / "other"), "--seed", "1"]) == 1
    held_out = json.loads((trained_run / "classifier" / "manifest.json").read_text())["held_out_studies"]
    assert learnt and held_out and not set(held_out) & set(learnt)


@pytest.mark.slow
def test_all_steps_on_a_cohort(cohort, trained_run, tmp_path):
    out, reports = tmp_path / "submission.csv", tmp_path / "reports"
    options = ("--weights", trained_run, "--pictures", 1, "--no-progress", "--report", reports)
    done = lumbar("predict", cohort, "--out", out, *options)
    assert done.returncode == 0, done.stderr
    test_ids = pd.read_csv(cohort / "test_series_descriptions.csv", dtype=str)["study_id"].unique()
    submission = pd.read_csv(out, dtype={"row_id": str})
    assert sorted(submission["row_id"]) == sorted(row_ids(test_ids))
    np.testing.assert_allclose(submission[list(PROBABILITY_COLUMNS)].sum(axis=1), 1, atol=1e-6)
    log = pd.read_csv(tmp_path / "submission_log.csv", dtype={"study_id": str})
    assert list(log["study_id"]) == list(test_ids)
    assert f"{len(test_ids)} studies" in done.stdout and "submission_log.csv" in done.stdout
    assert f"localizer: {trained_run / 'localizer'}" in done.stdout  # the run's own, not the shipped one
    assert f"{len(test_ids)} reports, 0 failed" in done.stdout and (reports / "index.html").is_file()
    report = json.loads((reports / "studies" / f"{test_ids[0]}.json").read_text())
    graded = submission.set_index("row_id").loc[f"{test_ids[0]}_spinal_canal_stenosis_l1_l2"]
    reported = list(report["grades"][0]["probabilities"].values())
    submitted = graded[list(PROBABILITY_COLUMNS)].to_numpy(float)
    np.testing.assert_allclose(reported, plain_frequencies(submitted), atol=1e-6)  # only the submission is weighted
    assert report["synthetic"] == {"weights": True, "study": True} and report["model"]["name"] == trained_run.name
    assert str(tmp_path) not in json.dumps(report) and str(trained_run) not in json.dumps(report)
    done = lumbar("predict", cohort, "--out", out, "--weights", trained_run, "--report", out)  # a file, refused at once
    assert done.returncode == 1 and "reports cannot be written there" in done.stderr

    done = lumbar("score", cohort / "truth" / "labels.csv", out)
    assert done.returncode == 1 and "lacks" in done.stderr  # only the test part was predicted
    done = lumbar("score", cohort / "truth" / "labels.csv", out, "--predicted-only")
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("score")


@pytest.mark.slow
def test_localize_and_crops_write_what_the_next_step_reads(cohort, trained_run, tmp_path):
    folder = cohort / "test_images"
    points, crops = tmp_path / "points.csv", tmp_path / "crops"
    given = ("--points", trained_run / "points.csv", "--out", crops, "--jobs", 1, "--size", 40)
    done = lumbar("crops", folder, *given)
    assert done.returncode == 0, done.stderr
    assert len(list(crops.glob("*.npz"))) == len(list(folder.iterdir()))
    shapes = json.loads((crops / "manifest.json").read_text())["spec"]["shapes"]
    assert {tuple(shape[1:]) for shape in shapes.values()} == {(40, 40)}
    done = lumbar("localize", folder, "--weights", trained_run, "--out", points)
    assert done.returncode == 0, done.stderr
    assert f"localizer: {trained_run / 'localizer'}" in done.stdout
    table = pd.read_csv(points, dtype=str, keep_default_na=False)
    columns = ["study_id", "series_id", "level", "x", "y", "z", "confidence", "flag", "condition", "instance_number"]
    assert list(table.columns) == columns
    assert table.groupby("study_id").size().eq(25).all()
    done = lumbar("crops", folder, "--points", points, "--out", tmp_path / "again", "--jobs", 1, "--size", 40)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_folds_learn_from_marked_points_and_are_graded_on_found_ones(cohort, tmp_path, capsys, monkeypatch):
    from lumbar_utils.crops.cache import CropCache
    from lumbar_utils.localization import points_from_table, read_points

    folder, run = CompetitionFolder.open(cohort), tmp_path / "run"
    ids = list(folder.labels["study_id"])
    network = {"encoder": "test_resnet", "family": "2.5d", "width": 16}
    config = tmp_path / "folds.json"
    config.write_text(json.dumps({"folds": 2, "epochs": 1, "batch_size": 2, "classifier": network}))
    quiet = ("--config", config, "--jobs", 1, "--device", "cpu", "--no-progress")
    train = [str(a) for a in ("train", "classifier", cohort, "--run", run, *quiet)]

    assert "fold must lie" in fails(capsys, *train, "--fold", 7)
    single = tmp_path / "single.json"
    single.write_text('{"folds": 1}')
    assert "number of folds" in fails(capsys, *train, "--config", single, "--fold", "all")
    assert not run.exists(), "what cannot be is refused before the work"
    assert main([*train, "--fold", "all"]) == 0
    printed = capsys.readouterr().out
    assert f"{len(ids)} out-of-fold predictions" in printed and "calibrated" in printed
    assert "training crops are shifted by the localizer's error" in printed
    shift = json.loads((run / "classifier" / "fold_0" / "config.json").read_text())["training"]["augment"]["shift_mm"]
    assert len(shift) == 3 and all(0 < mm < 3 for mm in shift) and shift != [1.0, 2.0, 2.0]
    manifest = json.loads((run / "classifier" / "manifest.json").read_text())
    held_out = [split_studies(folder, fold, folds=2)[1] for fold in (0, 1)]
    assert manifest["folds"] == {"fold_0": held_out[0], "fold_1": held_out[1]} and manifest["synthetic_only"]
    marked, found = points_from_table(folder, ids, n_jobs=1)[0], read_points(run / "crops_found" / "points.csv")
    learnt, graded = (CropCache.open(run / name) for name in ("crops", "crops_found"))
    for study_id in ids:
        assert np.allclose(learnt[study_id].points.points, marked[study_id].points, atol=0.01)
        assert np.allclose(graded[study_id].points.points, found[study_id].points, atol=0.01)
        assert not np.allclose(found[study_id].points, marked[study_id].points, atol=0.01)

    assert main([*train, "--fold", "1"]) == 0
    assert set(CropCache.open(run / "crops").study_ids) == set(held_out[0])
    assert CropCache.open(run / "crops_found").study_ids == tuple(held_out[1])
    oof = pd.read_csv(run / "classifier" / "oof.csv", dtype=str)
    assert oof["row_id"].tolist() == row_ids(held_out[1])

    capsys.readouterr()
    assert "of no training study" in fails(capsys, *train, "--fold", "1", "--denoise", run)
    unheard = pd.DataFrame({"row_id": row_ids(held_out[0])}).assign(normal_mild=1e-6, moderate=1e-6, severe=1 - 2e-6)
    unheard.to_csv(tmp_path / "oof.csv", index=False)
    learnt_from = []
    real = train_module.fit
    monkeypatch.setattr(denoising, "MAX_CLASS_SHARE", 1.0)  # six studies have no class of ten labels
    monkeypatch.setattr(denoising, "MAX_SHARE", 0.2)
    monkeypatch.setattr(train_module, "fit", lambda *a, **o: learnt_from.append(o["training_labels"]) or real(*a, **o))
    assert main([*train, "--fold", "1", "--denoise", str(tmp_path / "oof.csv")]) == 0
    said = re.search(r"(\d+) of (\d+) labels are left out of the training", capsys.readouterr().out)
    dropped = folder.labels[list(TARGETS)].notna() & learnt_from[0][list(TARGETS)].isna()
    assert int(said[1]) == dropped.sum().sum() > 0
    assert set(folder.labels.loc[dropped.any(axis=1), "study_id"]) <= set(held_out[0])


@pytest.mark.slow
def test_a_localizer_can_be_trained_from_scratch(cohort, tmp_path):
    quiet = ("--run", tmp_path, "--seed", 1, "--jobs", 1, "--device", "cpu", "--no-progress")
    done = lumbar("train", "localizer", cohort, *quiet, "--steps", 1, "--from-scratch")
    assert done.returncode == 0, done.stderr
    assert "shipped" not in done.stdout and (tmp_path / "localizer" / "model.safetensors").is_file()


def test_the_localizer_of_the_run_in_use_is_taken_and_runs_demo_only_when_it_is_in_use(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in ("runs/demo", "runs/mine"):
        (tmp_path / run / "localizer").mkdir(parents=True)
        (tmp_path / run / "localizer" / "model.safetensors").touch()
    assert inputs.localizer_folder(None) is None  # the shipped one, whatever lies in the current folder
    assert inputs.localizer_folder(None, run=Path("runs/mine")) == Path("runs/mine/localizer")
    assert inputs.localizer_folder(None, run=Path("runs/other")) is None
    assert inputs.localizer_folder(Path("runs/demo"), run=Path("runs/mine")) == Path("runs/demo/localizer")
    with pytest.raises(DataError, match="weights of a localizer"):
        (tmp_path / "runs" / "other").mkdir()
        inputs.localizer_folder(Path("runs/other"))


def test_studies_of_low_confidence_are_counted_and_named(tmp_path, monkeypatch, capsys):
    from lumbar_utils import TargetPoints, localization, studies

    def located(sources, localizer, *, n_jobs, progress):
        points, each = np.arange(75.0).reshape(25, 3), ("1",) * 25
        return {s: TargetPoints(s, points, np.ones(25), each, (1,) * 25, ("low_confidence",) * 25) for s in sources}, {}

    monkeypatch.setattr(inputs, "open_localizer", lambda folder: None)
    monkeypatch.setattr(studies, "find_studies", lambda path, **_: [f"case{i}" for i in range(7)])
    monkeypatch.setattr(localization, "locate_studies", located, raising=False)
    assert main(["localize", str(tmp_path), "--out", str(tmp_path / "points.csv")]) == 0
    text = capsys.readouterr().out
    assert "low confidence in 7 studies" in text and "case0, case1, case2, case3, case4, ..." in text


@pytest.mark.slow
def test_real_patients_with_views_missing_get_all_rows_and_a_warning(real_mri, trained_run, tmp_path):
    out = tmp_path / "submission.csv"
    done = lumbar("predict", real_mri, "--weights", trained_run, "--out", out, "--pictures", 0, "--no-progress")
    assert done.returncode == 0, done.stderr
    cases = sorted(path.name for path in real_mri.iterdir() if path.is_dir())
    submission = pd.read_csv(out, dtype={"row_id": str})
    assert len(submission) == 25 * len(cases) and set(submission["row_id"]) == set(row_ids(cases))
    log = pd.read_csv(tmp_path / "submission_log.csv", dtype={"study_id": str})
    assert sorted(log["study_id"]) == cases
    assert log["missing_views"].str.contains("Axial T2").all()
    assert "mean nothing" in done.stdout


def test_out_of_fold_points_are_never_of_a_localizer_that_was_trained_on_the_study(cohort, tmp_path, monkeypatch):
    own, sources, asked = DiscLocalizer.shipped(), find_studies(cohort, part="train")[:3], []
    own.made["studies"] = [source.study_id for source in sources[:2]]
    folder = own.save(tmp_path / "localizer")

    def located(some, localizer, **options):
        asked.append(([source.study_id for source in some], bool(localizer.made.get("studies"))))
        return {}, {}

    monkeypatch.setattr("lumbar_utils.localization.many_studies.locate_studies", located)
    ids = [source.study_id for source in sources]
    inputs.discs_of(sources, points=None, localizer=folder, out_of_fold=True, progress=False)
    assert asked == [(ids[2:], True), (ids[:2], False)]


def test_localizer_and_classifier_hold_out_the_same_studies_whatever_the_seed(cohort, tmp_path, monkeypatch):
    class Asked(BaseException):
        pass

    def noted(folder, study_ids, **options):
        trained.append(set(study_ids))
        raise Asked

    def cropped(folder, training, held_out, spec, args):
        trained.append(training)
        raise Asked

    trained = []
    monkeypatch.setattr(localization, "train_localizer", noted)
    monkeypatch.setattr("lumbar_utils.cli.train._training_crops", cropped)
    config = tmp_path / "three.json"
    config.write_text('{"folds": 3, "fold_seed": 5}')
    given = ["--run", str(tmp_path / "run"), "--config", str(config), "--fold", "1", "--seed"]
    for part, seed in product(("localizer", "classifier"), "01"):
        with pytest.raises(Asked):
            main(["train", part, str(cohort), *given, seed])
    wanted = set(split_studies(CompetitionFolder.open(cohort), 1, folds=3, fold_seed=5)[0])
    assert trained == [wanted] * 4
