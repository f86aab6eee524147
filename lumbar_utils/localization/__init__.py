"""The localizer: sagittal series in, the canal point of each of the five discs in patient millimetres out.

In the order of the data: `preprocessing` (series -> network input), `network`, `heat_maps` (predictions of several
networks, averaged), `decoding` (heat maps -> a chain of points), `localizer` (`DiscLocalizer`, which joins them),
`points` (`DiscPoints`, the result, and one chain from several series); `many_studies` runs it on a cohort, `exchange`
renames points and takes them to and from 3D Slicer. For training `samples`, `synthetic_samples` (of phantoms),
`augmentation`, `training`, `calibration` (of the confidence); `evaluation` measures it.

Names are loaded on first use, so that code that needs no more than `DiscPoints` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .points import DiscPoints, complete_chain, read_points, write_points

if TYPE_CHECKING:
    from .augmentation import Augmentation
    from .evaluation import (
        calibration_error,
        evaluate_on_images,
        evaluate_points,
        image_summary,
        point_errors,
        read_reference,
        reliability,
        summary,
    )
    from .exchange import read_any_points, read_markups, shift_levels, write_markups
    from .localizer import DiscLocalizer, localizer_origin, open_localizer
    from .many_studies import (
        locate_folders,
        locate_out_of_fold,
        locate_studies,
        low_confidence_message,
        points_from_table,
        reference_points,
    )
    from .network import LocalizerConfig
    from .preprocessing import LocalizationError
    from .training import LocalizerTraining, train_localizer, train_on_samples

_NAMES = {
    "augmentation": "Augmentation",
    "evaluation": "calibration_error evaluate_on_images evaluate_points image_summary point_errors read_reference "
    "reliability summary",
    "exchange": "read_any_points read_markups shift_levels write_markups",
    "localizer": "DiscLocalizer localizer_origin open_localizer",
    "many_studies": "locate_folders locate_out_of_fold locate_studies low_confidence_message points_from_table "
    "reference_points",
    "network": "LocalizerConfig",
    "preprocessing": "LocalizationError",
    "training": "LocalizerTraining train_localizer train_on_samples",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = ["DiscPoints", "complete_chain", "read_points", "write_points", *_HOME]

if not TYPE_CHECKING:  # a module that has `__getattr__` has every name to a type checker

    def __getattr__(name: str):
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}, it has {__all__}")
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
