"""Which of a study's series may be used together: those of one patient, in one frame of reference, that suit the view.

A series that may not is kept without its view, so that it can be looked at, and nothing is cut from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..dicom.acquisitions import NO_VIEW, same_person
from ..dicom.series import Series
from ..errors import Issue
from ..labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2
from .data import LUMBAR_MM, Study, extent

LEAD = 2
"""By so much must the drawbacks of one series exceed those of another of its view, for it not to be used beside it."""
COVERED = 0.6
"""Share of a series, as far as it may show the lumbar spine, that another one must show to take its place."""
ENOUGH_FRAMES = 3
"""From so many series on, each with a frame of reference of its own, an anonymiser is held to have made them."""


def usable_together(study_id: str, series: Sequence[Series], issues: Sequence[Issue]) -> Study:
    """The study of series that were read, in their order; those of another patient than the main one are left out.

    The main one is of the first sagittal T2, or else of the largest series. See `_in_one_frame` and `_best_suited`.
    """
    found = list(issues)
    main = max(series, key=lambda one: (one.view == SAGITTAL_T2, bool(one.view), one.n_slices))
    kept = []
    for one in series:
        if same_person(one.acquisition.patient, main.acquisition.patient):
            kept.append(one)
        else:
            text = "its PatientID, PatientName or PatientBirthDate is not that of the other series; left out"
            found.append(Issue("patients_mixed", text, study_id, one.series_id))
    kept = _in_one_frame(study_id, kept, found)
    return Study(study_id, tuple(_best_suited(study_id, kept, found)), tuple(found))


def _in_one_frame(study_id: str, series: list[Series], issues: list[Issue]) -> list[Series]:
    """Take the view from series whose positions cannot be compared with those of the sagittal T2.

    Positions compare inside one frame of reference (PS3.3 C.7.4.1): when the patient has been moved and the scanner
    landmarked anew, the frame is another. But some anonymisers give every series a frame of its own, the competition's
    among them. So where no two series share a frame, and they are three or more or nobody is named, those that lie in
    one place are used, and it is said. A series that differs from others that agree is never used.
    """
    framed = [one for one in series if one.view and one.acquisition.frame_of_reference]
    frames = {one.series_id: one.acquisition.frame_of_reference for one in framed}
    different = len(set(frames.values()))
    if different < 2:
        return series
    study = Study(study_id, tuple(framed))
    main = next(one for view in (SAGITTAL_T2, SAGITTAL_T1, AXIAL_T2) for one in study.by_view(view))
    named = any(one.acquisition.patient[1] for one in framed)
    read = [one for one in framed if not any(_part_of(one, other) for other in framed)]
    invented = different == len(read) and (different >= ENOUGH_FRAMES or not named)
    if invented:
        text = "each series has a FrameOfReferenceUID of its own; their positions are compared as if they shared one"
        issues.append(Issue("frames_of_reference_differ", text, study_id, used="the positions that the headers give"))
    kept = []
    for one in series:
        apart = frames.get(one.series_id, frames[main.series_id]) != frames[main.series_id]
        if apart and not (invented and covers(main, one)):
            text = f"not used as {one.view}: its FrameOfReferenceUID is not that of series {main.series_id}"
            issues.append(Issue("frames_of_reference_differ", text, study_id, one.series_id))
            one = replace(one, view="")
        kept.append(one)
    return kept


def _best_suited(study_id: str, series: list[Series], issues: list[Issue]) -> list[Series]:
    """Take the view from series where another one suits it better and shows the same."""
    study, kept = Study(study_id, tuple(series)), []
    for one in series:
        others = study.by_view(one.view) if one.view else ()
        better = next((other for other in others if _beats(other, one) and covers(other, one)), None)
        reasons = ", ".join(name for name in one.drawbacks if not better or name not in better.drawbacks)
        if better:
            text = f"not used as {one.view} ({reasons or 'of the same files'}): series {better.series_id} is better"
            issues.append(Issue("series_less_suited", text, study_id, one.series_id))
            one = replace(one, view="")
        elif one.acquisition.kind in NO_VIEW:
            text = f"shows {one.acquisition.kind}, no view"
            issues.append(Issue("series_less_suited", text, study_id, one.series_id))
        elif sum(one.drawbacks.values()) > LEAD:
            text = f"used as {one.view} although it is not plain ({reasons}): no other shows the same"
            issues.append(Issue("view_low_confidence", text, study_id, one.series_id))
        kept.append(one)
    return kept


def _beats(other: Series, one: Series) -> bool:
    """Whether a series of the same view is so much plainer, or the first of two that lay in the same files."""
    return sum(one.drawbacks.values()) - sum(other.drawbacks.values()) >= LEAD or _part_of(one, other)


def _part_of(one: Series, other: Series) -> bool:
    """Whether a series was taken out of another one's files (`dicom.parts.part_id`)."""
    return one.series_id.startswith(f"{other.series_id}-")


def covers(one: Series, other: Series) -> bool:
    """Whether a series shows most of what another shows of the lumbar spine."""
    (low, high), (other_low, other_high) = extent(one), extent(other)
    shared = np.minimum(high, other_high) - np.maximum(low, other_low)
    return bool((shared >= COVERED * np.minimum(other_high - other_low, LUMBAR_MM)).all())
