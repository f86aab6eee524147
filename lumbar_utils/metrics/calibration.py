"""Temperature and class scaling, fitted on out-of-fold predictions by the competition's metric itself.

Per family of targets (spinal, foraminal, subarticular) the calibrated probabilities are
softmax(log p / temperature + bias): three numbers a family, nine in all. They are fitted on probabilities that carry
the metric's weights 1, 2, 4, as all tables of predictions do, and so do the calibrated ones. A ridge draws them towards
the identity, so that few studies cannot make them wild, and the score on the studies that they were fitted on never
gets worse.

Out-of-fold predictions are those of one network each. The mean over an ensemble's networks is less sure of itself than
any of them, so a temperature above 1 that was fitted on single networks is a little too high for their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
from scipy import optimize

from ..errors import DataError
from ..labels import MISSING, N_SEVERITIES, N_TARGETS, SEVERITY_WEIGHTS
from .score import EPSILON, FAMILY_TARGETS, SEVERE, competition_score

RIDGE_STUDIES = 4.0
"""Strength of the ridge per squared unit of log temperature or bias, in studies. Of 0.5, 2, 4 and 10 the one with
which, on simulated predictions, 30 studies already helped on new ones and 2,000 lost nothing."""
SPINAL = "spinal"
NO_BIAS = (0.0,) * N_SEVERITIES


@dataclass(frozen=True)
class Calibration:
    """What is done to the logarithms of predicted probabilities, by family; the default changes nothing.

    `temperature` is positive, above 1 it makes predictions less sure; `bias` is added for normal/mild (0), moderate and
    severe after the division by it. Raises `DataError` when a family is absent or unknown, or a number is not one.
    """

    temperature: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(FAMILY_TARGETS, 1.0))
    bias: Mapping[str, tuple[float, float, float]] = field(
        default_factory=lambda: dict.fromkeys(FAMILY_TARGETS, NO_BIAS)
    )

    def __post_init__(self):
        for name in ("temperature", "bias"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) or set(value) != set(FAMILY_TARGETS):
                raise DataError(f"calibration: {name} must name the families {list(FAMILY_TARGETS)}, got {value!r}")
        try:
            temperature = {family: float(self.temperature[family]) for family in FAMILY_TARGETS}
            bias = {family: tuple(float(b) for b in self.bias[family]) for family in FAMILY_TARGETS}
        except (TypeError, ValueError) as error:
            raise DataError(f"calibration: expected numbers, {error}") from error
        if not all(np.isfinite(t) and t > 0 for t in temperature.values()):
            raise DataError(f"calibration: temperatures must be positive and finite, got {temperature}")
        if not all(len(b) == N_SEVERITIES and b[0] == 0 and np.isfinite(b).all() for b in bias.values()):
            raise DataError(f"calibration: a bias must be {N_SEVERITIES} finite numbers, the first 0, got {bias}")
        object.__setattr__(self, "temperature", temperature)
        object.__setattr__(self, "bias", bias)

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrate probabilities (n, 25, 3): float64, rows summing to one, finite for zeros; nan rows stay nan."""
        p = np.asarray(probabilities, dtype=np.float64)
        if p.ndim != 3 or p.shape[1:] != (N_TARGETS, N_SEVERITIES):
            raise DataError(f"probabilities must have shape (n, {N_TARGETS}, {N_SEVERITIES}), got {p.shape}")
        result = np.empty_like(p)
        for family, targets in FAMILY_TARGETS.items():
            log_p = _log_scaled(p[:, targets], 1 / self.temperature[family], np.asarray(self.bias[family]))
            result[:, targets] = np.exp(log_p)
        return result / result.sum(axis=-1, keepdims=True)

    def to_json(self) -> dict:
        """A JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping) -> Calibration:
        """The inverse of `to_json`; raises `DataError` for absent or unknown keys."""
        if not isinstance(values, Mapping) or set(values) != {"temperature", "bias"}:
            raise DataError(f"calibration: expected the keys temperature and bias, got {values!r}")
        return cls(**values)


def fit_calibration(labels: np.ndarray, probabilities: np.ndarray) -> Calibration:
    """The calibration that minimises the competition's score of out-of-fold predictions, fourth term included.

    Labels int (n, 25), -1 = not labelled, probabilities (n, 25, 3); a family without any label is left as it is. Raises
    `DataError` as `competition_score`.
    """
    competition_score(labels, probabilities)  # raises for what cannot be scored
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    temperature, bias = {}, {}
    for family, targets in FAMILY_TARGETS.items():
        x = _fit_family(labels[:, targets], probabilities[:, targets], any_severe=family == SPINAL)
        temperature[family], bias[family] = float(np.exp(x[0])), (0.0, float(x[1]), float(x[2]))
    return Calibration(temperature, bias)


def cross_fitted(labels: np.ndarray, probabilities: np.ndarray, n_folds: int = 5, *, seed: int = 0) -> np.ndarray:
    """Calibrated probabilities (n, 25, 3), each study's by a calibration that was fitted without it.

    Their score is what calibration really brings; that of the studies it was fitted on flatters. `n_folds` parts are
    drawn at random by `seed`, at most one per study. Raises `DataError` for fewer than two studies or folds.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    n_folds = min(n_folds, len(labels))
    if n_folds < 2:
        raise DataError(f"cross-fitting needs two or more studies and folds, got {len(labels)} studies")
    fold = np.random.default_rng(seed).permutation(len(labels)) % n_folds
    result = np.empty(probabilities.shape)
    for number in range(n_folds):
        out = fold == number
        result[out] = fit_calibration(labels[~out], probabilities[~out]).apply(probabilities[out])
    return result


def _fit_family(labels: np.ndarray, probabilities: np.ndarray, *, any_severe: bool) -> np.ndarray:
    """(log temperature, bias of moderate, bias of severe) of one family."""
    labelled = int((labels != MISSING).any(axis=1).sum())
    identity = np.zeros(N_SEVERITIES)
    if labelled == 0:
        return identity
    score = _family_score(labels, probabilities, any_severe=any_severe)

    def objective(x: np.ndarray) -> float:
        return score(x) + RIDGE_STUDIES / labelled * float(x @ x)

    found = optimize.minimize(objective, identity, method="L-BFGS-B")
    # The ridge is 0 at the identity: what is better with it is better without it.
    return found.x if np.isfinite(found.fun) and found.fun <= objective(identity) else identity


def _family_score(labels: np.ndarray, probabilities: np.ndarray, *, any_severe: bool) -> Callable[[np.ndarray], float]:
    """The part of the metric that one family decides, labels (n, m), as a function of its three parameters."""
    known = labels != MISSING
    rows, truth = probabilities[known], labels[known]
    weight = np.asarray(SEVERITY_WEIGHTS)[truth]
    picked = np.arange(len(rows))
    study_weight = np.zeros(labels.shape)
    study_weight[known] = weight
    study_weight = study_weight.max(axis=1)
    severe = (labels == SEVERE).any(axis=1)

    def score(x: np.ndarray) -> float:
        log_p = _log_scaled(rows, np.exp(-x[0]), np.array([0.0, x[1], x[2]]))
        value = -(log_p[picked, truth] @ weight) / weight.sum()
        if any_severe:
            largest = np.zeros(labels.shape)
            largest[known] = np.exp(log_p[:, SEVERE])
            largest = np.clip(largest.max(axis=1), EPSILON, 1 - EPSILON)
            loss = -np.log(np.where(severe, largest, 1 - largest))
            value += loss @ study_weight / study_weight.sum()
        return float(value)

    return score


def _log_scaled(probabilities: np.ndarray, slope: float, bias: np.ndarray) -> np.ndarray:
    """Logarithms of softmax(slope * log p + bias) over the last axis."""
    z = np.log(np.clip(probabilities, EPSILON, None)) * slope + bias
    z -= z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
