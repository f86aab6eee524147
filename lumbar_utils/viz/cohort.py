"""Charts of a cohort: how often, together with what, and what is missing; what scanners did to the series."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..errors import DataError
from ..labels import FAMILIES, LEVELS, MISSING, N_CONDITIONS, N_LEVELS, N_TARGETS, SEVERITIES, VIEWS, level_title
from . import style

VIEW_COLORS = dict(zip(VIEWS, style.FAMILY_COLORS, strict=True))
LEVEL_TITLES = tuple(map(level_title, LEVELS))
ORDER_COLORS = {
    "right to left": "#4c9fe0",
    "left to right": "#9ccbee",
    "head to feet": "#2fb3a3",
    "feet to head": "#a3e0d7",
    "front to back": "#c9ced4",
    "back to front": "#8b98a5",
    "mixed": "#e5484d",
}


@style.themed
def show_label_frequencies(
    labels: np.ndarray, *, reference: np.ndarray | None = None, synthetic: bool = False, theme: str | None = None
) -> Figure:
    """Share of moderate and severe labels per condition and level.

    labels: int (n, 25), -1 where not labelled, which counts neither way; reference: moderate and severe percent of
    another set, (25, 2), whose sum is drawn as ticks.
    """
    labels = _codes(labels)
    figure = style.new_figure(11, 3.1)
    axes = figure.subplots(1, N_CONDITIONS, sharey=True, gridspec_kw={"wspace": 0.09})
    known = np.maximum((labels != MISSING).sum(axis=0), 1)
    moderate, severe = (100 * (labels == k).sum(axis=0) / known for k in (1, 2))
    levels = range(N_LEVELS)
    for c, panel in enumerate(axes):
        at = slice(c * N_LEVELS, (c + 1) * N_LEVELS)
        panel.bar(levels, moderate[at], color=style.SEVERITY_COLORS[1], width=0.72)
        panel.bar(levels, severe[at], bottom=moderate[at], color=style.SEVERITY_COLORS[2], width=0.72)
        if reference is not None:
            total = np.asarray(reference)[at].sum(axis=1)
            panel.plot(levels, total, "_", color=style.color("ink"), ms=15, mew=1.6)
        panel.set_title(style.CONDITION_NAMES[c])
        panel.set_xticks(levels, LEVEL_TITLES)
        panel.grid(axis="y")
        panel.set_axisbelow(True)
    axes[0].set_ylabel("% of labelled")
    handles = [Patch(color=style.SEVERITY_COLORS[k], label=SEVERITIES[k].lower()) for k in (1, 2)]
    if reference is not None:
        tick = {"color": style.color("ink"), "marker": "_", "ls": "", "ms": 12}
        handles.append(Line2D([], [], label="moderate + severe, real set", **tick))
    figure.legend(handles=handles, loc="lower center", ncols=3, bbox_to_anchor=(0.5, -0.02))
    figure.subplots_adjust(left=0.05, right=0.99, top=0.8, bottom=0.19)
    return style.finish(figure, title=f"How often is a level narrowed?   {len(labels)} studies", synthetic=synthetic)


@style.themed
def show_co_occurrence(
    correlation: pd.DataFrame | np.ndarray, *, synthetic: bool = False, theme: str | None = None
) -> Figure:
    """Heat map of the rank correlation of all 25 targets, (25, 25), as from `studies.statistics.rank_correlation`."""
    values = np.asarray(correlation, dtype=float)
    if values.shape != (N_TARGETS, N_TARGETS):
        raise DataError(f"correlation must have shape ({N_TARGETS}, {N_TARGETS}), got {values.shape}")
    figure = style.new_figure(7.6, 6.6)
    panel = figure.add_axes((0.185, 0.03, 0.68, 0.76))
    image = panel.imshow(values, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
    names = list(LEVEL_TITLES) * N_CONDITIONS
    panel.set_yticks(range(N_TARGETS), names, fontsize=6)
    panel.set_xticks(range(N_TARGETS), names, fontsize=6, rotation=90)
    panel.xaxis.tick_top()
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    look = {"fontsize": 8.5, "fontweight": "bold"}
    for c, name in enumerate(style.CONDITION_NAMES):
        first, lines = c * N_LEVELS, name.replace(" ", "\n")
        panel.text(-3.1, first + 2, lines, ha="right", va="center", **look)
        panel.text(first + 2, -3.3, lines, ha="center", va="bottom", **look)
        if c:
            panel.axhline(first - 0.5, color="white", lw=2)
            panel.axvline(first - 0.5, color="white", lw=2)
    bar = figure.colorbar(image, cax=figure.add_axes((0.885, 0.2, 0.018, 0.42)))
    bar.set_label("Spearman's rank correlation")
    bar.outline.set_visible(False)
    return style.finish(figure, title="Which findings come together?", synthetic=synthetic)


@style.themed
def show_missing_labels(labels: np.ndarray, *, synthetic: bool = False, theme: str | None = None) -> Figure:
    """Percent of labels that are absent, per condition and level; labels int (n, 25), -1 where absent."""
    share = 100 * (_codes(labels) == MISSING).mean(axis=0).reshape(N_CONDITIONS, N_LEVELS)
    figure = style.new_figure(6.4, 2.6)
    panel = figure.add_axes((0.21, 0.06, 0.77, 0.68))
    texts = np.vectorize(lambda value: f"{value:.1f} %" if value else "–")(share)
    look = {"cmap": "Purples", "vmin": 0, "vmax": max(8.0, share.max())}
    style.draw_cells(panel, share, texts, columns=LEVEL_TITLES, rows=style.CONDITION_NAMES, **look)
    panel.xaxis.tick_top()
    return style.finish(figure, title="Labels that are absent", synthetic=synthetic)


@style.themed
def show_series_statistics(series: pd.DataFrame, *, synthetic: bool = False, theme: str | None = None) -> Figure:
    """Slices, matrix, pixel and slice spacing of each view.

    series: columns `view`, `slices`, `columns`, `pixel_mm`, `step_mm`, as from `studies.statistics.series_table`.
    """
    if len(series) == 0:
        return style.notice("Series: none was read")
    figure = style.new_figure(11, 2.9)
    names = ("slices in a series", "image width, pixels", "pixel spacing, mm", "distance of slices, mm")
    for i, (column, name) in enumerate(zip(("slices", "columns", "pixel_mm", "step_mm"), names, strict=True)):
        panel = figure.add_axes((0.045 + 0.243 * i, 0.3, 0.215, 0.5))
        values = series[column].dropna()
        low, high = (values.min(), values.max()) if len(values) else (0, 1)
        edges = np.linspace(low, high if high > low else low + 1, 25)
        data = [series.loc[series["view"] == view, column].dropna() for view in VIEWS]
        panel.hist(data, bins=edges, color=list(VIEW_COLORS.values()), stacked=True)
        panel.set_xlabel(name)
    figure.axes[0].set_ylabel("series")
    handles = [Patch(color=shade, label=view) for view, shade in VIEW_COLORS.items()]
    figure.legend(handles=handles, loc="lower center", ncols=3, bbox_to_anchor=(0.5, -0.01))
    return style.finish(figure, title=f"{len(series)} series", synthetic=synthetic)


@style.themed
def show_slice_order(series: pd.DataFrame, *, synthetic: bool = False, theme: str | None = None) -> Figure:
    """Which way slices run with rising instance number, per view: `order` of `studies.statistics.series_table`."""
    if len(series) == 0:
        return style.notice("Order of slices: no series was read")
    figure = style.new_figure(8.4, 2.4)
    panel = figure.add_axes((0.15, 0.21, 0.6, 0.56))
    shares = 100 * pd.crosstab(series["view"], series["order"], normalize="index").reindex(VIEWS, fill_value=0.0)
    left = np.zeros(len(VIEWS))
    used = [order for order in ORDER_COLORS if order in shares and shares[order].any()]
    for order in used:
        bars = panel.barh(VIEWS, shares[order], left=left, color=ORDER_COLORS[order], height=0.66)
        texts = [f"{share:.0f} %" if share > 6 else "" for share in shares[order]]
        panel.bar_label(bars, texts, label_type="center", fontsize=8, color="#10161d")
        left += shares[order].to_numpy()
    panel.set(ylim=(len(VIEWS) - 0.5, -0.5), xlim=(0, 100), xlabel="% of series")
    handles = [Patch(color=ORDER_COLORS[order], label=order) for order in used]
    panel.legend(handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return style.finish(figure, title="The file number says little about the anatomy", synthetic=synthetic)


@style.themed
def show_point_places(points: pd.DataFrame, *, synthetic: bool = False, theme: str | None = None) -> Figure:
    """Where the table's points lie, as fractions of image width and height, one panel a family of conditions.

    points: columns `family`, `level_index`, `x_fraction`, `y_fraction`, as from `studies.statistics.point_places`.
    """
    if len(points) == 0:
        return style.notice("Places of the points: no series with points was read")
    figure = style.new_figure(10, 3.5)
    for i, family in enumerate(FAMILIES):
        panel = figure.add_axes((0.055 + 0.32 * i, 0.13, 0.285, 0.68))
        for level in range(N_LEVELS):
            rows = points[(points["family"] == family) & (points["level_index"] == level)]
            look = {"s": 7, "color": style.LEVEL_COLORS[level], "alpha": 0.7, "lw": 0, "label": LEVEL_TITLES[level]}
            panel.scatter(rows["x_fraction"], rows["y_fraction"], **look)
        panel.set(xlim=(0, 1), ylim=(1, 0), facecolor="#10161d", title=family, xlabel="fraction of width")
    figure.axes[0].set_ylabel("fraction of height")
    figure.axes[-1].legend(loc="upper right", labelcolor="white", markerscale=2, handletextpad=0.1)
    return style.finish(figure, title="Where the points of the table lie in their images", synthetic=synthetic)


@style.themed
def show_counts(
    counts: Mapping[str, int] | pd.Series,
    *,
    title: str = "",
    unit: str = "rows",
    synthetic: bool = False,
    theme: str | None = None,
) -> Figure:
    """Named counts as labelled bars, for example the annotation errors found in the coordinate table."""
    counts = pd.Series(counts).sort_values()
    if len(counts) == 0:
        return style.notice(f"{title}: none")
    height = 1.05 + 0.3 * len(counts)
    figure = style.new_figure(8.4, height)
    panel = figure.add_axes((0.4, 0.48 / height, 0.56, 1 - 0.9 / height))
    bars = panel.barh(range(len(counts)), counts.to_numpy(), color=style.FAMILY_COLORS[0], height=0.66)
    panel.bar_label(bars, [f" {value}" for value in counts], fontsize=8.5, fontweight="bold")
    panel.set_yticks(range(len(counts)), counts.index)
    panel.set_xlabel(unit)
    panel.margins(x=0.08)
    return style.finish(figure, title=title, synthetic=synthetic)


def _codes(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.shape[1] != N_TARGETS:
        raise DataError(f"labels must have shape (n, {N_TARGETS}), got {labels.shape}")
    return labels
