"""Stored values of an image.

Uncompressed and RLE bits are placed here, because BitsStored, HighBit and the sign are needed together; everything
else is decoded by pydicom's plugins (python-gdcm, pylibjpeg-openjpeg), see `decoding`.

References: DICOM PS3.3 C.7.6.3.1 (image pixel), PS3.5 section 8 and annex D (how pixels are written and in which
transfer syntax).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import RLELossless

from ..errors import DicomError
from .decoding import DecodingError, decode_compressed
from .elements import integer, printable, text, without_warnings
from .parsing import reason_of

MAX_PADDING = 1024
"""Bytes after the last pixel that are ignored; some writers pad to a block. More means wrong rows or columns."""
MAX_WRAPPING = 4096
"""Bytes before the code stream in a JP2 file, which some writers put into DICOM though the standard forbids it."""
ALWAYS_ACCEPTED = 2**24
"""Pixels of one file that are decoded however small their compressed form is; black images compress to nothing."""
MAX_COMPRESSION = {"": 1000, RLELossless: 64}
"""Pixels a compressed byte can stand for in a larger file; RLE makes at most 128 of 2."""
PREFERRED_DECODER = "pylibjpeg"
"""Where several plugins can decode; it brings the newer OpenJPEG. JPEG lossless and JPEG-LS have python-gdcm only."""


@dataclass(frozen=True)
class StoredFrame:
    """One image as it is stored, to be converted where it is wanted: half the memory, and none of it written twice.

    `words` (rows, columns) may be a view of the file's content. Shifting a word `up` and then `down` cuts the stored
    bits out of it, keeping the sign. `turned` is lowest plus highest possible value of MONOCHROME1, which is turned
    over inside that range, so that one value means one brightness in a whole series. Stored values from `padding[0]`
    to `padding[1]` mark where there is no image, and become the darkest value there is.
    """

    words: np.ndarray
    up: int = 0
    down: int = 0
    signed: bool = False
    turned: float | None = None
    padding: tuple[int, int] | None = None

    def write(self, out: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> None:
        """Write the values, bright = large, to float32 (rows, columns); rescale: PS3.3 C.11.1."""
        words, unsigned = self.words, self.words.dtype.kind == "u"
        if self.up == self.down and unsigned and not self.signed:  # the most common; needs no copy
            np.bitwise_and(words, 2 ** (8 * words.itemsize - self.down) - 1, out=out, casting="unsafe")
        else:
            words = np.left_shift(words, self.up) if self.up else words
            words = words.view(words.dtype.str.replace("u", "i")) if self.signed and unsigned else words
            np.right_shift(words, self.down, out=out, casting="unsafe")
        outside = None if self.padding is None else (out >= self.padding[0]) & (out <= self.padding[1])
        if self.turned is not None:
            np.subtract(np.float32(self.turned), out, out=out)
        if outside is not None:
            out[outside] = min(out.min(where=~outside, initial=np.inf), 0.0)
        if (slope, intercept) != (1.0, 0.0):
            out *= np.float32(slope)
            out += np.float32(intercept)


def stored_frames(dataset: Dataset, size: tuple[int, int, int], path: Path | str) -> list[StoredFrame]:
    """The images of a file of `check_image`'s size, before rescale; `DicomError` where they cannot be or be decoded."""
    frames, rows, columns = size
    allocated = integer(dataset, "BitsAllocated", path)
    stored = integer(dataset, "BitsStored", path, default=allocated)
    high = integer(dataset, "HighBit", path, default=stored - 1)
    signed = integer(dataset, "PixelRepresentation", path, default=0)
    if allocated not in (8, 16, 32):
        raise DicomError("BitsAllocated is none of 8, 16 and 32", path=path)
    if not (1 <= stored <= allocated and stored - 1 <= high < allocated and signed in (0, 1)):
        raise DicomError("BitsAllocated, BitsStored, HighBit, PixelRepresentation contradict each other", path=path)
    compressed, little_endian, syntax = _encoding(dataset, path)
    if not compressed:
        values = _native_values(dataset, path, frames * rows * columns, allocated, little_endian)
    else:
        options = {"number_of_frames": frames, "rows": rows, "columns": columns, "samples_per_pixel": 1}
        options |= {"bits_allocated": allocated, "bits_stored": stored, "pixel_representation": signed}
        options |= {"photometric_interpretation": "MONOCHROME2"}
        values = _decoded_values(dataset, path, syntax, options)
    placed = not compressed or syntax == RLELossless
    up, down = (allocated - 1 - high, allocated - stored) if placed else (0, 0)
    lowest = -(2 ** (stored - 1)) if signed else 0
    turned = float(2 * lowest + 2**stored - 1) if text(dataset, "PhotometricInterpretation") == "MONOCHROME1" else None
    padding = _padding(dataset, path, stored, signed) if "PixelPaddingValue" in dataset else None
    if padding == (0, 0) and not signed and turned is None:  # the darkest value anyhow
        padding = None
    images = values.reshape(frames, rows, columns)
    return [StoredFrame(words, up, down, bool(signed), turned, padding) for words in images]


def _padding(dataset: Dataset, path: Path | str, stored: int, signed: int) -> tuple[int, int] | None:
    """Range of stored values that mark where there is no image (PS3.3 C.7.5.1.1.2), None for an unreadable one.

    They may be written with another sign than the pixels have.
    """
    limits: list[int] = []
    with suppress(DicomError):
        for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
            value = integer(dataset, keyword, path, default=limits[0] if limits else None) % 2**stored
            limits.append(value - 2**stored if signed and value >= 2 ** (stored - 1) else value)
    return (min(limits), max(limits)) if limits else None


def _encoding(dataset: Dataset, path: Path | str) -> tuple[bool, bool, pydicom.uid.UID]:
    """(compressed, little endian, transfer syntax); the syntax is "" where the file has no meta header."""
    if "PixelData" not in dataset:
        if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
            raise DicomError("holds floating-point pixels, expected whole numbers (PixelData)", path=path)
        what = "holds no pixels although it has rows and columns"
        raise DicomError(f"{what}: the file is cut off, or only a header", path=path)
    syntax = pydicom.uid.UID(text(getattr(dataset, "file_meta", Dataset()), "TransferSyntaxUID"))
    if syntax:
        try:
            return syntax.is_compressed, syntax.is_little_endian, syntax
        except ValueError as error:
            raise DicomError("TransferSyntaxUID is not known", path=path) from error
    if dataset["PixelData"].is_undefined_length:
        raise DicomError("is compressed but does not say how: TransferSyntaxUID is missing", path=path)
    _, little_endian = dataset.original_encoding
    return False, little_endian is not False, syntax


def _native_values(dataset: Dataset, path, count: int, allocated: int, little_endian: bool) -> np.ndarray:
    """Uncompressed pixels as unsigned integers, shape (count,)."""
    element = dataset.get_item("PixelData")
    data = b"" if element.value is None else element.value
    size = count * allocated // 8
    # 8-bit pixels written as 16-bit words: each pair of bytes has changed places (PS3.5 section 8.1.2).
    swapped = allocated == 8 and not little_endian and element.VR == "OW"
    size += size % 2 if swapped else 0
    excess = len(data) - size
    if not 0 <= excess <= MAX_PADDING:
        why = "the file is cut off" if excess < 0 else "rows, columns or bits are wrong"
        wanted = f"{size} for its rows, columns, frames and {allocated} bits"
        raise DicomError(f"PixelData has {len(data)} bytes, expected {wanted}: {why}", path=path)
    if swapped:
        return np.frombuffer(data, np.uint16, size // 2).byteswap().view(np.uint8)[:count]
    dtype = np.dtype(f"u{allocated // 8}").newbyteorder("<" if little_endian else ">")
    return np.frombuffer(data, dtype, count)


def _decoded_values(dataset: Dataset, path, syntax: pydicom.uid.UID, options: dict) -> np.ndarray:
    """Compressed pixels, shape (frames, rows, columns) or of that size."""
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise DicomError(f"its pixels are compressed as {syntax.name}, which is not supported", path=path) from error
    if not decoder.available_plugins:
        missing = "no decoder is installed for it; pip install python-gdcm pylibjpeg-openjpeg"
        raise DicomError(f"its pixels ({syntax.name}) cannot be decoded: {missing}", path=path)
    frames, rows, columns = (options[name] for name in ("number_of_frames", "rows", "columns"))
    with without_warnings():
        try:
            streams = list(islice(generate_frames(dataset.PixelData, number_of_frames=frames), frames))
            _check_streams(streams, syntax, options, path)
            # Encapsulated anew: what was checked is then what is decoded, whatever the tables of offsets say.
            data = encapsulate(streams)
            plugin = PREFERRED_DECODER if PREFERRED_DECODER in decoder.available_plugins else ""
            if syntax == RLELossless:  # Python code, so it needs no process of its own
                keywords = {"pixel_keyword": "PixelData", "correct_unused_bits": False, "decoding_plugin": plugin}
                values, _ = decoder.as_array(data, raw=True, **keywords, **options)
            else:
                values = decode_compressed(data, syntax, plugin, options)
        except DicomError:
            raise
        except Exception as error:
            reason = printable(str(error)) if isinstance(error, DecodingError) else reason_of(error)
            raise DicomError(f"its pixels ({syntax.name}) cannot be decoded: {reason[:300]}", path=path) from error
    if values.size != frames * rows * columns:
        shapes = f"{values.shape}, expected {(frames, rows, columns)}"
        raise DicomError(f"its pixels ({syntax.name}) decode to shape {shapes}", path=path)
    return values


def _check_streams(streams: list[bytes], syntax: pydicom.uid.UID, options: dict, path) -> None:
    """Refuse compressed frames whose own headers contradict the file's, and those too small for what they claim."""
    frames, rows, columns = (options[name] for name in ("number_of_frames", "rows", "columns"))
    if len(streams) != frames:
        raise DicomError(f"holds {len(streams)} compressed images, its header says {frames}", path=path)
    for stream in streams:
        encoded = (rows, columns) if syntax == RLELossless else _encoded_size(stream)
        if encoded is None:
            raise DicomError(f"a compressed image ({syntax.name}) does not say its size", path=path)
        if encoded != (rows, columns):
            sizes = f"{encoded[0]} x {encoded[1]} pixels, the header says {rows} x {columns}"
            raise DicomError(f"the compressed image has {sizes}", path=path)
    size, count = sum(map(len, streams)), frames * rows * columns
    most = MAX_COMPRESSION.get(syntax, MAX_COMPRESSION[""])
    if count > ALWAYS_ACCEPTED and count > most * size:
        raise DicomError(f"claims {count} pixels in {size} compressed bytes, which cannot hold them", path=path)


def _encoded_size(stream: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 stream claims; None when they are not found.

    Decoders reserve memory by these numbers, so they are compared with the header first.
    """
    if stream[:2] != b"\xff\xd8":  # JPEG 2000: SOC, SIZ; size less offset (ISO 15444-1 A.5.1)
        start = stream[:MAX_WRAPPING].find(b"\xff\x4f\xff\x51")
        if start < 0 or (start > 0 and stream[4:8] != b"jP  "):  # only the boxes of a JP2 file may come before
            return None
        x1, y1, x0, y0 = (int.from_bytes(stream[start + i : start + i + 4], "big") for i in (8, 12, 16, 20))
        return y1 - y0, x1 - x0
    at = 2
    while at + 9 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:  # start of frame
            return int.from_bytes(stream[at + 5 : at + 7], "big"), int.from_bytes(stream[at + 7 : at + 9], "big")
        else:
            at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return None
