"""Which of the competition's three views a series is, where no table says so.

The plane comes from the slices' normals alone. T1 against T2/STIR comes from the physics (echo, repetition and
inversion time), then from words of the description. When the two contradict each other the times win: the
scanner writes them, people write the words. A sagittal or axial series with neither is taken as T2, because the
T2 view is the one that finds the discs, and the guess is reported as an issue.

Usual times at 1.5 and 3 T: T1 spin echo TR 400-900 TE 8-20; T1 FLAIR TR 1800-2800 TE 8-30 TI 700-1100; T2 spin
echo TR above 2000 TE 70-130; STIR TI 130-240.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from ..geometry import SliceGeometry
from ..labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2

SAGITTAL, AXIAL, CORONAL = "sagittal", "axial", "coronal"

SAGITTAL_COSINE = 0.75
"""A slice is sagittal when its normal is nearer than 41 degrees to left-right; scoliosis tilts planes by 20 or so."""
AXIAL_COSINE = 0.57
"""A slice is axial up to 55 degrees from level: planes along the L5/S1 disc are tilted by 30 to 45 degrees."""
MAIN_PLANE_SHARE = 0.5
"""A series with no plane in more than this share of its slices is a three-plane scout, not a view."""

STIR_MAX_TI = 400.0
"""ms. Fat is nulled at 130-240 ms, CSF and water (FLAIR) at 700 ms and more."""
T1_MAX_TE, T1_MAX_TR, T2_MIN_TE, T2_MIN_TR = 35.0, 1300.0, 60.0, 1500.0
"""ms; what lies between is left to the words."""

_SCOUT = re.compile(r"\b(localizer|localiser|loc|scout|survey|3[ -]?plane|three[ -]?plane|scanogram|smartbrain)\b")
_OTHER = re.compile(r"\b(dwi|adc|diff\w*|mra|angio\w*|myelo\w*|swi|spectro\w*|calib\w*|perf\w*|mip)\b")
_LUMBAR = re.compile(r"lumb|\b(l ?spine|ls ?spine|lsp|lws|lwk|l ?s|l5|s1|sacr\w*)\b")
_ELSEWHERE = re.compile(
    r"\b(c ?spine|cspine|cerv\w*|hws|neck|t ?spine|thora\w*|bws|brain|head|skull|orbit\w*|iac|pituit\w*|knee|shoulder|"
    r"hip|ankle|foot|wrist|hand|elbow|prostat\w*|breast|mamm\w*|heart|cardi\w*|liver|mrcp)\b"
)
_OTHER_TYPES = frozenset({
    *("LOCALIZER", "ADC", "DIFFUSION", "TRACEW", "FA", "EXP", "PERFUSION", "MIP", "MINIP", "PROJECTION"),
    *("PHASE", "SUBTRACTION", "VELOCITY", "ANGIO"),
})  # fmt: skip
"""Words of ImageType that make an image something else than anatomy in a slice."""
_WEIGHTING = r"(?<![a-z0-9])(?:s|v|fs|sag|sagittal|ax|axial|tra|tse|fse)?t{}(?![0-9])"  # "sT2W", "SAGT1", not "T12"
_T1 = re.compile(_WEIGHTING.format(1))
_T2 = re.compile(_WEIGHTING.format(2) + r"|stir|tirm|merge|medic\b")


def plane_of(geometry: SliceGeometry) -> str:
    """`"sagittal"`, `"axial"` or `"coronal"`, by the direction of the slice's normal."""
    x, _, z = np.abs(geometry.normal)
    if x >= SAGITTAL_COSINE:
        return SAGITTAL
    if z >= AXIAL_COSINE:
        return AXIAL
    return CORONAL


def main_plane(planes: Sequence[str]) -> str:
    """The plane of more than half of the slices, "" when there is none."""
    for plane in set(planes):
        if planes.count(plane) > MAIN_PLANE_SHARE * len(planes):
            return plane
    return ""


def contrast_by_times(header: Mapping) -> str:
    """`"T1"`, `"T2"` (STIR included) or "" from RepetitionTime, EchoTime and InversionTime in ms.

    Gradient echoes are left to the words: a T2*-weighted axial series has the times of a T1 spin echo.
    """
    tr, te, ti = (header.get(k) for k in ("RepetitionTime", "EchoTime", "InversionTime"))
    sequence = str(header.get("ScanningSequence") or "").upper().split()
    if ti and 50 < ti < STIR_MAX_TI and (tr is None or tr > T1_MAX_TR):
        return "T2"
    if te is None or te <= 0 or ("GR" in sequence and "SE" not in sequence):
        return ""
    if te >= T2_MIN_TE and (tr is None or tr <= 0 or tr >= T2_MIN_TR):
        return "T2"
    if te <= T1_MAX_TE and tr and (tr <= T1_MAX_TR or (ti and ti >= STIR_MAX_TI)):
        return "T1"
    return ""


def contrast_by_words(*texts: str | None) -> str:
    """`"T1"`, `"T2"`, `"other"` (no anatomical T1 or T2 image) or "", from the first text that says one of them."""
    for words in texts:
        words = re.sub(r"[_\W]+", " ", str(words or "").lower())
        if _SCOUT.search(words) or _OTHER.search(words):
            return "other"
        t1, t2 = bool(_T1.search(words)), bool(_T2.search(words))
        if t1 != t2:
            return "T1" if t1 else "T2"
    return ""


def elsewhere(header: Mapping, *texts: str | None) -> str:
    """The body part that a series says it shows, "" when it is the lumbar spine or nothing is said.

    What people wrote about the series counts more than BodyPartExamined, which is often that of the protocol before;
    and the lumbar spine counts where both are named.
    """
    for words in (*texts, header.get("BodyPartExamined")):
        words = re.sub(r"[_\W]+", " ", str(words or "").lower())
        if _LUMBAR.search(words):
            return ""
        found = _ELSEWHERE.search(words)
        if found:
            return found[0]
    return ""


def recognise(planes: Sequence[str], header: Mapping, description: str) -> tuple[str, str]:
    """The view of a series and what had to be guessed.

    Parameters
    ----------
    planes : sequence of str
        `plane_of` every slice.
    header : mapping
        As in `dicom.series.Series.header`; missing values are None.
    description : str
        SeriesDescription.

    Returns
    -------
    view : str
        One of `labels.VIEWS`, or "" for what is none of them: scouts, coronal slices, axial T1, diffusion,
        projections and maps, other parts of the body.
    note : str
        "" or what was guessed or contradictory, for `Series.issues`.
    """
    plane = main_plane(planes)
    modality = str(header.get("Modality") or "MR").upper()
    if plane not in (SAGITTAL, AXIAL) or modality != "MR":
        return "", ""
    words = contrast_by_words(description, header.get("ProtocolName"), header.get("SequenceName"))
    if words == "other" or _OTHER_TYPES & set(str(header.get("ImageType") or "").upper().split()):
        return "", ""
    part = elsewhere(header, description, header.get("ProtocolName"))
    if part:
        return "", f"shows {part!r} by its description ({description!r}) or BodyPartExamined, so it is no lumbar view"
    times = contrast_by_times(header)
    note = ""
    if times and words and times != words:
        note = (
            f"described as {words} ({description!r}) but TR {header.get('RepetitionTime')} TE {header.get('EchoTime')} "
            f"TI {header.get('InversionTime')} ms are those of {times}; taken as {times}"
        )
    contrast = times or words
    if not contrast:
        contrast = "T2"
        note = f"neither times nor description ({description!r}) tell T1 from T2; taken as T2"
    if plane == SAGITTAL:
        return (SAGITTAL_T2 if contrast == "T2" else SAGITTAL_T1), note
    return (AXIAL_T2 if contrast == "T2" else ""), note
