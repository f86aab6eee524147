"""Charts of predictions against labels: confusion, reliability, loss by target, scores side by side, ablations."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from ..errors import DataError
from ..evaluation.tables import by_level, calibration_error, reliability
from ..labels import MISSING, N_SEVERITIES, SEVERITIES
from ..metrics.score import FAMILY_TARGETS, Score, checked_predictions, plain_frequencies
from . import style

SCORE_TERMS = ("total", "spinal", "foraminal", "subarticular", "any_severe_spinal")

_KIND = {False: "plain frequencies", True: "the submission's weights 1 / 2 / 4"}


@style.themed
def show_confusion(
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    weighted: bool = False,
    synthetic: bool = False,
    theme: str | None = None,
) -> Figure:
    """Label against most probable class, per family of conditions; rows add up to 100 %.

    labels int (n, 25) with -1 where absent; probabilities (n, 25, 3) as they are scored, with the metric's weights. The
    class is the most probable one of plain frequencies, or, with `weighted`, of what is submitted.
    """
    labels, probabilities = checked_predictions(labels, probabilities)
    probabilities = probabilities if weighted else plain_frequencies(probabilities)
    figure = style.new_figure(10, 3.4)
    short = [s.lower().replace("normal/mild", "normal/\nmild") for s in SEVERITIES]
    for i, (family, targets) in enumerate(FAMILY_TARGETS.items()):
        known = labels[:, targets] != MISSING
        table = np.zeros((N_SEVERITIES, N_SEVERITIES), dtype=int)
        np.add.at(table, (labels[:, targets][known], probabilities[:, targets][known].argmax(axis=1)), 1)
        share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
        panel = figure.add_axes((0.085 + 0.315 * i, 0.17, 0.25, 0.62))
        texts = np.vectorize("{:.0f} %\n{}".format, otypes=[object])(100 * share, table)
        texts[table.sum(axis=1) == 0] = "–"
        rows = short if i == 0 else [""] * N_SEVERITIES
        style.draw_cells(panel, share, texts, columns=short, rows=rows, cmap="Blues", vmin=0, vmax=1)
        panel.set(xlabel="most probable", title=family)
    figure.axes[0].set_ylabel("label")
    return style.finish(figure, title=f"Confusion, most probable by {_KIND[weighted]}", synthetic=synthetic)


@style.themed
def show_reliability(
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    bins: int = 8,
    weighted: bool = False,
    synthetic: bool = False,
    theme: str | None = None,
) -> Figure:
    """Reliability diagram: observed share against predicted probability, in bins.

    A point on the diagonal is a calibrated probability; the bars show one standard error. Below the name of each family
    stands its expected calibration error beside the one that chance alone would make; see `evaluation.reliability`
    for `weighted`.
    """
    table = reliability(labels, probabilities, bins=bins, weighted=weighted)
    errors = calibration_error(table)
    figure = style.new_figure(10, 3.6)
    for i, family in enumerate(FAMILY_TARGETS):
        panel = figure.add_axes((0.065 + 0.32 * i, 0.14, 0.27, 0.63))
        panel.plot([0, 1], [0, 1], color=style.color("muted"), lw=1, ls="--")
        for severity, points in table[table["family"] == family].groupby("severity"):
            look = {"color": style.SEVERITY_COLORS[severity], "marker": "o", "ms": 4, "lw": 1.4, "elinewidth": 0.8}
            name = SEVERITIES[severity].lower()
            panel.errorbar(points["predicted"], points["observed"], points["standard_error"], label=name, **look)
        panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="predicted probability")
        panel.set_title(family, pad=18)
        panel.grid()
        if family in errors.index:
            text = "calibration error {error:.3f}, by chance {by_chance:.3f}".format(**errors.loc[family])
            panel.text(0, 1.02, text, transform=panel.transAxes, fontsize=8, color=style.color("muted"), va="bottom")
    figure.axes[0].set_ylabel("observed share" + (", weighted 1 / 2 / 4" if weighted else ""))
    if len(table):
        figure.axes[0].legend(loc="upper left")
    return style.finish(figure, title=f"Reliability of {_KIND[weighted]}", synthetic=synthetic)


@style.themed
def show_loss_by_target(table: pd.DataFrame, *, synthetic: bool = False, theme: str | None = None) -> Figure:
    """Per condition and level, the share of the prior's loss that is left: 100 % means that nothing was gained.

    table: from `evaluation.grade_table` with a prior. The small numbers are the loss and the prior's.
    """
    loss, prior = by_level(table, "weighted_log_loss"), by_level(table, "prior_loss")
    left = loss / prior
    figure = style.new_figure(7.6, 3.6)
    panel = figure.add_axes((0.175, 0.03, 0.70, 0.76))
    image = panel.imshow(left, cmap="RdBu_r", norm=TwoSlopeNorm(1.0, vmin=0.0, vmax=1.5), aspect="auto")
    for (row, column), share in np.ndenumerate(left.to_numpy()):
        look = {"ha": "center", "va": "center", "color": "white" if share < 0.35 or share > 1.4 else "#1b2733"}
        if not np.isfinite(share):
            panel.text(column, row, "no labels", fontsize=7.5, **look)
            continue
        panel.text(column, row - 0.12, f"{100 * share:.0f} %", fontsize=10.5, fontweight="bold", **look)
        small = f"{loss.iloc[row, column]:.2f} of {prior.iloc[row, column]:.2f}"
        panel.text(column, row + 0.26, small, fontsize=7, **look)
    style.name_cells(panel, left.columns, style.CONDITION_NAMES, fontweight="bold")
    panel.xaxis.tick_top()
    panel.tick_params(labelsize=9)
    bar = figure.colorbar(image, cax=figure.add_axes((0.895, 0.03, 0.018, 0.76)), ticks=[0, 0.25, 0.5, 0.75, 1, 1.5])
    bar.ax.set_yticklabels(["0 %", "25 %", "50 %", "75 %", "100 %", "150 %"])
    bar.outline.set_visible(False)
    return style.finish(figure, title="Share of the prior's loss that is left", synthetic=synthetic)


@style.themed
def show_scores(
    scores: Mapping[str, Score], *, ours: str | None = None, synthetic: bool = False, theme: str | None = None
) -> Figure:
    """Scores side by side, lower is better: the total as bars, and the four terms that it is the mean of.

    scores: by name, for example uniform, weighted prior, this network, oracle; `ours` is the name to stress.
    """
    if not scores:
        raise DataError("no score to show")
    height, x = 1.1 + 0.42 * len(scores), 0.155
    figure = style.new_figure(10, height)
    shades = [style.FAMILY_COLORS[2 if name == ours else 0] for name in scores]
    for i, term in enumerate(SCORE_TERMS):
        width = 0.122 if i else 0.27
        panel = figure.add_axes((x, 0.12, width, 0.88 - 0.72 / height))
        values = [float(getattr(score, term)) for score in scores.values()]
        bars = panel.barh(range(len(values)), values, color=shades, height=0.64, alpha=0.65 if i else 1.0)
        look = {"fontsize": 8} if i else {"fontsize": 9, "fontweight": "bold"}
        panel.bar_label(bars, [f" {value:.3f}" for value in values], **look)
        panel.set(xlim=(0, max(values) * 1.32), ylim=(len(values) - 0.5, -0.5), xticks=[])
        panel.set_yticks(range(len(values)), [""] * len(values) if i else list(scores))
        panel.tick_params(length=0, labelsize=9)
        panel.spines["bottom"].set_visible(False)
        panel.set_title(term.replace("_", " ") if i else "score", fontsize=9)
        x += width + 0.012
    return style.finish(figure, title="Lower is better", synthetic=synthetic)


@style.themed
def show_ablation(
    table: pd.DataFrame,
    *,
    references: Mapping[str, float] | None = None,
    title: str = "What each part brings",
    synthetic: bool = False,
    theme: str | None = None,
) -> Figure:
    """Configurations below each other: their scores, and how far each is from the one it changes; lower is better.

    table: columns name, score, against, difference, low, high (the row that it is compared with, the difference of the
    scores and its interval; nan where there is none) and minutes (of training; nan where nothing was trained), rows in
    the order of drawing. references: scores by name, drawn as level lines; with `weighted prior` and `oracle` among
    them, the share of the distance between these two that each row closes is written beside its score.
    """
    absent = [c for c in ("name", "score", "against", "difference", "low", "high", "minutes") if c not in table]
    if absent or not len(table):
        raise DataError(f"the table lacks {absent or 'rows'}, it has the columns {list(table.columns)}")
    references, rows = dict(references or {}), np.arange(len(table))
    tall, small = 0.36 * len(table), {"fontsize": 7.5, "color": style.color("muted")}
    height = 1.1 + tall
    figure = style.new_figure(10, height)
    left, right = (figure.add_axes((x, 0.5 / height, width, tall / height)) for x, width in ((0.2, 0.26), (0.68, 0.22)))
    left.plot(table["score"], rows, "o", ms=6, color=style.FAMILY_COLORS[0], zorder=3)
    middle = np.mean([*references.values(), *table["score"]])
    for i, (name, score) in enumerate(references.items()):
        left.axvline(score, color=style.color("muted"), lw=1, ls=("--", ":", "-.")[i % 3])
        place = {"transform": left.get_xaxis_transform(), "va": "bottom", "ha": "right" if score > middle else "left"}
        left.text(score, 1.02, f"{name} {score:.3f}", **place, **small)
    prior = references.get("weighted prior", np.nan)
    gap = prior - references.get("oracle", np.nan)
    for row, score in zip(rows, table["score"], strict=True):
        text = f"{score:.3f}" + (f"   {100 * (prior - score) / gap:.0f} %" if np.isfinite(gap) and gap else "")
        left.text(1.03, row, text, transform=left.get_yaxis_transform(), va="center", fontsize=8.5)
    if np.isfinite(gap):
        left.text(1.03, 1.02, "score   gap closed", transform=left.transAxes, **small)
    right.axvline(0, color=style.color("muted"), lw=1)
    for row, (mean, low, high, minutes) in enumerate(table[["difference", "low", "high", "minutes"]].to_numpy(float)):
        shade = style.FAMILY_COLORS[1] if high < 0 else style.FAMILY_COLORS[2] if low > 0 else style.color("muted")
        right.plot([low, high], [row, row], color=shade, lw=2.2, solid_capstyle="round")
        right.plot(mean, row, "o", ms=6, color=shade)
        text = f"{minutes:.1f}" if np.isfinite(minutes) else ""
        right.text(1.14, row, text, transform=right.get_yaxis_transform(), ha="right", va="center")
    right.text(1.14, 1.02, "minutes", transform=right.transAxes, ha="right", **small)
    left.set_xlabel("score")
    right.set_xlabel("difference to the row named, with its interval")
    left.set_yticks(rows, table["name"])
    right.set_yticks(rows, [name if isinstance(name, str) else "" for name in table["against"]])
    for panel in (left, right):
        panel.margins(x=0.08)
        style.draw_rows(panel, len(rows))
    return style.finish(figure, title=title, synthetic=synthetic)
