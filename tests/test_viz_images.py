"""Pictures: what is drawn lies where it lies in the patient, and every figure says what a reader must know."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from figures import rendered, text_of

from lumbar_utils import viz
from lumbar_utils.crops.extraction import CropSpec, extract_crops
from lumbar_utils.dicom.series import Series, Stack
from lumbar_utils.errors import DataError
from lumbar_utils.geometry import INFERIOR, LEFT, POSTERIOR, OrientedGrid, StackGeometry
from lumbar_utils.labels import AXIAL_T2, CONDITIONS, LEVELS, N_LEVELS, N_TARGETS, SAGITTAL_T1, SAGITTAL_T2, VIEWS
from lumbar_utils.localization import DiscPoints
from lumbar_utils.metrics.score import competition_score
from lumbar_utils.studies.study import Study
from lumbar_utils.viz.planes import ImagePlane, direction_letters

CANAL = np.array([[2.0, 10 + 3 * np.cos(i), 60 - 30.0 * i] for i in range(N_LEVELS)])
SMALL = CropSpec(shapes={SAGITTAL_T2: (4, 20, 20), AXIAL_T2: (4, 20, 20), SAGITTAL_T1: (8, 20, 20)})


def blobs(points):
    """Brightness of a patient with a bright ball at every canal point, LPS mm (..., 3)."""
    squared = ((points[..., None, :] - CANAL) ** 2).sum(-1)
    return 50 + points[..., 1] / 5 + 1000 * np.exp(-squared / (2 * 6.0**2)).sum(-1)


def scan(view, *, reverse=False, series_id="1"):
    """A coarse series of the patient above; `reverse` scans from the other side with rows from back to front."""
    if view == AXIAL_T2:
        row, column, shape, n, step = LEFT, POSTERIOR, (60, 70), 21, np.array([0, 0, 8.0])
        corner = np.array([-68.0, -50, -80])
    else:
        row, column, shape, n, step = POSTERIOR, INFERIOR, (110, 60), 11, np.array([8.0, 0, 0])
        corner = np.array([-38.0, -50, 110])
    if reverse:
        corner, row, step = corner + row * 2 * (shape[1] - 1), -row, -step
        corner = corner - step * (n - 1)
    positions = corner + np.arange(n)[:, None] * step
    positions = positions[np.argsort(positions @ np.cross(row, column))]
    geometry = StackGeometry(positions, row, column, (2.0, 2.0), shape)
    index = np.stack(np.meshgrid(*(np.arange(k) for k in (n, *shape)), indexing="ij"), -1)
    pixels = blobs(geometry.voxel_to_world(index)).astype(np.float32)
    stack = Stack(pixels, geometry, tuple(range(1, n + 1)), tuple(f"{i}.dcm" for i in range(1, n + 1)))
    return Series(study_id="7", series_id=series_id, view=view, stacks=(stack,))


@pytest.fixture(scope="module")
def study():
    return Study("7", tuple(scan(view, series_id=str(i)) for i, view in enumerate(VIEWS)))


@pytest.fixture(scope="module")
def discs():
    return DiscPoints("7", "0", CANAL, np.ones(N_LEVELS), ("", "", "", "", "interpolated"), "truth")


@pytest.fixture(scope="module")
def crops(study, discs):
    return extract_crops(study, discs, SMALL)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("view", VIEWS)
def test_a_slice_is_turned_to_the_display_convention_with_its_points(view, reverse):
    stack = scan(view, reverse=reverse).stacks[0]
    index = int(stack.geometry.nearest_slice(CANAL[2]))
    plane = ImagePlane.from_slice(stack.pixels[index], stack.geometry[index])
    letters = plane.letters()
    if view == AXIAL_T2:
        assert letters == {"left": "R", "right": "L", "top": "A", "bottom": "P"}
    else:
        assert letters == {"left": "A", "right": "P", "top": "S", "bottom": "I"}
    (x, y), distance = plane.project(CANAL[2])
    assert abs(distance) <= 4
    rows, columns = np.indices(plane.image.shape)
    near = np.hypot(rows * plane.spacing[0] - y, columns * plane.spacing[1] - x) < 14
    weight = np.where(near, plane.image - 150, 0).clip(0)
    centroid = np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()
    assert np.hypot(*(centroid * plane.spacing[::-1] - (x, y))) < 0.5


def test_both_ways_of_scanning_give_the_same_picture():
    planes = []
    for reverse in (False, True):
        stack = scan(SAGITTAL_T2, reverse=reverse).stacks[0]
        index = int(stack.geometry.nearest_slice(CANAL[2]))
        planes.append(ImagePlane.from_slice(stack.pixels[index], stack.geometry[index]))
    assert np.allclose(planes[0].image, planes[1].image, atol=0.1)
    assert np.allclose(planes[0].origin, planes[1].origin)


def test_crops_are_displayed_as_they_are(crops):
    sagittal = viz.crop_plane(crops, SAGITTAL_T2, 2)
    axial = viz.crop_plane(crops, AXIAL_T2, 2)
    assert sagittal.letters() == {"left": "A", "right": "P", "top": "S", "bottom": "I"}
    assert axial.letters() == {"left": "R", "right": "L", "top": "A", "bottom": "P"}
    assert sagittal.size == pytest.approx((70, 70))
    middle, _ = sagittal.project(CANAL[2])
    assert np.allclose(middle, (sagittal.size[0] - sagittal.spacing[0]) / 2, atol=1e-6)


def test_an_offset_picks_the_slice_on_that_side(crops):
    left = viz.crop_plane(crops, SAGITTAL_T1, 0, 17.0)
    right = viz.crop_plane(crops, SAGITTAL_T1, 0, -17.0)
    assert left.origin[0] > CANAL[0, 0] + 10
    assert right.origin[0] < CANAL[0, 0] - 10


def test_a_cut_lies_where_two_planes_meet():
    one = ImagePlane.from_grid(
        np.zeros((3, 9, 9)), OrientedGrid([0, 0, 0], [LEFT, INFERIOR, POSTERIOR], (3, 90, 90), (3, 9, 9)), 1
    )
    other = ImagePlane.from_grid(
        np.zeros((3, 9, 9)), OrientedGrid([0, 0, 20], [INFERIOR, POSTERIOR, LEFT], (3, 40, 40), (3, 9, 9)), 1
    )
    cut = one.cut_by(other)
    height = one.project(np.array([0.0, 0, 20]))[0][1]
    assert np.allclose(cut[:, 1], height)
    assert one.cut_by(one) is None


@pytest.mark.parametrize(
    ("direction", "letters"), [([0, 0, 1.0], "S"), ([0.6, -0.8, 0], "AL"), ([0, -0.97, 0.24], "A")]
)
def test_oblique_directions_get_two_letters(direction, letters):
    assert direction_letters(np.array(direction)) == letters


def test_images_name_levels_and_say_synthetic(study, discs, crops):
    points = pd.DataFrame({"condition": CONDITIONS[0], "level": list(LEVELS)}).assign(
        x=CANAL[:, 0], y=CANAL[:, 1], z=CANAL[:, 2]
    )
    figures = [
        viz.show_series(study.series[0], synthetic=True),
        viz.show_study(study, points=points, discs=discs, synthetic=True),
        viz.show_disc_points(study, discs, truth=CANAL + 1, crops=crops, synthetic=True),
        viz.show_localizations([study, study], [discs, discs], truths=[CANAL, None], synthetic=True),
        viz.show_crops(crops, probabilities=np.full((25, 3), 1 / 3), labels=np.arange(25) % 4 - 1, synthetic=True),
        viz.show_crop_slices(crops, SAGITTAL_T1, synthetic=True),
    ]
    for figure in figures:
        assert len(rendered(figure)) > 5000
        assert "synthetic" in text_of(figure)
        assert "mm" in text_of(figure)
    for figure in figures[1:]:
        assert "L5/S1" in text_of(figure)
    assert "1.7" in text_of(figures[2])
    assert "synthetic" not in text_of(viz.show_series(study.series[0]))
    assert not plt.get_fignums(), "figures stay open"


def test_what_is_not_there_is_said(discs):
    study = Study("7", (scan(SAGITTAL_T2),))
    assert "not in this study" in text_of(viz.show_study(study, discs=discs))
    figure = viz.show_crops(extract_crops(study, discs, SMALL))
    assert "no series" in text_of(figure)
    rendered(figure)


def test_charts_draw_in_both_themes_and_survive_thin_data():
    rng = np.random.default_rng(0)
    labels = rng.choice([-1, 0, 1, 2], (30, N_TARGETS))
    probabilities = rng.dirichlet([3, 1, 1], (30, N_TARGETS))
    history = pd.DataFrame({"epoch": [1, 2], "train_loss": [1.0, 0.8], "val_score": [0.9, 0.7]})
    series = pd.DataFrame(
        {
            "view": [AXIAL_T2],
            "slices": [1],
            "columns": [256],
            "pixel_mm": [0.5],
            "step_mm": [np.nan],
            "order": ["single"],
        }
    )
    score = competition_score(labels, probabilities)
    for theme in ("light", "dark"):
        for figure in (
            viz.show_label_frequencies(labels, reference=np.ones((25, 2)), synthetic=True, theme=theme),
            viz.show_co_occurrence(np.eye(25), synthetic=True, theme=theme),
            viz.show_missing_labels(labels, synthetic=True, theme=theme),
            viz.show_series_statistics(series, synthetic=True, theme=theme),
            viz.show_slice_order(series, synthetic=True, theme=theme),
            viz.show_counts({"corner": 3}, title="annotation errors", synthetic=True, theme=theme),
            viz.show_localizer_error(np.abs(rng.normal(size=(3, 5))), synthetic=True, theme=theme),
            viz.show_training_curves(history, references={"weighted prior": 0.8}, synthetic=True, theme=theme),
            viz.show_confusion(labels, probabilities, synthetic=True, theme=theme),
            viz.show_reliability(labels, probabilities, synthetic=True, theme=theme),
            viz.show_scores(
                {"uniform": score, "this network": score}, ours="this network", synthetic=True, theme=theme
            ),
        ):
            assert len(rendered(figure)) > 1500
            assert "synthetic" in text_of(figure)
    with pytest.raises(DataError, match="unknown theme 'sepia'"):
        viz.show_counts({"corner": 3}, theme="sepia")


def test_wrong_shapes_are_refused_with_what_came(crops):
    with pytest.raises(DataError, match=r"probabilities must have shape \(25, 3\), got \(3, 25\)"):
        viz.show_crops(crops, probabilities=np.ones((3, 25)))
    with pytest.raises(DataError, match="unknown view 'coronal'"):
        viz.show_crop_slices(crops, "coronal")
    with pytest.raises(DataError, match="no score"):
        viz.show_scores({})


def test_a_figure_is_saved_whole_and_given_back(tmp_path, crops):
    figure = viz.show_crops(crops)
    assert viz.save(figure, tmp_path / "new" / "crops.png") is figure
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["crops.png"]
