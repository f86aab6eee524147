"""Train the classifier: `fit(cache, labels, config, run_folder)`, or `python -m lumbar_utils.training`.

The loss is the competition's metric plus auxiliary heads per view. A run that was killed continues from its last
checkpoint (`loop`). The held-out studies are predicted with the averaged weights for the record; nothing is chosen by
them. On several GPUs: `accelerate launch --multi_gpu --num_processes 2 -m lumbar_utils.training CROPS LABELS RUN`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..crops.extraction import StudyCrops
from ..devices import choose_compute, peak_memory
from ..errors import DataError
from ..files import read_json, versions, write_json, write_table
from ..labels import MISSING
from ..metrics.score import (
    Score,
    competition_score,
    metric_frequencies,
    prediction_table,
    read_predictions,
    uniform,
    weighted_prior,
)
from ..models.classifier import LumbarClassifier, predict_probabilities
from ..models.ensemble import ENSEMBLE
from ..models.inputs import study_input
from ..models.run_folder import CONFIG, HISTORY, MANIFEST, OOF, WEIGHTS, RunConfig, round_weights, save_weights
from .augmentation import IntensityAugmentation
from .checkpoints import Checkpoint, only_training
from .config import TrainConfig
from .datasets import CropDataset
from .distributed import Processes, join_processes
from .folds import Split, content_digest, training_split
from .loop import Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class RunResult:
    """What `fit` returns.

    Attributes
    ----------
    folder : Path
    history : DataFrame
        One row an epoch: epoch, loss, learning_rate, seconds, held_out_score (nan where not validated).
    study_ids : tuple of str
        The held-out studies.
    probabilities : ndarray, shape (n_held_out, 25, 3)
    scores : dict name -> Score
        Of the held-out studies: `model`, `weighted_prior` (of the training part), `uniform`; empty without any.
    seconds : float
        Training time, earlier parts of a resumed run included.
    """

    folder: Path
    history: pd.DataFrame
    study_ids: tuple[str, ...]
    probabilities: np.ndarray
    scores: dict[str, Score]
    seconds: float


def fit(
    cache: Mapping[str, StudyCrops],
    labels: pd.DataFrame,
    config: TrainConfig | None = None,
    run_folder: Path | str = "runs/classifier",
    *,
    held_out: Sequence[str] | None = None,
    held_out_crops: Mapping[str, StudyCrops] | None = None,
    training_labels: pd.DataFrame | None = None,
    synthetic_only: bool = False,
    resume: bool = True,
    on_epoch: Callable[[pd.DataFrame], None] | None = None,
    progress: bool = True,
) -> RunResult:
    """Train on the studies that have both crops and labels, and predict the held-out ones.

    Called in several processes at once (see `distributed`), it trains one network in all of them.

    Parameters
    ----------
    cache : CropCache, or mapping study_id -> StudyCrops
    labels : DataFrame
        In `train.csv` form: study_id and the 25 target columns.
    held_out : sequence of str, optional
        Studies to keep out of the training and to predict at the end. Default: a fold, see `TrainConfig.folds`.
    held_out_crops : CropCache or mapping, optional
        Crops to predict the held-out studies on, such as those around found discs where `cache` has them around known
        ones. Default: `cache`.
    training_labels : DataFrame, optional
        Labels to train on instead of `labels`, such as denoised ones; scores are always by `labels`.
    synthetic_only : bool
        True when all studies are phantoms; predictions then carry the warning.
    resume : bool
        Continue from a checkpoint of the same configuration and studies in `run_folder`; a finished run is read.
    on_epoch : callable, optional
        Called with the history so far after every epoch, for live curves; of a run that is only read, all of it once.

    Raises
    ------
    DataError
        When no study has both crops and labels, or a held-out study has not; when another training is under way there.
    """
    config, folder = config or TrainConfig(), Path(run_folder)
    with ExitStack() as stack:
        processes = stack.enter_context(join_processes(config.device))
        validation = cache if held_out_crops is None else held_out_crops
        split = training_split(cache, validation, labels, config, held_out=held_out, training_labels=training_labels)
        content = content_digest(cache, split.train), content_digest(validation, split.held_out)
        run = {"config": config.fingerprint(), "studies": split.digest(), "crops": content}
        checkpoint = Checkpoint(folder, run)
        finished = _finished(folder, checkpoint.fingerprint, split) if resume else None
        if not processes.same(finished is None):
            raise DataError(f"{folder}: only some processes find a finished run there; they must share it")
        if finished is not None:
            logger.info("%s is finished: nothing to train", folder)
            if on_epoch is not None and len(finished.history):
                on_epoch(finished.history)  # the curves belong to the result, also where they were drawn elsewhere
            return finished
        stack.enter_context(only_training(folder, processes))
        trainer = _trainer(cache, split, config, processes, progress=progress)
        if resume:
            trainer.restore(checkpoint)
        prior = weighted_prior(split.train_labels)
        held = [study_input(validation[study_id]) for study_id in processes.share(split.held_out)]

        def predicted(network: LumbarClassifier) -> np.ndarray:
            part = predict_probabilities(network, held, trainer.compute, batch_size=config.batch_size)
            p = processes.gather(part, len(split.held_out))
            p = p if config.class_weights else metric_frequencies(p)  # tables of predictions carry the weights
            overflown = ~np.isfinite(p).all(axis=(1, 2))  # half precision can; that must not cost the training
            if overflown.any():
                logger.warning("%d held-out studies got no finite number, the prior is used", overflown.sum())
            return np.where(overflown[:, None, None], prior, p)

        def evaluate() -> float:
            if not split.held_out:
                return float("nan")
            return competition_score(split.held_out_labels, predicted(trainer.averaged())).total

        began, before = time.monotonic(), (trainer.seconds, trainer.studies)
        trainer.run(checkpoint, evaluate, on_epoch=on_epoch, progress=progress)
        # What is reported is what the run folder predicts: with weights as they are rounded on disk.
        model = round_weights(trainer.averaged())
        probabilities = predicted(model)
        scores = _scores(split, probabilities, prior)
        history = pd.DataFrame(trainer.history)
        result = RunResult(folder, history, tuple(split.held_out), probabilities, scores, trainer.seconds)
        if processes.first:
            stored = RunConfig(config.classifier, trainer.spec, prior, config.to_json(), synthetic_only=synthetic_only)
            speed = (trainer.studies - before[1]) * processes.count / max(trainer.seconds - before[0], 1e-9)
            manifest = {
                "kind": "classifier",
                "fingerprint": checkpoint.fingerprint,
                "synthetic_only": synthetic_only,
                "versions": versions(),
                "compute": str(trainer.compute),
                "processes": processes.count,
                "seconds": round(trainer.seconds, 1),
                "seconds_with_validation": round(time.monotonic() - began, 1),
                "studies_per_second": round(speed, 2),
                "memory_gb": round(peak_memory(trainer.compute.device) / 1e9, 2),
                "steps": trainer.step,
                "studies": {"train": len(split.train), "held_out": len(split.held_out)},
                "scores": {name: score.to_json() for name, score in scores.items()},
                "train_studies": split.train,
                "held_out_studies": split.held_out,
            }
            _write(result, model, stored, manifest)
            checkpoint.remove()
        processes.wait()
        if scores:
            logger.info("held out: %s; weighted prior %.4f", scores["model"], scores["weighted_prior"].total)
        return result


def _finished(folder: Path, fingerprint: str, split: Split) -> RunResult | None:
    """The result on disk, if it is of the same configuration, studies, labels and crops."""
    if not (folder / WEIGHTS).is_file():
        return None
    try:
        manifest = read_json(folder / MANIFEST)
        if manifest.get("fingerprint") != fingerprint:
            return None
        probabilities = read_predictions(pd.read_csv(folder / OOF, dtype={"row_id": str}), split.held_out)
        history = pd.read_csv(folder / HISTORY)
        prior, seconds = RunConfig.load(folder).prior, float(manifest["seconds"])
    except (DataError, OSError, KeyError, ValueError):  # pandas' own errors are ValueErrors
        return None
    scores = _scores(split, probabilities, prior)
    return RunResult(folder, history, tuple(split.held_out), probabilities, scores, seconds)


def _trainer(
    cache: Mapping[str, StudyCrops], split: Split, config: TrainConfig, processes: Processes, *, progress: bool
) -> Trainer:
    """The untrained network and its loop, on the device and crops of this training."""
    compute = choose_compute(config.device, config.precision)
    logger.info("training on %s", compute)
    torch.manual_seed(config.seed)
    model = LumbarClassifier(config.classifier, weighted_prior(split.train_labels)).to(compute.device)
    intensity = config.augment.intensity
    dataset = CropDataset(
        cache,
        split.train,
        split.train_labels,
        in_memory=config.in_memory,
        transform=IntensityAugmentation(intensity, seed=config.seed) if intensity else None,
        progress=progress and processes.first,
    )
    return Trainer(model, dataset, config, compute, spec=dataset.spec, processes=processes)


def _write(result: RunResult, model: LumbarClassifier, stored: RunConfig, manifest: dict) -> None:
    """Write the run folder. Until here an older run in it could be used.

    Its configuration goes before its weights, so that one run's weights never lie beside another's configuration,
    wherever this is cut off.
    """
    folder = result.folder
    for name in (MANIFEST, CONFIG, ENSEMBLE):
        (folder / name).unlink(missing_ok=True)
    save_weights(model, folder / WEIGHTS)
    stored.save(folder)
    write_table(folder / HISTORY, result.history)
    write_table(folder / OOF, prediction_table(result.study_ids, result.probabilities))
    write_json(folder / MANIFEST, manifest)


def _scores(split: Split, probabilities: np.ndarray, prior: np.ndarray) -> dict[str, Score]:
    if not split.held_out or (split.held_out_labels == MISSING).all():
        return {}
    scores = {"model": competition_score(split.held_out_labels, probabilities)}
    for name, constant in {"weighted_prior": prior, "uniform": uniform()}.items():
        scores[name] = competition_score(split.held_out_labels, np.tile(constant, (len(split.held_out), 1, 1)))
    return scores
