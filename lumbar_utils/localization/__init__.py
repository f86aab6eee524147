"""The localizer: sagittal series in, the canal point of each of the five discs in patient millimetres out.

The parts, in the order in which data pass through them: `images` (series -> network input), `network`,
`decoding` (heat maps -> a chain of points), `member_predictions` (several networks, several sizes), `localizer` (`DiscLocalizer`,
which joins them), `points` (`DiscPoints`, the result); for training `samples`, `synthetic` (samples from phantoms),
`augmentation`, `training`; and what came of it: `evaluation`, `calibration`.

Names are loaded on first use, so that code that needs no more than `DiscPoints` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .points import DiscPoints, complete_chain, read_points, write_points

if TYPE_CHECKING:
    from .augmentation import Augmentation
    from .evaluation import PointErrors, evaluate_points, point_errors, read_reference, summary
    from .localizer import DiscLocalizer
    from .network import LocalizerConfig
    from .preprocessing import LocalizationError
    from .training import LocalizerTraining, train_localizer, train_on_samples

_HOME = {
    "Augmentation": "augmentation",
    "DiscLocalizer": "localizer",
    "LocalizationError": "preprocessing",
    "LocalizerConfig": "network",
    "LocalizerTraining": "training",
    "train_localizer": "training",
    "train_on_samples": "training",
    "PointErrors": "evaluation",
    "evaluate_points": "evaluation",
    "point_errors": "evaluation",
    "read_reference": "evaluation",
    "summary": "evaluation",
}

__all__ = [
    "Augmentation",
    "DiscLocalizer",
    "DiscPoints",
    "LocalizationError",
    "LocalizerConfig",
    "LocalizerTraining",
    "PointErrors",
    "complete_chain",
    "evaluate_points",
    "point_errors",
    "read_points",
    "read_reference",
    "summary",
    "train_localizer",
    "train_on_samples",
    "write_points",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}, it has {__all__}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
