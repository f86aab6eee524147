"""How good predictions are: tables, agreement as readers are measured, subgroups."""

from .agreement import agreement_table, agreement_words
from .held_out import OUT_OF_FOLD, TEST, HeldOutStudies, held_out_studies
from .subgroups import confidence_subgroups, error_subgroups, level_subgroups, loss_by_traits, scanner_traits
from .tables import (
    by_level,
    calibration_error,
    compare,
    grade_table,
    oracle_frequencies,
    reference_predictions,
    reliability,
    score_frame,
    truth_labels,
    worst_cases,
)

__all__ = [
    "OUT_OF_FOLD",
    "TEST",
    "HeldOutStudies",
    "agreement_table",
    "agreement_words",
    "by_level",
    "calibration_error",
    "compare",
    "confidence_subgroups",
    "error_subgroups",
    "grade_table",
    "held_out_studies",
    "level_subgroups",
    "loss_by_traits",
    "oracle_frequencies",
    "reference_predictions",
    "reliability",
    "scanner_traits",
    "score_frame",
    "truth_labels",
    "worst_cases",
]
