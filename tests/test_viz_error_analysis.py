"""Charts of agreement and subgroups: what they show, in both themes, and what they refuse."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from figures import text_of
from matplotlib import pyplot
from planted_crops import planted_cohort

from lumbar_utils import viz
from lumbar_utils.errors import DataError
from lumbar_utils.evaluation.agreement import MEASURES, agreement_table, agreement_words
from lumbar_utils.evaluation.subgroups import level_subgroups, loss_by_traits
from lumbar_utils.evaluation.tables import worst_cases
from lumbar_utils.labels import N_TARGETS, encode_severities


@pytest.fixture(scope="module")
def graded():
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1, 0.5, 0.4], (30, N_TARGETS))
    labels = (rng.random((30, N_TARGETS, 1)) > p.cumsum(axis=-1)[..., :2]).sum(axis=-1)
    return labels, p


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_agreement_has_a_panel_a_measure_and_a_row_a_group(graded, theme, tmp_path):
    labels, p = graded
    table = agreement_table(labels, {"this network": p, "another reader": labels}, n=20)
    figure = viz.show_agreement(table, synthetic=True, theme=theme)
    assert len(figure.axes) == len(MEASURES)
    said = text_of(figure)
    assert "synthetic" in said and "this network" in said and "another reader" in said
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()][:2] == ["Spinal Canal", "Left Foraminal"]
    viz.save(figure, tmp_path / "agreement.png")
    for label in figure.axes[0].get_yticklabels():  # nothing runs out of the figure
        assert label.get_window_extent().x0 >= 0
    assert not pyplot.get_fignums()


def test_subgroups_are_drawn_beside_their_reference(graded, tmp_path):
    labels, p = graded
    worse = np.full_like(p, 1 / 3)
    traits = {"level": level_subgroups(30), "field, T": np.array(["1.5", "3"] * 15)}
    table = loss_by_traits(labels, worse, traits, p, n=20)
    figure = viz.show_subgroups(table, title="Loss by trait", synthetic=True)
    said = text_of(figure)
    for word in ("level", "field, T", "L1/L2", "15 studies", "above the best known", "Loss by trait", "synthetic"):
        assert word in said, word
    rings = [line for line in figure.axes[0].get_lines() if line.get_markerfacecolor() == "none"]
    assert sorted(ring.get_xdata()[0] for ring in rings) == pytest.approx(sorted(table["reference"]))
    viz.save(figure, tmp_path / "subgroups.png")
    assert len(viz.show_subgroups(loss_by_traits(labels, p, traits, n=20)).axes) == 1
    nothing = viz.show_subgroups(table.iloc[:0])
    assert "nothing to tell apart" in text_of(nothing) and nothing.axes  # without axes a notebook shows no figure


def test_own_errors_are_not_called_what_cost_the_score():
    crops, labels = planted_cohort(3, seed=1)
    p = np.full((3, N_TARGETS, 3), [0.9, 0.05, 0.05])
    cases = worst_cases(encode_severities(labels), p, list(labels["study_id"]), 2)
    said = text_of(viz.show_own_errors(crops, cases, synthetic=True))
    assert "Most wrong, whatever the label" in said and "What cost the score most" not in said and "synthetic" in said


def test_other_tables_are_refused():
    with pytest.raises(DataError, match="the table lacks"):
        viz.show_agreement(pd.DataFrame({"group": []}))
    with pytest.raises(DataError, match="the table lacks"):
        viz.show_subgroups(pd.DataFrame({"trait": []}))


def test_a_table_in_words_has_people_down_and_measures_across(graded):
    labels, p = graded
    table = agreement_table(labels, {"this network": p, "another reader": labels}, by="family", n=20)
    words = agreement_words(table)
    assert list(words.columns) == list(MEASURES) and len(words) == 6
    assert words.loc[("spinal", "another reader"), "linear kappa"] == "1.00 (1.00 to 1.00)"
    assert words.loc[("spinal", "another reader"), "AUC severe"] == ""
