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
"""For marks on images, which are dark in both themes; `level_ink` for text beside them."""
FAMILY_COLORS = ("#8f7cf0", "#2fb3a3", "#e8833a")
CONDITION_NAMES = tuple(condition_title(c).rsplit(" ", 1)[0].replace("Neural ", "") for c in CONDITIONS)
"""`Spinal Canal`, `Left Foraminal`, ...: what fits beside a small panel."""

_COLORS = {
    "dark": {"back": "#0b0f14", "panel": "#10161d", "ink": "#e6edf3", "muted": "#93a1af", "grid": "#27313c"},
    "light": {"back": "#ffffff", "panel": "#ffffff", "ink": "#1b2733", "muted": "#5b6b7a", "grid": "#e1e7ed"},
}
_LEVEL_INKS = {"dark": LEVEL_COLORS, "light": ("#1b66a6", "#0b6e53", "#7d6000", "#a84a0a", "#b3205a")}
_SEVERITY_INKS = {"dark": ("#62adea", "#f2b134", "#f0666a"), "light": ("#1b66a6", "#8a5a00", "#c1272d")}
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


def themed(function: Callable[..., Figure], default: str = "light") -> Callable[..., Figure]:
    """Give a chart the keyword `theme` ("light" or "dark") and draw it in that theme, the one in use or `default`."""

    @functools.wraps(function)
    def draw(*args, theme: str | None = None, **kwargs) -> Figure:
        with mpl.rc_context(_settings(theme or _chosen.get() or default)):
            return function(*args, **kwargs)

    return draw


def pictured(function: Callable[..., Figure]) -> Callable[..., Figure]:
    """`themed` for images of patients, dark by default."""
    return themed(function, "dark")


_settings = theme


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


def new_figure(width: float, height: float, **kwargs) -> Picture:
    """A figure of that many inches, already closed for pyplot, in the theme in use."""
    _tell_notebook()
    figure = plt.figure(figsize=(width, height), FigureClass=Picture, **kwargs)
    plt.close(figure)
    return figure


def _tell_notebook() -> None:
    """Have a running notebook show a `Picture` by its own PNG.

    matplotlib's inline backend registers a printer for all figures, which goes before an object's own and crops them.
    """
    if shell := notebook_shell():
        shell.display_formatter.formatters["image/png"].for_type(Picture, Picture.png)


def color(role: str) -> str:
    """Colour of a role (`back`, `panel`, `ink`, `muted`, `grid`) in the theme in use."""
    return _COLORS[_in_force()][role]


def level_ink(level: int) -> str:
    """A level's colour for text in the theme in use."""
    return _LEVEL_INKS[_in_force()][level]


def severity_ink(severity: int) -> str:
    """A severity's colour for text in the theme in use."""
    return _SEVERITY_INKS[_in_force()][severity]


def _in_force() -> str:
    return "dark" if mpl.rcParams["figure.facecolor"] == _COLORS["dark"]["back"] else "light"


def outline(width: float = 2.0) -> list:
    """Path effect that keeps text and thin lines readable on any grey."""
    return [patheffects.withStroke(linewidth=width, foreground="black", alpha=0.85)]


def write_on(panel: Axes, x: float, y: float, text: str, **look) -> None:
    """Text on an image, white with a dark rim, in fractions of the panel; `look` of `Axes.text` overrides this."""
    look = {"color": "white", "fontsize": 7.5, "transform": panel.transAxes, "path_effects": outline()} | look
    panel.text(x, y, text, **look)


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
    panel.set_xticks(range(len(columns)), columns)
    panel.set_yticks(range(len(rows)), rows)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    return image


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
