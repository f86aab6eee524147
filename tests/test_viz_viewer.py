"""The viewer without a browser: what its pictures show lies where it lies in the patient, and sliders move it."""

from __future__ import annotations

import base64
import io
import time
from types import SimpleNamespace

import IPython
import matplotlib.pyplot as plt
import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib.figure import Figure
from PIL import Image, ImageColor
from test_viz_images import CANAL, SMALL, scan

from lumbar_utils import viz
from lumbar_utils.crops.extraction import extract_crops
from lumbar_utils.dicom.series import Series
from lumbar_utils.errors import DataError
from lumbar_utils.geometry import INFERIOR, LEFT, POSTERIOR, OrientedGrid
from lumbar_utils.labels import AXIAL_T2, LEVELS, SAGITTAL_T1, SAGITTAL_T2, VIEWS
from lumbar_utils.localization import DiscPoints
from lumbar_utils.studies.study import Study
from lumbar_utils.viz import browser
from lumbar_utils.viz.browser import StudyViewer
from lumbar_utils.viz.planes import ImagePlane
from lumbar_utils.viz.scene import AXIAL, LINE_COLOR, SAGITTAL, Raster, Scene
from lumbar_utils.viz.style import LEVEL_COLORS

STEP_MS = 50


@pytest.fixture(scope="module")
def study():
    return Study("7", tuple(scan(view, series_id=str(i)) for i, view in enumerate(VIEWS)))


@pytest.fixture(scope="module")
def discs():
    return DiscPoints("7", "0", CANAL, np.ones(5), source="truth")


@pytest.fixture(scope="module")
def crops(study, discs):
    return extract_crops(study, discs, SMALL)


@pytest.fixture
def viewer(study, discs):
    return StudyViewer(Scene(study, discs))


def picture(viewer: StudyViewer, plane: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(viewer.pictures[plane].value)).convert("RGB")).astype(int)


def pixels_of(image: np.ndarray, color: str) -> np.ndarray:
    """(x, y) of all pixels of exactly that colour."""
    return np.argwhere((image == ImageColor.getrgb(color)).all(axis=-1))[:, ::-1]


@pytest.mark.parametrize("reverse", [False, True])
def test_the_axial_slice_is_a_line_at_its_height_on_the_sagittal_and_moves_with_the_slider(discs, reverse):
    study = Study("7", tuple(scan(view, reverse=reverse, series_id=str(i)) for i, view in enumerate(VIEWS)))
    viewer = StudyViewer(Scene(study, discs))
    viewer.marks.value = False
    for index in (6, 10, 15):
        viewer.sliders[AXIAL].value = index
        # The planted axial series has a slice every 8 mm from z = -80; the viewer counts from the head.
        z = 80 - 8 * index
        found = pixels_of(picture(viewer, SAGITTAL), LINE_COLOR)
        # Sagittal images start at z = 110 with pixels of 2 mm, drawn at `scale` pixels a mm.
        scale = viewer.scene.size[0] / (110 * 2.0)
        assert len(found) > 100, "the line crosses the picture"
        assert np.abs(found[:, 1] - ((110 - z + 1) * scale - 0.5)).max() <= 1


def test_the_sagittal_slice_is_a_line_at_its_place_on_the_axial(viewer):
    viewer.marks.value = False
    for index in (3, 5, 8):
        viewer.sliders[SAGITTAL].value = index
        x = -38 + 8 * index  # the patient's right comes first
        found = pixels_of(picture(viewer, AXIAL), LINE_COLOR)
        scale = viewer.scene.size[1] / (70 * 2.0)
        assert len(found) > 100
        assert np.abs(found[:, 0] - ((x + 68 + 1) * scale - 0.5)).max() <= 1


def test_level_buttons_jump_to_the_disc_on_both_sides_with_one_drawing(viewer, monkeypatch):
    drawings = []
    draw = viewer.scene.draw
    monkeypatch.setattr(viewer.scene, "draw", lambda *a, **k: drawings.append(a[0]) or draw(*a, **k))
    for level, button in enumerate(viewer.buttons):
        assert button.description == viz.images.level_title(LEVELS[level])
        drawings.clear()
        button.click()
        assert sorted(drawings) == [AXIAL, SAGITTAL], "once each"
        assert abs(viewer.shown(SAGITTAL).project(CANAL[level])[1]) <= 4
        assert abs(viewer.shown(AXIAL).project(CANAL[level])[1]) <= 4


def test_a_disc_point_is_drawn_on_the_bright_ball_that_was_planted(viewer):
    viewer.jump(2)
    for plane in (SAGITTAL, AXIAL):
        at = pixels_of(picture(viewer, plane), LEVEL_COLORS[2]).astype(float)
        place, _ = viewer.scene.draw(plane, 0, viewer.sliders[plane].value).project(CANAL[2])
        near = at[np.hypot(*(at - place).T) < 6]
        assert len(near) > 20 and np.hypot(*(near.mean(axis=0) - place)) < 1.5
        viewer.marks.value = False
        plain = picture(viewer, plane).mean(axis=-1)
        x, y = place.round().astype(int)
        if plane == AXIAL:  # the canal lies within a pixel of the sagittal slice's line, so only look beside it
            x += 4
        assert plain[y - 2 : y + 3, x - 2 : x + 3].mean() > 200
        viewer.marks.value = True


def test_crop_boxes_are_drawn_where_the_crops_were_cut(study, discs, crops):
    scene = Scene(study, discs, crops)
    raster = scene.draw(SAGITTAL, 0, scene.index_of_level(SAGITTAL, 0, 2))
    corners = raster.pixels(raster.plane.cut_of(crops.grid(SAGITTAL_T2, 2)))
    size = np.ptp(corners, axis=0) / raster.scale
    assert size == pytest.approx((70, 70), abs=1e-6)
    middle = raster.project(CANAL[2])[0]
    assert np.allclose(corners.mean(axis=0), middle, atol=1e-6)
    left = pixels_of(np.asarray(raster.image), LEVEL_COLORS[2])
    on_edge = left[np.abs(left[:, 0] - corners[:, 0].min()) <= 1]
    assert len(on_edge) > 50


def test_a_plane_cuts_a_turned_box_in_all_its_shapes():
    plane = ImagePlane(np.zeros((9, 9)), np.array([0.0, -40, 40]), INFERIOR, POSTERIOR, (10.0, 10.0))
    straight = OrientedGrid([0, 0, 0], [LEFT, INFERIOR, POSTERIOR], (20, 30, 40), (2, 2, 2))
    assert np.ptp(plane.cut_of(straight), axis=0) == pytest.approx((40, 30))
    assert plane.cut_of(OrientedGrid([11, 0, 0], straight.axes, (20, 30, 40), (2, 2, 2))) is None
    turn = np.array([[1, 1, 0], [-1, 1, 0], [0, 0, np.sqrt(2)]]) / np.sqrt(2)
    # A cube of side 20 turned by 45 degrees about z, cut through its middle: the diagonal across, the side along.
    assert np.ptp(plane.cut_of(OrientedGrid([0, 0, 0], turn, (20, 20, 20), (2, 2, 2))), axis=0) == pytest.approx(
        (20 * np.sqrt(2), 20)
    )


def test_window_and_level_do_what_they_do_in_a_reading_room(viewer):
    viewer.marks.value = False
    before = picture(viewer, SAGITTAL)
    viewer.level.value = 90
    assert picture(viewer, SAGITTAL).mean() < before.mean(), "a higher level is darker"
    viewer.level.value = 50
    viewer.window.value = 40
    assert picture(viewer, SAGITTAL).std() > before.std(), "a narrower window has more contrast"


def test_choosing_another_series_stays_at_the_place(viewer):
    viewer.sliders[SAGITTAL].value = 3
    before = viewer.shown(SAGITTAL).origin[0]
    assert [SAGITTAL_T2 in name for name, _ in viewer.menus[SAGITTAL].options] == [True, False]
    viewer.menus[SAGITTAL].value = 1
    assert SAGITTAL_T1 in viewer.menus[SAGITTAL].options[1][0]
    assert abs(viewer.shown(SAGITTAL).origin[0] - before) <= 4


def test_several_axial_stacks_scroll_as_one_pile_from_head_to_feet(discs):
    whole = scan(AXIAL_T2).stacks[0]

    def part(chosen):
        geometry = type(whole.geometry)(
            whole.geometry.positions[chosen],
            whole.geometry.row_cosine,
            whole.geometry.column_cosine,
            whole.geometry.spacing,
            whole.geometry.shape,
        )
        numbers = tuple(np.array(whole.instance_numbers)[chosen].tolist())
        return type(whole)(whole.pixels[chosen], geometry, numbers, tuple(map(str, numbers)))

    series = Series("7", "9", AXIAL_T2, (part(slice(12, 21)), part(slice(0, 12))))
    viewer = StudyViewer(Scene(Study("7", (series,)), discs))
    pile = viewer.scene.piles[AXIAL][0]
    heights = [pile.image(i).origin[2] for i in range(len(pile))]
    assert heights == sorted(heights, reverse=True) and len(heights) == 21
    viewer.jump(4)
    assert abs(viewer.shown(AXIAL).project(CANAL[4])[1]) <= 4
    assert SAGITTAL not in viewer.pictures


def test_a_step_takes_less_than_fifty_milliseconds(study, discs, crops):
    rng = np.random.default_rng(0)
    large = []
    for series in study.series:
        stack = series.stacks[0]
        pixels = rng.normal(300, 80, (len(stack), 512, 512)).astype(np.float32)
        geometry = type(stack.geometry)(
            stack.geometry.positions, stack.geometry.row_cosine, stack.geometry.column_cosine, (0.5, 0.4), (512, 512)
        )
        stack = type(stack)(pixels, geometry, stack.instance_numbers, stack.files)
        large.append(Series("7", series.series_id, series.view, (stack,)))
    viewer = StudyViewer(Scene(Study("7", tuple(large)), discs, crops))
    steps = []
    for index in range(10):
        start = time.process_time()  # not the clock on the wall: other work on the machine is not the viewer's
        viewer.sliders[AXIAL].value = index
        steps.append(1000 * (time.process_time() - start))
    assert np.median(steps) < STEP_MS, f"ms a step, both pictures: {np.round(steps)}"


def test_without_a_kernel_or_ipywidgets_a_figure_of_the_key_slices_comes_instead(study, discs, monkeypatch):
    assert not browser.widgets_work(), "no kernel runs the tests"
    figure = viz.browse(study, discs, synthetic=True)
    assert isinstance(figure, Figure)
    assert not plt.get_fignums()

    shell = SimpleNamespace(kernel=object(), display_formatter=DisplayFormatter())
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    assert isinstance(viz.browse(study, discs), StudyViewer)
    monkeypatch.setattr(browser, "find_spec", lambda name: None)
    assert isinstance(viz.browse(study, discs), Figure)


def test_a_notebook_that_is_only_read_shows_the_key_slices(viewer):
    bundle = viewer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    shown = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert shown.format == "PNG" and shown.size[0] > 600


def test_a_study_without_series_to_show_is_refused():
    with pytest.raises(DataError, match="no sagittal and no axial series"):
        Scene(Study("7", ()))


def test_pixels_and_millimetres_agree_on_a_raster():
    image = np.zeros((40, 20), dtype=np.float32)
    image[30, 5] = 1
    plane = ImagePlane(image, np.zeros(3), INFERIOR, POSTERIOR, (1.0, 2.0))
    raster = Raster(plane, (400, 400), (0, 1))
    assert raster.image.size == (400, 400)
    bright = np.asarray(raster.image)[..., 0].astype(float)
    rows, columns = np.indices(bright.shape)
    centroid = np.array([(columns * bright).sum(), (rows * bright).sum()]) / bright.sum()
    place, distance = raster.project(np.array([0, 10.0, -30.0]))
    assert distance == 0 and np.abs(centroid - place).max() < 0.1
