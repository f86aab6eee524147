"""The files of many reports: safe names, whole files, failures that cost only their own study.

DIR/index.html, index.json      over all studies of the folder, also those of earlier runs
DIR/studies/<study>.html, .json one study
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..competition import SYNTHETIC_MARK
from ..crops import extract_crops
from ..errors import DataError
from ..runs import atomically, read_json, write_json
from ..study import load_study
from .content import SCHEMA, SCHEMA_VERSION, describe
from .page import index_page, study_page
from .pictures import overview, panels

if TYPE_CHECKING:
    from ..crops import CropSpec, StudyCrops
    from ..study import Study, StudySource
    from ..submission import StudyPrediction

logger = logging.getLogger(__name__)

PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
"""Names that Windows gives to devices."""
SUMMARY_KEYS = (
    "study_id",
    "created",
    "warnings",
    "synthetic",
    "fallback",
    "summary",
    "grades",
    "missing_views",
    "flags",
)
"""What the index keeps of a report."""


def file_name(study_id: str) -> str:
    """A study's id as a file's name without ending, which no id can leave its folder by; different ids differ."""
    if PLAIN_NAME.fullmatch(study_id) and not RESERVED.fullmatch(study_id) and not study_id.endswith("."):
        return study_id
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", study_id)[:60].strip("_") or "study"
    return f"{readable}-{hashlib.sha256(study_id.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


class ReportFolder:
    """Reports of many studies in one folder, written one by one; nothing of a study is kept but its summary.

    Parameters
    ----------
    folder : path-like
        Made when it is not there. Reports of other studies in it stay, and stand in the index too.
    model : mapping, optional
        What graded, for the page: name, networks, mirrored, calibrated, disc_finder.
    synthetic : bool
        All studies are phantoms; those in a synthetic cohort's folder are recognised without it.

    Raises
    ------
    DataError
        When the folder is a file or cannot be made.
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
        try:
            study, crops = _read_again(source, prediction, spec)
            synthetic = self.synthetic or _in_synthetic_cohort(source.path)
            return self.write(prediction, study, crops, synthetic=synthetic, private_paths=_private(source.path))
        except Exception as error:  # the grades are written; a report that fails must not look like their failure
            self._failed(prediction.study_id, error)
            return None

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
        """Write the page and the JSON of a study; the page's path.

        Parameters
        ----------
        study, crops : optional
            For the pictures, and what is said about series and crops.
        synthetic : bool, optional
            The study is a phantom; default: as the folder was told.
        private_paths : tuple of str
            Cut from the words about problems.
        maps : mapping view -> ndarray, shape (5, D, H, W), optional
            Where the network looked, 0 to 1, in the shape of `crops.images`.

        Raises
        ------
        DataError
            When a file cannot be written.
        """
        synthetic = self.synthetic if synthetic is None else synthetic
        report = describe(
            prediction,
            study=study,
            crops=crops,
            synthetic=synthetic,
            model=self.model,
            private_paths=private_paths,
        )
        located = _overview(study, prediction, crops)
        rows = [] if crops is None else panels(crops, study, maps)
        page = study_page(report, located, rows, index="../index.html")
        path = self.folder / "studies" / f"{file_name(prediction.study_id)}.html"
        _write_page(path, page)
        write_json(path.with_suffix(".json"), report)
        self.failures.pop(prediction.study_id, None)
        self.written += 1
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
        page = index_page(entries, self.failures)
        _write_page(index, page)
        values = {"schema": f"{SCHEMA}-index", "schema_version": SCHEMA_VERSION, "studies": entries}
        write_json(index.with_suffix(".json"), {**values, "failures": self.failures})
        return index

    def _failed(self, study_id: str, error: Exception) -> None:
        self.failures[study_id] = f"{type(error).__name__}: {error}"
        logger.warning("study %s: no report: %s", study_id, error)


def _write_page(path: Path, page: str) -> None:
    content = page.encode("utf-8", "replace")  # a folder's name can hold bytes that are no text
    atomically(path, lambda temporary: temporary.write_bytes(content))


def _read_again(
    source: StudySource, prediction: StudyPrediction, spec: CropSpec | None
) -> tuple[Study | None, StudyCrops | None]:
    """The study and its crops as far as they can be had; the reasons stand in the prediction's problems already."""
    try:
        study = load_study(source)
    except Exception as error:
        logger.info("study %s: no pictures in its report: %s", source.study_id, error)
        return None, None
    if prediction.discs is None:
        return study, None
    try:
        return study, extract_crops(study, prediction.discs, spec)
    except Exception as error:
        logger.info("study %s: no crops in its report: %s", source.study_id, error)
        return study, None


def _overview(study: Study | None, prediction: StudyPrediction, crops: StudyCrops | None) -> dict | None:
    if study is None or prediction.discs is None:
        return None
    try:
        return overview(study, prediction.discs, crops)
    except DataError as error:  # no sagittal series, with points that the caller knew
        logger.info("study %s: no overview in its report: %s", study.study_id, error)
        return None


def _private(path: Path) -> tuple[str, ...]:
    """The folders that a study's files lie in, as they may stand in words about them."""
    return tuple(str(folder) for start in (path, path.absolute()) for folder in (start, *start.parents))


def _in_synthetic_cohort(path: Path) -> bool:
    return any((folder / SYNTHETIC_MARK).is_file() for folder in [*path.absolute().parents][:4])
