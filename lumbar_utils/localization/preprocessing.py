"""A sagittal series as the network sees it: anatomical order, one pixel size, robust intensities.

Only the in-plane size changes; slices stay where the scanner put them, so nothing is invented between them. The
volume keeps its stack's geometry and knows in millimetres where each of its voxels lies, however the series was
stored (reversed, transposed, oblique, uneven).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.nn import functional

from ..dicom.series import Series, Stack
from ..errors import LumbarError
from ..geometry import INFERIOR, LEFT, POSTERIOR, StackGeometry, anatomical_axes

MAX_OBLIQUITY_DEGREES = 45.0  # a stack whose normal is further from left-right than this is not sagittal
MIN_SIDE_MM = 60.0
"""No more than one disc fits into less; such images are strips of scouts, or their headers are damaged."""
DARK_PERCENTILE, BRIGHT_PERCENTILE = 1.0, 99.5
"""Become 0 and 1. The bright end leaves out flow and fat next to the coil."""
MIN_PIXELS = 100  # with fewer pixels that differ from the background there is no image


class LocalizationError(LumbarError):
    """A study or series on which the discs cannot be found; the message names it and says why."""


@dataclass(frozen=True, eq=False)
class SagittalVolume:
    """A sagittal stack in anatomical order: slices from right to left, rows downward, columns from front to back."""

    pixels: np.ndarray  # float32 (n, H, W), about 0..1
    geometry: StackGeometry  # of the stack that it was made from
    order: np.ndarray  # the stack's axis for each of the volume's, (0, 1, 2) or (0, 2, 1)
    flips: np.ndarray  # bool (3,), which of the volume's axes run against the stack's

    @cached_property
    def _stack_shape(self) -> np.ndarray:
        return np.array([len(self.geometry), *self.geometry.shape])[self.order]

    @cached_property
    def spacing(self) -> tuple[float, float]:
        """mm between rows and between columns of the volume."""
        row, column = np.array([0.0, *self.geometry.spacing])[self.order][1:] * self._stack_shape[1:]
        return float(row / self.pixels.shape[1]), float(column / self.pixels.shape[2])

    @cached_property
    def offsets(self) -> np.ndarray:
        """mm of each slice from the first, ascending from right to left, shape (n,)."""
        offsets = self.geometry.offsets
        return (offsets[-1] - offsets[::-1]) if self.flips[0] else offsets - offsets[0]

    def to_voxel(self, points: np.ndarray) -> np.ndarray:
        """LPS mm (..., 3) to fractional (slice, row, column) of the volume (..., 3)."""
        voxels = self.geometry.world_to_voxel(points)[..., self.order]
        voxels = np.where(self.flips, self._stack_shape - 1 - voxels, voxels)
        return (voxels + 0.5) * (np.array(self.pixels.shape) / self._stack_shape) - 0.5

    def to_world(self, voxels: np.ndarray) -> np.ndarray:
        """Fractional (slice, row, column) of the volume (..., 3) to LPS mm (..., 3)."""
        voxels = (np.asarray(voxels) + 0.5) * (self._stack_shape / np.array(self.pixels.shape)) - 0.5
        voxels = np.where(self.flips, self._stack_shape - 1 - voxels, voxels)
        return self.geometry.voxel_to_world(voxels[..., self.order])  # the order is its own inverse


def sagittal_volume(stack: Stack, pixel_mm: float) -> SagittalVolume:
    """Bring a sagittal stack into anatomical order, to about `pixel_mm` in the plane (whole pixels; `spacing` is
    exact), and to 0..1. Raises `LocalizationError` when it is not sagittal, too small, or has no contrast."""
    geometry = stack.geometry
    axes = anatomical_axes(geometry, (LEFT, INFERIOR, POSTERIOR))
    limit = np.cos(np.radians(MAX_OBLIQUITY_DEGREES))
    if abs(geometry.normal @ LEFT) < limit or axes[1] @ INFERIOR < limit:
        raise LocalizationError(f"not a sagittal stack: its slices' normal is {np.round(geometry.normal, 2).tolist()}")
    own = np.stack([geometry.normal, geometry.column_cosine, geometry.row_cosine])
    cosines = axes @ own.T  # 1 or -1 once in each row
    order, flips = np.abs(cosines).argmax(axis=1), cosines.sum(axis=1) < 0
    pixels = np.asarray(stack.pixels, dtype=np.float32).transpose(order)
    pixels = pixels[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    spacing = np.array([0.0, *geometry.spacing])[order][1:]
    size = np.maximum(np.round(np.array(pixels.shape[1:]) * spacing / pixel_mm), 1).astype(int)
    if min(size * pixel_mm) < MIN_SIDE_MM:
        extent = np.round(np.array(pixels.shape[1:]) * spacing).astype(int).tolist()
        raise LocalizationError(f"the images cover only {extent} mm, at least {MIN_SIDE_MM:.0f} mm are needed")
    tensor = torch.from_numpy(np.ascontiguousarray(np.nan_to_num(pixels, posinf=0.0, neginf=0.0)))[:, None]
    resized = functional.interpolate(tensor, size=tuple(int(s) for s in size), mode="bilinear", antialias=True)
    return SagittalVolume(normalised(resized[:, 0].numpy()), geometry, order, flips)


def normalised(pixels: np.ndarray) -> np.ndarray:
    """Scale a volume so that its dark and bright percentiles, taken above the minimum so that empty borders do not
    count, become 0 and 1; clipped to 0..1.2. Float32."""
    lowest = float(pixels.min())
    inside = pixels[pixels > lowest]
    dark, bright = lowest, lowest
    if inside.size >= MIN_PIXELS:
        dark, bright = np.percentile(inside[:: max(1, inside.size // 200_000)], [DARK_PERCENTILE, BRIGHT_PERCENTILE])
    if bright - dark <= 1e-4 * max(abs(bright), abs(dark), 1e-6):  # less is rounding
        raise LocalizationError("the images have no contrast: nearly all pixels have one value")
    return np.clip((pixels - dark) / (bright - dark), 0.0, 1.2).astype(np.float32)


def series_volumes(series: Series, pixel_mm: float) -> Iterator[SagittalVolume]:
    """`sagittal_volume` of each of the series' sagittal stacks, the largest first. Stacks that cannot be used are left
    out; where it is all of them, the error names study, series and the first one's reason."""
    issues: list[LocalizationError] = []
    for stack in series.stacks:
        try:
            volume = sagittal_volume(stack, pixel_mm)
        except LocalizationError as error:
            issues.append(error)
        else:
            yield volume
    if len(issues) == len(series.stacks):
        reason = issues[0] if issues else "it has no slices"
        raise LocalizationError(f"study {series.study_id}, series {series.series_id}: {reason}")
