"""Small files that claim to be huge: made to take all memory or all time of whoever believes them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pydicom
from dicom_files import SAGITTAL, enhanced, image, recompress, stack_positions, write
from dicom_mutations import COMPRESSED, deflated, nested, with_elements
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import RLELossless

HUGE = 16000


def hostile_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(what it is, path) of each."""
    plain = write(folder / "plain.dcm", image()).read_bytes()

    def made(name: str, content: bytes) -> tuple[str, Path]:
        path = folder / f"{name.replace(' ', '_')}.dcm"
        path.write_bytes(content)
        return name, path

    yield made("gigabytes of rows", write(folder / "a.dcm", image(Rows=HUGE, Columns=HUGE)).read_bytes())
    yield made(
        "millions of frames", write(folder / "a.dcm", image(Rows=1, Columns=1, NumberOfFrames=2**28)).read_bytes()
    )
    for name in COMPRESSED:
        yield made(f"{name} of 16000 x 16000", _claiming(folder, name))
    yield made("jpeg 2000 of a million tiles", _claiming(folder, "jpeg 2000", tile=(1, 1), size=1024))
    for length in (0x7FFFFFFF, 0xFFFFFFF0):
        private = b"\x09\x00\x10\x10OB\0\0" + struct.pack("<I", length)
        yield made(f"private element of {length} bytes", with_elements(plain, private))
        wanted = b"\x08\x00\x3e\x10UT\0\0" + struct.pack("<I", length)
        yield made(f"description of {length} bytes", with_elements(plain, wanted))
    for depth in (900, 200_000):
        yield made(f"{depth} sequences in each other", with_elements(plain, nested(depth)))
    yield made("200 sequences of known length", with_elements(plain, nested(200, undefined=False)))
    opening = b"\x09\x00\x10\x10SQ\x00\x00\xff\xff\xff\xff"
    items = b"\xfe\xff\x00\xe0\0\0\0\0" * 2**21
    yield made("two million items", with_elements(plain, opening + items))
    groups = b"\x00\x52\x30\x92SQ\0\0" + struct.pack("<I", len(items)) + items
    yield made("two million functional groups", with_elements(plain, groups, before=b"\xe0\x7f\x10\x00"))
    yield made("two million elements", with_elements(plain, b"\x09\x00\x10\x10CS\0\0" * 2**21))
    tags = (struct.pack("<HH", group, element) for group in range(9, 16) for element in range(0x10000))
    yield made("half a million elements in order", with_elements(plain, b"".join(t + b"CS\0\0" for t in tags)))
    yield made("deflated gigabytes", _bomb(plain))
    fragments = write(
        folder / "f.dcm", enhanced(stack_positions((0, 0, 0), SAGITTAL, [0, 4]), SAGITTAL, shape=(32, 32))
    )
    many = pydicom.dcmread(fragments)
    many.compress(RLELossless)
    many.PixelData = encapsulate(list(generate_frames(many.PixelData, number_of_frames=2)) * 2000, has_bot=False)
    many.save_as(fragments)
    yield made("thousands of fragments", fragments.read_bytes())


def _claiming(folder: Path, kind: str, *, tile: tuple[int, int] | None = None, size: int = HUGE) -> bytes:
    """A compressed file whose header and stream agree on a size that its few bytes cannot hold."""
    path = write(folder / "claim.dcm", image(shape=(32, 32)))
    dataset = pydicom.dcmread(recompress(path, COMPRESSED[kind]))
    (stream,) = generate_frames(dataset.PixelData, number_of_frames=1)
    small, large = struct.pack(">HH", 32, 32), struct.pack(">HH", size, size)
    if kind == "jpeg 2000":
        data = bytearray(stream)
        data[8:16] = struct.pack(">II", size, size)
        data[24:32] = struct.pack(">II", *(tile or (size, size)))
        stream = bytes(data)
    elif kind != "rle":
        assert small in stream[:64]
        stream = stream.replace(small, large, 1)
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].is_undefined_length = True
    dataset.Rows, dataset.Columns = size, size
    dataset.save_as(path)
    return path.read_bytes()


def _bomb(plain: bytes) -> bytes:
    """Deflated: two gigabytes of nothing in two megabytes. A block that was flushed can be repeated as it is."""
    whole = deflated(plain, b"")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    first = packer.compress(b"\x09\x00\x10\x10OB\0\0" + struct.pack("<I", 2**31)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return whole[: len(whole) - len(zlib_empty())] + first + block * 2**11 + packer.flush()


def zlib_empty() -> bytes:
    """What `deflated` puts at the end when there is nothing to deflate."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(b"") + packer.flush()
