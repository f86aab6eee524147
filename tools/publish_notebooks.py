"""Copy the executed notebooks of a run over into notebooks/, as they are committed: with figures, without traces.

Left out are the cell with this run's parameters, progress bars (their widgets show nothing outside a live session),
widget state and times of execution. A notebook that holds an error, an absolute path or more than 3 MB is refused.

    python tools/publish_notebooks.py            from runs/demo
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
MAX_BYTES = 3_000_000
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])/(?!kaggle/)(?:work|root|home|tmp|Users|usr|opt|mnt|var)/[\w./-]+")
WIDGET = "application/vnd.jupyter.widget-view+json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, default=ROOT / "runs" / "demo", help="run folder (runs/demo)")
    executed = sorted((parser.parse_args().run / "notebooks").glob("0*.ipynb"))
    if not executed:
        sys.exit("no executed notebooks there; `make run` makes them")
    for path in executed:
        text = nbformat.writes(without_traces(nbformat.read(path, as_version=4))) + "\n"
        issue = problem_of(text)
        if issue:
            sys.exit(f"{path.name}: {issue}; not published")
        (ROOT / "notebooks" / path.name).write_text(text, "utf-8")
        print(f"notebooks/{path.name}: {len(text) / 1e6:.2f} MB")
    return 0


def without_traces(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook as it is committed; cells are numbered anew, as the parameters' cell is gone."""
    book.cells = [cell for cell in book.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    number = 0
    for cell in book.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        number += 1
        cell.execution_count = number
        cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number
    book.metadata.pop("widgets", None)
    book.metadata["language_info"] = {"name": "python"}
    return book


def problem_of(text: str) -> str:
    """What speaks against committing a notebook's JSON, "" when nothing does."""
    if len(text.encode()) > MAX_BYTES:
        return f"{len(text) / 1e6:.1f} MB, at most {MAX_BYTES / 1e6:.0f} MB are wanted"
    outputs = [o for cell in json.loads(text)["cells"] for o in cell.get("outputs", [])]
    if any(o["output_type"] == "error" for o in outputs):
        return "holds an error"
    shown = json.dumps([o.get("text") or {k: v for k, v in o["data"].items() if "image" not in k} for o in outputs])
    found = ABSOLUTE_PATH.search(shown)
    return f"shows the path {found[0]}" if found else ""


if __name__ == "__main__":
    sys.exit(main())
