"""Execute notebooks 01 to 06 in order on one data folder, and say at the end where to look and how good it was.

This is what `make run` does. Without data a synthetic demo cohort is made first. Each notebook is executed with
the parameters of this run set, and kept, executed, in RUN/notebooks. A notebook is not executed again as long as
its own source, the library, its parameters, the data and the notebooks before it are what they were.

    python tools/run_notebooks.py                                 synthetic demo cohort, runs/demo
    python tools/run_notebooks.py --data /path/to/competition     real data, runs/<name of the folder>
    python tools/run_notebooks.py --run /tmp/quick --smoke        as small as it goes, for tests
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import shutil
import sys
import time
from base64 import b64decode
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lumbar_utils.errors import LumbarError
from lumbar_utils.files import write_text

NOTEBOOKS = ROOT / "notebooks"
COHORT = {"n_studies": 200, "seed": 0, "profile": "demo"}
SMOKE_COHORT = {"n_studies": 12, "seed": 0, "profile": "demo"}
RESULT = {
    "02": "localizer/model.safetensors",
    "03": "crops_found/manifest.json",
    "04": "classifier/manifest.json",
    "05": "submission.csv",
}
"""What a notebook leaves for the next ones, by its number; without it the notebook is executed again."""
CELL_TIMEOUT_S = 9 * 3600
"""A cell may take as long as a Kaggle session; on real data training does."""
ENDING_TIMEOUT_S = 30.0
"""Seconds that a kernel may take to end: one that is killed before its workers end leaves their semaphores behind."""


def main() -> int:
    args = _arguments()
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    started = time.monotonic()
    data, run, synthetic = choose_folders(args.data, args.run)
    manifest = Manifest(run / "manifest.json")
    if synthetic:
        make_cohort(data, SMOKE_COHORT if args.smoke else COHORT, manifest)
    parameters = {"DATA": seen_by_notebooks(data), "RUN": seen_by_notebooks(run), "SMOKE": args.smoke}
    notebooks = sorted(NOTEBOOKS.glob("0*.ipynb"))
    fingerprint = fingerprint_of_inputs(data, parameters)
    for number, path in enumerate(notebooks, start=1):
        title = f"[{number}/{len(notebooks)}] {path.stem}"
        fingerprint = digest(fingerprint, source_of(path))  # of this notebook and of those before it
        if args.only and not path.stem.startswith(tuple(args.only)):
            continue
        executed = run / "notebooks" / path.name
        kept = executed.is_file() and (run / RESULT.get(path.stem[:2], ".")).exists()
        if kept and not args.force and manifest.is_done(path.stem, fingerprint):
            print(f"{title}: nothing changed since {manifest.when(path.stem)}, not executed again", flush=True)
            continue
        seconds = execute(path, executed, parameters, title)
        if seconds is None:
            return 1
        save_figures(executed, run / "figures")
        manifest.note(path.stem, fingerprint, seconds)
        print(f"{title}: {seconds:.0f} s", flush=True)
    print_ending(data, run, synthetic, time.monotonic() - started)
    return 0


def choose_folders(data: str, run: str) -> tuple[Path, Path, bool]:
    """(data folder, run folder, whether the data are the demo cohort made here)."""
    from lumbar_utils.kaggle import find_competition_folder, holds_competition_tables

    given = Path(data).expanduser().resolve() if data else find_competition_folder()
    if given is not None and not holds_competition_tables(given):
        sys.exit(f"{given} holds neither train_series_descriptions.csv nor test_series_descriptions.csv")
    if given is None:
        folder = Path(run).expanduser().resolve() if run else ROOT / "runs" / "demo"
        print(f"No data given: a synthetic demo cohort in {_short(folder / 'cohort')}", flush=True)
        return folder / "cohort", folder, True
    folder = Path(run).expanduser().resolve() if run else ROOT / "runs" / given.name
    print(f"Data: {given}", flush=True)
    return given, folder, False


def seen_by_notebooks(path: Path) -> str:
    """A path as the parameters give it: relative inside the checkout, so that no machine's folders are stored."""
    return os.path.relpath(path, NOTEBOOKS) if path.is_relative_to(ROOT) else str(path)


def make_cohort(folder: Path, wanted: dict, manifest: Manifest) -> None:
    """The demo cohort, unless the same one is there, made by the same code."""
    from lumbar_utils.phantom.cohort import generate_cohort

    code = digest(*(path.read_bytes() for path in sorted((ROOT / "lumbar_utils" / "phantom").glob("*.py"))))
    if manifest.cohort != code and (folder / "SYNTHETIC.md").is_file():
        shutil.rmtree(folder)
    made = generate_cohort(folder, **wanted, n_jobs=-1, overwrite=True, progress=sys.stderr.isatty())
    manifest.note_cohort(code)
    if made["reused"]:
        print(f"The cohort of {wanted['n_studies']} studies is there already, not made again", flush=True)
    else:
        print(f"{wanted['n_studies']} studies in {made['n_files']} DICOM files: {made['seconds']:.0f} s", flush=True)


def execute(path: Path, executed: Path, parameters: dict, title: str) -> float | None:
    """Run one notebook and keep it; seconds taken, or None after an error (which has been printed)."""
    import nbformat
    from nbclient import NotebookClient
    from tqdm import tqdm

    book = nbformat.read(path, as_version=4)
    inject_parameters(book, parameters)
    cells = sum(cell.cell_type == "code" for cell in book.cells)
    started = time.monotonic()
    # The kernel inherits this: it must find the library of this checkout, and start from this environment.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    with tqdm(total=cells, desc=title, unit="cell", leave=False, disable=not sys.stderr.isatty()) as bar:
        client = NotebookClient(
            book,
            timeout=CELL_TIMEOUT_S,
            kernel_name="python3",
            resources={"metadata": {"path": str(NOTEBOOKS)}},
            extra_arguments=["--IPKernelApp.log_level=40"],  # it warns of unencrypted TCP, which stays on this machine
            on_cell_executed=lambda **_: bar.update(),
        )
        client.create_kernel_manager().shutdown_wait_time = ENDING_TIMEOUT_S
        try:
            client.execute()
            issue = ""
        except Exception as error:  # of the cell, of a kernel that was killed, of nbclient while it cleans up after it
            issue = f"{getattr(error, 'ename', type(error).__name__)}: {getattr(error, 'evalue', error)}"
    book.metadata.pop("widgets", None)
    write_text(executed, nbformat.writes(book))
    if issue:
        print(
            f"{title}: failed after {time.monotonic() - started:.0f} s: {issue}\nsee {_short(executed)}",
            file=sys.stderr,
        )
        return None
    return time.monotonic() - started


def inject_parameters(book, parameters: dict) -> None:
    """Put a cell with this run's values behind the cell tagged `parameters`, for the names which that one assigns."""
    import nbformat

    for index, cell in enumerate(book.cells):
        if "parameters" in cell.metadata.get("tags", []):
            values = {name: value for name, value in parameters.items() if name in assigned_names(cell.source)}
            lines = ["# Set by tools/run_notebooks.py", *(f"{name} = {value!r}" for name, value in values.items())]
            new = nbformat.v4.new_code_cell("\n".join(lines), metadata={"tags": ["injected-parameters"]})
            book.cells.insert(index + 1, new)
            return
    raise SystemExit("the notebook has no cell tagged 'parameters'")


def assigned_names(source: str) -> set[str]:
    """Names that a cell assigns at its top level."""
    names = set()
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def fingerprint_of_inputs(data: Path, parameters: dict) -> str:
    """Of what every notebook depends on: library, shipped weights, requirements, parameters, the data's tables."""
    sources = sorted(p for p in (ROOT / "lumbar_utils").rglob("*.py") if "cli" not in p.parts)
    sources += sorted(p for p in (ROOT / "lumbar_utils" / "weights").rglob("*") if p.is_file())
    tables = [p for p in sorted(data.glob("*.csv")) + sorted(data.glob("*.json"))]
    files = [*sources, ROOT / "requirements.txt", *tables]
    return digest(json.dumps(parameters, sort_keys=True), *(p.name + digest(p.read_bytes()) for p in files))


def source_of(path: Path) -> str:
    """A notebook's cells without outputs."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return json.dumps([(cell["cell_type"], "".join(cell["source"])) for cell in cells])


def save_figures(executed: Path, folder: Path) -> None:
    """Every picture of an executed notebook as a file."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{executed.stem}_[0-9][0-9].png"):
        old.unlink()
    outputs = [o for cell in json.loads(executed.read_text("utf-8"))["cells"] for o in cell.get("outputs", [])]
    pictures = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    for number, picture in enumerate(pictures, start=1):
        text = picture if isinstance(picture, str) else "".join(picture)
        (folder / f"{executed.stem}_{number:02}.png").write_bytes(b64decode(text))


def print_ending(data: Path, run: Path, synthetic: bool, seconds: float) -> None:
    """Where to look, and how good it was."""
    minutes, rest = divmod(round(seconds), 60)
    print(f"\nDone in {minutes} min {rest} s on {'synthetic data' if synthetic else data}. Look at")
    left = {
        "notebooks": "the six notebooks, executed",
        "figures": "their pictures",
        "submission.csv": "the test part, graded",
        "classifier": "weights, configuration, learning curve, out-of-fold predictions",
        "localizer": "the localizer that was used, and the points it found",
    }
    places = {_short(run / name): what for name, what in left.items() if (run / name).exists()}
    for place, what in places.items():
        print(f"  {place:<{max(map(len, places))}}  {what}")
    for title, scores in scores_beside_references(data, run).items():
        print(f"\nScore {title} (lower is better)")
        for name, score in scores.items():
            print(f"  {name:<16}{score.total:.4f}")


def scores_beside_references(data: Path, run: Path) -> dict[str, dict]:
    """Title -> name -> `Score`, of the out-of-fold predictions and, where its truth is known, of the test part."""
    from lumbar_utils.errors import DataError
    from lumbar_utils.evaluation.held_out import OUT_OF_FOLD, TEST, held_out_studies
    from lumbar_utils.evaluation.tables import compare
    from lumbar_utils.studies.study import CompetitionFolder

    folder = CompetitionFolder.open(data)
    results = {}
    for title, part in (("out of fold", OUT_OF_FOLD), ("on the test part", TEST)):
        try:
            graded = held_out_studies(folder, run, parts=[part])
        except DataError:  # not predicted yet, or nobody knows the labels
            continue
        scores = compare(folder, graded.study_ids, graded.labels, graded.probabilities, name="this run")
        results[f"{title}, {len(graded)} studies"] = scores
    return results


class Manifest:
    """Which notebook was executed from which inputs, and when."""

    def __init__(self, path: Path):
        self.path = path
        try:
            content = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            content = {}
        self.cohort: str = content.get("cohort", "")
        self.notebooks: dict[str, dict] = content.get("notebooks", {})

    def is_done(self, name: str, fingerprint: str) -> bool:
        return self.notebooks.get(name, {}).get("fingerprint") == fingerprint

    def when(self, name: str) -> str:
        return self.notebooks[name]["finished"]

    def note(self, name: str, fingerprint: str, seconds: float) -> None:
        finished = time.strftime("%Y-%m-%d %H:%M")
        self.notebooks[name] = {"fingerprint": fingerprint, "seconds": round(seconds, 1), "finished": finished}
        self._write()

    def note_cohort(self, code: str) -> None:
        self.cohort = code
        self._write()

    def _write(self) -> None:
        write_text(self.path, json.dumps({"cohort": self.cohort, "notebooks": self.notebooks}, indent=1))


def digest(*parts: str | bytes) -> str:
    """SHA-256 over parts, hexadecimal."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="a competition folder (default: Kaggle's mounts, else synthetic)")
    parser.add_argument("--run", default="", help="run folder (default: runs/demo, or runs/<name of the data folder>)")
    parser.add_argument("--only", nargs="+", metavar="NN", help="numbers of notebooks, for example 01 02")
    parser.add_argument("--smoke", action="store_true", help="as small as it goes")
    parser.add_argument("--force", action="store_true", help="execute also what did not change")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LumbarError as issue:
        sys.exit(f"error: {issue}")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; what was finished is kept, the same command goes on from there")
