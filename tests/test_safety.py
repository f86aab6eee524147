"""Nothing leaks and nothing escapes: no identity in any output, no markup from a header, no file outside its folder.

Also what the code must never do: unpickle, or unpack an archive that it was given.
"""

from __future__ import annotations

import ast
import copy
import io
import logging
import re
import shutil
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import SAGITTAL, image, write, write_series
from planted_crops import POINTS, SPEC, study_crops
from pydicom.dataset import Dataset

from lumbar_utils.cli import main
from lumbar_utils.crops.cache import build_crop_cache
from lumbar_utils.crops.target_points import TargetPoints
from lumbar_utils.dicom.identity import identity_of, without_identity
from lumbar_utils.dicom.series import Series, read_series, scan_headers
from lumbar_utils.errors import DicomError
from lumbar_utils.files import file_name, hashed
from lumbar_utils.inference.submission import StudyPrediction
from lumbar_utils.labels import N_TARGETS, VIEWS
from lumbar_utils.localization import DiscPoints
from lumbar_utils.studies.data import Study
from lumbar_utils.studies.study import StudySource, find_studies, load_study

ROOT = Path(__file__).resolve().parent.parent
CODE = sorted(path for folder in ("lumbar_utils", "tools", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
PLANTED = {
    "PatientName": "Zebrowska^Quirina",
    "PatientID": "QX77310",
    "PatientBirthDate": "19520229",
    "AccessionNumber": "ACC5501",
    "ReferringPhysicianName": "Wolkenstein^Odo",
    "PatientAddress": "Lindenallee 9",
    "InstitutionName": "Klinik Fernblick",
    "OtherPatientIDs": "ZZ-0815-4",
    "PatientComments": "pacemaker",
}
SECRETS = (
    *("zebrowska", "quirina", "qx77310", "19520229", "acc5501", "wolkenstein", "lindenallee", "fernblick"),
    *("zz-0815-4", "pacemaker"),
)
HOSTILE = '<script>alert("x")</script>'


def plant(folder: Path) -> None:
    """Give every file of a folder an identity, in its own tags and where people write names as well."""
    for number, path in enumerate(sorted(folder.rglob("*.dcm"))):
        dataset = pydicom.dcmread(path)
        for keyword, value in PLANTED.items():
            setattr(dataset, keyword, value)
        dataset.SeriesDescription = f"{dataset.get('SeriesDescription', '')} ZEBROWSKA Q. QX77310"
        dataset.ProtocolName = "L-spine, Quirina Zebrowska, born 19520229"
        dataset.save_as(path)
        path.rename(path.with_name(f"Zebrowska_{number}.dcm"))


def texts_of(folder: Path) -> dict[str, bytes]:
    """Content of all files below a folder, in lower case, archives unpacked; their names as well."""
    found = {}
    for path in folder.rglob("*"):
        found[f"name of {path}"] = path.name.lower().encode()
        if path.is_file():
            found[str(path)] = path.read_bytes().lower()
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    found |= {f"{path}:{name}": archive.read(name).lower() for name in archive.namelist()}
    return found


@pytest.mark.slow
def test_no_output_of_any_command_names_the_patient(cohort, tmp_path, capsys, caplog):
    from test_models_ensemble import write_run

    tree = tmp_path / "in" / "Zebrowska Quirina"
    study = next(folder for folder in sorted((cohort / "train_images").iterdir()) if len(list(folder.iterdir())) >= 3)
    shutil.copytree(study, tree / "mri")
    plant(tree)
    series = sorted(folder for folder in (tree / "mri").iterdir())
    (series[0] / "Zebrowska_broken.dcm").write_text("Zebrowska Quirina, 29.2.1952")
    report = Dataset()
    report.Modality, report.PatientName = "SR", PLANTED["PatientName"]
    write(tree / "Quirina report", report)
    write_series(tmp_path / "in" / "ct", Modality="CT", study_uid="9.9", **PLANTED)
    write_run(tmp_path / "run" / "classifier", (0.6, 0.3, 0.1), spec=SPEC)
    out = tmp_path / "out"
    out.mkdir()
    caplog.set_level(logging.DEBUG, "lumbar_utils")
    commands = (
        ("localize", tree.parent, "--out", out / "points.csv"),
        ("crops", tree.parent, "--points", out / "points.csv", "--out", out / "crops", "--jobs", "1"),
        (
            *("predict", tree.parent, "--weights", tmp_path / "run", "--out", out / "submission.csv"),
            *("--pictures", "1", "--report", out / "reports"),
        ),
    )
    for command in commands:
        assert main([str(part) for part in command]) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    found = texts_of(out) | {"stdout": said.out.lower().encode(), "stderr": said.err.lower().encode()}
    found["log"] = caplog.text.lower().encode()
    (loaded,) = [load_study(source) for source in find_studies(tree.parent)]
    found["in a notebook"] = (loaded._repr_html_() + repr(loaded)).lower().encode()
    assert len(list(out.rglob("*.png"))) == 2, "pictures were drawn"
    assert len(list(out.rglob("reports/studies/*.html"))) == 1, "a report was written"
    for name, content in found.items():
        for secret in SECRETS:
            assert secret.encode() not in content, f"{secret} in {name}"
    assert b"***" in found["in a notebook"], "what was written in descriptions and file names is starred out"


def test_the_words_of_an_identity_are_starred_out_and_nothing_else():
    dataset = Dataset()
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Berg^Eva-Maria", "A-12", "19700101"
    words = identity_of(dataset)
    assert words >= {"berg", "eva", "maria", "evamaria", "bergeva", "a-12", "19700101"}
    text = "SAG T2 Berg eva A-12, Bergmann, 19700101.dcm berg_1"
    assert without_identity(text, words) == "SAG T2 *** *** ***, Bergmann, ***.dcm ***_1"
    dataset.PatientName = "ANONYMOUS"
    assert identity_of(dataset) == frozenset(), "then its number is a pseudonym, and folders are called by it"
    dataset.PatientName, dataset.PatientIdentityRemoved = "Case^Seven", "YES"
    assert identity_of(dataset) == frozenset()


def test_a_series_of_which_nothing_can_be_read_does_not_name_the_patient(tmp_path):
    path = write(tmp_path / "Zebrowska_1.dcm", image(PatientName="Zebrowska^Quirina"))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DicomError, match="none of its 1 files can be read; file 1 of 1: PixelData has") as raised:
        read_series([path])
    assert "Zebrowska" not in str(raised.value)


SPELLINGS = {
    "DOE^JOHN": ("Doe^John", "DOE JOHN", "Doe, John 1970", "john_doe", "JohnDoe", "doe-john"),
    "Mueller^Zoé": ("Müller, Zoé", "Mu\u0308ller Zoe\u0301", "MULLER_ZOE", "Mueller Zoe"),
    "O\u2019Brien-Smith^Anna": ("O'Brien Smith", "OBrien-Smith", "O\u2019BRIEN", "Anna"),
    "Wang^XiaoDong=王^小东": ("王小东", "Wang XiaoDong", "XiaoDong"),
    "Hong^Gildong=洪^吉洞=홍^길동": ("홍길동", "\u1112\u1169\u11bc\u1100\u1175\u11af\u1103\u1169\u11bc", "洪吉洞"),
    "محمد^علي": ("محمد علي", "علي"),
}


@pytest.mark.parametrize(("name", "spelling"), [(name, one) for name, all_of in SPELLINGS.items() for one in all_of])
def test_a_name_of_any_spelling_stays_where_it_is(tmp_path, caplog, name, spelling):
    tags = {"SpecificCharacterSet": "ISO_IR 192", "PatientName": name, "AccessionNumber": "ACC5501"}
    folder = tmp_path / "in" / spelling
    for number, place in enumerate((folder / f"T2 {spelling}", folder / "t1"), start=1):
        description = f"T2 {spelling} ACC5501 1.2.1970"
        write_series(place, study_uid="1.2.77", series_uid=f"1.2.77.{number}", SeriesDescription=description, **tags)
        (place / f"{spelling}.dcm").write_text("no image")
    for loose in (folder, tmp_path / "in"):
        (loose / f"{spelling} 2").write_text("no image")
    (source,) = find_studies(tmp_path / "in")
    study = load_study(source)
    assert source.study_id == hashed("study", "1.2.77") and len(study.series) == 2
    said = repr([study.series[0].description, study.all_issues, study, study._repr_html_(), caplog.text])
    parts = re.findall(r"[^\W\d_]{3,}|[^\x00-\u2e80]", spelling)
    assert parts and not [part for part in parts if part.lower() in said.lower()], said
    assert "ACC5501" not in said and "1970" not in said


@pytest.mark.parametrize(
    ("folder", "tags", "named"),
    [
        ("case 7", {"PatientIdentityRemoved": "YES"}, True),
        ("ivd_11", {"PatientName": "Anonymous", "PatientID": "ivd_11"}, True),
        ("4003253", {"PatientName": None, "PatientID": None}, True),
        ("4003253", {}, False),
        ("case 7", {"PatientName": None}, False),
        ("Doe Jane 7", {"PatientIdentityRemoved": "YES"}, False),
        ("Doe", {"PatientName": None, "PatientID": None}, False),
        ("1970-01-01", {"PatientIdentityRemoved": "YES"}, False),
        ("19700101", {"PatientIdentityRemoved": "YES"}, False),
    ],
)
def test_a_folder_names_its_study_where_identity_was_removed_and_it_is_a_code(tmp_path, folder, tags, named):
    write_series(tmp_path / "in" / folder / "t2", study_uid="1.2.77", **tags)
    assert [source.study_id for source in find_studies(tmp_path / "in" / folder)] == [
        folder if named else hashed("study", "1.2.77")
    ]


def test_the_competition_s_folders_are_called_by_numbers(tmp_path, caplog):
    write_series(tmp_path / "train_images" / "Doe Jane" / "Doe T2", study_uid="1.2.77")
    assert [source.study_id for source in find_studies(tmp_path)] == [hashed("study", "1.2.77")]
    write_series(tmp_path / "train_images" / "12" / "Doe T2", study_uid="1.2.78")
    (source,) = find_studies(tmp_path)
    assert source.study_id == "12" and "Doe" not in repr(load_study(source)) + caplog.text
    assert "1 folder of train_images not called by a number left out" in caplog.text


def test_descriptions_keep_to_one_printable_line(tmp_path):
    forged = "SAG T2\r\nERROR study 1: all is well\x1b[31m \u202etxt.exe\u200b" + "x" * 5000
    series = read_series(write_series(tmp_path, SeriesDescription=forged, SpecificCharacterSet="ISO_IR 192"))
    assert series.description.startswith("SAG T2 ERROR study 1: all is well [31m txt.exexxx")
    assert len(series.description) <= 256
    assert scan_headers(tmp_path)[0].acquisition.description == series.description


# Markup ----------------------------------------------------------------------------------------------------------


def test_whatever_is_shown_in_a_notebook_is_escaped():
    series = Series(HOSTILE, HOSTILE, "", (), HOSTILE, {}, (HOSTILE,))
    points = DiscPoints(HOSTILE, HOSTILE, POINTS, np.ones(5), flags=(HOSTILE,) * 5, source="truth")
    crops = study_crops(HOSTILE, {view: np.zeros((5, *SPEC.shapes[view])) for view in VIEWS})
    object.__setattr__(crops, "issues", (HOSTILE,))
    even = np.full((N_TARGETS, 3), 1 / 3)
    shown = (
        Study(HOSTILE, (series,), (HOSTILE,)),
        points,
        TargetPoints(HOSTILE, np.zeros((25, 3)), np.ones(25), (HOSTILE,) * 25, (1,) * 25, (HOSTILE,) * 25),
        crops,
        StudyPrediction(HOSTILE, even, None, (HOSTILE,), (HOSTILE,)),
    )
    for item in shown:
        html = item._repr_html_()
        assert "<script" not in html and "&lt;script" in html, type(item).__name__


def test_every_object_that_shows_itself_is_in_the_test_above():
    classes = {
        node.name
        for path in CODE
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef) and any(getattr(part, "name", "") == "_repr_html_" for part in node.body)
    }
    assert classes == {"Study", "DiscPoints", "TargetPoints", "StudyCrops", "StudyPrediction"}


# Names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["1.2.840.113619.2.5", "4003253", "case 1", "a-b_c.d"])
def test_plain_ids_name_their_files(words):
    assert file_name(words) == words


@pytest.mark.parametrize(
    ("words", "readable"),
    [
        ("../../evil", "evil"),
        ("/etc/passwd", "etc_passwd"),
        ("C:\\x\\y", "C_x_y"),
        ("a\0b\nc", "a_b_c"),
        ("..", "study"),
        ("", "study"),
        ("=cmd|' /C calc'!A0", "cmd_C_calc_A0"),
        ("-1+2", "1_2"),
        ("NUL", "NUL"),
        ("com1.txt", "com1_txt"),
        ("\u202egnp.exe\u2215x\uff0fy", "gnp_exe_x_y"),
        ("trailing. ", "trailing"),
        ("9" * 5000, "9" * 60),
    ],
)
def test_other_ids_name_their_files_by_what_is_plain_and_a_hash(words, readable):
    name = file_name(words)
    assert re.fullmatch(re.escape(readable) + "-[0-9a-f]{12}", name) and file_name(name) == name
    assert file_name(words + "?") != name


@pytest.mark.parametrize("study_id", ["../../evil", "/tmp/evil", "x" * 4000, "a/b\\c", "nul", "a\nb", "\u202ex"])
def test_crops_of_any_id_stay_in_their_folder(tmp_path, study_id):
    """Whatever a caller names its study, also one that did not come from `find_studies`."""
    write_series(tmp_path / "in", shape=(60, 60))
    (source,) = find_studies(tmp_path / "in")
    hostile = StudySource(study_id, source.path, source.series)
    points = DiscPoints(study_id, "", POINTS, np.ones(5), source="truth")
    before = set(tmp_path.parent.rglob("*"))
    cache = build_crop_cache([hostile], {study_id: points}, tmp_path / "out" / "crops", spec=SPEC, n_jobs=1)
    assert cache.study_ids == (study_id,) and cache[study_id].study_id == study_id
    made = {path for path in set(tmp_path.parent.rglob("*")) - before if path.is_file()}
    assert {path.suffix for path in made} == {".npz", ".json"}
    assert {path.parent for path in made} == {tmp_path / "out" / "crops"}


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_hostile_uids_that_look_alike_stay_two_studies(tmp_path):
    for first, uid in ((1, "a/b"), (11, "a:b"), (21, "a?b")):
        write_series(tmp_path, numbers=range(first, first + 3), offsets=[0, 4, 8], study_uid=uid, series_uid=uid + "1")
    ids = [source.study_id for source in find_studies(tmp_path)]
    assert len(set(ids)) == 3 and all(one.startswith("study-") for one in ids)


# What the code never does ----------------------------------------------------------------------------------------


def calls(path: Path):
    """(dotted name, call, line) of every call in a file."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node, node.lineno


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0], node.lineno


def test_nothing_is_unpickled():
    for path in CODE:
        for name, line in imports(path):
            assert name not in {"pickle", "dill", "cloudpickle", "shelve", "marshal"}, f"{path}:{line}: {name}"
        for name, call, line in calls(path):
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            where = f"{path.relative_to(ROOT)}:{line}: {ast.unparse(call)[:80]}"
            if name == "torch.load":
                assert options.get("weights_only") == "True", where
            if name in ("np.load", "numpy.load"):
                assert options.get("allow_pickle", "False") == "False", where
            assert name not in ("joblib.load", "pd.read_pickle", "eval", "exec", "torch.jit.load"), where
            assert not name.endswith((".read_pickle", "read_hdf")), where


def test_no_archive_is_unpacked():
    """None is: crops are read from theirs by name, and checksums without unpacking."""
    for path in CODE:
        for name, line in imports(path):
            assert name not in {"tarfile", "gzip", "bz2", "lzma", "rarfile", "py7zr"}, f"{path}:{line}: {name}"
        for name, call, line in calls(path):
            if name == "shutil.unpack_archive" and "shutil.make_archive" in ast.unparse(call.args[0]):
                continue  # what was packed in the same breath, to rehearse an upload
            assert not name.endswith((".extractall", ".extract", "unpack_archive")), f"{path}:{line}: {name}"


def test_crops_with_pickled_objects_are_refused(tmp_path):
    from lumbar_utils.crops.extraction import StudyCrops
    from lumbar_utils.errors import DataError

    content = io.BytesIO()
    np.savez(content, meta=np.array([{"version": 1}], dtype=object))
    (tmp_path / "1.npz").write_bytes(content.getvalue())
    with pytest.raises(DataError, match="not a readable file of crops"):
        StudyCrops.load(tmp_path / "1.npz")


@pytest.mark.parametrize("value", ["ZEBROWSKA", "19520229", "ZEBROWSKA\\19520229", "1.2.19520229"])
def test_no_element_is_quoted_whatever_it_holds(tmp_path, value):
    dataset = image(orientation=SAGITTAL, NumberOfFrames=1, SamplesPerPixel=1, RescaleSlope=1, RescaleIntercept=0)
    write(tmp_path / "1.dcm", dataset)
    for element in list(dataset):
        if element.keyword not in ("PatientName", "PatientID", "PatientBirthDate", "PixelData"):
            changed = copy.deepcopy(dataset)
            changed.add_new(element.tag, "UI" if value[1] == "." else "LO", value)
            with warnings.catch_warnings(action="ignore"):
                write(tmp_path / f"{element.tag:08x}.dcm", changed)
            (header,) = scan_headers(tmp_path / f"{element.tag:08x}.dcm")
            said = [header.issue, *map(str, read_series(tmp_path).issues)]
            assert not re.search("(?i)zebrowska|19520229", " ".join(said)), element.keyword
            (tmp_path / f"{element.tag:08x}.dcm").unlink()


def test_a_file_that_is_one_secret_line_is_not_quoted(tmp_path):
    (tmp_path / "1.dcm").write_text("Doe Jane 1970")
    write(tmp_path / "2.dcm", image(orientation=SAGITTAL))
    assert "Doe" not in " ".join(map(str, read_series(tmp_path).issues))
