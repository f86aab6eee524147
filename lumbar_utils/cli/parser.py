"""What `lumbar` understands: commands, options, and the texts that teach them.

Nothing heavy is imported here; `lumbar --help` must answer at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from .. import __version__
from .environment import add_doctor, add_kaggle

WARNING = "Research software. Not a medical device, not for diagnosis."

DESCRIPTION = f"""\
Grades lumbar spine MRI level by level: 5 conditions x 5 discs x 3 severities,
as in the RSNA 2024 challenge. {WARNING}
"""

EPILOG = """\
the whole road on synthetic data:
  lumbar phantom data --studies 120                    make a cohort, competition layout, with its truth
  lumbar localize data --out points.csv                find the five discs, with the localizer that ships
  lumbar train classifier data --run runs/first        learn to grade them
  lumbar predict data --weights runs/first --out submission.csv
  lumbar score data/truth/labels.csv submission.csv --predicted-only

`lumbar COMMAND --help` explains each command with examples.
"""

PATH_HELP = (
    "a competition folder, a tree of DICOM files, one study, one series, or one file "
    "(default: the competition's data among Kaggle's mounts)"
)


def build_parser() -> argparse.ArgumentParser:
    """The complete parser; each command sets `command` and, for train, `part`."""
    parser = argparse.ArgumentParser(
        prog="lumbar", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"lumbar_utils {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_add_phantom, _add_localize, _add_crops, _add_train, _add_predict, _add_score):
        add(commands)
    add_doctor(commands, _command)
    add_kaggle(commands, _command)
    return parser


def _command(commands, name: str, help: str, description: str, epilog: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    talk = parser.add_argument_group("talking")
    talk.add_argument("--verbose", action="store_true", help="say what is going on")
    talk.add_argument("--debug", action="store_true", help="say everything; a traceback on error")
    talk.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bars")
    return parser


def _add_phantom(commands) -> None:
    parser = _command(
        commands,
        "phantom",
        "make a synthetic cohort",
        "Write a synthetic cohort: real DICOM files and tables in the competition's layout, and the truth\n"
        "(disc positions, latent anatomy, how often each label is given) in OUT/truth. Same seed, same bytes.",
        "examples:\n"
        "  lumbar phantom data --studies 120\n"
        "  lumbar phantom big --studies 2000 --seed 7 --profile rsna --jobs 8\n\n"
        "profiles:\n"
        "  demo   small matrices and few slices; a study a second on 2 cores\n"
        "  rsna   matrices, slice counts and spacings of the real set; a study in five seconds",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder of the cohort")
    parser.add_argument("--studies", type=_positive, default=120, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=_count, default=0, metavar="S", help="default: %(default)s")
    parser.add_argument("--profile", choices=("demo", "rsna"), default="demo", help="default: %(default)s")
    parser.add_argument(
        "--randomise",
        action="store_true",
        help="people, contrasts and artefacts far beyond reality, to test how much a localizer bears",
    )
    parser.add_argument(
        "--test-fraction", type=_fraction, default=None, metavar="F", help="share of studies in the test part"
    )
    _add_jobs(parser)


def _add_localize(commands) -> None:
    parser = _command(
        commands,
        "localize",
        "find the five discs",
        "Find the canal point of the five lumbar discs on the sagittal series and write them as a table:\n"
        "study_id, series_id, level, x, y, z (patient coordinates LPS, mm), confidence (0..1), flag\n"
        '("" when fine, else for example "interpolated"; "low_confidence" at all five when the whole spine may be named one\n'
        "level too high or too low). The localizer that ships with the library has learnt from synthetic phantoms; it is\n"
        "used unless --weights names another one.",
        "examples:\n"
        "  lumbar localize data --out points.csv                       all studies of a competition folder\n"
        "  lumbar localize scans/patient1 --out points.csv             one study or one series\n"
        "  lumbar localize scans --weights runs/first --out points.csv",
    )
    _add_path(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="CSV", help="the table to write")
    _add_localizer_weights(parser)
    _add_jobs(parser)


def _add_crops(commands) -> None:
    parser = _command(
        commands,
        "crops",
        "cut the region around each disc",
        "Cut a box around each disc from every view, in one anatomical orientation, and keep them in a cache\n"
        "folder that training reads. What is there already is not made again.",
        "examples:\n"
        "  lumbar crops data --out runs/first/crops\n"
        "  lumbar crops data --points points.csv --out crops --jobs 8\n\n"
        "boxes (through-plane x in-plane, mm): sagittal T2 30 x 70 x 70, axial T2 30 x 70 x 70,\n"
        "sagittal T1 90 x 70 x 70.",
    )
    _add_path(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the cache folder")
    parser.add_argument("--points", type=Path, metavar="CSV", help="discs found before by `lumbar localize`")
    _add_size(parser)
    _add_localizer_weights(parser)
    _add_jobs(parser)


def _add_size(parser: argparse.ArgumentParser) -> None:
    words = "samples across the 70 mm of a crop (default: 64); 48 suits a CPU, 96 and more a GPU"
    parser.add_argument("--size", type=_positive, metavar="N", help=words)


def _add_train(commands) -> None:
    parser = commands.add_parser(
        "train",
        help="train the localizer or the classifier",
        description="Train one of the two networks. Both leave weights and their configuration in the run folder.",
        epilog="examples:\n"
        "  lumbar train localizer data --run runs/first\n"
        "  lumbar train classifier data --run runs/first --epochs 20",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = parser.add_subparsers(dest="part", metavar="localizer|classifier", required=True)
    localizer = _command(
        parts,
        "localizer",
        "the localizer",
        "Fine-tune the localizer that ships with the library on the canal points of train_label_coordinates.csv,\n"
        "cleaned of its traps, and measure its error on one study in five, which is kept out: the same ones that\n"
        "`train classifier` keeps out. What is left in RUN/localizer is used from then on wherever RUN is.",
        "examples:\n"
        "  lumbar train localizer data --run runs/first\n"
        "  lumbar train localizer data --run runs/first --from-scratch",
    )
    classifier = _command(
        parts,
        "classifier",
        "the grading network",
        "Cut crops to learn from around the table's points (RUN/crops), find the discs of the held-out studies as\n"
        "those of new patients (with RUN/localizer where there is one, else with the localizer that ships with the\n"
        "library), cut theirs (RUN/crops_found), and train the grading network. With --fold all, one network a fold,\n"
        "their ensemble, and out-of-fold predictions for all studies.",
        "examples:\n"
        "  lumbar train classifier data --run runs/first\n"
        "  lumbar train classifier data --run runs/first --config my.json --epochs 20\n"
        "  lumbar train classifier data --run runs/first --fold all\n"
        "  lumbar train classifier data --run runs/second --denoise runs/first      where first had --fold all\n\n"
        "my.json holds what is to be other than usual, for instance\n"
        '  {"epochs": 20, "classifier": {"family": "2.5d", "slice_pooling": "attention"}, "augment": {"cutmix": 0.3}}\n'
        "and for the plain network that the design began with\n"
        '  {"classifier": {"head": "unified", "split_sides": false, "auxiliary": false, "dropout": 0,\n'
        '   "view_dropout": 0}}\n'
        "unless it names augment.shift_mm, crops are shifted by as much as the localizer errs on the held-out studies.\n\n"
        "on several GPUs, once the crops are there (with its own --config and, after --fold all, --all-folds):\n"
        "  accelerate launch --multi_gpu --num_processes 2 -m lumbar_utils.training runs/first/crops data/train.csv \\\n"
        "      runs/first/classifier --found runs/first/crops_found",
    )
    for sub in (localizer, classifier):
        sub.add_argument("path", type=Path, nargs="?", metavar="DATA", help="a competition folder, real or synthetic")
        sub.add_argument("--run", type=Path, required=True, metavar="RUN", help="the run folder, such as runs/first")
        sub.add_argument("--seed", type=_count, metavar="S", help="instead of the configuration's; the same for both")
        _add_device(sub)
        _add_jobs(sub)
    localizer.add_argument("--fold", type=_count, metavar="N", help="the fold to hold out, 0 to 4 (default: 0)")
    localizer.add_argument("--steps", type=_positive, metavar="N", help="optimiser steps")
    localizer.add_argument(
        "--from-scratch", action="store_true", help="do not start from the localizer that ships with the library"
    )
    classifier.add_argument(
        "--fold", type=_fold, metavar="N", help="the fold to hold out, 0 to 4 (default: 0), or all: one network a fold"
    )
    classifier.add_argument("--points", type=Path, metavar="CSV", help="discs found before by `lumbar localize`")
    _add_size(classifier)
    classifier.add_argument("--config", type=Path, metavar="JSON", help="fields of train.TrainConfig; the rest default")
    classifier.add_argument(
        "--denoise", type=Path, metavar="RUN", help="leave out labels hardly possible by RUN, trained with --fold all"
    )
    classifier.add_argument("--epochs", type=_positive, metavar="N", help="instead of the configuration's")


def _add_predict(commands) -> None:
    parser = _command(
        commands,
        "predict",
        "grade studies",
        "Read, localise, crop and grade; write all 25 rows of every study. A study with missing views or broken\n"
        f"files is graded as far as it goes, and a log says what was missing.\n{WARNING}",
        "examples:\n"
        "  lumbar predict data --weights runs/first --out submission.csv      the test part of a competition folder\n"
        "  lumbar predict scans --weights runs/first --out grades.csv         any tree of DICOM files\n"
        "  lumbar predict data --weights runs/first --report reports          then open reports/index.html\n"
        "  lumbar predict data --weights runs/first --hours 2 --mirror        whole and in time, whatever happens\n\n"
        "beside submission.csv it writes submission_log.csv (study, what was wrong or missing), submission_log.jsonl\n"
        "(the same for programs, with codes) and submission_crops/ (a picture of the crops of the first studies).\n"
        "a run that was killed goes on where it was when the same command is given again.\n"
        "when time gets short, mirrored studies are given up first, then networks of an ensemble, least weight first;\n"
        "what is left when it is over gets the class prior. the log says what was given up, when and why.",
    )
    _add_path(parser)
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="RUN",
        help="a run folder with classifier/ (one network, or an ensemble.json), and localizer/ unless the shipped disc "
        "localizer is to be used "
        "(default: runs/demo, then Kaggle's data sets)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("submission.csv"),
        metavar="CSV",
        help="the submission to write (default: submission.csv)",
    )
    parser.add_argument("--part", choices=("test", "train"), default="test", help="of a competition folder")
    parser.add_argument("--mirror", action="store_true", help="grade the mirrored study as well; twice the time")
    parser.add_argument(
        "--hours",
        type=_hours,
        default=9.0,
        metavar="H",
        help="be done within so many hours (default: %(default)g, as Kaggle allows; 0: take any time)",
    )
    parser.add_argument("--pictures", type=_count, default=12, metavar="N", help="crop pictures (default: %(default)s)")
    parser.add_argument(
        "--sr",
        type=Path,
        metavar="DIR",
        help="also write a DICOM structured report per study into DIR; it carries the images' patient and study, names "
        "and ids included, so that an archive can file it (needs highdicom)",
    )
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="an HTML page and a JSON file for every study, and an index.html"
    )
    _add_device(parser)
    _add_jobs(parser)


def _add_score(commands) -> None:
    parser = _command(
        commands,
        "score",
        "the competition's score of a submission",
        "Compute the competition's metric: the mean of three weighted log losses (spinal, foraminal, subarticular)\n"
        "and the any-severe-spinal term. Lower is better; equal probabilities everywhere give about 1.0.",
        "examples:\n"
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


def _add_path(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, nargs="?", metavar="PATH", help=PATH_HELP)


def _add_localizer_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="DIR",
        help="a run folder, or the localizer/ in it (default: the localizer that ships with the library)",
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda (default: cuda where it works)")


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=_positive, metavar="N", help="processes (default: one per core)")


def _positive(text: str) -> int:
    return int(_number(text, int, lambda value: value >= 1, "a whole number, 1 or more"))


def _count(text: str) -> int:
    return int(_number(text, int, lambda value: value >= 0, "a whole number, 0 or more"))


def _fold(text: str) -> int | str:
    return text if text == "all" else int(_number(text, int, lambda value: value >= 0, "a fold's number or all"))


def _hours(text: str) -> float:
    return _number(text, float, lambda value: 0 <= value < 1e6, "a number of hours, 0 or more")


def _fraction(text: str) -> float:
    return _number(text, float, lambda value: 0 <= value < 1, "a number, at least 0 and less than 1")


def _number(text: str, kind: type, fits: Callable[[float], bool], wanted: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
    return value
