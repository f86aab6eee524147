"""Many studies at a time: how jobs are run, on this machine's cores or on the user's cluster.

What works through many studies comes here, but for inference: `preparing` starts the next studies while the networks
grade the last ones, against a clock, and interrupts a study that takes too long. By default joblib starts processes on
this machine; inside `with joblib.parallel_config(backend="dask"):` (or ray, or any other backend) the same jobs go
there instead.

A job is a function of a module and a few small arguments: paths and numbers, not images. What it returns is small as
well, or it writes its result to a file. A job that fails costs only itself, also when it takes its process with it.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import joblib
from joblib.parallel import ParallelBackendBase, get_active_backend

logger = logging.getLogger(__name__)

WINDOW = 16
"""Jobs a worker that are under way or wait to be fetched: results pile up no further when the caller is slower."""
TIMEOUT_S = 900.0
"""Seconds without any job done after which those under way are given up. A study takes a second; joblib never hears
of a job of which dask has given up, because it killed several workers."""
WORKER_DIED = "its process died (out of memory, or a crash in a library) or never answered"


@dataclass(frozen=True)
class JobFailure:
    """What `run_jobs` yields in the place of a result.

    Attributes
    ----------
    reason : str
        The message of what was raised, its type's name where it has none.
    kind : str
        The type's name, "" where the process died.
    """

    reason: str
    kind: str = ""

    @classmethod
    def of(cls, error: Exception) -> JobFailure:
        """From what was raised."""
        return cls(str(error) or type(error).__name__, type(error).__name__)


def run_jobs(
    function: Callable,
    tasks: Iterable[tuple],
    *,
    n_jobs: int = 2,
    ordered: bool = False,
    threads: bool = False,
    timeout: float = TIMEOUT_S,
) -> Iterator[tuple[int, Any]]:
    """Call a function with each of many tuples of arguments, in parallel.

    Parameters
    ----------
    function : callable
        Of a module, so that workers can import it.
    tasks : iterable of tuple
        Arguments of each call. Read as far as they are needed.
    n_jobs : int
        Worker processes, -1 for one a core; 1 works in this process. A user's active `joblib.parallel_config` goes
        before it: its number of jobs where it names one, else, on a backend that is not joblib's own, all it has.
    ordered : bool
        Yield in the order of the tasks instead of as they are done.
    threads : bool
        Prefer threads to processes, for functions that share a device.
    timeout : float
        See `TIMEOUT_S`. In this process (one job) nothing is given up.

    Yields
    ------
    index : int
        Which task, counted from 0.
    result
        What the function returned, or a `JobFailure` when it raised or its process died.
    """
    backend, n_jobs = _backend(n_jobs, threads)
    workers = max(1, joblib.effective_n_jobs(n_jobs))
    options: dict[str, Any] = {"n_jobs": n_jobs, "batch_size": 1, "prefer": "threads" if threads else None}
    if backend.supports_return_generator:  # ray's gives all results of a window at once
        options["return_as"] = "generator" if ordered else "generator_unordered"
    options["timeout"] = timeout if workers > 1 else None
    numbered = enumerate(tasks)
    while window := list(islice(numbered, WINDOW * workers)):
        yield from _run_window(function, window, options)


def stays_here(n_jobs: int, *, threads: bool = False) -> bool:
    """Whether `run_jobs` would do the work in this process, so that large arguments need not travel."""
    backend, n_jobs = _backend(n_jobs, threads)
    return getattr(backend, "uses_threads", False) or joblib.effective_n_jobs(n_jobs) == 1


def _run_window(function: Callable, window: list[tuple[int, tuple]], options: dict) -> Iterator[tuple[int, Any]]:
    waiting = dict(window)
    try:
        jobs = (joblib.delayed(_attempt)(function, index, task) for index, task in window)
        for index, result in _results(jobs, options):
            del waiting[index]
            yield index, result
    except Exception as error:
        if not _worker_died(error):
            raise
        logger.warning("a worker process died or is silent; %d jobs are tried again one by one", len(waiting))
    for index, task in waiting.items():  # in their order, each alone: who dies now is the culprit
        try:
            yield from _results([joblib.delayed(_attempt)(function, index, task)], options)
        except Exception as error:
            if not _worker_died(error):
                raise
            yield index, JobFailure(WORKER_DIED)


def _results(jobs: Iterable, options: dict) -> Iterator[tuple[int, Any]]:
    results = joblib.Parallel(**options)(jobs)
    try:
        yield from results
    finally:
        if hasattr(results, "close"):  # ends what is under way when the caller wants no more
            results.close()


def _attempt(function: Callable, index: int, task: tuple) -> tuple[int, Any]:
    try:
        return index, function(*task)
    except Exception as error:  # whatever is odd about one study must not cost the others
        return index, JobFailure.of(error)


def _worker_died(error: Exception) -> bool:
    if isinstance(error, (BrokenExecutor, TimeoutError, multiprocessing.TimeoutError)):
        return True
    return type(error).__name__ in ("KilledWorker", "WorkerCrashedError")  # of dask and of ray, which need not be there


def _backend(n_jobs: int, threads: bool) -> tuple[ParallelBackendBase, int]:
    """The backend in use, and the number of jobs to ask it for: that of the user's configuration, if there is one."""
    backend, chosen = get_active_backend(prefer="threads" if threads else None)
    if chosen is not None:
        return backend, chosen
    return backend, n_jobs if type(backend).__module__.startswith("joblib._parallel_backends") else -1
