"""Damages valid DICOM files in every way that a scanner, an archive, a network or an enemy might; seeded.

`valid_files` makes the files to start from, one of every kind that the reader knows. `mutate` damages one of them: in
its bytes, its elements (tags, value representations, lengths, values), its transfer syntax, its sequences, its pixel
description, or inside its compressed frames. The same seed and number give the same file.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gdcm
import numpy as np
import pydicom
from dicom_files import AXIAL, SAGITTAL, enhanced, image, recompress, stack_positions, turned, write
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import data_element_generator
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
VRS = sorted(LONG_VRS | {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN"})
SYNTAXES = [
    *("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"),
    *(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91, 92, 100, 102, 110, 201, 202, 203)),
    *("1.2.840.10008.1.2.5", "1.2.840.10008.1.2.1.98", "1.2.840.113619.5.2", "1.2.3", "", "not a uid", "9" * 64),
]
LENGTHS = (0, 1, 2, 3, 7, 255, 256, 0x7FFF, 0xFFFE, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFF0, 0xFFFFFFFE, 0xFFFFFFFF)
NUMBERS = (
    *("", " ", "0", "-1", "1", "1e-300", "1e300", "-1e308", "nan", "inf", "-inf", "0x10", "1,5", "abc", "\\", "1\\\\2"),
    *("9" * 30, "9" * 400, "1e99999", "--3", "1_000", "\u0661", "0.0000001", "3.4e38"),
)
TEXTS = (
    "",
    "T1",
    "\x00" * 8,
    "A" * 70000,
    "<script>alert(1)</script>",
    "../../../x",
    "\u202e\ufeff",
    "a\nb\r\x1b[31m",
    "\\" * 500,
)
PIXEL_TAGS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")
NUMBER_TAGS = (
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"),
    *("InstanceNumber", "NumberOfFrames", "EchoTime", "RepetitionTime", "SliceThickness"),
)
TEXT_TAGS = (
    *("SeriesDescription", "StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "Modality", "ImageType"),
    *("PhotometricInterpretation", "SpecificCharacterSet", "ProtocolName", "ScanningSequence"),
)
COMPRESSED = {
    "jpeg lossless": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    "jpeg-ls": gdcm.TransferSyntax.JPEGLSLossless,
    "jpeg 2000": gdcm.TransferSyntax.JPEG2000Lossless,
    "rle": gdcm.TransferSyntax.RLELossless,
}


@dataclass(frozen=True)
class Element:
    """Where an element of a little endian file lies: `start` of its tag, `value` and `end` of its value."""

    start: int
    value: int
    end: int
    vr: bytes


@dataclass(frozen=True)
class ValidFile:
    """The bytes of a file that reads well, and where its top-level elements lie (none when they are deflated)."""

    name: str
    content: bytes
    elements: tuple[Element, ...]


def valid_file(name: str, path: Path) -> ValidFile:
    """A file that reads well, to be damaged."""
    content = path.read_bytes()
    return ValidFile(name, content, tuple(_elements(content)))


def valid_files(folder: Path) -> list[ValidFile]:
    """One file of every kind, written below `folder`."""
    found: list[ValidFile] = []

    def add(name: str, path: Path) -> None:
        found.append(valid_file(name, path))

    def compressed(name: str, path: Path, syntax: int) -> None:
        fixed(name, pydicom.dcmread(recompress(path, syntax)), path)

    def fixed(name: str, dataset: Dataset, path: Path) -> None:
        """Without what encoders make anew each time."""
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid["SOPInstanceUID"]
        dataset.StudyDate, dataset.StudyTime = "20200101", "120000"
        dataset.save_as(path)
        add(name, path)

    uid = {"SOPInstanceUID": "1.2.3.4.5"}  # always the same, so that a seed makes the same files everywhere
    tags = uid | {"RescaleSlope": "2", "RescaleIntercept": "-3", "EchoTime": "100", "RepetitionTime": "3500"}
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian):
        add(syntax.name, write(folder / "plain.dcm", image(**tags), syntax))
    add("8 bits", write(folder / "8.dcm", image(pixels=np.arange(480).reshape(24, 20) % 256, bits=8, **uid)))
    signed = np.arange(-240, 240).reshape(24, 20)
    add("signed 12 bits", write(folder / "12.dcm", image(pixels=signed, stored=12, **uid)))
    add("no preamble", write(folder / "bare.dcm", image(**uid), ImplicitVRLittleEndian, meta=False))
    rough = np.random.default_rng(0).integers(0, 4095, (32, 24))
    for name, syntax in COMPRESSED.items():
        path = write(folder / f"{name}.dcm", image(pixels=rough, stored=12, **uid))
        compressed(name, path, syntax)
    smooth = image(shape=(64, 64), **uid)
    compressed("jpeg 2000 smooth", write(folder / "smooth.dcm", smooth), COMPRESSED["jpeg 2000"])
    eight = image(pixels=rough % 256, bits=8, **uid)
    compressed("jpeg baseline", write(folder / "jpeg.dcm", eight), gdcm.TransferSyntax.JPEGBaselineProcess1)
    frames = enhanced(stack_positions((-8, -20, 30), SAGITTAL, [0, 4, 8]), SAGITTAL, **uid)
    add("multi-frame", write(folder / "frames.dcm", frames))
    for syntax in (RLELossless, JPEG2000Lossless):
        tilted = turned(AXIAL, 0, 20)
        dataset = enhanced(stack_positions((-8, -20, 30), tilted, [0, 4]), tilted, shape=(32, 32), **uid)
        many = pydicom.dcmread(write(folder / "many.dcm", dataset))
        many.compress(syntax)
        fixed(f"multi-frame {syntax.name}", many, folder / "many.dcm")
    return found


def mutate(rng: random.Random, base: ValidFile, others: list[ValidFile]) -> tuple[bytes, str]:
    """A damaged copy of a file, and in words what was done to it."""
    content, done = base.content, [base.name]
    first = rng.choices(list(_FIRST), weights=list(_FIRST.values()))[0]
    try:
        content = first(rng, base, others)
        done.append(first.__name__.strip("_"))
    except Exception as error:  # a mutation that cannot be made of this file: its bytes are damaged instead
        done.append(f"not {first.__name__.strip('_')} ({type(error).__name__})")
        content = _damage(rng, content)
    while rng.random() < 0.3:
        content = _damage(rng, content)
        done.append("bytes")
    return content, ", ".join(done)


def nested(depth: int, *, undefined: bool = True) -> bytes:
    """An explicit little endian private sequence that holds itself `depth` times."""
    if undefined:
        opening = b"\x09\x00\x10\x10SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
        return opening * depth + b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0" * depth
    content = b""
    for _ in range(depth):
        item = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(content)) + content
        content = b"\x09\x00\x10\x10SQ\x00\x00" + struct.pack("<I", len(item)) + item
    return content


def with_elements(content: bytes, extra: bytes, *, before: bytes = b"\x10\x00\x10\x00") -> bytes:
    """Raw elements put into a file before one of its tags."""
    at = content.index(before)
    return content[:at] + extra + content[at:]


def deflated(content: bytes, body: bytes | None = None) -> bytes:
    """An explicit little endian file, deflated; `body` instead of its own elements."""
    meta_end = 132 + 12 + struct.unpack("<I", content[140:144])[0]
    old, new = ExplicitVRLittleEndian.encode() + b"\0", DeflatedExplicitVRLittleEndian.encode()
    meta = content[132:meta_end]
    at = meta.index(old)
    meta = meta[: at - 2] + struct.pack("<H", len(new)) + new + meta[at + len(old) :]
    meta = meta[:8] + struct.pack("<I", len(meta) - 12) + meta[12:]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return content[:132] + meta + packer.compress(content[meta_end:] if body is None else body) + packer.flush()


# What can be done --------------------------------------------------------------------------------------------------


def _damage(rng: random.Random, content: bytes) -> bytes:
    """Flip, overwrite, remove, insert, repeat or cut bytes; more often in the header than in the pixels."""
    data = bytearray(content)
    span = len(data) if rng.random() < 0.4 else min(len(data), 1500)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(max(span, 1))
        size = rng.choice((1, 1, 2, 4, 8, 64, 500))
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + size] = bytes([rng.choice((0, 0xFF, 0x7F, 0x20))]) * size
        elif kind == 2:
            data[at : at + size] = rng.randbytes(size)
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4:
            data[at:at] = rng.randbytes(size)
        elif kind == 5:
            data[at:at] = data[at : at + size] * rng.choice((1, 2, 20))
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def _bytes(rng: random.Random, base: ValidFile, others: list[ValidFile]) -> bytes:
    return _damage(rng, base.content)


def _cut(rng: random.Random, base: ValidFile, others: list[ValidFile]) -> bytes:
    return base.content[: rng.randrange(len(base.content))]


def _splice(rng: random.Random, base: ValidFile, others: list[ValidFile]) -> bytes:
    """The beginning of one file and the end of another."""
    other = rng.choice(others)
    if base.elements and other.elements and rng.random() < 0.7:
        return base.content[: rng.choice(base.elements).start] + other.content[rng.choice(other.elements).start :]
    return base.content[: rng.randrange(len(base.content))] + other.content[rng.randrange(len(other.content)) :]


def _length(rng: random.Random, base: ValidFile, others: list[ValidFile]) -> bytes:
    """A false length of one element."""
    one, data = rng.choice(base.elements), bytearray(base.content)
    wrong = rng.choice((*LENGTHS, one.end - one.value + rng.choice((-2, -1, 1, 2, 100))))
    if one.value - one.start == 8 and one.vr:
        data[one.value - 2 : one.value] = struct.pack("<H", wrong & 0xFFFF)
    else:
        data[one.value - 4 : one.value] = struct.pack("<I", wrong & 0xFFFFFFFF)
    return bytes(data)


def _vr(rng: random.Random, base: ValidFile, others: list[ValidFile]) -> bytes:
    """Another value representation, with or without the layout that goes with it."""
    one, data = rng.choice([e for e in base.elements if e.vr]), bytearray(base.content)
    vr = rng.choice((*VRS, b"ZZ", b"??", b"\0\0", rng.randbytes(2)))
    value, rest = bytes(data[one.value : one.end]), bytes(data[one.end :])
    head = bytes(data[one.start : one.start + 4])
    if rng.random() < 0.5:
        data[one.start + 4 : one.start + 6] = vr
        return bytes(data)
    length = struct.pack("<HI", 0, len(value)) if vr in LONG_VRS else struct.pack("<H", len(value) & 0xFFFF)
    return bytes(data[: one.start]) + head + vr + length + value + rest


def _tag(rng: random.Random, base: ValidFile, others: list[ValidFile]) -> bytes:
    """Another tag, or an element removed, doubled or moved."""
    one, data = rng.choice(base.elements), base.content
    piece = data[one.start : one.end]
    kind = rng.randrange(4)
    if kind == 0:
        special = [b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0", b"\0\0\0\0", b"\x02\x00\x10\x00"]
        special += [
            b"\x04\x00\x20\x12",
            b"\xe0\x7f\x10\x00",
            b"\xe0\x7f\x08\x00",
            b"\x28\x00\x10\x00",
            rng.randbytes(4),
        ]
        return data[: one.start] + rng.choice(special) + data[one.start + 4 :]
    if kind == 1:
        return data[: one.start] + data[one.end :]
    to = rng.choice(base.elements).start
    return data[:to] + piece * rng.choice((1, 2, 50)) + data[to:]


def _syntax(rng: random.Random, base: ValidFile, others: list[ValidFile]) -> bytes:
    """Another transfer syntax than the one it is written in."""
    one = next(e for e in base.elements if base.content[e.start : e.start + 4] == b"\x02\x00\x10\x00")
    uid = rng.choice(SYNTAXES).encode()
    uid += b"\0" * (len(uid) % 2)
    piece = base.content[one.start : one.start + 6] + struct.pack("<H", len(uid)) + uid
    return base.content[: one.start] + piece + base.content[one.end :]


def _value(rng: random.Random, base: ValidFile, others: list[ValidFile]) -> bytes:
    """Other values of one to four elements: counts, numbers, texts."""
    dataset = _parsed(base)
    for _ in range(rng.choice((1, 1, 2, 4))):
        kind = rng.random()
        if kind < 0.4:
            small = rng.choice((0, 1, 2, 3, 7, 8, 9, 12, 16, 20, 24, 32, 63, 64, 65, 255, 4096, 32767, 65535))
            _put(dataset, rng.choice(PIXEL_TAGS), "US", struct.pack("<H", small))
        elif kind < 0.75:
            keyword = rng.choice(NUMBER_TAGS)
            usual = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}.get(keyword, 1)
            count = usual if rng.random() < 0.7 else rng.choice((0, 1, 2, 3, 6, 7, 3000))
            numbers = [rng.choice(NUMBERS) if rng.random() < 0.5 else f"{rng.uniform(-2, 2):.3g}" for _ in range(count)]
            _put(dataset, keyword, "DS" if usual > 1 else "IS", "\\".join(numbers).encode())
        else:
            _put(dataset, rng.choice(TEXT_TAGS), "LO", rng.choice(TEXTS).encode())
    return _written(dataset, base)


def _sequence(rng: random.Random, base: ValidFile, others: list[ValidFile]) -> bytes:
    """Functional groups that are missing, too many, empty or wrong, and sequences inside sequences."""
    kind = rng.randrange(3)
    explicit = bool(base.elements) and bool(base.elements[-1].vr)
    if kind == 0 and explicit:
        extra = nested(rng.choice((1, 3, 50, 500, 3000)), undefined=rng.random() < 0.5)
        return with_elements(base.content, extra[: rng.choice((len(extra), len(extra) // 2))])
    dataset = _parsed(base)
    groups = dataset.get("PerFrameFunctionalGroupsSequence")
    if kind == 1 and groups:
        item = groups[rng.randrange(len(groups))]
        for _ in range(rng.choice((1, 2))):
            change = rng.randrange(4)
            if change == 0:
                groups.append(Dataset())
            elif change == 1 and len(groups):
                del groups[-1]
            elif change == 2:
                item.clear()
            else:
                inner = item.get("PlanePositionSequence") or [Dataset()]
                _put(inner[0], rng.choice(NUMBER_TAGS), "DS", "\\".join(rng.choices(NUMBERS, k=3)).encode())
    else:
        keyword = rng.choice(("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"))
        _put(dataset, keyword, rng.choice(("SQ", "UN", "LO", "OB")), rng.randbytes(rng.choice((0, 8, 40))))
        _put(dataset, "NumberOfFrames", "IS", rng.choice(("0", "1", "2", "3", "70000", "2147483647", "-4")).encode())
    return _written(dataset, base)


def _frames(rng: random.Random, base: ValidFile, others: list[ValidFile]) -> bytes:
    """Damage inside the compressed frames, mostly in their headers, where the decoders take their sizes from."""
    dataset = _parsed(base)
    frames = list(generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames", 1) or 1)))
    which = rng.randrange(len(frames))
    data = bytearray(frames[which])
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(min(len(data), 160) if rng.random() < 0.7 else len(data))
        kind = rng.randrange(5)
        if kind == 0:
            data[at] = rng.choice((0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF, rng.randrange(256)))
        elif kind == 1:
            data[at : at + 2] = struct.pack(">H", rng.choice((0, 1, 2, 255, 0x7FFF, 0xFFFF, rng.randrange(65536))))
        elif kind == 2:
            data[at : at + 4] = struct.pack(">I", rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, rng.randrange(2**32))))
        elif kind == 3:
            del data[at : at + rng.choice((1, 2, 50))]
        else:
            data[at:at] = rng.choice((b"\xff\xd9", b"\xff\x93", b"\xff\xda", b"\xff\xff", rng.randbytes(9)))
        if not data:
            break
    frames[which] = bytes(data)
    if rng.random() < 0.15:
        frames = rng.choices(frames, k=rng.choice((1, 2, 5)))
    dataset.PixelData = encapsulate(frames, has_bot=rng.random() < 0.5)
    dataset["PixelData"].is_undefined_length = True
    if rng.random() < 0.1:
        _put(dataset, "ExtendedOffsetTable", "OV", rng.randbytes(8 * len(frames)))
        _put(dataset, "ExtendedOffsetTableLengths", "OV", rng.randbytes(8 * len(frames)))
    return _written(dataset, base)


def _fragments(rng: random.Random, base: ValidFile, others: list[ValidFile]) -> bytes:
    """Damage to the items that the compressed frames lie in, and to the table of their offsets."""
    at = base.content.rindex(b"\xe0\x7f\x10\x00")
    data = bytearray(base.content)
    places = [i for i in range(at, len(data) - 8) if data[i : i + 4] == b"\xfe\xff\x00\xe0"]
    place = rng.choice(places)
    kind = rng.randrange(4)
    if kind == 0:
        data[place + 4 : place + 8] = struct.pack("<I", rng.choice(LENGTHS))
    elif kind == 1:
        data[place : place + 4] = rng.choice((b"\xfe\xff\xdd\xe0", b"\xfe\xff\x0d\xe0", b"\0\0\0\0"))
    elif kind == 2:
        table = b"".join(struct.pack("<I", rng.choice((0, 8, *LENGTHS))) for _ in range(rng.choice((1, 2, 3, 400))))
        data[places[0] : places[0] + 8] = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(table)) + table
    else:
        data[place:place] = b"\xfe\xff\x00\xe0\0\0\0\0" * rng.choice((1, 3, 1000))
    return bytes(data)


def _deflate(rng: random.Random, base: ValidFile, others: list[ValidFile]) -> bytes:
    """A deflated file: damaged, cut, or of a size that it does not look like."""
    plain = others[0].content
    kind = rng.randrange(3)
    if kind == 0:
        whole = deflated(plain)
        at = rng.randrange(300, len(whole))
        return whole[:at] + rng.randbytes(rng.choice((1, 4, 40))) + whole[at + 1 :]
    if kind == 1:
        whole = deflated(plain)
        return whole[: rng.randrange(200, len(whole))] + rng.choice((b"", whole))
    head = b"\x09\x00\x10\x10OB\x00\x00" + struct.pack("<I", rng.choice((2**20, 2**31)))
    return deflated(plain, head + bytes(2 ** rng.choice((16, 20))))


_FIRST: dict[Callable, int] = {
    **{_bytes: 4, _cut: 2, _splice: 2, _length: 3, _vr: 3, _tag: 3, _syntax: 2, _value: 5},
    **{_sequence: 3, _frames: 6, _fragments: 2, _deflate: 1},
}


# Parts -------------------------------------------------------------------------------------------------------------


def _elements(content: bytes) -> list[Element]:
    """Top-level elements of a file in little endian, none of a deflated one."""
    dataset = pydicom.dcmread(io.BytesIO(content), force=True)
    syntax = getattr(dataset, "file_meta", Dataset()).get("TransferSyntaxUID", ImplicitVRLittleEndian)
    found = []
    start = 132 if content[128:132] == b"DICM" else 0
    spans = [(start, False)] if start else []
    if start:
        start += 12 + struct.unpack("<I", content[140:144])[0]
    if syntax not in (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian):
        spans.append((start, syntax == ImplicitVRLittleEndian))
    for number, (at, implicit) in enumerate(spans):
        end = start if number == 0 and len(spans) > 1 else len(content)
        stream = DicomBytesIO(content[:end])
        stream.seek(at)
        for element in data_element_generator(stream, implicit, True):
            vr = b"" if implicit else str(element.VR).encode()
            tell = element.value_tell if isinstance(element, RawDataElement) else element.file_tell
            found.append(Element(tell - (12 if vr in LONG_VRS else 8), tell, stream.tell(), vr))
    return found


def _parsed(base: ValidFile) -> Dataset:
    return pydicom.dcmread(io.BytesIO(base.content), force=True)


def _put(dataset: Dataset, keyword: str, vr: str, value: bytes) -> None:
    """Raw bytes as an element, whatever they are."""
    tag = Tag(keyword)
    value += b" " * (len(value) % 2)
    dataset[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)


def _written(dataset: Dataset, base: ValidFile) -> bytes:
    out = io.BytesIO()
    if base.content[128:132] == b"DICM":
        dataset.save_as(out, enforce_file_format=False)
    else:
        dataset.save_as(out, implicit_vr=True, little_endian=True)
    return out.getvalue()
