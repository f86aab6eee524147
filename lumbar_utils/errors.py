"""The library's exceptions, and the records of what went wrong without stopping anything.

Every error that a user's data or a user's mistake can cause is a `LumbarError`, so that a run over
many studies can catch exactly these, note them and go on, and so that the command line can print one
clear line instead of a traceback.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, replace
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


class OutputError(DataError):
    """A result that cannot be written: a full disk is no fault of a study, and ends a run over many at once."""


class MissingPackageError(LumbarError, ImportError):
    """A package that only an extra brings is not installed; the message names the command that installs it."""


PRIOR = "weighted class prior"
MISSING_VIEW_EMBEDDING = "the network's missing-view embedding"

CODES = {
    # code: (stage, what is used instead)
    "file_unreadable": ("read", "the other slices of the series"),
    "slice_duplicate": ("read", "the other slice at the same place"),
    "contrast_left_out": ("read", "the images of the contrast that suits the view"),
    "series_taken_apart": ("read", "each of them as a series of its own"),
    "series_less_suited": ("read", "the series that suits the view better"),
    "patients_mixed": ("read", "the images of one patient"),
    "frames_of_reference_differ": ("read", "the series in the frame of the sagittal T2"),
    "uids_not_usable": ("read", "series that are told apart by how they were acquired"),
    "slice_scout": ("read", "the slices in the series' own plane"),
    "series_unreadable": ("read", "the other series"),
    "series_not_on_disk": ("read", "the other series"),
    "series_not_listed": ("read", "the view recognised by its headers"),
    "series_description_unknown": ("read", "the view recognised by its headers"),
    "view_low_confidence": ("read", "the view that is listed or guessed"),
    "files_not_read": ("read", "the files before them"),
    "series_not_mr": ("read", "the other series"),
    "study_unreadable": ("read", PRIOR),
    "series_not_located": ("locate", "the other sagittal series"),
    "levels_low_confidence": ("locate", "the most probable level labelling"),
    "discs_not_found": ("locate", PRIOR),
    "series_not_cropped": ("crop", "the other series"),
    "view_missing": ("crop", MISSING_VIEW_EMBEDDING),
    "levels_missing": ("crop", f"{MISSING_VIEW_EMBEDDING} at these levels"),
    "voxels_not_finite": ("crop", "the other voxels"),
    "not_cropped": ("crop", PRIOR),
    "nothing_shown": ("crop", PRIOR),
    "network_not_finite": ("predict", "the other ensemble members"),
    "unlike_training": ("predict", "the grades all the same, which deserve less trust"),
    "not_predicted": ("predict", PRIOR),
    "study_timeout": ("time", PRIOR),
    "worker_lost": ("time", PRIOR),
    "out_of_time": ("time", PRIOR),
    "study_absent": ("write", PRIOR),
    "mirror_dropped": ("run", "the studies without their mirror images"),
    "network_dropped": ("run", "the ensemble members of more weight"),
    "time_ran_out": ("run", PRIOR),
    "device_lost": ("run", "the CPU"),
    "resumed": ("run", "the predictions that an earlier, unfinished run left"),
    "resume_log_failed": ("run", "memory alone: a killed run starts anew"),
    "finished": ("run", ""),
    "note": ("note", ""),
}
"""Every code, with the stage at which it arises and what is used instead of what is lost. Codes of the stage `run` are
about the whole run; `study_id` then names the first study that is concerned, or none."""


@dataclass(frozen=True)
class Issue:
    """One thing that went wrong or was left out.

    Attributes
    ----------
    code : str
        One of `CODES`.
    message : str
        What was met.
    study_id, series_id, file, view : str
        Where, as far as it is known; file names are without folder.
    used : str
        What was used instead; default: as `CODES` says.

    Raises `DataError` for an unknown code. `str()` gives the message with series, file and view.
    """

    code: str
    message: str
    study_id: str = ""
    series_id: str = ""
    file: str = ""
    view: str = ""
    used: str = ""

    def __post_init__(self):
        if self.code not in CODES:
            raise DataError(f"unknown code {self.code!r} of an issue, known are {sorted(CODES)}")
        object.__setattr__(self, "used", self.used or CODES[self.code][1])

    @property
    def stage(self) -> str:
        """read, locate, crop, predict, time, write, run or note."""
        return CODES[self.code][0]

    def __str__(self) -> str:
        where = (f"series {self.series_id}" if self.series_id else "", self.file, self.view)
        return ": ".join(part for part in (*where, self.message) if part)

    def rewritten(self, rewrite: Callable[[str], str]) -> Issue:
        """The same with its message and file name passed through a function, to take out what must not be shown."""
        return replace(self, message=rewrite(self.message), file=rewrite(self.file))

    def to_json(self) -> dict[str, str]:
        """All fields and the stage, JSON-ready."""
        return {
            "study_id": self.study_id,
            "series_id": self.series_id,
            "file": self.file,
            "view": self.view,
            "stage": self.stage,
            "code": self.code,
            "message": self.message,
            "used": self.used,
        }

    @classmethod
    def from_json(cls, values: dict) -> Issue:
        """The inverse of `to_json`; raises `DataError` without code or message, and for an unknown key."""
        try:
            return cls(**{name: str(value) for name, value in values.items() if name != "stage"})
        except TypeError as error:
            raise DataError(f"not an issue's record: {values!r}") from error


def counted(count: int, one: str = "study", many: str = "studies") -> str:
    """`"1 study"`, `"2 studies"`, for messages."""
    return f"{count} {one if count == 1 else many}"


OUT_OF_MEMORY = "not enough memory; use fewer --jobs, end other programs, or raise the limit (see ulimit -v)"
_OUT_OF_MEMORY = ("out of memory", "allocate memory", "not enough memory", "failed to map segment", "bad_alloc")


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, came of too little memory; libraries say so in many ways."""
    while error is not None:
        said = str(error).lower()
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            return True
        if any(words in said for words in _OUT_OF_MEMORY) and "static tls" not in said:
            return True
        error = error.__cause__ or error.__context__
    return False
