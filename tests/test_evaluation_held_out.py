"""Predictions of a run put beside their labels, and what the oracle of a synthetic cohort says about them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lumbar_utils.errors import DataError
from lumbar_utils.evaluation import OUT_OF_FOLD, TEST, HeldOutStudies, held_out_studies, worst_cases
from lumbar_utils.labels import CONDITIONS, LEVELS, N_TARGETS, SEVERITIES
from lumbar_utils.metrics.score import competition_score, metric_frequencies, prediction_table
from lumbar_utils.studies.study import CompetitionFolder


@pytest.fixture(scope="module")
def run(cohort, tmp_path_factory):
    """A run's folder with out-of-fold predictions of two studies and test predictions of all: (path, both arrays)."""
    folder, path = CompetitionFolder.open(cohort), tmp_path_factory.mktemp("run")
    (path / "classifier").mkdir()
    parts, rng = {}, np.random.default_rng(0)
    for part, file, n in (("train", "classifier/oof.csv", 2), ("test", "submission.csv", None)):
        ids = folder.study_ids(part)[:n]
        parts[part] = ids, rng.dirichlet([1, 1, 1], (len(ids), N_TARGETS))
        prediction_table(*parts[part]).to_csv(path / file, index=False)
    return path, parts


def test_both_parts_of_a_synthetic_cohort_are_read_with_labels_and_oracle(cohort, run):
    path, parts = run
    held_out = held_out_studies(CompetitionFolder.open(cohort), path)
    assert held_out.of_part(OUT_OF_FOLD) == parts["train"][0] and held_out.of_part(TEST) == parts["test"][0]
    np.testing.assert_allclose(held_out.probabilities, np.concatenate([p for _, p in parts.values()]))
    truth = pd.read_csv(cohort / "truth" / "labels.csv", dtype={"study_id": str}).set_index("study_id")
    for study_id, labels in zip(held_out.study_ids, held_out.labels, strict=True):
        label = truth.loc[study_id, f"{CONDITIONS[0]}_{LEVELS[3]}"]
        assert labels[3] == (SEVERITIES.index(label) if isinstance(label, str) else -1)
    readings = held_out.readings()
    assert list(readings) == ["this network", "another reader", "oracle"]
    assert readings["another reader"].shape == held_out.labels.shape
    np.testing.assert_allclose(readings["oracle"].sum(axis=-1), 1)


def test_real_data_have_no_labels_of_the_test_part_and_no_oracle(cohort, run, tmp_path):
    for path in cohort.iterdir():
        if path.name not in ("truth", "SYNTHETIC.md"):
            (tmp_path / path.name).symlink_to(path)
    held_out = held_out_studies(CompetitionFolder.open(tmp_path), run[0])
    assert list(held_out.study_ids) == run[1]["train"][0] and held_out.oracle is None and held_out.best_known is None
    assert list(held_out.readings()) == ["this network"] and held_out.own_errors() is None
    cases = worst_cases(held_out.labels, held_out.probabilities, held_out.study_ids)
    assert "oracle" not in held_out.odd_labels(cases)
    with pytest.raises(DataError, match=r"oof\.csv"):
        held_out_studies(CompetitionFolder.open(tmp_path), tmp_path)


def drawn(n: int) -> HeldOutStudies:
    """Studies whose labels are drawn from the oracle's frequencies; the network is the best one, but for one target."""
    rng = np.random.default_rng(2)
    oracle = rng.dirichlet([1, 0.5, 0.3], (n, N_TARGETS))
    labels = (rng.random((n, N_TARGETS, 1)) > oracle.cumsum(axis=-1)[..., :2]).sum(axis=-1)
    probabilities = metric_frequencies(oracle)
    oracle[3, 7], probabilities[3, 7], labels[3, 7] = [0.98, 0.01, 0.01], [0.01, 0.01, 0.98], 2
    return HeldOutStudies(tuple(map(str, range(n))), (TEST,) * n, labels, probabilities, oracle)


def test_the_best_known_prediction_weighs_the_oracle_as_the_metric_does():
    held_out = drawn(3000)
    best, plain = (competition_score(held_out.labels, p).total for p in (held_out.best_known, held_out.oracle))
    assert best < plain - 0.01
    reader = held_out.readings()["another reader"]
    assert np.mean(reader == 2) == pytest.approx(np.mean(held_out.labels == 2), abs=0.01)


def test_own_errors_find_what_the_network_did_and_not_odd_labels():
    held_out = drawn(40)
    own = held_out.own_errors(3)
    assert own["study_id"][0] == "3" and (own["condition"][0], own["level"][0]) == (CONDITIONS[1], LEVELS[2])
    assert own["loss"][0] > 1 and (own["loss"][1:] < 1e-6).all()  # elsewhere it is as good as can be
    assert own["oracle"][0] == pytest.approx(0.01)
    cases = held_out.odd_labels(worst_cases(held_out.labels, held_out.probabilities, held_out.study_ids, 2))
    assert (cases["oracle"] < 0.2).all()


def test_own_errors_name_no_study_without_labels_and_allow_severities_of_frequency_zero():
    held_out = drawn(5)
    held_out.labels[0] = -1
    held_out.oracle[1, 4], held_out.probabilities[1, 4], held_out.labels[1, 4] = [1, 0, 0], [0.1, 0.1, 0.8], 0
    own = held_out.own_errors().set_index("study_id")
    assert set(own.index) == {"1", "2", "3", "4"} and np.isfinite(own["loss"]).all()
    assert own["level"]["1"] == LEVELS[4] and own["loss"]["1"] == pytest.approx(-np.log(0.1), abs=1e-6)
