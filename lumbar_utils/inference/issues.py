"""What went wrong in a run, as records: where, at which stage, under which code, and what was used instead.

The readers describe what they met in words, for people. Here words become records for programs, one JSON object a
line in `submission_log.jsonl`. The codes of `CODES` are stable; the words beside them are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import DataError
from ..labels import VIEWS

if TYPE_CHECKING:
    from ..crops.extraction import StudyCrops
    from ..studies.study import Study

PRIOR = "weighted class prior"
MISSING_VIEW_EMBEDDING = "the network's learned stand-in"

CODES = {
    # code: (stage, what is used instead)
    "file_unreadable": ("read", "the other slices of the series"),
    "slice_duplicate": ("read", "the other slice at the same place"),
    "slice_scout": ("read", "the slices in the series' own plane"),
    "series_unreadable": ("read", "the other series"),
    "series_not_on_disk": ("read", "the other series"),
    "series_not_listed": ("read", "the view recognised by its headers"),
    "series_description_unknown": ("read", "the view recognised by its headers"),
    "view_low_confidence": ("read", "the view that is listed or guessed"),
    "study_unreadable": ("read", PRIOR),
    "series_not_located": ("locate", "the other sagittal series"),
    "levels_low_confidence": ("locate", "the most probable naming"),
    "discs_not_found": ("locate", PRIOR),
    "series_not_cropped": ("crop", "the other series"),
    "view_missing": ("crop", MISSING_VIEW_EMBEDDING),
    "levels_missing": ("crop", f"{MISSING_VIEW_EMBEDDING} at these levels"),
    "not_cropped": ("crop", PRIOR),
    "nothing_shown": ("crop", PRIOR),
    "network_not_finite": ("grade", "the other networks"),
    "not_graded": ("grade", PRIOR),
    "study_timeout": ("time", PRIOR),
    "worker_lost": ("time", PRIOR),
    "out_of_time": ("time", PRIOR),
    "not_predicted": ("write", PRIOR),
    "mirror_dropped": ("run", "the studies as they are, without their mirror images"),
    "network_dropped": ("run", "the networks of more weight"),
    "time_ran_out": ("run", PRIOR),
    "device_lost": ("run", "the CPU"),
    "resumed": ("run", "the predictions that an earlier, unfinished run left"),
    "resume_log_failed": ("run", "memory alone: if this run is killed, it starts anew"),
    "finished": ("run", ""),
    "note": ("note", ""),
}
"""Every code, with the stage at which it arises and what stands in for what is lost. Codes of the stage `run` are about
the whole run; `study_id` then names the first study that is concerned, or none."""


@dataclass(frozen=True)
class Issue:
    """One thing that went wrong or was left out.

    Attributes
    ----------
    code : str
        One of `CODES`.
    message : str
        What was met, in words.
    study_id, series_id, file : str
        Where, as far as it is known; file names are without folder.
    used : str
        What was used instead; default: as `CODES` says.

    Raises `DataError` for an unknown code. `str()` gives the words with series and file.
    """

    code: str
    message: str
    study_id: str = ""
    series_id: str = ""
    file: str = ""
    used: str = ""

    def __post_init__(self):
        if self.code not in CODES:
            raise DataError(f"unknown code {self.code!r} of a issue, known are {sorted(CODES)}")
        object.__setattr__(self, "used", self.used or CODES[self.code][1])

    @property
    def stage(self) -> str:
        """read, locate, crop, grade, time, write, run or note."""
        return CODES[self.code][0]

    def __str__(self) -> str:
        where = (f"series {self.series_id}" if self.series_id else "", self.file)
        return ": ".join(part for part in (*where, self.message) if part)

    def to_json(self) -> dict[str, str]:
        """All fields and the stage, JSON-ready."""
        return {
            "study_id": self.study_id,
            "series_id": self.series_id,
            "file": self.file,
            "stage": self.stage,
            "code": self.code,
            "message": self.message,
            "used": self.used,
        }

    @classmethod
    def from_json(cls, values: dict) -> Issue:
        """The inverse of `to_json`; raises `DataError` when a key is missing or unknown."""
        try:
            return cls(**{name: str(value) for name, value in values.items() if name != "stage"})
        except TypeError as error:
            raise DataError(f"not a issue's record: {values!r}") from error


def counted(count: int, one: str = "study", many: str = "studies") -> str:
    """`"1 study"`, `"2 studies"`."""
    return f"{count} {one if count == 1 else many}"


_SERIES = re.compile(r"series (\S+): (.*)", re.DOTALL)
_FILE = re.compile(r"([^:\n]{1,255}): (.*)", re.DOTALL)
_LEFT_OUT = re.compile(r"(.+?): (lies where another slice does.*|scout .*), left out", re.DOTALL)


def issues_of_study(study: Study) -> tuple[Issue, ...]:
    """The records of what reading a study met, of the study first and then of each series."""
    found = [_of_study(text, study.study_id) for text in study.issues]
    for series in study.series:
        found += [_of_series(text, study.study_id, series.series_id) for text in series.issues]
    return tuple(found)


def issues_of_crops(items: Iterable[StudyCrops]) -> tuple[Issue, ...]:
    """The records of what cropping met, each once however many specifications met it."""
    found: dict[tuple[str, str], Issue] = {}
    for crops in items:
        for text in crops.issues:
            view, _, words = text.partition(": ")
            code = "note" if view not in VIEWS else "view_missing" if words.startswith("no crops") else "levels_missing"
            found[crops.study_id, text] = Issue(code, text, crops.study_id)
    return tuple(found.values())


def _of_study(text: str, study_id: str) -> Issue:
    of_series = _SERIES.fullmatch(text)
    if of_series is None:
        of_file = _FILE.fullmatch(text)
        if of_file is None:
            return Issue("note", text, study_id)
        return Issue("file_unreadable", of_file[2], study_id, file=of_file[1])
    series_id, words = of_series.groups()
    code = "series_unreadable"
    if "not on disk" in words:
        code = "series_not_on_disk"
    elif "not in the table" in words:
        code = "series_not_listed"
    elif "recognised as" in words:
        code = "series_description_unknown"
    return Issue(code, words, study_id, series_id)


def _of_series(text: str, study_id: str, series_id: str) -> Issue:
    left_out = _LEFT_OUT.fullmatch(text)
    if left_out is not None:
        code = "slice_scout" if left_out[2].startswith("scout") else "slice_duplicate"
        return Issue(code, f"{left_out[2]}, left out", study_id, series_id, left_out[1])
    if text.startswith(("listed as", "described as", "neither times nor")):
        return Issue("view_low_confidence", text, study_id, series_id)
    of_file = _FILE.fullmatch(text)
    if of_file is None:
        return Issue("note", text, study_id, series_id)
    return Issue("file_unreadable", of_file[2], study_id, series_id, of_file[1])
