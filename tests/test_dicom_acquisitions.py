"""What lies in one series, or one study, and does not belong together: contrasts, planes, patients, frames."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    brightness,
    enhanced,
    error_of_brightness,
    group,
    image,
    places,
    put_pixels,
    stack_positions,
    turned,
    write,
    write_series,
)
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

from lumbar_utils.dicom.series import read_series
from lumbar_utils.labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2, VIEWS
from lumbar_utils.studies.source_images import read_source_images
from lumbar_utils.studies.study import CompetitionFolder, find_studies, load_study

T2 = {"RepetitionTime": 4000, "EchoTime": 100, "SeriesDescription": "T2 TSE", "ScanningSequence": "SE"}
T1 = {"RepetitionTime": 550, "EchoTime": 10, "SeriesDescription": "T1 TSE", "ScanningSequence": "SE"}
AX = T2 | {"orientation": AXIAL, "offsets": np.arange(8) * 4.0}
DARK = np.full((24, 20), 7, np.uint16)
BOX = {"shape": (80, 60)}


def kind(*words: str) -> dict:
    return {"ImageType": ["ORIGINAL", "PRIMARY", *words]}


def shuffled(folder: Path, seed: int = 0) -> Path:
    """The files of all folders in a folder, under random names in one."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    names = random.Random(seed).sample(range(10**6), len(files))
    for file, name in zip(files, names, strict=True):
        file.rename(folder / f"{name}.dcm")
    for empty in [one for one in folder.iterdir() if one.is_dir()]:
        empty.rmdir()
    return folder


def views_of(study) -> dict[str, int]:
    return {one.view: one.n_slices for one in study.series if one.view}


MIXED = {
    "echoes": (T2 | {"EchoNumbers": 2}, T2 | {"EchoNumbers": 1, "EchoTime": 12}),
    "echoes by time alone": (T2, T2 | {"EchoTime": 20}),
    "phase": (T2 | kind("M", "ND"), T2 | kind("P", "ND")),
    "phase component": (T2, T2 | {"ComplexImageComponent": "PHASE"}),
    "fat": (T2 | kind("DIXON", "WATER"), T2 | kind("DIXON", "FAT")),
    "opposed phase": (T2 | kind("DIXON", "IN_PHASE"), T2 | kind("DIXON", "OPP_PHASE")),
    "fat by its name": (T2 | {"SeriesDescription": "t2_tse_sag_W"}, T2 | {"SeriesDescription": "t2_tse_sag_F"}),
    "opposed by its name": (T2 | {"SeriesDescription": "t2_dixon_opp"}, T2 | {"SeriesDescription": "t2_dixon_F"}),
    "T1": (T2, T1 | {"SeriesDescription": "T2 TSE"}),
    "subtraction": (T2, T2 | kind("SUBTRACT")),
    "screenshot": (T2, T2 | {"SOPClassUID": SecondaryCaptureImageStorage}),
    "contrast medium": (T1, T1 | {"ContrastBolusAgent": "Gadovist"}),
    "fat saturation": (T1, T1 | {"SeriesDescription": "T1 TSE FS"}),
    "sequence": (
        {"SeriesDescription": "T2", "SequenceName": "*tse2d1_15"},
        {"SeriesDescription": "T2", "SequenceName": "*fl2d1", "offsets": (0, 4, 8)},
    ),
    "another person": (T2, T2 | {"PatientName": "Doe^John", "offsets": (0, 4, 8)}),
    "another number": (T2 | {"SeriesNumber": 5}, T2 | {"SeriesNumber": 6, "offsets": (0, 4, 8)}),
}


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("name", MIXED)
def test_of_several_contrasts_in_one_series_the_one_that_suits_is_taken_and_said(tmp_path, name, listed):
    wanted, other = MIXED[name]
    write_series(tmp_path / "other", pixels=DARK, **other)
    write_series(tmp_path / "wanted", numbers=range(11, 16), **wanted)
    view = SAGITTAL_T1 if wanted is T1 else SAGITTAL_T2
    series = read_series(shuffled(tmp_path), view=view if listed else "")
    assert series.view == view and series.n_slices == 5 and len(series.stacks) == 1
    assert error_of_brightness(series.stacks[0]) <= 0.501
    assert {issue.code for issue in series.issues} & {"contrast_left_out", "series_taken_apart"}


def test_phase_images_of_ge_are_told_by_its_own_element(tmp_path):
    for number, folder in enumerate(("wanted", "other")):
        write_series(tmp_path / folder, **T2, **({"pixels": DARK} if number else {}))
        for path in (tmp_path / folder).iterdir():
            dataset = pydicom.dcmread(path)
            dataset.add_new(0x00430010, "LO", "GEMS_PARM_01")
            dataset.add_new(0x0043102F, "SS", number)
            dataset.save_as(path)
    assert error_of_brightness(read_series(shuffled(tmp_path)).stacks[0]) <= 0.501


@pytest.mark.parametrize(
    ("sequence", "wanted", "other"),
    [
        (
            "MRImageFrameTypeSequence",
            {"FrameType": ["DERIVED", "PRIMARY", "WATER"]},
            {"FrameType": ["DERIVED", "PRIMARY", "FAT"]},
        ),
        ("MRImageFrameTypeSequence", {"ComplexImageComponent": "MAGNITUDE"}, {"ComplexImageComponent": "PHASE"}),
        ("MREchoSequence", {"EffectiveEchoTime": 100.0}, {"EffectiveEchoTime": 12.0}),
    ],
)
def test_contrasts_of_one_enhanced_file_are_taken_apart(tmp_path, sequence, wanted, other):
    positions = stack_positions((-8, -20, 30), SAGITTAL, [0, 4, 8, 0, 4, 8])
    dataset = enhanced(positions, SAGITTAL)
    dataset.SharedFunctionalGroupsSequence[0].pop("MREchoSequence")
    for number, item in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        setattr(item, sequence, group(**(other if number < 3 else wanted)))
    frames = np.frombuffer(dataset.PixelData, np.uint16).reshape(6, 24, 20).copy()
    frames[:3] = 7
    put_pixels(dataset, frames)
    series = read_series(write(tmp_path / "a.dcm", dataset))
    assert series.stacks[0].instance_numbers == (4, 5, 6) and error_of_brightness(series.stacks[0]) <= 0.501


def test_views_under_one_uid_are_series_of_their_own(tmp_path):
    same = {"SeriesDescription": "spine", "series_uid": "1.2.3.9"}
    many = np.arange(8) * 4.0
    write_series(tmp_path / "t1", offsets=many, **(T1 | same))
    write_series(tmp_path / "t2", offsets=many, **(T2 | same))
    for block, angle in enumerate((0, 15)):
        place = {"orientation": turned(AXIAL, 0, angle), "offsets": many[:5], "start": (-10, -12, -40.0 * block)}
        write_series(tmp_path / f"ax{block}", **(T2 | same | place))
    for number, orientation in enumerate((SAGITTAL, AXIAL, CORONAL)):
        write_series(tmp_path / f"scout{number}", orientation=orientation, offsets=(0, 10, 20), **same, EchoTime=4)
    (source,) = find_studies(shuffled(tmp_path))
    study = load_study(source)
    assert views_of(study) == {SAGITTAL_T1: 8, SAGITTAL_T2: 8, AXIAL_T2: 10}
    assert any("several acquisitions" in str(issue) for issue in study.all_issues)
    referred = read_source_images(source).images
    ids = {one.series_id: (one.view, one.n_slices) for one in study.series}
    assert {(i.series_id, i.view) for i in referred} == {(one, view) for one, (view, _) in ids.items()}
    assert len(referred) == 26


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("lost", ["one UID a slice", "one UID a slice, no number", "all UIDs one a slice", "no UIDs"])
def test_without_usable_uids_what_looks_alike_is_a_series(tmp_path, lost, flat):
    for number, options in enumerate((T1, T2, AX)):
        frame = {"FrameOfReferenceUID": "1.7", "SeriesNumber": None if "no number" in lost else number}
        frame["offsets"] = np.arange(8) * 4.0
        write_series(tmp_path / f"s{number}", series_uid=f"1.2.3.{number}", **(options | frame))
    for path in tmp_path.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        for keyword in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
            if lost == "no UIDs":
                delattr(dataset, keyword)
            elif keyword.startswith("Series") or "all" in lost:
                setattr(dataset, keyword, generate_uid())
        dataset.save_as(path)
    (source,) = find_studies(shuffled(tmp_path) if flat else tmp_path)
    study = load_study(source)
    assert views_of(study) == dict.fromkeys(VIEWS, 8) and len(study.series) == 3
    assert {issue.code for issue in study.issues} == {"uids_not_usable"}
    assert max(error_of_brightness(one.stacks[0]) for one in study.series) <= 0.501


PEOPLE = [{"PatientID": "12"}, {"PatientName": "Doe^John"}, {"PatientID": None, "PatientBirthDate": "19710101"}]


@pytest.mark.parametrize("other", PEOPLE)
def test_two_patients_are_never_one_study(tmp_path, other):
    write_series(tmp_path / "ax", series_uid="1.1", **AX, **other)
    write_series(tmp_path / "t2", series_uid="1.2", **T2)
    write_series(tmp_path / "t1", series_uid="1.3", **T1, PatientName="DOE JANE", PatientBirthDate=None)
    studies = [load_study(source) for source in find_studies(tmp_path)]
    assert [views_of(study) for study in studies] == [{AXIAL_T2: 8}, {SAGITTAL_T1: 5, SAGITTAL_T2: 5}]
    assert all({issue.code for issue in study.issues} == {"patients_mixed"} for study in studies)


@pytest.mark.parametrize("other", PEOPLE)
def test_another_patient_s_series_is_left_out_of_a_study_of_the_competition(tmp_path, other):
    for name, options in {"1": T2, "2": T1, "3": AX | other}.items():
        write_series(tmp_path / "test_images" / "7" / name, **options)
    study = CompetitionFolder.open(tmp_path).load_study("7")
    assert set(views_of(study)) == {SAGITTAL_T1, SAGITTAL_T2} and len(study.series) == 2
    assert [(issue.code, issue.series_id) for issue in study.issues] == [("patients_mixed", "3")]


@pytest.mark.parametrize(
    ("frames", "missing", "said"),
    [
        (("A", "A", "A"), (), ()),
        (("A", "A", "B"), (AXIAL_T2,), ("3",)),
        (("A", "B", "A"), (SAGITTAL_T1,), ("2",)),
        (("A", "B", "B"), (AXIAL_T2, SAGITTAL_T1), ("2", "3")),
        (("A", None, "A"), (), ()),
        (("A", "B", "C"), (), ("",)),
        (("A", None, "C"), (AXIAL_T2,), ("3",)),
        (("A", None, "anonymous C"), (), ("",)),
    ],
)
def test_places_in_another_frame_of_reference_are_not_compared(tmp_path, frames, missing, said):
    name = "Anonymous" if "anonymous C" in frames else "Doe^Jane"
    for number, (options, frame) in enumerate(zip((T2, T1, AX), frames, strict=True), 1):
        box = {"start": (-26, -22, 8) if options is AX else (-8, -20, 30)}
        tags = options | box | {"FrameOfReferenceUID": frame and f"1.5.{ord(frame[-1])}", "PatientName": name}
        write_series(tmp_path / f"{number}", series_uid=f"1.{number}", **tags)
    study = load_study(tmp_path)
    assert set(study.missing_views) == set(missing) and len(study.series) == 3
    assert [issue.series_id for issue in study.issues] == [one and f"1.{one}" for one in said]
    assert {issue.code for issue in study.issues} <= {"frames_of_reference_differ"}


PLAIN_T1, PLAIN_T2 = T1 | BOX, T2 | BOX
LESS_SUITED = {
    "contrast medium": (PLAIN_T1, {"SeriesDescription": "T1 SAG +C", "ScanOptions": "FS"}),
    "contrast agent": (PLAIN_T1, {"ContrastBolusAgent": "Gadovist"}),
    "fat saturation": (PLAIN_T1, {"ScanOptions": "FS"}),
    "subtraction": (PLAIN_T1, kind("M", "SUBTRACT")),
    "fat": (PLAIN_T2, kind("DIXON", "FAT")),
    "opposed phase": (PLAIN_T2, kind("DIXON", "OPP_PHASE")),
    "proton density": (PLAIN_T2, {"EchoTime": 15, "SeriesDescription": "PD SAG"}),
    "screenshot": (PLAIN_T2, {"SOPClassUID": SecondaryCaptureImageStorage}),
}


@pytest.mark.parametrize("name", LESS_SUITED)
def test_a_plain_series_goes_before_one_of_more_slices_that_is_not(tmp_path, name):
    plain, changes = LESS_SUITED[name]
    many = np.arange(9) * 2.0
    write_series(tmp_path / "a", series_uid="1.1", offsets=many, **(plain | changes))
    write_series(tmp_path / "b", series_uid="1.2", **plain)
    study = load_study(tmp_path)
    view = SAGITTAL_T1 if plain is PLAIN_T1 else SAGITTAL_T2
    assert [one.series_id for one in study.by_view(view)] == ["1.2"] and len(study.series) == 2
    (issue,) = [issue for issue in study.issues if issue.code == "series_less_suited"]
    assert issue.series_id == "1.1" and name.split()[0] in issue.message


def test_an_unplain_series_is_used_where_no_other_shows_the_same(tmp_path):
    write_series(tmp_path / "a", series_uid="1.1", **PLAIN_T2)
    write_series(tmp_path / "b", series_uid="1.2", **(PLAIN_T2 | {"EchoTime": 15, "start": (-8, -20, -60)}))
    study = load_study(tmp_path)
    assert [one.series_id for one in study.by_view(SAGITTAL_T2)] == ["1.1", "1.2"]
    assert "proton density" in str(study.issues[0])


def test_overlapping_stations_are_two_stacks(tmp_path):
    tall = {"shape": (100, 40), **T2}
    write_series(tmp_path, **tall)
    write_series(tmp_path, numbers=range(11, 16), start=(-8, -20, -10), **tall)
    series = read_series(tmp_path)
    assert [stack.instance_numbers for stack in series.stacks] == [(1, 2, 3, 4, 5), (11, 12, 13, 14, 15)]
    assert max(map(error_of_brightness, series.stacks)) <= 0.501 and series.issues == ()


@pytest.mark.parametrize(
    ("padding", "stored", "tags"),
    [
        (65535, 16, {"PixelPaddingValue": 65535}),
        (-32768, 16, {"PixelPaddingValue": -32768}),
        (4095, 12, {"PixelPaddingValue": 65535}),
        (5000, 16, {"PixelPaddingValue": 4990, "PixelPaddingRangeLimit": 5010}),
        (0, 16, {"PixelPaddingValue": 0, "PhotometricInterpretation": "MONOCHROME1"}),
    ],
)
def test_padding_is_as_dark_as_no_image(tmp_path, padding, stored, tags):
    pixels = np.rint(brightness(places((0, -20, 30), SAGITTAL, (1, 1), (24, 20)))).astype(np.int32)
    pixels[:5] = padding
    vr = "SS" if padding < 0 else "US"
    dataset = image(pixels=pixels, stored=stored)
    for keyword, value in tags.items():
        dataset.add_new(pydicom.tag.Tag(keyword), "CS" if isinstance(value, str) else vr, value)
    pixels = 65535 - pixels if "PhotometricInterpretation" in tags else pixels
    read = read_series(write(tmp_path / "1.dcm", dataset)).stacks[0].pixels[0]
    assert (read[:5] == 0).all() and (read[5:] == pixels[5:]).all()
