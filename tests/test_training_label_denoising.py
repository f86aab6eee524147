"""Wrong labels are found, right ones stay, rare classes survive, and tables keep their form."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from lumbar_utils.cli.train import _denoised
from lumbar_utils.errors import DataError
from lumbar_utils.labels import MISSING, N_TARGETS, TARGETS, decode_severities, encode_severities
from lumbar_utils.metrics.score import FAMILY_TARGETS, prediction_table
from lumbar_utils.training.label_denoising import MAX_CLASS_SHARE, MAX_SHARE, denoise_table, denoised_labels

WEIGHTS = np.array([1.0, 2.0, 4.0])


@pytest.fixture(scope="module")
def planted():
    """Labels of which 1 % were made wrong, predictions of a good network with weighted loss, and which are wrong."""
    rng = np.random.default_rng(0)
    degree = rng.normal(size=(400, N_TARGETS, 1))
    p = np.exp(4 * degree * [-1, 0.2, 1] + [3, 0, -2])
    p /= p.sum(axis=-1, keepdims=True)
    labels = (rng.random((400, N_TARGETS, 1)) > p.cumsum(axis=-1)).sum(axis=-1).clip(0, 2).astype(np.int8)
    wrong = rng.random(labels.shape) < 0.01
    labels[wrong] = (labels[wrong] + 2) % 3
    labels[rng.random(labels.shape) < 0.02] = MISSING
    weighted = p * WEIGHTS
    return labels, weighted / weighted.sum(axis=-1, keepdims=True), wrong & (labels != MISSING)


def test_most_of_what_is_dropped_is_wrong_and_most_wrong_labels_go(planted):
    labels, p, wrong = planted
    clean, dropped = denoised_labels(labels, p)
    assert wrong[dropped].mean() > 0.65 and dropped[wrong].mean() > 0.4
    assert (clean[dropped] == MISSING).all() and np.array_equal(clean[~dropped], labels[~dropped])
    assert clean.dtype == labels.dtype and not dropped[labels == MISSING].any()


def test_never_more_than_the_share_of_a_family_and_the_worst_first(planted):
    labels, p, _ = planted
    opposite = np.where(np.eye(3, dtype=bool)[labels.clip(0)], 1e-6, 1.0) * p  # a network that contradicts everything
    opposite /= opposite.sum(axis=-1, keepdims=True)
    _, dropped = denoised_labels(labels, opposite)
    plain = opposite / WEIGHTS
    posterior = np.take_along_axis(
        plain / plain.sum(-1, keepdims=True), labels.clip(0)[..., None].astype(int), axis=-1
    )[..., 0]
    for targets in FAMILY_TARGETS.values():
        known = labels[:, targets] != MISSING
        assert dropped[:, targets].sum() == int(MAX_SHARE * known.sum())
        gone = posterior[:, targets][dropped[:, targets]]
        assert gone.max() < np.median(posterior[:, targets][known & ~dropped[:, targets]])


def test_a_rare_class_does_not_disappear():
    labels = np.zeros((100, N_TARGETS), dtype=np.int8)
    labels[:30, 0], labels[:5, 1] = 2, 2
    p = np.tile([0.998, 0.001, 0.001], (100, N_TARGETS, 1))  # a network that has not learnt what severe is
    clean, dropped = denoised_labels(labels, p)
    assert (clean[:, 0] == 2).sum() == 30 - int(MAX_CLASS_SHARE * 30)
    assert (clean[:, 1] == 2).sum() == 5
    assert dropped.sum() == 3


def test_the_class_weights_are_removed_first():
    """A network with weights 1/2/4 that says 3 % severe means 0.8 %."""
    labels = np.full((40, N_TARGETS), 2, dtype=np.int8)
    p = np.tile([0.97, 0.0, 0.03], (40, N_TARGETS, 1))
    assert denoised_labels(labels, p)[1].any()
    assert not denoised_labels(labels, p, class_weights=(1, 1, 1))[1].any()


def test_a_table_keeps_its_form_and_studies_without_predictions_their_labels(planted):
    labels, p, _ = planted
    ids = [str(1000 + i) for i in range(len(labels))]
    table = decode_severities(labels, ids).assign(reader="a")
    table["study_id"] = table["study_id"].astype(int)
    before = table.copy()
    result = denoise_table(table, prediction_table(ids[:300], p[:300]))
    assert list(result.columns) == list(table.columns) and result["study_id"].equals(table["study_id"])
    withheld = p.copy()
    withheld[300:] = np.nan
    expected = denoised_labels(labels, withheld)[0]
    assert np.array_equal(encode_severities(result), expected)
    assert np.array_equal(expected[300:], labels[300:]) and (expected[:300] != labels[:300]).any()
    assert table.equals(before), "the table given is not changed"
    assert result[list(TARGETS)].isna().to_numpy().sum() == (expected == MISSING).sum()


def test_shapes_are_checked(planted):
    labels, p, _ = planted
    with pytest.raises(DataError, match=r"shapes \(n, 25\)"):
        denoised_labels(labels[:5], p)


def test_studies_may_have_an_underscore_in_their_ids(planted, tmp_path, capsys):
    labels, p, _ = planted
    ids = [f"case_{i}_l1_l2" for i in range(len(labels))]
    table = decode_severities(labels, ids)
    prediction_table(ids, p).to_csv(tmp_path / "oof.csv", index=False)
    _denoised(SimpleNamespace(labels=table), tmp_path / "oof.csv", set(ids))
    assert f"of {(labels != MISSING).sum()} labels are left out" in capsys.readouterr().out
