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
    parser = add_command(
        commands,
        "score",
        score,
        help="the competition's score of a submission",
        description="Compute the competition's metric: the mean of three weighted log losses (spinal, foraminal,\n"
        "subarticular) and the any-severe-spinal term. Lower is better; equal probabilities everywhere give about 1.0.",
        epilog="examples:\n"
        "  lumbar score solution.csv submission.csv\n"
        "  lumbar score train.csv runs/first/classifier              its out-of-fold predictions, one fold or all\n"
        "  lumbar score train.csv part.csv --predicted-only          the studies that part.csv names\n\n"
        "SOLUTION is train.csv (study_id and 25 columns of Normal/Mild, Moderate, Severe or empty) or the long form\n"
        "(row_id, normal_mild, moderate, severe, sample_weight). Rows without a label are not scored.",
    )
    parser.add_argument("solution", type=Path, metavar="SOLUTION.csv")
    parser.add_argument(
        "submission", type=Path, metavar="SUBMISSION", help="a CSV file, or the folder of a trained classifier"
    )
    parser.add_argument(
        "--predicted-only", action="store_true", help="score the studies that SUBMISSION names and leave out the rest"
    )


def score(args: argparse.Namespace) -> None:
    """`lumbar score`: print the four terms and the score, beside the references that a run's manifest holds."""
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
