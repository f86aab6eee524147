"""What predictions are held against: equal probabilities, the weighted prior, and on synthetic data the oracle.

The oracle is the exact distribution from which a synthetic cohort's labels were drawn; no prediction can do better
in expectation. Nothing but evaluation reads it, nor the labels of a synthetic cohort's test part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .labels import encode_severities
from .metrics import Score, competition_score, read_predictions, uniform, weighted_prior
from .study import CompetitionFolder

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
    oracle = folder.root / TRUTH_FOLDER / "oracle.csv"
    if oracle.is_file():
        references["oracle"] = read_predictions(pd.read_csv(oracle, dtype={"row_id": str}), list(study_ids))
    return references


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
