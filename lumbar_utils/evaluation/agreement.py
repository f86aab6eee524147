"""Agreement of predicted severities with the labels, measured as for readers: kappas and AUCs with intervals.

A reader gives one severity, so of probabilities the most probable one is taken for the kappas. Intervals come from
resampling studies (`metrics.bootstrap`). Kappas and areas are computed for all resamples at once; they equal
`cohen_kappa_score` and `roc_auc_score` of scikit-learn with sample weights, which take about ten times as long here.

References: Cohen 1968, Psychol Bull 70:213 (weighted kappa); Hallinan et al. 2021, Radiology 300:130, for the
dichotomy of normal or mild against moderate or severe.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from ..errors import DataError
from ..labels import CONDITIONS, LEVELS, MISSING, N_SEVERITIES, N_TARGETS, condition_title, level_title
from ..metrics.bootstrap import resample_counts, with_interval
from ..metrics.score import FAMILY_TARGETS, checked_predictions

MODERATE, SEVERE = 1, 2
KAPPAS = {"quadratic kappa": "quadratic", "linear kappa": "linear", "dichotomous kappa": None}
"""Measure -> weights of the disagreements, named as in scikit-learn; the dichotomous one is of two classes."""
AREAS = {"AUC moderate or worse": MODERATE, "AUC severe": SEVERE}
"""Measure -> severity from which a label counts as positive."""
MEASURES = (*KAPPAS, *AREAS)
COLUMNS = ("group", "prediction", "measure", "value", "low", "high", "labels", "positive")
CHUNK_NUMBERS = 4_000_000
"""Resampled weights that are held at a time, 32 MB."""


def target_groups(by: str) -> dict[str, np.ndarray]:
    """Target indices by title, for `by` "all", "family", "condition" or "level". Raises `DataError` for others."""
    targets = np.arange(N_TARGETS).reshape(len(CONDITIONS), len(LEVELS))
    groups = {
        "all": {"all": targets.ravel()},
        "family": dict(FAMILY_TARGETS),
        "condition": {condition_title(name): targets[i] for i, name in enumerate(CONDITIONS)},
        "level": {level_title(name): targets[:, i] for i, name in enumerate(LEVELS)},
    }
    if by not in groups:
        raise DataError(f"by must be one of {sorted(groups)}, got {by!r}")
    return groups[by]


def agreement_table(
    labels: np.ndarray, predictions: Mapping[str, np.ndarray], *, by: str = "condition", n: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Agreement of predictions with the labels, each measure with its 95 % bootstrap interval over studies.

    Labels are int (n_studies, 25), -1 where not labelled. Predictions by name are plain frequencies (n_studies, 25, 3),
    see `plain_frequencies`, or severities (n_studies, 25) as a reader gives them, for which there is no area under the
    curve. `by` is what has rows of its own, see `target_groups`; the `n` resamples are the same for all predictions.

    The table has `COLUMNS`, one row for each group, prediction and measure; labels and positive (moderate or worse;
    severe for "AUC severe") count what the value rests on. nan where it is not defined, as where nothing was severe.
    """
    labels = np.asarray(labels)
    counts = resample_counts(len(labels), n, seed)
    readings = {name: _severities_and_scores(labels, np.asarray(p)) for name, p in predictions.items()}
    rows = []
    for group, targets in target_groups(by).items():
        own = labels[:, targets]
        known, moderate, severe = (int((own >= at_least).sum()) for at_least in (0, MODERATE, SEVERE))
        labelled = own != MISSING
        weights_of_labels = counts[:, np.nonzero(labelled)[0]]
        for name, (severities, scores) in readings.items():
            confusion = _confusions(own, severities[:, targets], counts)
            for measure, weights in KAPPAS.items():
                values = kappa_of(confusion if weights else _two_classes(confusion), weights)
                rows.append((group, name, measure, *with_interval(values), known, moderate))
            for measure, at_least in AREAS.items():
                values = np.full(1 + n, np.nan)
                if scores is not None:
                    score = scores[:, targets, at_least:].sum(axis=-1)
                    values = weighted_areas(own[labelled] >= at_least, score[labelled], weights_of_labels)
                positive = moderate if at_least == MODERATE else severe
                rows.append((group, name, measure, *with_interval(values), known, positive))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def agreement_words(table: pd.DataFrame) -> pd.DataFrame:
    """A table of `agreement_table` as text: groups and predictions down, measures across, "0.74 (0.60 to 0.84)"."""
    numbers = table[["value", "low", "high"]].to_numpy(dtype=float)
    cells = ["{:.2f} ({:.2f} to {:.2f})".format(*row) if np.isfinite(row[0]) else "" for row in numbers]
    wide = table.assign(cell=cells).pivot_table("cell", ["group", "prediction"], "measure", "first", sort=False)
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

    The fraction of pairs, one positive and one negative, in which the positive has the higher score; ties count half.
    """
    if positive.all() or not positive.any():
        return np.full(len(weights), np.nan)
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


def _severities_and_scores(labels: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The severities (n, 25) of a prediction and, where it has them, its probabilities (n, 25, 3)."""
    if prediction.ndim == 3:
        probabilities = checked_predictions(labels, prediction)[1]
        return probabilities.argmax(axis=-1), probabilities
    if prediction.shape != labels.shape or not np.isin(prediction, range(N_SEVERITIES)).all():
        raise DataError(f"a reader's grades must be 0, 1 or 2 and of shape {labels.shape}, got {prediction.shape}")
    return prediction.astype(int), None


def _confusions(labels: np.ndarray, severities: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Confusion matrices (n, 3, 3) of labels and severities (n_studies, m), for each row of counts."""
    cell = np.where(labels == MISSING, -1, labels * N_SEVERITIES + severities)
    by_study = np.stack([(cell == k).sum(axis=1) for k in range(N_SEVERITIES**2)], axis=1)
    return (counts @ by_study).reshape(-1, N_SEVERITIES, N_SEVERITIES)


def _two_classes(confusion: np.ndarray) -> np.ndarray:
    """Confusion matrices (..., 2, 2) of moderate or worse, of those of the three severities."""
    return np.add.reduceat(np.add.reduceat(confusion, [0, MODERATE], axis=-1), [0, MODERATE], axis=-2)
