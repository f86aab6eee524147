"""Whether a study is marked as unlike the training data when, and only when, it is."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from planted_crops import FAST, disc_points, planted_cohort, tiny_config

import lumbar_utils.inference.preprocessing as preprocessing_module
from lumbar_utils.errors import DataError
from lumbar_utils.inference import Predictor
from lumbar_utils.inference.submission import log_path, write_submission
from lumbar_utils.labels import AXIAL_T2, SAGITTAL_T2, VIEWS
from lumbar_utils.models.typicality import FILE, _limits, fit_typicality
from lumbar_utils.report.content import UNLIKE_WARNING, describe
from lumbar_utils.report.structured_report import comments
from lumbar_utils.studies.study import Study
from lumbar_utils.training.train import fit


def part(crops, *bounds):
    return {study_id: crops[study_id] for study_id in list(crops)[slice(*bounds)]}


@pytest.fixture(scope="module")
def cohort():
    return planted_cohort(400, seed=1)


@pytest.fixture(scope="module")
def run(cohort, tmp_path_factory):
    """A network that has learnt from the first 60 studies, with its limit set on 200 others."""
    crops, labels = cohort
    folder = tmp_path_factory.mktemp("run")
    options = {"synthetic_only": True, "progress": False}
    fit(part(crops, 60), labels, tiny_config(classifier=FAST, learning_rate=3e-3, folds=1), folder, **options)
    scores = fit_typicality(folder, part(crops, 60), part(crops, 60, 260), device="cpu")
    assert np.sum(scores[folder.name] > 1) == 1, "the 199th of 200 is the limit"
    return folder


def predict(run, crops, monkeypatch):
    """Predictions of whole studies that are cut to the given crops."""
    monkeypatch.setattr(preprocessing_module, "extract_crops", lambda study, discs, spec: crops[study.study_id])
    own = Predictor(run, "cpu", precision="float32")
    return [own.predict_study(Study(s, (), ()), disc_points(s)) for s in crops]


def changed(crops, view, change):
    return {s: replace(c, images={**c.images, view: change(c.images[view])}) for s, c in crops.items()}


def test_few_unseen_studies_are_marked_whatever_views_they_lack(run, cohort, monkeypatch):
    unseen = part(cohort[0], 260, 400)
    told = predict(run, unseen, monkeypatch)
    assert np.mean([p.unlike_training > 1 for p in told]) < 0.04
    nothing = np.zeros_like(next(iter(unseen.values())).covered[AXIAL_T2])
    lacking = {s: replace(c, covered={**c.covered, AXIAL_T2: nothing}) for s, c in unseen.items()}
    fewer = predict(run, lacking, monkeypatch)
    assert all(0 < one.unlike_training <= all_.unlike_training * 1.001 for one, all_ in zip(fewer, told, strict=True))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    "change",
    [lambda x: 1 - x, lambda x: np.random.default_rng(0).random(x.shape).astype(x.dtype), lambda x: x * 0 + 0.9],
    ids=["inverted", "noise", "flat"],
)
def test_one_view_that_shows_something_else_is_marked(run, cohort, monkeypatch, view, change):
    told = predict(run, changed(part(cohort[0], 260, 270), view, change), monkeypatch)
    assert np.mean([p.unlike_training > 1 for p in told]) >= 0.9


def test_a_mark_is_an_issue_and_is_shown_wherever_the_grades_are(run, cohort, monkeypatch, tmp_path, caplog):
    usual = part(cohort[0], 260, 261)
    (marked,) = predict(run, changed(usual, SAGITTAL_T2, lambda x: 1 - x), monkeypatch)
    (issue,) = marked.issues
    assert issue.code == "unlike_training" and issue.study_id == marked.study_id and str(issue) in caplog.text
    report = describe(marked)
    assert report["unlike_training"] > 1 and "unlike" in report["flags"] and UNLIKE_WARNING in report["warnings"]
    assert issue.message in marked._repr_html_() and f"Note: {issue}" in comments(marked)
    path = write_submission([marked], tmp_path / "submission.csv")
    assert issue.message in log_path(path, "csv").read_text("utf-8")
    assert json.loads(log_path(path, "jsonl").read_text("utf-8"))["code"] == "unlike_training"
    (fine,) = predict(run, usual, monkeypatch)
    assert not fine.issues and 0 < describe(fine)["unlike_training"] <= 1 and not describe(fine)["warnings"][1:]


def test_a_run_without_it_or_with_that_of_other_weights_cannot_tell(run, cohort, monkeypatch, tmp_path, caplog):
    other, crops = shutil.copytree(run, tmp_path / "other"), part(cohort[0], 2)
    before = Predictor(other, "cpu", precision="float32").digest()
    with (other / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    assert [p.unlike_training for p in predict(other, crops, monkeypatch)] == [None, None]
    assert "belongs to other weights and is not used" in caplog.text
    (other / FILE).unlink()
    (prediction, _) = predict(other, crops, monkeypatch)
    assert prediction.unlike_training is None and describe(prediction)["unlike_training"] is None
    shutil.copytree(run, other, dirs_exist_ok=True)
    (other / FILE).unlink()
    assert Predictor(other, "cpu", precision="float32").digest() != before, "a resumed run must not mix the two"
    (other / FILE).write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"typicality\.safetensors: cannot be used"):
        Predictor(other, "cpu")


def test_too_few_studies_or_the_same_ones_are_refused(run, cohort):
    crops = cohort[0]
    with pytest.raises(DataError, match="20 training studies and as many others, got 60 and 5, 0 of them in both"):
        fit_typicality(run, part(crops, 60), part(crops, 60, 65))
    with pytest.raises(DataError, match="30 of them in both"):
        fit_typicality(run, part(crops, 60), part(crops, 30, 90))


def test_the_share_of_false_alarms_is_the_nominal_one_also_where_views_have_long_tails():
    """Limits that were set for each view alone counted three views' rarest studies, three times as many."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(200):
        distances = torch.as_tensor(np.exp(rng.normal(size=(400, 3)) * (0.3, 1.0, 1.5)))
        shares.append((distances[200:] > _limits(distances[:200])).any(dim=1).double().mean())
    assert np.mean(shares) == pytest.approx(0.01, abs=0.003)
