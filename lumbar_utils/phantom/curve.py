"""The spine's curve and the straightened coordinates that go with it.

The curve runs down the posterior margin of the vertebral bodies. It lies in a sagittal plane that scoliosis bends
sideways. A point has `s` (mm along the curve, growing downward, 0 at the top of T7), `u` (mm to the left) and `v`
(mm backward from the curve). `project` and `place` are inverse to each other near the spine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STEP = 0.25
"""mm between samples of the curve and of every profile along it."""
_SEED_STEP = 4.0
_SEED_MARGIN = 220.0
_MIN_SLOPE = 0.3
"""Newton's slope is kept above this, so that points behind the centre of curvature do not run away."""


@dataclass(frozen=True)
class SpineCurve:
    """Samples of the curve every `STEP` mm; all arrays have shape (n,), mm and radians.

    `angle` is the direction of travel against straight down, positive backward; `sideways` the lateral offset of
    the curve and `tilt` its lateral slope as an angle.
    """

    y: np.ndarray
    z: np.ndarray
    angle: np.ndarray
    curvature: np.ndarray
    sideways: np.ndarray
    tilt: np.ndarray
    _seed_origin: tuple[float, float]
    _seeds: np.ndarray

    @classmethod
    def from_angles(cls, angle: np.ndarray, sideways: np.ndarray, origin_index: int) -> SpineCurve:
        """Integrate the direction of travel; the sample `origin_index` lies at y = z = 0."""
        y = np.concatenate([[0], np.cumsum(np.sin((angle[1:] + angle[:-1]) / 2) * STEP)])
        z = -np.concatenate([[0], np.cumsum(np.cos((angle[1:] + angle[:-1]) / 2) * STEP)])
        y, z = y - y[origin_index], z - z[origin_index]
        curvature = np.gradient(angle, STEP)
        tilt = np.arctan(np.gradient(sideways, STEP))
        origin = (float(y.min() - _SEED_MARGIN), float(z.min() - _SEED_MARGIN))
        shape = (
            int((y.max() + _SEED_MARGIN - origin[0]) / _SEED_STEP) + 1,
            int((z.max() + _SEED_MARGIN - origin[1]) / _SEED_STEP) + 1,
        )
        grid_y = (origin[0] + np.arange(shape[0]) * _SEED_STEP).astype(np.float32)
        grid_z = (origin[1] + np.arange(shape[1]) * _SEED_STEP).astype(np.float32)
        coarse = slice(None, None, int(8 / STEP))
        far = (grid_y[:, None] - y[coarse].astype(np.float32)) ** 2
        far = far[:, None, :] + ((grid_z[:, None] - z[coarse].astype(np.float32)) ** 2)[None]
        seeds = far.argmin(axis=-1).astype(np.float32) * 8
        return cls(y, z, angle, curvature, sideways, tilt, origin, seeds)

    @property
    def length(self) -> float:
        """mm from the first to the last sample."""
        return (len(self.y) - 1) * STEP

    def at(self, profile: np.ndarray, s: np.ndarray) -> np.ndarray:
        """Linear interpolation of a profile along the curve, constant beyond its ends."""
        t = np.clip(np.asarray(s) * (1 / STEP), 0, len(profile) - 1.001)
        i = t.astype(np.int32)
        profile = profile.astype(t.dtype, copy=False)
        low = profile.take(i)
        return low + (profile.take(i + 1) - low) * (t - i)

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Body points (..., 3) in mm to (s, u, v), each (...)."""
        x, y, z = points[..., 0], points[..., 1], points[..., 2]
        i = np.clip(np.rint((y - self._seed_origin[0]) / _SEED_STEP).astype(np.int32), 0, self._seeds.shape[0] - 1)
        j = np.clip(np.rint((z - self._seed_origin[1]) / _SEED_STEP).astype(np.int32), 0, self._seeds.shape[1] - 1)
        along = self._seeds[i, j].astype(x.dtype)
        for _ in range(2):
            dy, dz = y - self.at(self.y, along), z - self.at(self.z, along)
            angle = self.at(self.angle, along)
            sine, cosine = np.sin(angle), np.cos(angle)
            v = dy * cosine + dz * sine
            slope = np.maximum(1 - self.at(self.curvature, along) * v, _MIN_SLOPE)
            step = (dy * sine - dz * cosine) / slope
            along = along + np.clip(step, -12, 12)
        dy, dz, angle = y - self.at(self.y, along), z - self.at(self.z, along), self.at(self.angle, along)
        v = dy * np.cos(angle) + dz * np.sin(angle)
        inside = np.clip(along, 0, self.length)
        # Beyond the ends the curve goes on straight, so s must go on growing there.
        beyond = (dy * np.sin(angle) - dz * np.cos(angle)) * (inside != along)
        offset, tilt = x - self.at(self.sideways, along), self.at(self.tilt, along)
        return inside + beyond + offset * np.sin(tilt), offset * np.cos(tilt), v

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
