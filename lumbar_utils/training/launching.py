"""Start a training in several processes, one for each GPU, from a notebook or a script.

A process that has touched a GPU cannot be split, so the processes are new ones: `accelerate launch` starts them, each
runs `python -m lumbar_utils.training` (see `distributed`), and this one waits and shows what they print. (accelerate's
own `notebook_launcher` fails on torch 2.9 and newer before accelerate 1.14, which Kaggle's image has not.) Afterwards
`train.fit` with the same arguments finds a finished run and reads it.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import torch

from ..crops.cache import CropCache
from ..devices import choose_compute
from ..errors import DataError
from ..files import write_json
from .config import TrainConfig

logger = logging.getLogger(__name__)

LAUNCHER = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0")
"""Port 0 is any that is free: two trainings on one machine must not meet."""
LAST_LINES = 12
"""Of what a failed training printed, in the error's message where it gave no reason."""


def launch_training(
    cache: CropCache,
    labels: Path | str,
    config: TrainConfig,
    run_folder: Path | str,
    *,
    held_out: Sequence[str] | None = None,
    held_out_crops: CropCache | None = None,
    synthetic_only: bool = False,
    all_folds: bool = False,
    n_processes: int | None = None,
) -> bool:
    """Train as `fit` (or, with `all_folds`, `fit_folds`) does, in a process for each GPU.

    Parameters
    ----------
    labels : path-like
        train.csv.
    n_processes : int, optional
        Default: as many as there are GPUs that can be used.

    Returns
    -------
    bool
        False when there is but one GPU or none: then nothing was done, and `fit` does it in this process.

    Raises
    ------
    DataError
        When accelerate is not installed, or the training ended with an error; its last lines are in the message.
    """
    if n_processes is None:
        usable = choose_compute(config.device, config.precision).device.type == "cuda"
        n_processes = torch.cuda.device_count() if usable else 1
    if n_processes < 2:
        return False
    if importlib.util.find_spec("accelerate") is None:
        raise DataError(f"{n_processes} processes are started by accelerate, which is absent; pip install accelerate")
    with tempfile.TemporaryDirectory() as scratch:
        settings, studies = Path(scratch) / "config.json", Path(scratch) / "held_out.json"
        write_json(settings, config.to_json())
        command = [*LAUNCHER, "--num_processes", n_processes, "-m", "lumbar_utils.training"]
        command += [cache.folder, labels, run_folder, "--config", settings]
        command += ["--found", held_out_crops.folder] if held_out_crops is not None else []
        command += ["--synthetic"] if synthetic_only else []
        command += ["--all-folds"] if all_folds else []
        if held_out is not None and not all_folds:
            write_json(studies, {"study_ids": list(held_out)})
            command += ["--held-out", studies]
        _run([str(part) for part in command])
    return True


def _run(command: list[str]) -> None:
    """Run it, print its lines as they come."""
    library = str(Path(__file__).resolve().parent.parent.parent)
    paths = [library, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONUNBUFFERED": "1"}
    logger.info("starting %s", " ".join(command))
    last: deque[str] = deque(maxlen=LAST_LINES)
    errors: list[str] = []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        try:
            for line in process.stdout or ():
                last.append(line.rstrip())
                errors += [last[-1]] if last[-1].startswith("error: ") else []
                print(last[-1], flush=True)
        except BaseException:  # a notebook's stop button reaches this process alone
            process.terminate()
            raise
    if process.returncode != 0:
        # The training's own message; the launcher's report of it, which comes last, does not help.
        message = errors[0].removeprefix("error: ") if errors else " / ".join(last)
        raise DataError(f"the training ended with {process.returncode}: {message}")
