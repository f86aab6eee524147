"""What the localizer is trained on: random windows of volumes, augmented, with their targets.

A window is a few neighbouring slices, rotated, scaled, shifted and bent together with its points, and its contrast is
changed beyond what scanners do. That makes hundreds of volumes last for thousands of steps, and makes the network read
shapes rather than one scanner's grey values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from .network import LocalizerConfig, with_neighbours
from .samples import LocalizerSample


@dataclass(frozen=True)
class Augmentation:
    """Strengths of the random changes: standard deviations (SD) and probabilities."""

    window: int = 3  # slices
    canvas: tuple[int, int] = (160, 128)  # rows and columns of a window, multiples of 32
    rotation_degrees: float = 7.0  # SD, like the next two
    log_scale: float = 0.15
    stretch: float = 0.04  # of rows and columns apart
    bend_mm: float = 3.0  # largest SD of a smooth displacement
    bend_grid_mm: float = 60.0  # distance of its knots
    anywhere: float = 0.15  # probability of a window away from the spine
    small_view: float = 0.3  # of a smaller field of view
    thicken: float = 0.15  # of thicker slices
    log_gamma: float = 0.3  # SD
    invert: float = 0.08  # probability of inverted grey values
    curve: float = 0.25  # of a random grey-value curve
    bias: float = 0.5  # of a coil's bias field
    blur: float = 0.3
    noise: float = 0.06  # SD
    cut_outs: float = 0.3  # probability of rectangles of one grey value


class Window(NamedTuple):
    """Network input (window, channels, H, W), target mass (window, k, H/2, W/2), absent mass and known (k,)."""

    slices: torch.Tensor
    target: torch.Tensor
    absent: torch.Tensor
    known: torch.Tensor


def draw_window(
    sample: LocalizerSample, config: LocalizerConfig, settings: Augmentation, rng: np.random.Generator
) -> Window:
    """A random training window of a sample."""
    pixels, offsets, voxels = sample.pixels, sample.offsets, sample.voxels.copy()
    n = len(pixels)
    if rng.random() < 0.5:  # a mirrored body is a body
        pixels, offsets = pixels[::-1], offsets[-1] - offsets[::-1]
        voxels[:, 0] = n - 1 - voxels[:, 0]
    middle = np.nanmean(voxels[:, 0])
    centre = rng.uniform(0, n - 1) if rng.random() < settings.anywhere else middle + rng.uniform(-2.0, 2.0)
    start = int(np.clip(round(centre - (settings.window - 1) / 2), 0, max(n - settings.window, 0)))
    # A series of fewer slices than a window has its last one repeated.
    wide = np.clip(np.arange(-config.neighbours, settings.window + config.neighbours) + start, 0, n - 1)
    chosen = np.clip(np.arange(settings.window) + start, 0, n - 1)
    volume = torch.from_numpy(np.ascontiguousarray(pixels[wide])).float()
    if rng.random() < settings.thicken and len(volume) > 2:
        share = rng.uniform(0.1, 0.3)
        outer = with_neighbours(volume, 1)
        volume = (1 - 2 * share) * volume + share * (outer[:, 0] + outer[:, 2])

    volume, points_mm = _move(volume, voxels[:, 1:] * sample.spacing, sample.spacing, config, settings, rng)
    view = _small_view(config, settings, rng)
    volume = _change_intensity(volume, settings, rng) * view
    repeated = with_neighbours(volume, config.neighbours)
    inner = slice(config.neighbours, len(volume) - config.neighbours)
    return Window(repeated[inner], *_target(points_mm, voxels[:, 0], offsets, chosen, view, config))


def _move(
    volume: torch.Tensor,
    points: np.ndarray,
    spacing: tuple[float, float],
    config: LocalizerConfig,
    settings: Augmentation,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, np.ndarray]:
    """Rotate, scale, shift and bend all slices alike. Points (k, 2) are mm from the first pixel, before and after."""
    angle = np.radians(np.clip(rng.normal(0, settings.rotation_degrees), -25, 25))
    scale = np.exp(rng.normal(0, settings.log_scale) + rng.normal(0, settings.stretch, 2))
    forward = scale[:, None] * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    side = np.array(settings.canvas) * config.pixel_mm
    centre = (side - config.pixel_mm) / 2 + rng.uniform(-0.22, 0.22, 2) * side
    anchor = np.nanmean(points, axis=0)
    moved = (points - anchor) @ forward.T + centre
    rows, columns = (torch.arange(size) * config.pixel_mm for size in settings.canvas)
    canvas = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)  # mm of each pixel
    if settings.bend_mm > 0:
        knots = np.maximum(np.ceil(side / settings.bend_grid_mm).astype(int) + 1, 4)
        field = rng.normal(0, settings.bend_mm * rng.random(), (1, 2, *knots)).astype(np.float32)
        # A pixel takes its value from so many mm away, (H, W, 2).
        bend = functional.interpolate(torch.from_numpy(field), settings.canvas, mode="bicubic", align_corners=True)
        bend = bend[0].permute(1, 2, 0)
        canvas = canvas + bend
        moved = _bent(moved, bend.numpy(), config.pixel_mm)
    values = (centre, np.linalg.inv(forward).T, anchor, spacing)
    centre, back, anchor, spacing = (torch.tensor(value, dtype=torch.float32) for value in values)
    pixels = ((canvas - centre) @ back + anchor) / spacing
    # grid_sample counts from -1 to 1 over the whole image, x before y.
    grid = (2 * pixels + 1) / torch.tensor(volume.shape[1:]) - 1
    return functional.grid_sample(volume[None], grid.flip(-1)[None], align_corners=False)[0], moved


def _bent(points: np.ndarray, bend: np.ndarray, pixel_mm: float) -> np.ndarray:
    """Where points (k, 2) of the canvas lie after bending: p with p + bend(p) = point, by iteration."""
    bent = points
    for _ in range(6):
        pixels = np.rint(np.nan_to_num(bent) / pixel_mm).astype(int)
        row, column = np.clip(pixels, 0, np.array(bend.shape[:2]) - 1).T
        bent = points - bend[row, column]
    return bent


def _small_view(config: LocalizerConfig, settings: Augmentation, rng: np.random.Generator) -> torch.Tensor:
    """1 inside a random field of view, 0 outside it, as a scan of 18 cm or more would have cut the canvas."""
    if rng.random() >= settings.small_view:
        return torch.ones(settings.canvas)
    inside = []
    for full, min_mm in zip(settings.canvas, (180.0, 110.0), strict=True):
        size = int(rng.integers(min(full, round(min_mm / config.pixel_mm)), full + 1))
        start = int(rng.integers(0, full - size + 1))
        inside.append(slice(start, start + size))
    view = torch.zeros(settings.canvas)
    view[tuple(inside)] = 1
    return view


def _change_intensity(volume: torch.Tensor, settings: Augmentation, rng: np.random.Generator) -> torch.Tensor:
    """Change grey values of slices (n, H, W) of about 0..1; the result is float32 and about 0..1 again."""
    _, height, width = volume.shape
    volume = volume.clamp(0, 1.2)
    volume = volume.clamp_min(1e-4) ** float(np.exp(rng.normal(0, settings.log_gamma)))
    if rng.random() < settings.curve:
        knots = np.linspace(0, 1.2, 6)
        values = np.clip(knots + rng.normal(0, 0.18, 6), 0, 1.3)
        volume = torch.from_numpy(np.interp(volume.numpy(), knots, values)).float()
    if rng.random() < settings.invert:
        volume = 1.0 - volume
    if rng.random() < settings.bias:
        y = torch.linspace(-1, 1, height)[:, None]
        x = torch.linspace(-1, 1, width)[None, :]
        a, b, c, d = rng.normal(0, (0.35, 0.45, 0.2, 0.2))
        volume = volume * torch.exp(a * y + b * x + c * y * y + d * x * x)
    if rng.random() < settings.blur:
        sigma = (0, *[rng.uniform(0.4, 1.6)] * 2)
        volume = torch.from_numpy(ndimage.gaussian_filter(volume.numpy(), sigma, mode="constant", radius=(0, 3, 3)))
    if settings.noise:
        noise = rng.standard_normal(volume.shape, dtype=np.float32)
        volume = volume + float(abs(rng.normal(0, settings.noise))) * torch.from_numpy(noise)
    if rng.random() < settings.cut_outs:
        for _ in range(int(rng.integers(1, 4))):
            h, w = (int(v) for v in rng.integers(8, 32, 2))
            top, left = int(rng.integers(0, height - h)), int(rng.integers(0, width - w))
            volume[:, top : top + h, left : left + w] = float(rng.uniform(0, 1))
    return volume * float(np.exp(rng.normal(0, 0.1)))


def _target(
    points: np.ndarray,
    slices: np.ndarray,
    offsets: np.ndarray,
    chosen: np.ndarray,
    view: torch.Tensor,
    config: LocalizerConfig,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Probability mass of each level per voxel of the maps, the rest ("not in view"), and which levels are known.
    `points` (k, 2) are mm on the canvas, `slices` (k,) fractional indices, `offsets` the mm of all slices."""
    known = np.isfinite(points).all(axis=1) & np.isfinite(slices)
    points, slices = np.where(known[:, None], points, -1e6), np.where(known, slices, 0.0)
    several, sigma = len(offsets) > 1, config.through_sigma_mm
    step = float(np.median(np.diff(offsets))) if several else sigma
    thickness = np.gradient(offsets) if several else np.full(1, 2.5 * sigma)
    through = np.interp(slices, np.arange(len(offsets)), offsets)
    through += step * (np.minimum(slices, 0) + np.maximum(slices - (len(offsets) - 1), 0))
    along = _density(offsets[chosen][:, None] - through, sigma)
    along *= (thickness[chosen] * np.concatenate([[True], np.diff(chosen) > 0]))[:, None]  # a repeated slice has none
    # Thin windows of thick slices can sum to more than 1 by a little; a distribution must not.
    along /= np.maximum(along.sum(axis=0), 1.0)
    rows, columns = ((np.arange(side // 2) * 2 + 0.5) * config.pixel_mm for side in view.shape)
    down, across = (
        _density(mm - at[:, None], config.sigma_mm) for mm, at in zip((rows, columns), points.T, strict=True)
    )
    plane = (2 * config.pixel_mm) ** 2 * down[:, :, None] * across[:, None, :] * view[::2, ::2].numpy()
    mass = along.sum(axis=0) * plane.sum(axis=(1, 2))
    plane /= np.maximum(mass, 1.0)[:, None, None]
    target = along.astype(np.float32)[:, :, None, None] * plane.astype(np.float32)
    absent = np.clip(1.0 - mass, 0.0, 1.0)
    return torch.from_numpy(target), torch.from_numpy(absent).float(), torch.from_numpy(known)


def _density(distance: np.ndarray, sigma: float) -> np.ndarray:
    """The normal distribution's."""
    return np.exp(-0.5 * (distance / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma)
