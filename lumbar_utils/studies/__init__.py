"""Studies on disk: any folder of DICOM files, or the competition's folder with its tables; statistics of a cohort."""

from .annotations import clean_coordinates
from .competition import CompetitionFolder
from .data import Study
from .statistics import (
    MODERATE_PERCENT,
    REAL_PREVALENCE,
    SEVERE_PERCENT,
    label_table,
    point_places,
    rank_correlation,
    series_table,
)
from .study import StudySource, find_studies, load_study

__all__ = [
    "MODERATE_PERCENT",
    "REAL_PREVALENCE",
    "SEVERE_PERCENT",
    "CompetitionFolder",
    "Study",
    "StudySource",
    "clean_coordinates",
    "find_studies",
    "label_table",
    "load_study",
    "point_places",
    "rank_correlation",
    "series_table",
]
