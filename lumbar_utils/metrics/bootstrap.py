"""The bootstrap over studies: how far a number would move with other patients.

Whole studies are resampled with replacement, because the 25 targets of one patient are not independent. A resample is
a row of counts, how often it holds each study, so that everything that is a quotient of sums over studies is computed
for all resamples by one matrix product.

Reference: Efron and Tibshirani 1993, An Introduction to the Bootstrap (percentile intervals).
"""

from __future__ import annotations

import warnings

import numpy as np

from ..errors import DataError
from .score import term_sums

INTERVAL = (0.025, 0.975)


def resample_counts(n_studies: int, n: int, seed: int = 0) -> np.ndarray:
    """How often each study is in the sample itself (first row, all 1) and in `n` resamples: int (1 + n, n_studies)."""
    if n_studies < 1:
        raise DataError("there are no studies to resample")
    drawn = np.random.default_rng(seed).multinomial(n_studies, np.full(n_studies, 1 / n_studies), size=n)
    return np.concatenate([np.ones((1, n_studies), dtype=drawn.dtype), drawn])


def with_interval(values: np.ndarray) -> tuple[float, float, float]:
    """(value, low, high): a number of the sample and its 95 % percentile interval.

    `values`, shape (1 + n,), is the number for each row of `resample_counts`. nan is left out, as a resample may hold
    no severe case; all nan gives nan.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        low, high = np.nanquantile(values[1:], INTERVAL)
    return float(values[0]), float(low), float(high)


def bootstrap_scores(labels: np.ndarray, *predictions: np.ndarray, n: int = 500, seed: int = 0) -> np.ndarray:
    """Total scores of one or more predictions on the same resamples of the studies, shape (n, n_predictions).

    The standard deviation of a column is a score's standard error; that of the difference of two columns is the
    paired standard error, which is the one to compare models by. Labels int (n_studies, 25), predictions
    (n_studies, 25, 3) each; raises `DataError` as `competition_score`.
    """
    counts = resample_counts(len(labels), n, seed)[1:]
    totals = []
    for prediction in predictions:
        loss, weight = term_sums(labels, prediction)
        with np.errstate(invalid="ignore"):  # a resample without any label of a term
            totals.append(((counts @ loss) / (counts @ weight)).mean(axis=1))
    return np.stack(totals, axis=1)
