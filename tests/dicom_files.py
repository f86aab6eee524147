"""Makes small DICOM files with chosen quirks, for the tests of reading.

Every pixel holds `brightness` of its place in the patient, so a test can ask any image, read in whatever way, whether
each pixel came back at the right place with the right value.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gdcm
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

SAGITTAL = (0, 1, 0, 0, 0, -1)
AXIAL = (1, 0, 0, 0, 1, 0)
CORONAL = (1, 0, 0, 0, 0, -1)


def brightness(points: np.ndarray) -> np.ndarray:
    """Value at LPS mm (..., 3); its gradient differs in all directions, so no flip or swap goes unseen."""
    return 1000 + np.asarray(points) @ np.array([3.0, 5.0, 7.0])


def turned(orientation: Sequence[float], axis: int, degrees: float) -> tuple[float, ...]:
    """An orientation turned about the patient's x, y or z axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    a, b = [i for i in range(3) if i != axis]
    matrix = np.eye(3)
    matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = c, -s, s, c
    row, column = np.asarray(orientation[:3], float), np.asarray(orientation[3:], float)
    return tuple(matrix @ row) + tuple(matrix @ column)


def places(position, orientation, spacing, shape) -> np.ndarray:
    """LPS mm of every pixel, (rows, columns, 3), written out from PS3.3 C.7.6.2.1.1 and not from the library."""
    row, column = np.asarray(orientation[:3], float), np.asarray(orientation[3:], float)
    i, j = np.mgrid[: shape[0], : shape[1]]
    return np.asarray(position, float) + j[..., None] * spacing[1] * row + i[..., None] * spacing[0] * column


def image(
    *,
    position: Sequence[float] = (0.0, -20.0, 30.0),
    orientation: Sequence[float] = SAGITTAL,
    spacing: tuple[float, float] = (1.0, 1.0),
    shape: tuple[int, int] = (24, 20),
    pixels: np.ndarray | None = None,
    study_uid: str = "1.2.3",
    series_uid: str = "1.2.3.4",
    number: int | None = 1,
    bits: int = 16,
    stored: int | None = None,
    high: int | None = None,
    **tags,
) -> Dataset:
    """One MR image; `pixels` are stored values, by default `brightness`; a tag given as None is left out."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = MRImageStorage, generate_uid(), "MR"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study_uid, series_uid
    dataset.SeriesDescription = "T2"
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Doe^Jane", "4711", "19700101"
    if pixels is None:
        pixels = np.rint(brightness(places(position, orientation, spacing, shape))).astype(np.uint16)
    dataset.ImagePositionPatient = [float(f"{v:.6f}") for v in position]
    dataset.ImageOrientationPatient = [float(f"{v:.8f}") for v in orientation]
    dataset.PixelSpacing = list(spacing)
    if number is not None:
        dataset.InstanceNumber = number
    put_pixels(dataset, pixels, bits=bits, stored=stored, high=high)
    for keyword, value in tags.items():
        if value is not None:
            setattr(dataset, keyword, value)
        elif keyword in dataset:
            delattr(dataset, keyword)
    return dataset


def put_pixels(dataset: Dataset, pixels: np.ndarray, *, bits=16, stored=None, high=None) -> None:
    """Store integers (rows, columns) or (frames, rows, columns) in words of `bits`, from bit `high` downwards."""
    stored = bits if stored is None else stored
    high = stored - 1 if high is None else high
    words = (pixels.astype(np.int64) & (2**stored - 1)) << (high + 1 - stored)
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, stored, high
    dataset.PixelRepresentation = int(pixels.min() < 0)
    data = words.astype(f"<u{bits // 8}").tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if bits == 8 else "OW"


def write(path: Path, dataset: Dataset, syntax: str = ExplicitVRLittleEndian, *, meta: bool = True) -> Path:
    """Write uncompressed, big endian or deflated; `meta=False` leaves out preamble and file meta."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not meta:
        dataset.save_as(path, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
        return path
    file_meta = FileMetaDataset()
    file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", MRImageStorage)
    file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", generate_uid())
    file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian and "PixelData" in dataset:
        dtype = f"u{dataset.BitsAllocated // 8}" if dataset["PixelData"].VR == "OB" else "u2"
        if dataset.BitsAllocated == 32:
            dtype = "u4"
        dataset.PixelData = np.frombuffer(dataset.PixelData, dtype).byteswap().tobytes()
    dataset.file_meta = file_meta
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def recompress(path: Path, syntax: int) -> Path:
    """Rewrite a file in another transfer syntax (a `gdcm.TransferSyntax` constant) with gdcm's encoders."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return path


def stack_positions(start, orientation, offsets) -> list[np.ndarray]:
    """Positions along the normal at the given offsets in mm."""
    normal = np.cross(orientation[:3], orientation[3:])
    return [np.asarray(start, float) + offset * normal for offset in offsets]


def write_series(
    folder: Path,
    *,
    orientation: Sequence[float] = SAGITTAL,
    offsets: Sequence[float] = (0, 4, 8, 12, 16),
    numbers: Sequence[int] | None = None,
    start: Sequence[float] = (-8.0, -20.0, 30.0),
    **options,
) -> Path:
    """One stack, `<number>.dcm` each; files come in the order of `offsets`."""
    numbers = range(1, len(offsets) + 1) if numbers is None else numbers
    for number, position in zip(numbers, stack_positions(start, orientation, offsets), strict=True):
        one = image(position=position, orientation=orientation, number=number, **options)
        write(folder / f"{number}.dcm", one)
    return folder


def enhanced(positions, orientation, *, spacing=(1.0, 1.0), shape=(24, 20), slopes=None, **tags) -> Dataset:
    """An enhanced multi-frame MR image: orientation and spacing shared, position and rescale slope per frame."""
    frames = np.stack([np.rint(brightness(places(p, orientation, spacing, shape))) for p in positions])
    slopes = [1.0] * len(frames) if slopes is None else slopes
    dataset = image(pixels=np.zeros(shape, np.uint16), SOPClassUID=EnhancedMRImageStorage)
    put_pixels(dataset, np.rint(frames / np.reshape(slopes, (-1, 1, 1))).astype(np.uint16))
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(dataset, keyword)
    shared = Dataset()
    shared.PlaneOrientationSequence = group(ImageOrientationPatient=list(orientation))
    shared.PixelMeasuresSequence = group(PixelSpacing=list(spacing), SliceThickness=4)
    shared.MRTimingAndRelatedParametersSequence = group(RepetitionTime=3500.0, FlipAngle=150.0)
    shared.MREchoSequence = group(EffectiveEchoTime=102.0)
    dataset.SharedFunctionalGroupsSequence = DicomSequence([shared])
    per_frame = []
    for position, slope in zip(positions, slopes, strict=True):
        item = Dataset()
        item.PlanePositionSequence = group(ImagePositionPatient=[float(v) for v in position])
        item.PixelValueTransformationSequence = group(RescaleSlope=slope, RescaleIntercept=0, RescaleType="US")
        per_frame.append(item)
    dataset.PerFrameFunctionalGroupsSequence = DicomSequence(per_frame)
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    return dataset


def group(**attributes) -> DicomSequence:
    """A sequence of one item."""
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return DicomSequence([item])


def error_of_brightness(stack) -> float:
    """Largest difference between a read stack's pixels and `brightness` at the places its geometry gives them."""
    n, rows, columns = stack.pixels.shape
    grid = np.stack(np.meshgrid(np.arange(n), np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
    return float(np.abs(stack.pixels - brightness(stack.geometry.voxel_to_world(grid))).max())
