"""`lumbar doctor` and `lumbar kaggle build`: what a run will have here, and what is uploaded to Kaggle."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..errors import DataError
from .arguments import add_command, add_group


def add(commands) -> None:
    """Add both commands to the parser's."""
    parser = add_command(commands, "doctor", doctor, help="report what a run will have here")
    about = "a competition folder, or a tree of DICOM files (default: what would be found)"
    parser.add_argument("path", type=Path, nargs="?", metavar="DATA", help=about)
    parser.add_argument("--run", type=Path, metavar="RUN", help="the run folder (default: runs/demo)")
    parser.add_argument("--json", action="store_true", help="for programs")

    parts = add_group(
        commands,
        "kaggle",
        "build",
        help="what is uploaded to Kaggle",
        description="Make what is uploaded to Kaggle.",
        epilog="example:\n  lumbar kaggle build dist/kaggle --run runs/demo --owner NAME",
    )
    parser = add_command(parts, "build", build, help="the library as a data set, the notebooks as kernels")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--run", type=Path, metavar="RUN", help="run whose classifier and localizer are packed")
    parser.add_argument("--owner", default="OWNER", metavar="NAME", help="your name on Kaggle")
    parser.add_argument("--slug", default="lumbar-utils", metavar="SLUG", help="of the data set (default: %(default)s)")
    about = "where 01_eda.ipynb and so on lie (default: the clone's)"
    parser.add_argument("--notebooks", type=Path, metavar="DIR", help=about)
    parser.add_argument("--python", default="3.12", metavar="X.Y", help="Kaggle's Python (default: %(default)s)")
    about = "ask no registry for wheels; pack what is installed here and fits"
    parser.add_argument("--offline", action="store_true", help=about)


def doctor(args: argparse.Namespace) -> None:
    """Report what a run will have here: versions beside the tested ones, device and precision and why, decoders, data,
    weights, disk, and on Kaggle the time left. Changes nothing. Ends with 1 when something that is needed is missing;
    warnings alone end with 0.

    examples:
      lumbar doctor
      lumbar doctor data --run runs/first --json
    """
    from ..kaggle import environment_report

    report = environment_report(args.path or "", args.run or "")
    print(json.dumps(report.to_json(), indent=1) if args.json else report)
    if report.issues:
        sys.stdout.flush()
        raise DataError("; ".join(report.issues))


def build(args: argparse.Namespace) -> None:
    """Make OUT/dataset (library, localizer, wheels of what Kaggle's image lacks, weights of --run) and
    OUT/kernels/01_eda to 06_error_analysis, with their metadata, and print the commands that push them.

    examples:
      lumbar kaggle build dist/kaggle --run runs/demo --owner NAME    to predict there with weights from here
      lumbar kaggle build dist/kaggle --owner NAME                    to train there
    """
    from ..kaggle import build_dataset, build_kernels
    from ..kaggle.wheels import library_folder

    places = [args.notebooks] if args.notebooks else [library_folder() / "notebooks", Path("notebooks")]
    notebooks = next((place for place in places if any(place.glob("01_*.ipynb"))), None)
    if notebooks is None:
        looked = ", ".join(map(str, places))
        raise DataError(f"no notebooks in {looked}; they come with a clone, give their folder with --notebooks DIR")
    names = {"owner": args.owner, "slug": args.slug}
    dataset, lacking = build_dataset(args.out / "dataset", args.run, python=args.python, offline=args.offline, **names)
    kernels = build_kernels(args.out / "kernels", notebooks, weights_packed=args.run is not None, **names)
    size = sum(path.stat().st_size for path in dataset.rglob("*") if path.is_file()) / 1e6
    wheels = [" ".join(path.name.split("-")[:2]) for path in sorted((dataset / "wheels").glob("*.whl"))]
    print(f"{dataset}: {size:.0f} MB, wheels of {', '.join(wheels) or 'nothing'}")
    for package, reason in lacking.items():
        print(f"  NOT packed: {package} ({reason}); files that need it cannot be read on Kaggle")
    if args.owner == "OWNER":
        print("Set your name first: build again with --owner NAME.")
    print("To push (pip install kaggle, and your token):")
    print(f"  kaggle datasets create -p {dataset} --dir-mode zip")
    print(f'  kaggle datasets version -p {dataset} --dir-mode zip -m "what is new"     from the second time on')
    for folder in kernels:
        print(f"  kaggle kernels push -p {folder}")
