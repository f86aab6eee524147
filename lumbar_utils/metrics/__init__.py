"""The competition's score, the loss that follows it, its bootstrap, and calibration by it."""

from .bootstrap import bootstrap_scores
from .calibration import Calibration, cross_fitted, fit_calibration
from .score import (
    Score,
    competition_score,
    metric_frequencies,
    plain_frequencies,
    prediction_table,
    read_predictions,
    score_frames,
    weighted_prior,
)

__all__ = [
    "Calibration",
    "Score",
    "bootstrap_scores",
    "competition_score",
    "cross_fitted",
    "fit_calibration",
    "metric_frequencies",
    "plain_frequencies",
    "prediction_table",
    "read_predictions",
    "score_frames",
    "weighted_prior",
]
