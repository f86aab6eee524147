"""The competition's metric, exactly: on arrays and on CSV tables; `loss` has it as a loss for training.

Weights are 1, 2, 4 for normal/mild, moderate, severe. Spinal, foraminal and subarticular targets are pooled over
levels and sides into one weighted log loss each; the fourth term asks, per study, whether any level's canal is
severe. The score is the mean of the four; lower is better.

The official code calls `sklearn.metrics.log_loss` of scikit-learn 1.2, whose details are repeated here so that the
result does not depend on the version installed: predictions are first clipped to [eps, 1 - eps], eps being float64's
2.2e-16, then every row is divided by its sum. The fourth term takes the largest severe value of a study as it
stands in the submission, before any renormalisation, and clips it likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from ..errors import DataError
from ..labels import (
    FAMILIES,
    MISSING,
    N_LEVELS,
    N_SEVERITIES,
    N_TARGETS,
    PROBABILITY_COLUMNS,
    SEVERITY_WEIGHTS,
    encode_severities,
    row_ids,
    split_row_id,
)

EPSILON = float(np.finfo(np.float64).eps)
"""Smallest probability that is scored; scikit-learn's default for float64."""
SEVERE = 2
PRIOR_PSEUDO_STUDIES = 1.0
"""Strength, in studies, with which a target's prior is drawn to its family's, so that no class gets probability 0."""

FAMILY_TARGETS = {
    name: np.array([c * N_LEVELS + level for c in conditions for level in range(N_LEVELS)])
    for name, conditions in FAMILIES.items()
}
"""Indices into `labels.TARGETS` of each of the metric's three groups."""


@dataclass(frozen=True)
class Score:
    """The metric's four terms and their mean. A term without any labelled row is nan and so is the total."""

    spinal: float
    foraminal: float
    subarticular: float
    any_severe_spinal: float

    @property
    def total(self) -> float:
        """The competition's score: the mean of the four terms."""
        return float(np.mean([self.spinal, self.foraminal, self.subarticular, self.any_severe_spinal]))

    def to_json(self) -> dict[str, float]:
        """The four terms and `total`."""
        return {**asdict(self), "total": self.total}

    def __str__(self) -> str:
        return (
            f"score {self.total:.4f} (spinal {self.spinal:.4f}, foraminal {self.foraminal:.4f}, "
            f"subarticular {self.subarticular:.4f}, any severe spinal {self.any_severe_spinal:.4f})"
        )


def competition_score(labels: np.ndarray, probabilities: np.ndarray) -> Score:
    """Score predictions against integer labels.

    Parameters
    ----------
    labels : int array, shape (n_studies, 25)
        0, 1, 2, or -1 where there is no label; such targets are not scored.
    probabilities : float array, shape (n_studies, 25, 3)
        Not negative and finite wherever there is a label; rows need not sum to one exactly.

    Raises
    ------
    DataError
        When shapes do not fit or a scored prediction is missing, negative or not finite.
    """
    return _score(*term_sums(labels, probabilities))


def score_frames(solution: pd.DataFrame, submission: pd.DataFrame, *, only_submitted: bool = False) -> Score:
    """Score a submission table (row_id, normal_mild, moderate, severe) against a solution, whatever the order of rows.

    The solution is in `train.csv` form (study_id and the 25 target columns) or in long form (row_id, normal_mild,
    moderate, severe as 0 or 1, and sample_weight); rows that it does not score are ignored. `only_submitted` scores the
    studies that the submission names alone, for out-of-fold predictions of one fold: in the competition, and by
    default, a study that is not named is an error. Raises `DataError` when a column or a scored row is absent, a row is
    there twice, or a value is not a probability.
    """
    study_ids, labels, weights = _read_solution(solution)
    if only_submitted and "row_id" in submission.columns:
        named = {split_row_id(row_id)[0] for row_id in submission["row_id"].astype(str)}
        kept = [i for i, study_id in enumerate(study_ids) if study_id in named]
        if not kept:
            raise DataError("the submission names none of the solution's studies")
        study_ids, labels, weights = [study_ids[i] for i in kept], labels[kept], weights[kept]
    elif "row_id" in submission.columns:
        there = np.isin(row_ids(study_ids), submission["row_id"].astype(str)).reshape(labels.shape)
        absent = np.flatnonzero((labels != MISSING).any(axis=1) & ~there.any(axis=1))
        if absent.size:
            raise DataError(
                f"the submission lacks {absent.size} of {len(study_ids)} studies, the first is "
                f"{study_ids[absent[0]]!r}; --predicted-only (from Python: only_submitted=True) leaves them out"
            )
    probabilities = read_predictions(submission, study_ids, needed=labels != MISSING)
    labels, probabilities = checked_predictions(labels, probabilities, study_ids)
    return _score(*term_sums(labels, probabilities, weights))


def read_predictions(
    submission: pd.DataFrame, study_ids: Sequence[str], *, needed: np.ndarray | None = None, name: str = "submission"
) -> np.ndarray:
    """Bring a submission table into the order of `study_ids`: float64, shape (n_studies, 25, 3), nan where absent.

    `needed`, a boolean array of shape (n_studies, 25), marks rows that must be there; default all. `name` is what
    errors call the table.
    """
    absent = [c for c in ("row_id", *PROBABILITY_COLUMNS) if c not in submission.columns]
    if absent:
        raise DataError(f"the {name} lacks the columns {absent}, it has {list(submission.columns)}")
    ids = submission["row_id"].astype(str)
    if ids.duplicated().any():
        raise DataError(f"the {name} holds row_id {ids[ids.duplicated()].iloc[0]!r} more than once")
    values = submission[list(PROBABILITY_COLUMNS)].apply(pd.to_numeric, errors="coerce")
    values = values.set_axis(ids.to_numpy(), axis=0).astype(np.float64)
    wanted = row_ids(study_ids)
    needed = np.ones((len(study_ids), N_TARGETS), bool) if needed is None else needed
    there = pd.Index(wanted).isin(values.index)
    lacking = needed.ravel() & ~there
    if lacking.any():
        raise DataError(
            f"the {name} lacks {int(lacking.sum())} of {int(needed.sum())} scored rows, "
            f"the first is {wanted[int(lacking.argmax())]!r}"
        )
    return values.reindex(wanted).to_numpy().reshape(len(study_ids), N_TARGETS, N_SEVERITIES)


def prediction_table(study_ids: Sequence[str], probabilities: np.ndarray) -> pd.DataFrame:
    """Probabilities (n, 25, 3) as a table in submission form."""
    values = np.asarray(probabilities, dtype=np.float64).reshape(-1, len(PROBABILITY_COLUMNS))
    frame = pd.DataFrame(values, columns=list(PROBABILITY_COLUMNS))
    frame.insert(0, "row_id", row_ids(study_ids))
    return frame


def weighted_prior(labels: np.ndarray) -> np.ndarray:
    """The best constant prediction: weighted class frequencies per target, float64, shape (25, 3), rows sum to one.

    Every target is drawn towards its family's pooled frequencies with the weight of `PRIOR_PSEUDO_STUDIES`, and
    the family towards uniform, so that a class never seen at a level does not get probability 0. Expects labels of
    shape (n_studies, 25), -1 = not labelled.
    """
    labels = _checked_labels(labels)
    counts = np.stack([(labels == k).sum(axis=0) * w for k, w in enumerate(SEVERITY_WEIGHTS)], axis=-1)
    prior = np.empty((N_TARGETS, N_SEVERITIES))
    for targets in FAMILY_TARGETS.values():
        pooled = counts[targets].sum(axis=0) + np.asarray(SEVERITY_WEIGHTS) / N_SEVERITIES
        prior[targets] = counts[targets] + PRIOR_PSEUDO_STUDIES * pooled / pooled.sum()
    return prior / prior.sum(axis=-1, keepdims=True)


def uniform() -> np.ndarray:
    """One third for every class of every target, shape (25, 3)."""
    return np.full((N_TARGETS, N_SEVERITIES), 1 / N_SEVERITIES)


def plain_frequencies(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities (..., 3) as the metric wants them, without its weights 1, 2, 4: what people are shown.

    The weighted log loss is least where a network predicts weight times frequency. Its most probable class is severe
    as soon as one in five such cases is, which no reader means by "severe". Arrays and tables of predictions, as
    `Predictor.predict_crops`, `oof.csv` and `submission.csv`, carry the weights; `StudyPrediction.probabilities` and
    whatever is drawn or reported are plain.
    """
    plain = np.asarray(probabilities, dtype=np.float64) / SEVERITY_WEIGHTS
    return plain / plain.sum(axis=-1, keepdims=True)


def metric_frequencies(probabilities: np.ndarray) -> np.ndarray:
    """The inverse of `plain_frequencies`: what the metric wants of somebody who knows the frequencies (..., 3)."""
    weighted = np.asarray(probabilities, dtype=np.float64) * SEVERITY_WEIGHTS
    return weighted / weighted.sum(axis=-1, keepdims=True)


def label_weights(labels: np.ndarray) -> np.ndarray:
    """The metric's weight of each label: 1, 2 or 4 by its severity, 0 where absent; float64, the labels' shape."""
    return np.where(labels == MISSING, 0.0, np.asarray(SEVERITY_WEIGHTS)[labels])


def log_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """-ln p of each label, float64 (n, 25), 0 where absent; clipped and normalised as the metric does."""
    known = labels != MISSING
    clipped = np.clip(np.where(known[..., None], probabilities, 1.0), EPSILON, 1 - EPSILON)
    clipped = clipped / clipped.sum(axis=-1, keepdims=True)
    p_true = np.take_along_axis(clipped, np.where(known, labels, 0)[..., None].astype(np.intp), axis=-1)[..., 0]
    return np.where(known, -np.log(p_true), 0.0)


def term_sums(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """What each study adds to the four terms of the metric: weighted losses and weights, float64 (n, 4) each.

    A term over any studies is the sum of their losses divided by the sum of their weights. Labels and probabilities as
    for `competition_score`; `weights` (n, 25), default those of the labels' severities.
    """
    labels, probabilities = checked_predictions(labels, probabilities)
    known = labels != MISSING
    weights = label_weights(labels) if weights is None else np.where(known, weights, 0.0)
    losses = log_losses(labels, probabilities) * weights
    families = FAMILY_TARGETS.values()
    loss, weight = (np.stack([part[:, targets].sum(axis=1) for targets in families], 1) for part in (losses, weights))

    spinal = FAMILY_TARGETS["spinal"]
    severe = (labels[:, spinal] == SEVERE).any(axis=1)
    p = np.where(known[:, spinal], probabilities[:, spinal, SEVERE], 0.0).max(axis=1)
    p = np.clip(p, EPSILON, 1 - EPSILON)
    study_weight = weights[:, spinal].max(axis=1)
    study_loss = -np.log(np.where(severe, p, 1 - p)) * study_weight
    return np.column_stack([loss, study_loss]), np.column_stack([weight, study_weight])


def _score(losses: np.ndarray, weights: np.ndarray) -> Score:
    with np.errstate(invalid="ignore"):  # a term without any label is nan
        return Score(*(losses.sum(axis=0) / weights.sum(axis=0)).tolist())


def _checked_labels(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.shape[1] != N_TARGETS:
        raise DataError(f"labels must have shape (n_studies, {N_TARGETS}), got {labels.shape}")
    if labels.size and (labels.min() < MISSING or labels.max() >= N_SEVERITIES):
        raise DataError(f"labels must be 0, 1, 2 or {MISSING}, got {sorted(set(np.unique(labels).tolist()))}")
    return labels.astype(np.int64)


def checked_predictions(
    labels: np.ndarray, probabilities: np.ndarray, study_ids: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Labels as int64 (n, 25) and probabilities as float64 (n, 25, 3); raises `DataError` as `competition_score`."""
    labels = _checked_labels(labels)
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.shape != (*labels.shape, N_SEVERITIES):
        raise DataError(f"probabilities must have shape {(*labels.shape, N_SEVERITIES)}, got {probabilities.shape}")
    bad = (~np.isfinite(probabilities) | (probabilities < 0)).any(axis=-1) & (labels != MISSING)
    if bad.any():
        study, target = (int(i) for i in np.argwhere(bad)[0])
        row = row_ids([study if study_ids is None else study_ids[study]])[target]
        raise DataError(
            f"{int(bad.sum())} predictions are missing, negative or not finite; the first is row {row!r}: "
            f"{probabilities[study, target].tolist()}"
        )
    return labels, probabilities


def _read_solution(solution: pd.DataFrame) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Study ids, labels (n, 25) and weights (n, 25) of either form of a solution."""
    if "row_id" not in solution.columns:
        if "study_id" not in solution.columns:
            raise DataError(
                "the solution has neither a column study_id (train.csv form) nor row_id (long form); "
                f"it has {list(solution.columns)[:5]}"
            )
        study_ids = [str(s) for s in solution["study_id"]]
        if len(set(study_ids)) != len(study_ids):
            raise DataError("the solution holds a study more than once")
        labels = encode_severities(solution).astype(np.int64)
        return study_ids, labels, label_weights(labels)
    if "sample_weight" not in solution.columns:
        raise DataError("the solution in long form lacks the column sample_weight")
    ids = solution["row_id"].astype(str)
    study_ids = list(dict.fromkeys(split_row_id(row_id)[0] for row_id in ids))
    truth = read_predictions(solution, study_ids, needed=np.zeros((len(study_ids), N_TARGETS), bool), name="solution")
    given = pd.Series(solution["sample_weight"].to_numpy(np.float64), index=ids)
    weights = given.reindex(row_ids(study_ids), fill_value=0.0).to_numpy().reshape(len(study_ids), N_TARGETS)
    one_hot = np.isin(truth, (0.0, 1.0)).all(axis=-1) & (truth.sum(axis=-1) == 1)
    bad = ~np.isfinite(weights) | (weights < 0) | ((weights > 0) & ~one_hot)
    if bad.any():
        study, target = np.argwhere(bad)[0]
        row = row_ids([study_ids[study]])[target]
        raise DataError(f"row {row!r} of the solution is not one-hot with a weight: {truth[study, target].tolist()}")
    return study_ids, np.where(weights > 0, truth.argmax(axis=-1), MISSING), weights
