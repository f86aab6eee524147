"""Structured reports, read back by highdicom and by plain pydicom, and judged by dciodvfy."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import AXIAL, SAGITTAL, enhanced, image, stack_positions, write, write_series
from pydicom.sr.codedict import codes

from lumbar_utils.cli import main
from lumbar_utils.cli.predict import save_structured_reports
from lumbar_utils.errors import DataError, DicomError, Issue, LumbarError, OutputError
from lumbar_utils.inference.submission import FREQUENCY_NOTE, StudyPrediction
from lumbar_utils.labels import AXIAL_T2, CONDITIONS, LEVELS, N_TARGETS, SAGITTAL_T1, SAGITTAL_T2, TARGETS, level_title
from lumbar_utils.localization import DiscPoints
from lumbar_utils.localization.evaluation import read_reference
from lumbar_utils.report.structured_report import (
    DISC_CODES,
    SCHEME,
    SEVERITY_NAME,
    structured_report,
    write_structured_reports,
)
from lumbar_utils.studies.source_images import read_source_images
from lumbar_utils.studies.study import StudySource, find_studies

sr = pytest.importorskip("highdicom.sr", reason="highdicom is not installed")


def prediction_of(source: StudySource, points: np.ndarray, series_id: str, **options) -> StudyPrediction:
    """Random grades, the same for the same study."""
    rng = np.random.default_rng(len(source.study_id))
    discs = DiscPoints(source.study_id, series_id, points, rng.random(5))
    return StudyPrediction(source.study_id, rng.dirichlet([2, 1, 1], N_TARGETS), discs, **options)


@pytest.fixture(scope="module")
def phantom(cohort):
    """A synthetic study with all views: (source, prediction)."""
    truth = read_reference(cohort / "truth" / "discs.csv")
    for source in find_studies(cohort, part="train"):
        views = dict(source.listed)
        if len(set(views.values())) == 3:
            series_id = next(s for s, view in views.items() if view == SAGITTAL_T2)
            return source, prediction_of(source, truth[source.study_id], series_id)
    raise AssertionError("the cohort has no complete study")


@pytest.fixture(scope="module")
def written(phantom, tmp_path_factory) -> Path:
    source, prediction = phantom
    files, failures = write_structured_reports([prediction], [source], tmp_path_factory.mktemp("sr"), network="run x")
    assert not failures
    return files[source.study_id]


POINTS = np.stack([np.full(5, -15.0), np.linspace(-2, 3, 5), 20 - 8.0 * np.arange(5)], axis=-1)
"""Inside the small images of `dicom_files`, in whose series the five discs lie 8 mm apart."""


def small_study(folder: Path, study_id: str = "small", **tags) -> tuple[StudySource, StudyPrediction]:
    """Five sagittal slices of 1 mm pixels with chosen elements, one study, and a prediction."""
    write_series(folder / study_id, shape=(48, 40), **tags)
    (source,) = find_studies(folder / study_id)
    return source, prediction_of(source, POINTS, source.series[0][0])


def dciodvfy(path: Path) -> list[str]:
    """What the validator of dicom3tools calls an error; skips where it is not installed."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian: apt install dicom3tools)")
    done = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, check=False)
    assert "Comprehensive3DSR" in done.stdout + done.stderr
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


def items(dataset: pydicom.Dataset, name: str) -> list[pydicom.Dataset]:
    """Content items whose concept name has this meaning, in document order, without highdicom."""
    found = []
    for item in dataset.get("ContentSequence", []):
        named = item.get("ConceptNameCodeSequence")
        found += [item] if named and named[0].CodeMeaning == name else []
        found += items(item, name)
    return found


def test_highdicom_reads_the_prediction_back(phantom, written):
    _, prediction = phantom
    report = sr.srread(written)
    groups = report.content.get_image_measurement_groups()
    assert groups[3].tracking_identifier == "spinal canal L4/L5"
    assert groups[9].tracking_identifier == "left neural foramen L5/S1"
    values = [[m.value for m in group.get_measurements()] for group in groups]
    assert np.array_equal(values, prediction.probabilities)  # to the last bit
    units = {m.unit.value for group in groups for m in group.get_measurements()}
    assert units == {"1"}
    for target, group in enumerate(groups):
        condition, level = CONDITIONS[target // 5], LEVELS[target % 5]
        (site,) = group.finding_sites
        assert site.value == getattr(codes.CID7604, level_title(level).replace("/", "") + "Disc")
        side = {"l": codes.CID244.Left, "r": codes.CID244.Right}.get(condition[0])
        assert site.laterality == side
        worst = prediction.probabilities[target].argmax()
        word = ("Normal or mild", "Moderate", "Severe")[worst]
        family = (target // 5 + 1) // 2
        place = ("spinal canal", "neural foramen", "subarticular zone")[family]
        (assessed,) = [e for e in group.get_qualitative_evaluations() if e.name.meaning == f"Assessment of the {place}"]
        assert assessed.value.meaning == word
        severity = [e.value.meaning for e in group.get_qualitative_evaluations(name=SEVERITY_NAME)]
        found = ("Spinal stenosis", "Neural foraminal narrowing", "Subarticular stenosis")[family]
        asserted = group.finding_type and group.finding_type.meaning
        assert (severity, asserted) == (([word], found) if worst else ([], None))
    regions = report.content.get_planar_roi_measurement_groups()
    placed = np.concatenate([region.roi.value for region in regions])
    np.testing.assert_allclose(placed, prediction.discs.points, atol=1e-4)  # stored in single precision
    confidence = [region.get_measurements()[0].value for region in regions]
    assert np.array_equal(confidence, prediction.discs.confidence)


def test_the_same_numbers_stand_in_the_file_for_whoever_reads_it_without_highdicom(phantom, written):
    _, prediction = phantom
    report = pydicom.dcmread(written)
    assert report.ConceptNameCodeSequence[0].CodeValue == "126000" and report.Modality == "SR"
    for k, word in enumerate(("normal or mild", "moderate", "severe")):
        found = items(report, f"Probability of {word}")
        measured = [item.MeasuredValueSequence[0].FloatingPointValue for item in found]
        assert np.array_equal(measured, prediction.probabilities[:, k])
    said = [item.TextValue for item in items(report, "Comment")]
    assert FREQUENCY_NOTE in said
    assert "not for diagnosis" in said[0] and "research use" in report.SeriesDescription
    assert (report.VerificationFlag, report.PreliminaryFlag, report.CompletionFlag) == (
        *("UNVERIFIED", "PRELIMINARY"),
        "COMPLETE",
    )
    assert {item.TextValue for item in items(report, "Algorithm Name")} == {"lumbar_utils"}
    assert {item.TextValue for item in items(report, "Algorithm Parameters")} == {"run x"}
    (scheme,) = report.CodingSchemeIdentificationSequence
    assert scheme.CodingSchemeDesignator == SCHEME and scheme.CodingSchemeResponsibleOrganization
    assert items(report, "Observer Type")[0].ConceptCodeSequence[0].CodeMeaning == "Device"


def test_a_search_for_stenosis_does_not_return_the_healthy(phantom):
    source, prediction = phantom
    healthy = replace(prediction, probabilities=np.tile([0.55, 0.25, 0.20], (N_TARGETS, 1)))
    text = str(structured_report(healthy, source)).lower()
    assert not any(word in text for word in ("stenosis", "narrowing", "76107001")) and "normal or mild" in text


def test_it_belongs_to_the_patient_and_the_study_and_refers_to_the_images_that_were_used(phantom, written):
    source, prediction = phantom
    report = pydicom.dcmread(written)
    files = {s: sorted((source.path / s).glob("*.dcm")) for s, _ in source.listed}
    sources = [pydicom.dcmread(file, stop_before_pixels=True) for some in files.values() for file in some]
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate"):
        assert report[keyword].value == sources[0][keyword].value
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    listed = {
        (series.SeriesInstanceUID, one.ReferencedSOPInstanceUID)
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }
    assert listed == {(one.SeriesInstanceUID, one.SOPInstanceUID) for one in sources}
    assert report.SeriesInstanceUID not in {one.SeriesInstanceUID for one in sources}
    # A finding is shown on the slice of the right view that lies nearest: the left foramen to the left of the canal.
    by_uid = {one.SOPInstanceUID: one for one in sources}
    group = sr.srread(written).content.get_image_measurement_groups()[TARGETS.index(f"{CONDITIONS[1]}_{LEVELS[3]}")]
    (shown,) = group.source_images
    image = by_uid[shown.referenced_sop_instance_uid]
    assert image.SeriesInstanceUID in {one.SeriesInstanceUID for one in sources if one.EchoTime < 30}  # T1
    normal = np.cross(image.ImageOrientationPatient[:3], image.ImageOrientationPatient[3:])
    foramen = prediction.discs.points[3] + (17, 0, 0)
    assert abs((foramen - image.ImagePositionPatient) @ normal) <= image.SpacingBetweenSlices / 2 + 0.1


def test_what_is_tracked_keeps_its_uid_and_what_is_written_gets_a_new_one(phantom):
    source, prediction = phantom
    first, second = (structured_report(prediction, source) for _ in range(2))
    tracked = [[i.UID for i in items(report, "Tracking Unique Identifier")] for report in (first, second)]
    assert tracked[0] == tracked[1] and len(set(tracked[0])) == N_TARGETS + 5
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert all(len(uid) <= 64 for uid in tracked[0])


def test_dciodvfy_finds_no_error_and_would_find_one(written, tmp_path):
    assert dciodvfy(written) == []
    broken = pydicom.dcmread(written)
    del broken.CompletionFlag
    broken.save_as(tmp_path / "broken.dcm")
    assert dciodvfy(tmp_path / "broken.dcm")


def test_an_archive_finds_patient_and_study_as_in_the_images(phantom, written):
    """dcentvfy compares the patient and the study of files that are to be of one study."""
    if shutil.which("dcentvfy") is None:
        pytest.skip("dcentvfy is not installed (Debian: apt install dicom3tools)")
    source, _ = phantom
    images = [str(next((source.path / series_id).glob("*.dcm"))) for series_id, _ in source.listed]
    said = subprocess.run(["dcentvfy", str(written), *images], capture_output=True, text=True, check=False)
    assert "Error" not in said.stdout + said.stderr
    assert pydicom.dcmread(written).StudyInstanceUID == pydicom.dcmread(images[0]).StudyInstanceUID


def test_a_study_without_a_view_says_so(cohort, phantom, tmp_path):
    source, prediction = phantom
    kept = tuple(series_id for series_id, view in source.listed if view == SAGITTAL_T2)
    only_t2 = StudySource(source.study_id, source.path, (), True, source.listed, kept)
    prediction = StudyPrediction(
        *(source.study_id, prediction.probabilities, prediction.discs),
        missing_views=(AXIAL_T2, SAGITTAL_T1),
        issues=(Issue("note", "the labelling is uncertain"),),
        synthetic_only=True,
    )
    files, failures = write_structured_reports([prediction], [only_t2], tmp_path)
    assert not failures and dciodvfy(files[source.study_id]) == []
    report = pydicom.dcmread(files[source.study_id])
    said = " ".join(item.TextValue for item in items(report, "Comment"))
    assert f"Not available: {AXIAL_T2}, {SAGITTAL_T1}" in said and "the labelling is uncertain" in said
    assert "mean nothing for patients" in said and report.CompletionFlag == "PARTIAL"
    groups = sr.srread(files[source.study_id]).content.get_image_measurement_groups()
    assert len(groups) == N_TARGETS and not groups[-1].source_images and len(groups[0].source_images) == 1


def test_a_phantom_is_called_one_and_a_patient_is_not(phantom, written, tmp_path):
    report = pydicom.dcmread(written)
    said = " ".join(item.TextValue for item in items(report, "Comment"))
    assert "synthetic phantom, not a patient" in said and "synthetic" in report.SeriesDescription
    source, prediction = small_study(tmp_path)
    for synthetic in (False, True):
        report = structured_report(prediction, source, synthetic=synthetic)
        said = " ".join(item.TextValue for item in items(report, "Comment"))
        assert ("phantom" in said) == ("synthetic" in report.SeriesDescription) == synthetic


def test_without_a_frame_of_reference_points_lie_on_an_image(tmp_path):
    source, prediction = small_study(tmp_path)
    files, failures = write_structured_reports([prediction], [source], tmp_path / "sr")
    assert not failures and dciodvfy(files[source.study_id]) == []
    points = items(pydicom.dcmread(files[source.study_id]), "Image Region")
    images = {d.SOPInstanceUID: d for d in (pydicom.dcmread(f) for f in source.series[0][1])}
    for item, point in zip(points, POINTS, strict=True):
        one = images[item.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID]
        column, row = np.array(item.GraphicData) - 0.5  # from the corner of the first pixel to its centre
        placed = np.array(one.ImagePositionPatient) + column * np.array([0, 1, 0]) + row * np.array([0, 0, -1])
        assert np.allclose(placed[1:], point[1:], atol=1e-4) and abs(placed[0] - point[0]) <= 2  # slices 4 mm apart


def without_class(folder: Path) -> None:
    """Leave the SOP class of every file to its file meta, as the competition's files do."""
    for path in folder.glob("*.dcm"):
        dataset = pydicom.dcmread(path)
        for keyword in ("SOPClassUID", "StudyDate", "PatientName", "SeriesNumber"):
            if keyword in dataset:
                del dataset[keyword]
        dataset.save_as(path, enforce_file_format=False)


def test_files_that_name_their_class_in_the_file_meta_alone_are_reported(tmp_path):
    source, prediction = small_study(tmp_path, FrameOfReferenceUID="1.2.9")
    without_class(tmp_path / "small")
    files, failures = write_structured_reports([prediction], [source], tmp_path / "sr")
    assert not failures and dciodvfy(files[source.study_id]) == []
    (study,) = sr.srread(files[source.study_id]).CurrentRequestedProcedureEvidenceSequence
    referred = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert {one.ReferencedSOPClassUID.name for one in referred} == {"MR Image Storage"} and len(referred) == 5


def test_the_competitions_own_files_are_reported(real_rsna, tmp_path):
    (source,) = find_studies(real_rsna, part="train")
    files, failures = write_structured_reports([prediction_of(source, POINTS, source.listed[0][0])], [source], tmp_path)
    assert not failures, failures
    errors = dciodvfy(files[source.study_id])
    assert all("Illegal root for UID" in error for error in errors)  # the competition's own UIDs
    assert len(sr.srread(files[source.study_id]).content.get_image_measurement_groups()) == N_TARGETS


def test_points_on_a_multi_frame_image_name_the_frame(tmp_path):
    frames = stack_positions((-8.0, -20.0, 30.0), SAGITTAL, (0, 4, 8, 12))
    write(tmp_path / "scan" / "all.dcm", enhanced(frames, SAGITTAL, shape=(48, 40), FrameOfReferenceUID="1.2.9"))
    (source,) = find_studies(tmp_path / "scan")
    prediction = prediction_of(source, POINTS, source.series[0][0])
    files, failures = write_structured_reports([prediction], [source], tmp_path / "sr")
    assert not failures and dciodvfy(files[source.study_id]) == []
    report = sr.srread(files[source.study_id])
    canal = report.content.get_image_measurement_groups()[0].source_images[0]
    nearest = int(np.argmin([abs(p[0] - POINTS[0, 0]) for p in frames]))
    assert canal.referenced_frame_numbers == [nearest + 1]
    assert report.content.get_planar_roi_measurement_groups()[0].roi.frame_of_reference_uid == "1.2.9"


@pytest.mark.parametrize(
    ("charset", "name"), [("ISO_IR 100", "Müller^Jörg"), (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"), ("", "X")]
)
def test_names_survive_whatever_alphabet_the_scanner_wrote(tmp_path, charset, name):
    source, prediction = small_study(tmp_path, SpecificCharacterSet=charset, PatientName=name)
    files, failures = write_structured_reports([prediction], [source], tmp_path / "sr")
    assert not failures, failures
    report = pydicom.dcmread(files[source.study_id])
    assert report.SpecificCharacterSet == "ISO_IR 192" and str(report.PatientName) == name


def test_a_broken_header_costs_its_own_element_only(tmp_path):
    odd = {"PatientSex": "female", "PatientBirthDate": "1970-13-45", "StudyTime": "noon", "PatientID": None}
    with pytest.warns(UserWarning):
        source, prediction = small_study(tmp_path, **odd, StudyDate="20240229", AccessionNumber="A1")
    files, failures = write_structured_reports([prediction], [source], tmp_path / "sr")
    assert not failures, failures
    report = pydicom.dcmread(files[source.study_id])
    assert (report.PatientSex, report.PatientBirthDate, report.StudyTime, report.PatientID) == ("", "", "", "")
    assert (report.StudyDate, report.AccessionNumber) == ("20240229", "A1")


def test_files_that_cannot_be_referred_to_are_left_out_and_named(tmp_path):
    folder = write_series(tmp_path / "one", shape=(48, 40)).parent / "one"
    write(folder / "9.dcm", image(number=9, shape=(48, 40), SOPInstanceUID="none"))
    (source,) = find_studies(folder)
    evidence = read_source_images(source)
    assert len(evidence.images) == 5 and any("SOPInstanceUID" in issue for issue in map(str, evidence.issues))
    write_series(tmp_path / "coronal", orientation=(1, 0, 0, 0, 0, -1))
    with pytest.raises(DicomError, match="none of the three views"):
        read_source_images(find_studies(tmp_path / "coronal")[0])
    write_series(tmp_path / "axial", orientation=AXIAL)
    assert {i.view for i in read_source_images(find_studies(tmp_path / "axial")[0]).images} == {AXIAL_T2}


def test_images_of_another_study_in_the_same_folder_are_evidence_but_lend_no_identity(tmp_path):
    common = {"shape": (48, 40), "EchoTime": 100.0, "RepetitionTime": 3000.0}
    write_series(tmp_path / "7" / "1", offsets=(0, 4), study_uid="1.2.1", series_uid="1.2.1.1", PatientID="A", **common)
    write_series(tmp_path / "7" / "2", study_uid="1.2.2", series_uid="1.2.2.1", PatientID="B", **common)
    source = StudySource("7", tmp_path / "7", in_competition=True)
    files, failures = write_structured_reports([prediction_of(source, POINTS, "2")], [source], tmp_path / "sr")
    assert not failures and dciodvfy(files["7"]) == []
    report = pydicom.dcmread(files["7"])
    assert (report.StudyInstanceUID, report.PatientID) == ("1.2.2", "B")  # that of most images
    counted = [
        sum(len(series.ReferencedSOPSequence) for series in study[0].ReferencedSeriesSequence)
        for study in (report.CurrentRequestedProcedureEvidenceSequence, report.PertinentOtherEvidenceSequence)
    ]
    assert counted == [5, 2]


def test_a_full_disk_ends_them(phantom, tmp_path, full_disk):
    source, prediction = phantom
    with full_disk(0), pytest.raises(OutputError, match="No space left"):
        write_structured_reports([prediction], [source], tmp_path)


def test_what_is_no_prediction_is_refused(phantom, tmp_path):
    source, prediction = phantom
    prior = StudyPrediction(source.study_id, prediction.probabilities, fallback=True)
    with pytest.raises(DataError, match="class prior"):
        structured_report(prior, source)
    files, failures = write_structured_reports([prior], [source], tmp_path)
    assert not files and "class prior" in failures[source.study_id] and not list(tmp_path.iterdir())
    other = StudyPrediction("another", prediction.probabilities)
    with pytest.raises(DataError, match="of study 'another'"):
        structured_report(other, source)


def test_ids_that_differ_get_files_that_differ(phantom, tmp_path):
    source, prediction = phantom
    ids = ["a b", "a_b", "../a"]
    named = [replace(prediction, study_id=study_id, discs=None) for study_id in ids]
    files, _ = write_structured_reports(named, [replace(source, study_id=s) for s in ids], tmp_path)
    assert list(files) == ids and len(list(tmp_path.glob("*.dcm"))) == len(ids)


def test_without_highdicom_the_command_that_installs_it_is_named(phantom, monkeypatch, tmp_path, capsys):
    source, prediction = phantom
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LumbarError, match="pip install highdicom") as caught:
        structured_report(prediction, source)
    assert isinstance(caught.value, ImportError)
    (tmp_path / "run" / "classifier").mkdir(parents=True)
    (tmp_path / "run" / "classifier" / "model.safetensors").touch()
    command = ["predict", str(tmp_path), "--weights", str(tmp_path / "run"), "--sr", str(tmp_path / "sr")]
    assert main(command) == 1  # before any network is read
    assert "pip install highdicom" in capsys.readouterr().err


def test_the_command_line_writes_reports_and_counts_what_got_none(phantom, tmp_path, capsys):
    source, prediction = phantom
    prior = StudyPrediction(source.study_id, prediction.probabilities, fallback=True)
    save_structured_reports(tmp_path / "sr", [prediction], [source], network="run x")
    save_structured_reports(tmp_path / "none", [prior], [source], network="run x")
    said = capsys.readouterr().out
    assert (tmp_path / "sr" / f"{source.study_id}.dcm").is_file()
    assert "1 structured report in" in said and "1 study got none, the first because" in said


def test_discs_are_coded_in_the_order_of_the_levels():
    assert [code.meaning for code in DISC_CODES] == [f"{level_title(level)} disc" for level in LEVELS]
    assert {code.scheme_designator for code in DISC_CODES} == {"SCT"}


def test_real_series_become_valid_reports(real_mri, tmp_path):
    sources = [source for source in find_studies(real_mri) if source.study_id in ("ivd_11", "vb1_10")]
    predictions = [prediction_of(s, 3 * POINTS, s.series[0][0], missing_views=(AXIAL_T2,)) for s in sources]
    files, failures = write_structured_reports(predictions, sources, tmp_path)
    assert len(files) == len(sources) > 0 and not failures
    for source in sources:
        assert dciodvfy(files[source.study_id]) == []
        assert pydicom.dcmread(files[source.study_id]).PatientID == source.study_id
