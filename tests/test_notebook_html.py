"""What objects show of themselves in a notebook: escaped, small, and pictures the right way up."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from planted_crops import POINTS, planted_cohort

from lumbar_utils.crops.extraction import StudyCrops
from lumbar_utils.dicom.series import Series, Stack
from lumbar_utils.errors import Issue
from lumbar_utils.geometry import ANTERIOR, INFERIOR, LEFT, POSTERIOR, SUPERIOR, StackGeometry
from lumbar_utils.inference.submission import StudyPrediction
from lumbar_utils.labels import SAGITTAL_T2
from lumbar_utils.localization import DiscPoints
from lumbar_utils.notebook_html import data_uri, stack_thumbnail, to_grey
from lumbar_utils.studies.data import Study

HOSTILE = "<img src=x onerror=alert(1)>&\"'"
MAX_BYTES = 60_000


def picture(uri: str) -> np.ndarray:
    image = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    return np.asarray(image if image.mode == "RGBA" else image.convert("L"))


def sagittal_stack(row, column) -> Stack:
    """Five slices of 60 x 40 mm whose upper front quarter, as a patient stands, is bright; scanned in any direction."""
    n, shape, spacing = 5, (60, 40), (1.0, 1.0)
    if abs(row @ SUPERIOR) > 0.5:
        shape = shape[::-1]
    normal = np.cross(row, column)
    positions = np.stack([4.0 * i * normal - row * shape[1] / 2 - column * shape[0] / 2 for i in range(n)])
    geometry = StackGeometry(positions, row, column, spacing, shape)
    places = geometry.voxel_to_world(np.stack(np.indices((n, *shape)), axis=-1).astype(float))
    bright = (places @ SUPERIOR > 0) & (places @ ANTERIOR > 0)
    return Stack(np.where(bright, 900.0, 100.0).astype(np.float32), geometry, tuple(range(n)), ("a",) * n)


@pytest.mark.parametrize(
    ("row", "column"),
    [(POSTERIOR, INFERIOR), (ANTERIOR, INFERIOR), (POSTERIOR, SUPERIOR), (INFERIOR, POSTERIOR), (SUPERIOR, ANTERIOR)],
)
def test_a_thumbnail_is_the_right_way_up_however_it_was_scanned(row, column):
    stack = sagittal_stack(np.asarray(row, float), np.asarray(column, float))
    image = picture(stack_thumbnail(stack.pixels, stack.geometry, (LEFT, INFERIOR, POSTERIOR)))
    rows, columns = image.shape
    assert max(image.shape) == 144 and rows > columns
    quarters = image[: rows // 2 - 4], image[rows // 2 + 4 :]
    upper, lower = ((q[:, : columns // 2 - 4], q[:, columns // 2 + 4 :]) for q in quarters)
    assert upper[0].min() > 200 and max(upper[1].max(), *(part.max() for part in lower)) < 60


def test_a_grey_image_survives_the_way_to_text():
    image = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    assert np.abs(picture(data_uri(image, quality=95)).astype(int) - image).max() < 16


def test_intensities_that_are_no_numbers_become_black():
    assert to_grey(np.array([[np.nan, 1.0], [np.inf, 2.0]]), (1.0, 2.0)).tolist() == [[0, 0], [0, 255]]


def shown_objects(words: str) -> dict:
    crops = planted_cohort(1)[0]["1000"]
    values = {name: getattr(crops, name) for name in ("spec", "images", "covered", "axes", "sources", "points")}
    stack = sagittal_stack(np.asarray(POSTERIOR, float), np.asarray(INFERIOR, float))
    series = Series(words, words, SAGITTAL_T2, (stack,), words, {}, (words,))
    discs = DiscPoints(words, words, POINTS, np.ones(5), (words,) * 5)
    p = np.random.default_rng(0).dirichlet((1, 1, 1), 25)
    return {
        "study": Study(words, (series,), (words,)),
        "discs": discs,
        "crops": StudyCrops(words, **values, issues=(Issue("note", words),)),
        "prediction": StudyPrediction(words, p, discs, (), (words,), fallback=True, synthetic_only=True),
    }


@pytest.mark.parametrize("name", ["study", "discs", "crops", "prediction"])
def test_objects_show_themselves_escaped_and_small(name):
    html = shown_objects(HOSTILE)[name]._repr_html_()
    assert "<img src=x" not in html and "&lt;img src=x" in html
    assert len(html) < MAX_BYTES
    assert all(re.search(r'alt="[^"]+"', tag) for tag in re.findall(r"<img [^>]*>", html))
    assert html.count("<img ") == {"study": 1, "crops": 1}.get(name, 0)
    assert "color:#" not in html and "background:#" not in html  # the notebook's own colours, light or dark


def test_a_prediction_shows_its_most_probable_grades():
    p = np.tile([0.7, 0.2, 0.1], (25, 1))
    p[3] = [0.05, 0.15, 0.8]  # spinal canal at L4/L5
    html = StudyPrediction("7", p)._repr_html_()
    assert html.count("Severe 80%") == 1 and html.count("Normal/Mild 70%") == 24
    row = html[html.index("L4/L5") : html.index("L5/S1")]
    assert "Severe 80%" in row and row.index("Severe 80%") < row.index("Normal/Mild 70%")


def test_a_class_prior_does_not_look_like_grades():
    p = np.tile([0.2, 0.3, 0.5], (25, 1))
    html = StudyPrediction("7", p, fallback=True)._repr_html_()
    assert html.count("20% / 30% / 50%") == 25
    assert "Severe" not in html and "most probable grades" not in html and "not predicted" in html


def test_objects_with_nothing_in_them_show_that():
    assert "study 7" in Study("7", ())._repr_html_()
