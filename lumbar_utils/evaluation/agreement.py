"""How well grades agree with the labels, measured as readers are: kappas and areas under the curve, with intervals.

A reader says a grade, so probabilities are turned into the most probable one first. Values are scikit-learn's; the
intervals come from resampling studies, because the 25 targets of one patient are no independent witnesses.

References: Cohen 1968, Psychol Bull 70:213 (weighted kappa); Hallinan et al. 2021, Radiology 300:130, for the
dichotomy of normal or mild against moderate or severe; Efron and Tibshirani 1993 (percentile intervals).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import pandas as pd

from ..errors import DataError
from ..labels import (
    CONDITIONS,
    LEVELS,
    MISSING,
    N_CONDITIONS,
    N_LEVELS,
    N_SEVERITIES,
    N_TARGETS,
    condition_title,
    level_title,
)
from ..metrics.score import FAMILY_TARGETS
from .tables import checked_grades

MODERATE, SEVERE = 1, 2
KAPPAS = {"quadratic kappa": "quadratic", "linear kappa": "linear", "dichotomous kappa": None}
"""Measure to scikit-learn's `weights`; the dichotomous one is plain kappa of two classes."""
AREAS = {"AUC moderate or worse": MODERATE, "AUC severe": SEVERE}
"""Measure to the severity from which a label counts as positive."""
MEASURES = (*KAPPAS, *AREAS)
COLUMNS = ("group", "prediction", "measure", "value", "low", "high", "labels", "positive")
CHUNK_NUMBERS = 4_000_000
"""Resampled weights that are held at a time, 32 MB."""


def target_groups(by: str) -> dict[str, np.ndarray]:
    """Target indices by title, for `by` "all", "family", "condition" or "level". Raises `DataError` for other words."""
    targets = np.arange(N_TARGETS).reshape(N_CONDITIONS, N_LEVELS)
    groups = {
        "all": {"all": targets.ravel()},
        "family": dict(FAMILY_TARGETS),
        "condition": {condition_title(name): targets[i] for i, name in enumerate(CONDITIONS)},
        "level": {level_title(name): targets[:, i] for i, name in enumerate(LEVELS)},
    }
    if by not in groups:
        raise DataError(f"by must be one of {sorted(groups)}, got {by!r}")
    return groups[by]


def resample_counts(n_studies: int, n: int, seed: int = 0) -> np.ndarray:
    """How often each study is in each of `n` resamples with replacement, int (n, n_studies)."""
    if n_studies < 1:
        raise DataError("there are no studies to resample")
    return np.random.default_rng(seed).multinomial(n_studies, np.full(n_studies, 1 / n_studies), size=n)


def interval(resampled: np.ndarray, coverage: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval over the first axis, nan left out (a resample may hold no severe case); nan if all are."""
    tail = (1 - coverage) / 2
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        low, high = np.nanquantile(resampled, [tail, 1 - tail], axis=0)
    return low, high


def agreement_table(
    labels: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    *,
    by: str = "condition",
    n: int = 1000,
    seed: int = 0,
    coverage: float = 0.95,
) -> pd.DataFrame:
    """Agreement of predictions with the labels, each measure with its bootstrap interval over studies.

    Parameters
    ----------
    labels : int array, shape (n_studies, 25)
        0, 1, 2, or -1 where not labelled.
    predictions : mapping of name to array
        Frequencies (n_studies, 25, 3), see `plain_frequencies`, or grades (n_studies, 25) as a reader gives them, who
        has no area under the curve.
    by : str
        What has rows of its own, see `target_groups`.
    n, seed, coverage
        Resamples; they are the same for all predictions.

    Returns
    -------
    DataFrame
        `COLUMNS`: one row for each group, prediction and measure; labels and positive (moderate or worse; severe for
        "AUC severe") count what the value rests on. nan where it is not defined, as where nothing was severe.
    """
    labels = np.asarray(labels)
    counts = resample_counts(len(labels), n, seed)
    rows = []
    for group, targets in target_groups(by).items():
        for name, prediction in predictions.items():
            prediction = np.asarray(prediction)
            if prediction.ndim == 2:
                grades, scores = _checked_readings(labels, prediction), None
            else:
                _, scores = checked_grades(labels, prediction)
                grades = scores.argmax(axis=-1)
            own, graded = labels[:, targets], grades[:, targets]
            for measure, weights in KAPPAS.items():
                pair = (own, graded) if weights else (_dichotomy(own), _dichotomy(graded))
                rows.append((group, name, measure, *_kappa(*pair, weights, counts, coverage), *_size(own, MODERATE)))
            for measure, at_least in AREAS.items():
                values = (np.nan,) * 3
                if scores is not None:
                    values = _area(own, scores[:, targets, at_least:].sum(axis=-1), at_least, counts, coverage)
                rows.append((group, name, measure, *values, *_size(own, at_least)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def agreement_words(table: pd.DataFrame) -> pd.DataFrame:
    """A table of `agreement_table` for reading: groups and predictions down, measures across, "0.74 (0.60 to 0.84)"."""
    said = [
        f"{row.value:.2f} ({row.low:.2f} to {row.high:.2f})" if np.isfinite(row.value) else ""
        for row in table.itertuples()
    ]
    wide = table.assign(said=said).pivot_table(
        index=["group", "prediction"], columns="measure", values="said", aggfunc="first", sort=False
    )
    return wide.rename_axis(index=[None, None], columns=None)


def kappa_of(confusion: np.ndarray, weights: str | None) -> np.ndarray:
    """Kappa of confusion matrices (..., K, K), labels by rows, nan if undefined; `weights` as for scikit-learn."""
    size = confusion.shape[-1]
    apart = np.abs(np.subtract.outer(np.arange(size), np.arange(size))).astype(float)
    cost = {None: (apart > 0).astype(float), "linear": apart, "quadratic": apart**2}[weights]
    total = confusion.sum(axis=(-2, -1))
    by_chance = confusion.sum(axis=-1)[..., :, None] * confusion.sum(axis=-2)[..., None, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = (by_chance * cost).sum(axis=(-2, -1)) / total
        return np.where(expected > 0, 1 - (confusion * cost).sum(axis=(-2, -1)) / expected, np.nan)


def weighted_areas(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Areas under the ROC curve of the same items (m,) under each row of weights (n, m); nan without both classes.

    The share of pairs, one positive and one negative, in which the positive has the higher score; ties count half.
    """
    order = np.argsort(scores, kind="stable")
    ranked, positive = scores[order], positive[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    result = np.empty(len(weights))
    step = max(1, CHUNK_NUMBERS // max(1, len(scores)))
    for first in range(0, len(weights), step):
        part = weights[first : first + step, order].astype(float)
        above = np.add.reduceat(part * positive, starts, axis=1)
        below = np.add.reduceat(part * ~positive, starts, axis=1)
        beaten = np.cumsum(below, axis=1) - below / 2
        with np.errstate(invalid="ignore"):
            result[first : first + step] = (above * beaten).sum(axis=1) / (above.sum(axis=1) * below.sum(axis=1))
    return result


def _checked_readings(labels: np.ndarray, grades: np.ndarray) -> np.ndarray:
    if grades.shape != labels.shape or not np.isin(grades, range(N_SEVERITIES)).all():
        raise DataError(f"a reader's grades must be 0, 1 or 2 and of shape {labels.shape}, got shape {grades.shape}")
    return grades.astype(int)


def _dichotomy(grades: np.ndarray) -> np.ndarray:
    """0 for normal or mild, 1 for moderate or severe, -1 where not labelled."""
    return np.where(grades == MISSING, MISSING, grades >= MODERATE)


def _size(labels: np.ndarray, at_least: int) -> tuple[int, int]:
    return int((labels != MISSING).sum()), int((labels >= at_least).sum())


def _kappa(
    labels: np.ndarray, grades: np.ndarray, weights: str | None, counts: np.ndarray, coverage: float
) -> tuple[float, float, float]:
    """(value, low, high) of labels and grades (n_studies, m)."""
    from sklearn.metrics import cohen_kappa_score

    classes = 2 if weights is None else N_SEVERITIES
    known = labels != MISSING
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a table with one class only, whose kappa is nan
        value = (
            cohen_kappa_score(labels[known], grades[known], labels=range(classes), weights=weights)
            if known.any()
            else np.nan
        )
    cell = np.where(known, labels * classes + grades, -1)
    confusion = np.stack([(cell == k).sum(axis=1) for k in range(classes**2)], axis=1)
    resampled = kappa_of((counts @ confusion).reshape(-1, classes, classes), weights)
    return (float(value), *map(float, interval(resampled, coverage)))


def _area(
    labels: np.ndarray, scores: np.ndarray, at_least: int, counts: np.ndarray, coverage: float
) -> tuple[float, float, float]:
    """(value, low, high) of labels and scores (n_studies, m)."""
    from sklearn.metrics import roc_auc_score

    known = labels != MISSING
    positive, scores = labels[known] >= at_least, scores[known]
    if positive.all() or not positive.any():
        return (np.nan,) * 3
    study = np.broadcast_to(np.arange(len(labels))[:, None], labels.shape)[known]
    resampled = weighted_areas(positive, scores, counts[:, study])
    return (float(roc_auc_score(positive, scores)), *map(float, interval(resampled, coverage)))
