"""The diagram of the whole road, with crops of a phantom in it."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from lumbar_utils import viz
from lumbar_utils.labels import AXIAL_T2, CONDITIONS, LEVELS, SAGITTAL_T1, SAGITTAL_T2, level_title, target_index
from lumbar_utils.viz.images import localized_plane, mark_discs
from lumbar_utils.viz.planes import draw_plane
from lumbar_utils.viz.style import FAMILY_COLORS, SEVERITY_COLORS, color, new_figure, theme

from .patients import example
from .phantoms import around_the_spine


def architecture() -> Figure:
    """From DICOM to 25 x 3 probabilities, with real crops of a phantom in the place of each stack."""
    study, discs, cut, *_ = example()
    level = LEVELS.index("l4_l5")
    with mpl.rc_context(theme("light")):
        width, height = 13.0, 5.2
        figure = new_figure(width, height)
        canvas = figure.add_axes((0, 0, 1, 1))
        canvas.set_xlim(0, width)
        canvas.set_ylim(0, height)
        canvas.axis("off")
        plane = around_the_spine(localized_plane(study, discs), discs)
        panel = figure.add_axes((0.3 / width, 0.75 / height, 3.4 * plane.aspect / width, 3.4 / height))
        draw_plane(panel, plane, letters=False)
        mark_discs(panel, plane, discs, small=True)
        x_boxes = 0.3 + 3.4 * plane.aspect
        _note(canvas, 0.3, 4.55, "1  Find the discs", "five canal points on sagittal T2,\nin patient millimetres")
        _note(canvas, x_boxes + 0.75, 4.55, "2  Cut them out", "one box per level and view, 1 of 5 shown")
        streams = (
            (SAGITTAL_T2, 0.0, "sagittal T2", "3 × 7 × 7 cm"),
            (AXIAL_T2, 0.0, "axial T2", "3 × 7 × 7 cm"),
            (SAGITTAL_T1, 17.0, "sagittal T1", "9 × 7 × 7 cm"),
        )
        x = x_boxes + 0.85
        for i, (view, offset, name, size) in enumerate(streams):
            y = 2.98 - 1.18 * i
            shade = FAMILY_COLORS[i]
            for k, shift in enumerate((0.16, 0.08, 0.0)):
                small = figure.add_axes(((x + shift) / width, (y + shift) / height, 0.92 / width, 0.92 / height))
                plane = viz.crop_plane(cut, view, level, offset + (2 - k) * 4.0)
                draw_plane(small, plane, window=(0, 1.05), letters=False)
                for spine in small.spines.values():
                    spine.set(visible=True, color=shade, lw=1.2)
            canvas.text(x + 1.2, y + 0.62, name, fontsize=10.5, fontweight="bold", color=shade)
            canvas.text(x + 1.2, y + 0.38, size, fontsize=9, color=color("muted"))
            _arrow(canvas, (x_boxes + 0.08, 2.45), (x - 0.06, y + 0.46))
            _block(canvas, x + 2.75, y + 0.14, 1.75, 0.72, "3D ResNet18", shade)
            _arrow(canvas, (x + 2.25, y + 0.5), (x + 2.7, y + 0.5))
            _arrow(canvas, (x + 4.55, y + 0.5), (x + 5.22, 2.35))
        _note(canvas, x + 2.75, 4.55, "3  Read them", "three encoders, weights\nshared over the five levels")
        _block(canvas, x + 5.28, 1.55, 0.72, 1.6, "join\n+\nhead", "#5b6b7a")
        _arrow(canvas, (x + 6.04, 2.35), (x + 6.42, 2.35))
        _note(canvas, x + 5.28, 4.55, "4  Grade", "25 targets × 3 severities")
        _grid_of_grades(figure, example()[4], (x + 6.5) / width, 0.95 / height, 2.75 / width, 2.75 / height)
        words = "Pictures: a synthetic phantom; bars: how its simulated readers would grade it."
        figure.text(0.3 / width, 0.28 / height, words, fontsize=8.5, color=color("muted"))
        return figure


def _note(canvas, x: float, y: float, head: str, words: str) -> None:
    canvas.text(x, y + 0.3, head, fontsize=12.5, fontweight="bold", va="bottom")
    canvas.text(x, y + 0.22, words, fontsize=9, va="top", color=color("muted"), linespacing=1.4)


def _block(canvas, x: float, y: float, w: float, h: float, words: str, shade: str) -> None:
    style = "round,pad=0,rounding_size=0.1"
    canvas.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=style, facecolor=shade, edgecolor="none"))
    canvas.text(x + w / 2, y + h / 2, words, ha="center", va="center", color="white", fontsize=10.5, fontweight="bold")


def _arrow(canvas, start: tuple[float, float], end: tuple[float, float]) -> None:
    arrow = FancyArrowPatch(
        start, end, arrowstyle="-|>", mutation_scale=11, color=color("muted"), lw=1.3, shrinkA=0, shrinkB=0
    )
    canvas.add_patch(arrow)


def _grid_of_grades(figure: Figure, shares: np.ndarray, x: float, y: float, w: float, h: float) -> None:
    """The 25 outputs as a table of stacked bars."""
    panel = figure.add_axes((x, y, w, h))
    for c in range(len(CONDITIONS)):
        for level in range(len(LEVELS)):
            start = 0.0
            for p, shade in zip(shares[target_index(c, level)], SEVERITY_COLORS, strict=True):
                panel.barh(c, 0.86 * p, left=level + start, height=0.62, color=shade)
                start += 0.86 * p
    panel.set_xlim(-0.05, 5)
    panel.set_ylim(4.6, -0.6)
    panel.set_xticks(np.arange(5) + 0.43, [level_title(v) for v in LEVELS], fontsize=8.5)
    panel.set_yticks([])
    panel.xaxis.tick_top()
    panel.tick_params(length=0)
    for spine in panel.spines.values():
        spine.set_visible(False)
    for c, name in enumerate(("canal", "foramen L", "foramen R", "recess L", "recess R")):
        panel.text(0, c - 0.36, name, fontsize=7.5, va="bottom", color=color("muted"))
