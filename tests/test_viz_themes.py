"""Figures in both themes: words can be read, sizes fit a notebook, and letters follow the crops' real directions."""

from __future__ import annotations

import base64
import inspect
import io
from dataclasses import replace
from types import SimpleNamespace

import IPython
import matplotlib.pyplot as plt
import numpy as np
import pytest
from figures import text_of
from IPython.core.formatters import DisplayFormatter
from IPython.core.pylabtools import select_figure_formats
from matplotlib.colors import to_rgb
from PIL import Image
from planted_crops import planted_study, study_crops
from test_viz_images import CANAL, scan

from lumbar_utils import viz
from lumbar_utils.crops.extraction import CropSpec
from lumbar_utils.errors import DataError
from lumbar_utils.explain.attribution import StudyAttribution
from lumbar_utils.labels import AXIAL_T2, N_TARGETS, SAGITTAL_T2, VIEWS
from lumbar_utils.localization import DiscPoints
from lumbar_utils.studies.study import Study
from lumbar_utils.viz.crops import DARK_INK
from lumbar_utils.viz.style import SEVERITY_COLORS, Picture

READABLE = 4.5
"""Contrast of text by WCAG 2.2, 1.4.3."""
MAX_BYTES = 300_000
"""Of a figure of noise, base64 aside: six of them leave a notebook under 3 MB."""
WIDEST = 900
THEMES = ("dark", "light")


def luminance(color) -> float:
    c = np.array(to_rgb(color))
    c = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return float(c @ (0.2126, 0.7152, 0.0722))


def contrast(one, other) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.fixture(scope="module")
def crops():
    return planted_study("7", np.arange(N_TARGETS) % 3, np.random.default_rng(0))


@pytest.fixture(scope="module")
def attribution(crops):
    rng = np.random.default_rng(1)
    maps = {view: rng.random((N_TARGETS, *crops.spec.shapes[view])).astype(np.float32) for view in VIEWS}
    return StudyAttribution("7", maps, np.zeros(N_TARGETS))


def figures(crops, attribution, **options):
    known = {"probabilities": np.tile([0.2, 0.3, 0.5], (25, 1)), "labels": np.arange(25) % 4 - 1, "synthetic": True}
    return {
        "crops": viz.show_crops(crops, **known, **options),
        "slices": viz.show_crop_slices(crops, AXIAL_T2, synthetic=True, **options),
        "recess": viz.show_attribution(crops, attribution, 3, **known, **options),
        "attribution": viz.show_attribution(crops, attribution, "spinal_canal_stenosis", **known, **options),
    }


@pytest.mark.parametrize("theme", THEMES)
def test_all_words_can_be_read_on_their_ground(crops, attribution, theme):
    assert min(contrast(DARK_INK, shade) for shade in SEVERITY_COLORS) > READABLE
    for name, figure in figures(crops, attribution, theme=theme).items():
        assert (luminance(figure.get_facecolor()) > 0.5) == (theme == "light")
        images = [axes for axes in figure.findobj(plt.Axes) if axes.images]
        on_images = [text for axes in images for text in axes.texts]
        assert on_images, name
        for text in on_images:  # whatever lies below, a dark rim parts it from a light word
            assert text.get_path_effects() and luminance(text.get_color()) > 0.3, f"{name}: {text.get_text()!r}"
        beside = [text for text in figure.texts if text.get_gid() != "mark" and text.get_text()]
        for axes in set(figure.axes) - set(images):
            beside += [text for text in axes.get_yticklabels() if text.get_text()]
        assert len(beside) > 5, name
        page = figure.bbox
        for text in figure.texts:
            place = text.get_window_extent()
            assert page.x0 <= place.x0 and place.x1 <= page.x1, f"{name}: {text.get_text()!r} leaves the figure"
        for text in beside:
            box = text.get_bbox_patch()
            ground = box.get_facecolor() if box else figure.get_facecolor()
            ratio = contrast(text.get_color(), ground)
            assert ratio >= READABLE, f"{name}, {theme}: {text.get_text()!r} has a contrast of {ratio:.1f}"


def test_one_context_sets_the_theme_of_all_figures_that_name_none(crops):
    dark = viz.show_crops(crops).get_facecolor()
    with viz.use_theme("light"):
        assert luminance(viz.show_crops(crops).get_facecolor()) > 0.9
        assert viz.show_crops(crops, theme="dark").get_facecolor() == dark
    assert viz.show_crops(crops).get_facecolor() == dark
    with pytest.raises(DataError, match="unknown theme 'sepia'"), viz.use_theme("sepia"):
        pass
    with pytest.raises(DataError, match="unknown theme 'sepia'"):
        viz.show_crops(crops, theme="sepia")


@pytest.mark.parametrize("name", sorted({n for n in viz.__all__ if n.startswith("show_")} - {"show_own_errors"}))
def test_help_and_checkers_see_the_arguments_that_all_figures_have(name):
    assert {"theme", "synthetic"} <= set(inspect.signature(getattr(viz, name)).parameters)


def test_figures_fit_a_notebook_cell():
    fine = CropSpec()
    rng = np.random.default_rng(0)
    # Noise of a quarter of the range, smoothed over two pixels, is more than any scan has.
    noise = {view: np.clip(0.5 + 0.25 * rng.normal(size=(5, *fine.shapes[view])), 0, 1) for view in VIEWS}
    smooth = {view: (x + np.roll(x, 1, -1) + np.roll(x, 1, -2) + np.roll(x, 1, -3)) / 4 for view, x in noise.items()}
    crops = study_crops("7", smooth, spec=fine)
    maps = {view: rng.random((N_TARGETS, *fine.shapes[view])).astype(np.float32) ** 4 for view in VIEWS}
    attribution = StudyAttribution("7", maps, np.zeros(N_TARGETS))
    for name, figure in figures(crops, attribution).items():
        if name == "slices":
            continue  # forty slices of noise are for a closer look
        bundle = figure._repr_mimebundle_()
        data = base64.b64decode(bundle["image/png"])
        image = Image.open(io.BytesIO(data))
        assert image.size[0] <= WIDEST, f"{name}: {image.size}"
        assert len(data) < MAX_BYTES, f"{name}: {len(data)} bytes"


def test_a_notebook_shows_pictures_as_they_print_themselves(crops, monkeypatch):
    shell = SimpleNamespace(kernel=object(), display_formatter=DisplayFormatter())
    select_figure_formats(shell, {"png"})  # what `%matplotlib inline` does, and any import of pyplot in a kernel
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    figure = viz.show_crops(crops)
    bundle, _ = shell.display_formatter.format(figure)
    assert bundle["image/png"] == figure.png()
    size = Image.open(io.BytesIO(bundle["image/png"])).size
    assert size == tuple((figure.get_size_inches() * figure.dpi).astype(int)) and size[0] <= WIDEST


def test_letters_follow_the_directions_in_which_a_crop_was_cut(crops):
    turned = {view: crops.axes[view].copy() for view in VIEWS}
    turned[AXIAL_T2][:, 2] *= -1  # as from a scan whose crops run from left to right
    tilt = np.radians(30)
    turned[SAGITTAL_T2][:, 1] = (0, -np.sin(tilt), -np.cos(tilt))
    turned[SAGITTAL_T2][:, 2] = (0, np.cos(tilt), -np.sin(tilt))
    shown = text_of(viz.show_crops(replace(crops, axes=turned))).split("\n")
    usual = text_of(viz.show_crops(crops)).split("\n")
    assert "SP" in shown and "IA" in shown and "SP" not in usual
    first = [words.index("L") < words.index("R") for words in (shown, usual)]
    assert first == [True, False]


def test_the_map_chooses_the_slice_and_the_figure_says_where_it_lies(crops, attribution):
    maps = {view: np.zeros_like(attribution.maps[view]) for view in VIEWS}
    maps[SAGITTAL_T2][0, 7] = 1  # canal at L1/L2, the slice farthest to the left: 30 mm in 8 slices
    figure = viz.show_attribution(crops, StudyAttribution("7", maps, np.zeros(25)), 0)
    assert isinstance(figure, Picture)
    words = text_of(figure)
    assert "13 mm left" in words
    assert words.count("nothing here") == 14


def test_a_scale_bar_stands_in_every_row_though_its_first_level_is_not_there():
    images = {view: np.full((5, 8 if view != VIEWS[2] else 16, 16, 16), 0.5) for view in VIEWS}
    covered = {view: np.ones(images[view].shape, bool) for view in VIEWS}
    covered[AXIAL_T2][:2] = False
    figure = viz.show_crops(study_crops("7", images, covered))
    assert text_of(figure).count("20 mm") == 4
    assert text_of(figure).count("not in the scan") == 2


def test_a_level_that_no_axial_slice_reaches_is_said_to_be_absent():
    study = Study("7", (scan(SAGITTAL_T2), scan(AXIAL_T2, series_id="1")))
    near = viz.show_study(study, discs=DiscPoints("7", "0", CANAL, np.ones(5), source="truth"))
    far = np.array(CANAL)
    far[0, 2] = 105  # the axial slices end at 80
    figure = viz.show_study(study, discs=DiscPoints("7", "0", far, np.ones(5), source="truth"))
    assert "L1/L2\nnot in this study" in text_of(figure) and "L1/L2\nnot in this study" not in text_of(near)
    assert figure.get_size_inches()[0] * figure.dpi <= WIDEST
