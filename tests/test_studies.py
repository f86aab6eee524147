"""Studies from the competition's folder and from folders without tables, and errors in the table of points."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
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
    stack_positions,
    turned,
    write,
    write_series,
)
from pydicom.data import get_testdata_file

from lumbar_utils.errors import DataError, DicomError
from lumbar_utils.files import hashed
from lumbar_utils.labels import (
    AXIAL_T2,
    CONDITIONS,
    LEVELS,
    SAGITTAL_T1,
    SAGITTAL_T2,
    TARGETS,
    condition_title,
    level_title,
)
from lumbar_utils.studies.annotations import ACTIONS, clean_coordinates
from lumbar_utils.studies.study import CompetitionFolder, find_studies, load_study

CANAL, LEFT_FORAMEN, RIGHT_FORAMEN, LEFT_RECESS, RIGHT_RECESS = CONDITIONS
SERIES = {"11": SAGITTAL_T2, "12": SAGITTAL_T1, "13": AXIAL_T2}


def study_uid(name: str) -> str:
    return f"1.2.{int.from_bytes(name.encode(), 'big')}"


def write_study(folder: Path, views: dict[str, str]) -> None:
    for series_id, view in views.items():
        orientation = AXIAL if view == AXIAL_T2 else SAGITTAL
        description = "SAG T1" if view == SAGITTAL_T1 else "T2"
        tags = {"study_uid": study_uid(folder.name), "series_uid": f"{study_uid(folder.name)}.{series_id}"}
        tags |= {"SeriesDescription": description}
        if not folder.parent.name.endswith("_images"):
            tags |= {"PatientName": "Anonymous", "PatientID": folder.name}
        write_series(folder / series_id, orientation=orientation, shape=(80, 60), **tags)


def points_of_study(study_id: str) -> list[tuple]:
    """A full set of 25 points in order: sides, levels and views as they should be."""
    rows = []
    for v in range(5):
        rows.append((study_id, "11", 3, CANAL, LEVELS[v], 10.0 + v, 30.0 + 4 * v))
        rows.append((study_id, "12", 2, RIGHT_FORAMEN, LEVELS[v], 10.0, 30.0 + 4 * v))
        rows.append((study_id, "12", 4, LEFT_FORAMEN, LEVELS[v], 10.0, 30.0 + 4 * v))
        rows.append((study_id, "13", v + 1, RIGHT_RECESS, LEVELS[v], 25.0, 40.0))
        rows.append((study_id, "13", v + 1, LEFT_RECESS, LEVELS[v], 35.0, 40.0))
    return rows


def point_table(rows: list[tuple]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["study_id", "series_id", "instance_number", "condition", "level", "x", "y"])
    return frame.assign(condition=frame["condition"].map(condition_title), level=frame["level"].map(level_title))


def series_rows(study_id: str, views: dict[str, str]) -> pd.DataFrame:
    return pd.DataFrame(
        [(study_id, series_id, view) for series_id, view in views.items()],
        columns=["study_id", "series_id", "series_description"],
    )


@pytest.fixture
def competition(tmp_path) -> Path:
    """Two training studies (one of them without axial images) and one for the test, with all tables."""
    root = tmp_path / "rsna"
    write_study(root / "train_images" / "101", SERIES)
    write_study(root / "train_images" / "0102", {"11": SAGITTAL_T2, "12": SAGITTAL_T1})
    write_study(root / "test_images" / "201", SERIES)
    train = [series_rows("101", SERIES), series_rows("0102", {"11": SAGITTAL_T2, "12": SAGITTAL_T1})]
    pd.concat(train).to_csv(root / "train_series_descriptions.csv", index=False)
    series_rows("201", SERIES).to_csv(root / "test_series_descriptions.csv", index=False)
    labels = pd.DataFrame([["101", *["Normal/Mild"] * 24, "Severe"], ["0102", "Moderate", *[None] * 24]])
    labels.columns = ["study_id", *TARGETS]
    labels.to_csv(root / "train.csv", index=False)
    point_table(points_of_study("101")).to_csv(root / "train_label_coordinates.csv", index=False)
    pd.DataFrame({"row_id": ["201_" + TARGETS[0]], "normal_mild": 0.3, "moderate": 0.3, "severe": 0.3}).to_csv(
        root / "sample_submission.csv", index=False
    )
    return root


def edit(path: Path, change) -> None:
    change(pd.read_csv(path, dtype=str)).to_csv(path, index=False)


# The competition's folder ----------------------------------------------------------------------------------------


def test_opening_reads_the_tables_with_ids_as_text(competition):
    folder = CompetitionFolder.open(competition)
    assert folder.study_ids("train") == ["101", "0102"] and folder.study_ids("test") == ["201"]
    assert list(folder.series_table.columns) == ["study_id", "series_id", "series_description", "part"]
    assert len(folder.series_table) == 8 and set(folder.series_table["series_id"]) == {"11", "12", "13"}
    assert folder.sample_submission["row_id"].tolist() == ["201_" + TARGETS[0]]
    assert folder.study_folder("201") == competition / "test_images" / "201"
    assert not folder.is_synthetic
    (competition / "SYNTHETIC.md").write_text("phantoms")
    assert CompetitionFolder.open(competition).is_synthetic


def test_opening_does_not_touch_the_images(competition, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("looked into the image folders")

    monkeypatch.setattr("os.scandir", forbidden)
    monkeypatch.setattr("os.walk", forbidden)
    folder = CompetitionFolder.open(competition)
    assert len(find_studies(competition)) == 3
    assert folder.study_ids("train")


def test_a_study_loads_with_the_views_of_the_table(competition):
    study = CompetitionFolder.open(competition).load_study("101")
    assert [(s.series_id, s.view, s.n_slices) for s in study.series] == [(i, v, 5) for i, v in SERIES.items()]
    assert study.issues == () and study.missing_views == ()
    assert study.by_view(AXIAL_T2)[0].study_id == "101"


def test_a_missing_view_is_just_missing(competition):
    study = CompetitionFolder.open(competition).load_study("0102")
    assert study.missing_views == (AXIAL_T2,) and study.by_view(AXIAL_T2) == () and study.issues == ()


@pytest.mark.parametrize("n_axial", [1, 2, 3, 4])
def test_one_to_four_axial_and_two_t1_series_load_the_longest_first(competition, n_axial):
    views = {"11": SAGITTAL_T2, "12": SAGITTAL_T1, "14": SAGITTAL_T1} | {f"2{k}": AXIAL_T2 for k in range(n_axial)}
    write_study(competition / "test_images" / "202", views)
    write_series(competition / "test_images" / "202" / "14", offsets=range(0, 32, 4), shape=(80, 60))
    series_rows("202", views).to_csv(competition / "test_series_descriptions.csv", index=False)
    study = CompetitionFolder.open(competition).load_study("202")
    assert len(study.by_view(AXIAL_T2)) == n_axial
    assert [s.series_id for s in study.by_view(SAGITTAL_T1)] == ["14", "12"]


def test_listed_but_absent_and_present_but_unlisted_series_are_noted(competition):
    def change(table):
        table = table[table["series_id"] != "13"]
        return pd.concat([table, series_rows("201", {"99": AXIAL_T2})])

    edit(competition / "test_series_descriptions.csv", change)
    study = CompetitionFolder.open(competition).load_study("201")
    assert [s.series_id for s in study.series] == ["11", "12", "13"]
    assert study.by_view(AXIAL_T2)[0].series_id == "13", "recognised from its orientation and description"
    assert tuple(map(str, study.issues)) == (
        "series 99: listed as 'Axial T2' but not on disk",
        "series 13: on disk but not in the table, recognised as Axial T2",
    )


def test_an_unknown_description_is_recognised_from_the_headers(competition):
    edit(
        competition / "test_series_descriptions.csv",
        lambda t: t.assign(series_description=["sagittal t2/stir ", "Sag T1w", "Axial T2"]),
    )
    study = CompetitionFolder.open(competition).load_study("201")
    assert [s.view for s in study.series] == list(SERIES.values())
    assert tuple(map(str, study.issues)) == ("series 12: described as 'Sag T1w', recognised as Sagittal T1",)


def test_a_broken_series_is_named_and_the_rest_loads(competition):
    for file in (competition / "test_images" / "201" / "12").iterdir():
        file.write_bytes(b"")
    study = CompetitionFolder.open(competition).load_study("201")
    assert [s.series_id for s in study.series] == ["11", "13"]
    assert len(study.issues) == 1 and str(study.issues[0]).startswith(
        "series 12: none of its 5 files can be read; 1.dcm"
    )


def test_nothing_readable_and_nothing_there_are_errors(competition):
    folder = CompetitionFolder.open(competition)
    for file in (competition / "test_images" / "201").rglob("*.dcm"):
        file.write_bytes(b"x")
    with pytest.raises(DicomError, match=r"study 201, .*no series can be read: series 11"):
        folder.load_study("201")
    with pytest.raises(DicomError, match=r"study 777, .*not on disk"):
        folder.load_study("777")
    with pytest.raises(DataError, match="study 777 is not on disk"):
        folder.study_folder("777")
    with pytest.raises(DataError, match="part 'validation' is not known"):
        folder.study_ids("validation")


@pytest.mark.parametrize("study_id", ["../train_images/101", "..", "/etc", "a/b", "", "101\n"])
def test_ids_cannot_lead_out_of_the_folder(competition, study_id):
    with pytest.raises(DataError, match="is no plain name"):
        CompetitionFolder.open(competition).load_study(study_id)


def test_series_ids_of_the_table_cannot_lead_out_of_the_folder(competition):
    secret = competition.parent / "elsewhere"
    write_series(secret)
    edit(
        competition / "test_series_descriptions.csv",
        lambda t: pd.concat([t, series_rows("201", {"../../../elsewhere": AXIAL_T2, str(secret): AXIAL_T2})]),
    )
    study = CompetitionFolder.open(competition).load_study("201")
    assert len(study.series) == 3 and sum("no plain name" in p for p in map(str, study.issues)) == 2


def test_study_ids_of_the_table_cannot_lead_out_of_the_folder(competition):
    edit(competition / "test_series_descriptions.csv", lambda t: t.assign(study_id="../../elsewhere"))
    with pytest.raises(DataError, match=r"test_series_descriptions\.csv: study_id '../../elsewhere' is no plain name"):
        CompetitionFolder.open(competition)


def test_label_codes_follow_the_studies_asked_for(competition):
    folder = CompetitionFolder.open(competition)
    codes = folder.label_codes(["0102", "101", "0102"])
    assert codes.dtype == np.int8 and codes.shape == (3, 25)
    assert codes[1, 24] == 2 and codes[1, :24].tolist() == [0] * 24
    assert codes[0, 0] == 1 and (codes[0, 1:] == -1).all() and (codes[0] == codes[2]).all()
    assert folder.label_codes([]).shape == (0, 25)
    with pytest.raises(DataError, match="study 201 has no row"):
        folder.label_codes(["101", "201"])


def test_tables_may_be_absent(competition):
    for table in competition.glob("*.csv"):
        table.unlink()
    folder = CompetitionFolder.open(competition)
    assert folder.study_ids("train") == ["0102", "101"] and folder.labels is None and folder.coordinates is None
    study = folder.load_study("101")
    assert [s.view for s in study.series] == list(SERIES.values()) and study.issues == ()
    with pytest.raises(DataError, match=r"no train\.csv"):
        folder.label_codes(["101"])
    with pytest.raises(DataError, match=r"no train_label_coordinates\.csv"):
        folder.clean_coordinates()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train_series_descriptions.csv", "study_id,series_id\n1,2\n", "lacks the columns .*series_description"),
        (
            "train_series_descriptions.csv",
            "study_id,series_id,series_description\n,2,Axial T2\n",
            "1 rows without study_id",
        ),
        ("train.csv", "", "cannot be read as a table"),
        ("train.csv", "study_id,a\n1,x\n1,y\n", "study 1 has more than one row"),
        ("train_label_coordinates.csv", "study_id,series_id\n1,2\n", "lacks the columns"),
    ],
)
def test_broken_tables_are_named(competition, name, text, message):
    (competition / name).write_text(text)
    with pytest.raises(DataError, match=f"{name}:? (has )?{message}"):
        CompetitionFolder.open(competition)


def test_a_folder_that_is_none_says_what_was_expected(tmp_path):
    with pytest.raises(DataError, match="is not a competition folder: expected train_images"):
        CompetitionFolder.open(tmp_path)


def test_canal_points_lie_where_the_pixels_say(competition):
    edit(
        competition / "train_label_coordinates.csv",
        lambda t: t[~((t["condition"] == condition_title(CANAL)) & (t["level"] == "L4/L5"))],
    )
    folder = CompetitionFolder.open(competition)
    study = folder.load_study("101")
    points = folder.canal_points("101", study)
    assert np.isnan(points[3]).all() and np.isfinite(points[[0, 1, 2, 4]]).all()
    stack = study.by_view(SAGITTAL_T2)[0].stacks[0]
    for level in (0, 1, 2, 4):
        pixel = stack.pixels[2, 30 + 4 * level, 10 + level]
        assert abs(brightness(points[level]) - pixel) <= 0.501
    with pytest.raises(DataError, match="points of study 0102 but given study 101"):
        folder.canal_points("0102", study)


def test_points_find_their_slice_by_file_name(competition):
    """The tables count instances by file name; headers may count otherwise."""
    folder = competition / "train_images" / "101" / "11"
    for file in list(folder.iterdir()):
        file.unlink()
    for name, x in ((1, 0), (2, 4), (3, 8)):
        write(folder / f"{name}.dcm", image(position=(x, -20, 30), number=900 - name, shape=(80, 60)))
    opened = CompetitionFolder.open(competition)
    points = opened.canal_points("101", opened.load_study("101"))
    np.testing.assert_allclose(points[:, 0], 8)


# Any folder ------------------------------------------------------------------------------------------------------


def test_a_tree_of_studies_is_named_by_its_folders(tmp_path):
    write_study(tmp_path / "anna", SERIES)
    write_study(tmp_path / "bert", {"5": SAGITTAL_T1})
    (tmp_path / "README.md").write_text("beside")
    sources = find_studies(tmp_path)
    assert [s.study_id for s in sources] == ["anna", "bert"]
    studies = [load_study(source) for source in sources]
    assert [s.view for s in studies[0].series] == list(SERIES.values())
    assert studies[0].series[0].series_id == study_uid("anna") + ".11" and studies[0].issues == ()
    assert studies[1].missing_views == (SAGITTAL_T2, AXIAL_T2)


def test_mixed_files_are_told_apart_by_their_uids(tmp_path):
    for study, series, first in (("1.1", "1.1.1", 1), ("1.1", "1.1.2", 11), ("2.2", "2.2.1", 21)):
        write_series(tmp_path, numbers=range(first, first + 5), study_uid=study, series_uid=series)
    sources = find_studies(tmp_path)
    assert [s.study_id for s in sources] == [hashed("study", "1.1"), hashed("study", "2.2")]
    assert [len(load_study(s).series) for s in sources] == [2, 1]


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_a_uid_that_is_a_path_does_not_become_one(tmp_path):
    for first, uid in ((1, "../../evil"), (11, "/etc/evil")):
        write_series(tmp_path, numbers=range(first, first + 5), study_uid=uid, series_uid=uid + "1")
    assert [s.study_id.rsplit("-", 1)[0] for s in find_studies(tmp_path)] == ["study", "study"]


def test_the_folder_above_has_a_name_too(tmp_path, competition, monkeypatch):
    write_study(tmp_path / "anna", SERIES)
    monkeypatch.chdir(tmp_path / "anna" / "12")
    assert [s.study_id for s in find_studies("..")] == ["anna"]
    monkeypatch.chdir(competition / "test_images" / "201" / "12")
    assert [(s.study_id, s.series_ids) for s in find_studies("..")] == [("201", None)]


def test_a_study_shows_itself_and_what_is_wrong_with_it(competition):
    (competition / "test_images" / "201" / "12" / "9.dcm").write_text("no image")
    edit(
        competition / "test_series_descriptions.csv", lambda t: pd.concat([t, series_rows("201", {"<b>99": AXIAL_T2})])
    )
    shown = CompetitionFolder.open(competition).load_study("201")._repr_html_()
    assert "study 201" in shown and all(view in shown for view in SERIES.values())
    assert "9.dcm: is not a DICOM file" in shown and "&lt;b&gt;99" in shown and "<b>99" not in shown


def test_equal_folder_names_fall_back_to_the_hash(tmp_path):
    for uid in ("1.1", "2.2"):
        for series in ("1", "2"):
            options = {"study_uid": uid, "series_uid": f"{uid}.{series}", "PatientIdentityRemoved": "YES"}
            write_series(tmp_path / uid / "mri" / series, **options)
    assert [s.study_id for s in find_studies(tmp_path)] == ["1.1", "2.2"]
    for folder, uid in (("more/3", "3"), ("more/4", "4"), ("again/3", "5"), ("again/6", "6")):
        options = {"study_uid": uid, "series_uid": uid + ".1", "PatientIdentityRemoved": "YES"}
        write_series(tmp_path / folder / "spine", **options)
    assert [s.study_id for s in find_studies(tmp_path / "more")] == ["3", "4"]
    names = {"1.1", "2.2", "4", "6", hashed("study", "3"), hashed("study", "5")}
    assert {s.study_id for s in find_studies(tmp_path)} == names


def test_a_study_a_series_and_a_file_can_be_given(tmp_path):
    write_study(tmp_path / "anna", SERIES)
    assert len(load_study(tmp_path / "anna").series) == 3
    series = load_study(tmp_path / "anna" / "12")
    assert [s.view for s in series.series] == [SAGITTAL_T1] and series.study_id == "12"
    one = load_study(tmp_path / "anna" / "13" / "2.dcm")
    assert one.series[0].n_slices == 1 and one.series[0].view == AXIAL_T2


def test_a_study_or_series_inside_a_competition_folder_knows_its_table(competition):
    edit(competition / "test_series_descriptions.csv", lambda t: t.assign(series_description="Sagittal T1"))
    (source,) = find_studies(competition / "test_images" / "201")
    assert source.study_id == "201" and [s.view for s in load_study(source).series] == [SAGITTAL_T1] * 3
    study = load_study(competition / "test_images" / "201" / "12")
    assert study.study_id == "201" and [s.series_id for s in study.series] == ["12"]
    assert [s.study_id for s in find_studies(competition / "train_images")] == ["101", "0102"]
    assert [s.study_id for s in find_studies(competition, part="test")] == ["201"]


def test_sources_travel_to_worker_processes_without_the_tables(competition):
    sources = find_studies(competition)
    assert max(len(pickle.dumps(source)) for source in sources) < 2000
    assert load_study(pickle.loads(pickle.dumps(sources[0]))).study_id == "101"


def test_broken_files_join_the_problems_of_their_folder(tmp_path):
    write_study(tmp_path / "anna", SERIES)
    (tmp_path / "anna" / "12" / "9.dcm").write_text("no image")
    (tmp_path / "anna" / "DICOMDIR").write_bytes(b"")
    report = Path(get_testdata_file("reportsi.dcm", download=False)).read_bytes()
    (tmp_path / "anna" / "SR").mkdir()
    (tmp_path / "anna" / "SR" / "1").write_bytes(report)
    study = load_study(tmp_path / "anna")
    t1 = study.by_view(SAGITTAL_T1)[0]
    assert t1.n_slices == 5 and t1.issues[0].file == "9.dcm" and t1.issues[0].message.startswith("is not a DICOM file")
    assert str(study.issues[0]) == "DICOMDIR: the file is empty (0 bytes)"
    assert len(study.issues) == 2 and str(study.issues[1]).startswith("1: holds no MR image but ")


def test_paths_with_nothing_or_too_much_say_so(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        find_studies(tmp_path / "nowhere")
    (tmp_path / "a.dcm").write_text("text")
    with pytest.raises(DicomError, match=r"no readable MR image in 1 file; a\.dcm: is not a DICOM file"):
        find_studies(tmp_path)
    write_study(tmp_path / "anna", SERIES)
    write_study(tmp_path / "bert", SERIES)
    with pytest.raises(DataError, match="holds 2 studies, expected one"):
        load_study(tmp_path)


TIMES = {
    SAGITTAL_T1: {"RepetitionTime": 550, "EchoTime": 10, "ScanningSequence": "SE"},
    SAGITTAL_T2: {"RepetitionTime": 3500, "EchoTime": 102, "ScanningSequence": "SE"},
    AXIAL_T2: {"RepetitionTime": 4000, "EchoTime": 110, "ScanningSequence": "SE"},
}
STIR = {"RepetitionTime": 4000, "EchoTime": 45, "InversionTime": 160, "ScanningSequence": ["SE", "IR"]}


def flattened(folder: Path, out: Path, *, seed: int = 0) -> Path:
    """All files of a tree in one folder, under random names without endings."""
    rng = np.random.default_rng(seed)
    out.mkdir(parents=True, exist_ok=True)
    for path in folder.rglob("*"):
        if path.is_file():
            path.rename(out / f"{rng.integers(2**40):x}")
    return out


def test_anybodys_disc_two_patients_in_one_folder_with_everything_a_scanner_sends(tmp_path):
    """No tables, no endings, no descriptions; scouts, CT, a report, a screenshot, a knee, copies, a DICOMDIR."""
    tree = tmp_path / "tree"
    for number, study in enumerate(("1.2.10", "1.2.20")):
        common = {"study_uid": study, "SeriesDescription": None, "PatientID": f"P{number}"}
        for view, times in TIMES.items():
            orientation = AXIAL if view == AXIAL_T2 else SAGITTAL
            uid = f"{study}.{list(TIMES).index(view)}"
            write_series(tree / uid, orientation=orientation, series_uid=uid, **times, **common)
        write_series(tree / "stir", series_uid=f"{study}.5", **STIR, **common)
        for k, orientation in enumerate((SAGITTAL, AXIAL, CORONAL)):
            numbers, uid = range(10 * k, 10 * k + 3), f"{study}.6"
            write_series(
                tree / uid, orientation=orientation, numbers=numbers, offsets=[0, 9, 18], series_uid=uid, **common
            )
        write_series(tree / f"{study}.7", orientation=CORONAL, series_uid=f"{study}.7", **TIMES[SAGITTAL_T2], **common)
        knee = common | {"SeriesDescription": "PD knee sag", "BodyPartExamined": "KNEE"}
        write_series(tree / f"{study}.8", series_uid=f"{study}.8", **TIMES[SAGITTAL_T2], **knee)
        write_series(tree / f"{study}.9", series_uid=f"{study}.9", Modality="CT", **common)
        copied = tree / f"{study}.0" / "1.dcm"
        (tree / f"{study} copy").write_bytes(copied.read_bytes())
        disc = flattened(tree, tmp_path / "disc", seed=number)
    write(disc / "screen", image(study_uid="1.2.10", series_uid="1.2.10.99", ImagePositionPatient=None, PatientID="P0"))
    write_series(tmp_path / "other", study_uid="1.2.30", series_uid="1.2.30.1", Modality="CT")
    flattened(tmp_path / "other", disc, seed=7)
    for name in ("DICOMDIR", "reportsi.dcm", "rtplan.dcm"):
        (disc / name.split(".")[0]).write_bytes(Path(get_testdata_file(name, download=False)).read_bytes())
    (disc / "AUTORUN").write_bytes(b"MZ" + bytes(300))
    sources = find_studies(disc)
    uids = {hashed("study", uid): uid for uid in ("1.2.10", "1.2.20")}
    assert {source.study_id for source in sources} == uids.keys(), "the CT study is left out"
    for source in sources:
        study = load_study(source)
        views = {series.series_id.removeprefix(f"{uids[study.study_id]}."): series.view for series in study.series}
        expected = {"0": SAGITTAL_T1, "1": SAGITTAL_T2, "2": AXIAL_T2, "5": SAGITTAL_T2, "6": "", "7": "", "8": ""}
        assert views == expected
        first = study.series_by_id(f"{uids[study.study_id]}.0")
        assert first.n_slices == 5 and "lies where another slice does (duplicate)" in str(first.issues[0])
        assert any("5 images of modality CT, expected MR" in issue for issue in map(str, study.issues))
        assert "knee" in str(study.series_by_id(f"{uids[study.study_id]}.8").issues[0])
    issues = next(source for source in sources if uids[source.study_id] == "1.2.10")
    assert any("1.2.10.99" in issue and "no place" in issue for issue in map(str, load_study(issues).issues))


def test_a_folder_without_any_mr_image_says_what_it_holds(tmp_path):
    write_series(tmp_path, Modality="CT")
    with pytest.raises(DicomError, match="holds no readable MR image in 5 files: it holds 5 of modality CT"):
        find_studies(tmp_path)


def test_one_series_in_several_folders_is_one_series(tmp_path):
    write_series(tmp_path / "disc 1", numbers=[1, 2, 3], offsets=[0, 4, 8])
    write_series(tmp_path / "disc 2" / "more", numbers=[1, 2], offsets=[12, 16])
    (source,) = find_studies(tmp_path)
    (series,) = load_study(source).series
    assert series.n_slices == 5 and series.issues == ()


def test_an_enhanced_file_is_a_whole_series_of_a_study(tmp_path):
    """One file a series: orientation and spacing shared, positions per frame, times in the functional groups."""
    for number, (orientation, echo) in enumerate([(SAGITTAL, 102.0), (SAGITTAL, 9.0), (AXIAL, 102.0)]):
        dataset = enhanced(stack_positions((-8, -20, 30), orientation, [8, 0, 4]), orientation, SeriesDescription="")
        dataset.SeriesInstanceUID = f"1.2.3.{number}"
        shared = dataset.SharedFunctionalGroupsSequence[0]
        shared.MREchoSequence = group(EffectiveEchoTime=echo)
        if echo < 20:
            shared.MRTimingAndRelatedParametersSequence = group(RepetitionTime=600.0)
        write(tmp_path / f"IM{number}", dataset)
    (source,) = find_studies(tmp_path)
    study = load_study(source)
    assert [series.view for series in study.series] == [SAGITTAL_T2, SAGITTAL_T1, AXIAL_T2]
    assert all(len(series.stacks[0]) == 3 and series.issues == () for series in study.series)
    assert max(error_of_brightness(series.stacks[0]) for series in study.series) <= 0.501


def test_real_series_flattened_under_random_names_are_the_same_studies(real_mri, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(real_mri, copy, ignore=lambda folder, names: [n for n in names if n.endswith((".csv", ".md"))])
    expected = {}
    for source in find_studies(real_mri):
        study = load_study(source)
        expected[study.series[0].series_id] = (study.series[0].view, study.series[0].n_slices)
    sources = find_studies(flattened(copy, tmp_path / "flat"))
    assert len(sources) == len(expected)
    found = {s.series_id: (s.view, s.n_slices) for source in sources for s in load_study(source).series}
    assert found == expected


def test_real_series_load_as_studies_named_by_case(real_mri):
    truth = pd.read_csv(real_mri / "points.csv").groupby("case")["series_description"].first()
    sources = find_studies(real_mri)
    assert sorted(source.study_id for source in sources) == sorted(truth.index)
    for source in sources:
        study = load_study(source)
        assert (real_mri / study.study_id).is_dir() and study.issues == ()
        expected = {"Sagittal T1": SAGITTAL_T1, "Sagittal T2": SAGITTAL_T2}[truth[study.study_id]]
        assert [s.view for s in study.series] == [expected]


# The table of points ---------------------------------------------------------------------------------------------


def reasons(report: pd.DataFrame) -> list[tuple]:
    return [(r.reason, r.condition, r.level) for r in report.itertuples()]


def clean(rows, **options):
    return clean_coordinates(point_table(rows), series_rows("1", SERIES), **options)


def changed(condition: str, level: str, **values) -> list[tuple]:
    """`points_of_study("1")` with one point changed."""
    names = ("study_id", "series_id", "instance_number", "condition", "level", "x", "y")
    rows = [dict(zip(names, row, strict=True)) for row in points_of_study("1")]
    for row in rows:
        if (row["condition"], row["level"]) == (condition, level):
            row.update(values)
    return [tuple(row.values()) for row in rows]


def test_a_good_table_comes_back_as_it_is():
    cleaned, report = clean(points_of_study("1"))
    assert len(report) == 0 and len(cleaned) == 25
    assert cleaned.iloc[0].tolist() == ["1", "11", 3, CANAL, "l1_l2", 10.0, 30.0]
    assert cleaned["instance_number"].dtype == np.int64


@pytest.mark.parametrize(
    ("condition", "values", "reason"),
    [
        (CANAL, {"x": 5.1, "y": 4.9}, "corner point"),
        (CANAL, {"series_id": "12"}, "wrong view"),
        (LEFT_RECESS, {"series_id": "11"}, "wrong view"),
        (CANAL, {"x": -40.0}, "outside image"),
        (RIGHT_FORAMEN, {"y": 5000.0}, "outside image"),
        (CANAL, {"y": float("nan")}, "not a number"),
        (CANAL, {"instance_number": "three"}, "not a number"),
        (CANAL, {"instance_number": "inf"}, "not a number"),
        (CANAL, {"instance_number": 2.5}, "not a number"),
    ],
)
def test_points_that_are_surely_wrong_are_dropped_with_the_reason(condition, values, reason):
    cleaned, report = clean(changed(condition, "l3_l4", **values))
    assert reasons(report) == [(reason, condition, "l3_l4")]
    assert report["action"].tolist() == ["dropped"] == [ACTIONS[reason]]
    assert len(cleaned) == 24 and not ((cleaned["condition"] == condition) & (cleaned["level"] == "l3_l4")).any()


def test_unknown_names_are_dropped():
    table = point_table(points_of_study("1"))
    table.loc[0, "level"] = "T12/L1"
    cleaned, report = clean_coordinates(table, series_rows("1", SERIES))
    assert report["reason"].tolist() == ["unknown name"] and len(cleaned) == 24


def test_points_on_another_view_stay_where_the_study_has_no_better_one():
    rows = [(row[0], "12", *row[2:]) if row[3] == CANAL else row for row in points_of_study("1")]
    cleaned, report = clean_coordinates(point_table(rows), series_rows("1", {"12": SAGITTAL_T1, "13": AXIAL_T2}))
    assert set(report["reason"]) == {"only other view"} and set(report["action"]) == {"kept"}
    assert len(report) == 5 and len(cleaned) == 25


def test_a_level_out_of_order_is_dropped_alone_and_exchanged_ones_both():
    _, report = clean(changed(CANAL, "l1_l2", y=60.0))
    assert reasons(report) == [("levels out of order", CANAL, "l1_l2")]
    rows = changed(CANAL, "l3_l4", y=42.0)
    rows = [(*row[:6], 38.0) if row[3:5] == (CANAL, "l4_l5") else row for row in rows]
    cleaned, report = clean(rows)
    assert reasons(report) == [("levels out of order", CANAL, level) for level in ("l3_l4", "l4_l5")]
    assert len(cleaned) == 23


def test_exchanged_sides_are_put_right():
    axial = changed(LEFT_RECESS, "l2_l3", x=15.0)
    cleaned, report = clean(axial)
    assert sorted(reasons(report)) == [("sides exchanged", c, "l2_l3") for c in (LEFT_RECESS, RIGHT_RECESS)]
    x = cleaned[cleaned["level"] == "l2_l3"].set_index("condition")["x"]
    assert (x[LEFT_RECESS], x[RIGHT_RECESS]) == (25.0, 15.0)

    sagittal = [
        (*row[:2], 6 - row[2], *row[3:]) if row[3] in (LEFT_FORAMEN, RIGHT_FORAMEN) and row[4] == "l5_s1" else row
        for row in points_of_study("1")
    ]
    cleaned, report = clean(sagittal)
    assert {r[0] for r in reasons(report)} == {"sides exchanged"} and len(report) == 2
    left = cleaned[cleaned["condition"] == LEFT_FORAMEN]
    assert set(left["instance_number"]) == {4}, "all left foramina on one side again"


def test_a_series_numbered_the_other_way_is_no_exchange():
    rows = [
        (*row[:2], 6 - row[2], *row[3:]) if row[3] in (LEFT_FORAMEN, RIGHT_FORAMEN) else row
        for row in points_of_study("1")
    ]
    assert len(clean(rows)[1]) == 0


def test_sides_without_a_clear_majority_are_left_alone():
    rows = [
        (*row[:2], 6 - row[2], *row[3:]) if row[3] in (LEFT_FORAMEN, RIGHT_FORAMEN) and row[4] in LEVELS[:2] else row
        for row in points_of_study("1")
    ]
    assert len(clean(rows)[1]) == 0


def test_labels_and_points_are_compared():
    labels = pd.DataFrame([["1", *["Normal/Mild"] * 24, None], ["2", "Severe", *[None] * 24]])
    labels.columns = ["study_id", *TARGETS]
    rows = [row for row in points_of_study("1") if row[3:5] != (CANAL, "l4_l5")]
    cleaned, report = clean(rows, labels=labels)
    assert sorted(reasons(report)) == [
        ("label without point", CANAL, "l1_l2"),
        ("label without point", CANAL, "l4_l5"),
        ("point without label", RIGHT_RECESS, "l5_s1"),
    ]
    assert len(cleaned) == 24, "a point without a label still shows where the disc is"
    assert dict(zip(report["study_id"], report["reason"], strict=True))["2"] == "label without point"


def test_duplicates_and_series_that_no_table_lists():
    rows = points_of_study("1")
    extra = (*rows[0][:5], 11.0, 31.0)
    cleaned, report = clean([*rows, extra])
    assert reasons(report) == [("duplicate point", CANAL, "l1_l2")] and len(cleaned) == 25
    assert cleaned["x"].iloc[0] == 10.0
    cleaned, report = clean(changed(CANAL, "l1_l2", series_id="77"))
    assert reasons(report) == [("series not listed", CANAL, "l1_l2")] and len(cleaned) == 25


def test_headers_tell_points_outside_their_image(competition):
    edit(
        competition / "train_label_coordinates.csv",
        lambda t: t.assign(instance_number=["88", *t["instance_number"][1:-1], "inf"], x=["10", "70", *t["x"][2:]]),
    )
    folder = CompetitionFolder.open(competition)
    faults = ["outside image", "image not on disk"]
    assert not folder.clean_coordinates()[1]["reason"].isin(faults).any(), "without headers they cannot be seen"
    report = folder.clean_coordinates(read_headers=True)[1].set_index("reason")
    assert report.loc[faults, "instance_number"].tolist() == [2, 88]
    assert report.loc[faults, "detail"].tolist() == ["(70, 30) of 60 x 80", "instance 88"]


def test_angulated_axial_series_keep_their_points(competition):
    for k, angle in enumerate((0, 15, 30)):
        write_series(
            competition / "train_images" / "101" / "13",
            orientation=turned(AXIAL, 0, angle),
            offsets=[0, 4],
            numbers=[1 + 2 * k, 2 + 2 * k],
            start=(-10, -12, -40.0 * k),
            shape=(60, 60),
        )
    folder = CompetitionFolder.open(competition)
    study = folder.load_study("101")
    assert len(study.by_view(AXIAL_T2)[0].stacks) == 3
    points = folder.world_points(study)
    for row in points[points["condition"] == LEFT_RECESS].itertuples():
        s, k = study.series_by_id("13").slice_of(row.instance_number)
        pixel = study.series_by_id("13").stacks[s].pixels[k, 40, 35]
        assert abs(brightness([row.x, row.y, row.z]) - pixel) <= 0.501
