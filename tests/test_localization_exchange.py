"""Points renamed by a level, taken to and from 3D Slicer, and from tables of other teams."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pandas as pd
import pytest

from lumbar_utils.cli import main
from lumbar_utils.errors import DataError
from lumbar_utils.labels import N_LEVELS
from lumbar_utils.localization import (
    DiscPoints,
    points_from_table,
    read_any_points,
    read_markups,
    read_points,
    shift_levels,
    write_markups,
    write_points,
)
from lumbar_utils.localization.exchange import BETWEEN_SIDES
from lumbar_utils.studies import CompetitionFolder

POINT = {
    "type": "object",
    "required": ["label", "position"],
    "properties": {
        "id": {"type": "string"},
        "label": {"type": "string"},
        "description": {"type": "string"},
        "position": {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3},
        "selected": {"type": "boolean"},
        "locked": {"type": "boolean"},
        "visibility": {"type": "boolean"},
        "positionStatus": {"enum": ["undefined", "preview", "defined"]},
    },
}
MARKUP = {
    "type": "object",
    "required": ["type"],
    "properties": {
        "type": {"enum": ["Fiducial", "Line", "Angle", "Curve", "ClosedCurve", "Plane", "ROI"]},
        "name": {"type": "string"},
        "coordinateSystem": {"enum": ["LPS", "RAS"]},
        "coordinateUnits": {"enum": ["mm", "um"]},
        "locked": {"type": "boolean"},
        "labelFormat": {"type": "string"},
        "controlPoints": {"type": "array", "items": POINT},
    },
}
SCHEMA = {
    "type": "object",
    "required": ["@schema", "markups"],
    "properties": {"@schema": {"type": "string"}, "markups": {"type": "array", "items": MARKUP}},
}
"""What the published schema says of a point list (markups-schema-v1.0.3.json of 3D Slicer)."""


@pytest.fixture
def discs() -> DiscPoints:
    points = np.column_stack([np.linspace(1, 3, 5), np.linspace(-5, 12, 5), np.linspace(70, -55, 5)])
    flags = ("", "", "interpolated", "low_confidence", "")
    return DiscPoints("100206310", "7", points, [0.9, 0.9, 0.5, 0.6, 0.95], flags)


def test_slicer_gets_what_its_schema_wants_and_gives_the_points_back(discs, tmp_path):
    file = write_markups(tmp_path / "a.mrk.json", discs)
    written = json.loads(file.read_text())
    jsonschema.validate(written, SCHEMA)
    assert [p["label"] for p in written["markups"][0]["controlPoints"]] == ["L1/L2", "L2/L3", "L3/L4", "L4/L5", "L5/S1"]
    back = read_markups(file)
    assert back.study_id == discs.study_id and back.source == "corrected" and not back.flagged
    np.testing.assert_allclose(back.points, discs.points, atol=1e-4)
    assert list(read_any_points(tmp_path)) == list(read_any_points(file)) == [discs.study_id]


def edited(file, **changes):
    """A point list as Slicer saves it after its user has changed something."""
    written = json.loads(file.read_text())
    written["markups"][0] |= changes
    file.write_text(json.dumps(written))
    return file


def test_point_lists_in_other_frames_units_and_without_labels_are_read(discs, tmp_path):
    file = write_markups(tmp_path / "a.mrk.json", discs)
    places = [[-1000 * x, -1000 * y, 1000 * z] for x, y, z in discs.points[::-1]]
    points = [{"label": f"F-{i}", "position": place} for i, place in enumerate(places)]
    edited(file, coordinateSystem="RAS", coordinateUnits=["um", "UCUM", "micrometer"], controlPoints=points, name="")
    back = read_markups(file)
    assert back.study_id == "a"
    np.testing.assert_allclose(back.points, discs.points, atol=1e-4)


def test_a_level_that_was_deleted_or_never_placed_is_imputed(discs, tmp_path):
    file = write_markups(tmp_path / "a.mrk.json", discs)
    points = json.loads(file.read_text())["markups"][0]["controlPoints"]
    points[1]["positionStatus"], points[4]["label"] = "undefined", "S1/S2"
    back = read_markups(edited(file, controlPoints=points))
    assert back.flags == ("", "interpolated", "", "", "extrapolated")


@pytest.mark.parametrize(
    "text",
    ["{}", "no json", '{"markups": []}', '{"markups": [{"type": "Line"}]}', '{"markups": [{"type": "Fiducial"}]}'],
)
def test_what_is_no_point_list_is_refused_by_name(text, tmp_path):
    file = tmp_path / "odd.mrk.json"
    file.write_text(text)
    with pytest.raises(DataError, match=r"odd|levels are known"):
        read_markups(file)
    with pytest.raises(DataError, match="holds no point list"):
        (tmp_path / "empty").mkdir()
        read_any_points(tmp_path / "empty")


@pytest.mark.parametrize("by", [-2, -1, 1, 3])
def test_a_shift_renames_points_and_extrapolates_what_gets_none(discs, by):
    moved = shift_levels(discs, by)
    for level in range(N_LEVELS):
        if 0 <= level - by < N_LEVELS:
            np.testing.assert_array_equal(moved.points[level], discs.points[level - by])
            assert (moved.flags[level], moved.confidence[level]) == ("", discs.confidence[level - by])
        else:
            assert moved.flags[level] == "extrapolated"
    assert moved.source == "corrected"
    with pytest.raises(DataError, match="by 1 to 3 levels"):
        shift_levels(discs, 4 if by > 0 else 0)


def test_the_command_line_shifts_exports_and_imports(discs, tmp_path, capsys):
    other = DiscPoints("2", "7", discs.points + 1, discs.confidence)
    table = write_points(tmp_path / "points.csv", [discs, other])
    assert main(["points", "shift", str(table), "--study", "100206310", "--by", "1"]) == 0
    found = read_points(table)
    np.testing.assert_allclose(found["100206310"].points[1:], discs.points[:-1], atol=1e-4)
    np.testing.assert_allclose(found["2"].points, other.points, atol=1e-4)
    assert main(["points", "export", str(table), "--out", str(tmp_path / "markups")]) == 0
    assert main(["points", "import", str(tmp_path / "markups"), "--out", str(tmp_path / "back.csv")]) == 0
    back = read_points(tmp_path / "back.csv")
    for study_id, own in found.items():
        np.testing.assert_allclose(back[study_id].points, own.points, atol=1e-3)
    assert main(["points", "shift", str(table), "--study", "3", "--by", "1"]) == 1
    assert "holds no study '3'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def loaded(cohort):
    """The points of the train part as the loader of the competition's own table gives them."""
    folder = CompetitionFolder.open(cohort)
    return points_from_table(folder, folder.study_ids("train"), n_jobs=1, progress=False)[0]


def test_a_table_in_the_competitions_form_gives_what_the_loader_of_its_own_gives(cohort, loaded, tmp_path, capsys):
    table = cohort / "train_label_coordinates.csv"
    assert main(["points", "import", str(table), "--images", str(cohort), "--out", str(tmp_path / "points.csv")]) == 0
    found, compared = read_points(tmp_path / "points.csv"), 0
    for study_id, discs in loaded.items():
        seen = [not flag for flag in discs.flags]
        compared += sum(seen)
        np.testing.assert_allclose(found[study_id].points[seen], discs.points[seen], atol=1e-3)
        assert found[study_id].series_id == discs.series_id
    assert len(loaded) > 3 and compared > 15
    assert main(["points", "import", str(table), "--out", str(tmp_path / "points.csv")]) == 1
    assert "--images" in capsys.readouterr().err


def test_a_level_without_a_canal_row_gets_its_point_from_both_sides(cohort, loaded, tmp_path, caplog):
    table = pd.read_csv(cohort / "train_label_coordinates.csv", dtype=str)
    canal = table["condition"] == "Spinal Canal Stenosis"
    cut = table[~(canal & (table["level"] == "L5/S1"))]
    last = cut["study_id"].iloc[-1]
    cut = cut[(cut["study_id"] != last) | (cut["level"] == "L1/L2")]
    other = cut[cut["study_id"] == cut["study_id"].iloc[0]].assign(study_id="404")
    pd.concat([cut, other]).to_csv(tmp_path / "cleaned.csv", index=False)
    found = read_any_points(tmp_path / "cleaned.csv", cohort)
    told = [s for s, discs in found.items() if discs.flags[4] == "low_confidence" and not loaded[s].flags[4]]
    assert len(told) >= 3 and all(found[s].confidence[4] == BETWEEN_SIDES for s in told)
    assert max(np.linalg.norm(found[s].points[4] - loaded[s].points[4]) for s in told) < 12
    assert last not in found and f"study {last}: no disc points: " in caplog.text, "the others go on"
    assert "1 study not among those at hand" in caplog.text


def test_a_table_of_points_without_its_columns_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("study_id,series_id,condition,level,x,y\n1,2,Spinal Canal Stenosis,L1/L2,3,4\n")
    with pytest.raises(DataError, match=r"lacks the columns \['instance_number'\]"):
        read_any_points(tmp_path / "a.csv", tmp_path)


def test_predict_takes_such_a_table_too(cohort, loaded, tmp_path, monkeypatch, capsys):
    def only_noted(predictor, sources, out, *, discs, **options):
        noted.update(discs)
        raise DataError("enough")

    noted = {}
    monkeypatch.setattr("lumbar_utils.inference.run_inference", only_noted, raising=False)
    monkeypatch.setattr("lumbar_utils.inference.Predictor", lambda *args, **options: None, raising=False)
    monkeypatch.setattr("lumbar_utils.cli.inputs.classifier_folder", lambda given: tmp_path)
    table = ("--points", str(cohort / "train_label_coordinates.csv"), "--part", "train", "--jobs", "1")
    assert main(["predict", str(cohort), *table, "--out", str(tmp_path / "a.csv"), "--no-progress"]) == 1
    assert "enough" in capsys.readouterr().err and set(loaded) <= set(noted)
    assert {discs.source for discs in noted.values()} == {"table"}
