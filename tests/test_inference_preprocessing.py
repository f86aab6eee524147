"""Studies prepared in other processes: in order, in time, and whatever happens to a process."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace

import joblib
import pytest
from broken_studies import SPEC, MiddleLocalizer

import lumbar_utils.inference.preprocessing as preprocessing_module
from lumbar_utils.inference.preprocessing import StudyTimeout, preprocess_studies, time_limit
from lumbar_utils.studies.study import StudySource, find_studies

# joblib's processes are ended under way here, and say so in many voices.
pytestmark = [
    pytest.mark.filterwarnings("ignore:A worker stopped"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


@dataclass
class Obstinate:
    """A localizer that, with some studies, does what no error can stop; `how` by study id."""

    how: dict[str, str]

    def locate(self, study):
        what = self.how.get(study.study_id, "")
        if what == "hangs in Python":
            while True:
                with suppress(Exception):  # code that survives everything, as readers of strange files do
                    time.sleep(0.01)
        if what == "hangs in C":
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
            time.sleep(600)
        if what == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "is slow":
            time.sleep(0.3)
        return replace(MiddleLocalizer().locate(study), series_id=f"process {os.getpid()}")


@pytest.fixture(scope="module")
def sources(cohort) -> list[StudySource]:
    return find_studies(cohort)


def prepared(sources, how=None, **options):
    """PreprocessedStudy studies, flat, and the windows' lengths; `how` by index of the study."""
    how = {sources[i].study_id: what for i, what in (how or {}).items()}
    windows = list(preprocess_studies(sources, Obstinate(how), (SPEC,), **options))
    return [item for window in windows for item in window], [len(window) for window in windows]


def codes(items) -> list[list[str]]:
    """What each lost study was lost to; nothing for those that are fine."""
    return [[p.code for p in item.issues] if not item.usable else [] for item in items]


@pytest.fixture(scope="module")
def alone(sources):
    return prepared(sources)[0]


def same(items, others) -> bool:
    return all(
        a.study_id == b.study_id
        and all((a.crops[0].images[v] == b.crops[0].images[v]).all() for v in a.crops[0].images)
        for a, b in zip(items, others, strict=True)
    )


def test_processes_make_the_same_in_the_same_order(sources, alone):
    items, windows = prepared(sources, {0: "is slow", 3: "is slow"}, n_jobs=2, window=3)
    assert windows == [3, 3, 2]
    assert [item.study_id for item in items] == [source.study_id for source in sources]
    assert same(items, alone)
    # loky may replace a process that has grown by 300 MB since its first study, which it does when torch comes in late.
    processes = {item.discs.series_id for item in items[3:]}
    assert len(processes) <= 2 and f"process {os.getpid()}" not in processes, "they live from window to window"


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_the_users_own_backend_is_respected(sources, alone, backend):
    seen = []

    class Noting(joblib.parallel.BACKENDS[backend]):
        def submit(self, *arguments, **options):
            seen.append(1)
            return super().submit(*arguments, **options)

    joblib.register_parallel_backend(f"noting {backend}", Noting)
    with joblib.parallel_config(f"noting {backend}", n_jobs=2):
        items, _ = prepared(sources[:3])
    assert len(seen) == 3 and same(items, alone[:3])


def test_dask_works_without_a_change(sources, alone):
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None)
    with cluster, distributed.Client(cluster), joblib.parallel_config("dask"):
        items, _ = prepared(sources[:3])
    assert same(items, alone[:3])


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_study_that_hangs_is_given_up(sources, alone, n_jobs):
    started = time.monotonic()
    items, _ = prepared(sources[:4], {1: "hangs in Python"}, n_jobs=n_jobs, study_seconds=5.0)
    assert codes(items) == [[], ["study_timeout"], [], []]
    assert "while locating the discs" in str(items[1].issues[0])
    assert same([items[0], *items[2:]], [alone[0], *alone[2:4]])
    assert time.monotonic() - started < 60


def test_a_process_that_cannot_be_interrupted_is_ended(sources, alone, monkeypatch):
    monkeypatch.setattr(preprocessing_module, "GRACE_SECONDS", 6.0)
    items, _ = prepared(sources[:4], {2: "hangs in C"}, n_jobs=2, window=2, study_seconds=8.0)
    assert codes(items) == [[], [], ["study_timeout"], []]
    assert "process was ended" in str(items[2].issues[0])
    assert same([*items[:2], items[3]], [*alone[:2], alone[3]])


def test_a_process_is_not_waited_for_beyond_the_runs_time(sources, monkeypatch):
    waits = []
    monkeypatch.setattr(preprocessing_module, "run_jobs", lambda *_, timeout, **__: waits.append(timeout()) or ())
    for left in (-5.0, 60.0, 1000.0):
        prepared(sources, time_left=lambda left=left: left)
    assert waits == [10.0, 70.0, 420.0]


def test_a_study_that_kills_its_process_costs_only_itself(sources, alone):
    items, _ = prepared(sources[:4], {1: "dies"}, n_jobs=2)
    assert codes(items) == [[], ["worker_lost"], [], []]
    assert same([items[0], *items[2:]], [alone[0], *alone[2:4]])


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_nothing_is_read_when_the_time_is_over(sources, n_jobs):
    until = time.monotonic() + (1.0 if n_jobs == 1 else 8.0)
    left = dict.fromkeys(range(2, 8), "hangs in Python")
    items, _ = prepared(sources, left, n_jobs=n_jobs, window=2, time_left=lambda: until - time.monotonic())
    assert time.monotonic() < until + 3
    assert [item.study_id for item in items] == [source.study_id for source in sources]
    assert all(code in (["out_of_time"], ["study_timeout"]) for code in codes(items)[2:])
    assert codes(items)[-1] == ["out_of_time"]


def test_leaving_early_ends_what_is_under_way(sources):
    windows = preprocess_studies(sources, MiddleLocalizer(), (SPEC,), n_jobs=2, window=2)
    assert len(next(windows)) == 2
    windows.close()


def test_the_timer_leaves_nothing_behind():
    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(StudyTimeout), time_limit(0.05):
        time.sleep(5)
    with time_limit(0.05):
        pass
    time.sleep(0.1)
    assert signal.getsignal(signal.SIGALRM) == handler and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_timer_that_goes_off_while_it_is_stopped_leaves_nothing_behind(monkeypatch):
    handler, setitimer, late = signal.getsignal(signal.SIGALRM), signal.setitimer, [1]

    def goes_off(which, seconds, *interval):
        if seconds == 0 and late:
            late.pop()
            signal.raise_signal(signal.SIGALRM)
        return setitimer(which, seconds, *interval)

    monkeypatch.setattr(signal, "setitimer", goes_off)
    with pytest.raises(StudyTimeout), time_limit(1000):
        pass
    left = setitimer(signal.ITIMER_REAL, 0)
    assert left == (0.0, 0.0) and signal.signal(signal.SIGALRM, handler) == handler


def test_a_timer_of_somebody_else_is_left_alone():
    signal.setitimer(signal.ITIMER_REAL, 1000)
    try:
        with time_limit(0.01):
            time.sleep(0.05)
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 900
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def test_a_localizer_that_cannot_travel_is_used_in_this_process(sources, alone):
    class Bound(MiddleLocalizer):
        lock = threading.Lock()

        def __reduce__(self):
            return Bound, (self.lock,)

    windows = preprocess_studies(sources[:2], Bound(), (SPEC,), n_jobs=2, window=2)
    assert same([item for window in windows for item in window], alone[:2])
