"""Functions that jobs call in the tests: workers import them from here."""

from __future__ import annotations

import os
import signal
import time

from lumbar_utils.errors import OutputError
from lumbar_utils.parallel import run_jobs


def process_of(number: int) -> tuple[int, int]:
    """The number and the id of the process that was asked."""
    return number, os.getpid()


def odd(number: int) -> int:
    """Fails at 3, and takes its process with it at 6."""
    if number == 3:
        raise ValueError("three")
    if number == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def full_disk(number: int) -> None:
    """Fails to write at 7."""
    if number == 7:
        raise OutputError("7.npz: no space left")


def sleep(seconds: float) -> float:
    """The seconds, after so many of them."""
    time.sleep(seconds)
    return seconds


def jobs_within(number: int) -> list:
    """The results of jobs that this job runs in its own process."""
    return list(run_jobs(sleep, [(0.1,)] * number, n_jobs=1))
