"""A file parsed without trusting its lengths, its nesting or its compression.

Reference: DICOM PS3.10 section 7 (the file's head).
"""

from __future__ import annotations

import io
import os
import stat
import zlib
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset

from ..errors import DicomError
from .elements import without_warnings
from .plain_files import VRS, parse_plain

MAX_FILE = 4 * 2**30
"""Bytes. A whole enhanced MR series is below 1 GB; what is larger is not a lumbar MR scan."""
MAX_INFLATED, MAX_INFLATION = 64 * 2**20, 50
"""Bytes that a deflated file may always unpack to, and beyond that how many times its own size. Images deflate to a
half or a third; a file made to fill the memory unpacks to a thousand times its size."""
MAX_READS = 300_000
"""Short reads while one file is parsed, two or three an element. An enhanced image takes about 300 a frame; an item of
eight bytes takes one, and a thousand bytes of memory."""
TOO_MANY = "has more elements than any image"

_PREAMBLE = 128
_MAGIC = b"DICM"
_ZIP = b"PK\x03\x04"


def read_dataset(path: Path | str, *, headers_only: bool = False, tags: list[str] | None = None) -> Dataset:
    """Parse one file without decoding its pixels, or without its pixels; `tags` are the keywords to keep.

    Files without preamble or file meta are read when their first element looks like DICOM; others raise `DicomError`.
    """
    path = Path(path)
    try:
        status = os.stat(path)
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            raise DicomError("is not a file", path=path)
        if size == 0:
            raise DicomError("the file is empty (0 bytes)", path=path)
        if size > MAX_FILE:
            raise DicomError(f"the file has {size} bytes, more than the {MAX_FILE} accepted", path=path)
        with open(path, "rb", buffering=-1 if headers_only else 0) as file:
            data = file.read(_PREAMBLE + 4 if headers_only else -1)
            start, force = _find_start(data[: _PREAMBLE + 4], path)
            if headers_only and start == 0:
                file.seek(0)
                guarded = _GuardedFile(file, size, path)
                return _parse(guarded, path, force=force, stop_before_pixels=True, tags=tags)
            data += file.read() if headers_only else b""
    except OSError as error:
        raise DicomError(f"the file cannot be opened: {error.strerror or error}", path=path) from error
    dataset = None if headers_only or force else parse_plain(data)
    if dataset is None:
        data = data[start:]
        guarded = _GuardedFile(io.BytesIO(data), len(data), path)
        dataset = _parse(guarded, path, force=force, stop_before_pixels=headers_only, tags=tags)
    return dataset


class _GuardedFile:
    """A file that pydicom reads from, and that cannot be made to claim more memory or time than it is worth.

    Python reserves as many bytes as a read asks for, whatever there is, so a false length is cut to what is left. A
    read without a size is how pydicom takes a deflated file, whose true size is then found without unpacking it whole.
    Elements without end, each a few bytes and each a Python object, run out of reads.
    """

    def __init__(self, file: BinaryIO, size: int, path: Path):
        self._file, self._size, self._path = file, size, path
        self._left = MAX_READS
        self.seek, self.tell, self.name = file.seek, file.tell, str(path)

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            return self._read_deflated()
        if size > _PREAMBLE:
            return self._file.read(min(size, max(self._size - self._file.tell(), 0)))
        self._left -= 1
        if self.exhausted:
            raise DicomError(TOO_MANY, path=self._path)
        return self._file.read(size)

    @property
    def exhausted(self) -> bool:
        """Whether more was read than any image takes; pydicom raises something of its own then."""
        return self._left < 0

    def _read_deflated(self) -> bytes:
        packed = self._file.read()
        limit = max(MAX_INFLATED, MAX_INFLATION * len(packed))
        unpacker, inflated, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, packed
        while rest and not unpacker.eof:
            inflated += len(unpacker.decompress(rest, 2**20))
            rest = unpacker.unconsumed_tail
            if inflated > limit:
                message = f"its {len(packed)} deflated bytes unpack to more than the {limit} accepted"
                raise DicomError(message, path=self._path)
        return packed


def reason_of(error: Exception) -> str:
    """The type of another library's error: what it says may repeat anything of the file."""
    return "not enough memory" if isinstance(error, MemoryError) else type(error).__name__


def _find_start(head: bytes, path: Path) -> tuple[int, bool]:
    """Where the parser should start, and whether it must do without the magic word."""
    if head[_PREAMBLE:] == _MAGIC:
        return 0, False
    start = len(_MAGIC) if head.startswith(_MAGIC) else 0
    first = head[start : start + 8]
    for order in ("little", "big"):
        group, element = (int.from_bytes(first[i : i + 2], order) for i in (0, 2))
        length = int.from_bytes(first[4:8], order)
        plausible = first[4:6] in VRS or (order == "little" and element <= 0x1F and length <= 128)
        if len(first) == 8 and group in (0x0002, 0x0008) and plausible:
            return start, True
    if all(32 <= byte < 127 or byte in b"\r\n\t" for byte in head):  # which may be about somebody, so it is not shown
        raise DicomError("is not a DICOM file but plain text", path=path)
    if head.startswith(_ZIP):
        raise DicomError("is not a DICOM file but a ZIP archive; unpack it first", path=path)
    raise DicomError("is not a DICOM file: it has no DICM mark", path=path)


def _parse(file: _GuardedFile, path: Path, *, force: bool, stop_before_pixels: bool, tags: list[str] | None) -> Dataset:
    with without_warnings():
        try:
            dataset = pydicom.dcmread(file, force=force, stop_before_pixels=stop_before_pixels, specific_tags=tags)
        except DicomError:
            raise
        except Exception as error:  # a broken file can raise anything from struct.error to RecursionError
            reason = TOO_MANY if file.exhausted else f"cannot be parsed as DICOM ({reason_of(error)})"
            raise DicomError(reason, path=path) from error
    if len(dataset) == 0:
        raise DicomError("holds no DICOM elements: cut off, or not a DICOM file", path=path)
    return dataset
