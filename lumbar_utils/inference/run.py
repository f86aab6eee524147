"""A whole run from studies to `submission.csv`: in time, in parallel, continued when it was killed.

    run = run_inference(predictor, find_studies("data", part="test"), "submission.csv", hours=9, n_jobs=4)
    print(run)

Finished predictions are kept in `submission_resume.jsonl` beside the submission until it is written. When a run is
killed, the same call continues where it was, with the whole time again, as long as the weights, the options, the
library's code and the study are unchanged; studies that only the deadline, a time limit or a lost worker cost their
prediction are predicted then.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..errors import DataError, Issue, counted
from ..files import refuse_special
from ..localization import DiscPoints
from ..studies.study import StudySource
from .deadline import HOURS, Deadline, Step
from .predictor import Predictor
from .preprocessing import STUDY_SECONDS
from .resume_log import ResumeLog, code_digest
from .submission import StudyPrediction, check_sample, log_path, write_submission

logger = logging.getLogger(__name__)

TRANSIENT = {"out_of_time", "study_timeout", "worker_lost"}
"""Codes that another run may not have: such predictions are not kept in the resume log."""
MIN_FOR_PROCESSES = 6
"""Studies for which starting processes is worth while: each loads libraries for as long as it reads three studies."""


@dataclass(frozen=True, eq=False)
class InferenceRun:
    """What a run did. `str()` gives a few lines for its end."""

    predictions: tuple[StudyPrediction, ...]  # in the order of the studies
    path: Path  # the submission; `log` and `records` lie beside it
    events: tuple[Issue, ...]  # of the whole run, in order: what was dropped to finish in time; the last one sums up
    resumed: int  # studies taken over from an earlier, unfinished run
    seconds: float  # since the time began

    @property
    def log(self) -> Path:
        """One row a study, for people."""
        return log_path(self.path, "csv")

    @property
    def records(self) -> Path:
        """One JSON record a line, for programs."""
        return log_path(self.path, "jsonl")

    def __str__(self) -> str:
        return "\n".join(event.message for event in self.events)


def run_inference(
    predictor: Predictor,
    sources: Sequence[StudySource],
    path: Path | str,
    *,
    discs: Mapping[str, DiscPoints] | None = None,
    sample: pd.DataFrame | None = None,
    hours: float | None = HOURS,
    started: float | None = None,
    n_jobs: int | None = None,
    study_seconds: float | None = STUDY_SECONDS,
    progress: bool = True,
) -> InferenceRun:
    """Predict studies and write `submission.csv` with its logs, complete and in time.

    Parameters
    ----------
    predictor : Predictor
    sources : sequence of StudySource
    path : path-like
        The submission. Beside it: `<name>_log.csv`, `<name>_log.jsonl`, and until the end `<name>_resume.jsonl`.
    discs : mapping of study id to DiscPoints, optional
        Known discs; those of other studies are located.
    sample : DataFrame, optional
        See `write_submission`.
    hours : float, optional
        The whole time; None for no limit.
    started : float, optional
        When the time began, by `time.monotonic()`; default now.
    n_jobs : int, optional
        See `Predictor.predict_studies`; a handful of studies is read in this process.
    study_seconds : float, optional
        See `Predictor.predict_studies`.

    Raises
    ------
    DataError
        Before the work: two studies of one id, a sample that is none, no localizer, a folder that cannot be written.
        After it: a disk that is full; the resume log is then kept, and the same call only has to write.
    """
    path, sources = Path(path), list(sources)
    ids = [source.study_id for source in sources]
    twice = next((study_id for i, study_id in enumerate(ids) if study_id in ids[:i]), None)
    if twice is not None:
        raise DataError(f"study {twice!r} is listed twice among the studies to predict")
    check_sample(sample)
    for written in (path, log_path(path, "csv"), log_path(path, "jsonl")):
        refuse_special(written)
    called = time.monotonic()
    began = called if started is None else started
    discs = {study_id: discs[study_id] for study_id in ids if study_id in discs} if discs else {}
    given = [(study_id, own.points.tolist(), own.flags) for study_id, own in discs.items()]
    fingerprint = hashlib.sha256(f"{predictor.digest()} {code_digest()} {given or ''}".encode()).hexdigest()
    resume_log = ResumeLog(path.with_name(f"{path.stem}_resume.jsonl"), fingerprint)
    try:
        known = {source.study_id: resume_log.known(source) for source in sources}
        todo = [source for source in sources if known[source.study_id] is None]
        resumed = len(sources) - len(todo)
        events: list[Issue] = []
        if resumed:
            text = f"{resumed} of {len(sources)} studies were predicted by an earlier run that was cut off"
            events.append(Issue("resumed", text))
            logger.info(text)
        deadline = None
        if hours is not None:
            options = {"weights": predictor.weights, "mirror": predictor.mirror, "started": began}
            deadline = Deadline(hours * 3600, len(todo), clock=time.monotonic, **options)
        n_jobs = n_jobs if len(todo) >= MIN_FOR_PROCESSES else None
        options = {"n_jobs": n_jobs, "study_seconds": study_seconds, "progress": progress}
        predicted = predictor.predict_studies(todo, discs=discs, deadline=deadline, **options)
        for source, prediction in zip(todo, predicted, strict=True):
            known[source.study_id] = prediction
            if not TRANSIENT & {issue.code for issue in prediction.issues}:
                resume_log.add(source, prediction)
        predictions = tuple(prediction for prediction in known.values() if prediction is not None)
        for step in deadline.steps if deadline is not None else ():
            events += _events(step, todo)
        if predictor.lost_device:
            events.append(Issue("device_lost", f"{predictor.lost_device}; the run continued without it"))
        if resume_log.broken:
            events.append(Issue("resume_log_failed", f"the resume log cannot be written: {resume_log.broken}"))
        seconds = time.monotonic() - began
        each = (time.monotonic() - called) / max(len(todo), 1)
        limit = "" if hours is None else f" of {_duration(hours * 3600)} allowed"
        text = f"{counted(len(predictions))}, {sum(p.fallback for p in predictions)} of them by the class prior; "
        events.append(Issue("finished", f"{text}took {_duration(seconds)}{limit}, {each:.2f} s a study"))
        for event in events:
            log = logger.info if event.code in ("resumed", "finished") else logger.warning
            log("%s", event.message)
        write_submission(predictions, path, sample, fallback=predictor.prior, events=events)
    except BaseException:
        resume_log.close(remove=False)
        raise
    resume_log.close(remove=True)
    return InferenceRun(predictions, path, tuple(events), resumed, seconds)


def _events(step: Step, todo: Sequence[StudySource]) -> list[Issue]:
    first = todo[step.study].study_id if step.study < len(todo) else ""
    when = f"after {_duration(step.seconds)} and {counted(step.study)}"
    if step.after is None:
        text = f"{when}: time ran out ({step.reason}); the class prior is used for {counted(len(todo) - step.study)}"
        return [Issue("time_ran_out", text, first)]
    found = []
    if step.before.mirror and not step.after.mirror:
        text = f"{when}: mirrored studies are no longer predicted, because {step.reason}"
        found.append(Issue("mirror_dropped", text, first))
    gone = [member for member in step.before.members if member not in step.after.members]
    if gone:
        text = (
            f"{when}: {len(gone)} of {len(step.before.members)} networks (number {', '.join(map(str, gone))}) are no "
            f"longer used, because {step.reason}"
        )
        found.append(Issue("network_dropped", text, first))
    return found


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
