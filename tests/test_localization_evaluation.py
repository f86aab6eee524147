"""Evaluation of the localizer: planted errors are measured, and annotation errors do not count."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lumbar_utils.labels import LEVELS, SAGITTAL_T1, SAGITTAL_T2, level_title
from lumbar_utils.localization import DiscPoints, evaluate_points, low_confidence_message, point_errors, read_reference
from lumbar_utils.localization.evaluation import (
    CONFIDENCE_BINS,
    calibration_error,
    evaluate_on_images,
    image_summary,
    reliability,
    summary,
)
from lumbar_utils.studies.competition import CompetitionFolder

CHAIN = np.array([[0, 5, 66], [1, 1, 34], [1, 0, 0], [0, 3, -34], [-1, 10, -64.0]])
LOWER = np.vstack([CHAIN[1:], CHAIN[4] + [0, 8, -28]])
LOW_CONFIDENCE = ("low_confidence",) * 5


def discs_at(points, *, study_id="1", confidence=1.0, flags=("",) * 5) -> DiscPoints:
    return DiscPoints(study_id, "s", points, np.full(5, confidence), flags)


# --- on the images that were marked -----------------------------------------------------------------------------


class Planted:
    """One study of a synthetic cohort with a table of our own: a canal point a level, on known pixels and slices."""

    def __init__(self, cohort):
        folder = CompetitionFolder.open(cohort)
        truth = read_reference(cohort / "truth" / "discs.csv", point="canal")
        for study_id in folder.study_ids("train"):
            self.study = folder.load_study(study_id, part="train")
            t2, t1 = (self.study.by_view(view) for view in (SAGITTAL_T2, SAGITTAL_T1))
            if t2 and t1:
                break
        self.study_id, self.folder = study_id, folder
        self.t2, self.t1 = t2[0], t1[0]
        self.stack = self.t2.stacks[0]
        self.slice = len(self.stack) // 2
        geometry = self.stack.geometry[self.slice]
        self.pixels = np.round(geometry.world_to_pixel(truth[study_id])[0], 1)
        self.found = geometry.pixel_to_world(self.pixels)
        number = self.stack.instance_numbers[self.slice]
        self.rows = pd.DataFrame(
            {
                "study_id": study_id,
                "series_id": self.t2.series_id,
                "instance_number": number,
                "condition": "Spinal Canal Stenosis",
                "level": [level_title(level) for level in LEVELS],
                "x": self.pixels[:, 0],
                "y": self.pixels[:, 1],
            }
        )

    def compare(self, found: np.ndarray | None = None) -> pd.DataFrame:
        folder = replace(self.folder, coordinates=self.rows, labels=None)
        points = {} if found is None else {self.study_id: discs_at(found, study_id=self.study_id)}
        table = evaluate_on_images(folder, [self.study_id], points, n_jobs=1, progress=False)
        return table.set_index("level")

    def moved(self, level: int, pixels: float) -> None:
        """Move a found point within its image, to the right and down."""
        geometry = self.stack.geometry[self.slice]
        self.found[level] = geometry.pixel_to_world(self.pixels[level] + np.array([0.6, 0.8]) * pixels)


@pytest.fixture
def planted(cohort):
    return Planted(cohort)


def test_points_are_measured_in_the_pixels_of_the_labelled_image(planted):
    planted.moved(0, 4.0)
    planted.moved(1, 6.0)
    table = planted.compare(planted.found)
    assert np.allclose(table["error_pixels"], [4, 6, 0, 0, 0], atol=1e-6)
    assert (table["slices_apart"] == 0).all()
    numbers = image_summary(table.reset_index())
    assert numbers.loc["l1_l2", "within_5_pixels"] == 1 and numbers.loc["l2_l3", "within_5_pixels"] == 0
    assert numbers.loc["all", "within_5_pixels"] == pytest.approx(0.8)
    assert numbers.loc["all", "exact_slice"] == 1 and numbers.loc["all", "points"] == 5


def test_a_neighbouring_slice_is_counted_apart_from_the_error_in_plane(planted):
    geometry = planted.stack.geometry
    step = geometry.positions[planted.slice + 1] - geometry.positions[planted.slice]
    through = (step @ geometry.normal) * geometry.normal
    planted.found[2] += through
    planted.found[3] -= 2 * through
    table = planted.compare(planted.found)
    assert list(table["slices_apart"]) == [0, 0, 1, -2, 0]
    assert table["error_pixels"].max() < 1e-6
    numbers = image_summary(table.reset_index())
    assert numbers.loc["all", "exact_slice"] == pytest.approx(0.6)
    assert numbers.loc["all", "within_one_slice"] == pytest.approx(0.8)


def test_annotation_errors_do_not_count(planted):
    """A point in the image's corner, one on the T1 series, and a level without a point."""
    planted.rows.loc[0, ["x", "y"]] = 5.0, 5.0
    planted.rows.loc[1, "series_id"] = planted.t1.series_id
    planted.rows.loc[1, "instance_number"] = planted.t1.stacks[0].instance_numbers[0]
    planted.rows = planted.rows.drop(index=2)
    table = planted.compare(planted.found)
    assert list(table.index) == ["l4_l5", "l5_s1"]
    assert table["error_pixels"].max() < 1e-6
    assert list(image_summary(table.reset_index()).index) == ["l4_l5", "l5_s1", "all"]


def test_an_image_that_is_not_there_is_left_out_and_a_study_that_was_not_found_is_wrong(planted):
    planted.rows.loc[4, "instance_number"] = 9999
    table = planted.compare()
    assert list(table.index) == list(LEVELS[:4])
    numbers = image_summary(table.reset_index())
    assert (numbers[["within_5_pixels", "exact_slice", "within_one_slice"]] == 0).all(axis=None)


def test_no_labelled_study_gives_an_empty_table(planted):
    folder = replace(planted.folder, coordinates=planted.rows, labels=None)
    table = evaluate_on_images(folder, ["nobody"], {}, n_jobs=1, progress=False)
    assert table.empty
    assert image_summary(table).loc["all", "points"] == 0


# --- shifts with low confidence, and without -----------------------------------------------------------------


def test_a_shifted_spine_counts_as_unflagged_unless_all_levels_have_low_confidence():
    partly = ("low_confidence", "", "", "", "")
    found = {
        "right": discs_at(CHAIN, study_id="right"),
        "shifted": discs_at(LOWER, study_id="shifted", flags=partly),
        "shifted and marked": discs_at(LOWER, study_id="shifted and marked", flags=LOW_CONFIDENCE),
        "right but marked": discs_at(CHAIN, study_id="right but marked", flags=LOW_CONFIDENCE),
    }
    numbers = summary(evaluate_points(found, dict.fromkeys([*found, "not found"], CHAIN)))
    assert numbers["studies_shifted"] == 2
    assert numbers["studies_shifted_unflagged"] == 1
    assert numbers["studies_low_confidence"] == 2
    assert numbers["studies_not_found"] == 1
    assert low_confidence_message(found).endswith("2 studies, look at them: shifted and marked, right but marked")


def test_the_first_studies_of_low_confidence_are_listed():
    found = {str(i): discs_at(CHAIN, study_id=str(i), flags=LOW_CONFIDENCE) for i in range(7)}
    message = low_confidence_message(found)
    assert "7 studies" in message and "0, 1, 2, 3, 4, ..." in message and "5" not in message
    assert "1 study" in low_confidence_message({"0": found["0"]})
    assert low_confidence_message({"8": discs_at(CHAIN, study_id="8")}) == ""


def test_errors_within_the_sagittal_plane_have_a_constant_offset_removed():
    back = point_errors(CHAIN + np.array([0, 6.0, 0]), CHAIN).backward
    assert np.all((back > 5) & (back <= 6 + 1e-9))
    errors = evaluate_points({"1": discs_at(CHAIN + np.array([0, 6.0, 0]))}, {"1": CHAIN})
    numbers = summary(errors)
    assert numbers["median_mm"] == pytest.approx(6) and numbers["median_in_plane_centred_mm"] < 1.5
    aside = summary(evaluate_points({"1": discs_at(CHAIN + np.array([6.0, 0, 0]))}, {"1": CHAIN}))
    assert aside["median_in_plane_centred_mm"] < 0.5  # to the left is not in that plane


# --- calibration of the confidence -----------------------------------------------------------------------------------


def planted_confidence(confidence, error) -> pd.DataFrame:
    return pd.DataFrame({"confidence": confidence, "error_mm": error})


def test_reliability_and_calibration_error_of_a_planted_table():
    """Twenty levels at 0.6, half of them right; eighty at 0.97, all right but four."""
    confidence = np.array([0.6] * 20 + [0.97] * 80)
    error = np.array([1.0] * 10 + [20.0] * 9 + [np.nan] + [5.0] * 76 + [5.1] * 4)
    table = reliability(planted_confidence(confidence, error))
    assert list(table["bin"]) == ["0.50-0.70", "0.95-0.99"]
    assert list(table["levels"]) == [20, 80]
    assert np.allclose(table["mean_confidence"], [0.6, 0.97])
    assert np.allclose(table["share_within"], [0.5, 0.95])
    expected = 0.2 * 0.1 + 0.8 * 0.02
    assert calibration_error(planted_confidence(confidence, error)) == pytest.approx(expected)


def test_confident_and_right_is_calibrated():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0, 1, 40_000)
    error = np.where(rng.uniform(0, 1, confidence.size) < confidence, 1.0, 30.0)
    assert calibration_error(planted_confidence(confidence, error)) < 0.01
    assert calibration_error(planted_confidence(np.ones(100), np.full(100, 30.0))) == pytest.approx(1)


def test_every_confidence_has_a_bin():
    edges = planted_confidence(np.array(CONFIDENCE_BINS), np.zeros(len(CONFIDENCE_BINS)))
    assert reliability(edges)["levels"].sum() == len(CONFIDENCE_BINS)
    empty = planted_confidence([], [])
    assert reliability(empty).empty and np.isnan(calibration_error(empty))
