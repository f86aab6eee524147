"""Charts of predictions against labels: confusion, reliability of the probabilities, loss by target."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from ..evaluation.tables import by_level, calibration_error, reliability
from ..labels import MISSING, N_SEVERITIES, SEVERITIES
from ..metrics.score import FAMILY_TARGETS, checked_predictions, plain_frequencies
from .style import CONDITION_NAMES, SEVERITY_COLORS, color, draw_cells, finish, new_figure, themed

_KIND = {False: "plain frequencies", True: "the submission's weights 1 / 2 / 4"}


@themed
def show_confusion(
    labels: np.ndarray, probabilities: np.ndarray, *, weighted: bool = False, synthetic: bool = False
) -> Figure:
    """Label against most probable class, per family of conditions; rows add up to 100 %.

    labels int (n, 25) with -1 where absent; probabilities (n, 25, 3) as they are scored, with the metric's weights. The
    class is the most probable one of plain frequencies, or, with `weighted`, of what is submitted.
    """
    labels, probabilities = checked_predictions(labels, probabilities)
    probabilities = probabilities if weighted else plain_frequencies(probabilities)
    figure = new_figure(10, 3.4)
    short = [s.lower().replace("normal/mild", "normal/\nmild") for s in SEVERITIES]
    for i, (family, targets) in enumerate(FAMILY_TARGETS.items()):
        known = labels[:, targets] != MISSING
        true, predicted = labels[:, targets][known], probabilities[:, targets][known]
        table = np.zeros((N_SEVERITIES, N_SEVERITIES), dtype=int)
        np.add.at(table, (true, predicted.argmax(axis=1)), 1)
        share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
        panel = figure.add_axes((0.085 + 0.315 * i, 0.17, 0.25, 0.62))
        texts = np.vectorize("{:.0f} %\n{}".format, otypes=[object])(100 * share, table)
        texts[table.sum(axis=1) == 0] = "–"
        rows = short if i == 0 else [""] * N_SEVERITIES
        draw_cells(panel, share, texts, columns=short, rows=rows, cmap="Blues", vmin=0, vmax=1)
        panel.set(xlabel="most probable", title=family)
    figure.axes[0].set_ylabel("label")
    return finish(figure, title=f"Confusion, most probable by {_KIND[weighted]}", synthetic=synthetic)


@themed
def show_reliability(
    labels: np.ndarray, probabilities: np.ndarray, *, bins: int = 8, weighted: bool = False, synthetic: bool = False
) -> Figure:
    """Reliability diagram: observed share against predicted probability, in bins.

    A point on the diagonal is a calibrated probability; the bars show one standard error. Below the name of each family
    stands its expected calibration error beside the one that chance alone would make; see `evaluation.reliability`
    for `weighted`.
    """
    table = reliability(labels, probabilities, bins=bins, weighted=weighted)
    errors = calibration_error(table)
    figure = new_figure(10, 3.6)
    for i, family in enumerate(FAMILY_TARGETS):
        panel = figure.add_axes((0.065 + 0.32 * i, 0.14, 0.27, 0.63))
        panel.plot([0, 1], [0, 1], color=color("muted"), lw=1, ls="--")
        for severity, points in table[table["family"] == family].groupby("severity"):
            look = {"color": SEVERITY_COLORS[severity], "marker": "o", "ms": 4, "lw": 1.4, "elinewidth": 0.8}
            name = SEVERITIES[severity].lower()
            panel.errorbar(points["predicted"], points["observed"], points["standard_error"], label=name, **look)
        panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        panel.set_title(family, pad=18)
        if family in errors.index:
            text = "calibration error {error:.3f}, by chance {by_chance:.3f}".format(**errors.loc[family])
            panel.text(0, 1.02, text, transform=panel.transAxes, fontsize=8, color=color("muted"), va="bottom")
        panel.set_xlabel("predicted probability")
        panel.grid()
    figure.axes[0].set_ylabel("observed share" + (", weighted 1 / 2 / 4" if weighted else ""))
    if len(table):
        figure.axes[0].legend(loc="upper left")
    return finish(figure, title=f"Reliability of {_KIND[weighted]}", synthetic=synthetic)


@themed
def show_loss_by_target(table: pd.DataFrame, *, synthetic: bool = False) -> Figure:
    """Per condition and level, the share of the prior's loss that is left: 100 % means that nothing was gained.

    table: from `evaluation.grade_table` with a prior. The small numbers are the loss and the prior's.
    """
    loss, prior = by_level(table, "weighted_log_loss"), by_level(table, "prior_loss")
    left = loss / prior
    figure = new_figure(7.6, 3.6)
    panel = figure.add_axes((0.175, 0.03, 0.70, 0.76))
    limits = TwoSlopeNorm(1.0, vmin=0.0, vmax=1.5)
    image = panel.imshow(left, cmap="RdBu_r", norm=limits, aspect="auto")
    for (row, column), share in np.ndenumerate(left.to_numpy()):
        if not np.isfinite(share):
            panel.text(column, row, "no labels", ha="center", va="center", color="#1b2733", fontsize=7.5)
            continue
        shade = "white" if share < 0.35 or share > 1.4 else "#1b2733"
        at = {"ha": "center", "color": shade}
        panel.text(column, row - 0.12, f"{100 * share:.0f} %", va="center", fontsize=10.5, fontweight="bold", **at)
        small = f"{loss.iloc[row, column]:.2f} of {prior.iloc[row, column]:.2f}"
        panel.text(column, row + 0.26, small, va="center", fontsize=7, **at)
    panel.set_xticks(range(left.shape[1]), left.columns, fontweight="bold")
    panel.set_yticks(range(left.shape[0]), CONDITION_NAMES)
    panel.xaxis.tick_top()
    panel.tick_params(length=0, labelsize=9)
    panel.spines[:].set_visible(False)
    bar = figure.colorbar(image, cax=figure.add_axes((0.895, 0.03, 0.018, 0.76)), ticks=[0, 0.25, 0.5, 0.75, 1, 1.5])
    bar.ax.set_yticklabels(["0 %", "25 %", "50 %", "75 %", "100 %", "150 %"])
    bar.outline.set_visible(False)
    return finish(figure, title="Share of the prior's loss that is left", synthetic=synthetic)
