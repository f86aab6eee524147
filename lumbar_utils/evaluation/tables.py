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
    N_CONDITIONS,
    N_LEVELS,
    N_SEVERITIES,
    N_TARGETS,
    PROBABILITY_COLUMNS,
    SEVERITIES,
    SEVERITY_WEIGHTS,
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
    references = reference_predictions(folder, study_ids)
    scores = {key: competition_score(labels, value) for key, value in references.items() if key != "oracle"}
    scores[name] = competition_score(labels, probabilities)
    if "oracle" in references:
        scores["oracle"] = competition_score(labels, references["oracle"])
    return scores


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

    Parameters
    ----------
    labels, probabilities : ndarrays, shapes (n, 25) and (n, 25, 3)
        Labels 0, 1, 2, or -1 where absent.
    prior : ndarray, shape (25, 3), optional
        Constant predictions to compare with, such as the training part's `metrics.weighted_prior`.
    by : ("condition", "level"), ("condition",) or ("level",)
        What has rows of its own.

    Returns
    -------
    DataFrame
        The columns of `by`; n (labels), moderate_share, severe_share; weighted_log_loss (the metric's term restricted
        to the row), prior_loss (the same of `prior`, when given); auc_moderate (moderate or worse against the rest)
        and auc_severe. nan where there is nothing to tell apart.
    """
    labels, probabilities = checked_predictions(labels, probabilities)
    if not by or not set(by) <= {"condition", "level"}:
        raise DataError(f"by must name condition, level or both, got {tuple(by)}")
    if prior is not None and np.shape(prior) != (N_TARGETS, N_SEVERITIES):
        raise DataError(f"the prior must have shape ({N_TARGETS}, {N_SEVERITIES}), got {np.shape(prior)}")
    own, rows = _weighted_losses(labels, probabilities), []
    constant = None if prior is None else _weighted_losses(labels, np.broadcast_to(prior, probabilities.shape))
    weights = label_weights(labels)
    targets = pd.DataFrame({"condition": np.repeat(CONDITIONS, N_LEVELS), "level": LEVELS * N_CONDITIONS})
    for names, group in targets.groupby(list(by), sort=False):
        columns = group.index.to_numpy()
        known = labels[:, columns] != MISSING
        true, predicted = labels[:, columns][known], probabilities[:, columns][known]
        row = dict(zip(by, names, strict=True)) | {"n": len(true)}
        row |= {"moderate_share": _mean(true == 1), "severe_share": _mean(true == 2)}
        total = weights[:, columns].sum()
        row["weighted_log_loss"] = own[:, columns].sum() / total if total else np.nan
        if constant is not None:
            row["prior_loss"] = constant[:, columns].sum() / total if total else np.nan
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

    Parameters
    ----------
    labels, probabilities : ndarrays, shapes (n, 25) and (n, 25, 3)
        Probabilities as they are scored, with the metric's weights 1, 2, 4.
    bins : int
        At most so many for each severity, with equal sums of p (1 - p). Of equally many predictions, nearly all bins
        of a rare class would lie at 0.
    weighted : bool
        Compare the probabilities as they are submitted with labels that count 1, 2 or 4 times by their severity.
        Default: plain frequencies, as people are shown them, with labels that count once each.

    Returns
    -------
    DataFrame
        family, severity (0, 1, 2), share (of the family's weight that lies in the bin), predicted and observed (means
        in the bin), standard_error (of observed around predicted, targets taken as independent).
    """
    labels, probabilities = checked_predictions(labels, probabilities)
    probabilities = probabilities if weighted else plain_frequencies(probabilities)
    rows = []
    for family, targets in FAMILY_TARGETS.items():
        known = labels[:, targets] != MISSING
        true, predicted = labels[:, targets][known], probabilities[:, targets][known]
        weight = np.asarray(SEVERITY_WEIGHTS)[true] if weighted else np.ones(len(true))
        for severity in range(N_SEVERITIES):
            for chunk in _equally_uncertain(predicted[:, severity], bins):
                w, p, hit = weight[chunk], predicted[chunk, severity], true[chunk] == severity
                rows.append(
                    {
                        "family": family,
                        "severity": severity,
                        "share": w.sum() / weight.sum(),
                        "predicted": np.average(p, weights=w),
                        "observed": np.average(hit, weights=w),
                        "standard_error": np.sqrt((w**2 * (hit - p) ** 2).sum()) / w.sum(),
                    }
                )
    return pd.DataFrame(rows, columns=["family", "severity", "share", "predicted", "observed", "standard_error"])


def calibration_error(table: pd.DataFrame) -> pd.DataFrame:
    """Expected calibration error of each family, from a `reliability` table: index family, two columns.

    `error` is the mean distance of predicted and observed over bins and severities; `by_chance` is what a calibrated
    network would show on so few labels (the mean distance of a normal variable is 0.80 standard deviations).
    """
    parts = pd.DataFrame(
        {
            "error": table["share"] * (table["predicted"] - table["observed"]).abs() / N_SEVERITIES,
            "by_chance": table["share"] * np.sqrt(2 / np.pi) * table["standard_error"] / N_SEVERITIES,
        }
    )
    return parts.groupby(table["family"], sort=False).sum()


def worst_cases(labels: np.ndarray, probabilities: np.ndarray, study_ids: Sequence[str], n: int = 6) -> pd.DataFrame:
    """The `n` targets that cost the score most, one a study, the costliest first.

    Returns
    -------
    DataFrame
        study_id, condition, level, label (a severity), normal_mild, moderate, severe (predicted, as plain
        frequencies), loss (weight of the label times -ln p of it, p with the metric's weights). Fewer than `n` rows
        when fewer studies have labels.
    """
    labels, probabilities = checked_predictions(labels, probabilities)
    if len(study_ids) != len(labels):
        raise DataError(f"expected as many studies as rows of labels, got {len(study_ids)} and {len(labels)}")
    return costliest_targets(_weighted_losses(labels, probabilities), labels, probabilities, study_ids, n)


def costliest_targets(
    costs: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, study_ids: Sequence[str], n: int
) -> pd.DataFrame:
    """The labelled target of the highest cost of each study, in the form of `worst_cases`; costs (n_studies, 25)."""
    costs = np.where(labels == MISSING, -np.inf, costs)
    worst = costs.argmax(axis=1)
    largest = costs.max(axis=1)
    shown = plain_frequencies(probabilities)
    rows = []
    for study in [i for i in np.argsort(-largest, kind="stable") if np.isfinite(largest[i])][:n]:
        condition, level = divmod(int(worst[study]), N_LEVELS)
        rows.append(
            {
                "study_id": str(study_ids[study]),
                "condition": CONDITIONS[condition],
                "level": LEVELS[level],
                "label": SEVERITIES[labels[study, worst[study]]],
                **dict(zip(PROBABILITY_COLUMNS, shown[study, worst[study]], strict=True)),
                "loss": largest[study],
            }
        )
    return pd.DataFrame(rows, columns=["study_id", "condition", "level", "label", *PROBABILITY_COLUMNS, "loss"])


def _weighted_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Weight times -ln p of the label, (n, 25), 0 where absent."""
    return log_losses(labels, probabilities) * label_weights(labels)


def _equally_uncertain(p: np.ndarray, bins: int) -> list[np.ndarray]:
    """Indices of rising p in parts of equal sums of p (1 - p): at most `bins`, fewer where the labels are few."""
    if not len(p):
        return []
    order = np.argsort(p, kind="stable")
    total = np.cumsum(p[order] * (1 - p[order]))
    bins = min(bins, max(3, int(total[-1] / 3)))  # a part that sums to 3 knows its share to 0.14, like 12 tossed coins
    edges = np.searchsorted(total, total[-1] * np.arange(1, bins) / bins)
    return [chunk for chunk in np.split(order, edges) if len(chunk)]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _auc(positive: np.ndarray, score: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score  # a second to import, which drawing a picture need not wait for

    return float(roc_auc_score(positive, score)) if 0 < positive.sum() < positive.size else float("nan")
