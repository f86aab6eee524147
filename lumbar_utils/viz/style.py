"""How every figure of the library looks: themes, colours, titles, the stamp on synthetic data, saving.

Images of patients are shown on near-black, as in a reading room, because the eye judges grey levels against
their surround; charts are light. Every function takes `theme="dark"` or `"light"` to have it otherwise, and
`with use_theme("light"):` says it for all. Functions return a `Figure` that pyplot has already let go of, so that a
notebook shows it once and long runs do not pile up open figures.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import ParamSpec

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from ..errors import DataError
from ..files import atomically
from ..labels import CONDITIONS, condition_title
from ..notebook_html import notebook_shell

SEVERITY_COLORS = ("#4c9fe0", "#f2b134", "#e5484d")
"""Normal/mild, moderate, severe: apart in hue and in lightness, also for colour-blind readers."""
LEVEL_COLORS = ("#7cc4ff", "#5fe0b7", "#f6d365", "#ff9f5a", "#ff6f91")
"""For marks on images, which are dark in both themes; `color` for text beside them."""
FAMILY_COLORS = ("#8f7cf0", "#2fb3a3", "#e8833a")
CONDITION_NAMES = tuple(condition_title(c).rsplit(" ", 1)[0].replace("Neural ", "") for c in CONDITIONS)
"""`Spinal Canal`, `Left Foraminal`, ...: what fits beside a small panel."""

_COLORS = {
    "dark": {"back": "#0b0f14", "panel": "#10161d", "ink": "#e6edf3", "muted": "#93a1af", "grid": "#27313c"},
    "light": {"back": "#ffffff", "panel": "#ffffff", "ink": "#1b2733", "muted": "#5b6b7a", "grid": "#e1e7ed"},
}
_INKS = {
    "level": {"dark": LEVEL_COLORS, "light": ("#1b66a6", "#0b6e53", "#7d6000", "#a84a0a", "#b3205a")},
    "severity": {"dark": ("#62adea", "#f2b134", "#f0666a"), "light": ("#1b66a6", "#8a5a00", "#c1272d")},
}
P = ParamSpec("P")
_chosen: ContextVar[str | None] = ContextVar("theme", default=None)


@contextmanager
def use_theme(name: str) -> Iterator[None]:
    """Draw everything inside of the `with` block in one theme, `"dark"` or `"light"`, where a call names none."""
    theme(name)
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def theme(name: str) -> dict:
    """matplotlib settings of the theme `"dark"` or `"light"`. Raises `DataError` for another name."""
    if name not in _COLORS:
        raise DataError(f"unknown theme {name!r}, expected one of {sorted(_COLORS)}")
    c = _COLORS[name]
    words = ("axes.labelcolor", "axes.titlecolor", "text.color", "xtick.labelcolor", "ytick.labelcolor")
    return {
        **dict.fromkeys(("figure.facecolor", "savefig.facecolor"), c["back"]),
        **dict.fromkeys((*words, "legend.labelcolor"), c["ink"]),
        **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), c["muted"]),
        **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.grid", "legend.frameon"), False),
        **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8),
        **dict.fromkeys(("axes.labelsize", "font.size"), 9),
        "axes.facecolor": c["panel"],
        "grid.color": c["grid"],
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "font.family": ["DejaVu Sans"],
        "lines.linewidth": 1.8,
        "figure.dpi": 100,
    }


def themed(function: Callable[P, Figure], default: str = "light") -> Callable[P, Figure]:
    """Draw a chart in the theme that its argument `theme` names, else in the one in use, else in `default`."""

    @functools.wraps(function)
    def draw(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(theme(str(kwargs.get("theme") or _chosen.get() or default))):
            return function(*args, **kwargs)

    return draw


def pictured(function: Callable[P, Figure]) -> Callable[P, Figure]:
    """`themed` for images of patients, dark by default."""
    return themed(function, "dark")


class Picture(Figure):
    """A figure that shows itself in a notebook as its own PNG, uncropped, so that all figures keep their width."""

    def png(self, dpi: float | None = None) -> bytes:
        """The figure as a PNG file's bytes, by default with the pixels an inch of a notebook."""
        drawn = io.BytesIO()
        self.savefig(drawn, format="png", dpi=dpi or self.dpi)
        # A palette of 256 colours halves the file; this way of choosing it keeps small areas of a colour of their own.
        picture = Image.open(drawn).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        drawn = io.BytesIO()
        picture.save(drawn, "png", optimize=True)
        return drawn.getvalue()

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        return {"image/png": base64.b64encode(self.png()).decode("ascii"), "text/plain": repr(self)}


def new_figure(width: float, height: float) -> Picture:
    """A figure of that many inches, already closed for pyplot, in the theme in use."""
    if shell := notebook_shell():
        # matplotlib's inline backend registers a printer for all figures, which goes before their own and crops them.
        shell.display_formatter.formatters["image/png"].for_type(Picture, Picture.png)
    figure = plt.figure(figsize=(width, height), FigureClass=Picture)
    plt.close(figure)
    return figure


def add_panel(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Axes of that many inches, their left bottom corner at (x, y) inches."""
    whole = figure.get_size_inches()
    return figure.add_axes((x / whole[0], y / whole[1], width / whole[0], height / whole[1]))


def color(role: str, number: int | None = None) -> str:
    """Colour of a role (`back`, `panel`, `ink`, `muted`, `grid`) in the theme in use; or of the text of a `level` or
    `severity`, by its number."""
    name = "dark" if mpl.rcParams["figure.facecolor"] == _COLORS["dark"]["back"] else "light"
    return _COLORS[name][role] if number is None else _INKS[role][name][number]


def outline(width: float = 2.0) -> list:
    """Path effect that keeps text and thin lines readable on any grey."""
    return [patheffects.withStroke(linewidth=width, foreground="black", alpha=0.85)]


def write_on(panel: Axes, x: float, y: float, text: str, **look) -> None:
    """Text on an image, white with a dark rim, in fractions of the panel; `look` of `Axes.text` overrides this."""
    look = {"color": "white", "fontsize": 7.5, "transform": panel.transAxes, "path_effects": outline()} | look
    panel.text(x, y, text, **look)


def draw_interval(panel: Axes, at: float, value: float, low: float, high: float, shade: str) -> None:
    """A dot and its interval; nothing where it is not defined."""
    panel.plot([low, high], [at, at], color=shade, lw=2, alpha=0.75, solid_capstyle="round")
    panel.plot(value, at, "o", ms=4.5, color=shade, zorder=3)


def draw_rows(panel: Axes, n: float) -> None:
    """Make a panel of a table: `n` rows from the top down, no ticks or frame at their left, with a vertical grid."""
    panel.set_ylim(n - 0.5, -0.5)
    panel.tick_params(axis="y", length=0, labelsize=8.5)
    panel.spines["left"].set_visible(False)
    panel.grid(axis="x")
    panel.set_axisbelow(True)


def draw_cells(
    panel: Axes, values: np.ndarray, texts: np.ndarray, *, columns: Sequence[str], rows: Sequence[str], **look
) -> AxesImage:
    """A table as an image, its texts white on dark cells; `look` of `Axes.imshow`."""
    image = panel.imshow(values, aspect="auto", **look)
    for (row, column), text in np.ndenumerate(texts):
        red, green, blue, _ = image.cmap(image.norm(values[row, column]))
        ink = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.55 else "#1b2733"
        panel.text(column, row, text, ha="center", va="center", fontsize=8.5, color=ink)
    name_cells(panel, columns, rows)
    return image


def name_cells(panel: Axes, columns: Sequence[str], rows: Sequence[str], **look) -> None:
    """Names of a table's columns and rows, without ticks and frame; `look` of the columns' names."""
    panel.set_xticks(range(len(columns)), columns, **look)
    panel.set_yticks(range(len(rows)), rows)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)


def finish(figure: Figure, *, title: str = "", synthetic: bool = False) -> Figure:
    """Write the figure's title at its top left, and `synthetic` at its top right when the data are."""
    top, look = 1 - 0.08 / figure.get_size_inches()[1], {"va": "top", "fontweight": "bold"}
    if title:
        figure.text(0.012, top, title, fontsize=11, color=color("ink"), **look)
    if synthetic:
        box = {"boxstyle": "round,pad=0.25", "facecolor": "#f6d365", "edgecolor": "none"}
        figure.text(0.988, top, "synthetic", ha="right", fontsize=8, color="#10161d", bbox=box, **look)
    return figure


def notice(text: str) -> Figure:
    """A figure that only holds the reason why there is nothing to see."""
    figure = new_figure(8, 0.5)
    figure.text(0.012, 0.5, text, va="center", fontsize=10, color=color("muted"))
    figure.add_axes((0, 0, 1, 1)).set_axis_off()  # a notebook shows no figure without axes
    return figure


def save(figure: Figure, path: Path | str, *, dpi: int = 110) -> Figure:
    """Write a figure to `path` (folders are made, the file appears whole or not at all) and give it back."""
    path = Path(path)
    atomically(path, lambda temporary: figure.savefig(temporary, dpi=dpi, format=path.suffix[1:] or "png"))
    return figure
