"""The gallery: what one sees of a study, with the network of the demo run (`make run` comes first)."""

from __future__ import annotations

import shutil
from functools import cache
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from lumbar_utils import viz
from lumbar_utils.crops.extraction import StudyCrops, extract_crops
from lumbar_utils.evaluation import tables as evaluation
from lumbar_utils.explain import attribution_maps
from lumbar_utils.inference.predictor import Predictor, StudyPrediction
from lumbar_utils.labels import CONDITIONS, SEVERITIES, target_index
from lumbar_utils.report import ReportFolder
from lumbar_utils.studies.data import Study
from lumbar_utils.studies.study import CompetitionFolder, find_studies, load_study
from lumbar_utils.viz.scene import PLANES, Scene
from lumbar_utils.viz.style import finish, new_figure, theme

RUN = Path(__file__).resolve().parent.parent.parent / "runs" / "demo"
WINDOW = (1180, 1500)
SHOWN_AT = 0.72
"""Width and height of the browser's window, and the share of its size that the picture has."""


@cache
def predictor() -> Predictor:
    if not (RUN / "classifier").is_dir():
        raise SystemExit("the gallery shows the demo's network: run `make run` first")
    return Predictor(RUN / "classifier")


@cache
def chosen() -> tuple[Study, StudyPrediction, StudyCrops, np.ndarray]:
    """A test study of the demo with a severe canal, a severe recess and a foramen by its labels; nothing is looked at
    but the labels and that all views are there, so neither a good nor a bad prediction is picked."""
    folder = CompetitionFolder.open(RUN / "cohort")
    sources = find_studies(folder.root, part="test")
    labels = evaluation.truth_labels(folder, [source.study_id for source in sources])
    families = [[target_index(name, level) for level in range(5)] for name in CONDITIONS]
    severe = np.stack([(labels[:, targets] == SEVERITIES.index("Severe")).any(axis=1) for targets in families], axis=1)
    variety = severe.sum(axis=1)
    best = int(np.argmax(np.where(severe[:, 0], variety, 0)))
    study = load_study(sources[best])
    prediction = predictor().predict_study(study)
    return study, prediction, extract_crops(study, prediction.discs, predictor().spec), labels[best]


def montage() -> Figure:
    """Five levels in three views with labels and predictions."""
    _, prediction, crops, labels = chosen()
    return viz.show_crops(crops, probabilities=prediction.probabilities, labels=labels, synthetic=True, width=9.0)


def viewer() -> Figure:
    """The two pictures of the viewer at L4/L5."""
    study, prediction, crops, _ = chosen()
    scene = Scene(study, prediction.discs, crops, size=(620, 620), synthetic=True)
    at = {plane: scene.index_of_level(plane, 0, 3) for plane in PLANES}
    images = []
    for plane, other in zip(PLANES, reversed(PLANES), strict=True):
        crossing = scene.piles[other][0].image(at[other])
        png = scene.draw(plane, 0, at[plane], crossing, width=100, level=50, marks=True).png()
        images.append(np.asarray(Image.open(BytesIO(png)).convert("RGB")))
    with mpl.rc_context(theme("dark")):
        height = 5.2
        widths = [height * image.shape[1] / image.shape[0] for image in images]
        figure = new_figure(sum(widths) + 0.1, height + 0.45)
        x = 0.0
        for image, width in zip(images, widths, strict=True):
            total_width, total_height = figure.get_size_inches()
            panel = figure.add_axes((x / total_width, 0, width / total_width, height / total_height))
            panel.imshow(image, interpolation="lanczos")
            panel.axis("off")
            x += width + 0.1
        return finish(figure, title="The viewer: each slice is a line on the other", synthetic=True)


def attribution() -> Figure:
    """Where the grades of the canal come from."""
    _, prediction, crops, labels = chosen()
    condition = "spinal_canal_stenosis"
    targets = [target_index(condition, level) for level in range(5)]
    maps = attribution_maps(predictor(), crops, targets=targets)
    return viz.show_attribution(
        crops, maps, condition, probabilities=prediction.probabilities, labels=labels, synthetic=True, width=9.0
    )


def report() -> Image.Image:
    """The upper part of a study's report in Chromium."""
    from selenium import webdriver

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        raise SystemExit("the picture of the report needs Chromium and its driver: tools/install_checkers.sh")
    study, prediction, crops, _ = chosen()
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    options.add_argument("--window-size={},{}".format(*WINDOW))
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        with TemporaryDirectory() as folder:
            reports = ReportFolder(folder, model={"name": "demo", "networks": 1}, synthetic=True)
            browser.get(Path(reports.write(prediction, study, crops)).resolve().as_uri())
            shot = Image.open(BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    finally:
        browser.quit()
    return shot.resize((round(shot.width * SHOWN_AT), round(shot.height * SHOWN_AT)), Image.Resampling.LANCZOS)
