"""All folds: one network each, predictions for every study by a network that has not seen it, and what they add up to.

A folder of folds is what `predict.Predictor` takes as an ensemble: `fold_0/` and so on, each a run folder, with
`ensemble.json` (members and calibration), `oof.csv` (out-of-fold predictions as the networks gave them) and
`manifest.json` beside them. Folds that are finished are not trained again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ..crops.extraction import StudyCrops
from ..errors import DataError
from ..files import versions, write_json, write_table
from ..labels import encode_severities
from ..metrics.calibration import Calibration, cross_fitted, fit_calibration
from ..metrics.score import Score, competition_score, prediction_table, uniform
from ..models.ensemble import Ensemble, Member
from ..models.run_folder import CONFIG, HISTORY, MANIFEST, OOF, WEIGHTS, RunConfig
from .config import TrainConfig
from .processes import join_processes
from .train import RunResult, fit

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FoldsResult:
    """What `fit_folds` returns.

    Attributes
    ----------
    folder : Path
    folds : tuple of RunResult
    study_ids : tuple of str
        Of all folds, one after the other.
    probabilities : ndarray, shape (n, 25, 3)
        Out of fold, as the networks gave them.
    calibration : Calibration or None
        Fitted on all of them; None where it brings nothing to studies that it was not fitted on.
    scores : dict name -> Score
        Out of fold: `model`, `calibrated` (each study by a calibration that was fitted on others), `weighted_prior`
        (of each fold's training part), `uniform`.
    """

    folder: Path
    folds: tuple[RunResult, ...]
    study_ids: tuple[str, ...]
    probabilities: np.ndarray
    calibration: Calibration | None
    scores: dict[str, Score]


def fit_folds(
    cache: Mapping[str, StudyCrops],
    labels: pd.DataFrame,
    config: TrainConfig | None = None,
    folder: Path | str = "runs/classifier",
    *,
    folds: Sequence[int] | None = None,
    held_out_crops: Mapping[str, StudyCrops] | None = None,
    training_labels: pd.DataFrame | None = None,
    synthetic_only: bool = False,
    on_epoch: Callable[[pd.DataFrame], None] | None = None,
    progress: bool = True,
) -> FoldsResult:
    """Train a network a fold, then calibrate on the out-of-fold predictions; see `train.fit` for the parameters.

    Parameters
    ----------
    folds : sequence of int, optional
        Default: all of `config.folds`.
    """
    config, folder = config or TrainConfig(), Path(folder)
    folds = range(config.folds) if folds is None else folds
    if config.folds < 2 or not len(folds):
        raise DataError(f"out-of-fold predictions need two folds or more, got folds = {config.folds}")
    with join_processes(config.device) as processes:
        results = []
        for fold in folds:
            logger.info("fold %d of %d", fold, config.folds)
            results.append(
                fit(
                    cache,
                    labels,
                    replace(config, fold=fold),
                    folder / fold_name(fold),
                    held_out_crops=held_out_crops,
                    training_labels=training_labels,
                    synthetic_only=synthetic_only,
                    on_epoch=on_epoch,
                    progress=progress,
                )
            )
        summary = _summary(folder, results, labels)
        if processes.first:
            _write(summary, config, folds, synthetic_only)
        processes.wait()
    return summary


def fold_name(fold: int) -> str:
    """The folder of a fold."""
    return f"fold_{fold}"


def _summary(folder: Path, results: list[RunResult], labels: pd.DataFrame) -> FoldsResult:
    study_ids = [s for result in results for s in result.study_ids]
    probabilities = np.concatenate([result.probabilities for result in results])
    table = labels.assign(study_id=labels["study_id"].astype(str)).set_index("study_id")
    codes = encode_severities(table.loc[study_ids].reset_index())
    priors = [RunConfig.load(result.folder).prior for result in results]
    prior = np.concatenate(
        [np.tile(p, (len(result.study_ids), 1, 1)) for p, result in zip(priors, results, strict=True)]
    )
    scores = {
        "model": competition_score(codes, probabilities),
        "calibrated": competition_score(codes, cross_fitted(codes, probabilities)),
        "weighted_prior": competition_score(codes, prior),
        "uniform": competition_score(codes, np.tile(uniform(), (len(codes), 1, 1))),
    }
    helps = scores["calibrated"].total < scores["model"].total
    calibration = fit_calibration(codes, probabilities) if helps else None
    logger.info("out of fold: %s; calibrated %.4f", scores["model"], scores["calibrated"].total)
    return FoldsResult(folder, tuple(results), tuple(study_ids), probabilities, calibration, scores)


def _write(result: FoldsResult, config: TrainConfig, folds: Sequence[int], synthetic_only: bool) -> None:
    for left in (CONFIG, WEIGHTS, HISTORY):  # of a single run that was here before
        (result.folder / left).unlink(missing_ok=True)
    write_table(result.folder / OOF, prediction_table(result.study_ids, result.probabilities))
    Ensemble(tuple(Member(fold_name(fold)) for fold in folds), result.calibration).save(result.folder)
    write_json(
        result.folder / MANIFEST,
        {
            "kind": "folds",
            "synthetic_only": synthetic_only,
            "versions": versions(),
            "config": config.to_json(),
            "folds": {fold_name(f): list(r.study_ids) for f, r in zip(folds, result.folds, strict=True)},
            "seconds": round(sum(r.seconds for r in result.folds), 1),
            "scores": {name: score.to_json() for name, score in result.scores.items()},
        },
    )
