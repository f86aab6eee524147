"""Whom headers name, and how their names, numbers and dates are kept out of all that is written.

Names stand where no rule puts them: in descriptions, in the names of folders and of files, spelt with accents or
without, in one piece or in several, in letters of any script. So words of the header are looked for in every such
spelling; and a folder or a file is called by its own name only where that is a code.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from itertools import permutations
from pathlib import Path

from pydicom.dataset import Dataset

from ..files import PLAIN_NAME, hashed
from .elements import folded, text

IDENTITY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientBirthName", "OtherPatientNames", "OtherPatientIDs"),
    *("AccessionNumber", "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName"),
)
NOBODY = frozenset({
    *("anon", "anonym", "anonymous", "anonymized", "anonymised", "deidentified", "removed", "unknown", "none"),
    *("noname", "name", "patient", "subject", "phantom", "synthetic", "test", "volunteer"),
})  # fmt: skip
"""Words of names that are nobody's; a file whose patient is called so has been anonymised."""
MIN_NAME = 3
"""Shorter parts of names in Latin letters also occur in ordinary words; a number of a patient is longer too."""
MAX_PARTS = 6
"""Of a name that are looked for in pairs, written as one word."""
MIN_IN_UID = 6
"""Characters of a number or date that is looked for within the numbers of a UID; shorter ones are there by chance."""
CODE_WORDS = frozenset({
    *("anon", "case", "cases", "series", "ser", "session", "ses", "study", "exam", "visit", "scan", "subject", "sub"),
    *("patient", "phantom", "synthetic", "disc", "disk", "cd", "copy", "mri", "mr", "im", "img", "ima", "image"),
    *("images", "slice", "instance", "frame", "file", "dicom", "dicomdir", "dcm", "sag", "ax", "tra", "cor", "spine"),
})  # fmt: skip
"""Words that programs and data sets write into the names of folders and files, and that are no names of people."""

_WORD = re.compile(r"(?:[^\W_]|[\u0300-\u036f])+")
_YEAR, _MONTH, _DAY = "(?:19|20)[0-9]{2}", "(?:0[1-9]|1[0-2])", "(?:0[1-9]|[12][0-9]|3[01])"
_DATE = re.compile(
    rf"(?<![0-9])(?:{_YEAR}([-./_ ]?){_MONTH}\1{_DAY}|(?:{_DAY}{_MONTH}|{_MONTH}{_DAY}){_YEAR}|"
    rf"[0-3]?[0-9]([-./_ ])[0-3]?[0-9]\2{_YEAR})(?![0-9])"
)


def pseudonym_of(dataset: Dataset) -> str | None:
    """PatientID of a file from which identity was removed, "" where it has none; None where the patient is named.

    It was removed where the file says so, the patient's name is nobody's (`NOBODY`), or name and number are empty.
    """
    name, number = text(dataset, "PatientName"), text(dataset, "PatientID")
    words = set(_words(name))
    removed = text(dataset, "PatientIdentityRemoved").upper() == "YES" or (words and words <= NOBODY)
    return number if removed or not (name or number) else None


def identity_of(dataset: Dataset) -> frozenset[str]:
    """Words that name the patient or those who treat her, or number or date her, to be given to `without_identity`.

    Empty for a file from which identity was removed: its number is a pseudonym, by which its folder is called too.
    """
    if pseudonym_of(dataset) is not None:
        return frozenset()
    words: set[str] = set()
    for keyword in IDENTITY:
        value = text(dataset, keyword)
        words |= {value, value[:4]} if "Date" in keyword else {folded(value), *_words(value)}
        for script in value.split("=") if "Name" in keyword else ():
            parts = _WORD.findall(script)
            words.update(*map(_words, ["".join(parts), *map("".join, permutations(parts[:MAX_PARTS], 2))]))
    return frozenset(word for word in words if word not in NOBODY and (len(word) >= MIN_NAME or not word.isascii()))


def without_identity(words: str, identity: Iterable[str]) -> str:
    """A text in which the words of `identity_of` are starred out, however they are spelt, and dates with them."""
    return _starred(words, frozenset(identity)) if identity else words


def is_code(name: str) -> bool:
    """Whether the name of a folder or file is numbers, `CODE_WORDS` and at most one letter, and no date."""
    others = [word for word in re.findall(r"[^\W\d_]+", name.lower()) if word not in CODE_WORDS]
    return bool(PLAIN_NAME.fullmatch(name)) and not _DATE.search(name) and len("".join(others)) < 2


def shown_file(path: Path, number: int, count: int) -> str:
    """What a file is called in what is written: its name where that is a code, else its number in the natural order."""
    return path.name if is_code(path.name) else f"file {number} of {count}"


def shown_series(series_id: str, identity: Iterable[str] = ()) -> str:
    """A UID, or a folder's name that is a code, as the id of a series; else its hash."""
    within = any(word in series_id.split(".") or (len(word) >= MIN_IN_UID and word in series_id) for word in identity)
    return hashed("series", series_id) if within or not is_code(series_id) else series_id


@lru_cache(maxsize=4096)
def _starred(words: str, identity: frozenset[str]) -> str:
    words = unicodedata.normalize("NFC", words)
    for value in sorted(identity, key=len, reverse=True):
        if value > "\u2e80":  # written without blanks between words
            words = words.replace(value, "***")
        elif not value.isalnum():
            words = re.sub(rf"(?<![^\W_]){re.escape(value)}(?![^\W_])", "***", words, flags=re.IGNORECASE)
    words = _WORD.sub(lambda found: "***" if identity.intersection(_words(found[0])) else found[0], words)
    return _DATE.sub("***", words)


def _words(words: str) -> list[str]:
    """Its words in lower case without accents, in longer ones "u" for "ue", so that Müller is Mueller and Muller."""
    found = [folded(word) for word in _WORD.findall(unicodedata.normalize("NFC", words))]
    return [re.sub("(?<=[aou])e", "", word) if len(word) > MIN_NAME else word for word in found]
