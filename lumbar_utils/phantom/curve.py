"""The spine's curve and the straightened coordinates that go with it.

The curve runs down the posterior margin of the vertebral bodies. It lies in a sagittal plane that scoliosis bends
sideways. A point has `s` (mm along the curve, growing downward, 0 at the top of T7), `u` (mm to the left) and `v`
(mm backward from the curve). `project` and `place` are inverse to each other near the spine.
"""

from __future__ import annotations

import numpy as np

STEP = 0.25
"""mm between samples of the curve and of every profile along it."""
_SEED_STEP = 4.0
_SEED_MARGIN = 220.0
_MIN_SLOPE = 0.3
"""Newton's slope is kept above this, so that points behind the centre of curvature do not run away."""


class SpineCurve:
    """Samples of the curve every `STEP` mm, from its direction of travel; all arrays have shape (n,), mm and radians.

    `angle` is the direction of travel against straight down, positive backward; `sideways` the lateral offset of
    the curve and `tilt` its lateral slope as an angle. The sample `origin_index` lies at y = z = 0.
    """

    def __init__(self, angle: np.ndarray, sideways: np.ndarray, origin_index: int):
        between = (angle[1:] + angle[:-1]) / 2
        y = np.concatenate([[0], np.cumsum(np.sin(between) * STEP)])
        z = -np.concatenate([[0], np.cumsum(np.cos(between) * STEP)])
        self.y, self.z = y - y[origin_index], z - z[origin_index]
        self.angle, self.curvature = angle, np.gradient(angle, STEP)
        self.sideways, self.tilt = sideways, np.arctan(np.gradient(sideways, STEP))
        # Where the search for the nearest sample starts, on a grid around the curve.
        self._seed_origin = float(self.y.min() - _SEED_MARGIN), float(self.z.min() - _SEED_MARGIN)
        far = []
        for line, start in zip((self.y, self.z), self._seed_origin, strict=True):
            cells = int((line.max() + _SEED_MARGIN - start) / _SEED_STEP) + 1
            grid = (start + np.arange(cells) * _SEED_STEP).astype(np.float32)
            far.append((grid[:, None] - line[:: int(8 / STEP)].astype(np.float32)) ** 2)
        self._seeds = (far[0][:, None] + far[1][None]).argmin(axis=-1).astype(np.float32) * 8

    @property
    def length(self) -> float:
        """mm from the first to the last sample."""
        return (len(self.y) - 1) * STEP

    def at(self, profile: np.ndarray, s: np.ndarray) -> np.ndarray:
        """Linear interpolation of a profile along the curve, constant beyond its ends."""
        t = np.clip(np.asarray(s) * (1 / STEP), 0, len(profile) - 1.001)
        i = t.astype(np.intp)
        profile = profile.astype(t.dtype, copy=False)
        low = profile.take(i)
        return low + (profile.take(i + 1) - low) * (t - i)

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Body points (..., 3) in mm to (s, u, v), each (...)."""
        x, y, z = points[..., 0], points[..., 1], points[..., 2]
        i, j = (
            np.clip(np.rint((c - start) / _SEED_STEP).astype(np.int32), 0, n - 1)
            for c, start, n in zip((y, z), self._seed_origin, self._seeds.shape, strict=True)
        )
        along = self._seeds[i, j].astype(x.dtype)
        for _ in range(2):
            ahead, v = self._beside(y, z, along)
            slope = np.maximum(1 - self.at(self.curvature, along) * v, _MIN_SLOPE)
            along = along + np.clip(ahead / slope, -12, 12)
        ahead, v = self._beside(y, z, along)
        inside = np.clip(along, 0, self.length)
        # Beyond the ends the curve goes on straight, so s must go on growing there.
        beyond = ahead * (inside != along)
        offset, tilt = x - self.at(self.sideways, along), self.at(self.tilt, along)
        return inside + beyond + offset * np.sin(tilt), offset * np.cos(tilt), v

    def _beside(self, y: np.ndarray, z: np.ndarray, along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How far points lie ahead of a place on the curve, and behind it."""
        dy, dz, angle = y - self.at(self.y, along), z - self.at(self.z, along), self.at(self.angle, along)
        sine, cosine = np.sin(angle), np.cos(angle)
        return dy * sine - dz * cosine, dy * cosine + dz * sine

    def place(self, s: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """(s, u, v), each (...), to body points (..., 3); the inverse of `project`."""
        s, u, v = np.broadcast_arrays(*(np.asarray(c, dtype=np.float64) for c in (s, u, v)))
        along = s
        for _ in range(8):
            along = s - u * np.tan(self.at(self.tilt, along))
        x = self.at(self.sideways, along) + u / np.cos(self.at(self.tilt, along))
        angle = self.at(self.angle, along)
        y = self.at(self.y, along) + v * np.cos(angle)
        z = self.at(self.z, along) + v * np.sin(angle)
        return np.stack([x, y, z], axis=-1)
