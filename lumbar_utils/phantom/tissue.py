"""The tissues, and the two canvases they are painted on: signal for the scanner, tissue numbers for whoever asks.

Structures are painted from the back to the front of a list of points. Each is given by a soft mask, so that edges
are partial volumes and no edge is jagged.
"""

from __future__ import annotations

from copy import copy
from enum import IntEnum

import numpy as np


class Tissue(IntEnum):
    """What can be at a point."""

    AIR = 0
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    FASCIA = 4
    MARROW = 5
    CORTEX = 6
    ANNULUS = 7
    NUCLEUS = 8
    CSF = 9
    CORD = 10
    ROOT = 11
    LIGAMENT = 12
    BLOOD = 13
    VEIN = 14
    BOWEL = 15
    FLUID = 16
    GAS = 17
    KIDNEY = 18
    OEDEMA = 19
    FATTY_MARROW = 20
    SCLEROSIS = 21
    EPIDURAL_FAT = 22
    CARTILAGE = 23
    LIVER = 24


N_TISSUES = len(Tissue)


def edge(distance: np.ndarray, softness: float) -> np.ndarray:
    """Signed distance in mm (negative inside) to a mask 0..1 that changes over `softness` mm."""
    alpha = distance * np.float32(-1 / softness)
    alpha += 0.5
    return np.clip(alpha, 0, 1, out=alpha)


class Canvas:
    """Values at a list of points. A mask (0..1) says how much of each point a tissue covers."""

    def __init__(self, value: np.ndarray, softness: float):
        self.value = value
        self.softness = softness

    def select(self, chosen: np.ndarray) -> Canvas:
        """A canvas over the points at some flat indices; `put_back` brings it back."""
        part = copy(self)
        part.value = self.value.take(chosen)
        return part

    def put_back(self, chosen: np.ndarray, part: Canvas) -> None:
        """Take over what was painted on the part."""
        self.value.reshape(-1)[chosen] = part.value


class SignalCanvas(Canvas):
    """Signal: `value` is float32 and starts as air; `grain` scales every texture."""

    def __init__(self, shape: tuple[int, ...], signal: np.ndarray, softness: float, *, grain: float = 1.0):
        self.signal = np.asarray(signal, dtype=np.float32)
        self.grain = np.float32(grain)
        super().__init__(np.full(shape, self.signal[Tissue.AIR], dtype=np.float32), softness)

    def paint(self, mask: np.ndarray, tissue: Tissue, texture: np.ndarray | float | None = None) -> None:
        """Cover with a tissue; `texture` is a relative deviation of its signal."""
        self._cover(mask, self.signal[tissue], texture)

    def paint_mixture(self, mask: np.ndarray, mix: np.ndarray, first: Tissue, second: Tissue, texture=None) -> None:
        """Cover with a mixture: `mix` 0 is the first tissue, 1 the second."""
        self._cover(mask, self.signal[first] + mix * (self.signal[second] - self.signal[first]), texture)

    def _cover(self, mask: np.ndarray, signal: np.ndarray, texture: np.ndarray | float | None) -> None:
        if texture is not None:
            signal = signal * (1 + texture * self.grain)
        self.value += mask * (signal - self.value)


class TissueCanvas(Canvas):
    """Tissue numbers (`value`, uint8), by the same calls: a tissue holds where its mask is above one half."""

    def __init__(self, n_points: int):
        super().__init__(np.zeros(n_points, dtype=np.uint8), softness=0.5)

    def paint(self, mask: np.ndarray, tissue: Tissue, texture=None) -> None:
        """See `SignalCanvas.paint`."""
        self.value[np.asarray(mask) > 0.5] = tissue

    def paint_mixture(self, mask: np.ndarray, mix: np.ndarray, first: Tissue, second: Tissue, texture=None) -> None:
        """See `SignalCanvas.paint_mixture`; the larger share wins."""
        inside = np.asarray(mask) > 0.5
        self.value[inside & (mix <= 0.5)] = first
        self.value[inside & (mix > 0.5)] = second
