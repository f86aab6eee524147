"""The first code cell of every notebook: the same in all, and the library is found in all three places."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
MOUNTS = ("lumbar-utils", "datasets/somebody/lumbar-utils", "datasets/somebody/lumbar-utils/inner")
FAKE = """
class kaggle:
    def environment_report(*args, notes): return __file__
    def prepare_session(): return ()
"""


def first_cell(path: Path) -> str:
    """The first code cell behind the parameters."""
    cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    return "".join(next(c for c in cells if "parameters" not in c["metadata"].get("tags", []))["source"])


def library_seen_by(cell: str, folder: Path, *, path: Path | None = None) -> Path:
    """Run the cell in a folder, with no library installed but what lies on `path`; where it found the library."""
    python = [sys.executable, "-S", "-c", 'DATA = RUN = WEIGHTS = ""\n' + cell]
    environment = os.environ | {"PYTHONPATH": str(path or "")}
    done = subprocess.run(python, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(folder, done.stdout.strip()).resolve().parent.parent


def fake_library(folder: Path) -> Path:
    (folder / "lumbar_utils").mkdir(parents=True)
    (folder / "lumbar_utils" / "__init__.py").write_text(FAKE)
    return folder


def test_all_notebooks_begin_alike():
    cells = {first_cell(path).replace(", WEIGHTS", "") for path in NOTEBOOKS}
    assert len(cells) == 1
    assert "prepare_session()" in cells.pop()


@pytest.mark.parametrize("mount", MOUNTS)
def test_the_attached_library_is_found_under_every_form_of_mount(mount, tmp_path):
    library = fake_library(tmp_path / "kaggle" / "input" / mount)
    (tmp_path / "kaggle" / "working").mkdir()
    (tmp_path / "kaggle" / "input" / "rsna" / "train_images" / "1" / "2").mkdir(parents=True)
    cell = first_cell(NOTEBOOKS[4]).replace("/kaggle/", f"{tmp_path}/kaggle/")
    assert library_seen_by(cell, tmp_path / "kaggle" / "working") == library


def test_a_clone_is_found_one_folder_up_and_what_pip_installed_comes_first(tmp_path):
    clone, installed = fake_library(tmp_path / "clone"), fake_library(tmp_path / "site")
    (clone / "notebooks").mkdir()
    cell = first_cell(NOTEBOOKS[0])
    assert library_seen_by(cell, clone / "notebooks") == clone
    assert library_seen_by(cell, clone / "notebooks", path=installed) == installed
