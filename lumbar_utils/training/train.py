"""Train the classifier: `fit(cache, labels, config, run_folder)`, or `python -m lumbar_utils.training`.

The loss is the competition's metric plus auxiliary heads per view. A run that was killed resumes from its last
checkpoint (`trainer`). The held-out studies are graded with the averaged weights for the record; nothing is chosen by
them. On several GPUs: `accelerate launch --multi_gpu --num_processes 2 -m lumbar_utils.training CROPS LABELS RUN`.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..crops.cache import CropCache
from ..crops.extraction import StudyCrops
from ..devices import choose_compute, peak_memory
from ..errors import DataError
from ..files import read_json, versions, write_json, write_table
from ..labels import MISSING, N_TARGETS, encode_severities
from ..metrics.score import (
    Score,
    competition_score,
    prediction_table,
    read_predictions,
    uniform,
    weighted_prior,
)
from ..models.classifier import LumbarClassifier, grade
from ..models.ensemble import ENSEMBLE
from ..models.inputs import CropDataset, folds_by_study, spec_of, study_input
from ..models.run_folder import CONFIG, HISTORY, MANIFEST, OOF, WEIGHTS, RunConfig, round_weights, save_weights
from .augmentation import IntensityAugmentation
from .checkpoints import Checkpoint
from .config import TrainConfig
from .loop import Trainer
from .processes import Processes, join_processes

__all__ = ["RunResult", "TrainConfig", "fit"]

logger = logging.getLogger(__name__)

FEW = 5
"""Studies to be expected in a fold, below which chance may well leave less than half of them in it."""


@dataclass(frozen=True, eq=False)
class RunResult:
    """What `fit` returns.

    Attributes
    ----------
    folder : Path
    history : DataFrame
        One row an epoch: epoch, loss, learning_rate, seconds, held_out_score (nan where not graded).
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

    Called in several processes at once (see `processes`), it trains one network in all of them.

    Parameters
    ----------
    cache : CropCache, or mapping study_id -> StudyCrops
    labels : DataFrame
        In `train.csv` form: study_id and the 25 target columns.
    held_out : sequence of str, optional
        Studies to keep out of the training and to grade at the end. Default: a fold, see `TrainConfig.folds`.
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
        When no study has both crops and labels, or a held-out study has not.
    """
    config = config or TrainConfig()
    with join_processes(config.device) as processes:
        validation = cache if held_out_crops is None else held_out_crops
        part = _split(cache, validation, labels, config, held_out)
        if training_labels is not None:
            part = part.relabelled(training_labels)
        content = _digest(cache, part.train), _digest(validation, part.out)
        fingerprint = {"config": config.fingerprint(), "studies": part.digest(), "crops": content}
        run = _Run(Path(run_folder), config, part, fingerprint, synthetic_only, processes)
        finished = run.finished() if resume else None
        if not processes.same(float(finished is None)):
            raise DataError(f"{run_folder}: only some processes find a finished run there; they must share it")
        if finished is not None and on_epoch is not None and len(finished.history):
            on_epoch(finished.history)  # the curves belong to the result, also where they were drawn elsewhere
        return finished or run.train(cache, validation, resume=resume, on_epoch=on_epoch, progress=progress)


@dataclass(frozen=True, eq=False)
class _Split:
    """Studies to learn from and to grade, with their labels int8 (n, 25)."""

    train: list[str]
    train_labels: np.ndarray
    out: list[str]
    out_labels: np.ndarray

    def relabelled(self, labels: pd.DataFrame) -> _Split:
        codes = _codes_by_study(labels)
        lacking = [s for s in self.train if s not in codes]
        if lacking:
            raise DataError(f"the training labels lack {len(lacking)} studies, the first is {lacking[0]!r}")
        return replace(self, train_labels=np.stack([codes[s] for s in self.train]))

    def digest(self) -> str:
        """Changes with any study or label."""
        parts = ["\n".join(self.train).encode(), self.train_labels.tobytes()]
        parts += ["\n".join(self.out).encode(), self.out_labels.tobytes()]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()


@dataclass(frozen=True, eq=False)
class _Run:
    """One training with its folder: read when it is finished, else trained."""

    folder: Path
    config: TrainConfig
    part: _Split
    fingerprint: dict
    synthetic_only: bool
    processes: Processes

    def finished(self) -> RunResult | None:
        """The result on disk, if it is of the same configuration, studies and labels."""
        if not (self.folder / WEIGHTS).is_file():
            return None
        try:
            manifest = read_json(self.folder / MANIFEST)
            if manifest.get("fingerprint") != Checkpoint(self.folder, self.fingerprint).fingerprint:
                return None
            probabilities = read_predictions(pd.read_csv(self.folder / OOF, dtype={"row_id": str}), self.part.out)
            history = pd.read_csv(self.folder / HISTORY)
            prior, seconds = RunConfig.load(self.folder).prior, float(manifest["seconds"])
        except (DataError, OSError, KeyError, ValueError):  # pandas' own errors are ValueErrors
            return None
        logger.info("%s is finished: nothing to train", self.folder)
        scores = _scores(self.part, probabilities, prior)
        return RunResult(self.folder, history, tuple(self.part.out), probabilities, scores, seconds)

    def train(
        self,
        cache: Mapping[str, StudyCrops],
        held_out_crops: Mapping[str, StudyCrops],
        *,
        resume: bool,
        on_epoch: Callable[[pd.DataFrame], None] | None,
        progress: bool,
    ) -> RunResult:
        config, part, processes = self.config, self.part, self.processes
        compute = choose_compute(config.device, config.precision)
        logger.info("training on %s", compute)
        prior = weighted_prior(part.train_labels)
        torch.manual_seed(config.seed)
        model = LumbarClassifier(config.classifier, prior).to(compute.device)
        spec = spec_of(cache, part.train)
        transform = (
            IntensityAugmentation(config.augment.intensity, seed=config.seed) if config.augment.intensity else None
        )
        train_set = CropDataset(
            cache,
            part.train,
            part.train_labels,
            in_memory=config.in_memory,
            transform=transform,
            progress=progress and processes.first,
        )
        held = [study_input(held_out_crops[study_id]) for study_id in processes.share(part.out)]
        trainer = Trainer(model, train_set, config, compute, spec=spec, processes=processes)
        checkpoint = Checkpoint(self.folder, self.fingerprint)
        if resume:
            trainer.restore(checkpoint)

        def predicted(network: LumbarClassifier) -> np.ndarray:
            p = processes.gather(grade(network, held, compute, batch_size=config.batch_size), len(part.out))
            overflown = ~np.isfinite(p).all(axis=(1, 2))  # half precision can; that must not cost the training
            if overflown.any():
                logger.warning("%d held-out studies got no finite number, the prior is used", overflown.sum())
            return np.where(overflown[:, None, None], prior, p)

        def evaluate() -> float:
            return competition_score(part.out_labels, predicted(trainer.averaged())).total if part.out else float("nan")

        began = time.monotonic()
        before = trainer.seconds, trainer.studies
        trainer.run(checkpoint, evaluate, on_epoch=on_epoch, progress=progress)
        # What is reported is what the run folder predicts: with weights as they are rounded on disk.
        result_model = round_weights(trainer.averaged())
        probabilities = predicted(result_model)
        scores = _scores(part, probabilities, prior)
        history = pd.DataFrame(trainer.history)
        if processes.first:
            # Only now: until here an older run in this folder could be used. Its configuration goes before its weights,
            # so that one run's weights never stand beside another's configuration, wherever this is cut off.
            for name in (MANIFEST, CONFIG, ENSEMBLE):
                (self.folder / name).unlink(missing_ok=True)
            save_weights(result_model, self.folder / WEIGHTS)
            stored = RunConfig(config.classifier, spec, prior, config.to_json(), synthetic_only=self.synthetic_only)
            stored.save(self.folder)
            write_table(self.folder / HISTORY, history)
            write_table(self.folder / OOF, prediction_table(part.out, probabilities))
            speed = (trainer.studies - before[1]) * processes.count / max(trainer.seconds - before[0], 1e-9)
            write_json(
                self.folder / MANIFEST,
                {
                    "kind": "classifier",
                    "fingerprint": checkpoint.fingerprint,
                    "synthetic_only": self.synthetic_only,
                    "versions": versions(),
                    "compute": str(compute),
                    "processes": processes.count,
                    "seconds": round(trainer.seconds, 1),
                    "seconds_with_validation": round(time.monotonic() - began, 1),
                    "studies_per_second": round(speed, 2),
                    "memory_gb": round(peak_memory(compute.device) / 1e9, 2),
                    "steps": trainer.step,
                    "studies": {"train": len(part.train), "held_out": len(part.out)},
                    "scores": {name: score.to_json() for name, score in scores.items()},
                    "train_studies": part.train,
                    "held_out_studies": part.out,
                },
            )
            checkpoint.remove()
        processes.wait()
        if scores:
            logger.info("held out: %s; weighted prior %.4f", scores["model"], scores["weighted_prior"].total)
        return RunResult(self.folder, history, tuple(part.out), probabilities, scores, trainer.seconds)


def _scores(part: _Split, probabilities: np.ndarray, prior: np.ndarray) -> dict[str, Score]:
    if not part.out or (part.out_labels == MISSING).all():
        return {}
    scores = {"model": competition_score(part.out_labels, probabilities)}
    for name, constant in {"weighted_prior": prior, "uniform": uniform()}.items():
        scores[name] = competition_score(part.out_labels, np.tile(constant, (len(part.out), 1, 1)))
    return scores


def _codes_by_study(labels: pd.DataFrame) -> dict[str, np.ndarray]:
    if "study_id" not in labels.columns:
        raise DataError(f"the label table lacks the column study_id, it has {list(labels.columns)[:5]}")
    return dict(zip((str(s) for s in labels["study_id"]), encode_severities(labels), strict=True))


def _digest(crops: Mapping[str, StudyCrops], study_ids: Sequence[str]) -> str:
    """Changes with the content of any of these studies' crops."""
    if isinstance(crops, CropCache):
        return crops.digest(study_ids)
    items = [crops[study_id] for study_id in study_ids]
    arrays = (array for item in items for part in (item.images, item.covered) for array in part.values())
    return hashlib.sha256(b"".join(hashlib.sha256(np.ascontiguousarray(a)).digest() for a in arrays)).hexdigest()


def _split(
    cache: Mapping[str, StudyCrops],
    validation: Mapping[str, StudyCrops],
    labels: pd.DataFrame,
    config: TrainConfig,
    held_out: Sequence[str] | None,
) -> _Split:
    codes = _codes_by_study(labels)
    available, predictable = (set(getattr(crops, "study_ids", crops)) for crops in (cache, validation))
    both = [s for s in codes if s in available]
    if not both:
        raise DataError(f"none of the {len(codes)} labelled studies has crops (there are {len(available)})")
    if held_out is not None:
        out = [str(s) for s in held_out]
        lacking = [s for s in out if s not in predictable or s not in codes]
        if lacking:
            raise DataError(f"{len(lacking)} held-out studies lack crops or labels, the first is {lacking[0]!r}")
        kept_out = set(out)
    elif config.folds > 1:
        fold_of = folds_by_study(labels, config.folds, seed=config.seed)
        either = [s for s in codes if s in available or s in predictable]
        kept_out = {s for s in either if fold_of[s] == config.fold}
        out = [s for s in codes if s in kept_out and s in predictable]
        share = len(either) / config.folds
        if not out or (share >= FEW and len(out) < share / 2):
            raise DataError(
                f"only {len(out)} of {len(either)} studies that have crops can be predicted as fold {config.fold} of "
                f"{config.folds}: are they the crops of another fold, do those around found discs lie in "
                "another folder (--found), or are they a handful? folds = 1 holds none out"
            )
        if len(out) < len(kept_out):
            logger.warning(
                "%d of %d held-out studies have no crops to be predicted on", len(kept_out) - len(out), len(kept_out)
            )
    else:
        out, kept_out = [], set()
    train = [s for s in both if s not in kept_out]
    if not train:
        raise DataError("every study is held out, nothing is left to train on")
    rows = [np.stack([codes[s] for s in ids]) if ids else np.zeros((0, N_TARGETS), np.int8) for ids in (train, out)]
    return _Split(train, rows[0], out, rows[1])
