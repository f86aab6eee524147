"""The common file, parsed in a tenth of pydicom's time: little endian, not compressed, every element in its place.

Reference: DICOM PS3.5 section 7.1 (data elements), PS3.10 section 7.1 (file meta information).
"""

from __future__ import annotations

import struct
from functools import lru_cache

from pydicom.charset import convert_encodings
from pydicom.dataelem import RawDataElement, empty_value_for_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import BaseTag
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

VRS = {str(vr).encode(): str(vr) for vr in VR if len(str(vr)) == 2}
"""Value representations as they stand in files."""

MAX_ELEMENTS = 10_000
"""Of a file; a single image has 50 to 500. Each element of a few bytes becomes an object of hundreds."""

tag_of = lru_cache(maxsize=4096)(BaseTag)
"""The same object for the same number: BaseTag's own comparison is slow, and dictionaries skip it for one object."""
_LONG = frozenset(vr.encode() for vr in EXPLICIT_VR_LENGTH_32)
_START = 132
_GROUP_LENGTH = b"\x02\x00\x00\x00UL\x04\x00"
_SYNTAX, _FUNCTIONAL_GROUPS, _PIXEL_DATA = 0x00020010, 0x52009229, 0x7FE00010
_EXPLICIT, _IMPLICIT = struct.Struct("<HH2sH").unpack_from, struct.Struct("<HHI").unpack_from


def parse_plain(data: bytes) -> Dataset | None:
    """Parse a file's content, from the preamble on; None for whatever is odd, which is left to pydicom.

    Odd are lengths that do not fit into the file, sequences of undefined length, functional groups, elements out of
    order, unknown value representations, and bytes after the pixels. The elements are converted when they are asked
    for; PixelData is a view of `data`. The file meta of the result holds TransferSyntaxUID alone.
    """
    if data[_START : _START + 8] != _GROUP_LENGTH:
        return None
    start = _START + 12 + int.from_bytes(data[_START + 8 : _START + 12], "little")
    meta = _elements(data, _START, start, implicit=False) if start < len(data) else None
    if not meta or next(reversed(meta)) > 0x0002FFFF or data[start : start + 2] == b"\x02\x00":
        return None
    if _SYNTAX not in meta or meta[_SYNTAX].VR != "UI":
        return None
    syntax = (meta[_SYNTAX].value or b"").rstrip(b"\0 ").decode("latin1")
    implicit = syntax == ImplicitVRLittleEndian
    if not implicit and syntax != ExplicitVRLittleEndian:
        return None
    if implicit and data[start + 4 : start + 6] in VRS:  # it is explicit all the same
        return None
    elements = _elements(data, start, len(data), implicit)
    if not elements or next(reversed(elements)) != _PIXEL_DATA:
        return None
    dataset = Dataset(elements)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    characters = dataset.get("SpecificCharacterSet")
    dataset.set_original_encoding(implicit, True, convert_encodings(characters) if characters else None)
    return dataset


def _elements(data: bytes, at: int, end: int, implicit: bool) -> dict[BaseTag, RawDataElement] | None:
    """Elements that fill `data[at:end]`, by tag; None where anything is odd."""
    found: dict[BaseTag, RawDataElement] = {}
    last, name = 0, None
    while at + 8 <= end:
        if implicit:
            group, element, length = _IMPLICIT(data, at)
        else:
            group, element, vr, length = _EXPLICIT(data, at)
            name = VRS.get(vr)
            if name is None:
                return None
            if vr in _LONG:
                at += 4
                length = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8
        tag = group << 16 | element
        misplaced = tag <= last or (tag >= _FUNCTIONAL_GROUPS and tag != _PIXEL_DATA)
        if misplaced or len(found) >= MAX_ELEMENTS or at + length > end:
            return None
        last, key = tag, tag_of(tag)
        value = memoryview(data)[at : at + length] if tag == _PIXEL_DATA else data[at : at + length]
        value = value if length else empty_value_for_VR(name, raw=True)
        found[key] = RawDataElement(key, name, length, value, at, implicit, True)
        at += length
    return found if at == end else None
