"""The classifier: encoders, pooling over slices, heads; its weights on disk, and ensembles of runs."""

from .classifier import ClassifierConfig, LumbarClassifier
from .ensemble import Ensemble, member_folders, run_of
from .typicality import fit_typicality

__all__ = ["ClassifierConfig", "Ensemble", "LumbarClassifier", "fit_typicality", "member_folders", "run_of"]
