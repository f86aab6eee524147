"""From a run to predictions: studies like their crops, whatever breaks; the submission and its log."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from planted_crops import SPEC, disc_points, planted_cohort, study_crops, tiny_config

import lumbar_utils.inference.networks as networks_module
import lumbar_utils.inference.preprocessing as preprocessing_module
from lumbar_utils.crops.extraction import CropSpec
from lumbar_utils.errors import DataError, DicomError, Issue
from lumbar_utils.inference import Predictor, StudyPrediction, write_submission
from lumbar_utils.inference.preprocessing import preprocess_study
from lumbar_utils.labels import N_TARGETS, PROBABILITY_COLUMNS, SEVERITY_WEIGHTS, VIEWS, row_ids
from lumbar_utils.metrics.score import metric_frequencies, plain_frequencies, read_predictions, weighted_prior
from lumbar_utils.models import run_folder
from lumbar_utils.models.inputs import study_input
from lumbar_utils.studies.study import Study
from lumbar_utils.training.train import fit


@pytest.fixture(scope="module")
def cohort():
    return planted_cohort(8, seed=1)


@pytest.fixture(scope="module")
def run(cohort, tmp_path_factory):
    crops, labels = cohort
    return fit(
        crops, labels, tiny_config(epochs=1), tmp_path_factory.mktemp("run"), synthetic_only=True, progress=False
    )


class FixedLocalizer:
    def locate(self, study):
        if study.study_id == "lost":
            raise DicomError("no sagittal series", study_id="lost")
        return disc_points(study.study_id)


@pytest.fixture
def predictor(run, cohort, monkeypatch):
    crops, _ = cohort

    def fake_extract(study, discs, spec):
        assert spec == SPEC
        if study.study_id == "broken":
            raise ValueError("cannot reshape array")
        if study.study_id == "empty":
            covered = {v: np.zeros((5, *SPEC.shapes[v]), bool) for v in VIEWS}
            return study_crops("empty", crops["1000"].images, covered)
        return crops[study.study_id]

    monkeypatch.setattr(preprocessing_module, "extract_crops", fake_extract)
    return Predictor(run.folder, "cpu", precision="float32", localizer=FixedLocalizer())


def test_a_study_is_graded_like_its_crops(predictor, cohort):
    crops, _ = cohort
    result = predictor.predict_study(Study("1003", (), ()))
    assert np.allclose(result.weighted, predictor.predict_crops([crops["1003"]])[0], atol=1e-6)
    assert result.synthetic_only and not result.fallback and result.discs is not None
    html = result._repr_html_()
    assert "mean nothing for patients" in html and "1003" in html


def test_the_shipped_classifier_is_the_default_and_says_what_it_is_worth(run, predictor, tmp_path, monkeypatch):
    shipped = tmp_path / "shipped"
    shutil.copytree(run.folder, shipped)
    monkeypatch.setattr(run_folder, "SHIPPED_CLASSIFIER", tmp_path / "nothing")
    with pytest.raises(DataError, match="no nothing"):
        Predictor()
    monkeypatch.setattr(run_folder, "SHIPPED_CLASSIFIER", shipped)
    assert "mean nothing for patients" in predictor.predict_study(Study("1003", (), ())).notice
    areas = {"canal": 0.954, "recesses": 0.911, "foramina": 0.83}
    (shipped / "made.json").write_text(json.dumps({"measured_on_patients": {"patients": 588, "auc_severe": areas}}))
    own = Predictor(device="cpu", precision="float32", localizer=FixedLocalizer())
    told = own.predict_study(Study("1003", (), ()))
    assert told.synthetic_only and told.notice == own.prior_prediction("1004").notice
    assert "synthetic phantoms only; measured on 588 patients" in told.notice and "mean nothing" not in told.notice
    assert "0.95 (canal), 0.91 (recesses), 0.83 (foramina)" in told.notice and "not for diagnosis" in told.notice
    assert told.notice in told._repr_html_()
    assert not replace(told, synthetic_only=False).notice


@pytest.mark.parametrize(("study_id", "words"), [("lost", "no sagittal series"), ("broken", "reshape"), ("empty", "")])
def test_a_broken_study_gets_the_prior(predictor, study_id, words):
    result = predictor.predict_study(Study(study_id, (), (Issue("note", "one file was bad", study_id),)))
    assert result.fallback and np.allclose(result.weighted, predictor.prior)
    assert "one file was bad" in list(map(str, result.issues)) and words in " ".join(map(str, result.issues))


def test_many_studies_keep_their_order_whatever_breaks(predictor, cohort, monkeypatch):
    crops, _ = cohort
    ids = ["1000", "lost", "1001", "unreadable", "broken", "1002", "odd"]

    class Source:
        def __init__(self, study_id):
            self.study_id = study_id

    def fake_load(source):
        if source.study_id == "unreadable":
            raise DicomError("nothing readable", study_id=source.study_id)
        if source.study_id == "odd":
            raise KeyError("an error that nobody foresaw")
        return Study(source.study_id, (), ())

    monkeypatch.setattr(preprocessing_module, "load_study", fake_load)
    predictor.batch_size = 4
    results = list(predictor.predict_studies([Source(s) for s in ids], progress=False))
    assert [r.study_id for r in results] == ids
    assert [r.fallback for r in results] == [False, True, False, True, True, False, True]
    assert "nobody foresaw" in str(results[-1].issues[0])
    assert np.allclose(results[5].weighted, predictor.predict_crops([crops["1002"]])[0], atol=1e-5)


def test_a_network_that_overflows_costs_one_study(predictor, cohort, monkeypatch):
    crops, _ = cohort
    graded = predictor.predict_crops([crops["1000"], crops["1001"]])
    graded[0, 3] = np.nan
    monkeypatch.setattr(networks_module, "predict_probabilities", lambda *_, **__: graded)
    prepared = [preprocess_study(Study(s, (), ()), predictor.localizer, predictor.specs) for s in ("1000", "1001")]
    first, second = predictor._predict(prepared, predictor.plan)
    assert first.fallback and "no finite number" in str(first.issues[-1]) and np.isfinite(first.probabilities).all()
    assert not second.fallback and np.allclose(second.weighted, graded[1], rtol=1e-13)


def test_other_crops_than_trained_on_are_refused(predictor, cohort):
    item = cohort[0]["1000"]
    other = CropSpec(shapes={v: (8, 8, 8) for v in VIEWS})
    images = {v: item.images[v][:, :8, :8, :8] for v in VIEWS}
    with pytest.raises(DataError, match="trained on"):
        predictor.predict_crops([study_crops("1000", images, None, other)])


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(DataError, match="no such run folder"):
        Predictor(tmp_path / "absent")
    with pytest.raises(DataError, match=r"model\.safetensors: the run has no weights"):
        Predictor(tmp_path)


def test_submission_has_every_row_in_the_samples_order(tmp_path):
    rng = np.random.default_rng(0)
    predictions = [
        StudyPrediction(s, rng.dirichlet([5, 2, 1e-3], size=N_TARGETS), issues=(Issue("note", 'a, "quoted"\nnote', s),))
        for s in ("20", "3")
    ]
    sample = pd.DataFrame({"row_id": sorted(row_ids(["3", "20", "99"]))})
    for name in PROBABILITY_COLUMNS:
        sample[name] = 1 / 3
    prior = weighted_prior(rng.integers(0, 3, (10, N_TARGETS)))
    path = write_submission(predictions, tmp_path / "deep" / "submission.csv", sample, fallback=prior)
    table = pd.read_csv(path, dtype={"row_id": str})
    assert table["row_id"].tolist() == sample["row_id"].tolist() and list(table) == list(sample)
    values = table[list(PROBABILITY_COLUMNS)].to_numpy()
    assert np.isfinite(values).all() and (values > 0).all() and np.allclose(values.sum(1), 1, atol=1e-7)
    p = read_predictions(table, ["20", "3", "99"])
    assert np.allclose(p[0], predictions[0].weighted, atol=1e-8) and np.allclose(p[2], prior, atol=1e-8)
    log = pd.read_csv(tmp_path / "deep" / "submission_log.csv", dtype=str)
    assert log["study_id"].tolist() == ["20", "3", "99"] and log["fallback"].tolist() == ["False", "False", "True"]
    assert {p.name for p in (tmp_path / "deep").iterdir()} == {
        "submission.csv",
        "submission_log.csv",
        "submission_log.jsonl",
    }


def test_submission_without_a_usable_sample_names_every_study(tmp_path):
    p = np.full((N_TARGETS, 3), 1 / 3)
    predictions = [StudyPrediction(s, p) for s in ("b", "a")]
    one = pd.DataFrame({"row_id": row_ids(["other"]), **dict.fromkeys(PROBABILITY_COLUMNS, 1 / 3)})
    for sample in (None, one):
        table = pd.read_csv(write_submission(predictions, tmp_path / "s.csv", sample))
        assert table["row_id"].tolist() == row_ids(["b", "a"])
    with pytest.raises(DataError, match="more than once"):
        write_submission([predictions[0]] * 2, tmp_path / "s.csv")


FREQUENCIES = np.array([0.55, 0.25, 0.20])


def test_people_are_shown_frequencies_and_the_submission_alone_is_weighted(tmp_path):
    network = np.tile(FREQUENCIES * SEVERITY_WEIGHTS / (FREQUENCIES @ SEVERITY_WEIGHTS), (N_TARGETS, 1))
    prediction = StudyPrediction("1", plain_frequencies(network))
    np.testing.assert_allclose(prediction.probabilities, np.tile(FREQUENCIES, (N_TARGETS, 1)), rtol=1e-14)
    card = prediction._repr_html_()
    assert card.count("Normal/Mild 55%") == N_TARGETS and "Severe" not in card and "plain frequencies" in card
    assert np.allclose(prediction.table(), 0.45)
    table = pd.read_csv(write_submission([prediction], tmp_path / "s.csv"))
    np.testing.assert_allclose(read_predictions(table, ["1"])[0], network, rtol=1e-8)


@pytest.mark.parametrize("weighted", [True, False])
def test_networks_with_and_without_the_weights_in_their_loss_mean_the_same(cohort, tmp_path, monkeypatch, weighted):
    crops, labels = cohort
    config = replace(tiny_config(epochs=1), class_weights=weighted)
    result = fit(crops, labels, config, tmp_path, progress=False)
    predictor = Predictor(tmp_path, "cpu", precision="float32", localizer=FixedLocalizer())
    own = crops[result.study_ids[0]]
    raw = predictor.networks.predict([[study_input(own)]], [0], predictor.plan, 1)[0, 0]
    expected = raw if weighted else metric_frequencies(raw)
    np.testing.assert_allclose(predictor.predict_crops([own])[0], expected, rtol=1e-12)
    np.testing.assert_allclose(result.probabilities[0], expected, atol=1e-5)
    monkeypatch.setattr(preprocessing_module, "extract_crops", lambda study, discs, spec: own)
    shown = predictor.predict_study(Study(own.study_id, (), ())).probabilities
    np.testing.assert_allclose(shown, plain_frequencies(raw) if weighted else raw, rtol=1e-5)


def test_a_prediction_must_be_a_distribution():
    p = np.full((N_TARGETS, 3), 1 / 3)
    with pytest.raises(DataError, match="sum to one"):
        StudyPrediction("1", p * 0.9)
    with pytest.raises(DataError, match="finite"):
        StudyPrediction("1", np.full((N_TARGETS, 3), np.nan))
