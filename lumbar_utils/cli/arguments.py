"""Arguments that several commands share, their types, and how a command is added to the parser."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from math import inf
from pathlib import Path

AS_WRITTEN = argparse.RawDescriptionHelpFormatter
WARNING = "Research software. Not a medical device, not for diagnosis."


def number(kind: type, low: float, high: float, expected: str) -> Callable[[str], float]:
    """A type for argparse: a number from `low` to below `high`; `expected` describes it in the error."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value < high:
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return parse


POSITIVE = number(int, 1, inf, "a whole number, 1 or more")
COUNT = number(int, 0, inf, "a whole number, 0 or more")

PATH = {
    "type": Path,
    "nargs": "?",
    "metavar": "PATH",
    "help": "a competition folder, a tree of DICOM files, one study, one series, or one file "
    "(default: the competition's data among Kaggle's mounts)",
}
LOCALIZER = {
    "type": Path,
    "metavar": "DIR",
    "help": "a run folder, or the localizer/ in it (default: the localizer that ships with the library)",
}
POINTS = {
    "type": Path,
    "metavar": "POINTS",
    "help": "known discs: a table of `lumbar localize` or like train_label_coordinates.csv, a 3D Slicer point list "
    "(.mrk.json), or a folder of these",
}
SIZE = {
    "type": POSITIVE,
    "metavar": "N",
    "help": "samples across the 70 mm of a crop (default: 64); 48 suits a CPU, 96 and more a GPU",
}
DEVICE = {"metavar": "NAME", "help": "cpu or cuda (default: cuda where it works)"}
JOBS = {"type": POSITIVE, "metavar": "N", "help": "processes (default: one per core)"}


def add_command(
    commands, name: str, run: Callable[[argparse.Namespace], None], *, help: str, resumes: bool = False
) -> argparse.ArgumentParser:
    """Add a command that calls `run`, described by its docstring; if it `resumes`, the same goes on after a stop."""
    parser = commands.add_parser(name, formatter_class=AS_WRITTEN, help=help, description=inspect.getdoc(run))
    parser.set_defaults(run_command=run, resumes=resumes)
    messages = parser.add_argument_group("messages")
    messages.add_argument("--verbose", action="store_true", help="log each step")
    messages.add_argument("--debug", action="store_true", help="log everything; a traceback on error")
    messages.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bars")
    return parser


def add_group(commands, name: str, parts: str, **texts: str):
    """Add a command that has commands of its own, `parts` in its help; returns what to add those to."""
    parser = commands.add_parser(name, formatter_class=AS_WRITTEN, **texts)
    return parser.add_subparsers(dest="part", metavar=parts, required=True)
