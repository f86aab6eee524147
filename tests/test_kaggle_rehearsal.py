"""A submission, rehearsed at the smallest size: `make kaggle-rehearsal` with a toy classifier and two studies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from planted_crops import FAST, planted_cohort, tiny_config

from lumbar_utils.training.train import fit

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_notebook_05_makes_a_complete_submission_offline(tmp_path):
    import kaggle_rehearsal

    crops, labels = planted_cohort(12, seed=1)
    config = tiny_config(classifier=FAST, epochs=1, folds=3)
    fit(crops, labels, config, tmp_path / "run" / "classifier", synthetic_only=True, progress=False)
    command = [sys.executable, str(ROOT / "tools" / "kaggle_rehearsal.py"), "--run", str(tmp_path / "run"), "--offline"]
    command += ["--studies", "2", "--no-score", "--scratch", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "submission: 50 rows of 2 studies, in order, finite, adding up to one" in done.stdout
    assert "/lumbar-utils/lumbar_utils/__init__.py" in done.stdout
    assert (kaggle_rehearsal.CUT in done.stdout) == kaggle_rehearsal.may_unshare()
    assert not list(tmp_path.glob("kaggle-rehearsal-*"))
