"""Charts of where a network errs: agreement as readers are measured, loss of subgroups, worst cases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..errors import DataError
from ..evaluation.agreement import AREAS, KAPPAS, MEASURES
from ..labels import AXIAL_T2, CONDITIONS, LEVELS, PROBABILITY_COLUMNS, SEVERITIES, condition_title, level_title
from . import style
from .crops import CONDITION_VIEWS, draw_bar, draw_crop, nearest_index, target_offsets

if TYPE_CHECKING:
    from ..crops.extraction import StudyCrops

PREDICTION_COLORS = (style.FAMILY_COLORS[0], style.FAMILY_COLORS[2], style.FAMILY_COLORS[1], "#4c9fe0")
SHORT_NAMES = dict(zip(map(condition_title, CONDITIONS), style.CONDITION_NAMES, strict=True))
ROW_INCHES = 0.27
CHANCE = dict.fromkeys(KAPPAS, 0.0) | dict.fromkeys(AREAS, 0.5)
CASES_A_ROW = 3
PANEL_INCHES, TEXT_INCHES, BAR_INCHES, GAP_INCHES = 1.62, 0.44, 0.17, 0.16
"""Of a case: each of its two panels, the lines above and the bar below them, and the space between cases."""


@style.themed
def show_agreement(table: pd.DataFrame, *, synthetic: bool = False, theme: str | None = None) -> Figure:
    """Measures side by side, groups below each other, a dot with its interval for each prediction that is compared.

    table: from `evaluation.agreement_table`. The dashed line is chance.
    """
    _require(table, ("group", "prediction", "measure", "value", "low", "high"))
    groups, predictions = list(dict.fromkeys(table["group"])), list(dict.fromkeys(table["prediction"]))
    measures = [measure for measure in MEASURES if measure in set(table["measure"])]
    tall = ROW_INCHES * len(groups) * max(len(predictions), 1.6)
    height = tall + 1.45
    figure = style.new_figure(10, height)
    looks = dict(zip(predictions, PREDICTION_COLORS, strict=False))
    left, gap = 0.16, 0.022
    width = (0.985 - left - gap * (len(measures) - 1)) / len(measures)
    for i, measure in enumerate(measures):
        panel = figure.add_axes((left + i * (width + gap), 0.52 / height, width, tall / height))
        panel.axvline(CHANCE[measure], color=style.color("muted"), lw=1, ls="--")
        for line in table[table["measure"] == measure].itertuples():
            middle = predictions.index(line.prediction) - (len(predictions) - 1) / 2
            at = groups.index(line.group) + middle * 0.62 / len(predictions)
            style.draw_interval(panel, at, line.value, line.low, line.high, looks[line.prediction])
        panel.set_title(measure.replace(" moderate or worse", "\nmoderate or worse").replace(" severe", "\nsevere"))
        panel.set_yticks(range(len(groups)), [SHORT_NAMES.get(g, g) if i == 0 else "" for g in groups])
        panel.set_xlim(*(0.45, 1.02) if measure in AREAS else (min(-0.05, table["low"].min()), 1.02))
        style.draw_rows(panel, len(groups))
        for row in range(1, len(groups)):
            panel.axhline(row - 0.5, color=style.color("grid"), lw=0.8)
    keys = [Line2D([], [], marker="o", color=looks[name], label=name, lw=2) for name in predictions]
    figure.legend(handles=keys, loc="lower left", bbox_to_anchor=(0.005, 0.0), ncols=len(predictions))
    return style.finish(
        figure, title="Agreement of plain frequencies with the labels, and its 95 % interval", synthetic=synthetic
    )


@style.themed
def show_subgroups(
    table: pd.DataFrame,
    *,
    title: str = "Loss by subgroup",
    reference: str = "best known",
    synthetic: bool = False,
    theme: str | None = None,
) -> Figure:
    """Loss of subgroups, by trait, with its interval and, beside it, how far it lies above a reference.

    table: from `evaluation.loss_by_traits`. The open ring is the reference, named by `reference`:
    it shows how hard a subgroup's labels are.
    """
    _require(table, ("trait", "subgroup", "studies", "labels", "loss", "low", "high"))
    if not len(table):
        return style.notice(f"{title}: nothing to tell apart")
    compared = "above" in table
    begins = table["trait"].ne(table["trait"].shift()).to_numpy()
    rows = np.arange(len(table)) + 0.45 * (np.cumsum(begins) - 1)
    tall = ROW_INCHES * (rows[-1] + 1)
    height = tall + 1.1
    figure = style.new_figure(10, height)
    left = figure.add_axes((0.33, 0.55 / height, 0.34 if compared else 0.55, tall / height))
    right = figure.add_axes((0.72, 0.55 / height, 0.265, tall / height)) if compared else None
    small = {"transform": left.get_yaxis_transform(), "va": "center", "fontsize": 7.5, "color": style.color("muted")}
    for row, first, line in zip(rows, begins, table.itertuples(), strict=True):
        style.draw_interval(left, row, line.loss, line.low, line.high, style.FAMILY_COLORS[0])
        left.text(-0.012, row, f"{line.studies} studies", ha="right", **small)
        if right is not None:
            left.plot(line.reference, row, "o", mfc="none", mec=style.color("ink"), ms=5.5, mew=1.1, zorder=4)
            style.draw_interval(right, row, line.above, line.above_low, line.above_high, style.FAMILY_COLORS[2])
        if first and line.trait:
            y = 1 - (0.55 + (row + 0.5) * ROW_INCHES) / height
            figure.text(0.012, y, line.trait, va="center", fontsize=9, fontweight="bold")
    left.set_yticks(rows, table["subgroup"].astype(str))
    left.tick_params(axis="y", pad=58)
    left.set_xlabel("loss" + (f", the ring is the {reference}" if compared else ""))
    if right is not None:
        right.axvline(0, color=style.color("muted"), lw=1)
        right.set(yticks=[], xlabel=f"above the {reference}")
    for panel in figure.axes:
        style.draw_rows(panel, rows[-1] + 1)
    left.set_xlim(left=0)
    return style.finish(figure, title=title, synthetic=synthetic)


@style.pictured
def show_worst_cases(
    cache: Mapping[str, StudyCrops],
    cases: pd.DataFrame,
    *,
    title: str = "What cost the score most",
    synthetic: bool = False,
    theme: str | None = None,
) -> Figure:
    """Cases three in a row: the two slices in which the condition is read, the label, and what was predicted.

    cache: a `CropCache`, or crops by study id; cases: from `evaluation.worst_cases`. Raises `DataError` when one of
    their studies has no crops.
    """
    if not len(cases):
        return style.notice("Worst cases: no labelled study")
    lacking = [study_id for study_id in cases["study_id"] if study_id not in cache]
    if lacking:
        raise DataError(f"{len(lacking)} of {len(cases)} cases have no crops, the first is study {lacking[0]!r}")
    columns, rows = min(CASES_A_ROW, len(cases)), -(-len(cases) // CASES_A_ROW)
    cell_width, cell_height = 2 * PANEL_INCHES + GAP_INCHES, TEXT_INCHES + PANEL_INCHES + BAR_INCHES + GAP_INCHES
    width, height = columns * cell_width + GAP_INCHES, 0.36 + rows * cell_height + 0.2
    figure = style.new_figure(width, height)
    for i, case in enumerate(cases.itertuples()):
        row, column = divmod(i, CASES_A_ROW)
        y = height - 0.36 - row * cell_height - TEXT_INCHES
        _draw_case(figure, cache[case.study_id], case, GAP_INCHES + column * cell_width, y)
    keys = [Patch(color=style.SEVERITY_COLORS[k], label=name.lower()) for k, name in enumerate(SEVERITIES)]
    corner = (GAP_INCHES / width, 0.02)
    figure.legend(handles=keys, loc="lower left", bbox_to_anchor=corner, ncols=3, borderpad=0, handlelength=1)
    return style.finish(figure, title=title, synthetic=synthetic)


def show_own_errors(cache: Mapping[str, StudyCrops], cases: pd.DataFrame, **options) -> Figure:
    """Cases of `HeldOutStudies.own_errors` as `show_worst_cases` draws cases, whose options it takes."""
    return show_worst_cases(cache, cases, title="Most wrong, whatever the label", **options)


def _draw_case(figure: Figure, crops: StudyCrops, case, x: float, y: float) -> None:
    """One case, its panels' top left corner at (x, y) inches."""
    condition, level = CONDITIONS.index(case.condition), LEVELS.index(case.level)
    panels = [(AXIAL_T2, 0.0), (AXIAL_T2, 4.0)]
    if condition < len(CONDITION_VIEWS):
        panels = [(CONDITION_VIEWS[condition], target_offsets(crops)[condition, level]), (AXIAL_T2, 0.0)]
    for n, (view, offset) in enumerate(panels):
        place = (x + n * PANEL_INCHES, y - PANEL_INCHES, PANEL_INCHES - 0.03, PANEL_INCHES)
        index = nearest_index(crops, view, offset)
        draw_crop(style.add_panel(figure, *place), crops, view, level, index, scale_mm=20 if n == 0 else None)
    width, height = figure.get_size_inches()
    length = 2 * PANEL_INCHES - 0.03
    start, end, upper, lower = x / width, (x + length) / width, (y + 0.21) / height, (y + 0.04) / height
    heading = f"{style.CONDITION_NAMES[condition]}  {level_title(case.level)}"
    figure.text(start, upper, heading, color=style.color("level", level), va="bottom", fontsize=9, fontweight="bold")
    look = {"va": "bottom", "fontsize": 8}
    figure.text(end, upper, f"loss {case.loss:.1f}", ha="right", **look)
    figure.text(start, lower, f"study {case.study_id}", color=style.color("muted"), **look)
    ink = style.color("severity", SEVERITIES.index(case.label))
    figure.text(end, lower, f"label {case.label.lower()}", ha="right", color=ink, **look)
    bar = style.add_panel(figure, x, y - PANEL_INCHES - BAR_INCHES, length, BAR_INCHES - 0.03)
    bar.set_axis_off()
    bar.set_xlim(0, 1)
    draw_bar(bar, 0, [getattr(case, name) for name in PROBABILITY_COLUMNS], unit=" %", least=0.08)


def _require(table: pd.DataFrame, columns: tuple[str, ...]) -> None:
    absent = [column for column in columns if column not in table]
    if absent:
        raise DataError(f"the table lacks {absent}, it has {list(table.columns)}")
