"""Charts of where a network errs: agreement as readers are measured, and the loss of subgroups by trait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..errors import DataError
from ..evaluation.agreement import AREAS, KAPPAS, MEASURES
from ..labels import CONDITIONS, condition_title
from .style import CONDITION_NAMES, FAMILY_COLORS, color, draw_rows, finish, new_figure, notice, themed
from .worst_cases import show_worst_cases

if TYPE_CHECKING:
    from ..crops.extraction import StudyCrops

PREDICTION_COLORS = (FAMILY_COLORS[0], FAMILY_COLORS[2], FAMILY_COLORS[1], "#4c9fe0")
SHORT_NAMES = dict(zip(map(condition_title, CONDITIONS), CONDITION_NAMES, strict=True))
ROW_INCHES = 0.27
CHANCE = dict.fromkeys(KAPPAS, 0.0) | dict.fromkeys(AREAS, 0.5)


@themed
def show_agreement(table: pd.DataFrame, *, synthetic: bool = False) -> Figure:
    """Measures side by side, groups below each other, a dot with its interval for each prediction that is compared.

    table: from `evaluation.agreement_table`. The dashed line is chance.
    """
    _require(table, ("group", "prediction", "measure", "value", "low", "high"))
    groups, predictions = list(dict.fromkeys(table["group"])), list(dict.fromkeys(table["prediction"]))
    measures = [measure for measure in MEASURES if measure in set(table["measure"])]
    tall = ROW_INCHES * len(groups) * max(len(predictions), 1.6)
    height = tall + 1.45
    figure = new_figure(10, height)
    looks = dict(zip(predictions, PREDICTION_COLORS, strict=False))
    left, gap = 0.16, 0.022
    width = (0.985 - left - gap * (len(measures) - 1)) / len(measures)
    for i, measure in enumerate(measures):
        panel = figure.add_axes((left + i * (width + gap), 0.52 / height, width, tall / height))
        panel.axvline(CHANCE[measure], color=color("muted"), lw=1, ls="--")
        for row, group in enumerate(groups):
            for k, name in enumerate(predictions):
                chosen = (table["group"] == group) & (table["prediction"] == name) & (table["measure"] == measure)
                at = row + (k - (len(predictions) - 1) / 2) * 0.62 / max(len(predictions), 1)
                _draw_interval(panel, table[chosen], at, looks[name])
        panel.set_title(measure.replace(" moderate or worse", "\nmoderate or worse").replace(" severe", "\nsevere"))
        panel.set_yticks(range(len(groups)), [SHORT_NAMES.get(g, g) if i == 0 else "" for g in groups])
        panel.set_xlim(*(0.45, 1.02) if measure in AREAS else (min(-0.05, table["low"].min()), 1.02))
        draw_rows(panel, len(groups))
        for row in range(1, len(groups)):
            panel.axhline(row - 0.5, color=color("grid"), lw=0.8)
    keys = [Line2D([], [], marker="o", color=looks[name], label=name, lw=2) for name in predictions]
    figure.legend(handles=keys, loc="lower left", bbox_to_anchor=(0.005, 0.0), ncols=len(predictions))
    return finish(
        figure, title="Agreement of plain frequencies with the labels, and its 95 % interval", synthetic=synthetic
    )


@themed
def show_subgroups(
    table: pd.DataFrame, *, title: str = "Loss by subgroup", reference: str = "best known", synthetic: bool = False
) -> Figure:
    """Loss of subgroups, by trait, with its interval and, beside it, how far it lies above a reference.

    table: from `evaluation.loss_by_traits` or `loss_by_subgroup`. The open ring is the reference, named by `reference`:
    it shows how hard a subgroup's labels are.
    """
    _require(table, ("trait", "subgroup", "studies", "labels", "loss", "low", "high"))
    if not len(table):
        return notice(f"{title}: nothing to tell apart")
    compared = "above" in table
    gaps = np.cumsum(table["trait"].ne(table["trait"].shift()).to_numpy()) - 1
    rows = np.arange(len(table)) + 0.45 * gaps
    tall = ROW_INCHES * (rows[-1] + 1)
    height = tall + 1.1
    figure = new_figure(10, height)
    box = (0.55 / height, tall / height)
    left = figure.add_axes((0.33, box[0], 0.34 if compared else 0.55, box[1]))
    panels = [left, figure.add_axes((0.72, box[0], 0.265, box[1]))] if compared else [left]
    for row, line in zip(rows, table.itertuples(), strict=True):
        _draw_interval(left, table.loc[[line.Index]].rename(columns={"loss": "value"}), row, FAMILY_COLORS[0])
        look = {"transform": left.get_yaxis_transform(), "va": "center", "fontsize": 7.5, "color": color("muted")}
        left.text(-0.012, row, f"{line.studies} studies", ha="right", **look)
        if compared:
            ring = {"mfc": "none", "mec": color("ink"), "ms": 5.5, "mew": 1.1, "zorder": 4}
            left.plot(line.reference, row, "o", **ring)
            own = table.loc[[line.Index], ["above", "above_low", "above_high"]]
            _draw_interval(panels[1], own.set_axis(["value", "low", "high"], axis=1), row, FAMILY_COLORS[2])
    names = [f"{line.subgroup}" for line in table.itertuples()]
    left.set_yticks(rows, names)
    left.tick_params(axis="y", pad=58)
    for trait, first in zip(table["trait"], table["trait"].ne(table["trait"].shift()), strict=True):
        if first and trait:
            row = rows[(table["trait"] == trait).to_numpy().argmax()]
            at = {"transform": figure.transFigure, "va": "center", "fontsize": 9, "fontweight": "bold"}
            figure.text(0.012, 1 - (0.55 + (row + 0.5) * ROW_INCHES) / height, trait, **at)
    left.set_xlabel("loss" + (f", the ring is the {reference}" if compared else ""))
    if compared:
        panels[1].axvline(0, color=color("muted"), lw=1)
        panels[1].set_yticks([])
        panels[1].set_xlabel(f"above the {reference}")
    for panel in panels:
        draw_rows(panel, rows[-1] + 1)
    left.set_xlim(left=0)
    return finish(figure, title=title, synthetic=synthetic)


def show_own_errors(cache: Mapping[str, StudyCrops], cases: pd.DataFrame, **options) -> Figure:
    """Cases of `HeldOutStudies.own_errors` as `show_worst_cases` draws cases, whose options it takes."""
    return show_worst_cases(cache, cases, title="Most wrong, whatever the label", **options)


def _draw_interval(panel: Axes, row: pd.DataFrame, at: float, shade: str) -> None:
    """A dot and its interval; nothing where it is not defined."""
    for value, low, high in row[["value", "low", "high"]].to_numpy(dtype=float):
        panel.plot([low, high], [at, at], color=shade, lw=2, alpha=0.75, solid_capstyle="round")
        panel.plot(value, at, "o", ms=4.5, color=shade, zorder=3)


def _require(table: pd.DataFrame, columns: tuple[str, ...]) -> None:
    absent = [column for column in columns if column not in table]
    if absent:
        raise DataError(f"the table lacks {absent}, it has {list(table.columns)}")
