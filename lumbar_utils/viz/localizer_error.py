"""Distances of found from true points in one chart: how far, how many within reach, at which level."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ..errors import DataError
from ..labels import LEVELS, N_LEVELS, level_title
from .style import (
    FAMILY_COLORS,
    LEVEL_COLORS,
    color,
    finish,
    new_figure,
    say,
    themed,
)


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
