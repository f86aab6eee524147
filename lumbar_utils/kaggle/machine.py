"""What there is to compute with, and how much of a Kaggle session is left."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import mounts

if TYPE_CHECKING:
    from ..devices import Compute

SUBMISSION_HOURS, SESSION_HOURS = 9, 12
"""What Kaggle allows a submission to this competition, and any other session with a CPU or a GPU."""


@dataclass(frozen=True)
class Machine:
    """What there is to compute with.

    Attributes
    ----------
    compute : Compute
        Device and precision, with the reason.
    cores : int
        CPU cores that this process may use; fewer than the machine's in a container.
    memory_gb, free_disk_gb : float
        Main memory, and the space left at the folder given; memory is nan when unknown.
    """

    compute: Compute
    cores: int
    memory_gb: float
    free_disk_gb: float

    def __str__(self) -> str:
        return f"{self.cores} cores, {self.memory_gb:.0f} GB memory, {self.free_disk_gb:.0f} GB disk free"


def describe_machine(folder: Path | str = ".") -> Machine:
    """Device and precision with the reason, cores, memory, and disk space free at `folder`, which need not exist."""
    import joblib

    from ..devices import choose_compute

    place = Path(folder).absolute()
    place = next(parent for parent in (place, *place.parents) if parent.is_dir())
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):
        memory = float("nan")
    return Machine(choose_compute(), joblib.cpu_count(), memory, shutil.disk_usage(place).free / 1e9)


def session_seconds_left() -> float | None:
    """Seconds until Kaggle ends this session, an estimate; None elsewhere.

    Kaggle does not tell when a session began. Its container is made for the session, so the age of the container's
    first process is taken. A submission's second run, on the hidden test part, has `SUBMISSION_HOURS`.
    """
    if not mounts.KAGGLE_WORKING.is_dir():
        return None
    hours = SUBMISSION_HOURS if os.environ.get("KAGGLE_IS_COMPETITION_RERUN") else SESSION_HOURS
    return 3600 * hours - _age_of_first_process()


def _age_of_first_process() -> float:
    """Seconds since process 1 began, 0 where this cannot be known. proc(5): starttime is field 22 of stat."""
    try:
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        after_name = Path("/proc/1/stat").read_text().rpartition(")")[2].split()
        return max(0.0, uptime - int(after_name[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
