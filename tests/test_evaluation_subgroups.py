"""Losses of subgroups against the metric and planted differences; traits of scans."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lumbar_utils.errors import DataError
from lumbar_utils.evaluation import subgroups
from lumbar_utils.labels import AXIAL_T2, LEVELS, MISSING, N_TARGETS, SAGITTAL_T1, SAGITTAL_T2, level_title
from lumbar_utils.localization import DiscPoints
from lumbar_utils.metrics.score import competition_score
from lumbar_utils.studies import find_studies, series_table


@pytest.fixture(scope="module")
def predicted():
    """Labels (60, 25), a few missing, and predictions that know something of them."""
    rng = np.random.default_rng(1)
    p = rng.dirichlet([1, 0.5, 0.4], (60, N_TARGETS))
    labels = (rng.random((60, N_TARGETS, 1)) > p.cumsum(axis=-1)[..., :2]).sum(axis=-1)
    return np.where(rng.random(labels.shape) < 0.05, MISSING, labels), p


def test_the_loss_of_studies_is_the_mean_of_the_metrics_terms(predicted):
    labels, p = predicted
    table = subgroups.loss_by_traits(labels, p, {"half": ["first"] * 30 + ["second"] * 30}, n=50)
    score = competition_score(labels[:30], p[:30])
    assert table["loss"][0] == pytest.approx((score.spinal + score.foraminal + score.subarticular) / 3)
    assert table["low"][0] < table["loss"][0] < table["high"][0]
    assert (table["studies"][0], table["labels"][0]) == (30, (labels[:30] != MISSING).sum())


def test_a_subgroup_that_is_worse_is_found_and_by_how_much(predicted):
    labels, p = predicted
    worse = np.array(["thick", "thin"] * 30)
    known = np.where(labels < 0, 0, labels)
    ours = np.where((worse == "thick")[:, None, None], 1 / 3, 0.997 * np.eye(3)[known] + 0.001)
    table = subgroups.loss_by_traits(labels, ours, {"slices": worse}, p, n=100).set_index("subgroup")
    assert table.loc["thick", "loss"] == pytest.approx(np.log(3)) and table.loc["thin", "loss"] < 0.01
    assert list(table.index) == ["thick", "thin"] and (table["studies"] == 30).all()
    assert table.loc["thick", "above_low"] > 0 > table.loc["thin", "above_high"]
    assert (table["trait"] == "slices").all()
    same = subgroups.loss_by_traits(labels, p, {"slices": worse}, p, n=20)
    assert (same[["above", "above_low", "above_high"]] == 0).all(axis=None)  # paired: the same resamples


def test_levels_and_targets_are_subgroups_too(predicted):
    labels, p = predicted
    ours = p.copy().reshape(60, 5, 5, 3)
    ours[:, :, 3] = 1 / 3
    traits = {"level": subgroups.level_subgroups(60)}
    table = subgroups.loss_by_traits(labels, ours.reshape(60, 25, 3), traits, n=20)
    assert list(table["subgroup"]) == [level_title(level) for level in LEVELS]
    assert table["loss"].idxmax() == 3 and table["loss"][3] == pytest.approx(np.log(3))
    of_targets = np.full((60, 25), "", dtype=object)
    of_targets[:, :2] = "one", "two"
    few = subgroups.loss_by_traits(labels, p, {"target": of_targets}, n=20)
    assert len(few) == 2 and few["loss"].isna().all()  # two of the three families are not there
    with pytest.raises(DataError, match=r"subgroups must have shape \(60,\), \(60, 5\) or \(60, 25\), got \(3,\)"):
        subgroups.loss_by_traits(labels, p, {"three": ["a", "b", "c"]})


def test_traits_in_which_all_are_alike_are_left_out(predicted):
    labels, p = predicted
    traits = {"field": ["1.5"] * 60, "level": subgroups.level_subgroups(60), "unknown": [""] * 60}
    table = subgroups.loss_by_traits(labels, p, traits, n=10)
    assert set(table["trait"]) == {"level"}
    nothing = subgroups.loss_by_traits(labels, p, {"field": ["1.5"] * 60}, p, n=10)
    assert len(nothing) == 0 and "above" in nothing


def test_numbers_become_subgroups_of_equal_size_in_their_order():
    values = pd.Series([*np.linspace(3, 5, 30), np.nan])
    parts = subgroups.number_subgroups(values)
    assert parts.cat.categories[0].startswith("3 to") and pd.isna(parts.iloc[-1])
    assert parts.value_counts().tolist() == [10, 10, 10]
    few = subgroups.number_subgroups(pd.Series([3.0, 1.5, 3.0, np.nan]))
    assert list(few.cat.categories) == ["1.5", "3"] and list(few[:3]) == ["3", "1.5", "3"]
    assert subgroups.number_subgroups(pd.Series([np.nan, None])).isna().all()


def test_confidence_and_error_of_the_localizer_are_subgroups_of_levels(predicted):
    labels, p = predicted
    points = np.stack([np.zeros(5), np.zeros(5), -30.0 * np.arange(5)], axis=1)
    found = {"a": DiscPoints("a", "1", points, [0.995, 0.95, 0.98, 0.2, 1.0])}
    table = subgroups.confidence_subgroups(found, ["b", "a"])
    assert table.loc[0].isna().all()
    assert list(table.loc[1]) == ["0.99 to 1", "0.9 to 0.97", "0.97 to 0.99", "0 to 0.9", "0.99 to 1"]
    losses = subgroups.loss_by_traits(labels[:2], p[:2], {"confidence": table}, n=5)
    assert list(losses["subgroup"]) == ["0 to 0.9", "0.9 to 0.97", "0.97 to 0.99", "0.99 to 1"]  # in their order
    reference = {"a": points + np.array([[3, 0, 0], [1, 0, 0], [2, 0, 0], [5, 0, 0], [np.nan] * 3])}
    errors = subgroups.error_subgroups(found, reference, ["a", "b"])
    assert list(errors.loc[0][:4]) == ["3", "1", "2", "5"] and errors.loc[0].isna().sum() == 1
    assert errors.loc[1].isna().all()
    losses = subgroups.loss_by_traits(labels[:2], p[:2], {"error, mm": errors}, n=5)
    assert list(losses["subgroup"]) == ["1", "2", "3", "5"]


def test_the_series_table_of_a_cohort_gives_traits_of_its_studies(cohort):
    sources = find_studies(cohort, part="test")
    ids = [source.study_id for source in sources]
    traits = subgroups.scanner_traits(series_table(sources, n_jobs=1, progress=False), ids)
    assert {"T2 pixel, mm", "axial slice step, mm", "field, T", "axial stacks", "views"} <= set(traits)
    assert all(list(values.index) == ids for values in traits.values())


def test_traits_of_scanners_are_those_of_the_main_series():
    rows = [
        ("a", SAGITTAL_T2, 15, 1, 0.6, 4.4, 1.5, None),
        ("a", SAGITTAL_T2, 5, 1, 0.9, 9.0, 1.5, None),
        ("a", AXIAL_T2, 30, 3, 0.4, 4.0, 1.5, None),
        ("a", SAGITTAL_T1, 15, 1, 0.7, 4.4, 1.5, None),
        ("b", SAGITTAL_T2, 15, 1, 0.7, 5.0, 3.0, 160.0),
        ("b", SAGITTAL_T1, 15, 1, 0.7, 5.0, 3.0, None),
    ]
    names = ["study_id", "view", "slices", "stacks", "pixel_mm", "step_mm", "field_T", "inversion_ms"]
    traits = subgroups.scanner_traits(pd.DataFrame(rows, columns=names), ["b", "a", "c"])
    assert list(traits["T2 pixel, mm"][:2]) == ["0.7", "0.6"] and list(traits["field, T"][:2]) == ["3", "1.5"]
    assert list(traits["axial stacks"]) == ["", "several", ""]
    assert list(traits["fluid-sensitive"]) == ["STIR", "T2", ""]
    assert traits["views"]["a"] == "all there" and traits["views"]["b"] == f"without {AXIAL_T2}"
    assert "T2 echo time, ms" not in traits
    with pytest.raises(DataError, match="the table of series lacks"):
        subgroups.scanner_traits(pd.DataFrame({"study_id": []}), [])
