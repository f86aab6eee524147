"""A prediction as a DICOM Structured Report, which an archive can keep beside the images it was made from.

One "Imaging Measurement Report" (TID 1500) per study, a Comprehensive 3D SR: for each of the 25 targets a measurement
group (TID 1501) with the disc as its site, what was assessed there ("Assessment of the spinal canal") with the most
probable grade, and the three probabilities, which are plain frequencies; for each disc a region (TID 1410) with its
point and the localizer's confidence. Only a moderate or severe grade asserts the finding, by its code and severity: a
search for stenosis, by code or by word, does not return what is normal or mild. Discs are coded by SNOMED CT as in
CID 7604, severities as in CID 6130; what has no public code is coded by the private scheme 99LUMBAR, which every
report declares.

A report carries the patient's and the study's attributes of its source, names and numbers included, and its UIDs as
they are, valid or not: an archive files it by them. This is the only place where the library copies them, and only on
request.

References: DICOM PS3.3 A.35.13 (Comprehensive 3D SR), PS3.16 TID 1500, 1501, 1410, 4019.
"""

from __future__ import annotations

import importlib.util
import logging
import uuid
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom.dataset import Dataset
from pydicom.sr.codedict import Code, codes
from pydicom.uid import UID, generate_uid

from .. import __version__
from ..errors import DataError, DicomError, LumbarError, MissingPackageError, OutputError
from ..files import atomically, file_name
from ..inference.submission import FREQUENCY_NOTE, PHANTOM_NOTE, StudyPrediction
from ..labels import AXIAL_T2, LEVELS, N_LEVELS, SAGITTAL_T1, SAGITTAL_T2, TARGETS, level_title
from ..studies.competition import in_synthetic_cohort
from ..studies.source_images import SourceImage, SourceImages, read_source_images
from ..studies.study import StudySource

if TYPE_CHECKING:
    from highdicom.sr import Comprehensive3DSR, MeasurementsAndQualitativeEvaluations

logger = logging.getLogger(__name__)

RESEARCH_USE = "Research software. Not a medical device, not for diagnosis. Not verified by a person."
SERIES_DESCRIPTION = "Lumbar grades, research use only, not for diagnosis"
SYNTHETIC_DESCRIPTION = "Lumbar grades of a synthetic phantom, research use only"
MANUFACTURER = "lumbar_utils contributors"
SCHEME = "99LUMBAR"
"""The private coding scheme; "99" marks such a scheme (PS3.3 8.2)."""

DISC_CODES = tuple(getattr(codes.CID7604, level_title(level).replace("/", "") + "Disc") for level in LEVELS)
"""The five discs, CID 7604 "Intervertebral Disc"."""
_SPINAL_STENOSIS = Code("76107001", "SCT", "Spinal stenosis")
_FORAMINAL = Code("FORAMINAL", SCHEME, "Neural foraminal narrowing")
_SUBARTICULAR = Code("SUBARTICULAR", SCHEME, "Subarticular stenosis")
FINDING_CODES = (_SPINAL_STENOSIS, _FORAMINAL, _FORAMINAL, _SUBARTICULAR, _SUBARTICULAR)
"""By condition; the side is the laterality of the finding's site. Asserted of moderate and severe grades only."""
_CANAL = Code("A-CANAL", SCHEME, "Assessment of the spinal canal")
_FORAMEN = Code("A-FORAMEN", SCHEME, "Assessment of the neural foramen")
_RECESS = Code("A-SUBARTICULAR", SCHEME, "Assessment of the subarticular zone")
ASSESSMENT_CODES = (_CANAL, _FORAMEN, _FORAMEN, _RECESS, _RECESS)
STRUCTURES = (
    *("spinal canal", "left neural foramen", "right neural foramen"),
    *("left subarticular zone", "right subarticular zone"),
)
"""By condition, for tracking identifiers, which must not name a disease that is not there."""
LATERALITY_CODES = (None, codes.CID244.Left, codes.CID244.Right, codes.CID244.Left, codes.CID244.Right)
SEVERITY_CODES = (Code("NORMALMILD", SCHEME, "Normal or mild"), codes.CID6130.Moderate, codes.CID6130.Severe)
PROBABILITY_CODES = (
    Code("P-NORMALMILD", SCHEME, "Probability of normal or mild"),
    Code("P-MODERATE", SCHEME, "Probability of moderate"),
    Code("P-SEVERE", SCHEME, "Probability of severe"),
)
CANAL_POINT_CODE = Code("CANALPOINT", SCHEME, "Middle of the spinal canal at the disc")
CONFIDENCE_CODE = Code("P-POINT", SCHEME, "Probability that the point lies at its disc, within 5 mm")
SEVERITY_NAME = Code("246112005", "SCT", "Severity")
MRI_CODE = Code("113091000", "SCT", "Magnetic resonance imaging")

VIEWS_OF_CONDITION = ((SAGITTAL_T2, AXIAL_T2), (SAGITTAL_T1,), (SAGITTAL_T1,), (AXIAL_T2,), (AXIAL_T2,))
FORAMEN_SIDE_MM = (0.0, 17.0, -17.0, 0.0, 0.0)
"""Which slice a finding is shown on: so far to the patient's left of the canal lies what the condition is about."""
NAMESPACE = uuid.UUID("6f2f4f0e-6c0c-5a3b-9d57-2a4f0a9c6f11")
"""Of UIDs that must be the same every time: those that track a target of a study, and that of the software."""


def require_highdicom() -> None:
    """Raise `MissingPackageError` where highdicom is not installed; cheap, to be called before the work."""
    if importlib.util.find_spec("highdicom") is None:
        raise MissingPackageError("DICOM structured reports need highdicom: pip install highdicom")


def structured_report(
    prediction: StudyPrediction, source: StudySource | SourceImages, *, network: str = "", synthetic: bool = False
) -> Comprehensive3DSR:
    """The prediction as a DICOM data set, ready to be written or sent.

    `source` is the study of the prediction, or its images: headers are read for patient, study and the images to refer
    to. `network`, for example the name of its run, goes into the algorithm's parameters. `synthetic`: the study is a
    phantom, and the report says so; those in a synthetic cohort's folder are recognised without it.

    Raises `DataError` when the prediction is only the class prior, which is no finding and has no place in an archive;
    `DicomError` when the source has no image that can be referred to, or its header cannot be carried over;
    `MissingPackageError` when highdicom is not installed.
    """
    require_highdicom()
    if prediction.fallback:
        raise DataError(f"study {prediction.study_id}: no prediction, only the class prior: there is nothing to report")
    source_images = source if isinstance(source, SourceImages) else read_source_images(source)
    synthetic = synthetic or (isinstance(source, StudySource) and in_synthetic_cohort(source.path))
    if source_images.study_id != prediction.study_id:
        raise DataError(f"the prediction is of study {prediction.study_id!r}, the images of {source_images.study_id!r}")
    try:
        with warnings.catch_warnings():  # about the source's names and numbers, which are copied as they are
            warnings.filterwarnings("ignore", module="pydicom|highdicom")
            return _document(prediction, source_images, network, synthetic)
    except LumbarError:
        raise
    except Exception as error:  # whatever highdicom objects to in the source's header
        message = f"cannot be reported: {type(error).__name__}: {error}"
        raise DicomError(message, study_id=prediction.study_id) from error


def write_structured_reports(
    predictions: Iterable[StudyPrediction], sources: Iterable[StudySource], folder: Path | str, *, network: str = ""
) -> tuple[dict[str, Path], dict[str, str]]:
    """Write one report a study, named by `files.file_name`; what cannot be reported is logged and left out.

    Predictions and sources come in the same order. Returns files and reasons, each by study id. Raises
    `MissingPackageError` when highdicom is not installed, `DataError` when the folder is a file.
    """
    require_highdicom()
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file, expected a folder for the structured reports")
    folder.mkdir(parents=True, exist_ok=True)
    written, failures = {}, {}
    for prediction, source in zip(predictions, sources, strict=True):
        try:
            report = structured_report(prediction, source, network=network)
            path = folder / f"{file_name(prediction.study_id)}.dcm"
            atomically(path, partial(report.save_as, enforce_file_format=True))
            written[prediction.study_id] = path
        except OutputError:
            raise
        except Exception as error:  # one study's header must not cost the others their reports
            failures[prediction.study_id] = str(error) or type(error).__name__
            logger.warning("study %s: no structured report: %s", prediction.study_id, error)
    return written, failures


def _document(
    prediction: StudyPrediction, source_images: SourceImages, network: str, synthetic: bool
) -> Comprehensive3DSR:
    import highdicom as hd
    from highdicom import sr

    device = stable_uid("software", __version__)
    observer = sr.DeviceObserverIdentifyingAttributes(
        uid=device, name="lumbar_utils", manufacturer_name=MANUFACTURER, model_name="lumbar_utils"
    )
    about = [network] if network else []
    about += [prediction.notice] if prediction.notice else []
    algorithm = sr.AlgorithmIdentification(
        name="lumbar_utils", version=__version__, parameters=about or None, family=codes.CID7162.ArtificialIntelligence
    )
    groups = [*_findings(prediction, source_images, algorithm), *_disc_points(prediction, source_images, algorithm)]
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(sr.ObserverContext(codes.DCM.Device, observer)),
        procedure_reported=MRI_CODE,
        imaging_measurements=groups,
    )
    for text in comments(prediction, synthetic):
        content[0].ContentSequence.append(
            sr.TextContentItem(codes.DCM.Comment, text, relationship_type=sr.RelationshipTypeValues.CONTAINS)
        )
    scheme = hd.coding_schemes.CodingSchemeIdentificationItem(
        SCHEME, name="Private codes of lumbar_utils", version=__version__, responsible_organization=MANUFACTURER
    )
    document = sr.Comprehensive3DSR(
        evidence=_image_headers(source_images),
        content=content[0],
        series_instance_uid=generate_uid(prefix=None),
        series_number=1 + max(image.series_number for image in source_images.images),
        sop_instance_uid=generate_uid(prefix=None),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name="lumbar_utils",
        software_versions=__version__,
        device_serial_number=str(device),
        series_description=SYNTHETIC_DESCRIPTION if synthetic else SERIES_DESCRIPTION,
        is_complete=not prediction.missing_views,
        is_final=False,
        is_verified=False,
        coding_schemes=[scheme],
        specific_character_set="ISO_IR 192",
    )
    if prediction.missing_views:
        document.CompletionFlagDescription = f"predicted without {', '.join(prediction.missing_views)}"[:64]
    return document


def _findings(
    prediction: StudyPrediction, source_images: SourceImages, algorithm
) -> list[MeasurementsAndQualitativeEvaluations]:
    """The 25 targets, in the order of `labels.TARGETS`."""
    from highdicom import sr

    groups = []
    study_uid = source_images.images[0].study_uid
    for target, (name, probabilities) in enumerate(zip(TARGETS, prediction.probabilities, strict=True)):
        condition, level = divmod(target, N_LEVELS)
        measured = zip(PROBABILITY_CODES, probabilities, strict=True)
        shown_on = [
            sr.SourceImageForMeasurementGroup(image.sop_class_uid, image.sop_instance_uid, _frames(image, number))
            for image, number in _shown_on(prediction, source_images, condition, level)
        ]
        grade = SEVERITY_CODES[found := int(probabilities.argmax())]
        evaluations = [sr.QualitativeEvaluation(ASSESSMENT_CODES[condition], grade)]
        evaluations += [sr.QualitativeEvaluation(SEVERITY_NAME, grade)] if found else []
        identifier = f"{STRUCTURES[condition]} {level_title(LEVELS[level])}"
        groups.append(
            sr.MeasurementsAndQualitativeEvaluations(
                tracking_identifier=sr.TrackingIdentifier(stable_uid(study_uid, name), identifier),
                finding_type=FINDING_CODES[condition] if found else None,
                finding_sites=[sr.FindingSite(DISC_CODES[level], laterality=LATERALITY_CODES[condition])],
                algorithm_id=algorithm,
                measurements=[sr.Measurement(code, float(p), codes.UCUM.NoUnits) for code, p in measured],
                qualitative_evaluations=evaluations,
                source_images=shown_on or None,
            )
        )
    return groups


def _shown_on(
    prediction: StudyPrediction, source_images: SourceImages, condition: int, level: int
) -> list[tuple[SourceImage, int]]:
    """The slices on which a reader would look for a target, one for each view that shows it."""
    if prediction.discs is None:
        return []
    point = prediction.discs.points[level] + (FORAMEN_SIDE_MM[condition], 0.0, 0.0)
    frame = source_images.frame_of_reference(prediction.discs.series_id)
    views = (view for view in VIEWS_OF_CONDITION[condition] if view not in prediction.missing_views)
    found = (source_images.nearest(point, view=view, frame_of_reference_uid=frame) for view in views)
    return [one for one in found if one is not None]


def _disc_points(prediction: StudyPrediction, source_images: SourceImages, algorithm) -> list:
    """A region for each disc: its point in space, or on the nearest image where there is no frame of reference."""
    from highdicom import sr

    discs, groups = prediction.discs, []
    if discs is None:
        return groups
    found_on = discs.series_id if any(image.series_id == discs.series_id for image in source_images.images) else ""
    frame = source_images.frame_of_reference(found_on) if found_on else _first_frame(source_images)
    for level, point, confidence in zip(range(N_LEVELS), discs.points, discs.confidence, strict=True):
        if frame:
            region = sr.ImageRegion3D("POINT", point[None], frame)
        else:
            image, number = source_images.nearest(point, series_id=found_on)
            # A pixel's centre is (0, 0) here and (0.5, 0.5) in DICOM, whose origin is the pixel's corner (C.10.5.1.2).
            place = image.frames[number].world_to_pixel(point)[0] + 0.5
            origin = sr.SourceImageForRegion(image.sop_class_uid, image.sop_instance_uid, _frames(image, number))
            region = sr.ImageRegion("POINT", place[None], origin)
        name = f"canal_point_{LEVELS[level]}"
        groups.append(
            sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=sr.TrackingIdentifier(stable_uid(source_images.images[0].study_uid, name), name),
                referenced_region=region,
                finding_type=CANAL_POINT_CODE,
                finding_sites=[sr.FindingSite(DISC_CODES[level])],
                algorithm_id=algorithm,
                measurements=[sr.Measurement(CONFIDENCE_CODE, float(confidence), codes.UCUM.NoUnits)],
            )
        )
    return groups


def comments(prediction: StudyPrediction, synthetic: bool = False) -> list[str]:
    """What a reader of the report has to know beside the numbers, one sentence or list each."""
    found = [RESEARCH_USE, FREQUENCY_NOTE]
    found += [f"This study is {PHANTOM_NOTE}."] if synthetic else []
    found += [f"The network was {prediction.notice}."] if prediction.notice else []
    found += [f"Not available: {', '.join(prediction.missing_views)}."] if prediction.missing_views else []
    if prediction.discs is not None and prediction.discs.flagged:
        flags = zip(LEVELS, prediction.discs.flags, strict=True)
        found.append("Disc points: " + ", ".join(f"{level_title(level)} {flag}" for level, flag in flags if flag))
    return found + [f"Note: {issue}" for issue in prediction.issues]


def stable_uid(*parts: object) -> UID:
    """A UID that is the same every time for the same parts, made of a UUID (PS3.5 B.2)."""
    return UID(f"2.25.{uuid.uuid5(NAMESPACE, '/'.join(map(str, parts))).int}")


def _first_frame(source_images: SourceImages) -> str:
    """The frame of reference of the first sagittal T2 image that has one, else of any."""
    ordered = sorted(source_images.images, key=lambda image: image.view != SAGITTAL_T2)
    return next((image.frame_of_reference_uid for image in ordered if image.frame_of_reference_uid), "")


def _frames(image: SourceImage, number: int) -> list[int] | None:
    """Frame numbers as references name them: from 1, and only of multi-frame images."""
    return [number + 1] if len(image.frames) > 1 else None


def _image_headers(source_images: SourceImages) -> Sequence[Dataset]:
    """What highdicom asks of each image, the first one with the patient's and the study's attributes."""
    headers = [source_images.patient, *(Dataset() for _ in source_images.images[1:])]
    for image, header in zip(source_images.images, headers, strict=True):
        header.StudyInstanceUID, header.SeriesInstanceUID = image.study_uid, image.series_uid
        header.SOPClassUID, header.SOPInstanceUID = image.sop_class_uid, image.sop_instance_uid
    return headers
