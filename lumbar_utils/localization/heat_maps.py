"""Heat maps of a series: predictions of several networks at several sizes of the image, averaged.

Each network predicts the whole series, and its middle slices again made smaller and larger: which level a disc is must
not depend on its size in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.nn import functional

from ..devices import cpu_has_bfloat16
from .network import SliceUNet, log_probability, with_neighbours
from .preprocessing import SagittalVolume
from .samples import LocalizerSample

SLICES_AT_ONCE = 24  # bounds the memory that one series takes; real series have up to 38 slices
SCALES = (0.87, 1.15)
SCALED_SLICES = 5  # so many slices are predicted again at each of `SCALES`


@dataclass(frozen=True, eq=False)
class HeatMaps:
    """Where each of k levels is on a series, a distribution over its voxels; rows run downward, columns front
    to back."""

    probability: np.ndarray  # float32 (n, k, h, w), of n slices
    absent: np.ndarray  # (k,) the rest of each level's probability: not in view
    offsets: np.ndarray  # (n,) mm of the slices along their normal, ascending
    spacing: tuple[float, float]  # mm between rows and between columns of the maps

    @cached_property
    def rows_mm(self) -> np.ndarray:
        """Middles of the rows, mm from the upper edge, shape (h,)."""
        return (np.arange(self.probability.shape[2]) + 0.5) * self.spacing[0]

    @cached_property
    def columns_mm(self) -> np.ndarray:
        """Middles of the columns, mm from the front edge, shape (w,)."""
        return (np.arange(self.probability.shape[3]) + 0.5) * self.spacing[1]

    def disk(self, row: float, column: float, radius: float) -> tuple[slice, slice, np.ndarray]:
        """Rows and columns around a place in mm, and which of their pixels lie within `radius` mm of it."""
        rows, columns = (
            slice(np.searchsorted(mm, at - radius), np.searchsorted(mm, at + radius, side="right"))
            for mm, at in ((self.rows_mm, row), (self.columns_mm, column))
        )
        return rows, columns, np.hypot(self.rows_mm[rows][:, None] - row, self.columns_mm[columns] - column) <= radius


def predict_heat_maps(
    networks: Sequence[SliceUNet], volume: SagittalVolume | LocalizerSample, device: torch.device
) -> HeatMaps:
    """The mean prediction of networks of one configuration, of the levels of its `chain`. A pixel of the maps covers
    two by two of the volume's; odd sizes are rounded up."""
    _, height, width = volume.pixels.shape
    slices = torch.from_numpy(np.ascontiguousarray(volume.pixels, dtype=np.float32))
    slices = functional.pad(slices, (0, width % 2, 0, height % 2))
    inputs = with_neighbours(slices, networks[0].config.neighbours)
    whole = [_predict(network, inputs, device) for network in networks]
    probability = sum(maps for maps, _ in whole)
    absents = [absent for _, absent in whole]
    middle = _fullest_slices(probability.sum(axis=(1, 2, 3)))
    for scale in SCALES:
        size = [2 * max(1, round(side * scale / 2)) for side in slices.shape[1:]]
        scaled = functional.interpolate(inputs[middle], size=size, mode="bilinear", antialias=scale < 1)
        for network in networks:
            maps, absent = _predict(network, scaled, device)
            back = functional.interpolate(torch.from_numpy(maps), size=probability.shape[2:], mode="bilinear").numpy()
            mass = np.maximum(back.sum(axis=(0, 2, 3)), 1e-12)
            probability[middle] += back * ((1 - absent) / mass)[:, None, None]
            absents.append(absent)
    spacing = (2 * volume.spacing[0], 2 * volume.spacing[1])
    return HeatMaps(probability / len(absents), np.mean(absents, axis=0), volume.offsets, spacing)


def _predict(network: SliceUNet, inputs: torch.Tensor, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Maps (n, k, H / 2, W / 2) and "not in view" (k,) of slices with their neighbours (n, channels, H, W)."""
    height, width = inputs.shape[2:]
    multiple = network.config.multiple
    # Two multiples at least: oneDNN (torch 2.15) reads unwritten memory in strided convolutions of one or two columns.
    beside = max(-width % multiple, 2 * multiple - width)
    padded = functional.pad(inputs, (0, beside, 0, -height % multiple))
    half = device.type == "cuda" or (device.type == "cpu" and cpu_has_bfloat16())
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    logits = []
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=half):
        for part in padded.split(SLICES_AT_ONCE):
            part = part.to(device).contiguous(memory_format=torch.channels_last)
            logits.append(network(part).float().cpu())
    voxels, absent = log_probability(torch.cat(logits)[:, :, : height // 2, : width // 2])
    return voxels.exp().numpy(), absent.exp().numpy().reshape(len(network.config.chain))


def _fullest_slices(mass: np.ndarray) -> slice:
    """The `SCALED_SLICES` neighbouring slices that hold the most of the mass (n,)."""
    sums = np.convolve(mass, np.ones(min(SCALED_SLICES, len(mass))), mode="valid")
    first = int(sums.argmax())
    return slice(first, first + SCALED_SLICES)
