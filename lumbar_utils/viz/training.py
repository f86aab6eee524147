"""Curves of a training, afterwards or while it goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..errors import DataError
from ..labels import N_LEVELS
from ..notebook_html import notebook_shell
from .style import color, finish, new_figure, notice, themed

logger = logging.getLogger(__name__)


@themed
def show_training_curves(
    history: pd.DataFrame,
    *,
    groups: Sequence[Sequence[str]] | None = None,
    references: Mapping[str, float] | None = None,
    synthetic: bool = False,
    title: str = "Training",
    theme: str | None = None,
) -> Figure:
    """Columns of a history against its epoch.

    history: a column `epoch` (or `step`) and numeric columns; groups: the columns of each panel, by default all whose
    name holds `loss` together, then each other column alone; references: heights by name of level lines in the panels
    of a validation loss or score, for example the weighted prior's score.
    """
    if len(history) == 0:
        return notice(f"{title}: the history is empty")
    axis = next((name for name in ("epoch", "step", "iteration") if name in history), None)
    x = history[axis] if axis else pd.Series(range(1, len(history) + 1))
    if groups is None:
        names = history.select_dtypes("number").columns.drop(axis or [])
        losses = [c for c in names if "loss" in c]
        others = [[c] for c in names if c not in (*losses, "seconds", "lr", "learning_rate")]
        groups = [group for group in (losses, *others) if group][:4]
    if not groups:
        raise DataError(f"the history has no numeric column to draw, it has {list(history.columns)}")
    figure = new_figure(min(11, 1.2 + 3.6 * len(groups)), 3.0)
    axes = figure.subplots(1, len(groups), squeeze=False, sharex=True, gridspec_kw={"wspace": 0.28})[0]
    for panel, names in zip(axes, groups, strict=True):
        for i, name in enumerate(names):
            known = history[name].notna()
            look = {"color": color("level", (3 * i) % N_LEVELS), "marker": "o" if known.sum() < 30 else None, "ms": 3}
            panel.plot(x[known], history.loc[known, name], label=name.replace("_", " "), **look)
        if references and any("val" in n or "score" in n for n in names):
            for i, (name, height) in enumerate(references.items()):
                panel.axhline(height, color=color("muted"), lw=1, ls=("--", ":", "-.")[i % 3])
                place = {"transform": panel.get_yaxis_transform(), "ha": "right", "va": "bottom"}
                panel.text(0.99, height, name, fontsize=7.5, color=color("muted"), **place)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panel.set_xlabel(axis or "row")
        panel.grid(axis="y")
        if len(names) > 1:
            panel.legend()
        else:
            panel.set_title(names[0].replace("_", " "))
    figure.subplots_adjust(left=0.07, right=0.98, top=0.82, bottom=0.17)
    return finish(figure, title=title, synthetic=synthetic)


class LiveCurves:
    """Training curves that redraw themselves in the notebook cell that trains: give it to `fit` as `on_epoch`.

    Outside a notebook it does nothing. One output a training, such as a fold, is updated in place, so that a saved
    notebook keeps the last figure only. A drawing that fails is logged, once, and the training goes on without curves.

    Options are those of `show_training_curves`; the title gains the epoch and the minutes so far. It draws at most once
    in `every_seconds`, and what was skipped last at the end of the cell.
    """

    def __init__(
        self,
        *,
        groups: Sequence[Sequence[str]] | None = None,
        references: Mapping[str, float] | None = None,
        title: str = "Training",
        synthetic: bool = False,
        theme: str = "light",
        every_seconds: float = 2.0,
    ):
        self._look = {"groups": groups, "references": references, "synthetic": synthetic, "theme": theme}
        self._title, self._every = title, every_seconds
        self._shell = notebook_shell()
        self._output, self._skipped, self._drawn_at = None, None, -float("inf")
        self._last = pd.DataFrame()

    def __call__(self, history: pd.DataFrame) -> None:
        """Draw the history so far, unless the last drawing is too recent."""
        if self._shell is None:
            return
        before, self._last = self._last, history
        if not _goes_on(before, history):  # another training begins: a picture of its own
            if self._skipped is not None:
                self._catch_up()
            self._output, self._drawn_at = None, -float("inf")
            if self._shell is None:
                return
        if time.monotonic() - self._drawn_at >= self._every:
            self._draw(history)
            return
        if self._skipped is None:
            self._shell.events.register("post_run_cell", self._catch_up)
        self._skipped = history

    def _catch_up(self, *_) -> None:
        self._shell.events.unregister("post_run_cell", self._catch_up)
        history, self._skipped = self._skipped, None
        self._draw(history)

    def _draw(self, history: pd.DataFrame) -> None:
        from IPython.display import Image, display

        try:
            picture = Image(show_training_curves(history, title=self._title + _so_far(history), **self._look).png())
            if self._output is None:
                self._output = display(picture, display_id=True)
            else:
                self._output.update(picture)
        except Exception as error:  # a chart must never cost a training
            logger.warning("no curves from here on: %s", error)
            self._shell = None
        self._drawn_at = time.monotonic()


def _goes_on(before: pd.DataFrame, history: pd.DataFrame) -> bool:
    """Whether a history is one of the same training as `before`, some epochs later."""
    if len(history) <= len(before):
        return False
    return not len(before) or np.array_equal(history["loss"].iloc[: len(before)], before["loss"], equal_nan=True)


def _so_far(history: pd.DataFrame) -> str:
    last = history.iloc[-1]
    parts = [f"epoch {last['epoch']:.0f}"] if "epoch" in history else []
    parts += [f"{last['seconds'] / 60:.1f} minutes"] if "seconds" in history else []
    return "   " + ", ".join(parts)
