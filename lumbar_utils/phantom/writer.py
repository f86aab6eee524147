"""Stacks of pixels as classic MR Image files, one per slice, the same bytes every time.

Nothing here knows about anatomy. A series shares nearly all its elements, so each is encoded once and only what
differs between slices (instance number, UID, position, pixels) is encoded per slice; that is several times faster
than writing a data set per file. No clock, no random UID: a UID is a hash of what it stands for.

Reference: DICOM PS3.3 A.4 (MR Image IOD), C.8.3.1 (MR Image module), PS3.5 B.2 (UIDs from a UUID, root 2.25).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.pixels.encoders import JPEG2000LosslessEncoder, RLELosslessEncoder
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
    RLELossless,
)

from ..errors import DataError
from ..geometry import StackGeometry

SYNTHETIC_COMMENT = "Synthetic MRI of a computed phantom. No patient. Not for diagnosis."

TRANSFER_SYNTAXES: dict[str, UID] = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big-endian": ExplicitVRBigEndian,
    "rle": RLELossless,
    "jpeg2000": JPEG2000Lossless,
}
_PREAMBLE = b"\x00" * 128 + b"DICM"
_IMPLEMENTATION = UID("2.25.238461508364528460523694081")


@dataclass(frozen=True)
class SeriesHeader:
    """What the header of a series says beside the geometry. `None` leaves the element out.

    Parameters
    ----------
    description : str
        The scanner's own name of the series, which in real data is not the competition's.
    echo_time, repetition_time, inversion_time : float or None
        ms.
    field_strength : float
        Tesla.
    slice_thickness, slice_spacing : float
        mm; the spacing is from middle to middle.
    series_number : int
    """

    description: str
    echo_time: float | None = None
    repetition_time: float | None = None
    inversion_time: float | None = None
    field_strength: float = 1.5
    slice_thickness: float = 4.0
    slice_spacing: float = 4.4
    series_number: int = 1


def stable_uid(*parts: object) -> UID:
    """A UID that is always the same for the same parts, under the root 2.25 (a UUID as a decimal number)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return UID(f"2.25.{int.from_bytes(digest[:16], 'big')}")


def write_series(
    folder: Path,
    stacks: Sequence[tuple[StackGeometry, np.ndarray]],
    *,
    study_id: str,
    series_id: str,
    header: SeriesHeader,
    instance_numbers: Sequence[np.ndarray],
    transfer_syntax: str = "explicit",
    uid_root: str = "phantom",
) -> int:
    """Write one file `<instance_number>.dcm` per slice into `folder`, which is made if need be.

    Parameters
    ----------
    stacks : sequence of (StackGeometry, ndarray of uint16, shape (n, rows, columns))
        Stored in 12 bits if they fit, as most scanners do, otherwise in 16.
    instance_numbers : sequence of int arrays
        Per stack the instance number of each slice, in the order of the stack's positions.
    transfer_syntax : str
        A key of `TRANSFER_SYNTAXES`. "jpeg2000" needs pylibjpeg-openjpeg or gdcm.
    uid_root : str
        Goes into every UID, so that two cohorts do not share any.

    Returns
    -------
    int
        Number of files.

    Raises
    ------
    DataError
        Unknown transfer syntax, shapes that do not fit, or an instance number that comes twice.
    """
    if transfer_syntax not in TRANSFER_SYNTAXES:
        raise DataError(f"unknown transfer syntax {transfer_syntax!r}, expected one of {sorted(TRANSFER_SYNTAXES)}")
    numbers = [int(n) for block in instance_numbers for n in block]
    if len(set(numbers)) != len(numbers):
        raise DataError(f"series {series_id} of study {study_id}: an instance number comes twice in {sorted(numbers)}")
    folder.mkdir(parents=True, exist_ok=True)
    uids = (uid_root, study_id, series_id)
    bits = 12 if max((int(pixels.max(initial=0)) for _, pixels in stacks), default=0) < 4096 else 16
    for (geometry, pixels), block in zip(stacks, instance_numbers, strict=True):
        if pixels.shape != (len(geometry), *geometry.shape) or len(block) != len(geometry):
            raise DataError(
                f"series {series_id} of study {study_id}: pixels {pixels.shape} and {len(block)} instance numbers "
                f"do not fit a stack of {len(geometry)} slices of {geometry.shape}"
            )
        template = _SliceTemplate(geometry, header, uids, transfer_syntax, bits=bits, window=_window(pixels))
        for index, number in enumerate(block):
            position = geometry.positions[index]
            data = template.encode(int(number), position, pixels[index], location=float(geometry.offsets[index]))
            (folder / f"{int(number)}.dcm").write_bytes(data)
    return len(numbers)


class _SliceTemplate:
    """The encoded elements of a stack, by tag; `encode` replaces those of one slice and joins them in order."""

    def __init__(
        self,
        geometry: StackGeometry,
        header: SeriesHeader,
        uids: tuple[str, str, str],
        transfer_syntax: str,
        *,
        bits: int,
        window: tuple[int, int],
    ):
        self.uids = uids
        self.bits = bits
        self.transfer_syntax = transfer_syntax
        self.syntax = TRANSFER_SYNTAXES[transfer_syntax]
        self.shape = geometry.shape
        self.common = _encoded(_common_elements(geometry, header, uids, bits, window), self.syntax)
        meta = FileMetaDataset()
        meta.FileMetaInformationVersion = b"\x00\x01"
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.TransferSyntaxUID = self.syntax
        meta.ImplementationClassUID = _IMPLEMENTATION
        meta.ImplementationVersionName = "LUMBAR_PHANTOM_1"
        self.meta = _encoded(meta, ExplicitVRLittleEndian)

    def encode(self, number: int, position: np.ndarray, pixels: np.ndarray, *, location: float) -> bytes:
        """All bytes of one file."""
        uid = stable_uid(*self.uids, number)
        meta = self.meta | {0x00020003: _text_element(0x00020003, "UI", uid, ExplicitVRLittleEndian)}
        meta_bytes = b"".join(meta[tag] for tag in sorted(meta))
        elements = dict(self.common)
        for tag, vr, text in (
            (0x00080018, "UI", uid),
            (0x00200013, "IS", str(number)),
            (0x00200032, "DS", "\\".join(map(_decimal, position))),
            (0x00201041, "DS", _decimal(location)),
        ):
            elements[tag] = _text_element(tag, vr, text, self.syntax)
        image = DataElement(0x7FE00010, "OB" if self.syntax.is_compressed else "OW", self._pixel_data(pixels))
        image.is_undefined_length = self.syntax.is_compressed
        elements |= _encoded([image], self.syntax)
        group_length = struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta_bytes))
        return b"".join([_PREAMBLE, group_length, meta_bytes, *(elements[tag] for tag in sorted(elements))])

    def _pixel_data(self, pixels: np.ndarray) -> bytes:
        raw = np.ascontiguousarray(pixels, dtype="<u2" if self.syntax.is_little_endian else ">u2").tobytes()
        if not self.syntax.is_compressed:
            return raw
        # The encoder is named, because another plugin may write other bytes for the same pixels.
        encoder, plugin = (
            (RLELosslessEncoder, "pydicom") if self.transfer_syntax == "rle" else (JPEG2000LosslessEncoder, "")
        )
        frame = encoder.encode(
            raw,
            rows=self.shape[0],
            columns=self.shape[1],
            samples_per_pixel=1,
            bits_allocated=16,
            bits_stored=self.bits,
            pixel_representation=0,
            photometric_interpretation="MONOCHROME2",
            number_of_frames=1,
            encoding_plugin=plugin,
        )
        return encapsulate([frame])


def _encoded(elements: Iterable[DataElement], syntax: UID) -> dict[int, bytes]:
    """The bytes of every element, by tag."""
    result = {}
    for element in elements:
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = syntax.is_little_endian, syntax.is_implicit_VR
        write_data_element(buffer, element)
        result[int(element.tag)] = buffer.getvalue()
    return result


def _text_element(tag: int, vr: str, text: str, syntax: UID) -> bytes:
    """Bytes of an element with a short text value; what `_encoded` gives, ten times faster, for every slice."""
    value = text.encode("ascii")
    if len(value) % 2:
        value += b"\x00" if vr == "UI" else b" "
    order = "<" if syntax.is_little_endian else ">"
    if syntax.is_implicit_VR:
        return struct.pack(f"{order}HHI", tag >> 16, tag & 0xFFFF, len(value)) + value
    return struct.pack(f"{order}HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), len(value)) + value


def _common_elements(
    geometry: StackGeometry, header: SeriesHeader, uids: tuple[str, str, str], bits: int, window: tuple[int, int]
) -> Dataset:
    """The elements that all slices of a stack share."""
    root, study_id, series_id = uids
    inversion = header.inversion_time is not None
    values = {
        "SpecificCharacterSet": "ISO_IR 100",
        "ImageType": ["DERIVED", "PRIMARY", "M", "SYNTHETIC"],
        "SOPClassUID": MRImageStorage,
        "StudyDate": "",
        "StudyTime": "",
        "AccessionNumber": "",
        "Modality": "MR",
        "Manufacturer": "Synthetic",
        "ReferringPhysicianName": "",
        "SeriesDescription": header.description,
        "ManufacturerModelName": "Phantom",
        "PatientName": "SYNTHETIC^PHANTOM",
        "PatientID": study_id,
        "PatientBirthDate": "",
        "PatientSex": "",
        "BodyPartExamined": "LSPINE",
        "ScanningSequence": ["SE", "IR"] if inversion else "SE",
        "SequenceVariant": "SK",
        "ScanOptions": "",
        "MRAcquisitionType": "2D",
        "SliceThickness": _decimal(header.slice_thickness),
        "RepetitionTime": _decimal(header.repetition_time),
        "EchoTime": _decimal(header.echo_time),
        "InversionTime": _decimal(header.inversion_time),
        "MagneticFieldStrength": _decimal(header.field_strength),
        "SpacingBetweenSlices": _decimal(header.slice_spacing),
        "EchoTrainLength": "8",
        "PatientPosition": "HFS",
        "StudyInstanceUID": stable_uid(root, study_id),
        "SeriesInstanceUID": stable_uid(root, study_id, series_id),
        "StudyID": "",
        "SeriesNumber": header.series_number,
        "ImageOrientationPatient": [_decimal(v) for v in (*geometry.row_cosine, *geometry.column_cosine)],
        "FrameOfReferenceUID": stable_uid(root, study_id, "frame"),
        "PositionReferenceIndicator": "",
        "ImageComments": SYNTHETIC_COMMENT,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": geometry.shape[0],
        "Columns": geometry.shape[1],
        "PixelSpacing": [_decimal(v) for v in geometry.spacing],
        "BitsAllocated": 16,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": 0,
        "WindowCenter": str(window[0]),
        "WindowWidth": str(window[1]),
    }
    elements = Dataset()
    for keyword, value in values.items():
        if value is not None:
            setattr(elements, keyword, value)
    return elements


def _decimal(value: float | None) -> str | None:
    """A decimal string of at most 16 characters (PS3.5 6.2) that keeps 1e-6 mm and better for directions."""
    if value is None:
        return None
    value = float(value)
    for digits in (10, 9, 8, 7, 6):
        text = f"{value:.{digits}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
        if len(text) <= 16:
            return "0" if text == "-0" else text
    raise DataError(f"{value} does not fit a DICOM decimal string")


def _window(pixels: np.ndarray) -> tuple[int, int]:
    """Window centre and width that a viewer would open the stack with; a sample of the pixels is enough."""
    low, high = np.percentile(pixels[:: max(1, len(pixels) // 4), ::4, ::4], [2, 99])
    return round(float(low + high) / 2), max(round(float(high - low)), 1)
