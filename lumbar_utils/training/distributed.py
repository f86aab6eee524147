"""One training in several processes, one for each GPU, on one or more machines.

The processes are started from outside (`accelerate launch`, `torchrun`), which give each of them its number through
the environment; here they find each other with torch.distributed. In a single process everything below is trivial, so
the same code runs in a notebook. (An `Accelerator` would be in the way: one process can make it for one precision only,
so that a notebook could not train in two, and its checkpoints hold pickles.)

A process that has touched a GPU cannot be split, so `launch_training` has `accelerate launch` start new ones for a
notebook; afterwards `train.fit` with the same arguments finds a finished run and reads it. (accelerate's own
`notebook_launcher` fails on torch 2.9 and newer before accelerate 1.14, which Kaggle's image has not.)
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import distributed

from ..crops.cache import CropCache
from ..devices import choose_compute
from ..errors import DataError
from ..files import write_json
from .config import TrainConfig

logger = logging.getLogger(__name__)

TIMEOUT = timedelta(hours=2)
"""How long processes wait for each other; the first one may be writing a large checkpoint to a slow disk."""
LAUNCHER = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0")
"""Port 0 is any that is free: two trainings on one machine must not meet."""
LAST_LINES = 12
"""Of what a failed training printed, in the error's message where it gave no reason."""
T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among all that train together: its number from 0, and how many there are."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and messages."""
        return self.rank == 0

    def share(self, items: Sequence) -> Sequence:
        """This process's part of a sequence: every `count`-th item from `rank` on."""
        return items[self.rank :: self.count]

    def collect(self, value: T) -> list[T]:
        """The values of all processes, by rank, in every process; they wait for each other here."""
        if self.count == 1:
            return [value]
        values: list = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def gather(self, part: np.ndarray, n: int) -> np.ndarray:
        """All `n` rows in their order, in every process, from the rows (m, ...) of each one's `share`."""
        whole = np.empty((n, *part.shape[1:]), dtype=part.dtype)
        for rank, rows in enumerate(self.collect(part)):
            whole[rank :: self.count] = rows
        return whole

    def agree(self, value: T) -> T:
        """The first process's value, in every process."""
        return self.collect(value)[0]

    def same(self, value: object) -> bool:
        """Whether all processes hold the same value."""
        return len(set(self.collect(value))) == 1

    def wait(self) -> None:
        """Return when all processes have come here."""
        self.collect(None)  # `barrier` would keep the waiting GPUs busy


@contextlib.contextmanager
def join_processes(device: str = "auto") -> Iterator[Processes]:
    """Find the other processes of this training, and part from them at the end.

    Unless `device` is `cpu`, each process takes the GPU with its own number. Raises `DataError` when this machine has
    fewer GPUs than processes, or the device is a single GPU.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or distributed.is_initialized():  # by whoever called, who will also end it
        yield Processes(int(os.environ["RANK"]), count) if count > 1 else Processes()
        return
    if device.startswith("cuda:"):
        raise DataError(f"{count} processes cannot all run on {device!r}: say cuda or auto, and each takes its own GPU")
    backend, number = "gloo", int(os.environ.get("LOCAL_RANK", "0"))
    if not device.startswith("cpu") and torch.cuda.is_available():
        if number >= torch.cuda.device_count():
            raise DataError(
                f"process {number} of this machine finds {torch.cuda.device_count()} GPUs: start as many processes as "
                "there are GPUs (--num_processes)"
            )
        torch.cuda.set_device(number)
        backend = "cpu:gloo,cuda:nccl"  # gradients travel between GPUs, everything else between CPUs
    distributed.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield Processes(int(os.environ["RANK"]), count)
    finally:
        distributed.destroy_process_group()


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
    """Train as `fit` (or, with `all_folds`, `fit_folds`) does, in a process for each GPU that can be used.

    `labels` is the path of train.csv. Returns False when there is but one GPU or none: then nothing was done, and `fit`
    does it in this process. Raises `DataError` when accelerate is not installed, or with the reason when the training
    ended with an error.
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
    paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    logger.info("starting %s", " ".join(command))
    lines: list[str] = []
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(command, env=environment, **options) as process:
        try:
            for line in process.stdout or ():
                lines.append(line.rstrip())
                print(lines[-1], flush=True)
        except BaseException:  # a notebook's stop button reaches this process alone
            process.terminate()
            raise
    if process.returncode != 0:
        # The training's own message; the launcher's report of it, which comes last, does not help.
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        message = errors[0] if errors else " / ".join(lines[-LAST_LINES:])
        raise DataError(f"the training ended with {process.returncode}: {message}")
