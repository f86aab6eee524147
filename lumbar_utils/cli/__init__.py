"""The command line, `lumbar` or `python -m lumbar_utils`: parse, run one command, turn errors into one clear line.

Each module beside `arguments` and `inputs` holds some commands: the options of a command next to what it does, as calls
of the library. Heavy modules are imported by the command that needs them, and only after its paths have been checked:
`lumbar --help` and a mistyped path do not wait for torch.

Exit codes: 0 fine, 1 an error, 2 a command line that cannot be understood, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import OUT_OF_MEMORY, LumbarError, out_of_memory
from . import environment, points, predict, prepare, score, train
from .arguments import WARNING

logger = logging.getLogger(__name__)

DESCRIPTION = f"""\
Grades lumbar spine MRI level by level: 5 conditions x 5 discs x 3 severities,
as in the RSNA 2024 challenge. {WARNING}
"""
EPILOG = """\
all steps on synthetic data:
  lumbar phantom data --studies 120                    make a cohort, competition layout, with its truth
  lumbar localize data --out points.csv                find the five discs, with the shipped localizer
  lumbar train classifier data --run runs/first        train the classifier
  lumbar predict data --weights runs/first --out submission.csv
  lumbar score data/truth/labels.csv submission.csv --predicted-only

`lumbar COMMAND --help` explains each command with examples.
"""


def build_parser() -> argparse.ArgumentParser:
    """The complete parser; each command sets `run_command`, the function to call, and `resumes`."""
    parser = argparse.ArgumentParser(
        prog="lumbar", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"lumbar_utils {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (prepare, points, train, predict, score, environment):
        module.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; `argv` without the program's name."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without the letters of a path ends no run
    args = build_parser().parse_args(argv)
    level = logging.DEBUG if args.debug else logging.INFO if args.verbose else logging.WARNING
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("lumbar_utils").setLevel(level)
    try:
        if getattr(args, "jobs", 0) is None:
            import joblib

            args.jobs = joblib.cpu_count()
        args.run_command(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        resumes = "; the same command resumes where it was" if args.resumes else ""
        print(f"lumbar: interrupted{resumes}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`lumbar score ... | head`): not an error, but stdout cannot be flushed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if args.debug:
            logger.exception("the traceback")
        print(f"lumbar: error: {_one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _one_line(error: Exception) -> str:
    if out_of_memory(error):
        text = f"{OUT_OF_MEMORY}; --debug shows where"
    elif isinstance(error, LumbarError):
        text = str(error)
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    elif isinstance(error, ImportError):
        text = f"{error}; is the library installed completely? pip install -r requirements.txt"
    else:
        text = f"{type(error).__name__}: {error} (unexpected; --debug shows where it came from)"
    return " ".join(text.split())
