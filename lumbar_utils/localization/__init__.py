"""The localizer: sagittal series in, the canal point of each of the five discs in patient millimetres out.

The parts, in the order in which data pass through them: `images` (series -> network input), `network`, `decoding` (heat
maps -> a chain of points), `member_predictions` (several networks, several sizes), `localizer` (`DiscLocalizer`, which
joins them), `points` (`DiscPoints`, the result); for training `samples`, `synthetic` (samples from phantoms),
`augmentation`, `training`; and what came of it: `evaluation`, `calibration`.

Names are loaded on first use, so that code that needs no more than `DiscPoints` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .points import DiscPoints, complete_chain, read_points, write_points

if TYPE_CHECKING:
    from .augmentation import Augmentation
    from .batch import (
        localizer_origin,
        locate_folders,
        locate_studies,
        low_confidence_message,
        open_localizer,
        points_from_table,
        reference_points,
        warn_of_studies_learnt_from,
    )
    from .evaluation import (
        PointErrors,
        calibration_error,
        evaluate_on_images,
        evaluate_points,
        image_summary,
        point_errors,
        read_reference,
        reliability,
        summary,
    )
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
    "PointErrors": "evaluation",
    "calibration_error": "evaluation",
    "evaluate_on_images": "evaluation",
    "evaluate_points": "evaluation",
    "image_summary": "evaluation",
    "localizer_origin": "batch",
    "locate_folders": "batch",
    "locate_studies": "batch",
    "low_confidence_message": "batch",
    "open_localizer": "batch",
    "point_errors": "evaluation",
    "points_from_table": "batch",
    "read_reference": "evaluation",
    "reference_points": "batch",
    "reliability": "evaluation",
    "summary": "evaluation",
    "train_localizer": "training",
    "train_on_samples": "training",
    "warn_of_studies_learnt_from": "batch",
}

__all__ = ["DiscPoints", "complete_chain", "read_points", "write_points", *_HOME]

if not TYPE_CHECKING:  # a module that has `__getattr__` has every name to a type checker

    def __getattr__(name: str):
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}, it has {__all__}")
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
