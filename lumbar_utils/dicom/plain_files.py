"""The common file, parsed in a tenth of pydicom's time: little endian, not compressed, every element in its place.

Reference: DICOM PS3.5 section 7.1 (data elements), PS3.10 section 7.1 (file meta information).
"""

from __future__ import annotations

import struct

from pydicom.charset import convert_encodings
from pydicom.dataelem import RawDataElement, empty_value_for_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import BaseTag
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

VRS = {str(vr).encode(): str(vr) for vr in VR if len(str(vr)) == 2}
"""Value representations as they stand in files."""

_LONG = frozenset(vr.encode() for vr in EXPLICIT_VR_LENGTH_32)
_HEAD = 132
_GROUP_LENGTH = b"\x02\x00\x00\x00UL\x04\x00"
_SYNTAX = b"\x02\x00\x10\x00UI"
_FUNCTIONAL_GROUPS, _PIXEL_DATA = 0x52009229, 0x7FE00010
_EXPLICIT, _IMPLICIT = struct.Struct("<HH2sH").unpack_from, struct.Struct("<HHI").unpack_from


def parse_plain(data: bytes) -> Dataset | None:
    """Parse a file's content, from the preamble on; None for whatever is odd, which is left to pydicom.

    Odd are lengths that do not fit into the file, sequences of undefined length, functional groups, elements out of
    order, unknown value representations, and bytes after the pixels. The elements are converted when they are asked
    for; PixelData is a view of `data`. The file meta of the result holds TransferSyntaxUID alone.
    """
    if data[_HEAD : _HEAD + 8] != _GROUP_LENGTH:
        return None
    at, end = _HEAD + 12 + int.from_bytes(data[_HEAD + 8 : _HEAD + 12], "little"), len(data)
    found = data.find(_SYNTAX, _HEAD, at)
    stop = found + 8 + int.from_bytes(data[found + 6 : found + 8], "little")
    syntax = data[found + 8 : stop].rstrip(b"\0 ").decode("latin1")
    implicit = syntax == ImplicitVRLittleEndian
    if found < 0 or not (implicit or syntax == ExplicitVRLittleEndian) or data[at : at + 2] == b"\x02\x00":
        return None
    if implicit and data[at + 4 : at + 6] in VRS:  # it is explicit all the same
        return None
    elements: dict[BaseTag, RawDataElement] = {}
    last, name = 0, None
    while at + 8 <= end:
        if implicit:
            group, element, length = _IMPLICIT(data, at)
            at += 8
        else:
            group, element, vr, length = _EXPLICIT(data, at)
            at += 8
            if vr in _LONG:
                length = int.from_bytes(data[at : at + 4], "little")
                at += 4
            name = VRS.get(vr)
            if name is None:
                return None
        tag = group << 16 | element
        if tag <= last or at + length > end or (tag >= _FUNCTIONAL_GROUPS and tag != _PIXEL_DATA):
            return None
        last, key = tag, BaseTag(tag)  # its own comparisons are slow
        value = memoryview(data)[at : at + length] if tag == _PIXEL_DATA else data[at : at + length]
        value = value if length else empty_value_for_VR(name, raw=True)
        elements[key] = RawDataElement(key, name, length, value, at, implicit, True)
        at += length
    if at != end or last != _PIXEL_DATA:
        return None
    dataset = Dataset(elements)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    characters = dataset.get("SpecificCharacterSet")
    dataset.set_original_encoding(implicit, True, convert_encodings(characters) if characters else None)
    return dataset
