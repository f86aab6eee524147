"""The command line, `lumbar` or `python -m lumbar_utils`: parse, run one command, turn errors into one clear line.

Exit codes: 0 fine, 1 an error, 2 a command line that cannot be understood, 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from ..errors import LumbarError
from .parser import build_parser

logger = logging.getLogger(__name__)

GO_ON = ("phantom", "crops", "train", "predict")
"""Commands that do not begin anew after an interruption."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; `argv` without the program's name."""
    args = build_parser().parse_args(argv)
    level = logging.DEBUG if args.debug else logging.INFO if args.verbose else logging.WARNING
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("lumbar_utils").setLevel(level)
    try:
        from . import commands

        commands.COMMANDS[args.command](args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        # Their journals, caches and checkpoints outlive them; a localizer is trained in one go.
        begins_anew = getattr(args, "part", "") == "localizer"
        goes_on = "; the same command goes on where it was" if args.command in GO_ON and not begins_anew else ""
        print(f"lumbar: interrupted{goes_on}", file=sys.stderr)
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
    if isinstance(error, LumbarError):
        text = str(error)
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    elif isinstance(error, ImportError):
        text = f"{error}; is the library installed completely? pip install -r requirements.txt"
    else:
        text = f"{type(error).__name__}: {error} (not foreseen; --debug shows where it came from)"
    return " ".join(text.split())
