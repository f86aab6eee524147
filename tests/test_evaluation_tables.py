"""Tables of predicted targets, calibration and worst cases, on labels and probabilities whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from lumbar_utils import evaluation
from lumbar_utils.errors import DataError
from lumbar_utils.labels import CONDITIONS, LEVELS, MISSING, N_TARGETS, SEVERITIES, SEVERITY_WEIGHTS, target_index
from lumbar_utils.metrics.score import FAMILY_TARGETS, competition_score, uniform, weighted_prior


@pytest.fixture(scope="module")
def predicted():
    """Labels (80, 25), a tenth missing, and predictions (80, 25, 3) that know something of them."""
    rng = np.random.default_rng(3)
    labels = rng.choice([0, 1, 2], p=[0.6, 0.25, 0.15], size=(80, N_TARGETS))
    probabilities = rng.dirichlet([2, 1, 1], labels.shape) + 1.5 * np.eye(3)[labels] * rng.random((*labels.shape, 1))
    labels[rng.random(labels.shape) < 0.1] = MISSING
    return labels, probabilities / probabilities.sum(axis=-1, keepdims=True)


def test_losses_of_targets_add_up_to_the_metric(predicted):
    """Weighted by their label weights, the targets' losses give the competition's terms; likewise the prior's."""
    labels, probabilities = predicted
    prior = weighted_prior(labels)
    table = evaluation.grade_table(labels, probabilities, prior)
    assert list(zip(table["condition"], table["level"], strict=True)) == [(c, v) for c in CONDITIONS for v in LEVELS]
    weights = np.where(labels == MISSING, 0, np.array(SEVERITY_WEIGHTS)[labels]).sum(axis=0)
    constant = np.tile(prior, (len(labels), 1, 1))
    for family, targets in FAMILY_TARGETS.items():
        for column, predictions in (("weighted_log_loss", probabilities), ("prior_loss", constant)):
            pooled = np.average(table[column].to_numpy()[targets], weights=weights[targets])
            assert pooled == pytest.approx(getattr(competition_score(labels, predictions), family), abs=1e-9)
    assert (table["n"] == (labels != MISSING).sum(axis=0)).all()
    assert table["severe_share"][7] == pytest.approx((labels[:, 7] == 2).sum() / (labels[:, 7] != MISSING).sum())


def test_pooled_rows_weigh_targets_as_the_metric_does(predicted):
    labels, probabilities = predicted
    by_condition = evaluation.grade_table(labels, probabilities, by=("condition",))
    assert list(by_condition["condition"]) == list(CONDITIONS)
    spinal = competition_score(labels, probabilities).spinal
    assert by_condition["weighted_log_loss"][0] == pytest.approx(spinal, abs=1e-9)
    by_level = evaluation.grade_table(labels, probabilities, by=("level",))
    assert list(by_level["level"]) == list(LEVELS)
    assert by_level["n"].sum() == (labels != MISSING).sum()
    assert "prior_loss" not in by_level
    with pytest.raises(DataError, match="by must name condition, level or both, got \\('side',\\)"):
        evaluation.grade_table(labels, probabilities, by=("side",))


def test_auc_asks_for_order_and_is_nan_without_both_classes():
    """Target 0 is ordered without fault, target 1 the other way round, target 2 has no severe case, 3 no label."""
    labels = np.full((4, N_TARGETS), MISSING)
    labels[:, 0] = labels[:, 1] = [0, 1, 1, 2]
    labels[:, 2] = [0, 0, 1, 1]
    probabilities = np.tile(uniform(), (4, 1, 1))
    rising = np.array([[0.9, 0.05, 0.05], [0.6, 0.3, 0.1], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    probabilities[:, 0], probabilities[:, 1] = rising, rising[::-1]
    table = evaluation.grade_table(labels, probabilities)
    assert (table["auc_moderate"][0], table["auc_severe"][0]) == (1, 1)
    assert (table["auc_moderate"][1], table["auc_severe"][1]) == (0, 0)
    assert table["auc_moderate"][2] == 0.5 and np.isnan(table["auc_severe"][2])
    assert table["n"][3] == 0
    assert np.isnan(table[["weighted_log_loss", "severe_share", "auc_moderate"]].to_numpy()[3]).all()
    grid = evaluation.by_level(table, "auc_severe")
    assert list(grid.columns) == ["L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S1"] and len(grid) == 5
    assert grid.loc["Spinal Canal Stenosis", "L2/L3"] == 0
    with pytest.raises(DataError, match="lacks \\['prior_loss'\\]"):
        evaluation.by_level(table, "prior_loss")


def test_a_network_of_weighted_frequencies_is_calibrated_with_and_without_the_weights():
    """Labels drawn from p; a network trained with 1/2/4 weights tends to q ~ w p, which over-states severity."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet([4, 1, 0.7], (400, N_TARGETS))
    labels = (p.cumsum(axis=-1) < rng.random((400, N_TARGETS, 1))).sum(axis=-1)
    q = p * SEVERITY_WEIGHTS
    q /= q.sum(axis=-1, keepdims=True)
    for weighted in (False, True):
        calibrated = evaluation.calibration_error(evaluation.reliability(labels, q, weighted=weighted))
        assert list(calibrated.index) == list(FAMILY_TARGETS)
        assert (calibrated["error"] < 2 * calibrated["by_chance"]).all()
        taken_out_twice = evaluation.calibration_error(evaluation.reliability(labels, p, weighted=weighted))
        assert (taken_out_twice["error"] > 4 * taken_out_twice["by_chance"]).all()


def test_bins_reach_the_rare_high_probabilities_and_share_out_everything(predicted):
    labels, probabilities = predicted
    table = evaluation.reliability(labels, probabilities, bins=6)
    grouped = table.groupby(["family", "severity"])
    assert len(grouped) == 9 and grouped.size().max() <= 6
    assert np.allclose(grouped["share"].sum(), 1)
    rare = np.full((1000, N_TARGETS, 3), [0.99, 0.005, 0.005])
    rare[:20, :, :] = [0.2, 0.2, 0.6]  # 0.2, 0.1, 0.15 without the weights
    severe = evaluation.reliability(np.zeros((1000, N_TARGETS)), rare).query("family == 'spinal' and severity == 2")
    assert severe["predicted"].max() == pytest.approx(1 / 3)  # eight bins of equally many would end at 0.1
    unlabelled = evaluation.reliability(np.full((3, N_TARGETS), MISSING), probabilities[:3])
    assert len(unlabelled) == 0 and len(evaluation.calibration_error(unlabelled)) == 0


def test_the_worst_cases_are_the_costliest_target_of_each_study():
    labels = np.zeros((4, N_TARGETS), int)
    probabilities = np.tile([0.9, 0.06, 0.04], (4, N_TARGETS, 1)).astype(float)
    first, second = target_index(CONDITIONS[3], LEVELS[4]), target_index(CONDITIONS[0], LEVELS[1])
    labels[2, first], labels[2, second], labels[1, second] = 2, 1, 2
    probabilities[1, second] = [0.3, 0.3, 0.4]
    labels[3] = MISSING
    cases = evaluation.worst_cases(labels, probabilities, ["a", "b", "c", "d"], n=2)
    assert list(cases["study_id"]) == ["c", "b"]
    assert cases.loc[0, ["condition", "level", "label"]].tolist() == [CONDITIONS[3], LEVELS[4], SEVERITIES[2]]
    assert cases["loss"].tolist() == pytest.approx([-4 * np.log(0.04), -4 * np.log(0.4)])
    assert cases.loc[1, ["normal_mild", "moderate", "severe"]].tolist() == pytest.approx([6 / 11, 3 / 11, 2 / 11])
    everything = evaluation.worst_cases(labels, probabilities, ["a", "b", "c", "d"], n=9)
    assert list(everything["study_id"]) == ["c", "b", "a"]  # d has no label


def test_arrays_of_another_shape_are_refused_with_what_came(predicted):
    labels, probabilities = predicted
    with pytest.raises(DataError, match=r"probabilities must have shape \(80, 25, 3\), got \(80, 5, 3\)"):
        evaluation.reliability(labels, probabilities[:, :5])
    with pytest.raises(DataError, match=r"the prior must have shape \(25, 3\), got \(3,\)"):
        evaluation.grade_table(labels, probabilities, np.ones(3) / 3)
    with pytest.raises(DataError, match="as many studies as rows of labels, got 1 and 80"):
        evaluation.worst_cases(labels, probabilities, ["1"])
