"""The training loop: one network, its averaged weights, its optimiser, and their progress.

Every epoch draws its random numbers from the seed and the epoch's number alone, so that a killed run continues from its
last checkpoint to the same result. Several processes split every batch, so that together they see the studies that one
process would see; what depends on the clock is decided by the first process for all.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from ..crops.extraction import CropSpec
from ..devices import Compute, running_average
from ..errors import DataError
from ..metrics.loss import CompetitionLoss
from ..notebook_html import progress_bar
from .augmentation import Mixed, augment_batch, mix_batch
from .checkpoints import Checkpoint, load_optimizer, optimizer_tensors
from .config import TrainConfig
from .datasets import CropDataset, SharedBatches
from .distributed import Processes

logger = logging.getLogger(__name__)

PROGRESS = ("epoch", "step", "seconds", "studies", "history")
"""What a checkpoint holds beside weights, optimiser, phase and scaler."""
MAX_OVERFLOWS = 20
"""Steps without a finite loss, one after the other, that a float16 training may have."""


class Trainer:
    """The loop with its state: network, averaged weights, optimiser, progress.

    `model(images, present)` gives a dict with `logits` (B, 25, 3) and `aux`, a dict of the same, as `LumbarClassifier`
    does; training in two phases also needs its `encoders`. `spec` is that of the dataset's crops.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        dataset: CropDataset,
        config: TrainConfig,
        compute: Compute,
        *,
        spec: CropSpec,
        processes: Processes,
    ):
        self.model, self.dataset, self.config, self.compute, self.spec = model, dataset, config, compute, spec
        self.processes = processes
        self.average = AveragedModel(model, multi_avg_fn=running_average(config.ema_decay), use_buffers=True)
        if config.compile:
            for encoder in model.encoders:
                encoder.compile()
        self.scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.scales_gradients)
        self.epoch, self.step, self.seconds, self.studies, self.overflown = 0, 0, 0.0, 0, 0
        self.history: list[dict] = []
        self._begin(0)

    def run(
        self,
        checkpoint: Checkpoint,
        evaluate: Callable[[], float],
        *,
        on_epoch: Callable[[pd.DataFrame], None] | None = None,
        progress: bool = True,
    ) -> None:
        """Train to the end from the current progress.

        `evaluate` gives the held-out score for the history; `on_epoch` is called with the history after every epoch.
        """
        config, loader, saved = self.config, self._loader(), time.monotonic()
        total, shown = len(loader) * config.epochs, progress and self.processes.first
        bar = progress_bar(total=total, initial=self.step, desc="training", unit="step", disable=not shown)
        while self.epoch < config.epochs and self._progress(total) < 1:
            started, losses = time.monotonic(), []
            before = self.seconds
            self._seed(loader)
            for batch in loader:
                self.seconds = before + time.monotonic() - started
                position = self._progress(total)
                if position >= 1:
                    break
                if self.phase + 1 < len(config.phases) and position >= config.phases[self.phase + 1].start:
                    self._begin(self.phase + 1)
                losses.append(self._train_step(batch, config.rate(position)))
                bar.update()
                bar.set_postfix(loss=f"{np.mean(losses[-20:]):.3f}", refresh=False)
            if not losses:  # the time limit passed before the first step
                break
            self.epoch += 1
            self.seconds = before + time.monotonic() - started
            due = config.evaluate_every and self.epoch % config.evaluate_every == 0
            row = {"epoch": self.epoch, "loss": float(np.nanmean(np.where(np.isfinite(losses), losses, np.nan)))}
            row |= {"learning_rate": self.optimizer.param_groups[0]["lr"], "seconds": round(self.seconds, 2)}
            self.history.append(row | {"held_out_score": evaluate() if due else float("nan")})
            logger.info("epoch %(epoch)d: loss %(loss).4f, held out %(held_out_score).4f", self.history[-1])
            if on_epoch is not None and self.processes.first:
                on_epoch(pd.DataFrame(self.history))
            late = time.monotonic() - saved >= config.checkpoint_seconds
            if self.epoch < config.epochs and self.processes.agree(late):
                self.save(checkpoint)
                saved = time.monotonic()
        bar.close()
        if self.epoch < config.epochs:
            logger.info("the time limit ended the training after %d of %d epochs", self.epoch, config.epochs)

    def averaged(self) -> torch.nn.Module:
        """The network with the averaged weights, the same in every process."""
        if self.processes.count > 1:
            for buffer in self.average.buffers():  # each process has its own statistics of its own studies
                distributed.broadcast(buffer, src=0)
        return self.average.module

    def save(self, checkpoint: Checkpoint) -> None:
        """Write all state to the checkpoint."""
        if self.processes.first:
            parts = {"average": self.average.state_dict(), "model": self.model.state_dict()}
            parts["optimizer"] = optimizer_tensors(self.optimizer)
            state = {name: getattr(self, name) for name in ("phase", *PROGRESS)}
            checkpoint.save(parts, state | {"scaler": self.scaler.state_dict()})
        self.processes.wait()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Load the checkpoint's state, if it is of the same run."""
        found = checkpoint.read()
        parts, state = found or ({}, {"step": 0})
        if not self.processes.same(state["step"]):
            raise DataError(f"{checkpoint.path}: not every process finds this checkpoint; they must share its folder")
        if not parts:
            return
        self._begin(state["phase"])
        self.average.load_state_dict(parts["average"])
        self.model.load_state_dict(parts["model"])
        load_optimizer(self.optimizer, parts["optimizer"])
        for name in PROGRESS:
            setattr(self, name, state[name])
        self.scaler.load_state_dict(state["scaler"])
        logger.info("continuing after epoch %d", self.epoch)

    def _begin(self, number: int) -> None:
        """Begin a phase, see `TrainConfig.phases`: its own loss, and an optimiser of the parameters that it trains."""
        config, model, phase = self.config, self.model, self.config.phases[number]
        self.phase = number
        model.zero_grad(set_to_none=True)  # what is frozen now must not count in the norm that clips the rest
        if phase.head_only:  # on the averaged encoders, which stay as they are from now on
            model.load_state_dict(self.average.module.state_dict())
            model.encoders.requires_grad_(False)
        trained = [p for p in model.parameters() if p.requires_grad]
        matrices, others = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        # Fused is one pass over 100 million parameters instead of a dozen: six times faster on a CPU.
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        self.loss = CompetitionLoss.fitted(
            self.dataset.labels, any_severe=config.any_severe, class_weights=phase.class_weights
        )
        self.network = model
        if self.processes.count > 1:  # a view that no study of a batch has leaves its encoder without a gradient
            self.network = DistributedDataParallel(model, find_unused_parameters=True)

    def _train_step(self, batch: dict, rate: float) -> float:
        config, device = self.config, self.compute.device
        self.model.train()
        if config.phases[self.phase].head_only:
            self.model.encoders.eval()
        # Batch normalisation takes in what it sees before anybody knows that a float16 step will be skipped.
        kept = [buffer.clone() for buffer in self.model.buffers()] if self.scaler.is_enabled() else []
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images = {view: image.to(device, non_blocking=True) for view, image in batch["images"].items()}
        images, labels = augment_batch(images, batch["labels"].to(device), config.augment, self.spec, self.generator)
        mixed = mix_batch(images, labels, batch["present"], config.augment, self.generator)
        with self.compute.autocast():
            output = self.network(mixed.images, batch["present"].to(device))
        loss = self._loss(output["logits"], mixed)
        for logits in output["aux"].values():
            loss = loss + config.auxiliary_weight / len(output["aux"]) * self._loss(logits, mixed)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        self.studies += len(labels)
        value = float(np.mean(self.processes.collect(float(loss.detach()))))  # not finite when any of them is not
        # float16 overflows now and then; its scaler skips such a step and continues with a smaller scale.
        self.overflown = 0 if math.isfinite(value) else self.overflown + 1
        if self.overflown > (MAX_OVERFLOWS if self.scaler.is_enabled() else 0):
            raise DataError(
                f"the loss became {value} in step {self.step}; lower learning_rate or set precision to float32"
            )
        if self.overflown:
            logger.warning("step %d: the loss is %s, the step is skipped", self.step, value)
            for buffer, before in zip(self.model.buffers(), kept, strict=True):
                buffer.copy_(before)
        else:
            self.average.update_parameters(self.model)
        return value

    def _loss(self, logits: torch.Tensor, mixed: Mixed) -> torch.Tensor:
        if mixed.partner_labels is mixed.labels:
            return self.loss(logits, mixed.labels)
        labels = torch.cat([mixed.labels, mixed.partner_labels])
        return self.loss(logits.repeat(2, 1, 1), labels, torch.cat([mixed.share, 1 - mixed.share]))

    def _loader(self) -> DataLoader:
        n = len(self.dataset)
        return DataLoader(
            self.dataset,
            batch_sampler=SharedBatches(n, min(self.config.batch_size, n), self.processes),
            num_workers=self.config.workers,
            generator=torch.Generator(),
            pin_memory=self.compute.device.type == "cuda",
            # Not kept from epoch to epoch: new workers draw by the epoch's seed, kept ones by what they drew before.
            persistent_workers=False,
        )

    def _seed(self, loader: DataLoader) -> None:
        """One order of the studies for all processes, and draws of its own for each."""
        loader.batch_sampler.seed(_seed_of(self.config.seed, self.epoch))
        seed = _seed_of(self.config.seed, self.epoch, 1 + self.processes.rank)
        loader.generator.manual_seed(seed)
        torch.manual_seed(seed)
        reseed = getattr(self.dataset.transform, "reseed", None)
        if reseed is not None:
            reseed(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def _progress(self, total: int) -> float:
        done = self.step / max(total, 1)
        limit = self.config.time_limit_minutes
        return self.processes.agree(max(done, self.seconds / (60 * limit))) if limit else done


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
