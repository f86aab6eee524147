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
from .elements import folded

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

_SCOUT, _MAP, _LUMBAR, _CERVICAL, _THORACIC = "scout", "map", "lumbar spine", "cervical spine", "thoracic spine"
_WORDS = {
    _SCOUT: "loc locali[sz]~ localis~ lokali[sz]~ locator~ lokator~ scout~ survey~ surview~ overview (tri_)?pilot~ "
    "ubersicht~ uebersicht~ overzicht~ reper~ explorador~ centratura centrage topogra~ scano~ planung kilavuz "
    "([3t]|three|tri)_(plane?|pl|ebenen) smartbrain локал~ ~定位~",
    _MAP: "dwi adc diff~ mra angio~ myelo~ swi spectro~ calib~ perf~ mip",
    _LUMBAR: "~lumb~ ~lomb~ ledzw~ t?l_spine ls_spine l_sp lsp lws lwk l_s l5 s1 s_spine sa[ck]r~ пояснич~ ~(腰|요추)~",
    _CERVICAL: "ct?_sp(ine)? cerv~ [sz]ervi[ck]~ halswirbel~ hws hwk szyjn~ шеин~ ~([颈頚頸]椎|경추)~",
    _THORACIC: "[td]_sp(ine)? thora[ck]~ tora[ck]~ dors[ao]~ brustwirbel~ bws bwk piersiow~ грудн~ ~(胸椎|흉추)~",
    "head": "head~ brain~ skull~ kopf schadel~ schaedel~ hirn~ gehirn~ tete cran~ cerveau cerebr~ encephal~ "
    "encefal~ cabe[zc]a testa cervello hoofd hersen~ schedel~ glow[aye] mozg~ czaszk~ kafa~ beyin~ orbit~ iac pituit~ "
    "голов~ мозг~ ~[头頭脑脳]~",
    "neck": "neck hals cou cuello collo pescoco nek szyj[aie] szyi boyun шея шеи ~颈部~",
    "knee": "knee~ knie genou~ rodilla~ ginocchi~ joelho~ kolan~ diz ~膝~",
    "shoulder": "shoulder~ schulter~ epaule~ hombro~ spalla ombro schouder~ bark omuz ~肩~",
    "hip": "hips? hufte~ huefte~ hanche~ cadera~ anca quadril heup~ biodr~ kalca",
    "limb": "ankle~ foot feet wrist~ hand elbow~ fuss sprunggelenk handgelenk ellbogen cheville poignet coude tobillo "
    "muneca codo caviglia polso gomito tornozelo enkel pols elleboog kostk[ai] nadgarst~",
    "chest or abdomen": "prostat~ breast~ mamm~ brust heart cardi~ herz thorax chest liver leber foie mrcp abdom~",
}
"""What descriptions say in English, German, French, Spanish, Italian, Portuguese, Dutch, Polish, Turkish, Russian and
Chinese, as `_plain` writes it: whole words, "_" for a blank or nothing, "~" for any letters. The first line counts."""
_PATTERNS = {
    about: re.compile(rf"\b(?:{'|'.join(words.split())})\b".replace("_", " ?").replace("~", r"\w*"))
    for about, words in _WORDS.items()
}
_ASIDE = re.compile(
    r"\b(head|feet|foot|kopf|fusse?|tete|pieds?|cabe[zc]a|pies|pes|testa|piedi|hoofd|voeten) "
    r"(first|in|voran|zuerst|d abord|en avant|premiere?|primeir[ao]|primero|avanti|eerst)\b|"
    r"\bdecubit\w* dors\w*|\bdors\w* decubit\w*|\bcranio ?caud\w*|"
    r"\b((head|neck|hns?|body|and|spine|kopf|hals|tete|cou|cabeza|cuello|knee) )+(coil|array|spule|antenne|bobina)\b|"
    r"\b(coil|array|spule|antenne|bobina)( (head|neck|and|body|kopf|hals|tete|cou|cabeza|cuello))+\b"
)
"""How the patient lies, and coils: they do not tell what is shown."""
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
    return next((plane for plane in set(planes) if planes.count(plane) > MAIN_PLANE_SHARE * len(planes)), "")


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
        words = _plain(words)
        if _PATTERNS[_SCOUT].search(words) or _PATTERNS[_MAP].search(words):
            return "other"
        t1, t2 = bool(_T1.search(words)), bool(_T2.search(words))
        if t1 != t2:
            return "T1" if t1 else "T2"
    return ""


def elsewhere(header: Mapping, *texts: str | None) -> str:
    """The body part that a series says it shows, "" when it is the lumbar spine or nothing is said.

    The lumbar spine counts where BodyPartExamined or the texts name it, with one exception: where the texts name
    another part of the spine, BodyPartExamined is that of the whole examination, or of the protocol before.
    """
    said = next(filter(None, map(_part, texts)), "")
    listed = _part(header.get("BodyPartExamined"))
    if _LUMBAR in (said, listed) and said not in (_CERVICAL, _THORACIC):
        return ""
    return said or listed


def _part(words: str | None) -> str:
    words = _plain(words)
    return next((part for part in list(_WORDS)[2:] if _PATTERNS[part].search(words)), "")


def _plain(words: str | None) -> str:
    """Lower case without accents, one blank between words, without what is `_ASIDE`."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", str(words or ""))
    return _ASIDE.sub(" ", re.sub(r"[_\W]+", " ", folded(words)))


def recognise(planes: Sequence[str], header: Mapping, description: str) -> tuple[str, str]:
    """The view of a series and what was guessed, by `plane_of` every slice, its `Series.header` and SeriesDescription.

    "" for scouts, coronal slices, axial T1, diffusion, projections and maps, other parts of the body.
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
        return "", f"shows the {part} by its description or BodyPartExamined, so it is no lumbar view"
    times = contrast_by_times(header)
    contrast, note = times or words or "T2", ""
    if not times and not words:
        note = "neither times nor description tell T1 from T2; taken as T2"
    elif times and words and times != words:
        meant = f"its echo, repetition and inversion times are those of {times}"
        note = f"described as {words} but {meant}; taken as {times}"
    if plane == SAGITTAL:
        return (SAGITTAL_T2 if contrast == "T2" else SAGITTAL_T1), note
    return (AXIAL_T2 if contrast == "T2" else ""), note
