"""The tissues, and the two ways to lay them down: as signal for the scanner, as identity for whoever asks.

Structures are painted from the back to the front of a list of points. Each is given by a soft mask, so that edges
are partial volumes and no edge is jagged.
"""

from __future__ import annotations

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
    alpha += np.float32(0.5)
    return np.clip(alpha, 0, 1, out=alpha)


class SignalPaint:
    """Lays down signal: `value` is float32 and starts as air."""

    def __init__(self, shape: tuple[int, ...] | int, signal: np.ndarray, softness: float, *, grain: float = 1.0):
        self.signal = np.asarray(signal, dtype=np.float32)
        self.softness = softness
        self.grain = grain
        self.value = np.full(shape, self.signal[Tissue.AIR], dtype=np.float32)

    def cut(self, chosen: np.ndarray) -> SignalPaint:
        """A paint over a part of the points; `merge` brings it back."""
        part = object.__new__(type(self))
        part.signal, part.softness, part.grain = self.signal, self.softness, self.grain
        part.value = self.value[chosen]
        return part

    def merge(self, chosen: np.ndarray, part: SignalPaint) -> None:
        """Take over what was laid down on the part."""
        self.value[chosen] = part.value

    def lay(self, alpha: np.ndarray, tissue: Tissue, texture: np.ndarray | float | None = None) -> None:
        """Cover with a tissue where `alpha` (0..1) says; `texture` is a relative deviation of its signal."""
        new = self.signal[tissue]
        if texture is not None:
            new = new * (1 + texture * np.float32(self.grain))
        self.value += alpha * (new - self.value)

    def blend(self, alpha: np.ndarray, mix: np.ndarray, first: Tissue, second: Tissue, texture=None) -> None:
        """Cover with a mixture: `mix` 0 is the first tissue, 1 the second."""
        new = self.signal[first] + mix * (self.signal[second] - self.signal[first])
        if texture is not None:
            new = new * (1 + texture * np.float32(self.grain))
        self.value += alpha * (new - self.value)


class LabelPaint:
    """Lays down identities instead, with the same calls: `value` holds `Tissue` numbers as uint8."""

    def __init__(self, shape: tuple[int, ...] | int):
        self.softness = 0.5
        self.value = np.zeros(shape, dtype=np.uint8)

    def cut(self, chosen: np.ndarray) -> LabelPaint:
        """See `SignalPaint.cut`."""
        part = object.__new__(type(self))
        part.softness, part.value = self.softness, self.value[chosen]
        return part

    def merge(self, chosen: np.ndarray, part: LabelPaint) -> None:
        """See `SignalPaint.merge`."""
        self.value[chosen] = part.value

    def lay(self, alpha: np.ndarray, tissue: Tissue, texture=None) -> None:
        """See `SignalPaint.lay`; a tissue holds where its mask is above one half."""
        self.value[np.asarray(alpha) > 0.5] = tissue

    def blend(self, alpha: np.ndarray, mix: np.ndarray, first: Tissue, second: Tissue, texture=None) -> None:
        """See `SignalPaint.blend`; the larger share wins."""
        alpha = np.broadcast_to(alpha, self.value.shape)
        mix = np.broadcast_to(mix, self.value.shape)
        inside = alpha > 0.5
        self.value[inside & (mix <= 0.5)] = first
        self.value[inside & (mix > 0.5)] = second
