"""Many jobs: on processes of this machine, and on a real dask cluster by the user's own configuration."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pytest
from joblib.parallel import BACKENDS, register_parallel_backend
from parallel_functions import full_disk, jobs_within, odd, process_of, sleep

from lumbar_utils.crops.cache import build_crop_cache
from lumbar_utils.crops.extraction import CropSpec
from lumbar_utils.errors import DataError, OutputError
from lumbar_utils.labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2
from lumbar_utils.localization import DiscLocalizer, DiscPoints, locate_studies, points_from_table
from lumbar_utils.localization.evaluation import read_reference
from lumbar_utils.parallel import DIED, HUNG, JobFailure, run_jobs, stays_here
from lumbar_utils.studies.study import CompetitionFolder, find_studies

SPEC = CropSpec(shapes={SAGITTAL_T2: (4, 20, 20), AXIAL_T2: (4, 20, 20), SAGITTAL_T1: (8, 20, 20)})
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def cluster():
    """A dask cluster of two worker processes on this machine, and the client that a user would make."""
    distributed = pytest.importorskip("distributed")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, [before])])
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    try:
        with (
            distributed.LocalCluster(**options, silence_logs=logging.ERROR) as local,
            distributed.Client(local) as user,
        ):
            yield user
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def sources(cohort):
    return find_studies(cohort)[:4]


@pytest.fixture(scope="module")
def points(cohort):
    truth = read_reference(cohort / "truth" / "discs.csv", point="canal")
    return {s: DiscPoints(s, "", p, np.ones(5), source="truth") for s, p in truth.items()}


def workers_of(cluster) -> set[int]:
    return set(cluster.run(os.getpid).values())


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_results_come_back_with_their_numbers_or_in_order(n_jobs):
    tasks = [(number,) for number in range(40, 0, -1)]
    assert sorted((i, r[0]) for i, r in run_jobs(process_of, tasks, n_jobs=n_jobs)) == list(enumerate(range(40, 0, -1)))
    ordered = list(run_jobs(process_of, tasks, n_jobs=n_jobs, ordered=True))
    assert [i for i, _ in ordered] == list(range(40))
    assert all((pid == os.getpid()) == (n_jobs == 1) for _, (_, pid) in ordered)
    assert stays_here(n_jobs) == (n_jobs == 1)


def test_tasks_are_read_only_as_far_as_they_are_needed():
    read = []
    results = run_jobs(process_of, ((read.append(i) or i,) for i in range(10_000)), n_jobs=1)
    for _ in range(5):
        next(results)
    results.close()
    assert len(read) <= 100


def test_a_job_that_fails_or_kills_its_process_costs_only_itself():
    results = dict(run_jobs(odd, [(i,) for i in range(12)], n_jobs=2))
    assert [results.pop(6).kind, results.pop(3)] == [DIED, JobFailure("three", "ValueError")]
    assert results == {i: i for i in (0, 1, 2, 4, 5, 7, 8, 9, 10, 11)}


def test_jobs_that_all_kill_their_processes_do_not_run_in_this_one():
    assert [result.kind for _, result in run_jobs(odd, [(6,), (6,)], n_jobs=2, ordered=True)] == [DIED, DIED]


def test_a_job_may_run_jobs_of_its_own():
    results = dict(run_jobs(jobs_within, [(2,), (3,)], n_jobs=2))
    assert results == {i: [(k, 0.1) for k in range(n)] for i, n in enumerate((2, 3))}


def test_a_result_that_cannot_be_written_ends_them_all():
    for n_jobs in (1, 2):
        with pytest.raises(OutputError, match=r"7\.npz: no space left"):
            list(run_jobs(full_disk, [(i,) for i in range(12)], n_jobs=n_jobs))


KILLED = """
import os, threading, time
from joblib.externals.loky.process_executor import ProcessPoolExecutor as Pool
from lumbar_utils.parallel import run_jobs
start, end = Pool._adjust_process_count, lambda: os.kill(os.getpid(), 9)

def started(pool):
    start(pool)
    print(*pool._processes, flush=True)
    if {idle}:
        time.sleep({seconds})
        end()
    threading.Timer({seconds}, end).start()

Pool._adjust_process_count = started
list(run_jobs(time.sleep, [(60,)] * 4, n_jobs=2))
"""


@pytest.mark.parametrize(("idle", "seconds"), [(True, 0), (True, 3), (False, 3)])
def test_workers_end_with_a_process_that_is_killed(idle, seconds):
    """When they have just been started, when they wait for their first job, and when they work."""
    code = KILLED.format(idle=idle, seconds=seconds)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
        workers = [int(word) for word in process.stdout.readline().split()]
        assert process.wait(60) == -signal.SIGKILL and len(workers) == 2
    until = time.monotonic() + 15
    while alive := [pid for pid in workers if is_alive(pid)]:
        assert time.monotonic() < until, alive
        time.sleep(0.1)


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().split(")")[-1].split()[0] != "Z"


def test_a_job_that_never_answers_is_given_up():
    results = dict(run_jobs(sleep, [(0.0,), (60.0,), (0.0,)], n_jobs=2, timeout=lambda: 5.0))
    assert results.pop(1).kind == HUNG
    assert results == {0: 0.0, 2: 0.0}


def test_the_users_configuration_goes_before_the_number_of_jobs():
    with joblib.parallel_config(backend="threading", n_jobs=3):
        assert stays_here(2)
        assert {pid for _, (_, pid) in run_jobs(process_of, [(1,), (2,), (3,)], n_jobs=2)} == {os.getpid()}
    with joblib.parallel_config(n_jobs=1):
        assert {pid for _, (_, pid) in run_jobs(process_of, [(1,), (2,), (3,)], n_jobs=2)} == {os.getpid()}


def test_a_backend_that_gives_all_results_at_once_works_as_well():
    """Such as ray's."""
    asked = set()

    class Foreign(joblib._parallel_backends.ThreadingBackend):
        supports_return_generator = False

        def effective_n_jobs(self, n_jobs):
            asked.add(n_jobs)
            return 2

    register_parallel_backend("foreign", Foreign)
    try:
        with joblib.parallel_config(backend="foreign"):
            results = dict(run_jobs(process_of, [(i,) for i in range(70)], n_jobs=7))
    finally:
        del BACKENDS["foreign"]
    assert [results[i][0] for i in range(70)] == list(range(70))
    assert asked == {-1}, "all that a foreign backend has, unless the user says otherwise"


def test_crops_are_cut_on_a_dask_cluster_as_they_are_here(cluster, sources, points, tmp_path, monkeypatch):
    here = build_crop_cache(sources, points, tmp_path / "here", spec=SPEC, n_jobs=1, **QUIET)
    without = {**points, "none": points[sources[0].study_id]}
    del without[sources[1].study_id]
    monkeypatch.chdir(tmp_path)
    with joblib.parallel_config(backend="dask"):
        there = build_crop_cache(sources, without, "there", spec=SPEC, n_jobs=1, **QUIET)
    assert there.failures == {sources[1].study_id: "no disc points"}
    assert there.study_ids == tuple(s.study_id for s in sources if s is not sources[1])
    for crops in there:
        for view, images in here[crops.study_id].images.items():
            np.testing.assert_array_equal(crops.images[view], images)


def test_discs_are_located_on_a_dask_cluster_as_they_are_here(cluster, sources):
    localizer = DiscLocalizer.shipped()
    here, _ = locate_studies(sources[:2], localizer, n_jobs=1, **QUIET)
    with joblib.parallel_config(backend="dask"):
        there, failed = locate_studies(sources[:2], localizer, n_jobs=1, **QUIET)
    assert list(there) == [s.study_id for s in sources[:2]] and not failed
    for study_id, discs in here.items():
        np.testing.assert_allclose(there[study_id].points, discs.points, atol=0.01)
    assert {pid for _, (_, pid) in run_with_dask(process_of)} <= workers_of(cluster)


def run_with_dask(function):
    with joblib.parallel_config(backend="dask"):
        return list(run_jobs(function, [(i,) for i in range(8)], n_jobs=1))


def test_the_tables_points_are_the_same_in_any_process(cluster, cohort, points):
    folder = CompetitionFolder.open(cohort)
    ids = folder.study_ids("train")
    here, failed_here = points_from_table(folder, ids, n_jobs=1, **QUIET)
    with joblib.parallel_config(backend="dask"):
        there, failed_there = points_from_table(folder, ids, **QUIET)
    assert len(here) > 3 and list(here) == list(there) and failed_here == failed_there
    for study_id, discs in here.items():
        np.testing.assert_array_equal(there[study_id].points, discs.points)
        seen = [not flag for flag in discs.flags]
        assert np.linalg.norm((discs.points - points[study_id].points)[seen], axis=1).max() < 12
    with pytest.raises(DataError, match="train_label_coordinates"):
        points_from_table(CompetitionFolder(folder.root, None, None, folder.series_table, None), ids)


def test_what_travels_is_small(cohort, sources, points, monkeypatch):
    sent = []

    def note(function, tasks, **options):
        sent.extend((function.__name__, len(pickle.dumps((function, task)))) for task in tasks)
        return iter(())

    monkeypatch.setattr("lumbar_utils.localization.samples.run_jobs", note)
    locate_studies(sources, DiscLocalizer.shipped(), n_jobs=2, **QUIET)
    folder = CompetitionFolder.open(cohort)
    points_from_table(folder, folder.study_ids("train"), **QUIET)
    assert {name for name, _ in sent} == {"_locate_place", "_from_table"} and len(sent) > 8
    assert max(size for _, size in sent) < 16_000, "bytes; the weights have 12 million"


def test_a_localizer_is_read_once_in_a_process_and_again_when_its_files_change(tmp_path):
    localizer = DiscLocalizer.shipped()

    def sent(localizer):
        return pickle.loads(pickle.dumps(localizer))

    assert b"lumbar_utils/weights" not in pickle.dumps(localizer), "the library may be installed elsewhere there"
    assert sent(localizer).folder == localizer.folder and sent(localizer) is sent(localizer)
    localizer.save(tmp_path)
    own = DiscLocalizer.load(tmp_path)
    assert sent(own) is sent(own) is not own and sent(own).folder == own.folder
    assert len(pickle.dumps(own)) < 5000, "a path, not tensors: dask sends a localizer with every study"
    localizer.made["changed"] = "yes, and longer"
    localizer.save(tmp_path)
    assert sent(own).made["changed"]
    own.calibration = replace(own.calibration, slope=0.123)
    assert sent(own).calibration.slope == 0.123, "what is no longer that of its folder is sent itself"
