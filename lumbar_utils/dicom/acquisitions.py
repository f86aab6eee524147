"""Whose an image is and how it was made: what tells apart the acquisitions that lie in one series.

SeriesInstanceUID alone does not: scanners put echoes, phase images and all images of a Dixon scan into one series,
enhanced files hold several contrasts, and anonymisers give one UID to everything, or one to each slice.

References: DICOM PS3.3 C.7.6.1.1.2 (Image Type), C.8.13.3.1 (frame types of MR), C.8.13.3.2.1 (ComplexImageComponent).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from ..labels import SAGITTAL_T1, VIEWS
from .elements import folded, text
from .identity import IDENTITY, NOBODY, identity_of, pseudonym_of, without_identity
from .plain_files import tag_of
from .recognition import contrast_by_words, recognise

HEADER_NUMBERS = (
    *("MagneticFieldStrength", "RepetitionTime", "EchoTime", "InversionTime", "FlipAngle"),
    *("EchoTrainLength", "SliceThickness", "SpacingBetweenSlices"),
)
HEADER_TEXTS = (
    *("Modality", "Manufacturer", "ManufacturerModelName", "ProtocolName", "ScanningSequence"),
    *("SequenceVariant", "SequenceName", "ImageType", "PatientPosition", "BodyPartExamined"),
)
"""What `Series.header` keeps, by DICOM keyword. Nothing else of a header is kept, so nobody's name or date is; where
people have written a name into one of these texts, `without_identity` takes it out."""
OTHER_KEYWORDS = (
    *("SOPClassUID", "SeriesDescription", "SeriesNumber", "EchoNumbers", "FrameOfReferenceUID", "ScanOptions"),
    *("ContrastBolusAgent", "ComplexImageComponent", "PatientName", "PatientID", "PatientBirthDate"),
)
_RAW_DATA_TYPE = tag_of(0x0043102F)  # of GE: magnitude, phase, real, imaginary
_SIGNATURE = [
    _RAW_DATA_TYPE,
    *map(tag_of, map(Tag, (*OTHER_KEYWORDS, *HEADER_NUMBERS[1:4], *HEADER_TEXTS[3:5], *HEADER_TEXTS[6:8]))),
]
_FULL_SIGNATURE = [
    _RAW_DATA_TYPE,
    *map(tag_of, map(Tag, {*OTHER_KEYWORDS, *HEADER_NUMBERS, *HEADER_TEXTS, *IDENTITY, "PatientIdentityRemoved"})),
]
_ENHANCED = {
    "RepetitionTime": ("MRTimingAndRelatedParametersSequence", "RepetitionTime"),
    "EchoTime": ("MREchoSequence", "EffectiveEchoTime"),
    "InversionTime": ("MRModifierSequence", "InversionTimes"),
    "FlipAngle": ("MRTimingAndRelatedParametersSequence", "FlipAngle"),
    "SliceThickness": ("PixelMeasuresSequence", "SliceThickness"),
    "ImageType": ("MRImageFrameTypeSequence", "FrameType"),
    "ComplexImageComponent": ("MRImageFrameTypeSequence", "ComplexImageComponent"),
}

_KINDS = {
    "screenshot": {"SCREEN", "SCREENSHOT", "SCREENSAVE", "CAPTURE", "KEY"},
    "subtraction": {"SUB", "SUBTRACT", "SUBTRACTED", "SUBTRACTION"},
    "projection": {"MIP", "MINIP", "PROJECTION"},
    "phase": {"P", "PHASE", "PHASE_MAP", "PHA", "VELOCITY"},
    "real part": {"R", "REAL"},
    "imaginary part": {"I", "IMAGINARY"},
    "fat": {"F", "FAT"},
    "water": {"W", "WATER"},
    "in phase": {"IN", "IP", "IN_PHASE", "INPHASE"},
    "opposed phase": {"OPP", "OP", "OUT", "OOP", "OPP_PHASE", "OUT_PHASE", "OUTPHASE", "OPPOSED", "OPPOSED_PHASE"},
}
"""Words of ImageType, of an enhanced image's frame type, and of descriptions of Dixon scans."""
NO_VIEW = frozenset({"screenshot", "subtraction", "projection", "phase", "real part", "imaginary part", "fat"})
"""Kinds of images that are never read as one of the views."""
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_DIXON = re.compile(r"\b(m?dix\w*|ideal|flex)\b")
_DIXON_START = re.compile(r"(water|fat|in ?phase|out ?phase) ?:")
_SUBTRACTED = re.compile(r"\b(sub|subtr\w*)\b")
_PHASE_WORDS = re.compile(r"\b(in|opp|opposed|out)(?: of)? phase\b")
_ENDING = re.compile(r"_(W|F|in|opp|Pha)$")
_GADOLINIUM = re.compile(r"\b(gd|gad\w*|km|ce|post|contrast|kontrast|dotarem)\b|\+ ?c\b|\bc ?\+")
_WITHOUT = re.compile(r"\b(pre|wo|w o|without|non|no|ohne|sans|senza|sin|nativ\w*)\b")
_FAT_SATURATED = re.compile(r"\b(fs|fat ?sat\w*|spir|spair|chess)\b")
_PROTON_DENSITY = re.compile(r"\b(pd|pdw|proton)\b")

_TIMES = {"TR": "RepetitionTime", "TE": "EchoTime", "TI": "InversionTime"}
MAX_RATIOS = {"EchoTime": 1.25, "RepetitionTime": 1.6, "InversionTime": 1.3}
"""By more than these the times of two contrasts differ; those of blocks of one scan vary by some per cent."""
LONG_TR, SHORT_TE = 2000.0, 50.0
"""ms. Above the one, repetition times do not change the contrast; below the other, such an image is proton density."""


@dataclass(frozen=True, eq=False)
class Acquisition:
    """How an image was made, and whose it is; one object for all images whose headers say the same.

    `header` is as in `Series.header`, `kind` one of `_KINDS` or "" for an ordinary image. `patient` holds hashes of
    the words of PatientID, PatientName and PatientBirthDate, which can be compared and not read; `identity` and
    `pseudonym` are as in the module `identity`.
    """

    description: str
    header: dict = field(repr=False)
    kind: str = ""
    series_number: str = ""
    echo: str = ""
    options: str = ""
    patient: tuple[frozenset[int], ...] = field(default=(), repr=False)
    frame_of_reference: str = field(default="", repr=False)
    identity: frozenset[str] = field(default=frozenset(), repr=False)
    pseudonym: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        times = [f"{name} {value:g}" for name, key in _TIMES.items() if (value := self.header.get(key))]
        return ", ".join(filter(None, (repr(self.description), self.kind, " ".join(times))))

    @property
    def is_mr(self) -> bool:
        """Whether it says so, or does not say what it is."""
        return str(self.header.get("Modality") or "MR").upper() == "MR"

    def view(self, planes: Sequence[str]) -> tuple[str, str]:
        """The view that its images show, by their planes, and what was guessed; see `recognition.recognise`."""
        return ("", "") if self.kind in NO_VIEW else recognise(planes, self.header, self.description)

    def drawbacks(self, view: str) -> dict[str, int]:
        """What speaks against it as that view, beside a plain scan, and how much."""
        header, words = self.header, _plain(self.description)
        found = {self.kind: {"opposed phase": 4, "water": 1}.get(self.kind, 9 if self.kind in NO_VIEW else 0)}
        sequence = str(header.get("ScanningSequence") or "").split()
        if view == SAGITTAL_T1:
            said = _GADOLINIUM.search(self.description.lower().replace("_", " ")) and not _WITHOUT.search(words)
            found["contrast medium"] = 3 * bool("AGENT" in self.options.split() or said)
            found["fat saturation"] = 2 * bool("FS" in self.options.split() or _FAT_SATURATED.search(words))
        else:
            te, tr, ti = (header.get(name) for name in ("EchoTime", "RepetitionTime", "InversionTime"))
            short = (te or 0) < SHORT_TE and not ti and "GR" not in sequence
            named = _PROTON_DENSITY.search(words)
            found["proton density"] = 3 * bool(short and (named or (te and (tr or 0) >= LONG_TR)))
        found["gradient echo"] = int("GR" in sequence and "SE" not in sequence)
        found["derived"] = int("DERIVED" in str(header.get("ImageType") or "").split() and not self.kind)
        return {name: cost for name, cost in found.items() if cost}


def signature(dataset: Dataset, *, full: bool = False) -> tuple:
    """What a header says about its acquisition, unparsed: all that is kept of it, or what differs in a series."""
    items = map(dict(dataset.items()).get, _FULL_SIGNATURE if full else _SIGNATURE)
    return tuple([item and (item.value if type(item.value) is bytes else str(item.value)) for item in items])


def acquisition_of(group: list[Dataset]) -> Acquisition:
    """The acquisition of a frame, from its `functional_groups`."""
    dataset = group[-1]
    identity = identity_of(dataset)
    said = {keyword: text(dataset, keyword) for keyword in (*HEADER_NUMBERS, *HEADER_TEXTS, *OTHER_KEYWORDS)}
    said |= {keyword: value for keyword, value in zip(_ENHANCED, frame_values(group), strict=True) if value}
    header: dict[str, float | str | None] = {keyword: _number(said[keyword]) for keyword in HEADER_NUMBERS}
    header |= {keyword: without_identity(said[keyword], identity) or None for keyword in HEADER_TEXTS}
    description = without_identity(said["SeriesDescription"], identity)
    medium = said["ContrastBolusAgent"].lower() not in ("", "no", "none")
    return Acquisition(
        description,
        header,
        _kind(said, description, dataset),
        said["SeriesNumber"],
        said["EchoNumbers"],
        said["ScanOptions"].upper() + " AGENT" * medium,
        tuple(_hashes(said[keyword]) for keyword in ("PatientID", "PatientName", "PatientBirthDate")),
        said["FrameOfReferenceUID"],
        identity,
        pseudonym_of(dataset),
    )


def frame_values(group: list[Dataset]) -> tuple[str, ...]:
    """What the functional groups of a frame say about its acquisition, "" for all of a single-frame image."""
    values = []
    for sequence, keyword in _ENHANCED.values():
        found = ""
        for place in group[:-1]:
            with suppress(Exception):  # pydicom raises anything for a broken element; it costs only its own value
                items = place.get(sequence)
                found = found or (text(items[0], keyword) if items else "")
        values.append(found)
    return tuple(values)


def same_person(one: Sequence[frozenset], other: Sequence[frozenset]) -> bool:
    """Whether two headers may be one patient's: number, name and date of birth agree as far as both have them."""
    return all(not a or not b or a <= b or b <= a for a, b in zip(one, other, strict=False))


def split_acquisitions(acquisitions: Sequence[Acquisition]) -> list[list[int]]:
    """Group images by whose they are and by their contrast, whatever their order; the largest group first."""
    images: dict[Acquisition, list[int]] = defaultdict(list)
    for index, one in enumerate(acquisitions):
        images[one].append(index)
    # More than two frames of reference in one series are the work of an anonymiser that makes a new one for each image.
    two_frames = len({one.frame_of_reference for one in images} - {""}) == 2
    groups: list[tuple[Acquisition, list[int]]] = []
    for one in sorted(images, key=lambda one: (-len(images[one]), repr(one), repr(one.header))):
        for first, group in groups:
            apart = two_frames and _differ(one.frame_of_reference, first.frame_of_reference)
            if not apart and _same_contrast(one, first):
                group += images[one]
                break
        else:
            groups.append((one, list(images[one])))
    return sorted((sorted(group) for _, group in groups), key=len, reverse=True)


def _same_contrast(one: Acquisition, other: Acquisition) -> bool:
    """Whether two images of one series may lie in one stack; what only one of them says tells nothing."""
    if one.kind != other.kind or not same_person(one.patient, other.patient):
        return False
    if _differ(one.series_number, other.series_number) or _differ(one.echo, other.echo):
        return False
    for keyword, ratio in MAX_RATIOS.items():
        low, high = sorted((one.header[keyword] or 0.0, other.header[keyword] or 0.0))
        if keyword == "RepetitionTime":
            high = min(high, LONG_TR)
        if high > ratio * low and (low > 0 or keyword == "InversionTime"):
            return False
    names = [(item.header["SequenceName"] or "", item.header["ProtocolName"] or "") for item in (one, other)]
    if not one.header["EchoTime"] and _differ(names[0][0], names[1][0]):
        return False
    words = [contrast_by_words(item.description, *own) for item, own in zip((one, other), names, strict=True)]
    plain = all(one.drawbacks(view).keys() == other.drawbacks(view).keys() for view in VIEWS)
    return plain and not _differ(*words)


def _differ(one: str, other: str) -> bool:
    """Whether both say something, and not the same."""
    return len({one, other} - {""}) == 2


def _kind(said: dict[str, str], description: str, dataset: Dataset) -> str:
    """One of `_KINDS`, or "", by what is said of the image's type, of its raw data, and by the description's ends."""
    if said["SOPClassUID"].startswith(_SECONDARY_CAPTURE):
        return "screenshot"
    words = f"{said['ImageType']} {said['ComplexImageComponent']}".upper().split()
    raw = getattr(dataset.get_item(_RAW_DATA_TYPE), "value", None)
    raw = int.from_bytes(raw, "little") if isinstance(raw, bytes) else raw
    words += [name for number, name in ((1, "PHASE"), (2, "REAL"), (3, "IMAGINARY")) if raw == number]
    plain = re.sub(r"\bfat ?(sat|sup)\w*", "fs", _plain(description))
    ending = _ENDING.search(description)
    if _DIXON.search(plain) or _DIXON_START.match(description.lower()):
        words += [plain.split()[0].upper(), plain.split()[-1].upper()]
    elif ending and not re.search(r"(t[12]|pd)_w$", description.lower()):
        words.append(ending[1].upper())
    words += [f"{word.upper()}_PHASE" for word in _PHASE_WORDS.findall(plain)]
    words += ["SUB"] if _SUBTRACTED.search(plain) else []
    return next((kind for kind, known in _KINDS.items() if known & set(words)), "")


def _hashes(words: str) -> frozenset[int]:
    """Of the words of a name, whatever their case, accents and order, so that spellings compare as equal."""
    return frozenset(crc32(word.encode()) for word in re.findall(r"[^\W_]+", folded(words)) if word not in NOBODY)


def _number(words: str) -> float | None:
    with suppress(ValueError, IndexError):
        value = float(words.split()[0])
        return value if np.isfinite(value) else None
    return None


def _plain(words: str) -> str:
    return re.sub(r"[_\W]+", " ", words.lower()).strip()
