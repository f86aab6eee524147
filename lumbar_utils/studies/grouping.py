"""Which images of a folder are one study and one series: told by their UIDs, as far as those can be trusted.

Anonymisers remove UIDs, or give every image its own; and one StudyInstanceUID may hold two people.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from operator import and_

from ..dicom.acquisitions import same_person
from ..dicom.headers import FileHeader
from ..errors import Issue
from ..files import hashed

LONELY = 3
"""So many images that look alike and each have a UID of their own are held to have got it from an anonymiser."""


def group_images(headers: Sequence[FileHeader]) -> tuple[list[tuple[str, str]], dict[str, list[Issue]]]:
    """Study and series of each image, names that hold nothing of the patient, and issues by study."""
    issues: dict[str, list[Issue]] = defaultdict(list)
    studies = _by_patient(headers, _study_keys(headers), issues)
    looks = []
    for study, header in zip(studies, headers, strict=True):
        made, spacing = header.acquisition, tuple(round(mm, 3) for mm in header.spacing)
        looks.append((study, made.description, made.series_number, header.shape[1:], spacing))
    lonely = _lonely([(study, one.series_uid) for study, one in zip(studies, headers, strict=True)], looks, headers)
    named: dict[tuple, str] = {}
    counts: Counter[tuple[str, str]] = Counter()
    series = []
    for study, header, look, alone in zip(studies, headers, looks, lonely, strict=True):
        if header.series_uid and not alone:
            series.append(header.series_uid)
            continue
        key = look if header.series_uid else (*look, header.path.parent)
        series.append(named.setdefault(key, header.series_uid or f"series-{len(named) + 1}"))
        counts[study, series[-1]] += 1
    for (study, one), count in counts.items():
        text = f"{count} images have no SeriesInstanceUID, or each its own; taken as one series, as they look alike"
        issues[study].append(Issue("uids_not_usable", text, series_id=one))
    return list(zip(studies, series, strict=True)), issues


def _study_keys(headers: Sequence[FileHeader]) -> list[str]:
    """StudyInstanceUIDs; where they are missing, or each image has its own, what else ties images together."""
    ties = []
    for header in headers:
        made = header.acquisition
        ties.append(made.patient if any(made.patient) else made.frame_of_reference or str(header.path.parent))
    lonely = _lonely([header.study_uid for header in headers], ties, headers)
    named: dict[object, str] = {}
    keys = []
    for header, tie, alone in zip(headers, ties, lonely, strict=True):
        known = header.study_uid or header.acquisition.frame_of_reference or hashed("study", str(header.path.parent))
        keys.append(named.setdefault(tie, known) if alone or not header.study_uid else header.study_uid)
    return keys


def _lonely(uids: list, alike: list, headers: Sequence[FileHeader]) -> list[bool]:
    """Which images are the only one of their UID, as `LONELY` or more of those that are alike are."""
    counts = Counter(uids)
    alone = [counts[uid] == 1 and header.shape[0] == 1 for uid, header in zip(uids, headers, strict=True)]
    many = Counter(one for one, here in zip(alike, alone, strict=True) if here)
    return [here and many[one] >= LONELY for one, here in zip(alike, alone, strict=True)]


def _by_patient(headers: Sequence[FileHeader], studies: list[str], issues: dict[str, list[Issue]]) -> list[str]:
    """Names of studies in which no two patients are together: those of the second and others get a number."""
    patients = [header.acquisition.patient for header in headers]
    people: dict[str, list[tuple]] = defaultdict(list)
    keys = list(studies)
    for i in sorted(range(len(keys)), key=lambda i: -sum(map(bool, patients[i]))):  # who is named completely first
        known = people[studies[i]]
        agree = [sum(map(bool, map(and_, patients[i], one))) if same_person(patients[i], one) else -1 for one in known]
        if max(agree, default=-1) < 0:
            agree.append(0)
            known.append(patients[i])
        number = agree.index(max(agree))
        keys[i] = f"{studies[i]}-patient-{number + 1}" if number else studies[i]
    for study, key in dict(zip(keys, studies, strict=True)).items():
        if len(people[key]) > 1:
            text = f"images of {len(people[key])} patients have its StudyInstanceUID; each is a study of its own"
            issues[study].append(Issue("patients_mixed", text))
    return keys
