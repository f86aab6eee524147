"""Calibration mends what is wrong with predictions, on studies that it has not seen, and never harms those it has."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from lumbar_utils.errors import DataError
from lumbar_utils.labels import MISSING, N_TARGETS
from lumbar_utils.metrics import calibration
from lumbar_utils.metrics.calibration import Calibration, cross_fitted, fit_calibration
from lumbar_utils.metrics.score import FAMILY_TARGETS, competition_score


def cohort(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and the weighted class frequencies from which they were drawn: what a perfect network predicts."""
    rng = np.random.default_rng(seed)
    degree = 0.9 * rng.normal(size=(n, 1, 1)) + 1.5 * rng.normal(size=(n, N_TARGETS, 1))
    p = np.exp(np.log([0.75, 0.18, 0.07]) + degree * [-1, 0.3, 1.2])
    p /= p.sum(axis=-1, keepdims=True)
    labels = (rng.random((n, N_TARGETS, 1)) > p.cumsum(axis=-1)).sum(axis=-1).clip(0, 2)
    labels[rng.random(labels.shape) < 0.02] = MISSING
    weighted = p * [1, 2, 4]
    return labels, weighted / weighted.sum(axis=-1, keepdims=True)


def warped(p: np.ndarray, power: float, factors=(1.0, 1.0, 1.0)) -> np.ndarray:
    p = p**power * np.asarray(factors)
    return p / p.sum(axis=-1, keepdims=True)


def total(labels: np.ndarray, p: np.ndarray) -> float:
    return competition_score(labels, p).total


def test_an_overconfident_biased_network_is_mended_on_other_studies():
    labels, p = cohort(600, 0)
    fitted = fit_calibration(labels, warped(p, 1.6, (1, 1.5, 0.6)))
    assert all(1.3 < t < 1.9 for t in fitted.temperature.values())
    others, q = cohort(1500, 1)
    before, after = warped(q, 1.6, (1, 1.5, 0.6)), fitted.apply(warped(q, 1.6, (1, 1.5, 0.6)))
    assert total(others, after) < total(others, before) - 0.02
    assert abs(total(others, after) - total(others, q)) < 0.006


def test_the_fourth_term_is_fitted_with_the_canal():
    """Rows may be perfect and the largest of five severe probabilities still too large: the fit weighs both."""
    labels, p = cohort(1500, 2)
    after = fit_calibration(labels, p).apply(p)
    before, now = competition_score(labels, p), competition_score(labels, after)
    assert now.any_severe_spinal < before.any_severe_spinal - 0.003
    assert now.spinal - before.spinal < before.any_severe_spinal - now.any_severe_spinal
    for family in ("foraminal", "subarticular"):
        assert abs(getattr(now, family) - getattr(before, family)) < 0.002


def test_what_is_minimised_is_the_competitions_metric():
    labels, p = cohort(40, 3)
    given = Calibration(
        {"spinal": 1.3, "foraminal": 0.8, "subarticular": 2.0},
        {"spinal": (0, 0.2, -0.4), "foraminal": (0, -1, 1), "subarticular": (0, 0, 0.3)},
    )
    parts = 0.0
    for family, targets in FAMILY_TARGETS.items():
        score = calibration._family_score(labels[:, targets], p[:, targets], any_severe=family == "spinal")
        parts += score(np.array([np.log(given.temperature[family]), *given.bias[family][1:]]))
    assert parts / 4 == pytest.approx(total(labels, given.apply(p)), abs=1e-9)


@pytest.mark.parametrize("n", [1, 3, 12, 60])
def test_few_studies_are_never_made_worse_and_never_wild(n):
    for seed in range(4):
        labels, p = cohort(n, 10 + seed)
        for given in (p, warped(p, 3.0), np.eye(3)[np.where(labels < 0, 0, labels)]):
            fitted = fit_calibration(labels, given)
            assert total(labels, fitted.apply(given)) <= total(labels, given) + 1e-12
            assert all(0.2 < t < 8 for t in fitted.temperature.values())
            assert np.abs([fitted.bias[family] for family in FAMILY_TARGETS]).max() < 3


def test_a_cross_fitted_gain_is_the_gain_on_new_studies():
    """On noise the fitted studies seem to gain and new ones lose; cross-fitting shows the loss."""
    rng = np.random.default_rng(5)
    flattering, honest, gain = [], [], []
    for seed in range(3):
        labels, p = cohort(60, 20 + seed)
        shuffled = labels[rng.permutation(len(labels))]
        base = np.tile(np.full(3, 1 / 3), (60, N_TARGETS, 1))
        base = warped(base * rng.lognormal(0, 1.0, base.shape), 1)
        out = cross_fitted(shuffled, base, seed=seed)
        flattering.append(total(shuffled, fit_calibration(shuffled, base).apply(base)))
        honest.append(total(shuffled, out))
        gain.append(total(labels, warped(p, 1.8)) - total(labels, cross_fitted(labels, warped(p, 1.8), seed=seed)))
    assert np.mean(flattering) < np.mean(honest)
    assert np.mean(gain) > 0.02
    assert np.array_equal(cross_fitted(labels, p, seed=1), cross_fitted(labels, p, seed=1))


def test_each_study_is_calibrated_by_the_others_only():
    labels, p = cohort(30, 6)
    before = cross_fitted(labels, p)
    changed = labels.copy()
    changed[4] = (changed[4].clip(0) + 1) % 3
    after = cross_fitted(changed, p)
    assert np.array_equal(after[4], before[4]) and not np.array_equal(after, before)
    with pytest.raises(DataError, match="two or more studies"):
        cross_fitted(labels[:1], p[:1])


def test_two_thousand_studies_take_less_than_two_seconds():
    labels, p = cohort(2000, 7)
    best = np.inf
    for _ in range(3):  # the machine may be busy
        started = time.perf_counter()
        fit_calibration(labels, warped(p, 1.4))
        best = min(best, time.perf_counter() - started)
    assert best < 2


def test_zeros_stay_finite_and_rows_sum_to_one():
    p = np.zeros((2, N_TARGETS, 3))
    p[0, :, 1] = 1
    strong = Calibration(dict.fromkeys(FAMILY_TARGETS, 0.1), dict.fromkeys(FAMILY_TARGETS, (0, 2, -2)))
    for given in (Calibration(), strong):
        out = given.apply(p)
        assert np.isfinite(out).all() and (out >= 0).all() and np.allclose(out.sum(axis=-1), 1)
    q = cohort(5, 8)[1]
    assert np.allclose(Calibration().apply(q), q, atol=1e-12)
    q[1, 3] = np.nan
    assert np.isnan(Calibration().apply(q)[1, 3]).all() and np.isfinite(Calibration().apply(q)[0]).all()


def test_a_family_without_labels_is_left_alone():
    labels, p = cohort(30, 9)
    labels[:, FAMILY_TARGETS["foraminal"]] = MISSING
    fitted = fit_calibration(labels, warped(p, 1.5))
    assert fitted.temperature["foraminal"] == 1 and fitted.temperature["subarticular"] > 1.1
    p[0, 0] = np.nan
    labels[0, 0] = 1
    with pytest.raises(DataError, match="not finite"):
        fit_calibration(labels, p)


def test_json_round_trip_and_refusals():
    fitted = fit_calibration(*cohort(20, 11))
    values = json.loads(json.dumps(fitted.to_json()))
    assert Calibration.from_json(values) == fitted
    one = dict.fromkeys(FAMILY_TARGETS, 1.0)
    for wrong, words in (
        ({**values, "scale": 1}, "expected the keys"),
        ({"temperature": one}, "expected the keys"),
        ({**values, "temperature": {"spinal": 1.0}}, "must name the families"),
        ({**values, "temperature": {**one, "spinal": 0.0}}, "positive"),
        ({**values, "temperature": {**one, "spinal": "warm"}}, "expected numbers"),
        ({**values, "bias": {**values["bias"], "spinal": [1, 0, 0]}}, "the first 0"),
        ({**values, "bias": {**values["bias"], "spinal": [0, 1]}}, "3 finite numbers"),
    ):
        with pytest.raises(DataError, match=words):
            Calibration.from_json(wrong)
