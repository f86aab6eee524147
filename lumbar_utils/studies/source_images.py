"""Which images of a study a result rests on: whose they are and where each lies, from headers read on request.

`dicom.series.Series` keeps nothing that identifies a patient. A result that is to go back into an archive must carry
the patient and the study of its source, so the headers are read again here, and only here.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.valuerep import DA, TM

from ..dicom.acquisitions import acquisition_of
from ..dicom.elements import check_image, text, without_warnings
from ..dicom.headers import frame_geometry, functional_groups, list_files
from ..dicom.identity import shown_file, shown_series
from ..dicom.parsing import read_dataset
from ..dicom.parts import Slice, part_id, parts_of
from ..errors import DicomError, Issue
from ..geometry import SliceGeometry
from ..labels import VIEWS
from .competition import folder_names
from .study import StudySource

logger = logging.getLogger(__name__)

PATIENT_GROUPS = frozenset({0x0008, 0x0010, 0x0012, 0x0020, 0x0032, 0x0038, 0x0040})
"""Groups of elements in which the standard's patient and study modules lie (PS3.3 C.7.1, C.7.2)."""
MUST_BE_THERE = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
"""Type 2 attributes: may be empty, may not be absent."""
SEXES = ("M", "F", "O")


@dataclass(frozen=True, eq=False)
class SourceImage:
    """One image file that a result rests on, as one of the views, with one geometry for every frame.

    `series_id` is the library's name of the series, `series_number` 0 where missing; `frame_of_reference_uid` may be
    empty, and millimetres of two images compare only where it is the same.
    """

    study_uid: str
    series_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    frame_of_reference_uid: str
    series_id: str
    series_number: int
    view: str
    frames: tuple[SliceGeometry, ...] = field(repr=False)

    def distance(self, point: np.ndarray) -> tuple[float, int]:
        """mm from an LPS point (3,) to the nearest frame, edges included, and that frame's number, counted from 0."""
        away = [_distance(frame, point) for frame in self.frames]
        nearest = int(np.argmin(away))
        return away[nearest], nearest


@dataclass(frozen=True, eq=False)
class SourceImages:
    """The images of a study's three views, those of its main StudyInstanceUID first.

    `patient` are the patient and study attributes of the first image, which identify the patient: each can be read, and
    type 2 attributes are there, if need be empty. `acquisitions` are `Series.header` by series id.
    """

    study_id: str
    patient: Dataset = field(repr=False)
    images: tuple[SourceImage, ...] = field(repr=False)
    acquisitions: dict[str, dict] = field(default_factory=dict, repr=False)
    issues: tuple[Issue, ...] = ()

    def frame_of_reference(self, series_id: str) -> str:
        """The frame of reference of a series by its id, "" when it has none or is not there."""
        return next((i.frame_of_reference_uid for i in self.images if i.series_id == series_id), "")

    def nearest(
        self, point: np.ndarray, *, view: str = "", series_id: str = "", frame_of_reference_uid: str = ""
    ) -> tuple[SourceImage, int] | None:
        """The image nearest to an LPS point among those of the view, series and frame given, and its frame (from 0)."""
        asked = {"view": view, "series_id": series_id, "frame_of_reference_uid": frame_of_reference_uid}
        wanted = [one for one in self.images if all(v in ("", getattr(one, name)) for name, v in asked.items())]
        best = min(wanted, key=lambda image: image.distance(point)[0], default=None)
        return best and (best, best.distance(point)[1])


@without_warnings()
def read_source_images(source: StudySource) -> SourceImages:
    """Read the headers of a study's files without pixels; `DicomError` when no image is left.

    Series that are none of the three views are left out, as is every file without the UIDs to refer to it by.
    """
    images: list[SourceImage] = []
    headers: list[Dataset] = []
    acquisitions: dict[str, dict] = {}
    issues: list[Issue] = []
    for series_id, view, paths in _series_of(source):
        slices: list[Slice] = []
        files: list[tuple[SourceImage, Dataset]] = []
        for number, path in enumerate(paths, start=1):
            try:
                dataset = read_dataset(path, headers_only=True)
                image, own = _source_image(dataset, path, series_id)
            except DicomError as error:
                file = shown_file(path, number, len(paths))
                issues.append(Issue("file_unreadable", error.issue, source.study_id, series_id, file))
                continue
            slices += [one._replace(instance_number=len(files)) for one in own]
            files.append((image, dataset))
        for number, part in enumerate(parts_of(slices, view) if slices else ()):
            if part.view:
                own_id = part_id(series_id, number)
                acquisitions[own_id] = part.acquisition.header
                for file in sorted({slices[i].instance_number for stack in part.stacks for i in stack}):
                    image, dataset = files[file]
                    images.append(replace(image, view=part.view, series_id=own_id))
                    headers.append(dataset)
    if not images:
        reason = issues[0] if issues else "it holds none of the three views"
        raise DicomError(f"no image can be referred to: {reason}", path=source.path, study_id=source.study_id)
    main_study = Counter(image.study_uid for image in images).most_common(1)[0][0]
    order = sorted(range(len(images)), key=lambda i: images[i].study_uid != main_study)
    patient = _patient_header(headers[order[0]])
    return SourceImages(source.study_id, patient, tuple(images[i] for i in order), acquisitions, tuple(issues))


def _distance(frame: SliceGeometry, point: np.ndarray) -> float:
    """mm from a point to an image, which ends at the edges of its first and last pixels."""
    (x, y), depth = frame.world_to_pixel(point)
    rows, columns = frame.shape
    beside = [max(-0.5 - at, at - (size - 0.5), 0.0) for at, size in ((y, rows), (x, columns))]
    return float(np.linalg.norm([depth, *np.multiply(beside, frame.spacing)]))


def _series_of(source: StudySource) -> Iterator[tuple[str, str, list[Path]]]:
    """(series id, view or "", files) of every series of a study."""
    if not source.in_competition:
        yield from ((series_id, "", list(files)) for series_id, files in source.series)
        return
    listed = dict(source.listed or ())
    for series_id in folder_names(source.path):
        if source.series_ids is None or series_id in source.series_ids:
            described = listed.get(series_id, "")
            shown = series_id if series_id in listed else shown_series(series_id)
            yield shown, described if described in VIEWS else "", list_files(source.path / series_id)


def _source_image(dataset: Dataset, path: Path, series_id: str) -> tuple[SourceImage, list[Slice]]:
    """An image, and its frames as `parts_of` takes them."""
    frames, rows, columns = check_image(dataset, path)
    uids = {name: text(dataset, name) for name in ("StudyInstanceUID", "SeriesInstanceUID")}
    meta = getattr(dataset, "file_meta", Dataset())  # for data sets without SOP Common Module, as the competition's
    for name in ("SOPClassUID", "SOPInstanceUID"):
        uids[name] = text(dataset, name) or text(meta, f"MediaStorage{name}")
    absent = [name for name, value in uids.items() if not re.fullmatch(r"[0-9.]{1,64}", value)]
    if absent:
        raise DicomError(f"has no usable {absent[0]}, so nothing can refer to it", path=path)
    groups = functional_groups(dataset, frames, path)
    number = text(dataset, "SeriesNumber")
    geometries = tuple(frame_geometry(group, (rows, columns), path) for group in groups)
    number = int(number) if number.isdecimal() else 0
    image = SourceImage(*uids.values(), text(dataset, "FrameOfReferenceUID"), series_id, number, "", geometries)
    return image, [Slice(frame, acquisition_of(group)) for frame, group in zip(geometries, groups, strict=True)]


def _patient_header(header: Dataset) -> Dataset:
    """A header without what cannot be read or written again: broken elements must not cost the whole result."""
    kept = Dataset()
    for tag in sorted(header.keys()):  # iterating over the data set itself converts elements, outside of the try
        if tag.group in PATIENT_GROUPS:
            try:
                kept.add(deepcopy(header[tag]))
            except Exception:  # pydicom converts lazily and raises whatever the broken value leads to
                logger.warning("the header's element %s cannot be read and is left out", tag)
    for keyword in MUST_BE_THERE:
        if kept.get(keyword) is None:
            setattr(kept, keyword, "")
    if kept.PatientSex not in SEXES:
        kept.PatientSex = ""
    for keyword, kind in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        try:
            kind(kept.get(keyword))
        except ValueError:
            setattr(kept, keyword, "")
    return kept
