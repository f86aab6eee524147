"""From DICOM files to crops for many studies, in the processes that joblib provides, with a policy for what breaks.

A failure costs as little as can be: a file costs its slice, a series that cannot be used costs the series, and what is
left is located and cropped; only a study of which nothing is left has no crops. Nothing odd about a study raises.

Time. A study that takes longer than it may is given up. In the main thread of a process (all of joblib's process
workers; and the caller's own main thread, where no processes are used) a timer interrupts Python code. One call into a
library that never returns, such as a decoder that hangs, cannot be interrupted by it: there the processes are ended and
started again. Where work is done in threads (`joblib.parallel_config("threading")`, dask workers by default) nothing
can be interrupted, and the run goes on without the study while its thread lives.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from joblib import Parallel, delayed

from ..crops.extraction import CropSpec, StudyCrops, extract_crops
from ..errors import Issue, LumbarError
from ..labels import VIEWS
from ..localization import DiscPoints
from ..localization.evaluation import level_labelling_uncertain
from ..localization.localizer_files import LocalizerFiles
from ..localization.preprocessing import LocalizationError
from ..studies.study import Study, StudySource, load_study
from .issues import issues_of_crops, issues_of_study

if TYPE_CHECKING:
    from ..localization import DiscLocalizer

logger = logging.getLogger(__name__)

T = TypeVar("T")

STUDY_SECONDS = 300.0
"""A study takes 1 to 5 seconds; one of 720 that takes all of this costs a Kaggle run one hundredth of its time."""
GRACE_SECONDS = 30.0
"""After a study's time is over, until its process is ended."""
START_SECONDS = 120.0
"""More time for the first window of new processes, which have libraries to load."""
PARENT_SECONDS = 2.0
"""How often a worker looks whether the run that it works for is still there."""
LEVEL_LABELLING_UNCERTAIN = "the naming of the disc levels is doubtful: all of them may be off by one"


class StudyTimeout(BaseException):
    """Raised inside a study by the timer. No `Exception`, so that code which survives any error does not survive it."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A study on its way to the networks; `crops` holds one for each specification, nothing when there are none."""

    study_id: str
    issues: tuple[Issue, ...] = ()
    discs: DiscPoints | None = None
    crops: tuple[StudyCrops, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """Views of which no crop of any specification shows anything."""
        return tuple(view for view in VIEWS if all(view in item.missing for item in self.crops))

    @property
    def gradable(self) -> bool:
        return len(self.missing) < len(VIEWS)


class Finder:
    """A localizer that travels to other processes: by its files where it has any, which each process reads once.

    One that was made in this session travels whole, with every study; see `locating.LocalizerFiles`.
    """

    def __init__(self, localizer: DiscLocalizer):
        self.owner = os.getpid()
        self._localizer: DiscLocalizer | LocalizerFiles = localizer
        self._sent = LocalizerFiles.of(localizer)

    def __getstate__(self) -> dict:
        return {"owner": self.owner, "_localizer": self._sent, "_sent": self._sent}

    @property
    def localizer(self) -> DiscLocalizer:
        return self._localizer.open() if isinstance(self._localizer, LocalizerFiles) else self._localizer


def prepare(
    source: StudySource, localizer: Finder, specs: Sequence[CropSpec], seconds: float | None = None
) -> Prepared:
    """Read, locate and crop one study in at most so many seconds; whatever is wrong with it comes back as issues."""
    _end_with(localizer.owner)
    at = ["reading"]
    try:
        with time_limit(seconds):
            try:
                study = load_study(source)
            except Exception as error:  # any failure on one study must not stop the run
                issue = Issue("study_unreadable", f"cannot be read: {words(error)}", source.study_id)
                return Prepared(source.study_id, (issue,))
            return prepare_study(study, localizer, specs, at=at)
    except StudyTimeout:
        text = f"given up after {seconds:.0f} s, while {at[-1]}"
        return Prepared(source.study_id, (Issue("study_timeout", text, source.study_id),))


def prepare_study(
    study: Study,
    localizer: Finder | None,
    specs: Sequence[CropSpec],
    discs: DiscPoints | None = None,
    *,
    at: list[str] | None = None,
) -> Prepared:
    """Locate, unless the discs are known (then no localizer is needed), and crop; `at` is told what is being done."""
    at = [] if at is None else at
    issues = list(issues_of_study(study))
    if discs is None:
        at.append("finding the discs")
        try:
            discs, left_out = _sparing(study, localizer.localizer.locate, "series_not_located")
        except Exception as error:
            issue = Issue("discs_not_found", f"discs not found: {words(error)}", study.study_id)
            return Prepared(study.study_id, (*issues, issue))
        issues += left_out
    if level_labelling_uncertain(discs):
        issues.append(Issue("levels_low_confidence", LEVEL_LABELLING_UNCERTAIN, study.study_id))
    at.append("cropping")

    def cut(part: Study) -> tuple[StudyCrops, ...]:
        return tuple(extract_crops(part, discs, spec) for spec in specs)

    try:
        crops, left_out = _sparing(study, cut, "series_not_cropped")
    except Exception as error:
        issue = Issue("not_cropped", f"no crops: {words(error)}", study.study_id)
        return Prepared(study.study_id, (*issues, issue), discs)
    return Prepared(study.study_id, (*issues, *left_out, *issues_of_crops(crops)), discs, crops)


def _sparing(study: Study, act: Callable[[Study], T], code: str) -> tuple[T, list[Issue]]:
    """What `act` makes of a study, without the series, or else the view, that makes it fail; raises when all do."""
    try:
        return act(study), []
    except LocalizationError:  # it has tried all series by itself
        raise
    except Exception as error:
        first = error
    parts = [(item,) for item in study.series] + [study.by_view(view) for view in VIEWS]
    for culprits in parts:
        rest = tuple(item for item in study.series if item not in culprits)
        if not culprits or not rest:
            continue
        with suppress(Exception):
            result = act(replace(study, series=rest))
            text = f"left out: {words(first)}"
            return result, [Issue(code, text, study.study_id, item.series_id) for item in culprits]
    raise first


def _end_with(owner: int) -> None:
    """End this process soon after the run that it works for: joblib's own workers live on when a run is killed."""
    name = f"ends with process {owner}"
    own = multiprocessing.current_process().name.startswith("LokyProcess")
    if not own or any(thread.name == name for thread in threading.enumerate()):
        return

    def watch() -> None:
        while os.getppid() == owner:
            time.sleep(PARENT_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name=name, daemon=True).start()


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise `StudyTimeout` in the block after so many seconds, where a timer can do that: see the module's text."""
    usable = (
        seconds is not None
        and hasattr(signal, "setitimer")
        and threading.current_thread() is threading.main_thread()
        and signal.getitimer(signal.ITIMER_REAL)[0] == 0  # somebody else's timer is left alone
    )
    if not usable:
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise StudyTimeout

    before = signal.signal(signal.SIGALRM, interrupt)
    # Once more every second: an exception that is raised while an object is deleted is lost.
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def prepare_studies(
    sources: Iterable[StudySource],
    localizer: Finder,
    specs: Sequence[CropSpec],
    *,
    n_jobs: int | None = None,
    window: int = 8,
    study_seconds: float | None = STUDY_SECONDS,
    time_left: Callable[[], float] | None = None,
) -> Iterator[list[Prepared]]:
    """Prepare many studies, `window` of them at a time, in their order; while one window is used, the next is made.

    Parameters
    ----------
    n_jobs : int, optional
        Of joblib. Default: as the user's `joblib.parallel_config` says, else 1, in this process.
    window : int
        Studies in a list; at most two lists are held in memory.
    study_seconds : float, optional
        How long one study may take; None for as long as it likes.
    time_left : callable, optional
        Seconds until nothing more may be read. Studies that are not ready then come with the issue `out_of_time`.
    """
    remaining = iter(sources)
    time_left = time_left or (lambda: float("inf"))
    crew = _Crew(localizer, tuple(specs), n_jobs, study_seconds, time_left)
    current = crew.start(list(islice(remaining, window)))
    try:
        while current.sources:
            ready = crew.finish(current)
            current = crew.start(list(islice(remaining, window)))
            yield ready
    finally:
        current.stop()


@dataclass
class _Window:
    """Studies that are being prepared, and joblib's results, which come in the same order."""

    sources: list[StudySource]
    results: Iterator[Prepared]
    parallel: Parallel | None = None

    def stop(self) -> None:
        """End what is still running."""
        if hasattr(self.results, "close"):
            with warnings.catch_warnings():  # joblib warns that not all results were fetched
                warnings.simplefilter("ignore")
                self.results.close()


@dataclass
class _Crew:
    """Starts windows of studies and gets them finished whatever happens to the processes."""

    localizer: Finder
    specs: tuple[CropSpec, ...]
    n_jobs: int | None
    study_seconds: float | None
    time_left: Callable[[], float]
    any_came_back: bool = False
    started_anew: bool = True

    def start(self, sources: list[StudySource]) -> _Window:
        if not sources or self.time_left() <= 0:
            return _Window(sources, iter(()))
        calls = (delayed(prepare)(source, self.localizer, self.specs, self._longest()) for source in sources)
        # One study a task: else a worker that is ended takes its neighbours with it.
        options = {"n_jobs": self.n_jobs, "batch_size": 1, "pre_dispatch": "all"}
        try:
            parallel = Parallel(return_as="generator", **options)
        except ValueError:  # some backends, such as ray's, give all results at once
            parallel = Parallel(**options)
            return _Window(sources, _later(parallel, calls), parallel)
        return _Window(sources, parallel(calls), parallel)

    def finish(self, window: _Window) -> list[Prepared]:
        ready: list[Prepared] = []
        sources, alone = window.sources, len(window.sources) == 1
        while len(ready) < len(sources):
            source = sources[len(ready)]
            if self.time_left() <= 0:
                self._end(window)
                return ready + [_out_of_time(source) for source in sources[len(ready) :]]
            try:
                if window.parallel is not None:
                    window.parallel.timeout = self._longest(GRACE_SECONDS + START_SECONDS * self.started_anew)
                ready.append(next(window.results))
                self.any_came_back = True
                continue
            except (TimeoutError, multiprocessing.TimeoutError):
                self._end(window)
                if self.time_left() <= 0:
                    continue
                if self.study_seconds is not None:
                    text = f"given up after {self.study_seconds:.0f} s; its process was ended"
                    ready.append(_lost(source, "study_timeout", text))
            except Exception as error:  # a process died, or could not be started
                self._end(window)
                if alone:
                    return [_lost(source, "worker_lost", f"its process was lost: {words(error)}")]
                return ready + self._without_neighbours(sources[len(ready) :], error)
            window = self.start(sources[len(ready) :])
        next(window.results, None)  # a generator that is left before its end would end the processes
        self.started_anew = False  # a whole window came back: by now all processes have loaded what they need
        return ready

    def _end(self, window: _Window) -> None:
        window.stop()
        self.started_anew = True

    def _longest(self, grace: float = 0.0) -> float | None:
        """Seconds that a study may take from now on, None for any number; in this process asked before each study."""
        longest = min((self.study_seconds or float("inf")) + grace, self.time_left())
        return longest if np.isfinite(longest) else None

    def _without_neighbours(self, sources: list[StudySource], error: Exception) -> list[Prepared]:
        """Studies of a window in which a process died, each in a window of its own, so that only one is lost."""
        logger.warning("a worker process was lost (%s); its studies are tried one by one", words(error))
        ready = [item for source in sources for item in self.finish(self.start([source]))]
        if self.any_came_back or len(sources) == 1:
            return ready
        # Not one of several studies has ever come back: the processes are at fault, and not all of these studies.
        logger.warning("no worker process works here; going on without them")
        self.n_jobs = 1
        return self.finish(self.start(sources))


def _later(parallel: Parallel, calls: Iterable) -> Iterator[Prepared]:
    yield from parallel(calls)


def _lost(source: StudySource, code: str, text: str) -> Prepared:
    return Prepared(source.study_id, (Issue(code, text, source.study_id),))


def _out_of_time(source: StudySource) -> Prepared:
    return _lost(source, "out_of_time", "not graded: the run's time was over")


def words(error: BaseException) -> str:
    """What an error says, files without their folders; its type too where it says little, as foreign errors do."""
    said = str(error) if isinstance(error, LumbarError) else f"{type(error).__name__}: {error}"
    # A folder's name may be a patient's, and what is said here is kept in logs.
    path = getattr(error, "path", None) or getattr(error, "filename", None)
    return said.replace(str(path), Path(path).name) if isinstance(path, (str, Path)) else said
