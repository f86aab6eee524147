"""The library's exceptions.

Every error that a user's data or a user's mistake can cause is a `LumbarError`, so that a run over
many studies can catch exactly these, note them and go on, and so that the command line can print one
clear line instead of a traceback.
"""

from __future__ import annotations

from pathlib import Path


class LumbarError(Exception):
    """Base of all errors that the library raises on purpose."""


class GeometryError(LumbarError):
    """Positions, directions or spacings that do not describe a slice or a stack."""


class DicomError(LumbarError):
    """A DICOM file or series that cannot be read; the message names where and what.

    Parameters
    ----------
    issue : str
        What was wrong: what came and what was expected.
    path : path-like, optional
        The file or folder concerned.
    study_id, series_id : str, optional
        Named in the message when known.
    """

    def __init__(self, issue: str, *, path: Path | str | None = None, study_id: str = "", series_id: str = ""):
        where = [f"study {study_id}" if study_id else "", f"series {series_id}" if series_id else "", str(path or "")]
        prefix = ", ".join(part for part in where if part)
        super().__init__(f"{prefix}: {issue}" if prefix else issue)
        self.issue = issue
        self.path = Path(path) if path is not None else None
        self.study_id = study_id
        self.series_id = series_id


class DataError(LumbarError):
    """A folder or a table that does not have the form it should have."""


class MissingPackageError(LumbarError, ImportError):
    """A package that only an extra brings is not installed; the message names the command that installs it."""
