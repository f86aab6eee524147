"""The prediction for a study, and the `submission.csv` of many with two logs of what was missing or replaced.

`submission_log.csv` has one row a study, for people; `submission_log.jsonl` one record a line, for programs: study,
series, file, stage, code, message, and what was used instead. See `errors.CODES`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import DataError, Issue
from ..files import write_table, write_text
from ..labels import (
    CONDITIONS,
    LEVELS,
    N_LEVELS,
    N_SEVERITIES,
    N_TARGETS,
    PROBABILITY_COLUMNS,
    SEVERITIES,
    VIEWS,
    condition_title,
    level_title,
    split_row_id,
)
from ..localization import DiscPoints
from ..metrics.score import EPSILON, metric_frequencies, prediction_table, uniform
from ..notebook_html import card, tinted

logger = logging.getLogger(__name__)

PHANTOM_NOTE = "a synthetic phantom, not a patient"
SYNTHETIC_WARNING = "trained on synthetic phantoms only: these grades mean nothing for patients"
FREQUENCY_NOTE = (
    "Probabilities are plain frequencies, how often a reader would give each grade, "
    "without the weights 1, 2, 4 of the RSNA 2024 metric."
)
"""Stated wherever people read probabilities."""


@dataclass(frozen=True, eq=False)
class StudyPrediction:
    """The predicted severity grades of one study.

    Attributes
    ----------
    study_id : str
    probabilities : ndarray of float64, shape (25, 3)
        In the order of `labels.TARGETS` and `labels.SEVERITIES`; rows sum to one. Plain frequencies, which people are
        shown; `weighted` is what is submitted.
    discs : DiscPoints or None
        Where the discs were found; None when they were not.
    missing_views : tuple of str
        Views of which nothing could be used; the network's missing-view embedding took their place.
    issues : tuple of Issue
        What went wrong or was left out.
    fallback : bool
        True when this is the class prior, used instead of a prediction.
    synthetic_only : bool
        True when the network was trained on synthetic phantoms only.
    measured : str
        What was measured on patients with such a network; `notice` says it.
    unlike_training : float or None
        How unlike the training data the images are: above 1 as only one of a hundred phantoms; None where the run
        cannot tell. See `models.fit_typicality`.
    """

    study_id: str
    probabilities: np.ndarray
    discs: DiscPoints | None = None
    missing_views: tuple[str, ...] = ()
    issues: tuple[Issue, ...] = ()
    fallback: bool = False
    synthetic_only: bool = False
    measured: str = ""
    unlike_training: float | None = None

    def __post_init__(self):
        p = np.asarray(self.probabilities, dtype=np.float64)
        if p.shape != (N_TARGETS, N_SEVERITIES) or not np.isfinite(p).all() or (p < 0).any():
            raise DataError(
                f"study {self.study_id}: probabilities must be finite, not negative and of shape "
                f"({N_TARGETS}, {N_SEVERITIES}), got shape {p.shape}"
            )
        if not np.allclose(p.sum(axis=-1), 1, atol=1e-6):
            raise DataError(f"study {self.study_id}: probabilities must sum to one, got {p.sum(axis=-1)}")
        object.__setattr__(self, "probabilities", p)

    @property
    def notice(self) -> str:
        """How the network was trained and what that means; "" where it was trained on patients."""
        told = f"trained on synthetic phantoms only; {self.measured}" if self.measured else SYNTHETIC_WARNING
        return told if self.synthetic_only else ""

    @property
    def weighted(self) -> np.ndarray:
        """The probabilities (25, 3) with the metric's weights 1, 2, 4, which it rewards; for the submission alone."""
        return metric_frequencies(self.probabilities)

    def table(self) -> pd.DataFrame:
        """Probability of moderate or severe, conditions by levels."""
        worse = 1 - self.probabilities[:, 0].reshape(len(CONDITIONS), N_LEVELS)
        return pd.DataFrame(worse, index=list(CONDITIONS), columns=list(LEVELS))

    def _repr_html_(self) -> str:
        notes = [self.notice] if self.notice else []
        notes += ["class prior instead of a prediction"] if self.fallback else []
        notes += [f"missing: {view}" for view in self.missing_views] + list(map(str, self.issues))
        notes += [FREQUENCY_NOTE]
        cells = [_prior_cell(p) if self.fallback else _grade_cell(p) for p in self.probabilities]
        rows = [(level_title(level), *cells[i::N_LEVELS]) for i, level in enumerate(LEVELS)]
        head = ("", *(condition_title(condition).replace("Neural ", "") for condition in CONDITIONS))
        about = "not predicted: how often each grade occurs" if self.fallback else "most probable grades"
        return card(f"study {self.study_id}", head, rows, about=about, notes=notes)


def _prior_cell(p: np.ndarray) -> str:
    return " / ".join(f"{value:.0%}" for value in p)


def _grade_cell(p: np.ndarray) -> str:
    """The most probable grade with its probability, all three as a tooltip."""
    best = int(p.argmax())
    text = f"{SEVERITIES[best]} {p[best]:.0%}"
    title = ", ".join(f"{name} {value:.1%}" for name, value in zip(SEVERITIES, p, strict=True))
    return tinted(text, ("127,127,127", "224,161,0", "207,47,58")[best], title) if best else text


def write_submission(
    predictions: Iterable[StudyPrediction],
    path: Path | str,
    sample: pd.DataFrame | None = None,
    *,
    fallback: np.ndarray | None = None,
    events: Sequence[Issue] = (),
) -> Path:
    """Write `submission.csv`, whose probabilities carry the metric's weights, and its logs, each atomically.

    Parameters
    ----------
    predictions : iterable of StudyPrediction
    path : path-like
        The logs go beside it: `<name>_log.csv` with study_id, fallback, missing_views, issues, synthetic_only, and
        `<name>_log.jsonl` with the records of `StudyPrediction.issues`.
    sample : DataFrame, optional
        The sample submission. Its rows are kept and filled in when it names all predicted studies; rows of studies
        without a prediction get `fallback`. A sample that does not list every study (Kaggle's public one lists
        one) gives its column order only. Without a sample: studies as given, targets in `TARGETS` order.
    fallback : ndarray, shape (25, 3), optional
        For rows that the sample names and no prediction covers, with the metric's weights; default uniform.
    events : sequence of Issue
        What happened to the run as a whole; the first lines of the records.

    Raises
    ------
    DataError
        When a study is predicted twice, the sample has other columns, or a file cannot be written (disk full).
    """
    predictions, path = list(predictions), Path(path)
    ids = [p.study_id for p in predictions]
    if len(set(ids)) != len(ids):
        raise DataError(f"study {next(s for s in ids if ids.count(s) > 1)!r} is predicted more than once")
    values = np.clip([p.weighted for p in predictions], EPSILON, None).reshape(-1, N_TARGETS, N_SEVERITIES)
    values = values / values.sum(axis=-1, keepdims=True)
    table = prediction_table(ids, values)
    filled: list[str] = []
    if sample is not None:
        table, filled = _in_sample_order(table, sample, ids, fallback)
    write_table(path, table)
    log = pd.DataFrame(
        {
            "study_id": [*ids, *filled],
            "fallback": [*(p.fallback for p in predictions), *(True for _ in filled)],
            "missing_views": [*("; ".join(p.missing_views) for p in predictions), *("; ".join(VIEWS) for _ in filled)],
            "issues": [*("; ".join(map(str, p.issues)) for p in predictions), *("not predicted" for _ in filled)],
            "synthetic_only": [*(p.synthetic_only for p in predictions), *(False for _ in filled)],
        }
    )
    write_table(log_path(path, "csv"), log)
    records = [*events, *(issue for p in predictions for issue in p.issues)]
    records += [Issue("study_absent", "listed in the sample, but not among the studies", s) for s in filled]
    write_text(
        log_path(path, "jsonl"), "".join(json.dumps(record.to_json(), ensure_ascii=False) + "\n" for record in records)
    )
    for notice in dict.fromkeys(p.notice for p in predictions if p.notice):
        logger.warning("%s: %s", path, notice)
    return path


def log_path(path: Path, kind: str) -> Path:
    """The log beside a submission: "csv" for people, "jsonl" for programs."""
    return path.with_name(f"{path.stem}_log.{kind}")


def check_sample(sample: pd.DataFrame | None) -> None:
    """Raise `DataError` when a sample submission has other columns, or other rows, than a submission."""
    if sample is None:
        return
    if set(sample.columns) != {"row_id", *PROBABILITY_COLUMNS}:
        raise DataError(f"the sample submission has the columns {list(sample.columns)}, expected those of a submission")
    for row_id in sample["row_id"].astype(str):
        split_row_id(row_id)


def _in_sample_order(
    table: pd.DataFrame, sample: pd.DataFrame, ids: Sequence[str], fallback: np.ndarray | None
) -> tuple[pd.DataFrame, list[str]]:
    check_sample(sample)
    wanted = sample["row_id"].astype(str)
    known = set(table["row_id"])
    if not known <= set(wanted):
        return table[list(sample.columns)], []
    indexed = table.set_index("row_id").reindex(wanted)
    constant = uniform() if fallback is None else np.asarray(fallback)
    filled = []
    for row_id in wanted[~wanted.isin(known)]:
        study_id, target = split_row_id(row_id)
        indexed.loc[row_id, list(PROBABILITY_COLUMNS)] = constant[target]
        filled.append(study_id)
    return indexed.reset_index()[list(sample.columns)], list(dict.fromkeys(filled))
