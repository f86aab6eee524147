"""The targets that cost the score most, each with the crops in which a reader would look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..errors import DataError
from ..labels import CONDITIONS, LEVELS, PROBABILITY_COLUMNS, SEVERITIES, level_title
from .crops import CONDITION_PANELS, draw_crop, nearest_index
from .grade_strip import draw_bar
from .style import (
    CONDITION_NAMES,
    SEVERITY_COLORS,
    color,
    finish,
    level_ink,
    new_figure,
    notice,
    pictured,
    severity_ink,
)

if TYPE_CHECKING:
    from ..crops.extraction import StudyCrops

COLUMNS = 3
PANEL_INCHES = 1.62
TEXT_INCHES = 0.44
BAR_INCHES = 0.17
GAP_INCHES = 0.16
TITLE_INCHES = 0.36
FOOTER_INCHES = 0.2


@pictured
def show_worst_cases(
    cache: Mapping[str, StudyCrops],
    cases: pd.DataFrame,
    *,
    title: str = "What cost the score most",
    synthetic: bool = False,
) -> Figure:
    """Cases three in a row: the two slices in which the condition is read, the label, and what was predicted.

    Parameters
    ----------
    cache : CropCache, or mapping study_id -> StudyCrops
    cases : DataFrame
        From `evaluation.worst_cases`. Raises `DataError` when a study of it has no crops.
    """
    if not len(cases):
        return notice("Worst cases: no labelled study")
    lacking = [study_id for study_id in cases["study_id"] if study_id not in cache]
    if lacking:
        raise DataError(f"{len(lacking)} of {len(cases)} cases have no crops, the first is study {lacking[0]!r}")
    columns, rows = min(COLUMNS, len(cases)), -(-len(cases) // COLUMNS)
    cell_width, cell_height = 2 * PANEL_INCHES + GAP_INCHES, TEXT_INCHES + PANEL_INCHES + BAR_INCHES + GAP_INCHES
    width, height = columns * cell_width + GAP_INCHES, TITLE_INCHES + rows * cell_height + FOOTER_INCHES
    figure = new_figure(width, height)
    for i, case in enumerate(cases.itertuples()):
        x = GAP_INCHES + (i % COLUMNS) * cell_width
        y = height - TITLE_INCHES - (i // COLUMNS) * cell_height - TEXT_INCHES
        _draw_case(figure, cache[case.study_id], case, x, y)
    keys = [Patch(color=shade, label=name.lower()) for shade, name in zip(SEVERITY_COLORS, SEVERITIES, strict=True)]
    corner = (GAP_INCHES / width, 0.02)
    figure.legend(handles=keys, loc="lower left", bbox_to_anchor=corner, ncols=3, borderpad=0, handlelength=1)
    return finish(figure, title=title, synthetic=synthetic)


def _draw_case(figure: Figure, crops: StudyCrops, case, x: float, y: float) -> None:
    """One case, its panels' top left corner at (x, y) inches."""
    width, height = figure.get_size_inches()
    condition, level = CONDITIONS.index(case.condition), LEVELS.index(case.level)
    severity = SEVERITIES.index(case.label)
    for n, (view, offset) in enumerate(CONDITION_PANELS[condition]):
        box = (x + n * PANEL_INCHES, y - PANEL_INCHES, PANEL_INCHES - 0.03, PANEL_INCHES)
        panel = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
        draw_crop(panel, crops, view, level, nearest_index(crops, view, offset), scale_mm=20 if n == 0 else None)
    heading = f"{CONDITION_NAMES[condition]}  {level_title(case.level)}"
    look = {"va": "bottom", "fontsize": 9, "fontweight": "bold"}
    figure.text(x / width, (y + 0.21) / height, heading, color=level_ink(level), **look)
    end = (x + 2 * PANEL_INCHES - 0.03) / width
    figure.text(end, (y + 0.21) / height, f"loss {case.loss:.1f}", ha="right", va="bottom", fontsize=8)
    look = {"va": "bottom", "fontsize": 8}
    figure.text(x / width, (y + 0.04) / height, f"study {case.study_id}", color=color("muted"), **look)
    label = f"label {case.label.lower()}"
    figure.text(end, (y + 0.04) / height, label, ha="right", color=severity_ink(severity), **look)
    place = (x / width, (y - PANEL_INCHES - BAR_INCHES) / height, end - x / width, (BAR_INCHES - 0.03) / height)
    bar = figure.add_axes(place)
    bar.set_axis_off()
    bar.set_xlim(0, 1)
    draw_bar(bar, 0, [getattr(case, name) for name in PROBABILITY_COLUMNS], unit=" %", least=0.08)
