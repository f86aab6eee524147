"""Points renamed by a level, and taken to and from 3D Slicer."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest

from lumbar_utils.cli import main
from lumbar_utils.errors import DataError
from lumbar_utils.labels import N_LEVELS
from lumbar_utils.localization import (
    DiscPoints,
    read_any_points,
    read_markups,
    read_points,
    shift_levels,
    write_markups,
    write_points,
)

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
