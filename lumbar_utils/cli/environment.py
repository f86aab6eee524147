"""`lumbar doctor` and `lumbar kaggle build`: their options, and what they do."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import DataError


def add_doctor(commands, new_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `doctor` to the parser's commands; `new_command` is the parser module's own way of making one."""
    parser = new_command(
        commands,
        "doctor",
        "what a run would meet here",
        "Say what a run would meet here: versions beside the tested ones, device and precision and why, decoders,\n"
        "data, weights, disk, and on Kaggle the time left. Changes nothing. Ends with 1 when something that is needed\n"
        "is missing; warnings alone end with 0.",
        "examples:\n  lumbar doctor\n  lumbar doctor data --run runs/first --json",
    )
    parser.add_argument(
        "path",
        type=Path,
        nargs="?",
        metavar="DATA",
        help="a competition folder, or a tree of DICOM files (default: what would be found)",
    )
    parser.add_argument("--run", type=Path, metavar="RUN", help="the run folder (default: runs/demo)")
    parser.add_argument("--json", action="store_true", help="for machines")


def add_kaggle(commands, new_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `kaggle build` to the parser's commands."""
    kaggle = commands.add_parser(
        "kaggle",
        help="what is uploaded to Kaggle",
        description="Make what is uploaded to Kaggle.",
        epilog="example:\n  lumbar kaggle build dist/kaggle --run runs/demo --owner NAME",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = kaggle.add_subparsers(dest="part", metavar="build", required=True)
    parser = new_command(
        parts,
        "build",
        "the library as a data set, the notebooks as kernels",
        "Make OUT/dataset (library, localizer, wheels of what Kaggle's image lacks, weights of --run) and\n"
        "OUT/kernels/01_eda to 06_error_analysis, with their metadata, and print the commands that push them.",
        "examples:\n"
        "  lumbar kaggle build dist/kaggle --run runs/demo --owner NAME    to grade there with weights from here\n"
        "  lumbar kaggle build dist/kaggle --owner NAME                    to train there",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--run", type=Path, metavar="RUN", help="run whose classifier and localizer are packed")
    parser.add_argument("--owner", default="OWNER", metavar="NAME", help="your name on Kaggle")
    parser.add_argument("--slug", default="lumbar-utils", metavar="SLUG", help="of the data set (default: %(default)s)")
    parser.add_argument(
        "--notebooks", type=Path, metavar="DIR", help="where 01_eda.ipynb and so on lie (default: the clone's)"
    )
    parser.add_argument("--python", default="3.12", metavar="X.Y", help="Kaggle's Python (default: %(default)s)")
    parser.add_argument(
        "--offline", action="store_true", help="ask no registry for wheels; pack what is installed here and fits"
    )


def doctor(args: argparse.Namespace) -> None:
    """`lumbar doctor`: print the report; raises `DataError` after it when there is a issue."""
    from ..kaggle.environment import environment_report

    found = environment_report(args.path or "", args.run or "")
    print(json.dumps(found.to_json(), indent=1) if args.json else found)
    if found.issues:
        sys.stdout.flush()
        raise DataError(f"to be put right: {'; '.join(found.issues)}")


def kaggle(args: argparse.Namespace) -> None:
    """`lumbar kaggle build`: make the folders, and say how to push them."""
    from ..kaggle import build_dataset, build_kernels

    notebooks = _notebooks(args.notebooks)
    options = {"owner": args.owner, "slug": args.slug}
    dataset, lacking = build_dataset(
        args.out / "dataset", args.run, python=args.python, offline=args.offline, **options
    )
    kernels = build_kernels(args.out / "kernels", notebooks, weights_packed=args.run is not None, **options)
    size = sum(path.stat().st_size for path in dataset.rglob("*") if path.is_file()) / 1e6
    print(f"{dataset}: {size:.0f} MB, wheels of {', '.join(_packed(dataset)) or 'nothing'}")
    for package, reason in lacking.items():
        print(f"  NOT packed: {package} ({reason}); files that need it cannot be read on Kaggle")
    if args.owner == "OWNER":
        print("Set your name first: build again with --owner NAME.")
    print("To push (pip install kaggle, and your token):")
    print(f"  kaggle datasets create -p {dataset} --dir-mode zip")
    print(f'  kaggle datasets version -p {dataset} --dir-mode zip -m "what is new"     from the second time on')
    for folder in kernels:
        print(f"  kaggle kernels push -p {folder}")


def _packed(dataset: Path) -> list[str]:
    return [" ".join(path.name.split("-")[:2]) for path in sorted((dataset / "wheels").glob("*.whl"))]


def _notebooks(given: Path | None) -> Path:
    from ..kaggle.session import library_folder

    places = [given] if given is not None else [library_folder() / "notebooks", Path("notebooks")]
    for place in places:
        if any(place.glob("01_*.ipynb")):
            return place
    looked = ", ".join(map(str, places))
    raise DataError(f"no notebooks in {looked}; they come with a clone, say where they are with --notebooks DIR")
