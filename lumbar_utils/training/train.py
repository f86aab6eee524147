"""Train the classifier: `fit(cache, labels, config, run_folder)`, or `python -m lumbar_utils.training`.

The loss is the competition's metric plus auxiliary heads per view. A run that was killed continues from its last
checkpoint (`loop`). The held-out studies are predicted with the averaged weights for the record; nothing is chosen by
them. On several GPUs: `accelerate launch --multi_gpu --num_processes 2 -m lumbar_utils.training CROPS LABELS RUN`.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
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
from ..models.ensemble import first_member, start_from
from ..models.inputs import study_input
from ..models.run_folder import HISTORY, MANIFEST, NEW, OOF, WEIGHTS, RunConfig, publish, round_weights, save_run
from .augmentation import IntensityAugmentation
from .checkpoints import Checkpoint, only_training
from .config import TrainConfig
from .datasets import CropDataset, Split, content_digest, training_split
from .distributed import join_processes
from .loop import Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class RunResult:
    """What `fit` returns.

    `history` has one row an epoch: epoch, loss, learning_rate, seconds, held_out_score (nan where not validated).
    `probabilities` (n, 25, 3) are of the held-out studies `study_ids`, and so are the `scores` `model`,
    `weighted_prior` (by the `prior` (25, 3) of the training part) and `uniform`; none without any label. `seconds` is
    the training time, earlier parts of a resumed run included.
    """

    folder: Path
    history: pd.DataFrame
    study_ids: tuple[str, ...]
    probabilities: np.ndarray
    prior: np.ndarray
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
    in_place: bool = True,
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
    in_place : bool
        False leaves the finished run in `.new/`, beside an older one, until `models.run_folder.publish` moves it.
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
        stack.enter_context(only_training(folder, processes))
        validation = cache if held_out_crops is None else held_out_crops
        split = training_split(cache, validation, labels, config, held_out=held_out, training_labels=training_labels)
        content = content_digest(cache, split.train), content_digest(validation, split.held_out)
        decided_by = {"config": config.fingerprint(), "studies": split.digest(), "crops": content}
        initial = None if config.initial is None else first_member(config.initial)
        if initial is not None:
            decided_by["initial"] = hashlib.sha256((initial / WEIGHTS).read_bytes()).hexdigest()
        checkpoint = Checkpoint(folder, decided_by)
        if processes.first and not (folder / NEW / WEIGHTS).exists():
            publish(folder)  # of which a kill has left the rest
        processes.wait()
        finished = None
        for place in (folder / NEW, folder) if resume else ():
            finished = finished or _finished(place, checkpoint.fingerprint, split)
        if not processes.same(finished is None):
            raise DataError(f"{folder}: only some processes find a finished run there; they must share it")
        if finished is not None:
            logger.info("%s is finished: nothing to train", folder)
            if on_epoch is not None and len(finished.history):
                on_epoch(finished.history)  # the curves belong to the result, also where they were drawn elsewhere
            if processes.first and finished.folder == folder:
                shutil.rmtree(folder / NEW, ignore_errors=True)  # another run, which was never published
            elif processes.first and in_place:
                publish(folder)
            return replace(finished, folder=folder)
        prior, compute = weighted_prior(split.train_labels), choose_compute(config.device, config.precision)
        logger.info("training on %s", compute)
        torch.manual_seed(config.seed)
        model = LumbarClassifier(config.classifier, prior).to(compute.device)
        if initial is not None:
            start_from(model, initial)
        intensity = config.augment.intensity
        transform = IntensityAugmentation(intensity, seed=config.seed) if intensity else None
        options = {"in_memory": config.in_memory, "progress": progress and processes.first, "transform": transform}
        dataset = CropDataset(cache, split.train, split.train_labels, **options)
        trainer = Trainer(model, dataset, config, compute, spec=dataset.spec, processes=processes)
        if resume:
            trainer.restore(checkpoint)
        held = [study_input(validation[study_id]) for study_id in processes.share(split.held_out)]

        def predicted(network: LumbarClassifier) -> np.ndarray:
            part = predict_probabilities(network, held, compute, batch_size=config.batch_size)
            p = processes.gather(part, len(split.held_out))
            p = p if config.class_weights else metric_frequencies(p)  # tables of predictions carry the weights
            overflown = ~np.isfinite(p).all(axis=(1, 2))  # half precision can; that must not cost the training
            if overflown.all() and len(p):
                raise DataError(f"{folder}: the network gives no finite number for any held-out study")
            if overflown.any():
                logger.warning("%d held-out studies got no finite number, the prior is used", overflown.sum())
            return np.where(overflown[:, None, None], prior, p)

        def evaluate() -> float:
            p = predicted(trainer.averaged())
            return competition_score(split.held_out_labels, p).total if len(p) else float("nan")

        began, before = time.monotonic(), (trainer.seconds, trainer.studies)
        trainer.run(checkpoint, evaluate, on_epoch=on_epoch, progress=progress)
        # What is reported is what the run folder predicts: with weights as they are rounded on disk.
        model = round_weights(trainer.averaged())
        probabilities = predicted(model)
        history = pd.DataFrame(trainer.history)
        result = _result(folder, history, split, probabilities, prior, trainer.seconds)
        if processes.first:
            speed = (trainer.studies - before[1]) * processes.count / max(trainer.seconds - before[0], 1e-9)
            manifest = {
                "kind": "classifier",
                "fingerprint": checkpoint.fingerprint,
                "synthetic_only": synthetic_only,
                "versions": versions(),
                "compute": str(compute),
                "processes": processes.count,
                "seconds": round(trainer.seconds, 1),
                "seconds_with_validation": round(time.monotonic() - began, 1),
                "studies_per_second": round(speed, 2),
                "memory_gb": round(peak_memory(compute.device) / 1e9, 2),
                "steps": trainer.step,
                "studies": {"train": len(split.train), "held_out": len(split.held_out)},
                "scores": {name: score.to_json() for name, score in result.scores.items()},
                "train_studies": split.train,
                "held_out_studies": split.held_out,
            }
            new = folder / NEW
            shutil.rmtree(new, ignore_errors=True)
            stored = RunConfig(config.classifier, dataset.spec, prior, config.to_json(), synthetic_only=synthetic_only)
            save_run(new, model, stored)
            write_table(new / HISTORY, history)
            write_table(new / OOF, prediction_table(result.study_ids, probabilities))
            write_json(new / MANIFEST, manifest)
            checkpoint.remove()
            if in_place:
                publish(folder)
        processes.wait()
        if result.scores:
            logger.info("held out: %s; weighted prior %.4f", *map(result.scores.get, ("model", "weighted_prior")))
        return result


def _finished(folder: Path, fingerprint: str, split: Split) -> RunResult | None:
    """The result on disk, if it is of the same configuration, studies, labels and crops."""
    try:
        manifest = read_json(folder / MANIFEST)
        if manifest.get("fingerprint") != fingerprint:
            return None
        probabilities = read_predictions(pd.read_csv(folder / OOF, dtype={"row_id": str}), split.held_out)
        history = pd.read_csv(folder / HISTORY)
        prior, seconds = RunConfig.load(folder).prior, float(manifest["seconds"])
    except (DataError, OSError, KeyError, ValueError):  # pandas' own errors are ValueErrors
        return None
    return _result(folder, history, split, probabilities, prior, seconds)


def _result(
    folder: Path, history: pd.DataFrame, split: Split, probabilities: np.ndarray, prior: np.ndarray, seconds: float
) -> RunResult:
    scores = {}
    if (split.held_out_labels != MISSING).any():
        for name, p in {"model": probabilities, "weighted_prior": prior, "uniform": uniform()}.items():
            scores[name] = competition_score(split.held_out_labels, np.broadcast_to(p, probabilities.shape))
    return RunResult(folder, history, tuple(split.held_out), probabilities, prior, scores, seconds)
