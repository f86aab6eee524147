"""Attribution maps over the crops: the slices that speak most for a narrowing, and how the map spreads over slices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..labels import CONDITIONS, N_LEVELS, VIEWS
from .crops import montage
from .style import CONDITION_NAMES, finish, pictured

if TYPE_CHECKING:
    from ..crops.extraction import StudyCrops
    from ..explain.attribution import StudyAttribution


@pictured
def show_attribution(
    crops: StudyCrops,
    attribution: StudyAttribution,
    condition: int | str,
    *,
    probabilities: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    synthetic: bool = False,
    width: float = 9.0,
) -> Figure:
    """One condition across the five levels in all three views: what spoke for a narrowing, and how strongly.

    Each panel shows the slice with the map's highest point, says where it lies, and has a row of small bars at its
    left bottom: the map's mass in each slice, from the patient's right to the left, or from head to feet. Maps are
    scaled one by one, so that a faint map looks as warm as a strong one; the prediction below says how much it led to.

    Parameters
    ----------
    attribution : StudyAttribution
        From `explain.attribution_maps`.
    condition : int or str
        Of `labels.CONDITIONS`.
    probabilities, labels, width
        As in `show_crops`.
    """
    index = CONDITIONS.index(condition) if isinstance(condition, str) else int(condition)
    rows = [(view, 0.0, view.replace("/STIR", "")) for view in VIEWS]
    figure = montage(crops, rows, (index,), probabilities, labels, attribution, width=width)
    panels = iter(figure.axes)
    for view in VIEWS:
        for level in range(N_LEVELS):
            mass, shown = attribution.slice_shares(view, index, level), attribution.slice_of(view, index, level)
            draw_profile(next(panels), mass, shown)
    return finish(figure, title=f"{CONDITION_NAMES[index]}   study {crops.study_id}", synthetic=synthetic)


def draw_profile(panel: Axes, mass: np.ndarray, shown: int | None) -> None:
    """Small bars at the left bottom of a panel: the map's mass in each slice; that of the slice `shown` stands out."""
    if not mass.any():
        return
    inset = panel.inset_axes((0.03, 0.03, 0.3, 0.12))
    inset.set_facecolor((0, 0, 0, 0.5))
    colors = np.where(np.arange(len(mass)) == shown, "#ffd166", "#c8d2dc")
    inset.bar(np.arange(len(mass)), mass, width=0.8, color=colors, lw=0)
    inset.set_xlim(-0.6, len(mass) - 0.4)
    inset.set(xticks=[], yticks=[])
    inset.spines[:].set_visible(False)
