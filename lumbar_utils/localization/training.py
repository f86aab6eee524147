"""Training of the localizer: on phantoms, or on a folder in the competition's layout, from scratch or fine-tuned."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel

from ..devices import choose_compute, running_average, warmup_cosine
from ..errors import DataError
from ..labels import LEVELS, SAGITTAL_T1
from ..notebook_html import progress_bar
from ..studies.study import CompetitionFolder
from .augmentation import Augmentation, Window, draw_window
from .calibration import MIN_POINTS, fit_localizer_calibration
from .localizer import DiscLocalizer
from .network import LocalizerConfig, SliceUNet, log_probability
from .samples import LocalizerSample, load_samples

logger = logging.getLogger(__name__)

LOG_EVERY = 25


@dataclass(frozen=True)
class LocalizerTraining:
    """How to train one network, with AdamW and a one-cycle cosine schedule."""

    steps: int = 1000
    batch: int = 6  # windows
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    warm_up: float = 0.08  # fraction of the schedule that rises
    average: float = 0.99  # decay of the exponential average of the weights, which is what is kept
    # Fraction of windows from sagittal T1, so that the same weights work where there is no T2. Randomised phantoms, of
    # any contrast, count as T2.
    t1_share: float = 0.15
    # The schedule of each member is shortened to end by then; None for results that are the same on every machine.
    time_limit_s: float | None = None
    seed: int = 0  # of several networks, the first one's; then `seed + 1`, ...
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self):
        if min(self.steps, self.batch) < 1 or (self.time_limit_s is not None and self.time_limit_s <= 0):
            raise DataError(f"localizer training: steps, batch and the time limit must be positive, got {self}")

    @classmethod
    def fine_tuning(cls, **changes) -> LocalizerTraining:
        """For training that begins with weights which can find discs already: gentler and shorter."""
        return cls(**{"steps": 600, "learning_rate": 5e-4, **changes})


def train_localizer(
    folder: CompetitionFolder,
    study_ids: Sequence[str],
    *,
    config: LocalizerConfig | None = None,
    training: LocalizerTraining | None = None,
    start: DiscLocalizer | None = None,
    out: str | Path | None = None,
    device: torch.device | str = "cpu",
    n_jobs: int = 2,
    progress: bool = True,
) -> DiscLocalizer:
    """Train on studies of a competition folder, on the points of its cleaned coordinate table.

    The table has the five levels only, so fine-tuning drops their neighbours, which the shipped weights know too. With
    `start` and enough studies, one in ten is held out and the confidence calibrated on it; with fewer the calibration
    of `start` is kept, which may be a little off for the new weights.

    Parameters
    ----------
    study_ids : sequence of str
        Of the training fold only.
    start : DiscLocalizer, optional
        Weights to begin from (fine-tuning); its config is used.
    out : path, optional
        Folder for weights, config and `history.csv`, written at the end.

    Raises
    ------
    DataError
        When no study has a sagittal series with points.
    """
    config = start.config if start is not None else config or LocalizerConfig()
    data = "synthetic" if folder.is_synthetic else "competition"
    before = start.config.trained_on if start is not None else ""
    trained_on = before if before.endswith(data) else ", ".join(name for name in (before, data) if name)
    config = replace(config, chain=LEVELS, trained_on=trained_on)
    samples = load_samples(folder, study_ids, config.pixel_mm, n_jobs=n_jobs, progress=progress)
    training_samples, held_out = _hold_out(samples) if start is not None else (samples, [])
    localizer = train_on_samples(
        training_samples, config=config, training=training, start=start, device=device, progress=progress
    )
    # Whoever measures this localizer, or cuts crops with it, must be able to see which studies it was trained on.
    earlier = start.made.get("studies", ()) if start is not None else ()
    localizer.made["studies"] = sorted({*earlier, *(str(study_id) for study_id in study_ids)})
    if held_out:
        try:
            localizer.calibration = fit_localizer_calibration(localizer, held_out)
        except DataError as error:  # the trained weights are not lost for that
            logger.warning("localizer: the confidence is not calibrated anew: %s", error)
    if out is not None:  # at the end: there must be no weights without the list of their studies
        localizer.save(out)
    return localizer


def _hold_out(samples: Sequence[LocalizerSample]) -> tuple[list[LocalizerSample], list[LocalizerSample]]:
    """Samples to train on, and of one study in ten to calibrate the confidence on; none where that is too few."""
    studies = list(dict.fromkeys(sample.study_id for sample in samples))
    chosen = set(studies[::10])
    held_out = [sample for sample in samples if sample.study_id in chosen]
    if sum(np.isfinite(sample.voxels).all(axis=1).sum() for sample in held_out) < 2 * MIN_POINTS:
        return list(samples), []
    return [sample for sample in samples if sample.study_id not in chosen], held_out


def train_on_samples(
    samples: Sequence[LocalizerSample],
    *,
    config: LocalizerConfig,
    training: LocalizerTraining | None = None,
    start: DiscLocalizer | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> DiscLocalizer:
    """Train on preprocessed volumes: one network, or as many as `start` has, with seeds one after the other; the same
    on a CPU for the same seed and threads. `history` has the loss in nats above the target's own entropy, over levels.
    """
    training = training or (LocalizerTraining() if start is None else LocalizerTraining.fine_tuning())
    device = torch.device(device)
    samples = [sample.in_chain(config.chain) for sample in samples]
    initial: Sequence[SliceUNet | None] = start.networks if start is not None else [None]
    networks, history = [], []
    for member, weights in enumerate(initial):
        own = replace(training, seed=training.seed + member)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(own.seed)
            network = SliceUNet(config)
        if weights is not None:
            network.restore_weights(weights)
        networks.append(network)
        title = "localizer" if len(initial) == 1 else f"localizer {member + 1}/{len(initial)}"
        with progress_bar(total=own.steps, desc=title, unit="step", disable=not progress) as bar:
            rows = _train_network(network, samples, own, device, bar)
        history += [{"member": member, **row} for row in rows]
    made, calibration = {"series": len(samples), "training": asdict(training)}, None
    if start is not None:
        made, calibration = made | {"before": start.made}, start.calibration
    localizer = DiscLocalizer(networks, device=device, calibration=calibration, made=made)
    localizer.history = history
    logger.info("localizer: %d steps on %d series", history[-1]["step"], len(samples))
    return localizer


def _train_network(
    network: SliceUNet, samples: Sequence[LocalizerSample], training: LocalizerTraining, device: torch.device, bar: Any
) -> list[dict[str, float]]:
    """Train one network in place; returns its history."""
    windows = _one_ahead(_windows(samples, network.config, training))
    network = network.to(device, memory_format=torch.channels_last).train()
    average = AveragedModel(network, multi_avg_fn=running_average(training.average), use_buffers=True)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
    )
    compute = choose_compute(str(device))
    scaler = torch.amp.GradScaler(device.type, enabled=compute.scales_gradients)
    history: list[dict[str, float]] = []
    losses: list[float] = []
    began = time.monotonic()

    def log() -> None:
        step, mean = len(losses), float(np.mean(losses[LOG_EVERY * len(history) :]))
        if not np.isfinite(mean):
            raise DataError(f"localizer training: the loss is {mean} at step {step}; lower the learning rate")
        seconds = round(time.monotonic() - began, 1)
        history.append({"step": step, "loss": mean, "learning_rate": rate, "seconds": seconds})
        bar.set_postfix(loss=f"{mean:.2f}")

    for step in range(training.steps):
        # By steps, or by time where that is scarcer.
        done = max(step / training.steps, (time.monotonic() - began) / (training.time_limit_s or inf))
        if done >= 1 and step:
            break
        rate = training.learning_rate * warmup_cosine(done, training.warm_up, 0.02, 0.0)
        for group in optimiser.param_groups:
            group["lr"] = rate
        slices, target, absent, known = (part.to(device) for part in next(windows))
        batch, depth = slices.shape[:2]
        flat = slices.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        with compute.autocast():
            logits = network(flat)
        loss = localizer_loss(logits.unflatten(0, (batch, depth)), target, absent, known)
        optimiser.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimiser)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        scaler.step(optimiser)
        scaler.update()
        average.update_parameters(network)
        losses.append(float(loss.detach()))
        bar.update()
        if len(losses) % LOG_EVERY == 0:
            log()
    if len(losses) % LOG_EVERY:
        log()
    network.load_state_dict(average.module.state_dict())
    network.eval()
    return history


def localizer_loss(
    logits: torch.Tensor, target: torch.Tensor, absent: torch.Tensor, known: torch.Tensor
) -> torch.Tensor:
    """Kullback-Leibler divergence of the target from the predicted distribution, mean over the known levels: of
    `logits` and `target` (B, n, levels, h, w), `absent` and `known` (B, levels)."""
    voxels, none = log_probability(logits)
    cross = -(target * voxels).sum(dim=(1, 3, 4)) - absent * none
    entropy = -torch.xlogy(target, target).sum(dim=(1, 3, 4)) - torch.xlogy(absent, absent)
    return ((cross - entropy) * known).sum() / known.sum().clamp_min(1)


def _windows(
    samples: Sequence[LocalizerSample], config: LocalizerConfig, training: LocalizerTraining
) -> Iterator[Window]:
    """Endless batches; T1 series, and all others, are gone through in shuffled rounds."""
    rng = np.random.default_rng(training.seed)
    t1 = [sample for sample in samples if sample.view == SAGITTAL_T1]
    others = [sample for sample in samples if sample.view != SAGITTAL_T1]
    shares = ((others, 1 - training.t1_share), (t1, training.t1_share))
    groups = [(group, share) for group, share in shares if group and share > 0]
    if not groups:
        raise DataError("localizer training: there are no samples of a view that is asked for")
    weights = np.array([share for _, share in groups])
    queues: list[list[LocalizerSample]] = [[] for _ in groups]
    while True:
        drawn = []
        for _ in range(training.batch):
            chosen = int(rng.choice(len(groups), p=weights / weights.sum()))
            group, queue = groups[chosen][0], queues[chosen]
            if not queue:
                queue += [group[i] for i in rng.permutation(len(group))]
            drawn.append(draw_window(queue.pop(), config, training.augmentation, rng))
        yield Window(*map(torch.stack, zip(*drawn, strict=True)))


def _one_ahead(batches: Iterator[Window]) -> Iterator[Window]:
    """The same batches in the same order, each drawn by a second thread while the one before it is learnt from."""
    with ThreadPoolExecutor(max_workers=1) as drawing:
        coming = drawing.submit(next, batches)
        while True:
            batch = coming.result()
            coming = drawing.submit(next, batches)
            yield batch
