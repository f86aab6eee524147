"""What notebooks stand on: finding data and results, cohort tables, points of many studies, references for scores."""

from __future__ import annotations

import errno
import os

import numpy as np
import pandas as pd
import pytest

from lumbar_utils.errors import DataError
from lumbar_utils.evaluation import tables as evaluation
from lumbar_utils.kaggle import workspace
from lumbar_utils.kaggle.workspace import find_localizer, find_weights, open_workspace, restore_weights
from lumbar_utils.labels import N_LEVELS, N_TARGETS, SAGITTAL_T2
from lumbar_utils.localization import locate_studies, points_from_table, reference_points
from lumbar_utils.models import run_folder
from lumbar_utils.studies import statistics
from lumbar_utils.studies.competition import CompetitionFolder


@pytest.fixture(scope="module")
def work(cohort, tmp_path_factory):
    return open_workspace(cohort, tmp_path_factory.mktemp("run"))


def test_data_given_are_opened_and_split_the_same_way_everywhere(work):
    learn, held_out = work.split(fold_seed=3)
    assert work.split(fold_seed=3) == (learn, held_out)
    assert set(learn) | set(held_out) == set(work.data.study_ids("train"))
    assert held_out and not set(learn) & set(held_out)
    with pytest.raises(DataError, match="fold must lie between 0 and 4, got 5"):
        work.split(5)
    assert work.synthetic
    assert set(work.on_disk("test")) == set(work.data.study_ids("test"))


def test_sources_come_in_the_order_asked_for(work):
    ids = work.data.study_ids("train")[:3][::-1]
    assert [source.study_id for source in work.sources("train", ids)] == ids
    with pytest.raises(DataError, match="1 studies are not in the train part, the first is 'nobody'"):
        work.sources("train", ["nobody"])


def test_without_data_a_cohort_is_made_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workspace, "find_competition_folder", lambda: None)
    options = {"n_studies": 1, "n_jobs": 1, "progress": False}
    first = open_workspace(**options)
    assert first.run == (tmp_path / "runs" / "demo").relative_to(os.getcwd())
    table = first.data.root / "train.csv"
    made = table.stat().st_mtime_ns
    open_workspace(**options)
    assert table.stat().st_mtime_ns == made


def test_weights_are_found_in_a_run_or_attached_under_either_mount(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "KAGGLE_INPUT", tmp_path / "input")
    with pytest.raises(DataError, match=r"no weights of a classifier: expected model\.safetensors or ensemble\.json"):
        find_weights("classifier", tmp_path / "run")
    monkeypatch.setattr(run_folder, "SHIPPED_CLASSIFIER", tmp_path)
    assert find_weights("classifier", run=tmp_path / "run") == tmp_path, "the one that ships"
    for mount in ("input/weights", "input/datasets/somebody/weights"):
        folder = tmp_path / mount / "classifier"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
        assert find_weights("classifier", run=tmp_path / "run") == folder
        (folder / "model.safetensors").unlink()
        folder.rmdir()


def test_an_ensemble_is_found_where_a_single_classifier_is(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "KAGGLE_INPUT", tmp_path / "input")
    for folder in (tmp_path / "run" / "classifier", tmp_path / "input" / "datasets" / "somebody" / "w" / "classifier"):
        (folder / "fold_0").mkdir(parents=True)
        (folder / "fold_0" / "model.safetensors").touch()
        monkeypatch.setattr(run_folder, "SHIPPED_CLASSIFIER", tmp_path / "nothing")
        with pytest.raises(DataError, match="no weights of a classifier"):  # folds alone, unfinished, are no classifier
            find_weights("classifier", run=tmp_path / "run")
        (folder / "ensemble.json").touch()
        assert find_weights("classifier", run=tmp_path / "run") == folder
        assert find_weights("classifier", folder.parent) == find_weights("classifier", folder) == folder
        assert find_weights("classifier", folder / "fold_0") == folder / "fold_0"  # one of them, named outright
        (folder / "ensemble.json").unlink()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "ensemble.json").touch()
    with pytest.raises(DataError, match="no weights of a localizer"):
        find_weights("localizer", tmp_path / "mine")


def test_the_localizer_is_the_runs_own_or_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "KAGGLE_INPUT", tmp_path / "input")
    own, attached = tmp_path / "run" / "localizer", tmp_path / "input" / "datasets" / "somebody" / "mine" / "localizer"
    for folder in (own, attached):
        folder.mkdir(parents=True)
        assert find_localizer(tmp_path / "run") is None  # the shipped one; a folder without weights is none
    (attached / "model.safetensors").touch()
    assert find_localizer(tmp_path / "run") is None and find_localizer() is None  # somebody's is nobody's choice
    (own / "model.safetensors").touch()
    assert find_localizer(tmp_path / "run") == own


def test_weights_that_are_named_outright_may_lie_in_any_folder_but_another_networks(tmp_path):
    for name in ("my localizer", "classifier"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
    assert find_weights("localizer", tmp_path / "my localizer") == tmp_path / "my localizer"
    with pytest.raises(DataError, match="no weights of a localizer"):
        find_weights("localizer", tmp_path / "classifier")


def test_on_kaggle_a_run_restores_what_earlier_notebooks_left(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "KAGGLE_INPUT", tmp_path / "input")
    for place, name in (("lumbar-02", "localizer"), ("notebooks/me/lumbar-03", "crops"), ("lumbar-04", "classifier")):
        folder = tmp_path / "input" / place / "runs" / "demo" / name
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text(place)
        (folder / "model.safetensors").chmod(0o444)
    (tmp_path / "input" / "lumbar-04" / "runs" / "other" / "crops_found").mkdir(parents=True)
    run = tmp_path / "working" / "runs" / "demo"
    (run / "classifier").mkdir(parents=True)  # this session's own is not replaced
    assert [path.name for path in restore_weights(run)] == ["localizer", "crops"]
    assert sorted(path.name for path in run.iterdir()) == ["classifier", "crops", "localizer"]
    assert (run / "crops").is_symlink() and not list((run / "classifier").iterdir())
    with (run / "localizer" / "model.safetensors").open("a") as file:  # a copy that can be trained further
        file.write("!")
    assert restore_weights(run) == []


def test_a_copy_that_breaks_off_is_made_again_and_never_taken_for_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "KAGGLE_INPUT", tmp_path / "input")
    attached = tmp_path / "input" / "lumbar-04" / "runs" / "demo" / "classifier"
    attached.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (attached / name).write_text(name)
    run = tmp_path / "working" / "runs" / "demo"

    def full_disk(source, folder, **options):
        folder.mkdir()
        (folder / "config.json").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken, pytest.raises(OSError, match="No space"):
        broken.setattr(workspace.shutil, "copytree", full_disk)
        restore_weights(run)
    assert not (run / "classifier").exists()
    assert restore_weights(run) == [attached]
    assert {path.name: path.read_text() for path in (run / "classifier").iterdir()} == {
        name: name for name in ("config.json", "model.safetensors")
    }
    assert [path.name for path in run.iterdir()] == ["classifier"], "nothing of the broken copy is left"


def test_series_are_described_in_millimetres_and_words(work):
    table = statistics.series_table(work.sources("train", work.on_disk("train")[:2]), n_jobs=1, progress=False)
    assert tuple(table.columns) == statistics.SERIES_COLUMNS
    sagittal = table[table["view"] == SAGITTAL_T2]
    assert set(sagittal["order"]) <= {"right to left", "left to right", "mixed"}
    assert sagittal["pixel_mm"].between(0.2, 3).all()
    places = statistics.point_places(work.data.coordinates, table)
    assert places[["x_fraction", "y_fraction"]].to_numpy().max() < 1.01
    assert len(statistics.series_table([], progress=False)) == 0


def test_label_tables_leave_missing_labels_out():
    labels = np.full((4, N_TARGETS), -1)
    labels[:2, 0] = [0, 2]
    assert statistics.label_table(labels).iloc[0, 0] == "0.0 / 50.0"
    assert np.isnan(statistics.rank_correlation(labels).iloc[1, 2])


def test_points_of_the_table_lie_near_the_truth(work):
    ids = work.data.study_ids("train")
    found, failures = points_from_table(work.data, ids, n_jobs=1, progress=False)
    assert set(found) | set(failures) == set(ids)
    truth = reference_points(work.data, ids)
    errors = [np.linalg.norm(found[s].points - truth[s], axis=1) for s in found]
    assert np.median(errors) < 6
    assert truth[ids[0]].shape == (N_LEVELS, 3)


def test_a_study_that_cannot_be_located_costs_only_itself(work):
    class Blind:
        def locate(self, study):
            raise DataError(f"study {study.study_id}: nothing to see")

    class Broken:
        def locate(self, study):
            raise KeyError("an error that nobody foresaw")

    source = work.sources("train")[0]
    for localizer, words in ((Blind(), "nothing to see"), (Broken(), "nobody foresaw")):
        found, failures = locate_studies([source], localizer, progress=False)
        assert found == {}
        assert words in failures[source.study_id]


def test_references_bracket_every_prediction(work):
    ids = work.data.study_ids("test")
    labels = evaluation.truth_labels(work.data, ids)
    assert labels.shape == (len(ids), N_TARGETS)
    uniform = np.full((len(ids), N_TARGETS, 3), 1 / 3)
    scores = evaluation.compare(work.data, ids, labels, uniform, name="ours")
    assert list(scores) == ["uniform", "weighted prior", "ours", "oracle"]
    assert scores["ours"] == scores["uniform"]
    assert scores["oracle"].total < scores["uniform"].total
    assert list(evaluation.score_frame(scores).columns)[-1] == "total"


def test_truth_is_not_looked_for_where_there_is_none(tmp_path):
    (tmp_path / "train_images").mkdir()
    pd.DataFrame({"study_id": ["1"], "series_id": ["2"], "series_description": ["Axial T2"]}).to_csv(
        tmp_path / "train_series_descriptions.csv", index=False
    )
    folder = CompetitionFolder.open(tmp_path)
    assert evaluation.truth_labels(folder, ["1"]) is None
    assert set(evaluation.reference_predictions(folder, ["1"])) == {"uniform"}
