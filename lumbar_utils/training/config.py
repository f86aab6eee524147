"""How the classifier is trained, as one configuration that is saved with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..devices import warmup_cosine
from ..errors import DataError
from ..models.classifier import ClassifierConfig
from ..models.run_folder import strict
from .augmentation import AugmentConfig

RESULT_UNCHANGED_BY = ("device", "in_memory", "compile", "checkpoint_seconds", "evaluate_every")
"""Fields of `TrainConfig` that a run may be continued with other values of."""
NOT_NEGATIVE = ("weight_decay", "auxiliary_weight", "any_severe", "checkpoint_seconds", "evaluate_every", "workers")


@dataclass(frozen=True)
class TrainingPhase:
    """A part of the training, from `start` to `end` (fractions of its length): its loss, and what it trains."""

    start: float
    end: float
    class_weights: bool
    head_only: bool


@dataclass(frozen=True)
class TrainConfig:
    """How to train; JSON with these keys and no others.

    Parameters
    ----------
    classifier, augment
        Their own configurations.
    initial : str, optional
        Start from the weights of this run folder, or of `shipped`, the classifier in the library, whose encoder must be
        that of `classifier`.
    epochs, batch_size : int
        Studies are the items of a batch. Several processes share a batch among them.
    learning_rate, weight_decay, warmup : float
        AdamW's; weight decay is for matrices only. In the share `warmup` of the training the learning rate rises
        linearly, before it falls as a cosine.
    ema_decay : float
        Decay per step of the averaged weights, which are the result; reached gradually.
    clip : float
        Largest norm of the gradient.
    auxiliary_weight, any_severe : float
        Weights of the mean loss of the per-view heads, and of the metric's fourth term in the loss.
    class_weights : bool
        The metric's 1/2/4; False trains unweighted.
    head_share : float
        Two phases: in the last fraction of the training the head alone is trained, on encoders that were trained before
        without the 1/2/4 weights. 0 trains everything at once.
    folds, fold, fold_seed : int
        Studies of fold number `fold` are held out when the call names none; folds = 1 holds nothing out. `fold_seed`
        alone decides who is in which fold, so that runs of several seeds can be averaged out of fold.
    seed : int
        Of the weights at the start, the order of the studies, and the augmentation.
    device, precision : str
        See `devices.choose_compute`.
    time_limit_minutes : float, optional
        The schedule is shortened to this time when the epochs would take longer. The result then depends on the
        machine's speed.
    checkpoint_seconds : float
        A checkpoint (1.6 GB for three ResNet18) is written after the first epoch that ends this long after the last.
    evaluate_every : int
        Epochs between validations on the held-out studies, for the curves; 0 validates at the end only.
    workers, in_memory : int, bool
        Processes that read crops, 0 reads in this one; whether all crops are read into memory at the start.
    compile : bool
        Let torch.compile fuse the encoders; costs a minute or more at the start.
    """

    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    initial: str | None = None
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
    head_share: float = 0.0
    folds: int = 5
    fold: int = 0
    fold_seed: int = 0
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    time_limit_minutes: float | None = None
    checkpoint_seconds: float = 120.0
    evaluate_every: int = 0
    workers: int = 0
    in_memory: bool = True
    compile: bool = False

    def __post_init__(self):
        for names, fits, expected in (
            (("epochs", "batch_size", "folds"), lambda v: v >= 1, "be at least 1"),
            (("head_share", "warmup", "ema_decay"), lambda v: 0 <= v < 1, "lie in [0, 1)"),
            (("learning_rate", "clip"), lambda v: v > 0, "be above 0"),
            (NOT_NEGATIVE, lambda v: v >= 0, "not be negative"),
        ):
            for name in names:
                if not fits(getattr(self, name)):
                    raise DataError(f"{name} must {expected}, got {getattr(self, name)}")
        limit = self.time_limit_minutes
        if limit is not None and (isinstance(limit, str) or not limit > 0):
            raise DataError(f"time_limit_minutes must be a number above 0, or left out for no limit, got {limit!r}")
        if self.folds > 1 and not 0 <= self.fold < self.folds:
            raise DataError(f"fold must lie between 0 and {self.folds - 1}, got {self.fold}")

    def to_json(self) -> dict:
        """A JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping, where: Path | str = "training configuration") -> TrainConfig:
        """The inverse of `to_json`; keys may be left out, unknown ones raise `DataError`."""
        return strict(cls, values, where)

    def fingerprint(self) -> dict:
        """What decides the result, JSON-ready: without settings that only decide how it is reached."""
        # Albumentations' draws depend on the number of workers; nothing else does.
        means = (*RESULT_UNCHANGED_BY, *(() if self.augment.intensity else ("workers",)))
        return {name: value for name, value in self.to_json().items() if name not in means}

    @property
    def phases(self) -> tuple[TrainingPhase, ...]:
        """What is trained how in which part of the training."""
        change = 1 - self.head_share
        encoders = TrainingPhase(0.0, change, class_weights=self.class_weights and not self.head_share, head_only=False)
        head = TrainingPhase(change, 1.0, class_weights=self.class_weights, head_only=True)
        return (encoders, head) if self.head_share else (encoders,)

    def rate(self, progress: float) -> float:
        """The learning rate at a progress of 0 to 1: in each phase it rises, then falls as a cosine."""
        phase = next(phase for phase in reversed(self.phases) if progress >= phase.start)
        own = (progress - phase.start) / (phase.end - phase.start)
        return self.learning_rate * warmup_cosine(own, self.warmup, 0.05, 0.01)
