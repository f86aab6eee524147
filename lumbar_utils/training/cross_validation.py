"""Cross-validation: a network for each fold, every study predicted by one that has not seen it, and their calibration.

A folder of folds is what `inference.Predictor` takes as an ensemble: `fold_0/` and so on, each a run folder, with
`ensemble.json` (members and calibration), `oof.csv` (out-of-fold predictions as the networks gave them) and
`manifest.json` beside them. Folds that are finished are not trained again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
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
from .checkpoints import only_training
from .config import TrainConfig
from .distributed import join_processes
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
    held_out_crops: Mapping[str, StudyCrops] | None = None,
    training_labels: pd.DataFrame | None = None,
    synthetic_only: bool = False,
    on_epoch: Callable[[pd.DataFrame], None] | None = None,
    progress: bool = True,
) -> FoldsResult:
    """Train a network a fold, then calibrate on the out-of-fold predictions; see `train.fit` for the parameters.

    Raises
    ------
    DataError
        When `config.folds` is 1, or as `fit`.
    """
    config, folder = config or TrainConfig(), Path(folder)
    if config.folds < 2:
        raise DataError(f"out-of-fold predictions need two folds or more, got folds = {config.folds}")
    with join_processes(config.device) as processes, only_training(folder, processes):
        results = []
        for fold in range(config.folds):
            logger.info("fold %d of %d", fold, config.folds)
            results.append(
                fit(
                    cache,
                    labels,
                    replace(config, fold=fold),
                    folder / f"fold_{fold}",
                    held_out_crops=held_out_crops,
                    training_labels=training_labels,
                    synthetic_only=synthetic_only,
                    on_epoch=on_epoch,
                    progress=progress,
                )
            )
        summary = _summary(folder, results, labels)
        if processes.first:
            _write(summary, config, synthetic_only)
        processes.wait()
    return summary


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


def _write(result: FoldsResult, config: TrainConfig, synthetic_only: bool) -> None:
    for left in (CONFIG, WEIGHTS, HISTORY):  # of a single run that was here before
        (result.folder / left).unlink(missing_ok=True)
    write_table(result.folder / OOF, prediction_table(result.study_ids, result.probabilities))
    Ensemble(tuple(Member(fold.folder.name) for fold in result.folds), result.calibration).save(result.folder)
    write_json(
        result.folder / MANIFEST,
        {
            "kind": "folds",
            "synthetic_only": synthetic_only,
            "versions": versions(),
            "config": config.to_json(),
            "folds": {fold.folder.name: list(fold.study_ids) for fold in result.folds},
            "seconds": round(sum(fold.seconds for fold in result.folds), 1),
            "scores": {name: score.to_json() for name, score in result.scores.items()},
        },
    )
