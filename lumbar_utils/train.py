"""Train the classifier: `fit(cache, labels, config, run_folder)`, or `python -m lumbar_utils.train`.

The loss is the competition's metric plus auxiliary heads per view. A run that was killed resumes from its last
checkpoint (`trainer`). The held-out studies are graded with the averaged weights for the record; nothing is chosen by
them.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from .augment import Appearance
from .checkpoints import Checkpoint
from .classifier import LumbarClassifier, grade
from .crops import StudyCrops
from .datasets import CropDataset, assign_folds, spec_of, study_input
from .devices import choose_compute
from .errors import DataError, LumbarError
from .labels import MISSING, N_TARGETS, encode_severities
from .metrics import Score, competition_score, prediction_table, uniform, weighted_prior
from .runs import (
    HISTORY,
    MANIFEST,
    OOF,
    WEIGHTS,
    RunConfig,
    load_weights,
    read_json,
    save_weights,
    versions,
    write_json,
    write_table,
)
from .trainer import TrainConfig, Trainer

__all__ = ["RunResult", "TrainConfig", "fit"]

logger = logging.getLogger(__name__)


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
    synthetic_only: bool = False,
    resume: bool = True,
    progress: bool = True,
) -> RunResult:
    """Train on the studies that have both crops and labels, and grade the held-out ones.

    Parameters
    ----------
    cache : CropCache, or mapping study_id -> StudyCrops
    labels : DataFrame
        In `train.csv` form: study_id and the 25 target columns.
    held_out : sequence of str, optional
        Studies to keep out of the training and to grade at the end. Default: a fold, see `TrainConfig.folds`.
    synthetic_only : bool
        Say True when all studies are phantoms; predictions then carry the warning.
    resume : bool
        Go on from a checkpoint of the same configuration and studies in `run_folder`, if there is one.

    Raises
    ------
    DataError
        When no study has both crops and labels, or a held-out study has not.
    """
    config, folder = config or TrainConfig(), Path(run_folder)
    compute = choose_compute(config.device, config.precision)
    logger.info("training on %s", compute)
    train_ids, train_labels, out_ids, out_labels = _split(cache, labels, config, held_out)
    prior = weighted_prior(train_labels)
    torch.manual_seed(config.seed)
    model = LumbarClassifier(config.classifier, prior).to(compute.device)
    spec = spec_of(cache, train_ids)
    transform = Appearance(config.augment.appearance, seed=config.seed) if config.augment.appearance else None
    train_set = CropDataset(
        cache, train_ids, train_labels, in_memory=config.in_memory, transform=transform, progress=progress
    )
    held = [study_input(cache[study_id]) for study_id in out_ids]

    trainer = Trainer(model, train_set, config, compute, spec=spec)
    identity = {"config": config.to_json(), "train": train_ids, "held_out": out_ids}
    checkpoint = Checkpoint(folder, identity)
    if resume:
        trainer.restore(checkpoint)

    def evaluate() -> float:
        if not held:
            return float("nan")
        probabilities = grade(trainer.average.module, held, compute, batch_size=config.batch_size)
        return competition_score(out_labels, probabilities).total

    trainer.run(checkpoint, evaluate, progress=progress)
    # Both together and only now: an older run's weights must never stand beside this run's configuration.
    RunConfig(config.classifier, spec, prior, config.to_json(), synthetic_only=synthetic_only).save(folder)
    save_weights(trainer.average.module, folder / WEIGHTS)
    # Grade with the weights as they were rounded on disk: what is reported is what the run folder predicts.
    load_weights(model, folder / WEIGHTS)
    probabilities = grade(model, held, compute, batch_size=config.batch_size)
    scores = {}
    if out_ids and (out_labels != MISSING).any():
        repeated = {"weighted_prior": prior, "uniform": uniform()}
        scores = {"model": competition_score(out_labels, probabilities)}
        for name, constant in repeated.items():
            scores[name] = competition_score(out_labels, np.tile(constant, (len(out_ids), 1, 1)))
        logger.info("held out: %s; weighted prior %.4f", scores["model"], scores["weighted_prior"].total)
    history = pd.DataFrame(trainer.history)
    write_table(folder / HISTORY, history)
    write_table(folder / OOF, prediction_table(out_ids, probabilities))
    write_json(
        folder / MANIFEST,
        {
            "kind": "classifier",
            "synthetic_only": synthetic_only,
            "versions": versions(),
            "compute": str(compute),
            "seconds": round(trainer.seconds, 1),
            "steps": trainer.step,
            "studies": {"train": len(train_ids), "held_out": len(out_ids)},
            "scores": {name: score.to_json() for name, score in scores.items()},
            "train_studies": train_ids,
            "held_out_studies": out_ids,
        },
    )
    checkpoint.remove()
    return RunResult(folder, history, tuple(out_ids), probabilities, scores, trainer.seconds)


def _split(
    cache: Mapping[str, StudyCrops], labels: pd.DataFrame, config: TrainConfig, held_out: Sequence[str] | None
) -> tuple[list[str], np.ndarray, list[str], np.ndarray]:
    if "study_id" not in labels.columns:
        raise DataError(f"the label table lacks the column study_id, it has {list(labels.columns)[:5]}")
    study_ids = [str(s) for s in labels["study_id"]]
    codes = dict(zip(study_ids, encode_severities(labels), strict=True))
    available = set(getattr(cache, "study_ids", cache))
    both = [s for s in study_ids if s in available]
    if not both:
        raise DataError(f"none of the {len(study_ids)} labelled studies has crops (there are {len(available)})")
    if held_out is not None:
        out = [str(s) for s in held_out]
        lacking = [s for s in out if s not in available or s not in codes]
        if lacking:
            raise DataError(f"{len(lacking)} held-out studies lack crops or labels, the first is {lacking[0]!r}")
    elif config.folds > 1:
        folds = assign_folds(np.stack([codes[s] for s in both]), config.folds, seed=config.seed)
        out = [s for s, fold in zip(both, folds, strict=True) if fold == config.fold]
    else:
        out = []
    kept_out = set(out)
    train = [s for s in both if s not in kept_out]
    if not train:
        raise DataError("every study is held out, nothing is left to train on")
    rows = [np.stack([codes[s] for s in ids]) if ids else np.zeros((0, N_TARGETS), np.int8) for ids in (train, out)]
    return train, rows[0], out, rows[1]


def main(argv: Sequence[str] | None = None) -> None:
    """`python -m lumbar_utils.train CROPS LABELS RUN`: train on a crop cache."""
    import argparse

    from .crop_cache import CropCache

    parser = argparse.ArgumentParser(prog="python -m lumbar_utils.train", description="Train the grading network.")
    parser.add_argument("crops", type=Path, help="crop cache made by `lumbar crops`")
    parser.add_argument("labels", type=Path, help="train.csv")
    parser.add_argument("run", type=Path, help="folder for weights, history, out-of-fold predictions and manifest")
    parser.add_argument("--config", type=Path, help="JSON with fields of TrainConfig")
    parser.add_argument("--synthetic", action="store_true", help="all studies are synthetic phantoms")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = TrainConfig.from_json(read_json(args.config) if args.config else {}, args.config or "")
    labels = pd.read_csv(args.labels, dtype={"study_id": str})
    result = fit(CropCache.open(args.crops), labels, config, args.run, synthetic_only=args.synthetic)
    for name, score in result.scores.items():
        print(f"{name:<15} {score}")


if __name__ == "__main__":
    try:
        main()
    except (LumbarError, OSError) as problem:
        sys.exit(f"error: {problem}")
