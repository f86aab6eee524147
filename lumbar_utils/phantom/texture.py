"""Seeded three-dimensional noise, cheap enough to look up at every sample point.

One periodic volume of smooth noise is made once a process; a body's own texture is that volume at a shift drawn
from the person's seed. It is looked up in the body's own coordinates, so a mirrored body has mirrored texture.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy import ndimage

_SIZE = 128
_MASK = _SIZE - 1
_CORRELATIONS = (1.1, 2.6)
"""Voxels over which the two kinds of noise, fine and smooth, are correlated."""
_FAR = 64 * _SIZE
"""A multiple of the period that makes all indices positive, so that truncation is flooring."""


@cache
def _volume(kind: int) -> np.ndarray:
    """Periodic noise of unit standard deviation, (128, 128, 128) float32."""
    white = np.random.default_rng(20240910).standard_normal((_SIZE,) * 3, dtype=np.float32)
    smooth = ndimage.gaussian_filter(white, _CORRELATIONS[kind], mode="wrap", truncate=3)
    smooth /= smooth.std()
    smooth.setflags(write=False)
    return smooth


def grain(x, y, z, size: float, shift: np.ndarray, smooth: bool = False) -> np.ndarray:
    """Noise by nearest neighbour at float32 places in mm: `size` mm a grain, 2.5 `size` if smooth.

    `shift` (3,), in grains, says where in the noise the body lies. The smooth kind wants less than a pixel a grain,
    so that no grain shows.
    """
    scale = np.float32(1 / size)
    places = (c * scale + np.float32(d + _FAR) for c, d in zip((x, y, z), shift, strict=True))
    i, j, k = (place.astype(np.int32) & _MASK for place in places)
    index = (i << 14) | (j << 7) | k
    return _volume(int(smooth)).ravel().take(index)


def clouds(x, y, z, size: float, shift: np.ndarray) -> np.ndarray:
    """Noise with grains of about `size` mm, trilinear: for fields sampled finer than their grain."""
    scale = 1 / size
    at = np.stack([c * scale + d for c, d in zip((x, y, z), shift, strict=True)])
    return ndimage.map_coordinates(_volume(0), at, order=1, mode="grid-wrap", prefilter=False, output=np.float32)
