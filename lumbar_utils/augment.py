"""Augmentation that keeps left and right apart: of appearance with albumentations, of place on whole batches.

Appearance (contrast, noise, blur) is drawn once a series: all slices and levels of a view get the same draw, as
one acquisition would. Place (shift, rotation, zoom) is drawn once a disc, because the finder's error differs from
disc to disc, and runs as one `grid_sample` for the whole batch, on the device. Mirroring flips the axis that runs
from right to left, in all views at once, and swaps the left and right targets.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from .crops import LATERAL_AXIS, CropSpec
from .errors import DataError
from .labels import MIRROR_PERMUTATION, VIEWS


@dataclass(frozen=True)
class AugmentConfig:
    """How strongly to augment; 0 switches a part off.

    Parameters
    ----------
    mirror : float
        Probability of mirroring a study.
    shift_mm : float
        Standard deviation of the crop centre's displacement along each in-plane axis, in mm. Set it to the disc
        finder's measured error, so that training sees what inference will get.
    through_plane_mm : float
        The same along the through-plane axis.
    rotation_degrees : float
        Standard deviation of the rotation in the plane.
    zoom : float
        Standard deviation of the logarithm of the magnification.
    contrast, brightness : float
        Standard deviations of the logarithm of the gain and of the offset, the latter in units of the network's
        input; one draw a view.
    noise : float
        Largest standard deviation of white noise in the same units; one draw a view.
    slice_dropout : float
        Probability that one slice of a crop is blanked, as a slice that failed to read would be.
    appearance : float
        Probability of the albumentations pipeline (gamma, blur, coarser resolution, noise) a view. It runs in the
        loader's workers and costs about 1 ms a view; 0 leaves it out.
    """

    mirror: float = 0.5
    shift_mm: float = 2.0
    through_plane_mm: float = 1.0
    rotation_degrees: float = 5.0
    zoom: float = 0.05
    contrast: float = 0.15
    brightness: float = 0.15
    noise: float = 0.1
    slice_dropout: float = 0.0
    appearance: float = 0.0

    def __post_init__(self):
        for name in self.__dataclass_fields__:
            if not float(getattr(self, name)) >= 0:
                raise DataError(f"augmentation: {name} must not be negative, got {getattr(self, name)}")


def mirror_images(images: Mapping[str, torch.Tensor | np.ndarray]) -> dict:
    """Mirror crops of any leading shape (..., D, H, W): flip the axis that runs from right to left in each view."""
    flipped = {}
    for view, image in images.items():
        axis = LATERAL_AXIS[view] - 3
        flipped[view] = image.flip(axis) if isinstance(image, torch.Tensor) else np.flip(image, axis)
    return flipped


def mirror_labels(labels: torch.Tensor | np.ndarray) -> torch.Tensor | np.ndarray:
    """Labels (..., 25) of the mirrored study: left and right change places. Its own inverse."""
    if isinstance(labels, torch.Tensor):
        return labels[..., torch.as_tensor(MIRROR_PERMUTATION, device=labels.device)]
    return np.asarray(labels)[..., MIRROR_PERMUTATION]


def mirror_probabilities(probabilities: torch.Tensor | np.ndarray) -> torch.Tensor | np.ndarray:
    """Predictions (..., 25, 3) of the mirrored study, read back for the study itself. Its own inverse."""
    if isinstance(probabilities, torch.Tensor):
        return probabilities[..., torch.as_tensor(MIRROR_PERMUTATION, device=probabilities.device), :]
    return np.asarray(probabilities)[..., MIRROR_PERMUTATION, :]


def augment_batch(
    images: Mapping[str, torch.Tensor],
    labels: torch.Tensor,
    config: AugmentConfig,
    spec: CropSpec,
    generator: torch.Generator | None = None,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Augment a batch on its device; the inputs are left as they are.

    Parameters
    ----------
    images : dict view -> tensor (B, 5, D, H, W)
    labels : tensor (B, 25)
    spec : CropSpec
        Tells how many mm a voxel is.
    generator : torch.Generator, optional
        On the CPU; all draws come from it, so the same seed gives the same batch on any device.

    Returns
    -------
    (images, labels) of the same shapes.
    """
    device = labels.device
    mirrored = (torch.rand(len(labels), generator=generator) < config.mirror).to(device)
    labels = torch.where(mirrored[:, None], mirror_labels(labels), labels)
    flipped = mirror_images(images) if config.mirror else images
    result = {}
    for view in VIEWS:
        image = torch.where(mirrored[:, None, None, None, None], flipped[view], images[view])
        image = _move(image, config, spec.extents[view], generator)
        result[view] = _recolour(image, config, generator)
    return result, labels


def _move(
    image: torch.Tensor, config: AugmentConfig, extent: tuple[float, float, float], generator: torch.Generator | None
) -> torch.Tensor:
    """Shift, rotate and zoom every disc's crop by its own draw; slices are the channels of a 2D resampling."""
    b, levels, depth, height, width = image.shape
    n, device = b * levels, image.device
    flat = image.reshape(n, depth, height, width)
    if config.through_plane_mm and depth > 1:
        step = torch.randn(n, generator=generator).to(device) * (config.through_plane_mm * depth / extent[0])
        k = torch.arange(depth, device=device) + step[:, None]
        low = k.floor()
        share = (k - low)[:, :, None, None].to(flat.dtype)
        # One slice of zeros at either end: what lies outside the box is not known, as in `datasets`.
        padded = torch.nn.functional.pad(flat, (0, 0, 0, 0, 1, 1))
        rows = torch.arange(n, device=device)[:, None]
        below = padded[rows, (low.long() + 1).clamp(0, depth + 1)]
        above = padded[rows, (low.long() + 2).clamp(0, depth + 1)]
        flat = below + (above - below) * share
    if config.shift_mm or config.rotation_degrees or config.zoom:
        draw = torch.randn(n, 4, generator=generator).to(device)
        angle = draw[:, 0] * float(np.radians(config.rotation_degrees))
        scale = (draw[:, 1] * config.zoom).exp()
        theta = torch.zeros(n, 2, 3, device=device)
        # Coordinates of affine_grid are -1 to 1 over the box's width and height, so mm carry the extents along.
        aspect = extent[1] / extent[2]
        theta[:, 0, 0] = angle.cos() * scale
        theta[:, 0, 1] = -angle.sin() * scale * aspect
        theta[:, 1, 0] = angle.sin() * scale / aspect
        theta[:, 1, 1] = angle.cos() * scale
        theta[:, 0, 2] = draw[:, 2] * (2 * config.shift_mm / extent[2])
        theta[:, 1, 2] = draw[:, 3] * (2 * config.shift_mm / extent[1])
        grid = torch.nn.functional.affine_grid(theta, [n, depth, height, width], align_corners=False)
        flat = torch.nn.functional.grid_sample(flat, grid.to(flat.dtype), padding_mode="zeros", align_corners=False)
    return flat.reshape(image.shape)


def _recolour(image: torch.Tensor, config: AugmentConfig, generator: torch.Generator | None) -> torch.Tensor:
    b, levels, depth = image.shape[:3]
    draw = torch.randn(b, 2, generator=generator).to(image.device)
    gain = (draw[:, 0] * config.contrast).exp()[:, None, None, None, None]
    offset = (draw[:, 1] * config.brightness)[:, None, None, None, None]
    seen = image != 0
    image = image * gain + offset
    if config.noise:
        strength = torch.rand(b, generator=generator).to(image.device)[:, None, None, None, None] * config.noise
        noise = torch.randn(image.shape, generator=generator).to(image.device)
        image = image + noise * strength
    image = image * seen
    if config.slice_dropout:
        lost = torch.rand(b, levels, generator=generator) < config.slice_dropout
        which = torch.randint(depth, (b, levels), generator=generator)
        keep = ~(lost[..., None] & (torch.arange(depth) == which[..., None])).to(image.device)
        image = image * keep[..., None, None]
    return image


class Appearance:
    """Gamma, blur, coarser resolution and noise with albumentations, the same draw through all slices of a view.

    Takes and returns `dict view -> (5, D, H, W)`, as `datasets.CropDataset(transform=...)` wants it. Reproducible
    from `seed`, or from the last `reseed`; worker processes of a DataLoader draw their own streams.
    """

    def __init__(self, probability: float = 0.5, *, seed: int = 0):
        # albumentations asks a server for newer versions when it is imported, unless this is set.
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        import albumentations as A

        self.probability = probability
        self.pipeline = A.Compose(
            [
                A.RandomGamma(gamma_limit=(70, 140), p=0.7),
                A.OneOf(
                    [
                        A.GaussianBlur(blur_limit=(3, 5), p=1.0),
                        A.Downscale(scale_range=(0.5, 0.8), p=1.0),
                        A.GaussNoise(std_range=(0.01, 0.05), p=1.0),
                    ],
                    p=0.5,
                ),
            ],
            strict=True,
            seed=seed,
        )
        self._rng = np.random.default_rng(seed)
        self._worker: int | None = None

    LOW, HIGH = -2.0, 4.0
    """Range of the network's input that is mapped to albumentations' 0 to 1; what lies beyond is clipped."""

    def reseed(self, seed: int) -> None:
        """Start the random numbers anew, as the trainer does at every epoch."""
        self._rng = np.random.default_rng(seed)
        self.pipeline.set_random_seed(seed)

    def __call__(self, images: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        worker = torch.utils.data.get_worker_info()
        if worker is not None and self._worker != worker.id:  # each worker has a copy of the same state
            self._worker = worker.id
            self.reseed(worker.seed % 2**32)
        return {
            view: self._series(image) if self._rng.random() < self.probability else image
            for view, image in images.items()
        }

    def _series(self, image: np.ndarray) -> np.ndarray:
        slices = np.asarray(image, dtype=np.float32).reshape(-1, *image.shape[-2:])
        seen = slices != 0
        scaled = np.clip((slices - self.LOW) / (self.HIGH - self.LOW), 0, 1)
        # `images=` and not `volume=`: several albumentations 2.0.8 transforms raise KeyError with the latter alone.
        changed = np.asarray(self.pipeline(images=scaled)["images"], dtype=np.float32)
        restored = changed * (self.HIGH - self.LOW) + self.LOW
        return (restored * seen).reshape(image.shape).astype(image.dtype)
