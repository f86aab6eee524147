"""Lumbar spine MRI, graded level by level: from a DICOM folder to the RSNA 2024 submission.

    import lumbar_utils as lu
    study = lu.load_study(lu.find_studies("path/to/dicom")[0])
    discs = lu.DiscLocalizer.shipped().locate(study)
    crops = lu.extract_crops(study, discs, lu.CropSpec())

The packages are the steps of the method, in this order: `dicom`, `studies`, `phantom`, `localization`, `crops`,
`metrics`, `models`, `training`, `inference`, `evaluation`, `explain`, `viz`, `report`, `kaggle`.
Names are loaded on first use, so that `import lumbar_utils` costs nothing and `lumbar --help` answers at once.
Research software: not a medical device, not for diagnosis.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

# What type checkers and IDEs read; `_HOME` says the same to the interpreter, and a test compares them.
if TYPE_CHECKING:
    from . import (
        crops,
        dicom,
        evaluation,
        explain,
        inference,
        kaggle,
        labels,
        localization,
        metrics,
        models,
        phantom,
        report,
        studies,
        training,
        viz,
    )
    from .crops.cache import CropCache, build_crop_cache
    from .crops.extraction import CropSpec, StudyCrops, extract_crops
    from .crops.target_points import TargetPoints, locate_targets
    from .dicom.series import Series
    from .errors import DataError, DicomError, GeometryError, LumbarError
    from .inference.predictor import Predictor
    from .inference.run import run_inference
    from .inference.submission import StudyPrediction, write_submission
    from .localization.localizer import DiscLocalizer
    from .localization.points import DiscPoints
    from .localization.training import train_localizer
    from .metrics.score import Score, competition_score
    from .models.classifier import ClassifierConfig, LumbarClassifier
    from .phantom.cohort import generate_cohort
    from .studies.competition import CompetitionFolder
    from .studies.data import Study
    from .studies.study import find_studies, load_study
    from .training.augmentation import AugmentConfig
    from .training.config import TrainConfig
    from .training.cross_validation import fit_folds
    from .training.train import fit

__version__ = "0.1.0"

_PACKAGES = [
    "crops",
    "dicom",
    "evaluation",
    "explain",
    "inference",
    "kaggle",
    "labels",
    "localization",
    "metrics",
    "models",
    "phantom",
    "report",
    "studies",
    "training",
    "viz",
]
_NAMES = {
    "crops.cache": "CropCache build_crop_cache",
    "crops.extraction": "CropSpec StudyCrops extract_crops",
    "crops.target_points": "TargetPoints locate_targets",
    "dicom.series": "Series",
    "errors": "DataError DicomError GeometryError LumbarError",
    "inference.predictor": "Predictor",
    "inference.run": "run_inference",
    "inference.submission": "StudyPrediction write_submission",
    "localization.localizer": "DiscLocalizer",
    "localization.points": "DiscPoints",
    "localization.training": "train_localizer",
    "metrics.score": "Score competition_score",
    "models.classifier": "ClassifierConfig LumbarClassifier",
    "phantom.cohort": "generate_cohort",
    "studies.competition": "CompetitionFolder",
    "studies.data": "Study",
    "studies.study": "find_studies load_study",
    "training.augmentation": "AugmentConfig",
    "training.config": "TrainConfig",
    "training.cross_validation": "fit_folds",
    "training.train": "fit",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [*_HOME, *_PACKAGES]

if not TYPE_CHECKING:  # a module that has `__getattr__` has every name to a type checker

    def __getattr__(name: str):
        if name in _PACKAGES:
            return import_module(f"{__name__}.{name}")
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted(["__version__", *__all__])
