"""Artefacts of a measured slice: ghosts, fold-over, voids around metal, blur, empty borders."""

from __future__ import annotations

import numpy as np
from scipy import fft


def repeat_along(image: np.ndarray, strength: float, axis: int, shift: float) -> np.ndarray:
    """Ghosts of what pulsates or breathes: copies shifted by a share of the image along the phase encoding."""
    if strength <= 0:
        return image
    cells = max(1, int(image.shape[axis] * shift))
    return image + np.float32(strength) * (np.roll(image, cells, axis=axis) + np.roll(image, -cells, axis=axis))


def fold_over(image: np.ndarray, share: float, axis: int) -> np.ndarray:
    """Anatomy from outside the field of view on the opposite edge; what lies outside is taken as the edge's mirror."""
    cells = int(image.shape[axis] * share)
    if cells == 0:
        return image
    folded = np.moveaxis(image.copy(), axis, 0)
    source = np.moveaxis(image, axis, 0)
    folded[:cells] += source[-cells:][::-1]
    folded[-cells:] += source[:cells][::-1]
    return np.moveaxis(folded, 0, axis)


def empty_round(distance: np.ndarray, radius: float, image: np.ndarray, bright: float) -> np.ndarray:
    """A susceptibility void with the bright rim of displaced signal; `distance` in mm from the metal."""
    inside = np.clip((radius - distance) / 2 + 0.5, 0, 1)
    rim = np.exp(-0.5 * ((distance - radius - 1.5) / 1.2) ** 2)
    return (image * (1 - inside) + np.float32(0.8 * bright) * rim * (1 - inside)).astype(np.float32)


def window(shape: tuple[int, int], *, apodised: bool = True, blur: float = 0.0) -> np.ndarray:
    """Weights of k-space: mild apodisation, as reconstructions apply it against ringing; `blur` 0..1 loses detail."""
    edge = 0.65 if apodised else 1.0
    y, x = (np.abs(fft.fftfreq(n)) * 2 for n in shape)
    ramp = [np.where(r > edge, 0.5 + 0.5 * np.cos(np.pi * (r - edge) / 0.35 * 0.85), 1.0) for r in (y, x)]
    if blur:
        ramp = [r * np.exp(-4 * blur * f**2) for r, f in zip(ramp, (y, x), strict=True)]
    return (ramp[0][:, None] * ramp[1][None]).astype(np.float32)


def clear_border(image: np.ndarray, border: tuple[float, float, float, float]) -> None:
    """Set the shares above, below, left and right to zero, in place."""
    if not any(border):
        return
    rows, columns = image.shape
    top, bottom, left, right = (int(s * n) for s, n in zip(border, (rows, rows, columns, columns), strict=True))
    image[:top], image[rows - bottom :] = 0, 0
    image[:, :left], image[:, columns - right :] = 0, 0
