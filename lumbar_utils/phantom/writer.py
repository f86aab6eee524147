"""Stacks of pixels as classic MR Image files, one per slice, the same bytes every time.

Nothing here knows about anatomy. No clock, no random UID: a UID is a hash of what it stands for.

Reference: DICOM PS3.3 A.4 (MR Image IOD), C.8.3.1 (MR Image module), PS3.5 B.2 (UIDs from a UUID, root 2.25).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
    RLELossless,
)

from ..errors import DataError, OutputError
from ..geometry import StackGeometry

SYNTHETIC_COMMENT = "Synthetic MRI of a computed phantom. No patient. Not for diagnosis."

TRANSFER_SYNTAXES: dict[str, UID] = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big-endian": ExplicitVRBigEndian,
    "rle": RLELossless,
    "jpeg2000": JPEG2000Lossless,
}
_IMPLEMENTATION = UID("2.25.238461508364528460523694081")
_SAME_IN_ALL = {
    "SpecificCharacterSet": "ISO_IR 100",
    "ImageType": ["DERIVED", "PRIMARY", "M", "SYNTHETIC"],
    "SOPClassUID": MRImageStorage,
    "StudyDate": "",
    "StudyTime": "",
    "AccessionNumber": "",
    "Modality": "MR",
    "Manufacturer": "Synthetic",
    "ReferringPhysicianName": "",
    "ManufacturerModelName": "Phantom",
    "PatientName": "SYNTHETIC^PHANTOM",
    "PatientBirthDate": "",
    "PatientSex": "",
    "BodyPartExamined": "LSPINE",
    "SequenceVariant": "SK",
    "ScanOptions": "",
    "MRAcquisitionType": "2D",
    "EchoTrainLength": 8,
    "PatientPosition": "HFS",
    "StudyID": "",
    "PositionReferenceIndicator": "",
    "ImageComments": SYNTHETIC_COMMENT,
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": 16,
    "PixelRepresentation": 0,
}


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
    header: Mapping[str, str | float],
    instance_numbers: Sequence[np.ndarray],
    transfer_syntax: str = "explicit",
    uid_root: str = "phantom",
) -> int:
    """Write one file `<instance_number>.dcm` per slice into `folder`; returns their number. `stacks` are geometries
    with uint16 pixels (n, rows, columns), `instance_numbers` one array for each; `header` are further elements by
    keyword. Pixels are stored in 12 bits if they fit, as most scanners do; "jpeg2000" needs pylibjpeg-openjpeg or gdcm.
    `uid_root` keeps two cohorts from sharing a UID."""
    if transfer_syntax not in TRANSFER_SYNTAXES:
        raise DataError(f"unknown transfer syntax {transfer_syntax!r}, expected one of {sorted(TRANSFER_SYNTAXES)}")
    numbers = [int(n) for block in instance_numbers for n in block]
    if len(set(numbers)) != len(numbers):
        raise DataError(f"series {series_id} of study {study_id}: an instance number comes twice in {sorted(numbers)}")
    folder.mkdir(parents=True, exist_ok=True)
    syntax = TRANSFER_SYNTAXES[transfer_syntax]
    series_uid = stable_uid(uid_root, study_id, series_id)
    common = _SAME_IN_ALL | {
        "PatientID": study_id,
        "StudyInstanceUID": stable_uid(uid_root, study_id),
        "SeriesInstanceUID": series_uid,
        "FrameOfReferenceUID": stable_uid(uid_root, study_id, "frame"),
        "ScanningSequence": ["SE", "IR"] if "InversionTime" in header else "SE",
        **{keyword: value if isinstance(value, str) else _decimal(value) for keyword, value in header.items()},
    }
    bits = 12 if max((int(pixels.max(initial=0)) for _, pixels in stacks), default=0) < 4096 else 16
    for (geometry, pixels), block in zip(stacks, instance_numbers, strict=True):
        if pixels.shape != (len(geometry), *geometry.shape) or len(block) != len(geometry):
            raise DataError(
                f"series {series_id} of study {study_id}: pixels {pixels.shape} and {len(block)} instance numbers "
                f"do not fit a stack of {len(geometry)} slices of {geometry.shape}"
            )
        data = _stack_elements(common, geometry, pixels, bits, syntax)
        for number, position, location, image in zip(block, geometry.positions, geometry.offsets, pixels, strict=True):
            data.SOPInstanceUID = stable_uid(uid_root, study_id, series_id, number)
            data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
            data.InstanceNumber = int(number)
            data.ImagePositionPatient = [_decimal(v) for v in position]
            data.SliceLocation = _decimal(location)
            if syntax.is_compressed:
                # The encoder is named, because another plugin may write other bytes for the same pixels.
                plugin = "pydicom" if syntax == RLELossless else ""
                data.compress(syntax, image, plugin, generate_instance_uid=False)
            else:
                raw = image.astype("<u2" if syntax.is_little_endian else ">u2").tobytes()
                data.add_new("PixelData", "OW", raw)
            # In memory first: pydicom wraps what a full disk raises into a text with a traceback.
            dcmwrite(encoded := BytesIO(), data, enforce_file_format=True)
            path = folder / f"{number}.dcm"
            try:
                path.write_bytes(encoded.getvalue())
            except OSError as error:
                raise OutputError(f"{path}: cannot be written ({error}); disk full?") from error
    return len(numbers)


def _stack_elements(common: Mapping, geometry: StackGeometry, pixels: np.ndarray, bits: int, syntax: UID) -> Dataset:
    """The elements that all slices of a stack share."""
    # The window that a viewer would open the stack with; a sample of the pixels is enough.
    low, high = np.percentile(pixels[:: max(1, len(pixels) // 4), ::4, ::4], [2, 99])
    elements = Dataset()
    for keyword, value in (
        *common.items(),
        ("ImageOrientationPatient", [_decimal(v) for v in (*geometry.row_cosine, *geometry.column_cosine)]),
        ("Rows", geometry.shape[0]),
        ("Columns", geometry.shape[1]),
        ("PixelSpacing", [_decimal(v) for v in geometry.spacing]),
        ("BitsStored", bits),
        ("HighBit", bits - 1),
        ("WindowCenter", str(round(float(low + high) / 2))),
        ("WindowWidth", str(max(round(float(high - low)), 1))),
    ):
        setattr(elements, keyword, value)
    elements.file_meta = FileMetaDataset()
    elements.file_meta.MediaStorageSOPClassUID = MRImageStorage
    elements.file_meta.TransferSyntaxUID = syntax
    elements.file_meta.ImplementationClassUID = _IMPLEMENTATION
    elements.file_meta.ImplementationVersionName = "LUMBAR_PHANTOM_1"
    elements.preamble = b"\x00" * 128
    dcmwrite(encoded := BytesIO(), elements)
    encoded.seek(0)
    return dcmread(encoded)  # what was read stays encoded, and is written again without delay


def _decimal(value: float) -> str:
    """A decimal string of at most 16 characters (PS3.5 6.2) that keeps 1e-6 mm and better for directions."""
    for digits in (10, 9, 8, 7, 6):
        text = f"{float(value):.{digits}f}".rstrip("0").rstrip(".")
        if len(text) <= 16:
            return "0" if text == "-0" else text
    raise DataError(f"{value} does not fit a DICOM decimal string")
