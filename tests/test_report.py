"""Reports: they say what was predicted, every word is escaped, no id leaves the folder, failures cost little."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from planted_crops import disc_points, planted_cohort

import lumbar_utils.report.folder as folder_module
from lumbar_utils.crops import extract_crops, locate_targets
from lumbar_utils.errors import DataError, DicomError, Issue, OutputError
from lumbar_utils.files import file_name
from lumbar_utils.geometry import OrientedGrid, sample_stack
from lumbar_utils.inference.preprocessing import message_of
from lumbar_utils.inference.submission import FREQUENCY_NOTE, SYNTHETIC_WARNING, StudyPrediction
from lumbar_utils.labels import CONDITIONS, LEVELS, N_TARGETS, SAGITTAL_T1, TARGETS, VIEWS
from lumbar_utils.localization import DiscPoints
from lumbar_utils.localization.evaluation import read_reference
from lumbar_utils.report import ReportFolder, describe, study_page
from lumbar_utils.report.content import without_paths
from lumbar_utils.report.page import percent
from lumbar_utils.report.pictures import PANEL_PIXELS, overview, panels
from lumbar_utils.studies.competition import SYNTHETIC_MARK, in_synthetic_cohort
from lumbar_utils.studies.study import find_studies, load_study

SCHEMA = json.loads(resources.files("lumbar_utils.report").joinpath("report.schema.json").read_text())
HOSTILE = '<script>alert("1")</script>&\'"><img src=x onerror=alert(1)>'
MAX_PAGE_BYTES = 1_500_000


def grades(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet((4, 1, 1), N_TARGETS)


@pytest.fixture(scope="module")
def located(cohort):
    """A synthetic study with its true discs, crops and a prediction."""
    source = find_studies(cohort, part="train")[0]
    study = load_study(source)
    known = read_reference(cohort / "truth" / "discs.csv", point="canal")[study.study_id]
    discs = DiscPoints.from_known(study.study_id, study.by_view(VIEWS[0])[0].series_id, known, source="truth")
    prediction = StudyPrediction(study.study_id, grades(), discs, synthetic_only=True)
    return source, study, extract_crops(study, discs), prediction


class Elements(HTMLParser):
    """Tags with their attributes, and the text outside of style and script."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text, self._silent = "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._silent = tag in ("style", "script")

    def handle_endtag(self, tag):
        self._silent = False

    def handle_data(self, data):
        self.text += "" if self._silent else data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_json_says_what_was_predicted_and_keeps_its_form(located, tmp_path):
    _, study, crops, prediction = located
    path = ReportFolder(tmp_path, model={"name": "a run", "networks": 2}).write(prediction, study, crops)
    report = json.loads(path.with_suffix(".json").read_text())
    jsonschema.validate(report, SCHEMA)
    p = np.array([[*entry["probabilities"].values()] for entry in report["grades"]])
    assert np.array_equal(p, prediction.probabilities)
    assert [f"{entry['condition']}_{entry['level']}" for entry in report["grades"]] == list(TARGETS)
    assert report["summary"]["any_severe"] == prediction.probabilities[:, 2].max()
    assert report["summary"]["any_severe_spinal"] == prediction.probabilities[:5, 2].max()
    worst = report["summary"]["worst"]
    assert f"{worst['condition']}_{worst['level']}" == TARGETS[prediction.probabilities[:, 2].argmax()]
    assert sum(report["summary"]["counts"].values()) == N_TARGETS
    assert np.allclose(
        [level["point_lps_mm"] for level in report["discs"]["levels"]], prediction.discs.points, atol=0.01
    )
    assert {series["series_id"] for series in report["series"]} == {series.series_id for series in study.series}
    assert len(report["crops"]) == len(VIEWS) * len(LEVELS) and report["model"] == {"name": "a run", "networks": 2}


UNREADABLE = Issue("study_unreadable", "cannot be read", "7")


def test_the_json_of_a_study_without_anything_keeps_its_form():
    report = describe(StudyPrediction("7", grades(), None, tuple(VIEWS), (UNREADABLE,), fallback=True))
    jsonschema.validate(report, SCHEMA)
    assert report["flags"] == ["fallback", "disc", "view", "issue"] and "class prior" in report["warnings"][0]


def test_a_class_prior_is_never_shown_as_a_grade(tmp_path):
    reports = ReportFolder(tmp_path)
    text = reports.write(StudyPrediction("7", grades(), fallback=True)).read_text("utf-8")
    page = Elements(text)
    words = re.findall(r'<span class="word">([^<]*)', text)
    assert words == ["Prior"] * N_TARGETS and "Not predicted" in page.text and "not known" in page.text
    assert 'class="grade severe' not in text and 'class="grade moderate' not in text
    row = next(a for a in Elements(reports.finish().read_text("utf-8")).all("tr") if "data-id" in a)
    assert row["data-any"] == row["data-severe"] == "-1" and row["data-worst"] == "not predicted"


def test_the_page_holds_every_number_and_asks_nobody_for_anything(located, tmp_path):
    _, study, crops, prediction = located
    path = ReportFolder(tmp_path, synthetic=True).write(prediction, study, crops)
    text = path.read_text("utf-8")
    assert path.stat().st_size < MAX_PAGE_BYTES
    page = Elements(text)
    cells = [a for a in page.all("td") if a.get("class", "").startswith("grade ")]
    assert len(cells) == N_TARGETS
    for p in prediction.probabilities:
        said = "normal or mild {} %, moderate {} %, severe {} %".format(*map(percent, p))
        assert said in page.text
    assert SYNTHETIC_WARNING in page.text and "phantom" in page.text and "not for diagnosis" in page.text
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]+)""", text)
    assert addresses and all(a.startswith(("data:", "#", "../index.html")) for a in addresses)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "unsafe" not in policy and "script-src 'none'" in policy


def test_pages_say_that_probabilities_are_plain_frequencies(located, tmp_path):
    _, study, crops, prediction = located
    reports = ReportFolder(tmp_path)
    page = reports.write(prediction, study, crops)
    reports.write(replace(prediction, study_id="real", synthetic_only=False))
    index = Elements(reports.finish().read_text("utf-8"))
    for text in (Elements(page.read_text("utf-8")).text, index.text):
        assert FREQUENCY_NOTE in text and "Any severe, at least" not in text and "cannot be less" not in text
    assert "1 of 2 studies: The network was " + SYNTHETIC_WARNING in index.text  # and not of both
    prior = reports.write(StudyPrediction("8", grades(), fallback=True)).read_text("utf-8")
    assert "in the training part, as frequencies of" in Elements(prior).text


def test_what_is_missing_is_said_once_and_stripes_are_explained(located, tmp_path):
    _, _, crops, prediction = located
    issues = (
        Issue("view_missing", "no crops, no series", view=SAGITTAL_T1),
        Issue("note", "the labelling is uncertain"),
    )
    lacking = replace(prediction, missing_views=(SAGITTAL_T1,), issues=issues)
    covered = {view: np.ones_like(seen) for view, seen in crops.covered.items()}
    reports = ReportFolder(tmp_path)
    whole = Elements(reports.write(lacking, None, replace(crops, covered=covered)).read_text("utf-8"))
    assert whole.text.count("is missing") == 1 and f"{SAGITTAL_T1} is missing (no series); a learned" in whole.text
    assert "no crops, no series" not in whole.text and whole.text.count("the labelling is uncertain") == 1
    assert "Stripes" not in whole.text
    covered[VIEWS[0]][2, :, :10] = False
    assert "Stripes: outside of the scan" in reports.write(lacking, None, replace(crops, covered=covered)).read_text()


def test_the_page_can_be_read_without_seeing_it(located, tmp_path):
    _, study, crops, prediction = located
    page = Elements(ReportFolder(tmp_path).write(prediction, study, crops).read_text("utf-8"))
    assert page.all("html")[0]["lang"] == "en" and len(page.all("h1")) == 1 and len(page.all("main")) == 1
    assert all(a.get("alt") for a in page.all("img"))
    assert all("scope" in a for a in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    for svg in page.all("svg"):
        assert svg.get("aria-hidden") == "true" or svg.get("role") == "img"
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(set(ids)) == len(ids)


def test_all_words_are_escaped(located, tmp_path):
    _, _, crops, prediction = located
    discs = DiscPoints(HOSTILE, HOSTILE, prediction.discs.points, prediction.discs.confidence, (HOSTILE,) * 5)
    hostile = StudyPrediction(HOSTILE, prediction.probabilities, discs, (), (Issue("note", HOSTILE),))
    reports = ReportFolder(tmp_path, model={HOSTILE: HOSTILE})
    path = reports.write(hostile, None, crops)
    reports.failures[HOSTILE] = HOSTILE
    for file in (path, reports.finish()):
        page = Elements(file.read_text("utf-8"))
        assert not [a for a in page.all("img") if a.get("src") == "x"]
        assert all("alert" not in str(a) for a in page.all("script")) and "onerror" not in [
            k for _, a in page.tags for k in a
        ]
        assert HOSTILE in page.text
    assert json.loads(path.with_suffix(".json").read_text())["study_id"] == HOSTILE


@pytest.mark.parametrize(
    "study_id",
    ["../../x", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "CON", "nul.txt", "x" * 300, "ä b", "\udc80", "a\0b"],
)
def test_no_id_leaves_the_folder(study_id, tmp_path):
    reports = ReportFolder(tmp_path / "reports")
    path = reports.write(StudyPrediction(study_id, grades()))
    assert path.resolve().parent == (tmp_path / "reports" / "studies").resolve() and path.is_file()
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,80}", path.stem)
    reports.finish()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["reports"]


def test_different_ids_have_different_files():
    ids = ["a/b", "a_b", "a b", "4003253", "a-b", "1.2.840.113", "a\\b", "../a_b"]
    assert len({file_name(study_id).lower() for study_id in ids}) == len(ids)
    assert file_name("4003253") == "4003253" and file_name("1.2.840.113") == "1.2.840.113"


def test_the_located_discs_are_drawn_where_they_are(located):
    _, study, crops, prediction = located
    drawn = overview(study, prediction.discs, crops)
    points = np.array([level["point"] for level in drawn["levels"]])
    assert (points > 0).all() and (points < [drawn["width"], drawn["height"]]).all()
    assert (np.diff(points[:, 1]) > 0).all()  # from head to foot
    millimetre = drawn["scale"] / 50
    steps = np.linalg.norm(np.diff(prediction.discs.points[:, 1:], axis=0), axis=1)
    assert np.allclose(np.linalg.norm(np.diff(points, axis=0), axis=1), steps * millimetre, rtol=0.05)
    assert drawn["letters"]["top"].startswith("S") and drawn["letters"]["left"].startswith("A")
    for level in drawn["levels"]:
        assert level["front"][0] < level["point"][0]  # the disc lies in front of the canal
        box = np.array(level["box"])
        assert np.allclose(np.ptp(box, axis=0), crops.spec.extents[VIEWS[0]][1] * millimetre, rtol=0.05)


def test_panels_show_the_crop_at_the_scans_resolution(located):
    _, study, crops, _ = located
    coarse, fine = panels(crops), panels(crops, study)
    for rows in (coarse, fine):
        assert [len(row["panels"]) for row in rows] == [5] * 4
        assert all((cell["uri"] is None) == bool(cell["absent"]) for row in rows for cell in row["panels"])
    for row_coarse, row_fine in zip(coarse[:2], fine[:2], strict=True):  # foramina, see below, differ from step to step
        for a, b in zip(row_coarse["panels"], row_fine["panels"], strict=True):
            if a["uri"]:
                x, y = _image(a["uri"]), _image(b["uri"])
                assert x.shape == y.shape == (PANEL_PIXELS, PANEL_PIXELS)
                # The same place in the patient, but for the step to the scan's nearest slice.
                assert np.corrcoef(x.ravel(), y.ravel())[0, 1] > 0.8


def test_a_foramen_is_shown_on_its_own_slice_of_the_scan(located):
    _, study, crops, _ = located
    rows = panels(crops, study)
    points = locate_targets(study, crops.points)
    for condition, row in ((2, rows[2]), (1, rows[3])):
        for level, cell in enumerate(row["panels"]):
            source = crops.sources[SAGITTAL_T1][level]
            stack = study.series_by_id(source.series_id).stacks[source.stack]
            place = stack.geometry.nearest_slice(points.places[condition, level])
            grid = crops.grid(SAGITTAL_T1, level)
            move = (stack.geometry.positions[place] - grid.center) @ stack.geometry.normal * stack.geometry.normal
            fine = OrientedGrid(grid.center + move, grid.axes, (1.0, *grid.extent[1:]), (1, PANEL_PIXELS, PANEL_PIXELS))
            expected, _ = sample_stack(stack.pixels, stack.geometry, fine.points())
            assert np.corrcoef(_image(cell["uri"]).ravel(), expected.ravel())[0, 1] > 0.97


def test_maps_are_laid_over_the_panels_they_belong_to(located, tmp_path):
    _, study, crops, prediction = located
    heat = np.zeros(crops.images[SAGITTAL_T1].shape, np.float32)
    heat[:, :, :10] = 1.0  # the upper edge
    rows = panels(crops, study, {SAGITTAL_T1: heat})
    assert all(cell["map"] is None for cell in rows[0]["panels"])
    alpha = _image(rows[2]["panels"][0]["map"])[..., 3].astype(int)
    assert alpha[:10].min() > 150 and alpha[100:].max() < 30
    page = ReportFolder(tmp_path).write(prediction, study, crops, maps={SAGITTAL_T1: heat}).read_text("utf-8")
    assert 'id="maps"' in page and page.count('class="map"') == 10


def test_a_study_is_read_again_and_a_phantom_is_called_one(located, tmp_path):
    source, _, _, prediction = located
    reports = ReportFolder(tmp_path)
    path = reports.add(source, prediction)
    report = json.loads(path.with_suffix(".json").read_text())
    assert report["synthetic"] == {"weights": True, "study": True} and report["crops"] and report["series"]
    assert "data:image" in path.read_text("utf-8")


def test_what_lies_beside_a_synthetic_cohort_is_not_called_synthetic(cohort, tmp_path):
    study = find_studies(cohort, part="train")[0].path
    assert in_synthetic_cohort(study) and in_synthetic_cohort(next(study.iterdir()))
    (tmp_path / SYNTHETIC_MARK).write_text("a cohort of phantoms")
    real = tmp_path / "rsna" / "train_images" / "1" / "2"
    real.mkdir(parents=True)
    assert not in_synthetic_cohort(real) and not in_synthetic_cohort(real.parent) and not in_synthetic_cohort(tmp_path)


def test_what_is_said_of_a_failure_names_no_folder():
    gone = PermissionError(13, "Permission denied", "/data/Muster_Anna/train_images/1")
    broken = DicomError("cut off", path="/data/Muster_Anna/scan.dcm", study_id="1")
    assert "Muster" not in message_of(gone) + message_of(broken) and "scan.dcm: cut off" in message_of(broken)


def test_a_failure_costs_only_its_own_report(located, tmp_path, monkeypatch):
    source, _, _, prediction = located
    monkeypatch.setattr(folder_module, "load_study", lambda source: (_ for _ in ()).throw(OSError("gone")))
    reports = ReportFolder(tmp_path)
    assert reports.add(source, StudyPrediction("unreadable", grades())).is_file()  # a page without pictures
    monkeypatch.setattr(folder_module, "describe", lambda *a, **k: (_ for _ in ()).throw(ValueError("cannot be drawn")))
    assert reports.add(source, StudyPrediction("bad", grades())) is None
    monkeypatch.undo()
    assert reports.add(source, prediction).is_file()
    index = Elements(reports.finish().read_text("utf-8"))
    assert "cannot be drawn" in index.text and len([a for a in index.all("tr") if "data-id" in a]) == 2
    assert sorted(reports.failures) == ["bad"] and reports.written == 2


def test_a_full_disk_is_no_failure_of_a_study_and_ends_the_reports(located, tmp_path, full_disk):
    source, _, _, prediction = located
    reports = ReportFolder(tmp_path)
    for room in (0, 1):
        with full_disk(room), pytest.raises(OutputError, match=rf"{source.study_id}\..*No space left"):
            reports.add(source, prediction)
    assert not reports.failures


@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_many_studies_are_reported_as_their_predictions_come(located, tmp_path, monkeypatch, n_jobs):
    monkeypatch.setattr(folder_module, "STUDIES_A_PROCESS", 1)
    source, _, _, prediction = located
    gone = replace(source, path=source.path.with_name("not there"), study_id="gone")
    reports = ReportFolder(tmp_path)
    predictions = (StudyPrediction("gone", grades()), prediction, StudyPrediction("y" * 300, grades()))
    reports.add_all([gone, source, gone], iter(predictions), n_jobs=n_jobs, progress=False)
    assert reports.written == 3 and not reports.failures
    text = (tmp_path / "studies" / f"{source.study_id}.html").read_text("utf-8")
    assert "data:image" in text and "data:image" not in (tmp_path / "studies" / "gone.html").read_text("utf-8")


def test_the_index_holds_earlier_runs_and_leaves_out_what_is_no_report(tmp_path, caplog):
    ReportFolder(tmp_path).write(StudyPrediction("1", grades(1)))
    second = ReportFolder(tmp_path)
    second.write(StudyPrediction("2", grades(2)))
    (tmp_path / "studies" / "3.json").write_text('{"schema": "something else"}')
    (tmp_path / "studies" / "4.json").write_text("{broken")
    page = Elements(second.finish().read_text("utf-8"))
    assert sorted(a["data-id"] for a in page.all("tr") if "data-id" in a) == ["1", "2"]
    assert "3.json" in caplog.text and "4.json" in caplog.text
    listed = json.loads((tmp_path / "index.json").read_text())
    assert [entry["study_id"] for entry in listed["studies"]] == ["1", "2"]


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    reports = ReportFolder(tmp_path)
    path = reports.write(StudyPrediction("1", grades(1)))
    before = path.read_text("utf-8")
    monkeypatch.setattr(Path, "write_bytes", lambda self, *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(DataError, match="disk full"):
        reports.write(StudyPrediction("1", grades(2)))
    assert path.read_text("utf-8") == before
    assert not [p for p in (tmp_path / "studies").iterdir() if p.suffix == ".tmp"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "here").write_text("")
    with pytest.raises(DataError, match="reports cannot be written there"):
        ReportFolder(tmp_path / "here")


def test_paths_are_cut_from_words():
    words = "study 7, /data/Doe_Jane/7/2.dcm: cannot be read; series in /data/Doe_Jane"
    assert "Doe" not in without_paths(words, ["/data/Doe_Jane/7", "/data/Doe_Jane", "/data", "/"])
    assert "2.dcm" in without_paths(words, ["/data/Doe_Jane/7"])
    assert without_paths("scans are missing", ["scans", "."]) == "scans are missing"


@pytest.mark.parametrize(
    ("p", "said"), [(0, "0"), (1, "100"), (0.004, "<1"), (0.005, "<1"), (0.996, ">99"), (0.5, "50")]
)
def test_a_percentage_never_claims_certainty(p, said):
    assert percent(p) == said


def test_same_input_same_page(located):
    _, _, crops, prediction = located
    pages = {
        study_page(describe(prediction, crops=crops, created=datetime(2030, 1, 1, tzinfo=UTC)), None, panels(crops))
        for _ in range(2)
    }
    assert len(pages) == 1
    assert all(condition.split("_")[0] in next(iter(pages)).lower() for condition in CONDITIONS)


def _image(uri: str) -> np.ndarray:
    import base64
    import io

    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    return np.asarray(image if image.mode == "RGBA" else image.convert("L"))


def test_planted_points_without_a_series_still_make_a_page(tmp_path):
    crops = planted_cohort(1)[0]["1000"]
    path = ReportFolder(tmp_path).write(StudyPrediction("1000", grades(), disc_points("1000")), None, crops)
    assert "No image to show the discs on" in path.read_text("utf-8")
