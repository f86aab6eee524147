"""Finished predictions on disk while a run is under way, so that a killed run continues.

One JSON object a line, appended and flushed as studies are predicted. The first line holds a fingerprint of what makes
the predictions: the networks' and the localizer's weights, the options and the library's own code; a file with another
fingerprint is not used. A line that was cut off by the end of the run is dropped with all that follow it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from ..errors import DataError, Issue
from ..files import refuse_special
from ..localization import DiscPoints
from .submission import StudyPrediction

if TYPE_CHECKING:
    from ..studies.study import StudySource

logger = logging.getLogger(__name__)


class ResumeLog:
    """The resume log of one run; a file with another fingerprint of what makes the predictions is overwritten.

    `found` are place and prediction of an earlier, unfinished run's studies, `broken` says why nothing can be written
    ("" while all is well): a full disk does not end the run. Raises `DataError` when the file cannot be created, is no
    plain file, or another run has it open: better now than after hours of work.
    """

    def __init__(self, path: Path | str, fingerprint: str):
        self.path, self.broken = Path(path), ""
        self.found: dict[str, tuple[str, StudyPrediction]] = {}
        refuse_special(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b")  # noqa: SIM115, open as long as the run
            try:
                _lock(self._file)
                header = _line({"fingerprint": fingerprint})
                kept = self._read(header)
                self._file.truncate(kept)
                if not kept:
                    self._file.write(header)
                self._file.flush()
            except OSError:
                self._file.close()
                raise
        except BlockingIOError as error:
            text = "another run is writing this output; wait for its end, or name another output"
            raise DataError(f"{self.path}: {text}") from error
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error}); disk full, or a read-only folder?") from error

    def known(self, source: StudySource) -> StudyPrediction | None:
        """The prediction of an earlier run for a study that lies where it did and looks as it did, else None."""
        place, prediction = self.found.get(source.study_id, ("", None))
        return prediction if place == place_of(source) else None

    def add(self, source: StudySource, prediction: StudyPrediction) -> None:
        """Append a prediction and flush it to the disk; an error is kept in `broken` and logged once."""
        if self.broken:
            return
        try:
            self._file.write(_line({"place": place_of(source), "prediction": asdict(prediction)}))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self.broken = f"{self.path.name}: {error.strerror or error}"
            logger.warning("%s; the run goes on, but would start anew if it were killed", self.broken)

    def close(self, *, remove: bool) -> None:
        """Close the file, and remove it when the run's results are safely written."""
        if remove:
            with suppress(OSError):  # while it is still locked, where an open file can be removed
                self.path.unlink(missing_ok=True)
        try:
            self._file.close()
        except OSError as error:  # what could not be flushed because the disk is full
            self.broken = self.broken or str(error)
        if remove and os.name == "nt":
            self.path.unlink(missing_ok=True)

    def _read(self, header: bytes) -> int:
        """Read an earlier run's lines; how many bytes of them are good, 0 when there is nothing to continue from."""
        self._file.seek(0)
        content = self._file.read()
        if not content.startswith(header):
            if content:
                logger.info("%s was written with other weights, options or code and is not used", self.path)
            return 0
        good = len(header)
        for line in content[good:].splitlines(keepends=True):
            try:
                if not line.endswith(b"\n"):
                    break
                values = json.loads(line)
                place, prediction = str(values["place"]), _prediction(**values["prediction"])
            except (AttributeError, DataError, KeyError, TypeError, ValueError):
                break
            self.found[prediction.study_id] = place, prediction
            good += len(line)
        return good


def place_of(source: StudySource) -> str:
    """Where a study lies and when its folders last changed, as a digest: cheap, and changes when files come or go."""
    folders = {source.path, *(file.parent for _, files in source.series for file in files)}
    if source.in_competition:
        with suppress(OSError):  # it is not there: then that is how it looked
            folders |= {entry for entry in source.path.iterdir() if entry.is_dir()}
    stamps = [(os.path.abspath(folder), _changed(folder)) for folder in sorted(folders)]
    return hashlib.sha256(repr((stamps, source.listed, source.series_ids)).encode()).hexdigest()[:32]


def _changed(folder: Path) -> int | None:
    with suppress(OSError):
        return os.stat(folder).st_mtime_ns
    return None


def code_digest() -> str:
    """Changes with any line of the library's own source."""
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def _lock(file: BinaryIO) -> None:
    """Keep other runs from a file until it is closed; raises `BlockingIOError` when one has it.

    Where the system or the file system has no such locks, nothing is kept from anybody.
    """
    with suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError as error:
            logger.debug("no lock on %s: %s", file.name, error)


def _line(values: dict) -> bytes:
    return json.dumps(values, separators=(",", ":"), default=np.ndarray.tolist).encode() + b"\n"


def _prediction(*, discs: dict | None, missing_views: list, issues: list, **values) -> StudyPrediction:
    """The inverse of `asdict`, by way of JSON."""
    found = None if discs is None else DiscPoints(**discs)
    return StudyPrediction(
        **values, discs=found, missing_views=tuple(missing_views), issues=tuple(map(Issue.from_json, issues))
    )
