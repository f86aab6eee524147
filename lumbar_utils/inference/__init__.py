"""From studies to `submission.csv`: the predictor, the run under its deadline, the resume log."""

from .predictor import Predictor
from .run import InferenceRun, run_inference
from .submission import StudyPrediction, write_submission

__all__ = ["InferenceRun", "Predictor", "StudyPrediction", "run_inference", "write_submission"]
