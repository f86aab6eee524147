"""From DICOM files to crops for many studies, in parallel, with a policy for what breaks.

A failure costs as little as can be: a file costs its slice, a series that cannot be used costs the series, and what is
left is located and cropped; only a study of which nothing is left has no crops. Nothing odd about a study raises.

A study that takes longer than it may is given up: in the main thread of a process (all of joblib's process workers, and
this one where no processes are used) a timer interrupts Python code. Decoders, which are native code, run in a process
of their own and have their own time limit (`dicom.decoding`). A worker process that hangs all the same is ended by
`parallel.run_jobs`. Threads (`joblib.parallel_config("threading")`, dask workers by default) cannot be interrupted.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, TypeVar

from ..crops.extraction import CropSpec, StudyCrops, extract_crops
from ..dicom.identity import is_code
from ..errors import OUT_OF_MEMORY, DicomError, Issue, LumbarError, out_of_memory
from ..labels import VIEWS
from ..localization import DiscPoints
from ..localization.evaluation import level_labelling_uncertain
from ..localization.preprocessing import LocalizationError
from ..parallel import HUNG, JobFailure, run_jobs, stays_here
from ..studies.study import Study, StudySource, load_study

if TYPE_CHECKING:
    from ..localization import DiscLocalizer

T = TypeVar("T")

STUDY_SECONDS = 300.0
"""A study takes 1 to 5 seconds; one of 720 that takes all of this costs a Kaggle run one hundredth of its time."""
GRACE_SECONDS = 120.0
"""After a study's time is over, until its process is ended: new processes first have libraries to load."""
RETURN_SECONDS = 10.0
"""After the run's time is over: what was read until then has to get here."""
LEVEL_LABELLING_UNCERTAIN = "the level labelling has low confidence: all discs may be off by one level"


class StudyTimeout(BaseException):
    """Raised inside a study by the timer. No `Exception`, so that code which survives any error does not survive it."""


@dataclass(frozen=True, eq=False)
class PreprocessedStudy:
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
    def usable(self) -> bool:
        """Whether any view shows anything."""
        return len(self.missing) < len(VIEWS)


def preprocess(
    source: StudySource,
    localizer: DiscLocalizer,
    specs: Sequence[CropSpec],
    discs: DiscPoints | None = None,
    seconds: float | None = None,
    deadline: float = float("inf"),
) -> PreprocessedStudy:
    """Read, locate and crop one study in so many seconds, and nothing after the deadline (by `time.time()`).

    Whatever is wrong with it comes back as issues.
    """
    seconds = min(float("inf") if seconds is None else seconds, deadline - time.time())
    if seconds <= 0:
        return _lost(source, "out_of_time", "not predicted: the run's time was over")
    stage = ["reading"]
    try:
        with time_limit(seconds):
            try:
                study = load_study(source)
            except Exception as error:  # any failure on one study must not stop the run
                return _lost(source, "study_unreadable", f"cannot be read: {message_of(error)}")
            return preprocess_study(study, localizer, specs, discs, stage=stage)
    except StudyTimeout:
        return _lost(source, "study_timeout", f"given up after {seconds:.0f} s, while {stage[-1]}")


def preprocess_study(
    study: Study,
    localizer: DiscLocalizer | None,
    specs: Sequence[CropSpec],
    discs: DiscPoints | None = None,
    *,
    stage: list[str] | None = None,
) -> PreprocessedStudy:
    """Locate, unless the discs are known (then no localizer is needed), and crop; `stage` notes what is being done."""
    stage = [] if stage is None else stage
    issues = list(study.all_issues)
    if discs is None:
        stage.append("locating the discs")
        try:
            discs, left_out = _without_failing_series(study, localizer.locate, "series_not_located")
        except Exception as error:
            issue = Issue("discs_not_found", f"discs not found: {message_of(error)}", study.study_id)
            return PreprocessedStudy(study.study_id, (*issues, issue))
        issues += left_out
    if level_labelling_uncertain(discs):
        issues.append(Issue("levels_low_confidence", LEVEL_LABELLING_UNCERTAIN, study.study_id))
    stage.append("cropping")

    def crop(part: Study) -> tuple[StudyCrops, ...]:
        return tuple(extract_crops(part, discs, spec) for spec in specs)

    try:
        crops, left_out = _without_failing_series(study, crop, "series_not_cropped")
    except Exception as error:
        issue = Issue("not_cropped", f"no crops: {message_of(error)}", study.study_id)
        return PreprocessedStudy(study.study_id, (*issues, issue), discs)
    issues += left_out + list(dict.fromkeys(issue for item in crops for issue in item.issues))
    return PreprocessedStudy(study.study_id, tuple(issues), discs, crops)


def _without_failing_series(study: Study, step: Callable[[Study], T], code: str) -> tuple[T, list[Issue]]:
    """What `step` makes of a study, without the series, or else the view, that makes it fail; raises when all do."""
    try:
        return step(study), []
    except LocalizationError:  # it has tried all series by itself
        raise
    except Exception as error:
        first = error
    parts = [(item,) for item in study.series] + [study.by_view(view) for view in VIEWS]
    for failing in parts:
        rest = tuple(item for item in study.series if item not in failing)
        if not failing or not rest:
            continue
        with suppress(Exception):
            result = step(replace(study, series=rest))
            text = f"left out: {message_of(first)}"
            return result, [Issue(code, text, study.study_id, item.series_id) for item in failing]
    raise first


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `StudyTimeout` in the block after so many seconds, where a timer can: see the module's docstring."""
    usable = (
        seconds < float("inf")
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
    try:
        # Once more every second: an exception that is raised while an object is deleted is lost.
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), 1.0)
        yield
    finally:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
        finally:  # the timer can go off in the line above
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def preprocess_studies(
    sources: Iterable[StudySource],
    localizer: DiscLocalizer,
    specs: Sequence[CropSpec],
    *,
    discs: Mapping[str, DiscPoints] | None = None,
    n_jobs: int | None = None,
    window: int = 8,
    study_seconds: float | None = STUDY_SECONDS,
    time_left: Callable[[], float] = lambda: float("inf"),
) -> Iterator[list[PreprocessedStudy]]:
    """Preprocess many studies, `window` of them at a time, in their order; while one window is used, the next is made.

    `n_jobs` as in `parallel.run_jobs`; a localizer that cannot be pickled is used in this process. `time_left` gives
    the seconds until nothing more may be read: studies not ready by then come with the issue `out_of_time`.
    """
    try:
        if not stays_here(n_jobs):
            ForkingPickler.dumps(localizer)
    except Exception:  # whatever its classes raise
        n_jobs = 1
    given: list[StudySource] = []

    def tasks() -> Iterator[tuple]:
        for source in sources:
            given.append(source)
            known = discs.get(source.study_id) if discs else None
            yield source, localizer, tuple(specs), known, study_seconds, time.time() + time_left()

    def timeout() -> float:
        return min((study_seconds or 1e6) + GRACE_SECONDS, max(time_left(), 0.0) + RETURN_SECONDS)

    ready: list[PreprocessedStudy] = []
    for _, result in run_jobs(preprocess, tasks(), n_jobs=n_jobs, window=window, timeout=timeout):
        source = given.pop(0)
        if isinstance(result, JobFailure):
            code = "study_timeout" if result.kind == HUNG else "worker_lost"
            result = _lost(source, code, f"given up: {result.reason}")
        ready.append(result)
        if len(ready) == window:
            yield ready
            ready = []
    if ready:
        yield ready


def _lost(source: StudySource, code: str, text: str) -> PreprocessedStudy:
    return PreprocessedStudy(source.study_id, (Issue(code, text, source.study_id),))


def message_of(error: BaseException) -> str:
    """An error's message, with its type where it is not the library's own; of paths only a file's name that is a code.

    They go into logs, and folders and files may be called by patients' names.
    """
    if out_of_memory(error):
        return OUT_OF_MEMORY
    if isinstance(error, DicomError):
        name = error.path.name if error.path is not None and is_code(error.path.name) else None
        return str(DicomError(error.issue, path=name, study_id=error.study_id, series_id=error.series_id))
    said = getattr(error, "strerror", None) or error
    return str(error) if isinstance(error, LumbarError) else f"{type(error).__name__}: {said}"
