"""Charts of what was learnt: errors of the disc finder, training curves, confusion, reliability, scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..errors import DataError
from ..labels import FAMILIES, LEVELS, MISSING, N_LEVELS, N_SEVERITIES, N_TARGETS, SEVERITIES, level_title
from .style import FAMILY_COLORS, LEVEL_COLORS, SEVERITY_COLORS, color, finish, new_figure, say, themed

if TYPE_CHECKING:
    from ..metrics import Score

SCORE_TERMS = ("spinal", "foraminal", "subarticular", "any_severe_spinal", "total")
_INK_ON_LEVEL = ("#2f8fd6", "#1fae86", "#c9a227", "#e0762b", "#d8436a")
"""`LEVEL_COLORS` darkened, for lines on a white ground."""


@themed
def show_localizer_error(errors_mm: np.ndarray, *, limit: float = 5.0, synthetic: bool = False) -> Figure:
    """Distance of found and true canal points: histogram, share within a distance, and spread by level.

    Parameters
    ----------
    errors_mm : ndarray, shape (n_studies, 5)
        nan where the truth is not known.
    limit : float
        mm within which a point counts as found.
    """
    errors = np.asarray(errors_mm, dtype=float)
    if errors.ndim != 2 or errors.shape[1] != N_LEVELS:
        raise DataError(f"errors must have shape (n, {N_LEVELS}), got {errors.shape}")
    known = errors[np.isfinite(errors)]
    if known.size == 0:
        return say("Distance from the true canal point: no level was both found and known")
    figure = new_figure(11, 3.1)
    left, middle, right = (figure.add_axes((x, 0.17, 0.26, 0.62)) for x in (0.055, 0.39, 0.725))
    top = max(limit * 1.2, float(np.quantile(known, 0.995)))
    left.hist(np.minimum(known, top), bins=np.linspace(0, top, 31), color=FAMILY_COLORS[1])
    left.axvline(np.median(known), color=color("ink"), lw=1.2, ls="--")
    left.text(np.median(known), left.get_ylim()[1], f" median {np.median(known):.2f} mm", va="top", fontsize=8.5)
    left.set_xlabel("error, mm")
    left.set_ylabel("levels")
    middle.step(np.sort(known), 100 * np.arange(1, known.size + 1) / known.size, where="post", color=FAMILY_COLORS[1])
    within = 100 * float(np.mean(known <= limit))
    middle.axvline(limit, color=color("ink"), lw=1.2, ls="--")
    middle.text(limit, 8, f" {within:.1f} % within {limit:g} mm", fontsize=8.5)
    middle.set_xlim(0, top * 1.25)
    middle.set_ylim(0, 101)
    middle.set_xlabel("error, mm")
    middle.set_ylabel("% of levels")
    middle.grid()
    boxes = right.boxplot(
        [column[np.isfinite(column)] for column in errors.T],
        patch_artist=True,
        widths=0.6,
        medianprops={"color": color("ink")},
        flierprops={"ms": 3, "mec": color("muted")},
    )
    for box, shade in zip(boxes["boxes"], LEVEL_COLORS, strict=True):
        box.set(facecolor=shade, edgecolor=color("muted"))
    right.set_xticks(range(1, N_LEVELS + 1), [level_title(level) for level in LEVELS])
    right.set_ylabel("error, mm")
    return finish(figure, title=f"Distance from the true canal point   {len(errors)} studies", synthetic=synthetic)


@themed
def show_training_curves(
    history: pd.DataFrame,
    *,
    groups: Sequence[Sequence[str]] | None = None,
    references: Mapping[str, float] | None = None,
    synthetic: bool = False,
    title: str = "Training",
) -> Figure:
    """Columns of a history against its epoch.

    Parameters
    ----------
    history : DataFrame
        A column `epoch` (or `step`) and numeric columns.
    groups : sequence of column lists, optional
        One panel each. Default: every column whose name holds `loss` together, then each other column alone.
    references : mapping name -> height, optional
        Level lines in the panels that show a validation loss or score, for example the weighted prior's score.
    """
    axis = next((name for name in ("epoch", "step", "iteration") if name in history), None)
    x = history[axis] if axis else pd.Series(range(1, len(history) + 1))
    numeric = [c for c in history.columns if c != axis and pd.api.types.is_numeric_dtype(history[c])]
    if len(history) == 0:
        return say(f"{title}: the history is empty")
    if groups is None:
        losses = [c for c in numeric if "loss" in c]
        others = [c for c in numeric if "loss" not in c and c not in ("seconds", "lr", "learning_rate")]
        groups = [g for g in (losses, *([c] for c in others)) if g][:4]
    if not groups:
        raise DataError(f"the history has no numeric column to draw, it has {list(history.columns)}")
    figure = new_figure(min(11, 1.2 + 3.6 * len(groups)), 3.0)
    axes = figure.subplots(1, len(groups), squeeze=False, gridspec_kw={"wspace": 0.28})[0]
    for panel, names in zip(axes, groups, strict=True):
        for i, name in enumerate(names):
            values = history[name]
            known = values.notna()
            marker = "o" if known.sum() < 30 else None
            look = {"color": _INK_ON_LEVEL[(3 * i) % 5], "marker": marker, "ms": 3}
            panel.plot(x[known], values[known], label=name.replace("_", " "), **look)
        if references and any("val" in n or "score" in n for n in names):
            for i, (name, height) in enumerate(references.items()):
                panel.axhline(height, color=color("muted"), lw=1, ls=("--", ":", "-.")[i % 3])
                place = {"transform": panel.get_yaxis_transform(), "ha": "right", "va": "bottom"}
                panel.text(0.99, height, name, fontsize=7.5, color=color("muted"), **place)
        panel.set_xlabel(axis or "row")
        panel.grid(axis="y")
        panel.legend()
    figure.subplots_adjust(left=0.07, right=0.98, top=0.85, bottom=0.17)
    return finish(figure, title=title, synthetic=synthetic)


@themed
def show_confusion(labels: np.ndarray, probabilities: np.ndarray, *, synthetic: bool = False) -> Figure:
    """Label against most probable class, per family of conditions; rows add up to 100 %.

    labels int (n, 25) with -1 where absent; probabilities (n, 25, 3).
    """
    labels, probabilities = _pair(labels, probabilities)
    figure = new_figure(10, 3.4)
    short = [s.lower().replace("normal/mild", "normal/\nmild") for s in SEVERITIES]
    for i, (family, conditions) in enumerate(FAMILIES.items()):
        true, predicted = _of_family(labels, probabilities, conditions)
        table = np.zeros((N_SEVERITIES, N_SEVERITIES), dtype=int)
        np.add.at(table, (true, predicted.argmax(axis=1)), 1)
        share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
        panel = figure.add_axes((0.085 + 0.315 * i, 0.17, 0.25, 0.62))
        panel.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, col), count in np.ndenumerate(table):
            shade = "white" if share[row, col] > 0.55 else "#1b2733"
            words = f"{100 * share[row, col]:.0f} %\n{count}" if table[row].any() else "–"
            panel.text(col, row, words, ha="center", va="center", color=shade, fontsize=8.5)
        panel.set_xticks(range(N_SEVERITIES), short)
        panel.set_yticks(range(N_SEVERITIES), short if i == 0 else [""] * N_SEVERITIES)
        panel.tick_params(length=0)
        panel.set_xlabel("most probable")
        panel.set_title(family)
        for spine in panel.spines.values():
            spine.set_visible(False)
    figure.axes[0].set_ylabel("label")
    return finish(figure, title="Confusion", synthetic=synthetic)


@themed
def show_reliability(
    labels: np.ndarray, probabilities: np.ndarray, *, bins: int = 8, synthetic: bool = False
) -> Figure:
    """How often it is so when the network says p: observed share against predicted probability, in equal bins.

    A point on the diagonal is an honest probability; the bars show one standard error. Bins hold equally many.
    """
    labels, probabilities = _pair(labels, probabilities)
    figure = new_figure(10, 3.4)
    for i, (family, conditions) in enumerate(FAMILIES.items()):
        true, predicted = _of_family(labels, probabilities, conditions)
        panel = figure.add_axes((0.065 + 0.32 * i, 0.16, 0.27, 0.63))
        panel.plot([0, 1], [0, 1], color=color("muted"), lw=1, ls="--")
        for k in range(N_SEVERITIES):
            order = np.array_split(np.argsort(predicted[:, k], kind="stable"), min(bins, max(1, len(true) // 10)))
            order = [chunk for chunk in order if len(chunk)]
            said = np.array([predicted[chunk, k].mean() for chunk in order])
            seen = np.array([(true[chunk] == k).mean() for chunk in order])
            spread = np.sqrt(np.maximum(seen * (1 - seen), 1e-9) / [len(chunk) for chunk in order])
            panel.errorbar(
                said,
                seen,
                spread,
                color=SEVERITY_COLORS[k],
                marker="o",
                ms=4,
                lw=1.4,
                elinewidth=0.8,
                label=SEVERITIES[k].lower(),
            )
        panel.set_xlim(-0.02, 1.02)
        panel.set_ylim(-0.02, 1.02)
        panel.set_title(family)
        panel.set_xlabel("predicted probability")
        panel.grid()
    figure.axes[0].set_ylabel("observed share")
    figure.axes[0].legend(loc="upper left")
    return finish(figure, title="Reliability", synthetic=synthetic)


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
        panel.barh(range(len(values)), values, color=shades, height=0.64, alpha=1.0 if i == 0 else 0.65)
        for row, value in enumerate(values):
            panel.text(
                value,
                row,
                f" {value:.3f}",
                va="center",
                fontsize=9 if i == 0 else 8,
                fontweight="bold" if i == 0 else "normal",
            )
        panel.set_xlim(0, max(values) * 1.32)
        panel.set_ylim(len(values) - 0.5, -0.5)
        panel.set_yticks(range(len(values)), list(scores) if i == 0 else [""] * len(values))
        panel.set_xticks([])
        panel.tick_params(length=0, labelsize=9)
        panel.spines["bottom"].set_visible(False)
        panel.set_title(("score" if term == "total" else term.replace("_", " ")), fontsize=9)
        x += width + 0.012
    return finish(figure, title="Lower is better", synthetic=synthetic)


def _of_family(
    labels: np.ndarray, probabilities: np.ndarray, conditions: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    columns = [c * N_LEVELS + level for c in conditions for level in range(N_LEVELS)]
    true, predicted = labels[:, columns].ravel(), probabilities[:, columns].reshape(-1, N_SEVERITIES)
    return true[true != MISSING], predicted[true != MISSING]


def _pair(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, probabilities = np.asarray(labels).astype(int), np.asarray(probabilities, dtype=float)
    if labels.ndim != 2 or labels.shape[1] != N_TARGETS or probabilities.shape != (*labels.shape, N_SEVERITIES):
        raise DataError(
            f"expected labels (n, {N_TARGETS}) and probabilities (n, {N_TARGETS}, {N_SEVERITIES}), "
            f"got {labels.shape} and {probabilities.shape}"
        )
    return labels, probabilities
