"""Fixtures that several test files share."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory, worker_id) -> Path:
    """One temporary folder for all pytest-xdist workers of this session."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def cohort(shared_folder) -> Path:
    """A synthetic cohort of eight studies (demo profile, two in the test part), made once. Do not write into it."""
    from lumbar_utils.phantom.cohort import generate_cohort

    folder, done = shared_folder / "cohort", shared_folder / "cohort.done"
    with FileLock(str(folder) + ".lock"):
        if not done.exists():
            generate_cohort(folder, n_studies=8, seed=20, profile="demo", test_fraction=0.25, n_jobs=2, progress=False)
            done.touch()
    return folder


@pytest.fixture
def full_disk(monkeypatch):
    """`with full_disk(3):` only three more files of the library fit on the disk."""
    original = tempfile.TemporaryDirectory

    @contextmanager
    def filled(room: int):
        left = iter(range(room))

        def folder(*args, **options):
            if next(left, None) is None:
                raise OSError(28, "No space left on device")
            return original(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr("lumbar_utils.files.tempfile.TemporaryDirectory", folder)
            yield

    return filled


@pytest.fixture(scope="session")
def real_mri() -> Path:
    """Real series, where a developer has them beside the checkout (they may not be redistributed)."""
    return _there(SHARED / "real_mri")


@pytest.fixture(scope="session")
def real_rsna() -> Path:
    """A complete real study in the competition's folder, likewise."""
    return _there(SHARED / "real_rsna" / "competition")


def _there(folder: Path) -> Path:
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}")
    return folder
