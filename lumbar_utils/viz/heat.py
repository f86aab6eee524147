"""Attribution maps over grey images: low values stay grey, high values are tinted."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from .planes import ImagePlane

HEAT = "inferno"
"""Ordered in lightness, so that warmer is lighter for every reader."""
MIN_SHOWN = 0.15
"""Below this fraction of the map's largest value nothing is drawn."""
OPACITY = 0.6


def heat_rgba(values: np.ndarray) -> np.ndarray:
    """A map of 0 to 1 (rows, columns) as float RGBA (rows, columns, 4), transparent where low."""
    values = np.clip(np.asarray(values, dtype=np.float64), 0, 1)
    warm = np.clip((values - MIN_SHOWN) / (1 - MIN_SHOWN), 0, 1)
    rgba = mpl.colormaps[HEAT](0.25 + 0.7 * warm)
    rgba[..., 3] = OPACITY * np.sqrt(warm)
    return rgba


def draw_heat(panel: Axes, plane: ImagePlane, values: np.ndarray) -> None:
    """Tint a panel on which `plane` is drawn; `values` of 0 to 1 has the plane's shape."""
    panel.imshow(heat_rgba(values), extent=plane.extent, interpolation="bilinear", aspect="equal")
