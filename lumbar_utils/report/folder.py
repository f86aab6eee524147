"""The files of many reports: safe names, whole files, failures that cost only their own study.

DIR/index.html, index.json      over all studies of the folder, also those of earlier runs
DIR/studies/<study>.html, .json one study
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..crops.extraction import CropSpec, StudyCrops, extract_crops
from ..errors import DataError, LumbarError, OutputError
from ..files import atomically, file_name, read_json, write_json
from ..inference.submission import StudyPrediction
from ..notebook_html import progress_bar
from ..parallel import JobFailure, run_jobs
from ..studies.competition import in_synthetic_cohort
from ..studies.study import Study, StudySource, load_study
from .content import SCHEMA, SCHEMA_VERSION, describe, without_paths
from .page import index_page, study_page
from .pictures import overview, panels

logger = logging.getLogger(__name__)

STUDIES_A_PROCESS = 8
"""A process takes seconds to start, a report less than one."""
SUMMARY_KEYS = (
    *("study_id", "created", "warnings", "synthetic", "fallback"),
    *("summary", "grades", "missing_views", "flags"),
)
"""What the index keeps of a report."""


class ReportFolder:
    """Reports of many studies in one folder, written one by one; nothing of a study is kept but its summary.

    The folder is made when it is not there. Reports of other studies in it stay, and are in the index too. `model`
    tells what predicted, for the page: name, networks, mirrored, calibrated, disc_localizer. `synthetic`: all studies
    are phantoms; those in a synthetic cohort's folder are recognised without it. Raises `DataError` when the folder is
    a file or cannot be made.
    """

    def __init__(self, folder: Path | str, *, model: Mapping | None = None, synthetic: bool = False):
        self.folder, self.model, self.synthetic = Path(folder), dict(model or {}), synthetic
        self.failures: dict[str, str] = {}
        self.written = 0
        try:
            (self.folder / "studies").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.folder}: reports cannot be written there ({error})") from error

    def add(self, source: StudySource, prediction: StudyPrediction, spec: CropSpec | None = None) -> Path | None:
        """Write the report of a study that is read again for its pictures; None, and a warning, when it fails.

        A study that cannot be read or cropped still gets its page, without pictures.
        """
        self.add_all([source], [prediction], spec, progress=False)
        failed = prediction.study_id in self.failures
        return None if failed else self.folder / "studies" / f"{file_name(prediction.study_id)}.html"

    def add_all(
        self,
        sources: Iterable[StudySource],
        predictions: Iterable[StudyPrediction],
        spec: CropSpec | None = None,
        *,
        n_jobs: int = 1,
        progress: bool = True,
    ) -> None:
        """`add` for many studies and their predictions in the same order, in processes where they are worth it.

        Both may be generators: reports are then written as the predictions come, some at a time, and memory
        stays flat.
        """
        total = len(sources) if isinstance(sources, Sequence) else None
        if total is not None:
            n_jobs = max(1, min(n_jobs, total // STUDIES_A_PROCESS))
        study_ids = []

        def tasks() -> Iterator[tuple]:
            for source, prediction in zip(sources, predictions, strict=True):
                study_ids.append(prediction.study_id)
                yield self, source, prediction, spec

        done = run_jobs(_add, tasks(), n_jobs=n_jobs)
        for index, result in progress_bar(done, desc="reports", unit="study", total=total, disable=not progress):
            study_id = study_ids[index]
            self.failures.pop(study_id, None)
            if isinstance(result, JobFailure):
                self.failures[study_id] = result.reason
                logger.warning("study %s: no report: %s", study_id, result.reason)
            else:
                self.written += 1

    def write(
        self,
        prediction: StudyPrediction,
        study: Study | None = None,
        crops: StudyCrops | None = None,
        *,
        synthetic: bool | None = None,
        private_paths: tuple[str, ...] = (),
        maps: Mapping[str, np.ndarray] | None = None,
    ) -> Path:
        """Write the page and the JSON of a study; the page's path. Raises `DataError` when a file cannot be written.

        Study and crops are for the pictures and the facts about series and crops; `synthetic` says that the study is a
        phantom, default as given to the folder; `private_paths` are cut from the issues; `maps` is attribution by view,
        (5, D, H, W), 0 to 1, in the shape of `crops.images`.
        """
        synthetic = self.synthetic if synthetic is None else synthetic
        options = {"synthetic": synthetic, "model": self.model, "private_paths": private_paths}
        report = describe(prediction, study=study, crops=crops, **options)
        located = None
        if study is not None and prediction.discs is not None:
            try:
                located = overview(study, prediction.discs, crops)
            except DataError as error:  # no sagittal series, with points that the caller knew
                logger.info("study %s: no overview in its report: %s", study.study_id, error)
        rows = [] if crops is None else panels(crops, study, maps)
        path = self.folder / "studies" / f"{file_name(prediction.study_id)}.html"
        _write_page(path, study_page(report, located, rows, index="../index.html"))
        write_json(path.with_suffix(".json"), report)
        return path

    def finish(self) -> Path:
        """Write the index over all reports in the folder, as HTML and as JSON; the page's path."""
        entries = []
        for path in sorted((self.folder / "studies").glob("*.json")):
            try:
                report = read_json(path)
                if (report.get("schema"), report.get("schema_version")) != (SCHEMA, SCHEMA_VERSION):
                    raise DataError(f"{path}: not a report of version {SCHEMA_VERSION}")
                if file_name(report["study_id"]) != path.stem or not path.with_suffix(".html").is_file():
                    raise DataError(f"{path}: not beside the page of its study")
                entries.append({**{key: report[key] for key in SUMMARY_KEYS}, "page": f"studies/{path.stem}.html"})
            except (DataError, KeyError, TypeError) as error:
                logger.warning("left out of the index: %s", error)
        index = self.folder / "index.html"
        _write_page(index, index_page(entries, self.failures))
        values = {"schema": f"{SCHEMA}-index", "schema_version": SCHEMA_VERSION, "studies": entries}
        write_json(index.with_suffix(".json"), {**values, "failures": self.failures})
        return index


def _add(reports: ReportFolder, source: StudySource, prediction: StudyPrediction, spec: CropSpec | None) -> None:
    """Read a study again, as far as it can be, and write its report; raises a `DataError` that names no folder."""
    path, study, crops = source.path, None, None
    private = tuple(str(folder) for start in (path, path.absolute()) for folder in (start, *start.parents))
    try:
        study = load_study(source)
        crops = None if prediction.discs is None else extract_crops(study, prediction.discs, spec)
    except Exception as error:  # the prediction's issues hold the reasons already
        logger.info("study %s: its report lacks pictures: %s", source.study_id, error)
    try:
        synthetic = reports.synthetic or in_synthetic_cohort(path)
        reports.write(prediction, study, crops, synthetic=synthetic, private_paths=private)
    except OutputError:
        raise
    except Exception as error:  # the predictions are written; a report that fails must not look like their failure
        message = str(error) if isinstance(error, LumbarError) else f"{type(error).__name__}: {error}"
        raise DataError(without_paths(message, private)) from None


def _write_page(path: Path, page: str) -> None:
    content = page.encode("utf-8", "replace")  # a folder's name can hold bytes that are no text
    atomically(path, lambda temporary: temporary.write_bytes(content))
