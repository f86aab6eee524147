"""A crop cache on disk and its label table, as `lumbar crops` leaves them, and trainings on them in other processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from planted_crops import SPEC

from lumbar_utils.crops.cache import MANIFEST, crop_file
from lumbar_utils.crops.extraction import FORMAT_VERSION, StudyCrops
from lumbar_utils.models.run_folder import MANIFEST as RUN_MANIFEST
from lumbar_utils.training.checkpoints import FILE as CHECKPOINT
from lumbar_utils.training.config import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
PYTHON = (sys.executable, "-m")


def write_training_data(
    folder: Path, crops: Mapping[str, StudyCrops], labels: pd.DataFrame, config: TrainConfig
) -> Path:
    """Write `crops/`, `train.csv` and `config.json` into a folder."""
    for study_id, item in crops.items():
        item.save(crop_file(folder / "crops", study_id, SPEC))
    manifest = {"version": FORMAT_VERSION, "spec": SPEC.to_json(), "study_ids": list(crops), "failures": {}}
    (folder / "crops" / MANIFEST).write_text(json.dumps(manifest))
    labels.to_csv(folder / "train.csv", index=False)
    (folder / "config.json").write_text(json.dumps(config.to_json()))
    return folder


def training(data: Path, run: Path, *options: str, launcher: tuple = PYTHON, **environment: str) -> subprocess.Popen:
    """Start `python -m lumbar_utils.training` on what `write_training_data` wrote, or by another launcher."""
    command = [*launcher, "lumbar_utils.training", data / "crops", data / "train.csv", run]
    command += ["--config", data / "config.json", *options]
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=run.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_at_first_checkpoint(process: subprocess.Popen, run: Path) -> None:
    """End a training, and all processes that it started, by SIGKILL as soon as there is something to go on from."""
    until = time.monotonic() + 200
    while not (run / CHECKPOINT).exists():
        assert process.poll() is None and time.monotonic() < until, process.communicate()[1]
        time.sleep(0.01)
    for started in reversed([process.pid, *_children(process.pid)]):
        os.kill(started, signal.SIGKILL)
    process.communicate()
    assert not (run / RUN_MANIFEST).exists(), "it was killed too late"


def _children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in listed.stdout.split()]


def finish(process: subprocess.Popen) -> str:
    """Wait for a training that must succeed; what it printed."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out + err
