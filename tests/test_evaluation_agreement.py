"""Kappas and areas under the curve against scikit-learn and planted truth; do the intervals hold what they promise?"""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from lumbar_utils.errors import DataError
from lumbar_utils.evaluation.agreement import MEASURES, agreement_table, kappa_of, target_groups, weighted_areas
from lumbar_utils.labels import CONDITIONS, MISSING, N_TARGETS, condition_title
from lumbar_utils.metrics.bootstrap import resample_counts, with_interval
from lumbar_utils.metrics.score import competition_score, metric_frequencies, plain_frequencies


def drawn(n_studies: int, seed: int, *, missing: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n, 25) drawn from frequencies (n, 25, 3) that differ from case to case, a few missing."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet([0.9, 0.4, 0.3], (n_studies, N_TARGETS))
    labels = (rng.random((n_studies, N_TARGETS, 1)) > p.cumsum(axis=-1)[..., :2]).sum(axis=-1)
    return np.where(rng.random(labels.shape) < missing, MISSING, labels), p


@pytest.mark.parametrize("weights", [None, "linear", "quadratic"])
def test_kappa_of_a_confusion_matrix_is_scikit_learns(weights):
    rng = np.random.default_rng(1)
    pairs = rng.integers(0, 3, (20, 2, 60))
    pairs[:, 1] = np.where(rng.random((20, 60)) < 0.6, pairs[:, 0], pairs[:, 1])
    confusion = np.array([[[((a == i) & (b == j)).sum() for j in range(3)] for i in range(3)] for a, b in pairs])
    expected = [cohen_kappa_score(a, b, labels=[0, 1, 2], weights=weights) for a, b in pairs]
    np.testing.assert_allclose(kappa_of(confusion, weights), expected, atol=1e-12)
    assert np.isnan(kappa_of(np.diag([5, 0, 0]), weights))


def test_weighted_areas_are_scikit_learns_with_ties_and_weights():
    rng = np.random.default_rng(2)
    positive = rng.random(300) < 0.3
    scores = np.round(rng.random(300) + 0.3 * positive, 1)  # many ties
    weights = rng.integers(0, 4, (25, 300))
    expected = [roc_auc_score(positive, scores, sample_weight=w) for w in weights]
    np.testing.assert_allclose(weighted_areas(positive, scores, weights), expected, atol=1e-12)
    assert np.isnan(weighted_areas(positive, scores, weights * ~positive)).all()


def test_a_table_holds_scikit_learns_values_of_the_most_probable_grades():
    labels, p = drawn(60, 3)
    table = agreement_table(labels, {"ours": p}, by="condition", n=50).set_index(["group", "measure"])
    assert len(table) == len(CONDITIONS) * len(MEASURES)
    for i, condition in enumerate(CONDITIONS):
        own = slice(5 * i, 5 * i + 5)
        known = labels[:, own] != MISSING
        true, q = labels[:, own][known], p[:, own][known]
        row = table.loc[condition_title(condition)]
        severities = q.argmax(axis=-1)
        assert row.value["quadratic kappa"] == pytest.approx(cohen_kappa_score(true, severities, weights="quadratic"))
        assert row.value["linear kappa"] == pytest.approx(cohen_kappa_score(true, severities, weights="linear"))
        assert row.value["dichotomous kappa"] == pytest.approx(cohen_kappa_score(true >= 1, severities >= 1))
        assert row.value["AUC moderate or worse"] == pytest.approx(roc_auc_score(true >= 1, 1 - q[:, 0]))
        assert row.value["AUC severe"] == pytest.approx(roc_auc_score(true == 2, q[:, 2]))
        assert (row.labels == known.sum()).all() and row.positive["AUC severe"] == (true == 2).sum()
    assert ((table.low <= table.value) & (table.value <= table.high)).all()


def test_planted_agreement_is_found_and_grades_of_a_reader_are_taken():
    labels, _ = drawn(80, 4)
    perfect = np.eye(3)[np.where(labels < 0, 0, labels)]
    reader = np.where(labels < 0, 0, labels)
    shuffled = np.random.default_rng(0).permutation(reader.ravel()).reshape(reader.shape)
    predictions = {"perfect": perfect, "reader": reader, "by chance": shuffled}
    table = agreement_table(labels, predictions, by="all", n=100).set_index(["prediction", "measure"])
    assert (table.loc["perfect", "value"] == 1).all() and (table.loc["perfect", "low"] == 1).all()
    kappas = table.loc["reader", "value"]
    assert (kappas[:3] == 1).all() and kappas[3:].isna().all()
    chance = table.loc["by chance"].iloc[:3]
    assert (chance["low"] < 0).all() and (chance["high"] > 0).all() and (chance["value"].abs() < 0.06).all()


def test_an_interval_covers_the_truth_as_often_as_it_says():
    """Studies that are alike inside: targets of a study are wrong together, and only whole studies can be resampled."""
    covered, rng, truth = 0, np.random.default_rng(5), 0.5
    for repeat in range(60):
        true = rng.integers(0, 2, (60, 1)) * np.ones((1, N_TARGETS), int)  # all of a study alike
        right = rng.random((60, 1)) < (1 + truth) / 2
        severities = np.where(right, true, 1 - true)
        table = agreement_table(true, {"x": severities}, by="all", n=200, seed=repeat)
        row = table.set_index("measure").loc["dichotomous kappa"]
        covered += row["low"] <= truth <= row["high"]
    assert covered >= 51  # 57 expected of 60; fewer than 51 once in 200; of single targets' intervals 16 or so would


def test_what_is_not_there_is_nan_and_not_a_number():
    labels = np.zeros((4, N_TARGETS), int)
    p = np.full((4, N_TARGETS, 3), [0.8, 0.1, 0.1])
    table = agreement_table(labels, {"x": p}, by="family", n=20)
    assert table[["value", "low", "high"]].isna().all(axis=None) and (table["positive"] == 0).all()
    unlabelled = agreement_table(np.full((4, N_TARGETS), MISSING), {"x": p}, by="family", n=20)
    assert unlabelled["value"].isna().all() and (unlabelled["labels"] == 0).all()


def test_plain_frequencies_undo_the_metrics_weights():
    labels, p = drawn(3000, 6, missing=0)
    q = metric_frequencies(p)
    np.testing.assert_allclose(plain_frequencies(q), p)
    # Of somebody who knows the frequencies, the metric wants the weighted ones.
    assert competition_score(labels, q).total < competition_score(labels, p).total - 0.01
    table = agreement_table(labels, {"p": p, "q": q}, by="all", n=10).set_index(["prediction", "measure"])["value"]
    assert table["p", "dichotomous kappa"] > table["q", "dichotomous kappa"]


def test_resamples_are_of_studies_and_repeat():
    counts = resample_counts(7, 500, seed=3)
    assert counts.shape == (501, 7) and (counts.sum(axis=1) == 7).all() and (counts[0] == 1).all()
    assert np.array_equal(counts, resample_counts(7, 500, seed=3))
    assert with_interval(np.r_[40.0, np.arange(101.0), np.nan]) == pytest.approx((40, 2.5, 97.5))
    with pytest.raises(DataError, match="no studies"):
        resample_counts(0, 5)


def test_groups_are_those_of_the_competition():
    assert {name: len(targets) for name, targets in target_groups("family").items()} == {
        "spinal": 5,
        "foraminal": 10,
        "subarticular": 10,
    }
    assert list(target_groups("level")) == ["L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S1"]
    with pytest.raises(DataError, match="by must be one of"):
        target_groups("side")
    labels, p = drawn(5, 0)
    with pytest.raises(DataError, match="a reader's grades must be 0, 1 or 2"):
        agreement_table(labels, {"reader": labels})
    with pytest.raises(DataError, match="probabilities must have shape"):
        agreement_table(labels, {"ours": p[:3]})
