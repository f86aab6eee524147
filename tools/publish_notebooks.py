"""Copy the executed notebooks of a run over into notebooks/, as they are committed: with figures, without traces.

Left out are the cell with this run's parameters, progress bars, widgets (which show nothing outside a live session) and
times of execution. A notebook that holds an error, an absolute path, a picture by link, a bar short of its end or more
than 3 MB is refused.

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
LINKED_PICTURE = re.compile(r"""!\[[^]\n]*\]\((?!attachment:|data:)[^)\n]*\)|<img[^>\n]*src=["'](?!data:)[^"'\n]*""")
BAR = re.compile(r"\b(\d{1,3})%\|")
"""Of tqdm: how much is done, before the bar itself."""


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
        cell.outputs = [output for output in cell.outputs if not is_passing(output)]
        for output in cell.outputs:
            output.get("data", {}).pop(WIDGET, None)
            if "execution_count" in output:
                output.execution_count = number
    book.metadata.pop("widgets", None)
    book.metadata["language_info"] = {"name": "python"}
    return book


def problem_of(text: str) -> str:
    """What speaks against committing a notebook's JSON, "" when nothing does."""
    if len(text.encode()) > MAX_BYTES:
        return f"{len(text) / 1e6:.1f} MB, at most {MAX_BYTES / 1e6:.0f} MB are wanted"
    book = json.loads(text)
    outputs = outputs_of(book)
    if any(o["output_type"] == "error" for o in outputs):
        return "holds an error"
    shown = json.dumps([o.get("text") or {k: v for k, v in o["data"].items() if "image" not in k} for o in outputs])
    found = ABSOLUTE_PATH.search(shown)
    return f"shows the path {found[0]}" if found else lost_in_a_copy(book)


def lost_in_a_copy(book: dict) -> str:
    """What somebody misses who only reads an executed notebook, in another folder and without a session; "" if nothing.

    Pictures by link, widgets without another form of them, and progress bars that never came to their end.
    """
    texts = [cell["source"] for cell in book["cells"] if cell["cell_type"] == "markdown"]
    texts += [o["data"]["text/html"] for o in outputs_of(book) if "text/html" in o.get("data", {})]
    for text in map("".join, texts):
        if linked := LINKED_PICTURE.search(text):
            return f"shows a picture by its link, {linked[0]}"
    for output in outputs_of(book):
        data = output.get("data", {"text/plain": output.get("text", "")})
        if WIDGET in data and "image/png" not in data:
            return "holds a widget that is gone with its session"
        for line in "".join(data.get("text/plain", "")).split("\n"):
            states = BAR.findall(line)  # a terminal's bar: the last of its states is what stays
            if states and states[-1] != "100":
                return f"holds a progress bar frozen at {states[-1]} %"
    return ""


def outputs_of(book: dict) -> list[dict]:
    return [output for cell in book["cells"] for output in cell.get("outputs", [])]


def is_passing(output: dict) -> bool:
    """Whether an output is a widget without a picture, or what `progress_bar` leaves, `studies: 2/2 study in 00:01`."""
    data = output.get("data", {})
    ended = re.search(r": \d+/\S+ \w+ in [\d:]+$", "".join(data.get("text/plain", "")))
    return (set(data) == {"text/plain"} and ended is not None) or (WIDGET in data and "image/png" not in data)


if __name__ == "__main__":
    sys.exit(main())
