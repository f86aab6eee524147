"""The tissues, and the canvas that they are painted on.

Structures are painted from the back to the front of a list of points. Each is given by a soft mask, so that edges
are partial volumes and no edge is jagged.
"""

from __future__ import annotations

from copy import copy
from enum import IntEnum

import numpy as np

Tissue = IntEnum(
    "Tissue",
    "AIR SKIN FAT MUSCLE FASCIA MARROW CORTEX ANNULUS NUCLEUS CSF CORD ROOT LIGAMENT BLOOD VEIN BOWEL FLUID GAS KIDNEY "
    "OEDEMA FATTY_MARROW SCLEROSIS EPIDURAL_FAT CARTILAGE LIVER",
    start=0,
)
N_TISSUES = len(Tissue)


def edge(distance: np.ndarray, softness: float) -> np.ndarray:
    """Signed distance in mm (negative inside) to a mask 0..1 that changes over `softness` mm."""
    alpha = distance * np.float32(-1 / softness)
    alpha += 0.5
    return np.clip(alpha, 0, 1, out=alpha)


class Canvas:
    """Signal at a list of points, float32, air at first. A mask (0..1) says how much of each point a tissue covers.

    `signal` is that of each tissue; `softness` (mm) the width of edges; `grain` scales every texture.
    """

    def __init__(self, shape: tuple[int, ...], signal: np.ndarray, softness: float, grain: float = 1.0):
        self.signal = np.asarray(signal, dtype=np.float32)
        self.softness, self.grain = softness, np.float32(grain)
        self.value = np.full(shape, self.signal[Tissue.AIR], dtype=np.float32)

    def select(self, chosen: np.ndarray) -> Canvas:
        """A canvas over the points at some flat indices; `put_back` brings it back."""
        part = copy(self)
        part.value = self.value.take(chosen)
        return part

    def put_back(self, chosen: np.ndarray, part: Canvas) -> None:
        """Take over what was painted on the part."""
        self.value.reshape(-1)[chosen] = part.value

    def paint(self, mask: np.ndarray, tissue: Tissue, texture: np.ndarray | float | None = None) -> None:
        """Cover with a tissue; `texture` is a relative deviation of its signal."""
        self._cover(mask, self.signal[tissue], texture)

    def paint_mixture(self, mask: np.ndarray, mix: np.ndarray, first: Tissue, second: Tissue, texture=None) -> None:
        """Cover with a mixture: `mix` 0 is the first tissue, 1 the second."""
        self._cover(mask, self.signal[first] + mix * (self.signal[second] - self.signal[first]), texture)

    def _cover(self, mask: np.ndarray, signal: np.ndarray, texture: np.ndarray | float | None) -> None:
        if texture is not None:
            signal = signal * (1 + texture * self.grain)
        change = signal - self.value
        change *= mask
        self.value += change
