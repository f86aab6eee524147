"""Lumbar spine MRI, graded level by level: from a DICOM folder to the RSNA 2024 submission.

    import lumbar_utils as lu
    study = lu.load_study(lu.find_studies("path/to/dicom")[0])
    discs = lu.DiscLocalizer.shipped().locate(study)
    crops = lu.extract_crops(study, discs, lu.CropSpec())

Names are loaded on first use, so that `import lumbar_utils` costs nothing and `lumbar --help` answers at once.
Research software: not a medical device, not for diagnosis.
"""

from __future__ import annotations

import importlib

from .errors import DataError, DicomError, GeometryError, LumbarError

__version__ = "0.1.0"

_PUBLIC = {
    "dicom": ("Series", "Stack", "read_series", "recognise_view", "scan_headers"),
    "study": ("CompetitionFolder", "Study", "find_studies", "load_study"),
    "phantom.cohort": ("generate_cohort",),
    "localizer": ("DiscLocalizer", "DiscPoints", "LocalizerConfig", "train_localizer"),
    "crops": ("CropSpec", "StudyCrops", "extract_crops"),
    "crop_cache": ("CropCache", "build_crop_cache"),
    "augment": ("AugmentConfig",),
    "classifier": ("ClassifierConfig", "LumbarClassifier"),
    "metrics": ("CompetitionLoss", "Score", "competition_score", "score_frames", "weighted_prior"),
    "train_config": ("TrainConfig",),
    "train": ("fit",),
    "cross_validation": ("fit_folds",),
    "launching": ("launch_training",),
    "predict": ("Predictor", "StudyPrediction", "write_submission"),
    "inference": ("run_inference",),
    "kaggle": ("describe_machine", "find_competition_folder", "prepare_session"),
    "doctor": ("examine",),
}
_MODULES = (*_PUBLIC, "activation", "phantom", "datasets", "errors", "geometry", "labels", "views")
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["DataError", "DicomError", "GeometryError", "LumbarError", *sorted(_HOME)]


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
