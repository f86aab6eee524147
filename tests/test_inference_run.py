"""Whole runs: broken studies among healthy ones, too little time, a kill in the middle, a full disk."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from broken_studies import BROKEN, LOST, SPEC, MiddleLocalizer, with_broken_copies, write_run

import lumbar_utils.inference.preprocessing as preprocessing_module
import lumbar_utils.inference.run as inference_module
from lumbar_utils.cli import main
from lumbar_utils.devices import Compute
from lumbar_utils.errors import CODES, DataError, Issue
from lumbar_utils.inference.predictor import Predictor
from lumbar_utils.inference.preprocessing import PreprocessedStudy, preprocess
from lumbar_utils.inference.resume_log import ResumeLog
from lumbar_utils.inference.run import run_inference
from lumbar_utils.inference.submission import StudyPrediction, write_submission
from lumbar_utils.labels import N_TARGETS, PROBABILITY_COLUMNS, VIEWS, row_ids
from lumbar_utils.localization import shift_levels
from lumbar_utils.studies.study import CompetitionFolder, StudySource, find_studies

TESTS = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "classifier", (1, 2, 3), (1.0, 3.0, 2.0))


def predictor(run: Path, device="cpu", **options) -> Predictor:
    return Predictor(run, device, precision="float32", localizer=MiddleLocalizer(), **options)


def records_of(done) -> list[dict]:
    return [json.loads(line) for line in done.records.read_text("utf-8").splitlines()]


def complete(path: Path, ids) -> pd.DataFrame:
    """The submission, which must have every row of these studies, once, and probabilities in them."""
    table = pd.read_csv(path, dtype={"row_id": str})
    assert sorted(table["row_id"]) == sorted(row_ids(ids))
    values = table[list(PROBABILITY_COLUMNS)].to_numpy()
    assert np.isfinite(values).all() and (values > 0).all() and np.allclose(values.sum(axis=1), 1, atol=1e-6)
    return table


def test_every_kind_of_broken_study_among_healthy_ones(cohort, run, tmp_path):
    folder, broken = with_broken_copies(cohort, tmp_path / "data")
    healthy = find_studies(cohort, part="test")
    expected = run_inference(predictor(run), healthy, tmp_path / "healthy.csv", progress=False)
    assert not any(p.fallback for p in expected.predictions)

    sources = find_studies(folder, part="test")
    assert {source.study_id for source in sources} > set(broken.values())
    done = run_inference(predictor(run), sources, tmp_path / "s.csv", progress=False)
    complete(done.path, [source.study_id for source in sources])
    found = {p.study_id: p for p in done.predictions}
    for one in expected.predictions:
        assert np.allclose(found[one.study_id].probabilities, one.probabilities, rtol=0, atol=1e-7)
        assert found[one.study_id].issues == one.issues

    records = records_of(done)
    for kind, study_id in broken.items():
        codes = {record["code"] for record in records if record["study_id"] == study_id}
        assert BROKEN[kind][2] in codes, f"{kind}: {codes}"
        assert found[study_id].fallback == (kind in LOST), kind
    # A slice, or a series beside which there is another: the view is still there. Else its embedding is used.
    assert found[broken["truncated file"]].missing_views == found[broken["absurd size"]].missing_views == ()
    assert found[broken["no position"]].missing_views == (BROKEN["no position"][0],)
    keys = {"study_id", "series_id", "file", "view", "stage", "code", "message", "used"}
    assert all(set(record) == keys and CODES[record["code"]][0] == record["stage"] for record in records)
    assert [r["file"] for r in records if r["study_id"] == broken["absurd size"] and r["file"]] == ["1.dcm"]
    log = pd.read_csv(done.log, dtype=str, keep_default_na=False)
    assert sorted(log.loc[log["fallback"] == "True", "study_id"]) == sorted(broken[kind] for kind in LOST)
    assert not list(tmp_path.glob("*resume_log*"))


def test_known_discs_are_used_and_the_others_located(cohort, run, tmp_path):
    sources = find_studies(cohort, part="test")
    located = run_inference(predictor(run), sources, tmp_path / "s.csv", progress=False).predictions
    first = shift_levels(located[0].discs, 1)
    done = run_inference(
        predictor(run), sources, tmp_path / "s.csv", discs={first.study_id: first, "unknown": first}, progress=False
    )
    assert np.array_equal(done.predictions[0].discs.points, first.points)
    assert done.predictions[0].discs.source == "corrected"
    assert not np.allclose(done.predictions[0].probabilities, located[0].probabilities, atol=1e-4)
    for one, other in zip(done.predictions[1:], located[1:], strict=True):
        assert np.array_equal(one.discs.points, other.discs.points)


def test_two_devices_share_the_studies(cohort, run):
    crops = [preprocess(source, MiddleLocalizer(), (SPEC,)).crops[0] for source in find_studies(cohort)[:5]]
    one, two = predictor(run, mirror=True), predictor(run, "cpu,cpu", mirror=True, batch_size=2)
    assert [str(compute.device) for compute in two.networks.computes] == ["cpu", "cpu"] and two.window == 4
    asked = []
    for number, models in enumerate(two.networks._copies):
        for model in models:
            model.register_forward_hook(lambda *_, number=number: asked.append(number))
    assert np.allclose(two.predict_crops(crops), one.predict_crops(crops), atol=1e-6)
    assert asked.count(0) == 3 * 2 * 2 and asked.count(1) == 3 * 2
    with pytest.raises(DataError, match="no device"):
        predictor(run, ",")


class BrokenGpu:
    """Networks on a GPU that has failed for good."""

    computes = (Compute(torch.device("cuda"), torch.float32, "a test"),)
    seconds, unlike = np.full(3, np.nan), np.full((3, 0), np.nan)

    def __init__(self, networks):
        self.empty = networks.predict

    def predict(self, inputs, inputs_of, plan, batch_size):
        if not inputs:
            return self.empty(inputs, inputs_of, plan, batch_size)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_gpu_that_fails_is_replaced_by_the_cpu(cohort, run, tmp_path):
    sources, given = find_studies(cohort, part="test"), predictor(run)
    expected = run_inference(given, sources, tmp_path / "s.csv", progress=False)
    given.networks = BrokenGpu(given.networks)
    done = run_inference(given, sources, tmp_path / "s.csv", progress=False)
    assert [event.code for event in done.events] == ["device_lost", "finished"]
    assert "illegal memory access" in str(done)
    for one, other in zip(done.predictions, expected.predictions, strict=True):
        assert not one.fallback and np.allclose(one.probabilities, other.probabilities, atol=0.02)  # CPU in bfloat16


class Clock:
    """A clock that only moves when a study is read or graded."""

    def __init__(self, monkeypatch, read: float, grade: float):
        self.now = 100.0
        monkeypatch.setattr(inference_module.time, "monotonic", lambda: self.now)
        crops = preprocess(self.source, MiddleLocalizer(), (SPEC,)).crops

        def fake_preprocess(source, localizer, specs, discs, seconds, deadline):
            if deadline <= time.time():
                return preprocessing_module._lost(source, "out_of_time", "too late")
            self.now += read
            return PreprocessedStudy(source.study_id, (), None, crops)

        def noting(model, inputs, compute, *, mirror, **options):
            self.now += grade * len(inputs) * (2 if mirror else 1)
            return graded(model, inputs, compute, mirror=mirror, **options)

        import lumbar_utils.inference.networks as networks_module

        graded = networks_module.predict_probabilities
        monkeypatch.setattr(preprocessing_module, "preprocess", fake_preprocess)
        monkeypatch.setattr(networks_module, "predict_probabilities", noting)
        monkeypatch.setattr(networks_module.time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(cohort, monkeypatch):
    """Of 40 studies each takes a second to read, and 3 networks on 2 sides a second each."""
    Clock.source = find_studies(cohort, part="test")[0]
    return Clock(monkeypatch, 1.0, 1.0)


FORTY = [StudySource(str(i), Path(f"nowhere/{i}")) for i in range(40)]


@pytest.mark.parametrize(
    ("seconds", "codes", "prior"),
    [
        (400, [], 0),
        (240, ["mirror_dropped"], 0),
        (145, ["mirror_dropped", "network_dropped"], 0),
        (70, ["mirror_dropped", "network_dropped", "time_ran_out"], 10),
    ],
)
def test_a_run_ends_in_time_and_says_what_it_gave_up(clock, run, tmp_path, seconds, codes, prior):
    given = predictor(run, mirror=True, batch_size=2)
    began = clock.now
    done = run_inference(given, FORTY, tmp_path / "s.csv", hours=seconds / 3600, progress=False)
    assert clock.now - began <= seconds
    complete(done.path, [source.study_id for source in FORTY])
    said = [event.code for event in done.events]
    assert list(dict.fromkeys(said)) == [*codes, "finished"]
    events = [record for record in records_of(done) if record["stage"] == "run"]
    assert [event["code"] for event in events] == said
    fallbacks = [p.fallback for p in done.predictions]
    assert sum(fallbacks) >= prior and fallbacks == sorted(fallbacks), "the last ones"
    assert all(np.allclose(p.weighted, given.prior) for p in done.predictions if p.fallback)
    for event in events[:-1]:
        assert event["study_id"] in str(FORTY) and "after" in event["message"] and event["used"]
    if "network_dropped" in codes:
        first = next(event for event in events if event["code"] == "network_dropped")
        assert "number 0" in first["message"], "the one of least weight goes first"
    if codes[-1:] == ["time_ran_out"]:
        late = [record for record in records_of(done) if record["code"] == "out_of_time"]
        assert len(late) == sum(fallbacks) and str(done).count("time ran out") == 1


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
from test_inference_run import find_studies, predictor, run_inference, Path
import lumbar_utils.inference.resume_log as resume_log

def slowly(self, *arguments, add=resume_log.ResumeLog.add):
    add(self, *arguments)
    time.sleep({pause})

resume_log.ResumeLog.add = slowly
given = predictor(Path({run!r}), batch_size=1)
print(run_inference(given, find_studies({data!r}), {out!r}, n_jobs=2, progress=False))
"""


def start(run, data, out, pause) -> subprocess.Popen:
    code = SCRIPT.format(tests=str(TESTS), run=str(run), data=str(data), out=str(out), pause=pause)
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)


def test_a_run_that_was_killed_goes_on_where_it_was(cohort, run, tmp_path):
    out = tmp_path / "s.csv"
    resume_log = tmp_path / "s_resume.jsonl"
    process, until = start(run, cohort, out, 60), time.monotonic() + 200
    while not (resume_log.exists() and resume_log.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=100)  # which waits for the workers too: they end by themselves
    assert not out.exists()
    with open(resume_log, "ab") as file:
        file.write(b'{"place":"cut off')

    process = start(run, cohort, out, 0)
    text = process.communicate(timeout=200)[0]
    assert process.returncode == 0 and "1 of 8 studies were predicted by an earlier run" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.csv", "s_log.csv", "s_log.jsonl"]
    whole = run_inference(predictor(run, batch_size=1), find_studies(cohort), tmp_path / "whole.csv", progress=False)
    assert out.read_bytes() == whole.path.read_bytes()
    assert (tmp_path / "s_log.csv").read_bytes() == whole.log.read_bytes()


@pytest.fixture
def interrupted(cohort, run, tmp_path, monkeypatch):
    """A run whose resume_log holds three studies of eight, cut off by the user."""
    add = ResumeLog.add

    def cut(self, *arguments):
        if len(self.path.read_bytes().splitlines()) == 4:
            raise KeyboardInterrupt
        add(self, *arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ResumeLog, "add", cut)
        run_inference(predictor(run), find_studies(cohort), tmp_path / "s.csv", progress=False)
    return tmp_path / "s.csv"


def resumed(given: Predictor, sources, path) -> int:
    return run_inference(given, sources, path, progress=False).resumed


def test_what_was_finished_is_used_again(interrupted, cohort, run):
    assert resumed(predictor(run), find_studies(cohort), interrupted) == 3
    assert resumed(predictor(run), find_studies(cohort), interrupted) == 0, "the resume log is gone"


def test_other_options_or_weights_or_code_start_anew(interrupted, cohort, run, tmp_path, monkeypatch):
    sources, kept = find_studies(cohort), interrupted.with_name("s_resume.jsonl").read_bytes()

    def again(given):
        interrupted.with_name("s_resume.jsonl").write_bytes(kept)
        return resumed(given, sources, interrupted)

    assert again(predictor(run)) == 3
    assert again(predictor(run, mirror=True)) == 0
    assert again(predictor(write_run(tmp_path / "other", (1, 2, 3), (1.0, 3.0, 2.0)))) == 3, "the same weights"
    assert again(predictor(write_run(tmp_path / "more", (1, 2, 4), (1.0, 3.0, 2.0)))) == 0
    assert again(predictor(write_run(tmp_path / "shares", (1, 2, 3), (1.0, 1.0, 2.0)))) == 0
    recalibrated = predictor(run)
    recalibrated.localizer.calibration = "another"
    assert again(recalibrated) == 0
    monkeypatch.setattr(inference_module, "code_digest", lambda: "of another version")
    assert again(predictor(run)) == 0


def test_two_runs_do_not_write_one_output(cohort, run, tmp_path):
    sources, path = find_studies(cohort, part="test"), tmp_path / "s.csv"
    other = ResumeLog(tmp_path / "s_resume.jsonl", "another run's")
    before = other.path.read_bytes()
    with pytest.raises(DataError, match="another run is writing this output"):
        run_inference(predictor(run), sources, path, progress=False)
    assert other.path.read_bytes() == before and not path.exists()
    other.close(remove=False)
    assert resumed(predictor(run), sources, path) == 0 and path.exists()


def test_a_study_that_has_changed_is_graded_again(interrupted, cohort, run, tmp_path):
    sources = find_studies(cohort)
    resume_log = interrupted.with_name("s_resume.jsonl")
    series = next(entry for entry in sources[0].path.iterdir())
    before = os.stat(series)
    try:
        os.utime(series, (before.st_atime, before.st_mtime + 10))
        found = ResumeLog(resume_log, json.loads(resume_log.read_bytes().splitlines()[0])["fingerprint"])
        assert len(found.found) == 3 and found.known(sources[0]) is None and found.known(sources[1]) is not None
        found.close(remove=False)
    finally:
        os.utime(series, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("name", ["s.csv", "s_log.csv", "s_log.jsonl", "s_resume.jsonl"])
def test_links_pipes_and_folders_are_no_place_for_a_result(run, tmp_path, name):
    (tmp_path / "target").write_text("before")
    for make in (lambda path: path.symlink_to("target"), os.mkfifo, Path.mkdir):
        make(tmp_path / name)
        with pytest.raises(DataError, match=rf"{name} is a (link|pipe|folder), and only a plain file"):
            run_inference(predictor(run), [], tmp_path / "s.csv", progress=False)
        (tmp_path / name).rmdir() if (tmp_path / name).is_dir() else (tmp_path / name).unlink()
    assert (tmp_path / "target").read_text() == "before"


def test_bytes_of_a_name_that_are_no_text_are_escaped_in_the_logs(tmp_path):
    issue = Issue("file_unreadable", "is empty", "7", file=os.fsdecode(b"M\xfcll.dcm"))
    even = StudyPrediction("7", np.full((N_TARGETS, 3), 1 / 3), issues=(issue,))
    write_submission([even], tmp_path / "s.csv")
    for log in ("s_log.csv", "s_log.jsonl"):
        assert r"M\udcfcll.dcm" in (tmp_path / log).read_text("utf-8")


def test_a_disk_that_fills_up(cohort, run, tmp_path, monkeypatch):
    sources, path = find_studies(cohort, part="test"), tmp_path / "s.csv"

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("lumbar_utils.inference.resume_log.os.fsync", full)
        done = run_inference(predictor(run), sources, path, progress=False)
    assert [event.code for event in done.events] == ["resume_log_failed", "finished"]
    complete(path, [source.study_id for source in sources])
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("lumbar_utils.files.os.replace", full)
        with pytest.raises(DataError, match=r"s\.csv: cannot be written .*disk full"):
            run_inference(predictor(run), sources, path, progress=False)
    assert path.read_bytes() == before, "what was there is kept"
    assert resumed(predictor(run), sources, path) == len(sources), "and nothing has to be graded again"


def test_what_cannot_work_is_refused_before_the_work(cohort, run, tmp_path, monkeypatch):
    monkeypatch.setattr(preprocessing_module, "load_study", lambda source: pytest.fail("nothing should be read"))
    sources = find_studies(cohort, part="test")
    with pytest.raises(DataError, match="listed twice"):
        run_inference(predictor(run), [*sources, sources[0]], tmp_path / "s.csv")
    with pytest.raises(DataError, match="columns"):
        run_inference(predictor(run), sources, tmp_path / "s.csv", sample=pd.DataFrame({"row_id": ["1"]}))
    strange = CompetitionFolder.open(cohort).sample_submission.replace({"row_id": r"_l1_l2$"}, "_l9", regex=True)
    with pytest.raises(DataError, match="does not end with a condition and a level"):
        run_inference(predictor(run), sources, tmp_path / "s.csv", sample=strange)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        run_inference(predictor(run), sources, tmp_path / "file" / "s.csv")


def test_the_sample_decides_the_rows(cohort, run, tmp_path):
    sources = find_studies(cohort, part="test")
    sample = CompetitionFolder.open(cohort).sample_submission
    done = run_inference(predictor(run), sources[:1], tmp_path / "s.csv", sample=sample, progress=False)
    complete(done.path, [source.study_id for source in sources])
    (absent,) = [record for record in records_of(done) if record["code"] == "study_absent"]
    assert absent["study_id"] == sources[1].study_id and absent["used"] == CODES["study_absent"][1]
    assert done.predictions[0].missing_views == () and set(VIEWS) == set(SPEC.shapes)


def test_the_command_line_says_what_was_given_up(cohort, run, tmp_path, capsys):
    options = ["--weights", run.parent, "--out", tmp_path / "s.csv", "--pictures", 0, "--jobs", 1, "--no-progress"]
    command = [str(part) for part in ("predict", cohort, *options, "--mirror")]
    assert main([*command, "--hours", "1"]) == 0
    text = capsys.readouterr().out
    assert "predictions of 2 studies" in text and "0 got the class prior" in text and "of 60 min allowed" in text
    ids = [source.study_id for source in find_studies(cohort, part="test")]
    complete(tmp_path / "s.csv", ids)
    assert main([*command, "--hours", "1e-6"]) == 0
    text = capsys.readouterr().out
    assert "2 got the class prior" in text and "time ran out" in text
    complete(tmp_path / "s.csv", ids)
    with pytest.raises(SystemExit):
        main([*command, "--hours", "-1"])
