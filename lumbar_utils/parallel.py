"""Many studies in parallel: the one place where the library hands work to joblib.

By default joblib starts processes on this machine; inside `with joblib.parallel_config(backend="dask"):` (or ray, or
any other backend) the same jobs run there instead.

A job is a function of a module and a few small arguments: paths and numbers, not images. A job that fails costs only
itself, also when its process dies with it; only a result that cannot be written (`OutputError`) ends them all.
Processes end when the process that started them is killed.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import joblib
from joblib._parallel_backends import LokyBackend
from joblib.parallel import ParallelBackendBase, get_active_backend

from .errors import OutputError

logger = logging.getLogger(__name__)

WINDOW = 16
"""Jobs per worker that are under way or wait to be fetched: results pile up no further when the caller is slower."""
TIMEOUT_S = 900.0
"""Seconds that the next result is waited for. A study takes a second; joblib is never told of a job that dask has given
up because it killed several workers."""
WATCH_S = 0.5
"""How often a worker process checks that the process which started it is alive."""
DIED, HUNG = "WorkerDied", "WorkerHung"


@dataclass(frozen=True)
class JobFailure:
    """What `run_jobs` yields in the place of a result."""

    reason: str  # the message of what was raised, its type's name where it has none
    kind: str  # the type's name; `DIED` or `HUNG` where the process was lost

    @classmethod
    def of(cls, error: BaseException) -> JobFailure:
        """From what was raised by the job, or by joblib instead of a result."""
        if _is_timeout(error):
            return cls("it did not finish in time and its process was ended", HUNG)
        if _worker_died(error):
            return cls("its process died (out of memory, or a crash in a library)", DIED)
        return cls(str(error) or type(error).__name__, type(error).__name__)


def run_jobs(
    function: Callable,
    tasks: Iterable[tuple],
    *,
    n_jobs: int | None = 2,
    ordered: bool = False,
    threads: bool = False,
    window: int | None = None,
    timeout: Callable[[], float] = lambda: TIMEOUT_S,
) -> Iterator[tuple[int, Any]]:
    """Call a function of a module with each of many tuples of arguments, in parallel.

    Yields the number of each task, from 0, and what the function returned, or a `JobFailure` when it raised or its
    process died; as they finish, or, `ordered`, in the order of the tasks. Tasks are read one window at a time.

    `n_jobs` are worker processes, -1 for one per core; 1 or None works in this process. A user's active
    `joblib.parallel_config` takes precedence: its number of jobs where it names one, else, on a backend not joblib's
    own, all it has. `threads` are preferred for functions that share a device. `window` results are used together by
    the caller, in order: the next window is under way while one is used, and at most two are held in memory.
    `timeout` gives the seconds for which the next result is waited for, anew for every window and every retry; in
    this process nothing is given up. Raises `OutputError` when a job does: on a full disk the next one fares no better.
    """
    # loky replaces a worker that has grown by 300 MB, which it does when torch is imported: nothing is lost.
    warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
    backend, n_jobs = _backend(1 if n_jobs is None else n_jobs, threads)
    workers = max(1, joblib.effective_n_jobs(n_jobs))
    pool = _Pool(function, backend, n_jobs, workers, ordered or window is not None, threads)
    numbered, ready, results = enumerate(tasks), [], iter(())
    try:
        while batch := list(islice(numbered, window or WINDOW * workers)):
            results = pool.start(batch, timeout())
            yield from ready  # the last window's, while this one is under way
            finished = pool.finish(batch, results, timeout)
            if window is None:
                yield from finished
            else:
                ready = list(finished)
        yield from ready
    finally:
        _close(results)


def stays_here(n_jobs: int | None, *, threads: bool = False) -> bool:
    """Whether `run_jobs` would do the work in this process, so that large arguments need not travel."""
    backend, n_jobs = _backend(1 if n_jobs is None else n_jobs, threads)
    return getattr(backend, "uses_threads", False) or joblib.effective_n_jobs(n_jobs) == 1


@dataclass
class _Pool:
    function: Callable
    backend: ParallelBackendBase
    n_jobs: int
    workers: int
    ordered: bool
    threads: bool
    any_finished: bool = False
    here: bool = False

    def start(self, batch: list[tuple[int, tuple]], timeout: float) -> Iterator[tuple[int, Any]]:
        """Hand a batch to joblib; it is then under way, unless the backend gives all results at once."""
        if self.here:
            return (_attempt(self.function, index, task) for index, task in batch)
        options: dict[str, Any] = {
            "n_jobs": self.n_jobs,
            "batch_size": 1,
            "prefer": "threads" if self.threads else None,
        }
        options["timeout"] = max(timeout, 1.0) if self.workers > 1 else None
        if isinstance(self.backend, LokyBackend) and "initializer" not in self.backend.backend_kwargs:
            options |= {"initializer": _end_with, "initargs": (os.getpid(),)}
        jobs = [joblib.delayed(_attempt)(self.function, index, task) for index, task in batch]
        if not self.backend.supports_return_generator:  # ray's gives all results of a window at once
            return _at_once(jobs, options)
        kind = "generator" if self.ordered else "generator_unordered"
        return joblib.Parallel(pre_dispatch="all", return_as=kind, **options)(jobs)

    def finish(
        self, batch: list[tuple[int, tuple]], results: Iterator, timeout: Callable[[], float]
    ) -> Iterator[tuple[int, Any]]:
        """All results of a batch, whatever happens to the processes."""
        for index, result in self._results(batch, results, timeout):
            if isinstance(result, JobFailure) and result.kind == OutputError.__name__:
                raise OutputError(result.reason)
            yield index, result

    def _results(
        self, batch: list[tuple[int, tuple]], results: Iterator, timeout: Callable[[], float]
    ) -> Iterator[tuple[int, Any]]:
        waiting = dict(batch)
        try:
            for index, result in results:
                del waiting[index]
                self.any_finished = True
                yield index, result
            return
        except Exception as error:
            if not _worker_died(error):
                raise
            logger.warning("a worker process died or hangs; %d jobs are retried one by one", len(waiting))
            if self.ordered and _is_timeout(error):  # the one that was waited for
                index = next(iter(waiting))
                del waiting[index]
                yield index, JobFailure.of(error)
        finally:
            _close(results)
        retried = [self._alone(index, task, timeout()) for index, task in waiting.items()]
        if not self.any_finished and isinstance(
            replace(self, function=os.getpid)._alone(0, (), timeout())[1], JobFailure
        ):
            logger.warning("no worker process works here; continuing in this process")
            self.here = True
            retried = self.start(list(waiting.items()), 0.0)
        yield from retried

    def _alone(self, index: int, task: tuple, timeout: float) -> tuple[int, Any]:
        """The result of one job that has the workers to itself: if they fail now, it is the culprit."""
        results = self.start([(index, task)], timeout)
        try:
            result = next(results)
            next(results, None)  # a generator that is left before its end would end the processes
        except Exception as error:
            if not _worker_died(error):
                raise
            return index, JobFailure.of(error)
        finally:
            _close(results)
        self.any_finished = True
        return result


def _at_once(jobs: list, options: dict[str, Any]) -> Iterator[tuple[int, Any]]:
    """Results of a backend such as ray's; what it raises is raised where they are fetched."""
    yield from joblib.Parallel(**options)(jobs)


def _close(results: Iterator) -> None:
    """End what is under way."""
    if hasattr(results, "close"):
        with warnings.catch_warnings():  # joblib warns that not all results were fetched
            warnings.simplefilter("ignore")
            results.close()


def _attempt(function: Callable, index: int, task: tuple) -> tuple[int, Any]:
    try:
        return index, function(*task)
    except (Exception, SystemExit) as error:  # whatever is wrong with one study must not cost the others
        return index, JobFailure.of(error)


def _end_with(owner: int) -> None:
    """End this worker process soon after the process that started it: joblib's own workers outlive a killed parent."""

    def watch() -> None:
        while os.getppid() == owner:
            time.sleep(WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _is_timeout(error: BaseException) -> bool:
    return isinstance(error, (TimeoutError, multiprocessing.TimeoutError))


def _worker_died(error: BaseException) -> bool:
    # Of dask and of ray, which need not be installed.
    named = type(error).__name__ in ("KilledWorker", "WorkerCrashedError")
    return named or _is_timeout(error) or isinstance(error, BrokenExecutor)


def _backend(n_jobs: int, threads: bool) -> tuple[ParallelBackendBase, int]:
    """The backend in use, and the number of jobs to ask it for: that of the user's configuration, if there is one."""
    backend, chosen = get_active_backend(prefer="threads" if threads else None)
    if chosen is not None:
        return backend, chosen
    return backend, n_jobs if type(backend).__module__.startswith("joblib._parallel_backends") else -1
