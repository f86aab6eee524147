"""Points corrected by hand, without a browser: the editor's state, and its buttons as a kernel would press them."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from test_viz_images import CANAL, scan

from lumbar_utils import viz
from lumbar_utils.errors import DataError
from lumbar_utils.labels import AXIAL_T2, SAGITTAL_T2
from lumbar_utils.localization import DiscPoints
from lumbar_utils.studies.study import Study
from lumbar_utils.viz.point_editor import EditorControls


@pytest.fixture
def discs():
    return DiscPoints("7", "0", CANAL, np.full(5, 0.6), ("low_confidence",) * 5)


@pytest.fixture(params=[False, True], ids=["", "scanned from the other side"])
def editor(request, discs):
    return viz.edit_points(Study("7", (scan(SAGITTAL_T2, reverse=request.param),)), discs)


def test_a_point_moves_by_millimetres_in_the_patient_and_is_sure_then(editor, discs):
    moved = editor.nudge(3, editor.slice_of(3), down=5, right=-1)
    # On a sagittal page down is towards the feet and left is to the front.
    np.testing.assert_allclose(moved.points[3] - CANAL[3], [0, -1, -5], atol=1e-9)
    np.testing.assert_array_equal(np.delete(moved.points, 3, 0), np.delete(CANAL, 3, 0))
    assert (moved.source, moved.flags[3], moved.confidence[3]) == ("corrected", "", 1.0)
    assert (moved.flags[2], moved.confidence[2]) == ("low_confidence", 0.6)
    assert editor.points is moved and discs.source == "localizer"


def test_a_click_places_the_point_under_it_on_the_slice(editor):
    target = CANAL[2] + np.array([0.0, 7.0, 4.0])
    index = 2
    pixel, distance = editor.draw(index).project(target)
    placed = editor.place_on_slice(2, index, pixel)
    normal = editor.pile.image(index).normal
    np.testing.assert_allclose(placed.points[2], target - distance * normal, atol=1e-6)
    np.testing.assert_allclose(editor.place_on_slice(2, 3).points[2, 1:], target[1:], atol=1e-6)
    assert editor.slice_of(2) == 3


def test_corrections_are_undone_one_by_one_down_to_the_points_given(editor, discs):
    first = editor.nudge(0, 5, down=1)
    renamed = editor.shift(1)
    np.testing.assert_array_equal(renamed.points[1:], first.points[:-1])
    assert renamed.flags[0] == "extrapolated"
    assert editor.undo() is first and editor.undo() is discs and editor.undo() is discs


def test_a_point_stays_inside_the_series_and_off_its_neighbours(editor):
    geometry = editor.pile.series.stacks[0].geometry
    placed = editor.place(0, [500.0, -500, 500])
    voxel = geometry.world_to_voxel(placed.points[0])
    last = np.array([len(geometry), *geometry.shape]) - 1
    assert np.all((np.abs(voxel) < 1e-9) | (np.abs(voxel - last) < 1e-9))
    for wrong, message in ((CANAL[2], "are the same place"), ([np.nan, 0, 0], "finite")):
        with pytest.raises(DataError, match=message):
            editor.place(1, wrong)
        assert editor.points is placed


def test_the_buttons_do_what_they_say_and_tell_what_cannot_be_done(editor):
    controls = EditorControls(editor)
    controls.levels.value = 1
    before = controls.picture.value
    controls.buttons["up 5 mm"].click()
    controls.buttons["right 1 mm"].click()
    np.testing.assert_allclose(editor.points.points[1] - CANAL[1], [0, 1, 5], atol=1e-9)
    assert controls.picture.value != before and "L2/L3" in controls.status.value
    controls.slider.value = 1
    controls.buttons["onto this slice"].click()
    assert abs(editor.pile.image(1).project(editor.points.points[1])[1]) < 1e-6
    for _ in range(3):
        controls.buttons["undo"].click()
    controls.buttons["all one level up"].click()
    np.testing.assert_array_equal(editor.points.points[:-1], CANAL[1:])
    controls.buttons["undo"].click()
    before = editor.place_on_slice(1, 5)
    controls.levels.value, controls.slider.value = 2, 5
    x, y = editor.draw(5).project(before.points[1])[0]
    controls.clicked({"dataX": x, "dataY": y})
    assert "are the same place" in controls.status.value and editor.points is before


def test_clicks_are_watched_where_ipyevents_is_installed(editor, monkeypatch):
    watched = {}

    def event(source, watched_events):
        return SimpleNamespace(on_dom_event=lambda handler: watched.update({"source": source, "handler": handler}))

    monkeypatch.setattr("lumbar_utils.viz.point_editor.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "ipyevents", SimpleNamespace(Event=event))
    controls = EditorControls(editor)
    x, y = editor.draw(controls.slider.value).project(CANAL[3] + [0, 3, 0])[0]
    watched["handler"]({"dataX": x, "dataY": y})
    assert watched["source"] is controls.picture
    np.testing.assert_allclose(editor.points.points[3, 1:], CANAL[3, 1:] + [3, 0], atol=1e-6)


def test_it_shows_a_picture_without_a_kernel_and_refuses_what_it_cannot_edit(editor, discs, monkeypatch):
    assert set(editor._repr_mimebundle_()) == {"text/plain", "image/png"}
    monkeypatch.setattr("lumbar_utils.viz.point_editor.widgets_work", lambda: True)
    assert "application/vnd.jupyter.widget-view+json" in editor._repr_mimebundle_()
    with pytest.raises(DataError, match="no sagittal series"):
        viz.edit_points(Study("7", (scan(AXIAL_T2),)), discs)
    with pytest.raises(DataError, match="points of study 7"):
        viz.edit_points(Study("8", (scan(SAGITTAL_T2),)), discs)
