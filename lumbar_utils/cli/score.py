"""`lumbar score`: the competition's metric of two tables, or of a run's out-of-fold predictions."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import inputs
from .arguments import add_command

TITLES = {
    "spinal": "spinal canal",
    "foraminal": "foraminal",
    "subarticular": "subarticular",
    "any_severe_spinal": "any severe spinal",
    "total": "score",
}


def add(commands) -> None:
    """Add the command to the parser's."""
    parser = add_command(commands, "score", score, help="the competition's score of a submission")
    parser.add_argument("solution", type=Path, metavar="SOLUTION.csv")
    about = "a CSV file, or the folder of a trained classifier"
    parser.add_argument("submission", type=Path, metavar="SUBMISSION", help=about)
    about = "score the studies that SUBMISSION names and leave out the rest"
    parser.add_argument("--predicted-only", action="store_true", help=about)


def score(args: argparse.Namespace) -> None:
    """Compute the competition's metric: the mean of three weighted log losses (spinal, foraminal, subarticular) and the
    any-severe-spinal term. Lower is better; equal probabilities everywhere give about 1.0. For a run, the references
    that its manifest holds stand beside its own.

    SOLUTION is train.csv (study_id and 25 columns of Normal/Mild, Moderate, Severe or empty) or the long form (row_id,
    normal_mild, moderate, severe, sample_weight). Rows without a label are not scored.

    examples:
      lumbar score solution.csv submission.csv
      lumbar score train.csv runs/first/classifier              its out-of-fold predictions, one fold or all
      lumbar score train.csv part.csv --predicted-only          the studies that part.csv names
    """
    solution = inputs.read_csv(args.solution)
    submission, references = inputs.predictions(args.submission)
    from ..metrics import score_frames

    only_submitted = args.predicted_only or args.submission.is_dir()
    own = score_frames(solution, submission, only_submitted=only_submitted).to_json()
    columns = {"out-of-fold": own, **references}
    width = 16 if references else 0
    if references:
        print(" " * 18, *(f"{name.replace('_', ' '):>{width}}" for name in columns))
    for term, title in TITLES.items():
        print(f"{title:<18}", *(f"{column[term]:>{width}.6f}" for column in columns.values()))
