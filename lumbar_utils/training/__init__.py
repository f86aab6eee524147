"""Training of the classifier: configuration, augmentation, the loop, folds, several GPUs."""

from .augmentation import AugmentConfig
from .config import TrainConfig
from .cross_validation import fit_folds
from .distributed import launch_training
from .train import RunResult, fit

__all__ = ["AugmentConfig", "RunResult", "TrainConfig", "fit", "fit_folds", "launch_training"]
