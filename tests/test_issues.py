"""Words of the readers become records with codes, on studies read from real files."""

from __future__ import annotations

import json

import pytest
from dicom_files import AXIAL, SAGITTAL, image, write, write_series

from lumbar_utils.errors import CODES, DataError, Issue
from lumbar_utils.inference.preprocessing import preprocess_study
from lumbar_utils.labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2
from lumbar_utils.studies.study import StudySource, load_study


def study_of(folder, listed):
    return load_study(StudySource("7", folder / "7", (), True, tuple(listed.items())))


@pytest.fixture
def records(tmp_path):
    """By (code, series, file) of a study with one of everything."""
    study = tmp_path / "7"
    write_series(study / "t2")
    (study / "t2" / "9.dcm").write_text("no image")
    first = (study / "t2" / "1.dcm").read_bytes()
    (study / "t2" / "8.dcm").write_bytes(first)
    write(study / "t2" / "12.dcm", image(orientation=AXIAL, number=12))
    write_series(study / "wrong", orientation=SAGITTAL)
    write_series(study / "odd")
    write_series(study / "99")
    (study / "text").mkdir()
    (study / "text" / "1.dcm").write_text("no image")
    listed = {"t2": SAGITTAL_T2, "wrong": AXIAL_T2, "odd": "T2 space", "text": SAGITTAL_T1, "gone": SAGITTAL_T1}
    found = study_of(tmp_path, listed).all_issues
    return {(record.code, record.series_id, record.file): record for record in found}


def test_every_kind_has_its_code_and_its_place(records):
    expected = {
        ("file_unreadable", "t2", "9.dcm"),
        ("slice_duplicate", "t2", "8.dcm"),
        ("slice_scout", "t2", "12.dcm"),
        ("view_low_confidence", "wrong", ""),
        ("series_description_unknown", "odd", ""),
        ("series_not_listed", "99", ""),
        ("series_unreadable", "text", ""),
        ("series_not_on_disk", "gone", ""),
    }
    assert expected <= set(records)
    assert all(record.study_id == "7" and record.stage == "read" for record in records.values())
    assert not {code for code, _, _ in records} - {code for code, _, _ in expected}


def test_records_travel_as_json(records):
    for record in records.values():
        again = Issue.from_json(json.loads(json.dumps(record.to_json())))
        assert again == record and again.used == CODES[record.code][1]
    words = str(records["file_unreadable", "t2", "9.dcm"])
    assert words.startswith("series t2: 9.dcm: ")
    with pytest.raises(DataError, match="unknown code"):
        Issue("grumpy", "no")
    with pytest.raises(DataError, match="record"):
        Issue.from_json({"code": "note", "mood": "grumpy"})


class Stumbling:
    """A localizer that fails, in a way that nobody foresaw, on one series."""

    def __init__(self, on):
        self.on = on

    def locate(self, study):
        from planted_crops import disc_points

        if study.series_by_id(self.on):
            raise ZeroDivisionError("nobody foresaw this")
        return disc_points(study.study_id)


def test_a_series_that_the_localizer_stumbles_over_costs_only_itself(tmp_path):
    for name in ("t2", "t1"):
        write_series(tmp_path / "7" / name)
    study = study_of(tmp_path, {"t2": SAGITTAL_T2, "t1": SAGITTAL_T1})
    prepared = preprocess_study(study, Stumbling("t1"), ())
    assert prepared.discs is not None
    (record,) = prepared.issues
    assert (record.code, record.series_id) == ("series_not_located", "t1") and "foresaw" in record.message
    assert record.used == "the other sagittal series"


def test_a_series_that_cannot_be_cropped_costs_its_view(tmp_path, monkeypatch):
    from broken_studies import SPEC, MiddleLocalizer

    import lumbar_utils.inference.preprocessing as preprocessing_module

    for name in ("t2", "t1"):
        write_series(tmp_path / "7" / name, shape=(120, 100))
    study = study_of(tmp_path, {"t2": SAGITTAL_T2, "t1": SAGITTAL_T1})
    extract = preprocessing_module.extract_crops

    def stumbling(part, discs, spec):
        if part.series_by_id("t1"):
            raise FloatingPointError("nobody foresaw this")
        return extract(part, discs, spec)

    monkeypatch.setattr(preprocessing_module, "extract_crops", stumbling)
    prepared = preprocess_study(study, MiddleLocalizer(), (SPEC,))
    codes = [record.code for record in prepared.issues]
    assert prepared.usable and prepared.missing == (AXIAL_T2, SAGITTAL_T1)
    assert codes[0] == "series_not_cropped" and codes.count("view_missing") == 2
    monkeypatch.setattr(preprocessing_module, "extract_crops", lambda *_: 1 / 0)
    prepared = preprocess_study(study, MiddleLocalizer(), (SPEC,))
    assert [record.code for record in prepared.issues] == ["not_cropped"] and not prepared.usable
