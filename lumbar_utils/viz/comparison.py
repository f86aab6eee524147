"""Charts of scores side by side: predictions beside their references, and configurations beside a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..errors import DataError
from .style import FAMILY_COLORS, color, draw_rows, finish, new_figure, themed

if TYPE_CHECKING:
    from ..metrics.score import Score

SCORE_TERMS = ("spinal", "foraminal", "subarticular", "any_severe_spinal", "total")


@themed
def show_scores(scores: Mapping[str, Score], *, ours: str | None = None, synthetic: bool = False) -> Figure:
    """Scores side by side, lower is better: the total as bars, and the four terms that it is the mean of.

    Parameters
    ----------
    scores : mapping name -> Score
        For example uniform, weighted prior, this network, oracle.
    ours : str, optional
        The name to stress.
    """
    if not scores:
        raise DataError("no score to show")
    figure = new_figure(10, 1.1 + 0.42 * len(scores))
    height = figure.get_size_inches()[1]
    widths, x = (0.27, *[0.122] * 4), 0.155
    shades = [FAMILY_COLORS[2] if name == ours else FAMILY_COLORS[0] for name in scores]
    for i, (term, width) in enumerate(zip(("total", *SCORE_TERMS[:4]), widths, strict=True)):
        panel = figure.add_axes((x, 0.12, width, 1 - 0.12 - 0.72 / height))
        values = [float(getattr(score, term)) for score in scores.values()]
        bars = panel.barh(range(len(values)), values, color=shades, height=0.64, alpha=1.0 if i == 0 else 0.65)
        look = {"fontsize": 9, "fontweight": "bold"} if i == 0 else {"fontsize": 8}
        panel.bar_label(bars, [f" {value:.3f}" for value in values], **look)
        panel.set_xlim(0, max(values) * 1.32)
        panel.set_ylim(len(values) - 0.5, -0.5)
        panel.set_yticks(range(len(values)), list(scores) if i == 0 else [""] * len(values))
        panel.set_xticks([])
        panel.tick_params(length=0, labelsize=9)
        panel.spines["bottom"].set_visible(False)
        panel.set_title(("score" if term == "total" else term.replace("_", " ")), fontsize=9)
        x += width + 0.012
    return finish(figure, title="Lower is better", synthetic=synthetic)


@themed
def show_ablation(
    table: pd.DataFrame,
    *,
    references: Mapping[str, float] | None = None,
    title: str = "What each part brings",
    synthetic: bool = False,
) -> Figure:
    """Configurations below each other: their scores, and how far each is from the one it changes; lower is better.

    Parameters
    ----------
    table : DataFrame
        Columns name, score, against, difference, low, high (the row that it is compared with, the difference of the
        scores and its interval; nan where there is none) and minutes (of training; nan where nothing was trained). Rows
        are drawn in their order.
    references : mapping name -> score, optional
        Level lines. With `weighted prior` and `oracle` among them, the share of the distance between these two that
        each row closes is written beside its score.
    """
    absent = [c for c in ("name", "score", "against", "difference", "low", "high", "minutes") if c not in table]
    if absent or not len(table):
        raise DataError(f"the table lacks {absent or 'rows'}, it has the columns {list(table.columns)}")
    references, rows = dict(references or {}), np.arange(len(table))
    height = 1.1 + 0.36 * len(table)
    figure = new_figure(10, height)
    bottom, tall = 0.5 / height, 0.36 * len(table) / height
    left, right = figure.add_axes((0.2, bottom, 0.26, tall)), figure.add_axes((0.68, bottom, 0.22, tall))
    left.plot(table["score"], rows, "o", ms=6, color=FAMILY_COLORS[0], zorder=3)
    middle = np.mean([*references.values(), *table["score"]])
    for i, (name, score) in enumerate(references.items()):
        left.axvline(score, color=color("muted"), lw=1, ls=("--", ":", "-.")[i % 3])
        look = {"transform": left.get_xaxis_transform(), "va": "bottom", "fontsize": 7.5, "color": color("muted")}
        left.text(score, 1.02, f"{name} {score:.3f}", ha="right" if score > middle else "left", **look)
    left.set_xlabel("score")
    left.set_yticks(rows, table["name"])
    gap = references.get("weighted prior", np.nan) - references.get("oracle", np.nan)
    for row, score in zip(rows, table["score"], strict=True):
        look = {"transform": left.get_yaxis_transform(), "va": "center", "fontsize": 8.5}
        closed = 100 * (references.get("weighted prior", np.nan) - score) / gap
        left.text(1.03, row, f"{score:.3f}" + (f"   {closed:.0f} %" if np.isfinite(closed) else ""), **look)
    if np.isfinite(gap):
        left.text(1.03, 1.02, "score   gap closed", transform=left.transAxes, fontsize=7.5, color=color("muted"))
    right.axvline(0, color=color("muted"), lw=1)
    for row, (mean, low, high) in enumerate(table[["difference", "low", "high"]].to_numpy(dtype=float)):
        shade = FAMILY_COLORS[1] if high < 0 else FAMILY_COLORS[2] if low > 0 else color("muted")
        right.plot([low, high], [row, row], color=shade, lw=2.2, solid_capstyle="round")
        right.plot(mean, row, "o", ms=6, color=shade)
    right.set_xlabel("difference to the row named, with its interval")
    right.set_yticks(rows, [name if isinstance(name, str) else "" for name in table["against"]])
    right.text(1.14, 1.02, "minutes", transform=right.transAxes, ha="right", fontsize=7.5, color=color("muted"))
    for row, minutes in zip(rows, table["minutes"], strict=True):
        text = f"{minutes:.1f}" if np.isfinite(minutes) else ""
        right.text(1.14, row, text, transform=right.get_yaxis_transform(), ha="right", va="center")
    for panel in (left, right):
        panel.margins(x=0.08)
        draw_rows(panel, len(rows))
    return finish(figure, title=title, synthetic=synthetic)
