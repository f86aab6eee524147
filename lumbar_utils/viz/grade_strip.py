"""Predictions and labels as a strip below the crops: a column a level, a bar a condition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import DataError
from ..labels import MISSING, N_CONDITIONS, N_SEVERITIES, N_TARGETS, SEVERITIES, target_index
from .style import CONDITION_NAMES, SEVERITY_COLORS, color

DARK_INK = "#0b0f14"
"""Text on the severities' colours, in either theme."""
ROOM = 0.9
"""Width of the bars when the labels stand at their right."""


def checked(probabilities, labels) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Probabilities as float (25, 3) and labels as int (25,), None where not given. Raises `DataError`."""
    wanted = {"probabilities": (N_TARGETS, N_SEVERITIES), "labels": (N_TARGETS,)}
    for (name, shape), values in zip(wanted.items(), (probabilities, labels), strict=True):
        if values is not None and np.shape(values) != shape:
            raise DataError(f"{name} must have shape {shape}, got {np.shape(values)}")
    probabilities = None if probabilities is None else np.asarray(probabilities, dtype=np.float64)
    return probabilities, None if labels is None else np.asarray(labels).astype(int)


def draw_grades(
    panel: Axes,
    level: int,
    probabilities: np.ndarray | None,
    labels: np.ndarray | None,
    *,
    names: bool,
    conditions: Sequence[int] = range(N_CONDITIONS),
) -> None:
    """Thin bars, one a condition: predicted probabilities, and the label as a square at the right end."""
    panel.set(facecolor=color("back"), xlim=(0, 1), ylim=(len(conditions) - 0.4, -0.6), xticks=[])
    panel.spines[:].set_visible(False)
    room = ROOM if labels is not None else 1.0
    for row, condition in enumerate(conditions):
        target = target_index(condition, level)
        if probabilities is not None:
            draw_bar(panel, row, probabilities[target], length=room, height=0.74)
        if labels is None or labels[target] == MISSING:
            continue
        shade = SEVERITY_COLORS[labels[target]]
        if probabilities is None:
            panel.barh(row, 1.0, height=0.74, color=shade, lw=0)
            continue
        edge = color("ink") if int(np.argmax(probabilities[target])) != labels[target] else "none"
        panel.plot(0.955, row, "s", ms=6.5, color=shade, mec=edge, mew=1.3)
    panel.set_yticks(range(len(conditions)) if names else [], [CONDITION_NAMES[c] for c in conditions] if names else [])
    panel.tick_params(length=0, labelsize=7.5)


def draw_bar(
    panel: Axes,
    row: float,
    probabilities: Sequence[float],
    *,
    length: float = 1.0,
    height: float = 0.8,
    unit: str = "",
    least: float = 0.18,
) -> None:
    """A bar in the severities' colours, `length` long, with per cents in the parts that are at least `least`."""
    start = 0.0
    for p, shade in zip(map(float, probabilities), SEVERITY_COLORS, strict=True):
        panel.barh(row, p * length, left=start * length, height=height, color=shade, lw=0)
        if p > least:
            look = {"ha": "center", "va": "center_baseline", "fontsize": 7, "color": DARK_INK}
            panel.text((start + p / 2) * length, row, f"{100 * p:.0f}{unit}", **look)
        start += p


def draw_key(figure: Figure, panel: Axes, with_bars: bool, with_labels: bool) -> None:
    """What the colours, bars and squares mean, below a panel."""
    box, (width, height) = panel.get_position(), figure.get_size_inches()
    x, y = box.x0, box.y0 - 0.17 / height
    for shade, name in zip(SEVERITY_COLORS, SEVERITIES, strict=True):
        figure.text(x, y, "■ ", color=shade, fontsize=9, va="center", gid="mark")
        figure.text(x + 0.15 / width, y, name.lower(), color=color("muted"), fontsize=7.5, va="center")
        x += (0.35 + 0.066 * len(name)) / width
    texts = ["bars: predicted frequency, %"] * with_bars
    if with_labels:
        texts.append("squares: label (framed: another bar is longest)" if with_bars else "bars: label")
    figure.text(x + 0.15 / width, y, "   ".join(texts), color=color("muted"), fontsize=7.5, va="center")
