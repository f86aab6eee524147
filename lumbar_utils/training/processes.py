"""One training in several processes, one for each GPU, on one or more machines.

The processes are started from outside (`accelerate launch`, `torchrun`), which tell each of them its number through
the environment; here they find each other with torch.distributed. In a single process everything below is trivial, so
the same code runs in a notebook. On a machine without GPUs, `accelerate launch` starts several processes only with
`--multi_gpu`; they then compute on the CPU.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from torch import distributed

from ..errors import DataError

TIMEOUT = timedelta(hours=2)
"""How long processes wait for each other; the first one may be writing a large checkpoint to a slow disk."""


@dataclass(frozen=True)
class Processes:
    """This process among all that train together.

    Attributes
    ----------
    rank, count : int
        Its number from 0, and how many there are.
    local_rank : int
        Its number on its own machine, which is the number of its GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and talks."""
        return self.rank == 0

    def share(self, items: Sequence) -> Sequence:
        """This process's part of a sequence: every `count`-th item from `rank` on."""
        return items[self.rank :: self.count]

    def gather(self, part: np.ndarray, n: int) -> np.ndarray:
        """All `n` rows in their order, in every process, from the rows (m, ...) of each one's `share`."""
        whole = torch.zeros(n, *part.shape[1:], dtype=torch.float64)
        whole[self.rank :: self.count] = torch.from_numpy(np.asarray(part, dtype=np.float64))
        if self.count > 1:
            distributed.all_reduce(whole)
        return whole.numpy()

    def agree(self, value: float) -> float:
        """The first process's number, in every process."""
        if self.count == 1:
            return value
        box = torch.tensor(value, dtype=torch.float64)
        distributed.broadcast(box, src=0)
        return float(box)

    def mean(self, value: float) -> float:
        """The mean of all processes' numbers, in every process; not finite when any of them is not."""
        if self.count == 1:
            return value
        box = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(box)
        return float(box) / self.count

    def same(self, value: float) -> bool:
        """Whether all processes hold the same number."""
        if self.count == 1:
            return True
        box = torch.tensor([value, -value], dtype=torch.float64)
        distributed.all_reduce(box, distributed.ReduceOp.MAX)
        return bool(box[0] == -box[1])

    def wait(self) -> None:
        """Go on when all processes have come here."""
        self.same(0.0)  # `barrier` would keep the waiting GPUs busy


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
    if count == 1:
        yield Processes()
        return
    processes = Processes(int(os.environ["RANK"]), count, int(os.environ.get("LOCAL_RANK", "0")))
    if distributed.is_initialized():  # by whoever called, who will also end it
        yield processes
        return
    if device.startswith("cuda:"):
        raise DataError(f"{count} processes cannot all run on {device!r}: say cuda or auto, and each takes its own GPU")
    backend = "gloo"
    if not device.startswith("cpu") and torch.cuda.is_available():
        if processes.local_rank >= torch.cuda.device_count():
            raise DataError(
                f"process {processes.local_rank} of this machine finds {torch.cuda.device_count()} GPUs: start as many "
                "processes as there are GPUs (--num_processes)"
            )
        torch.cuda.set_device(processes.local_rank)
        backend = "cpu:gloo,cuda:nccl"  # gradients travel between GPUs, single numbers between CPUs
    distributed.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield processes
    finally:
        distributed.destroy_process_group()
