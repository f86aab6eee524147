"""How good a localizer is: what it found on single series, and its distances from the true points over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import DataError
from ..labels import LEVELS, N_LEVELS, level_title
from ..localization import DiscPoints
from ..studies.study import Study
from .images import draw_localized, localized_plane
from .style import FAMILY_COLORS, LEVEL_COLORS, add_panel, color, finish, new_figure, notice, pictured, themed

COLUMNS = 3
CELL_INCHES, CHART_INCHES, GAP_INCHES, HEADER_INCHES = 2.2, 3.6, 0.06, 0.36
CHART_END_MM = 8.0
"""The error axis ends here; what lies beyond is counted below it, as one shifted spine would squeeze all the rest."""


@pictured
def show_found_discs(
    studies: Sequence[Study],
    discs: Sequence[DiscPoints],
    errors: pd.DataFrame | Mapping[str, pd.DataFrame],
    *,
    truths: Sequence[np.ndarray | None] | None = None,
    captions: Sequence[str] | None = None,
    limit: float = 5.0,
    title: str = "",
    synthetic: bool = False,
    theme: str | None = None,
) -> Figure:
    """Found points on some studies, and the share of levels within a distance over all that were measured.

    Studies are shown three in a row, each on the series on which its points were found.

    errors: from `localization.evaluate_points`, of these studies or of many more; several tables, by name, share the
    lines of the chart and have their own numbers below it. truths: (5, 3) in LPS mm or None for each study, drawn as
    rings, with the error in mm in the corner; captions: instead of the studies' ids; limit: mm within which a point
    counts as found.
    """
    truths = list(truths) if truths is not None else [None] * len(studies)
    captions = list(captions) if captions is not None else [study.study_id for study in studies]
    counts = [len(items) for items in (studies, discs, truths, captions)]
    if len(set(counts)) > 1:
        raise DataError(f"studies, disc points, truths and captions must be as many, got {counts}")
    tables = dict(errors) if isinstance(errors, Mapping) else {"": errors}
    pooled = pd.concat(tables.values()) if tables else pd.DataFrame()
    if not studies or pooled.empty:
        return notice(f"{title or 'Found discs'}: no study to show")
    columns, rows = min(COLUMNS, len(studies)), -(-len(studies) // COLUMNS)
    step = CELL_INCHES + GAP_INCHES
    left, top = columns * step + GAP_INCHES, max(rows * step, 2.6)
    figure = new_figure(left + CHART_INCHES, top + HEADER_INCHES)
    for i, (study, found, truth, caption) in enumerate(zip(studies, discs, truths, captions, strict=True)):
        row, column = divmod(i, COLUMNS)
        panel = add_panel(figure, GAP_INCHES + column * step, top - (row + 1) * step, CELL_INCHES, CELL_INCHES)
        plane = localized_plane(_series_of(study, found), found)
        draw_localized(panel, plane, found, truth, None, caption=caption, scale_mm=50, small=True)
    chart = min(top - 1.55, 3.4)
    bottom = top - 0.15 - chart
    _draw_shares(add_panel(figure, left + 0.55, bottom, CHART_INCHES - 0.75, chart), pooled, limit)
    words = "\n".join(_summary(name, table, limit) for name, table in tables.items())
    place = (left + 0.1) / (left + CHART_INCHES), (bottom - 0.58) / (top + HEADER_INCHES)
    figure.text(*place, words, va="top", fontsize=8, linespacing=1.5, color=color("muted"))
    return finish(figure, title=title, synthetic=synthetic)


@themed
def show_localizer_error(
    errors_mm: np.ndarray, *, limit: float = 5.0, synthetic: bool = False, theme: str | None = None
) -> Figure:
    """Distance of found and true canal points: histogram, share within a distance, and spread by level.

    errors_mm: (n_studies, 5), nan where the truth is not known; limit: mm within which a point counts as found.
    """
    errors = np.asarray(errors_mm, dtype=float)
    if errors.ndim != 2 or errors.shape[1] != N_LEVELS:
        raise DataError(f"errors must have shape (n, {N_LEVELS}), got {errors.shape}")
    known = errors[np.isfinite(errors)]
    if known.size == 0:
        return notice("Distance from the true canal point: no level was both found and known")
    figure = new_figure(11, 3.1)
    left, middle, right = (figure.add_axes((x, 0.17, 0.26, 0.62)) for x in (0.055, 0.39, 0.725))
    top = max(limit * 1.2, float(np.quantile(known, 0.995)))
    middle_error, within = np.median(known), 100 * np.mean(known <= limit)
    left.hist(np.minimum(known, top), bins=np.linspace(0, top, 31), color=FAMILY_COLORS[1])
    left.axvline(middle_error, color=color("ink"), lw=1.2, ls="--")
    left.text(middle_error, left.get_ylim()[1], f" median {middle_error:.2f} mm", va="top", fontsize=8.5)
    left.set(xlabel="error, mm", ylabel="levels")
    middle.step(np.sort(known), 100 * np.arange(1, known.size + 1) / known.size, where="post", color=FAMILY_COLORS[1])
    middle.axvline(limit, color=color("ink"), lw=1.2, ls="--")
    middle.text(limit, 8, f" {within:.1f} % within {limit:g} mm", fontsize=8.5)
    middle.set(xlim=(0, top * 1.25), ylim=(0, 101), xlabel="error, mm", ylabel="% of levels")
    middle.grid()
    levels = [column[np.isfinite(column)] for column in errors.T]
    look = {"medianprops": {"color": color("ink")}, "flierprops": {"ms": 3, "mec": color("muted")}}
    boxes = right.boxplot(levels, patch_artist=True, widths=0.6, **look)
    for box, shade in zip(boxes["boxes"], LEVEL_COLORS, strict=True):
        box.set(facecolor=shade, edgecolor=color("muted"))
    right.set_xticks(range(1, N_LEVELS + 1), map(level_title, LEVELS))
    right.set_ylabel("error, mm")
    return finish(figure, title=f"Distance from the true canal point   {len(errors)} studies", synthetic=synthetic)


def _series_of(study: Study, discs: DiscPoints) -> Study:
    """The study with only the series on which the points were found, where that is known."""
    series = study.series_by_id(discs.series_id)
    return study if series is None else type(study)(study.study_id, (series,), ())


def _draw_shares(panel: Axes, errors: pd.DataFrame, limit: float) -> None:
    """Share of each level's points within a distance; a level that was not found never comes within."""
    for i, level in enumerate(LEVELS):
        values = errors.loc[errors["level"] == level, "error_mm"].to_numpy(dtype=float)
        known = np.sort(values[np.isfinite(values)])
        share = 100 * np.arange(len(known) + 1) / max(len(values), 1)
        x = np.concatenate([[0.0], known, [max(CHART_END_MM, *known[-1:])]])
        if len(values):
            panel.step(x, [*share, share[-1]], where="post", color=color("level", i), label=level_title(level), lw=1.5)
    panel.axvline(limit, color=color("ink"), lw=1, ls="--")
    panel.set(xlim=(0, CHART_END_MM), ylim=(0, 101))
    panel.set(xlabel="distance from the true point, mm", ylabel="% of levels within it")
    panel.grid()
    panel.legend(loc="lower right")


def _summary(name: str, errors: pd.DataFrame, limit: float) -> str:
    values = errors["error_mm"].to_numpy(dtype=float)
    known = values[np.isfinite(values)]
    median, within = np.median(known) if known.size else np.nan, 100 * np.mean(values <= limit)
    shifted = errors.loc[errors["shift"] != 0, "study_id"].nunique()
    head = f"{name or f'{errors.study_id.nunique()} studies'}, {len(errors)} levels:"
    return f"{head}\n  median {median:.2f} mm, {within:.1f} % within {limit:g} mm, {shifted} shifted"
