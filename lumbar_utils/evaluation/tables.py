"""How good predictions are: scores beside those of references, tables per target, calibration, the worst cases.

References are equal probabilities, the weighted prior and, on synthetic data, the oracle: the exact distribution from
which a synthetic cohort's labels were drawn, weighted as the metric rewards most (the plain frequencies score about
0.03 worse). Nothing but evaluation reads it, nor the labels of a synthetic cohort's test part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..errors import DataError
from ..labels import (
    CONDITIONS,
    LEVELS,
    MISSING,
    N_SEVERITIES,
    N_TARGETS,
    PROBABILITY_COLUMNS,
    SEVERITIES,
    condition_title,
    encode_severities,
    level_title,
)
from ..metrics.score import (
    FAMILY_TARGETS,
    Score,
    checked_predictions,
    competition_score,
    label_weights,
    log_losses,
    metric_frequencies,
    plain_frequencies,
    read_predictions,
    uniform,
    weighted_prior,
)
from ..studies.study import CompetitionFolder

TRUTH_FOLDER = "truth"


def truth_labels(folder: CompetitionFolder, study_ids: Sequence[str]) -> np.ndarray | None:
    """Labels of any studies of a synthetic cohort, int8 (n, 25), -1 where absent; None where they are not known."""
    path = folder.root / TRUTH_FOLDER / "labels.csv"
    if not path.is_file():
        return None
    table = pd.read_csv(path, dtype={"study_id": str}).set_index("study_id")
    if not set(study_ids) <= set(table.index):
        return None
    return encode_severities(table.loc[list(study_ids)])


def reference_predictions(folder: CompetitionFolder, study_ids: Sequence[str]) -> dict[str, np.ndarray]:
    """Predictions to compare with, each (n, 25, 3): uniform, the training part's weighted prior, the oracle if known.

    The prior is fitted on all labelled studies of the folder that are not among `study_ids`; on all when none is left.
    """
    n, own = len(study_ids), set(study_ids)
    others = [s for s in folder.labels["study_id"] if s not in own] if folder.labels is not None else []
    references = {"uniform": np.tile(uniform(), (n, 1, 1))}
    if folder.labels is not None:
        prior = weighted_prior(folder.label_codes(others or list(folder.labels["study_id"])))
        references["weighted prior"] = np.tile(prior, (n, 1, 1))
    frequencies = oracle_frequencies(folder, study_ids)
    if frequencies is not None:
        references["oracle"] = metric_frequencies(frequencies)
    return references


def oracle_frequencies(folder: CompetitionFolder, study_ids: Sequence[str]) -> np.ndarray | None:
    """How often readers would give each severity, float64 (n, 25, 3); None where it is not known."""
    path = folder.root / TRUTH_FOLDER / "oracle.csv"
    return read_predictions(pd.read_csv(path, dtype={"row_id": str}), list(study_ids)) if path.is_file() else None


def compare(
    folder: CompetitionFolder, study_ids: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, *, name: str
) -> dict[str, Score]:
    """Scores of predictions (n, 25, 3), under `name`, between those of the references; labels int (n, 25)."""
    predictions = reference_predictions(folder, study_ids)
    oracle = predictions.pop("oracle", None)
    predictions |= {name: probabilities} | ({} if oracle is None else {"oracle": oracle})
    return {key: competition_score(labels, p) for key, p in predictions.items()}


def score_frame(scores: dict[str, Score]) -> pd.DataFrame:
    """Scores as a table, one row each, columns the four terms and `total`, rounded to 4 digits."""
    return pd.DataFrame({name: score.to_json() for name, score in scores.items()}).T.round(4)


def grade_table(
    labels: np.ndarray,
    probabilities: np.ndarray,
    prior: np.ndarray | None = None,
    *,
    by: Sequence[str] = ("condition", "level"),
) -> pd.DataFrame:
    """How well each target was predicted: one row per condition and level, or pooled over one of the two.

    Labels are int (n, 25), -1 where absent; probabilities (n, 25, 3) as they are scored; `prior` (25, 3) is a constant
    prediction to compare with, such as the training part's `metrics.weighted_prior`; `by` names what has rows of its
    own, condition, level or both. Columns: those of `by`; n (labels), moderate_share, severe_share; weighted_log_loss
    (the metric's term restricted to the row), prior_loss (the same of `prior`, when given); auc_moderate (moderate or
    worse against the rest) and auc_severe. nan where there is nothing to tell apart.
    """
    labels, probabilities = checked_predictions(labels, probabilities)
    if not by or not set(by) <= {"condition", "level"}:
        raise DataError(f"by must name condition, level or both, got {tuple(by)}")
    if prior is not None and np.shape(prior) != (N_TARGETS, N_SEVERITIES):
        raise DataError(f"the prior must have shape ({N_TARGETS}, {N_SEVERITIES}), got {np.shape(prior)}")
    weights = label_weights(labels)
    losses = {"weighted_log_loss": log_losses(labels, probabilities) * weights}
    if prior is not None:
        losses["prior_loss"] = log_losses(labels, np.broadcast_to(prior, probabilities.shape)) * weights
    targets = pd.DataFrame([(c, v) for c in CONDITIONS for v in LEVELS], columns=["condition", "level"])
    rows = []
    for names, group in targets.groupby(list(by), sort=False):
        columns = group.index.to_numpy()
        known = labels[:, columns] != MISSING
        true, predicted = labels[:, columns][known], probabilities[:, columns][known]
        shares = {"moderate_share": (true == 1).sum(), "severe_share": (true == 2).sum()}
        row = dict(zip(by, names, strict=True)) | {"n": len(true)}
        row |= {name: count / len(true) if len(true) else np.nan for name, count in shares.items()}
        total = weights[:, columns].sum()
        row |= {name: loss[:, columns].sum() / total if total else np.nan for name, loss in losses.items()}
        row["auc_moderate"] = _auc(true >= 1, predicted[:, 1:].sum(axis=1))
        row["auc_severe"] = _auc(true == 2, predicted[:, 2])
        rows.append(row)
    return pd.DataFrame(rows)


def by_level(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """One column of a full `grade_table` laid out for reading: conditions down, levels across, anatomical order."""
    absent = sorted({"condition", "level", column} - set(table.columns))
    if absent:
        raise DataError(f"the table lacks {absent}, it has {list(table.columns)}")
    grid = table.pivot_table(index="condition", columns="level", values=column)
    grid = grid.reindex(index=CONDITIONS, columns=LEVELS)
    return grid.rename(index=condition_title, columns=level_title).rename_axis(index=None, columns=None)


def reliability(
    labels: np.ndarray, probabilities: np.ndarray, *, bins: int = 8, weighted: bool = False
) -> pd.DataFrame:
    """Observed frequency against predicted probability, per family and severity, in bins of equal information.

    Labels are int (n, 25), -1 where absent; probabilities (n, 25, 3) as they are scored, with the metric's weights
    1, 2, 4. They are compared as plain frequencies, which people are shown, or, if `weighted`, as they are, with labels
    that count 1, 2 or 4 times by their severity. At most so many `bins` for each severity have equal sums of p (1 - p):
    of equally many predictions, nearly all bins of a rare class would lie at 0.

    Columns: family, severity (0, 1, 2), share (of the family's weight that lies in the bin), predicted and observed
    (means in the bin), standard_error (of observed around predicted, targets taken as independent).
    """
    labels, probabilities = checked_predictions(labels, probabilities)
    weights = label_weights(labels) if weighted else (labels != MISSING).astype(float)
    probabilities = probabilities if weighted else plain_frequencies(probabilities)
    rows = []
    for family, targets in FAMILY_TARGETS.items():
        known = labels[:, targets] != MISSING
        true, predicted, weight = (a[:, targets][known] for a in (labels, probabilities, weights))
        for severity in range(N_SEVERITIES):
            for chunk in _equally_uncertain(predicted[:, severity], bins):
                w, p, hit = weight[chunk], predicted[chunk, severity], true[chunk] == severity
                means = (np.average(values, weights=w) for values in (p, hit))
                error = np.sqrt((w**2 * (hit - p) ** 2).sum()) / w.sum()
                rows.append((family, severity, w.sum() / weight.sum(), *means, error))
    return pd.DataFrame(rows, columns=["family", "severity", "share", "predicted", "observed", "standard_error"])


def calibration_error(table: pd.DataFrame) -> pd.DataFrame:
    """Expected calibration error of each family, from a `reliability` table: index family, two columns.

    `error` is the mean distance of predicted and observed over bins and severities; `by_chance` is what a calibrated
    network would show on so few labels (the mean distance of a normal variable is 0.80 standard deviations).
    """
    share = table["share"] / N_SEVERITIES
    error = share * (table["predicted"] - table["observed"]).abs()
    by_chance = share * np.sqrt(2 / np.pi) * table["standard_error"]
    return pd.DataFrame({"error": error, "by_chance": by_chance}).groupby(table["family"], sort=False).sum()


def worst_cases(labels: np.ndarray, probabilities: np.ndarray, study_ids: Sequence[str], n: int = 6) -> pd.DataFrame:
    """The `n` targets that cost the score most, one a study, the costliest first; fewer where fewer have labels.

    Columns: study_id, condition, level, label (a severity), normal_mild, moderate, severe (predicted, as plain
    frequencies), loss (weight of the label times -ln p of it, p as it is scored).
    """
    labels, probabilities = checked_predictions(labels, probabilities)
    if len(study_ids) != len(labels):
        raise DataError(f"expected as many studies as rows of labels, got {len(study_ids)} and {len(labels)}")
    costs = log_losses(labels, probabilities) * label_weights(labels)
    return costliest_targets(costs, labels, probabilities, study_ids, n)


def costliest_targets(
    costs: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, study_ids: Sequence[str], n: int
) -> pd.DataFrame:
    """The labelled target of the highest cost of each study, in the form of `worst_cases`; costs (n_studies, 25)."""
    costs, shown = np.where(labels == MISSING, -np.inf, costs), plain_frequencies(probabilities)
    rows = []
    for study in np.argsort(-costs.max(axis=1), kind="stable")[:n]:
        target = int(costs[study].argmax())
        if labels[study, target] != MISSING:
            place = CONDITIONS[target // len(LEVELS)], LEVELS[target % len(LEVELS)]
            label = SEVERITIES[labels[study, target]]
            rows.append((str(study_ids[study]), *place, label, *shown[study, target], costs[study, target]))
    return pd.DataFrame(rows, columns=["study_id", "condition", "level", "label", *PROBABILITY_COLUMNS, "loss"])


def _equally_uncertain(p: np.ndarray, bins: int) -> list[np.ndarray]:
    """Indices of rising p in parts of equal sums of p (1 - p): at most `bins`, fewer where the labels are few."""
    if not len(p):
        return []
    order = np.argsort(p, kind="stable")
    total = np.cumsum(p[order] * (1 - p[order]))
    bins = min(bins, max(3, int(total[-1] / 3)))  # a part that sums to 3 knows its share to 0.14, like 12 tossed coins
    edges = np.searchsorted(total, total[-1] * np.arange(1, bins) / bins)
    return [chunk for chunk in np.split(order, edges) if len(chunk)]


def _auc(positive: np.ndarray, score: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score  # a second to import, which drawing a picture need not wait for

    return float(roc_auc_score(positive, score)) if 0 < positive.sum() < positive.size else float("nan")
