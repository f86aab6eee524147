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
from ..metrics.calibration import Calibration, cross_fitted, fit_calibration
from ..metrics.score import Score, competition_score, prediction_table, uniform
from ..models.ensemble import Ensemble, Member
from ..models.run_folder import ENSEMBLE, MANIFEST, NEW, OOF, publish
from .checkpoints import only_training
from .config import TrainConfig
from .datasets import codes_by_study
from .distributed import join_processes
from .train import RunResult, fit

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FoldsResult:
    """What `fit_folds` returns.

    `study_ids` are those of all folds, one after the other, and `probabilities` (n, 25, 3) their out-of-fold
    predictions as the networks gave them. `calibration` is fitted on all of them, None where it brings nothing to
    studies that it was not fitted on. `scores` are out of fold: `model`, `calibrated` (each study by a calibration that
    was fitted on others), `weighted_prior` (of each fold's training part), `uniform`.
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
            result = fit(
                cache,
                labels,
                replace(config, fold=fold),
                folder / f"fold_{fold}",
                held_out_crops=held_out_crops,
                training_labels=training_labels,
                synthetic_only=synthetic_only,
                # All folds take the place of older ones together, when nothing can fail any more.
                in_place=not (folder / ENSEMBLE).is_file(),
                on_epoch=on_epoch,
                progress=progress,
            )
            results.append(result)
        summary = _summary(folder, results, labels)
        if processes.first:
            _write(summary, config, synthetic_only)
            for part in (*(result.folder for result in results), folder):
                publish(part)
        processes.wait()
    return summary


def _summary(folder: Path, results: list[RunResult], labels: pd.DataFrame) -> FoldsResult:
    study_ids = [s for result in results for s in result.study_ids]
    probabilities = np.concatenate([result.probabilities for result in results])
    known = codes_by_study(labels)
    codes = np.stack([known[s] for s in study_ids])
    prior = np.concatenate([np.tile(result.prior, (len(result.study_ids), 1, 1)) for result in results])
    scores = {
        "model": competition_score(codes, probabilities),
        "calibrated": competition_score(codes, cross_fitted(codes, probabilities)),
        "weighted_prior": competition_score(codes, prior),
        "uniform": competition_score(codes, np.broadcast_to(uniform(), prior.shape)),
    }
    helps = scores["calibrated"].total < scores["model"].total
    calibration = fit_calibration(codes, probabilities) if helps else None
    logger.info("out of fold: %s; calibrated %.4f", scores["model"], scores["calibrated"].total)
    return FoldsResult(folder, tuple(results), tuple(study_ids), probabilities, calibration, scores)


def _write(result: FoldsResult, config: TrainConfig, synthetic_only: bool) -> None:
    new = result.folder / NEW
    write_table(new / OOF, prediction_table(result.study_ids, result.probabilities))
    Ensemble(tuple(Member(fold.folder.name) for fold in result.folds), result.calibration).save(new)
    write_json(
        new / MANIFEST,
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
