"""Where Kaggle mounts competitions and data sets, and where it looks for a submission.

Kaggle mounts a competition either as `/kaggle/input/<slug>` or as `/kaggle/input/competitions/<slug>`, and a
data set as `/kaggle/input/<slug>` or `/kaggle/input/datasets/<owner>/<slug>`, depending on the image. Owners
also rename and re-upload. So a folder is known by the tables that it holds, and is searched for.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

KAGGLE = Path(os.environ.get("LUMBAR_KAGGLE") or "/kaggle")
"""LUMBAR_KAGGLE is for rehearsals on machines where nothing can be mounted at `/kaggle`."""
KAGGLE_INPUT = KAGGLE / "input"
KAGGLE_WORKING = KAGGLE / "working"
COMPETITION_SLUG = "rsna-2024-lumbar-spine-degenerative-classification"
SERIES_TABLES = ("train_series_descriptions.csv", "test_series_descriptions.csv")
SEARCH_DEPTH = 3
"""`datasets/<owner>/<slug>` is the deepest mount; below that lie hundreds of thousands of DICOM files."""


def find_competition_folder(root: Path | str = KAGGLE_INPUT) -> Path | None:
    """The competition's folder among the mounts in `root`, or None: it holds one of `SERIES_TABLES`; the one of the
    competition's own name comes first, then the one nearest to the root."""
    found = [folder for folder in mounted_folders(Path(root), SEARCH_DEPTH) if holds_competition_tables(folder)]
    found.sort(key=lambda folder: (folder.name != COMPETITION_SLUG, len(folder.parts), str(folder)))
    return found[0] if found else None


def holds_competition_tables(folder: Path | str) -> bool:
    """Whether a folder looks like the competition's: at least one table of series descriptions lies in it."""
    return any((Path(folder) / name).is_file() for name in SERIES_TABLES)


def mounted_folders(root: Path, depth: int) -> list[Path]:
    """`root` and its folders down to `depth`, without going into folders that hold the competition's tables."""
    if not root.is_dir():
        return []
    found = [root]
    if depth == 0 or holds_competition_tables(root):
        return found
    try:
        children = sorted(child for child in root.iterdir() if child.is_dir())
    except PermissionError:
        return found
    return found + [folder for child in children for folder in mounted_folders(child, depth - 1)]


def copy_submission(submission: Path | str) -> Path | None:
    """On Kaggle: copy the submission to `/kaggle/working/submission.csv`, where it is looked for. Elsewhere: None."""
    if not KAGGLE_WORKING.is_dir():
        return None
    target = KAGGLE_WORKING / "submission.csv"
    if Path(submission).resolve() != target.resolve():
        from ..files import atomically

        atomically(target, lambda part: shutil.copyfile(submission, part))
    return target
