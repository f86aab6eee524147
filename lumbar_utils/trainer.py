"""The training loop: one network, its averaged weights, its optimiser, and where they stand.

Every epoch draws its random numbers from the seed and the epoch's number alone, so that a run that was killed goes
on from its last checkpoint to the same result.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .augment import AugmentConfig, augment_batch
from .checkpoints import Checkpoint
from .classifier import ClassifierConfig, LumbarClassifier
from .crops import CropSpec
from .datasets import CropDataset
from .devices import Compute
from .errors import DataError
from .metrics import CompetitionLoss
from .runs import strict

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainConfig:
    """How to train; JSON with these keys and no others.

    Parameters
    ----------
    classifier, augment
        Their own configurations.
    epochs, batch_size : int
        Studies are the items of a batch.
    learning_rate, weight_decay : float
        AdamW's; weight decay is for matrices only.
    warmup : float
        Share of the training in which the learning rate rises linearly, before it falls as a cosine.
    ema_decay : float
        Decay per step of the averaged weights, which are the result; reached gradually.
    clip : float
        Largest norm of the gradient.
    auxiliary_weight : float
        Weight of the mean loss of the per-view heads.
    any_severe : float
        Weight of the metric's fourth term in the loss.
    class_weights : bool
        The metric's 1/2/4; False trains unweighted.
    folds, fold : int
        Studies of fold number `fold` are held out when the call names none; folds = 1 holds nothing out.
    seed : int
    device, precision : str
        See `devices.choose_compute`.
    time_limit_minutes : float, optional
        The schedule is shortened to this time when the epochs would take longer. The result then depends on the
        machine's speed.
    checkpoint_seconds : float
        A checkpoint (1.6 GB for three ResNet18) is written after the first epoch that ends this long after the last.
    evaluate_every : int
        Epochs between gradings of the held-out studies, for the curves; 0 grades at the end only.
    workers : int
        Processes that read crops; 0 reads in this one.
    in_memory : bool
        Read all crops into memory at the start.
    """

    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    epochs: int = 10
    batch_size: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    warmup: float = 0.1
    ema_decay: float = 0.97
    clip: float = 1.0
    auxiliary_weight: float = 0.3
    any_severe: float = 1.0
    class_weights: bool = True
    folds: int = 5
    fold: int = 0
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    time_limit_minutes: float | None = None
    checkpoint_seconds: float = 120.0
    evaluate_every: int = 0
    workers: int = 0
    in_memory: bool = True

    def __post_init__(self):
        for name in ("epochs", "batch_size", "folds"):
            if int(getattr(self, name)) < 1:
                raise DataError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.folds > 1 and not 0 <= self.fold < self.folds:
            raise DataError(f"fold must lie between 0 and {self.folds - 1}, got {self.fold}")

    def to_json(self) -> dict:
        """A JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping, where: Path | str = "training configuration") -> TrainConfig:
        """The inverse of `to_json`; keys may be left out, unknown ones raise `DataError`."""
        return strict(cls, values, where)


class Trainer:
    """The loop: network, averaged weights, optimiser and where they stand."""

    def __init__(
        self,
        model: LumbarClassifier,
        dataset: CropDataset,
        config: TrainConfig,
        compute: Compute,
        *,
        spec: CropSpec,
    ):
        self.model, self.dataset, self.config, self.compute, self.spec = model, dataset, config, compute, spec
        self.average = AveragedModel(model, multi_avg_fn=_ema(config.ema_decay), use_buffers=True)
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        others = [p for p in model.parameters() if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=config.learning_rate,
            fused=True,  # one pass over 100 million parameters instead of a dozen: six times faster on a CPU
        )
        self.scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.scales_gradients)
        self.loss = CompetitionLoss.fitted(
            dataset.labels, any_severe=config.any_severe, class_weights=config.class_weights
        )
        self.epoch, self.step, self.seconds = 0, 0, 0.0
        self.history: list[dict] = []

    def run(self, checkpoint: Checkpoint, evaluate: Callable[[], float], *, progress: bool = True) -> None:
        """Train to the end from wherever it stands; `evaluate` gives the held-out score for the history."""
        config = self.config
        loader = self._loader()
        total = len(loader) * config.epochs
        bar = tqdm(total=total, initial=self.step, desc="training", unit="step", disable=not progress)
        saved = time.monotonic()
        while self.epoch < config.epochs and self._progress(total) < 1:
            started, losses = time.monotonic(), []
            before = self.seconds
            self._seed(loader)
            for batch in loader:
                self.seconds = before + time.monotonic() - started
                if self._progress(total) >= 1:
                    break
                losses.append(self._train_step(batch, self._rate(self._progress(total))))
                bar.update()
                bar.set_postfix(loss=f"{np.mean(losses[-20:]):.3f}", refresh=False)
            if not losses:  # the time was over before the first step
                break
            self.epoch += 1
            self.seconds = before + time.monotonic() - started
            due = config.evaluate_every and self.epoch % config.evaluate_every == 0
            self.history.append(
                {
                    "epoch": self.epoch,
                    "loss": float(np.mean(losses)),
                    "learning_rate": self.optimizer.param_groups[0]["lr"],
                    "seconds": round(self.seconds, 2),
                    "held_out_score": evaluate() if due else float("nan"),
                }
            )
            logger.info("epoch %(epoch)d: loss %(loss).4f, held out %(held_out_score).4f", self.history[-1])
            if self.epoch < config.epochs and time.monotonic() - saved >= config.checkpoint_seconds:
                self.save(checkpoint)
                saved = time.monotonic()
        bar.close()

    def _train_step(self, batch: dict, rate: float) -> float:
        config, device = self.config, self.compute.device
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images = {view: image.to(device, non_blocking=True) for view, image in batch["images"].items()}
        images, labels = augment_batch(images, batch["labels"].to(device), config.augment, self.spec, self.generator)
        with self.compute.autocast():
            output = self.model(images, batch["present"].to(device))
        loss = self.loss(output["logits"], labels)
        if output["aux"]:
            extra = [self.loss(logits, labels) for logits in output["aux"].values()]
            loss = loss + config.auxiliary_weight * sum(extra) / len(extra)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update_parameters(self.model)
        self.step += 1
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DataError(
                f"the loss became {value} in step {self.step}; lower learning_rate or set precision to float32"
            )
        return value

    def _loader(self) -> DataLoader:
        size = min(self.config.batch_size, len(self.dataset))
        return DataLoader(
            self.dataset,
            batch_size=size,
            shuffle=True,
            drop_last=True,
            num_workers=self.config.workers,
            generator=torch.Generator(),
            pin_memory=self.compute.device.type == "cuda",
            persistent_workers=self.config.workers > 0,
        )

    def _seed(self, loader: DataLoader) -> None:
        seed = int(np.random.SeedSequence([self.config.seed, self.epoch]).generate_state(1)[0])
        loader.generator.manual_seed(seed)
        torch.manual_seed(seed)
        reseed = getattr(self.dataset.transform, "reseed", None)
        if reseed is not None:
            reseed(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def _progress(self, total: int) -> float:
        share = self.step / max(total, 1)
        limit = self.config.time_limit_minutes
        return max(share, self.seconds / (60 * limit)) if limit else share

    def _rate(self, progress: float) -> float:
        warmup = self.config.warmup
        if progress < warmup:
            return self.config.learning_rate * (0.05 + 0.95 * progress / warmup)
        fall = (progress - warmup) / max(1 - warmup, 1e-9)
        return self.config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(fall, 1.0))))

    def save(self, checkpoint: Checkpoint) -> None:
        """Write all state to the checkpoint."""
        checkpoint.save(
            self.average,
            self.model,
            self.optimizer,
            {
                "epoch": self.epoch,
                "step": self.step,
                "seconds": self.seconds,
                "history": self.history,
                "scaler": self.scaler.state_dict(),
            },
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up the checkpoint's state, if it is of the same run."""
        state = checkpoint.restore(self.average, self.model, self.optimizer)
        if state is None:
            return
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.history = state["history"]
        self.scaler.load_state_dict(state["scaler"])
        logger.info("going on after epoch %d", self.epoch)


def _ema(decay: float):
    @torch.no_grad()
    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], n_averaged: torch.Tensor) -> None:
        # The first steps must be forgotten quickly, or a short run averages in its random start.
        share = 1 - min(decay, (1 + float(n_averaged)) / (10 + float(n_averaged)))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, share)
        else:
            for old, new in zip(averaged, current, strict=True):
                old.copy_(new)

    return update
