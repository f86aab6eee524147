"""What went wrong in a run, as records: where, at which stage, under which code, and what was used instead.

The readers describe what they met in words, for people. Here words become records for programs, one JSON object a
line in `submission_log.jsonl`. The codes of `CODES` are stable; the words beside them are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import Issue
from ..labels import VIEWS

if TYPE_CHECKING:
    from ..crops.extraction import StudyCrops
    from ..studies.study import Study


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
