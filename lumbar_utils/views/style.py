"""How every figure of the library looks: themes, colours, titles, the stamp on synthetic data, saving.

Images of patients are shown on near-black, as in a reading room, because the eye judges grey levels against
their surround. Charts take a light or a dark theme. Functions return a `Figure` that pyplot has already let go
of, so that a notebook shows it once and long runs do not pile up open figures.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib import patheffects
from matplotlib.figure import Figure

from ..errors import DataError
from ..labels import CONDITIONS, condition_title

SEVERITY_COLORS = ("#4c9fe0", "#f2b134", "#e5484d")
"""Normal/mild, moderate, severe: apart in hue and in lightness, also for colour-blind readers."""
LEVEL_COLORS = ("#7cc4ff", "#5fe0b7", "#f6d365", "#ff9f5a", "#ff6f91")
FAMILY_COLORS = ("#8f7cf0", "#2fb3a3", "#e8833a")
CONDITION_NAMES = tuple(condition_title(c).rsplit(" ", 1)[0].replace("Neural ", "") for c in CONDITIONS)
"""`Spinal Canal`, `Left Foraminal`, ...: what fits beside a small panel."""

_COLORS = {
    "dark": {"back": "#0b0f14", "panel": "#10161d", "ink": "#e6edf3", "muted": "#93a1af", "grid": "#27313c"},
    "light": {"back": "#ffffff", "panel": "#ffffff", "ink": "#1b2733", "muted": "#5b6b7a", "grid": "#e1e7ed"},
}


def theme(name: str) -> dict:
    """matplotlib settings of the theme `"dark"` or `"light"`. Raises `DataError` for another name."""
    if name not in _COLORS:
        raise DataError(f"unknown theme {name!r}, expected one of {sorted(_COLORS)}")
    c = _COLORS[name]
    return {
        "figure.facecolor": c["back"],
        "savefig.facecolor": c["back"],
        "axes.facecolor": c["panel"],
        "axes.edgecolor": c["muted"],
        "axes.labelcolor": c["ink"],
        "axes.titlecolor": c["ink"],
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": False,
        "grid.color": c["grid"],
        "text.color": c["ink"],
        "xtick.color": c["muted"],
        "ytick.color": c["muted"],
        "xtick.labelcolor": c["ink"],
        "ytick.labelcolor": c["ink"],
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "legend.labelcolor": c["ink"],
        "font.size": 9,
        "font.family": ["DejaVu Sans"],
        "lines.linewidth": 1.8,
        "figure.dpi": 100,
    }


def themed(function: Callable[..., Figure]) -> Callable[..., Figure]:
    """Give a chart the keyword `theme` ("light" or "dark", default light) and draw it in that theme."""

    @functools.wraps(function)
    def draw(*args, theme: str = "light", **kwargs) -> Figure:
        with mpl.rc_context(_settings(theme)):
            return function(*args, **kwargs)

    return draw


_settings = theme


def new_figure(width: float, height: float, **kwargs) -> Figure:
    """A figure of that many inches, already closed for pyplot, in the settings in force."""
    figure = plt.figure(figsize=(width, height), **kwargs)
    plt.close(figure)
    return figure


def color(role: str) -> str:
    """Colour of a role (`back`, `panel`, `ink`, `muted`, `grid`) in the settings in force."""
    dark = mpl.rcParams["figure.facecolor"] == _COLORS["dark"]["back"]
    return _COLORS["dark" if dark else "light"][role]


def outline(width: float = 2.0) -> list:
    """Path effect that keeps text and thin lines readable on any grey."""
    return [patheffects.withStroke(linewidth=width, foreground="black", alpha=0.85)]


def finish(figure: Figure, *, title: str = "", synthetic: bool = False) -> Figure:
    """Write the figure's title at its top left, and `synthetic` at its top right when the data are."""
    height = figure.get_size_inches()[1]
    top = 1 - 0.08 / height
    if title:
        figure.text(0.012, top, title, ha="left", va="top", fontsize=11, fontweight="bold", color=color("ink"))
    if synthetic:
        figure.text(
            0.988,
            top,
            "synthetic",
            ha="right",
            va="top",
            fontsize=8,
            fontweight="bold",
            color="#10161d",
            bbox={"boxstyle": "round,pad=0.25", "facecolor": "#f6d365", "edgecolor": "none"},
        )
    return figure


def say(text: str) -> Figure:
    """A figure that only says why there is nothing to see."""
    figure = new_figure(8, 0.5)
    figure.text(0.012, 0.5, text, va="center", fontsize=10, color=color("muted"))
    figure.add_axes((0, 0, 1, 1)).set_axis_off()  # a notebook shows no figure without axes
    return figure


def save(figure: Figure, path: Path | str, *, dpi: int = 110) -> Figure:
    """Write a figure to `path` (folders are made, the file appears whole or not at all) and give it back."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(temporary, dpi=dpi)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return figure
