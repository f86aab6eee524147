"""Charts of training and grading: live curves in a notebook, targets, calibration, worst cases, comparisons."""

from __future__ import annotations

import base64
import io
import logging
import time
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from figures import rendered, text_of
from planted_crops import planted_cohort

from lumbar_utils import viz
from lumbar_utils.crops.extraction import CroppedSeries
from lumbar_utils.errors import DataError
from lumbar_utils.evaluation import tables as evaluation
from lumbar_utils.labels import MISSING, N_LEVELS, N_TARGETS, VIEWS, encode_severities
from lumbar_utils.metrics.score import weighted_prior
from lumbar_utils.viz import training

HISTORY = pd.DataFrame(
    {
        "epoch": [1, 2, 3],
        "loss": [1.0, 0.8, 0.7],
        "learning_rate": [1e-3, 5e-4, 1e-4],
        "seconds": [6.0, 12.0, 18.0],
        "held_out_score": [np.nan, 0.7, np.nan],
    }
)
LOOK = {"references": {"weighted prior": 0.79}}
LIVE_CELL = """
import io
import pandas as pd
from lumbar_utils import viz

history = pd.read_json(io.StringIO('{history}'))
live = viz.LiveCurves(references={{"weighted prior": 0.79}}, every_seconds=1000)
for epochs in (1, 2, 3):
    live(history[:epochs])
"""
BROKEN_CELL = """
broken = viz.LiveCurves(every_seconds=0)
for epochs in (1, 2):
    broken(history[["epoch"]])
print("trained to the end")
"""


@pytest.fixture(scope="module")
def graded():
    crops, table = planted_cohort(12, seed=1)
    labels = encode_severities(table)
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet([2, 1, 1], labels.shape) + np.eye(3)[np.where(labels == MISSING, 0, labels)]
    return crops, list(crops), labels, probabilities / 2


def test_a_notebook_that_trained_keeps_one_figure_and_it_is_the_last(tmp_path):
    """Three epochs, the later two too soon to draw: the cell ends with one picture, that of all three."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    book = nbformat.v4.new_notebook()
    cells = [LIVE_CELL.format(history=HISTORY.to_json()), BROKEN_CELL]
    book.cells = [nbformat.v4.new_code_cell(source) for source in cells]
    nbclient.NotebookClient(book, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [o for o in book.cells[0].outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 1 == len(book.cells[0].outputs)
    shown = plt.imread(io.BytesIO(base64.b64decode(pictures[0]["data"]["image/png"])))
    first, whole = (
        plt.imread(io.BytesIO(rendered(viz.show_training_curves(HISTORY[:n], title=title, **LOOK), dpi=100)))
        for n, title in ((1, "Training   epoch 1, 0.1 minutes"), (3, "Training   epoch 3, 0.3 minutes"))
    )
    assert np.abs(shown - whole).mean() < 0.1 * np.abs(first - whole).mean()  # the kernel places text a pixel apart
    said = "".join(o.get("text", "") for o in book.cells[1].outputs)
    assert said.count("no curves from here on") == 1 and said.endswith("trained to the end\n")
    assert not book.metadata.get("widgets")


def test_every_fold_keeps_its_own_last_curves(monkeypatch):
    waiting, drawn = [], []
    events = SimpleNamespace(
        register=lambda _, call: waiting.append(call), unregister=lambda _, call: waiting.remove(call)
    )
    monkeypatch.setattr(training, "notebook_shell", lambda: SimpleNamespace(events=events))

    def draw(self, history):
        drawn.append((len(history), self._output))
        self._output, self._drawn_at = self._output or f"picture {len(drawn)}", time.monotonic()

    monkeypatch.setattr(viz.LiveCurves, "_draw", draw)
    live = viz.LiveCurves(every_seconds=60)
    other = HISTORY.assign(loss=HISTORY["loss"] + 0.1)
    for history in (HISTORY, other):
        for epochs in (1, 2, 3):
            live(history[:epochs])
        assert drawn[-1] == (1, None) and len(waiting) == 1
    waiting[0]()
    assert drawn == [(1, None), (3, "picture 1"), (1, None), (3, "picture 3")] and not waiting
    drawn.clear()
    for finished in (HISTORY[:2], other[:3]):  # as when finished folds are read, of which a later one is longer
        live(finished)
    assert drawn == [(2, None), (3, None)]


def test_outside_a_notebook_live_curves_do_nothing(capsys, caplog):
    live = viz.LiveCurves(every_seconds=0)
    with caplog.at_level(logging.WARNING):
        for epochs in (1, 2, 3):
            live(HISTORY[:epochs])
    assert capsys.readouterr() == ("", "") and not caplog.records and not plt.get_fignums()


def test_curves_begin_before_the_first_score():
    figure = viz.show_training_curves(HISTORY[:1], groups=[["loss"], ["held_out_score"]], references={"prior": 0.8})
    assert "prior" in text_of(figure)
    left, right = figure.axes
    assert left.get_xlim() == right.get_xlim()
    rendered(figure)


def test_every_target_says_what_is_left_of_the_priors_loss(graded):
    _, _, labels, probabilities = graded
    labels = labels.copy()
    labels[:, 3] = MISSING
    prior = weighted_prior(labels)
    table = evaluation.grade_table(labels, probabilities, prior)
    figure = viz.show_loss_by_target(table, synthetic=True, theme="dark")
    row = table.iloc[8]
    assert f"{100 * row['weighted_log_loss'] / row['prior_loss']:.0f} %" in text_of(figure)
    assert f"{row['weighted_log_loss']:.2f} of {row['prior_loss']:.2f}" in text_of(figure)
    assert text_of(figure).count("no labels") == 1
    assert {"L5/S1", "Right Subarticular", "synthetic"} <= set(text_of(figure).split("\n"))
    rendered(figure)
    with pytest.raises(DataError, match="lacks \\['prior_loss'\\]"):
        viz.show_loss_by_target(evaluation.grade_table(labels, probabilities))


def test_reliability_says_its_error_and_how_labels_were_counted(graded):
    _, _, labels, probabilities = graded
    errors = evaluation.calibration_error(evaluation.reliability(labels, probabilities))
    words = text_of(viz.show_reliability(labels, probabilities))
    assert f"calibration error {errors.loc['spinal', 'error']:.3f}" in words and "plain frequencies" in words
    for draw in (viz.show_reliability, viz.show_confusion):
        assert "plain frequencies" in text_of(draw(labels, probabilities))
        assert "weights 1 / 2 / 4" in text_of(draw(labels, probabilities, weighted=True))
    rendered(viz.show_reliability(np.full((2, N_TARGETS), MISSING), probabilities[:2]))


def test_worst_cases_show_the_crops_in_which_the_condition_is_read(graded):
    crops, ids, labels, probabilities = graded
    cases = evaluation.worst_cases(labels, probabilities, ids, n=4)
    figure = viz.show_worst_cases(crops, cases, synthetic=True)
    words = text_of(figure)
    for case in cases.itertuples():
        assert f"study {case.study_id}" in words and f"label {case.label.lower()}" in words
    assert "synthetic" in words
    assert not plt.get_fignums()
    rendered(figure)
    assert "not in the scan" not in words and "no series" not in words
    bare = {s: replace(c, covered={v: np.zeros_like(c.covered[v]) for v in VIEWS}) for s, c in crops.items()}
    assert "no series" in text_of(viz.show_worst_cases(bare, cases))
    spinal = cases[:1].assign(condition="spinal_canal_stenosis")
    source = (CroppedSeries("1", 0, (1,), 0.0),) * N_LEVELS
    seen = {s: replace(c, sources=dict.fromkeys(VIEWS, source)) for s, c in crops.items()}
    letters = [[t.get_text() for t in axes.texts] for axes in viz.show_worst_cases(seen, spinal).axes]
    assert {"A", "P"} <= set(letters[0]) and {"R", "L"} <= set(letters[1])  # sagittal, then axial
    with pytest.raises(DataError, match="1 of 1 cases have no crops, the first is study '5'"):
        viz.show_worst_cases(crops, cases[:1].assign(study_id="5"))
    assert "no labelled study" in text_of(viz.show_worst_cases(crops, cases[:0]))


def test_an_ablation_shows_scores_differences_and_how_much_of_the_gap_is_closed():
    table = pd.DataFrame(
        {
            "name": ["plain", "+ mixing"],
            "score": [0.6, 0.5],
            "against": [np.nan, "plain"],
            "difference": [np.nan, -0.1],
            "low": [np.nan, -0.15],
            "high": [np.nan, -0.05],
            "minutes": [np.nan, 4.0],
        }
    )
    for theme in ("light", "dark"):
        references = {"weighted prior": 0.8, "oracle": 0.4}
        figure = viz.show_ablation(table, references=references, synthetic=True, theme=theme)
        rendered(figure)
    words = text_of(figure)
    for said in ("+ mixing", "0.500   75 %", "oracle 0.400", "4.0", "synthetic"):
        assert said in words
    right = figure.axes[1]
    assert any(np.allclose(line.get_xdata(), [-0.15, -0.05]) for line in right.lines)
    assert "75 %" not in text_of(viz.show_ablation(table))
    with pytest.raises(DataError, match="lacks \\['minutes'\\]"):
        viz.show_ablation(table.drop(columns="minutes"))
