"""One training in several processes, one for each GPU, on one or more machines.

The processes are started from outside (`accelerate launch`, `torchrun`), which give each of them its number through
the environment; here they find each other with torch.distributed. In a single process everything below is trivial, so
the same code runs in a notebook. On a machine without GPUs, `accelerate launch` starts several processes only with
`--multi_gpu`; they then compute on the CPU. (An `Accelerator` would be in the way: one process can make it for one
precision only, so that a notebook could not train in two, and its checkpoints hold pickles.)
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
from torch import distributed

from ..errors import DataError

TIMEOUT = timedelta(hours=2)
"""How long processes wait for each other; the first one may be writing a large checkpoint to a slow disk."""
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

    def mean(self, value: float) -> float:
        """The mean of all processes' numbers, in every process; not finite when any of them is not."""
        return sum(self.collect(value)) / self.count

    def same(self, value: object) -> bool:
        """Whether all processes hold the same value."""
        return len(set(self.collect(value))) == 1

    def wait(self) -> None:
        """Return when all processes have come here."""
        self.collect(None)  # `barrier` would keep the waiting GPUs busy


@contextlib.contextmanager
def join_processes(device: str = "auto") -> Iterator[Processes]:
    """Find the other processes of this training, and part from them at the end.

    Parameters
    ----------
    device : str
        What the training will be asked to run on; unless it is `cpu`, each process takes the GPU with its own number.

    Raises
    ------
    DataError
        When this machine has fewer GPUs than processes, or the device is a single GPU.
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
