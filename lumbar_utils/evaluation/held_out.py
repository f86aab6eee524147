"""Predictions of a run for studies that it was not trained on, beside their labels and the best possible prediction.

Of a synthetic cohort these are the out-of-fold and the test predictions, and the oracle's frequencies; of real data
the out-of-fold ones, as nobody but Kaggle has the labels of the test part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import DataError
from ..labels import SEVERITY_WEIGHTS, split_row_id, target_index
from ..metrics.score import EPSILON, metric_frequencies, plain_frequencies, read_predictions
from ..studies.study import CompetitionFolder
from .tables import costliest_targets, oracle_frequencies, truth_labels

OUT_OF_FOLD, TEST = "out of fold", "test part"
FILES = {OUT_OF_FOLD: Path("classifier") / "oof.csv", TEST: Path("submission.csv")}
"""Where a run keeps its predictions of each part."""


@dataclass(frozen=True, eq=False)
class HeldOutStudies:
    """Predictions beside labels.

    `parts` says for each study whether it is `OUT_OF_FOLD` or `TEST`. Labels are int (n, 25), -1 where not labelled;
    probabilities (n, 25, 3) as they are scored, with the metric's weights 1, 2, 4; `oracle` (n, 25, 3), of a synthetic
    cohort, the frequencies from which the labels were drawn, without these weights, else None.
    """

    study_ids: tuple[str, ...]
    parts: tuple[str, ...]
    labels: np.ndarray = field(repr=False)
    probabilities: np.ndarray = field(repr=False)
    oracle: np.ndarray | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.study_ids)

    def of_part(self, part: str) -> list[str]:
        """Ids of one part's studies."""
        return [study_id for study_id, own in zip(self.study_ids, self.parts, strict=True) if own == part]

    @property
    def frequencies(self) -> np.ndarray:
        """The probabilities without the metric's weights, (n, 25, 3): what is shown, and what a grade is taken from."""
        return plain_frequencies(self.probabilities)

    @property
    def best_known(self) -> np.ndarray | None:
        """What the metric rewards most when the oracle's frequencies are known: nobody can score better on average."""
        return None if self.oracle is None else metric_frequencies(self.oracle)

    def readings(self, *, seed: int = 0) -> dict[str, np.ndarray]:
        """What is compared with the labels, for `agreement.agreement_table`.

        "this network" and, where the oracle is known, "another reader", whose severity grades of the same patients are
        drawn from the same frequencies as the labels were, and "oracle", the most probable severity, which agrees with
        a reader better than readers do with each other.
        """
        readings = {"this network": self.frequencies}
        if self.oracle is not None:
            draws = np.random.default_rng(seed).random((*self.labels.shape, 1))
            readings["another reader"] = (draws > self.oracle.cumsum(axis=-1)[..., :-1]).sum(axis=-1)
            readings["oracle"] = self.oracle
        return readings

    def odd_labels(self, cases: pd.DataFrame) -> pd.DataFrame:
        """Cases of `evaluation.worst_cases` with a column `oracle`, how often a reader would give such a label.

        A small number means that the label is odd, and the large loss no error of the network. Unchanged where there
        is no oracle.
        """
        if self.oracle is None:
            return cases
        row = {study_id: i for i, study_id in enumerate(self.study_ids)}
        places = [(row[case.study_id], target_index(case.condition, case.level)) for case in cases.itertuples()]
        return cases.assign(oracle=[self.oracle[i, t, self.labels[i, t]] for i, t in places])

    def own_errors(self, n: int = 6) -> pd.DataFrame | None:
        """The `n` targets at which the network itself is most wrong, one a study; None where the oracle is not known.

        The loss is what the prediction costs more than the best possible one, on average over all labels that readers
        would give: whether the one label that was drawn is odd does not count. In the form of `worst_cases`.
        """
        if self.oracle is None:
            return None
        best, own = (np.log(np.clip(p, EPSILON, 1)) for p in (self.best_known, self.probabilities))
        costs = (self.oracle * SEVERITY_WEIGHTS * (best - own)).sum(axis=-1)
        return self.odd_labels(costliest_targets(costs, self.labels, self.probabilities, self.study_ids, n))


def held_out_studies(
    folder: CompetitionFolder, run: Path | str, *, parts: Sequence[str] = tuple(FILES)
) -> HeldOutStudies:
    """Read a run's predictions of studies with known labels; raises `DataError` with the files tried for none."""
    ids, of_part, labels, probabilities = [], [], [], []
    for part in parts:
        path = Path(run) / FILES[part]
        if not path.is_file():
            continue
        table = pd.read_csv(path, dtype={"row_id": str})
        named = list(dict.fromkeys(split_row_id(row_id)[0] for row_id in table["row_id"]))
        known = folder.labels is not None and set(named) <= set(folder.labels["study_id"])
        own = folder.label_codes(named) if known else truth_labels(folder, named)
        if own is None:
            continue
        ids += named
        of_part += [part] * len(named)
        labels.append(own)
        probabilities.append(read_predictions(table, named))
    if not ids:
        looked = ", ".join(str(Path(run) / FILES[part]) for part in parts)
        raise DataError(f"no predictions of studies with known labels: looked for {looked}; run notebooks 04 and 05")
    oracle = oracle_frequencies(folder, ids)
    return HeldOutStudies(tuple(ids), tuple(of_part), np.concatenate(labels), np.concatenate(probabilities), oracle)
