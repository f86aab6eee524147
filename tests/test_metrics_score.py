"""The metric against an independent computation with scikit-learn on tables, and the loss against the metric."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import log_loss

from lumbar_utils.errors import DataError
from lumbar_utils.labels import MISSING, PROBABILITY_COLUMNS, TARGETS, decode_severities, row_ids
from lumbar_utils.metrics.bootstrap import bootstrap_scores, resample_counts
from lumbar_utils.metrics.loss import CompetitionLoss
from lumbar_utils.metrics.score import (
    competition_score,
    prediction_table,
    read_predictions,
    score_frames,
    uniform,
    weighted_prior,
)

CLASSES = list(PROBABILITY_COLUMNS)


@pytest.fixture
def cohort():
    rng = np.random.default_rng(0)
    labels = rng.choice(3, p=[0.77, 0.16, 0.07], size=(60, 25))
    labels[rng.random(labels.shape) < 0.05] = MISSING
    labels[7, :5] = MISSING  # a study whose canal is not labelled at all
    probabilities = rng.dirichlet([4, 1, 0.5], size=labels.shape)
    return labels, probabilities


def long_form(labels, study_ids):
    rows = pd.DataFrame({"row_id": row_ids(study_ids)})
    codes = labels.ravel()
    for k, name in enumerate(CLASSES):
        rows[name] = (codes == k).astype(int)
    rows["sample_weight"] = np.select([codes == 0, codes == 1, codes == 2], [1, 2, 4], 0)
    return rows[codes != MISSING].reset_index(drop=True)


def clip_and_normalise(p):
    """What scikit-learn 1.2 does to predictions before taking the logarithm."""
    eps = np.finfo(np.float64).eps
    p = np.clip(p, eps, 1 - eps)
    return p / p.sum(axis=1, keepdims=True)


def independent_score(solution, submission):
    """The official computation, table by table, with scikit-learn's log loss."""
    merged = solution.merge(submission, on="row_id", suffixes=("", "_p"))
    merged["study"] = merged["row_id"].str.split("_").str[0]
    terms = []
    for word in ("spinal", "foraminal", "subarticular"):
        part = merged[merged["row_id"].str.contains(word)]
        p = clip_and_normalise(part[[c + "_p" for c in CLASSES]].to_numpy())
        terms.append(log_loss(part[CLASSES].to_numpy(), p, sample_weight=part["sample_weight"].to_numpy()))
    largest = (
        merged[merged["row_id"].str.contains("spinal")].groupby("study")[["severe", "severe_p", "sample_weight"]].max()
    )
    severe = largest["severe_p"].clip(np.finfo(float).eps, 1 - np.finfo(float).eps)
    terms.append(log_loss(largest["severe"], severe, sample_weight=largest["sample_weight"]))
    return terms


@pytest.mark.parametrize("rows_sum_to_one", [True, False])
def test_equals_scikit_learn_on_tables(cohort, rows_sum_to_one):
    labels, p = cohort
    rng = np.random.default_rng(1)
    if not rows_sum_to_one:
        p = (p * rng.uniform(0.3, 0.99, size=(*labels.shape, 1))).round(4)
        p[3, 4] = 0
    p[1, 2] = [0, 0, 1]
    ids = [str(100 + i) for i in range(len(labels))]
    solution, submission = long_form(labels, ids), prediction_table(ids, p)
    expected = independent_score(solution, submission)
    shuffled = submission.sample(frac=1, random_state=0)[["severe", "row_id", "moderate", "normal_mild"]]
    for result in (
        competition_score(labels, p),
        score_frames(solution.sample(frac=1, random_state=1), shuffled),
        score_frames(decode_severities(labels, ids), shuffled),
    ):
        terms = [result.spinal, result.foraminal, result.subarticular, result.any_severe_spinal]
        assert terms == pytest.approx(expected, abs=1e-9)
        assert result.total == pytest.approx(np.mean(expected), abs=1e-9)


def test_only_labelled_rows_count(cohort):
    labels, p = cohort
    changed = p.copy()
    changed[labels == MISSING] = np.nan
    assert competition_score(labels, changed) == competition_score(labels, p)


def test_fourth_term_ignores_unlabelled_levels():
    labels = np.zeros((1, 25), int)
    p = np.tile([0.8, 0.15, 0.05], (1, 25, 1))
    p[0, 2] = [0.1, 0.1, 0.8]
    labels[0, 2] = MISSING
    assert competition_score(labels, p).any_severe_spinal == pytest.approx(-np.log(0.95))


def test_known_values():
    labels = np.zeros((1, 25), int)
    labels[0, 4] = 2
    result = competition_score(labels, np.tile(uniform(), (1, 1, 1)))
    assert [result.spinal, result.foraminal, result.subarticular] == pytest.approx([np.log(3)] * 3)
    assert result.any_severe_spinal == pytest.approx(-np.log(1 / 3))


def test_certain_and_wrong_is_finite():
    labels = np.full((1, 25), 2)
    p = np.tile([1.0, 0, 0], (1, 25, 1))
    assert competition_score(labels, p).total == pytest.approx(-np.log(np.finfo(float).eps), rel=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1])
def test_a_bad_prediction_is_named(cohort, bad):
    labels, p = cohort
    study, target = np.argwhere(labels != MISSING)[40]
    p[study, target, 1] = bad
    ids = [f"s{i}" for i in range(len(labels))]
    with pytest.raises(DataError, match=f"s{study}_{TARGETS[target]}"):
        score_frames(decode_severities(labels, ids), prediction_table(ids, p))


def test_missing_double_and_unknown_rows(cohort):
    labels, p = cohort
    ids = [str(i) for i in range(len(labels))]
    solution, submission = decode_severities(labels, ids), prediction_table(ids, p)
    with pytest.raises(DataError, match="lacks"):
        score_frames(solution, submission[~submission["row_id"].str.startswith("5_")])
    with pytest.raises(DataError, match="more than once"):
        score_frames(solution, pd.concat([submission, submission.head(1)]))
    with pytest.raises(DataError, match="columns"):
        score_frames(solution, submission.drop(columns="severe"))
    extra = pd.concat([submission, prediction_table(["other"], p[:1])])
    assert score_frames(solution, extra) == score_frames(solution, submission)


def test_out_of_fold_part_of_the_studies(cohort):
    labels, p = cohort
    ids = [str(i) for i in range(len(labels))]
    part = prediction_table(ids[10:30], p[10:30])
    with pytest.raises(DataError, match="lacks"):
        score_frames(decode_severities(labels, ids), part)
    result = score_frames(decode_severities(labels, ids), part, only_submitted=True)
    assert result.total == pytest.approx(competition_score(labels[10:30], p[10:30]).total)


def test_text_in_a_submission_is_a_clear_error(cohort):
    labels, p = cohort
    ids = [str(i) for i in range(len(labels))]
    table = prediction_table(ids, p).astype({"severe": object})
    labels[0, 0] = 0
    table.loc[0, "severe"] = "high"
    with pytest.raises(DataError, match="0_spinal_canal_stenosis_l1_l2"):
        score_frames(decode_severities(labels, ids), table)


def test_prediction_table_round_trip(cohort):
    _, p = cohort
    ids = [f"a{i}" for i in range(len(p))]
    table = prediction_table(ids, p).sample(frac=1, random_state=2)
    assert np.array_equal(read_predictions(table, ids), p)


def test_weighted_prior_is_the_best_constant(cohort):
    labels, _ = cohort
    labels = np.tile(labels, (50, 1))
    prior = weighted_prior(labels)
    assert np.allclose(prior.sum(-1), 1) and (prior > 0).all()

    def first_three(p):
        result = competition_score(labels, np.tile(p, (len(labels), 1, 1)))
        return result.spinal + result.foraminal + result.subarticular

    best = first_three(prior)
    rng = np.random.default_rng(0)
    for _ in range(5):
        other = prior * np.exp(0.1 * rng.normal(size=prior.shape))
        assert first_three(other / other.sum(-1, keepdims=True)) > best
    assert (weighted_prior(np.zeros((3, 25), int)) > 0).all(), "a class that was never seen is still possible"


def test_bootstrapped_scores_are_the_metric_of_the_resampled_studies_and_paired(cohort):
    labels, p = cohort
    scores = bootstrap_scores(labels, p, 0.9 * p + 0.1 / 3, n=20)
    assert scores.shape == (20, 2)
    assert np.std(scores[:, 0] - scores[:, 1]) < np.std(scores[:, 0])
    for score, counts in zip(scores[:, 0], resample_counts(len(labels), 20)[1:], strict=True):
        drawn = np.repeat(np.arange(len(labels)), counts)
        assert score == pytest.approx(competition_score(labels[drawn], p[drawn]).total)


def test_loss_equals_metric(cohort):
    labels, p = cohort
    logits = torch.log(torch.as_tensor(p)).double()
    loss = CompetitionLoss.fitted(labels)(logits, torch.as_tensor(labels))
    assert float(loss) == pytest.approx(competition_score(labels, p).total, abs=1e-5)


def test_fitted_loss_does_not_depend_on_the_batching(cohort):
    labels, p = cohort
    labels[labels == MISSING] = 0
    loss = CompetitionLoss.fitted(labels)
    logits, codes = torch.log(torch.as_tensor(p)), torch.as_tensor(labels)
    batches = [float(loss(logits[i : i + 4], codes[i : i + 4])) for i in range(0, 60, 4)]
    assert np.mean(batches) == pytest.approx(float(loss(logits, codes)), abs=1e-6)


def test_a_mixed_batch_counts_every_label_by_its_share(cohort):
    labels, p = cohort
    labels[labels == MISSING] = 0
    loss = CompetitionLoss.fitted(labels)
    logits, own, partner = torch.log(torch.as_tensor(p[:4])), torch.as_tensor(labels[:4]), torch.as_tensor(labels[4:8])
    share = torch.tensor([1.0, 0.7, 0.5, 0.1], dtype=torch.float64)

    def alone(i, codes):
        return float(loss(logits[i : i + 1], codes[i : i + 1]))

    by_hand = sum(s * alone(i, own) + (1 - s) * alone(i, partner) for i, s in enumerate(share.tolist())) / 4
    mixed = loss(logits.repeat(2, 1, 1), torch.cat([own, partner]), torch.cat([share, 1 - share]))
    assert float(mixed) == pytest.approx(by_hand, abs=1e-6)
    whole = loss(logits.repeat(2, 1, 1), torch.cat([own, partner]), torch.cat([torch.ones(4), torch.zeros(4)]))
    assert float(whole) == pytest.approx(float(loss(logits, own)), abs=1e-6)


def test_loss_is_stable_and_masked():
    logits = torch.zeros(2, 25, 3)
    logits[0, :, 0] = 1e4
    logits.requires_grad_()
    labels = torch.full((2, 25), 2)
    labels[1] = MISSING
    loss_of = CompetitionLoss.fitted(labels.numpy())
    loss = loss_of(logits, labels)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()
    assert (logits.grad[1] == 0).all() and (logits.grad[0, 0] != 0).any()
    nothing = loss_of(logits, torch.full((2, 25), MISSING))
    assert float(nothing.detach()) == 0
