"""Augmentation that keeps left and right apart: of intensity with albumentations, of position on whole batches.

`IntensityAugmentation` (gamma, blur, coarser resolution) is drawn once a series: all slices and levels of a view get
the same draw, as one acquisition would. Position is drawn once a disc, because the localizer's error differs from disc
to disc: the shift in patient axes and the same for all views, as they are cut around one point; rotation and zoom for
each view. It runs on the whole batch, on the device. Mirroring flips the axis that runs from right to left, in all
views at once, and swaps the left and right targets. What a crop does not cover is 0 before and after.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..crops.extraction import VIEW_AXES, CropSpec
from ..errors import DataError
from ..labels import N_LEVELS, VIEWS
from ..models.mirroring import mirror_images, mirror_labels

MIN_SHIFT_MM = 0.3
"""Smallest standard deviation that `with_localizer_errors` sets: a reader's own point is no more accurate than that."""
NORMAL_FROM_MEDIAN = 1.4826
"""Standard deviation of a normal distribution over the median of its absolute values."""


@dataclass(frozen=True)
class AugmentConfig:
    """How strongly to augment; 0 switches a part off.

    Parameters
    ----------
    mirror : float
        Probability of mirroring a study.
    shift_mm : (float, float, float) or float
        Standard deviations of the crop centre's displacement along the patient's axes L, P and S, in mm; one number
        stands for all three. One draw a disc moves all its views. `with_localizer_errors` sets it to what the disc
        localizer was measured to err by, so that training sees what inference will get.
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
    intensity : float
        Probability of the albumentations pipeline (gamma, blur, coarser resolution) a view. It runs in the
        loader's workers and costs one to two ms a view; 0 leaves it out.
    mixup, cutmix : float
        Probabilities that a study is blended with another of its batch, or gets a box of it pasted, see
        `mixing.mix_batch`; their sum is at most 1.
    mixup_alpha, cutmix_alpha : float
        The study's own share is drawn from Beta(alpha, alpha): 1 is uniform, less favours shares near 0 and 1.
    """

    mirror: float = 0.5
    shift_mm: tuple[float, float, float] | float = (1.0, 2.0, 2.0)
    rotation_degrees: float = 5.0
    zoom: float = 0.05
    contrast: float = 0.15
    brightness: float = 0.15
    noise: float = 0.1
    slice_dropout: float = 0.0
    intensity: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_alpha: float = 0.4
    cutmix_alpha: float = 1.0

    def __post_init__(self):
        try:
            shift = np.broadcast_to(np.asarray(self.shift_mm, dtype=float), 3)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"augmentation: shift_mm must be one number or three (L, P, S), got {self.shift_mm!r}"
            ) from error
        object.__setattr__(self, "shift_mm", tuple(shift.tolist()))  # JSON brings a list
        for name in self.__dataclass_fields__:
            if not np.min(getattr(self, name)) >= 0:
                raise DataError(f"augmentation: {name} must not be negative, got {getattr(self, name)}")
        for name in ("mirror", "slice_dropout", "intensity"):
            if getattr(self, name) > 1:
                raise DataError(f"augmentation: {name} must be at most 1, got {getattr(self, name)}")
        if self.mixup + self.cutmix > 1:
            raise DataError(f"augmentation: mixup + cutmix must be at most 1, got {self.mixup + self.cutmix}")
        for name in ("mixup", "cutmix"):
            if getattr(self, name) and not getattr(self, f"{name}_alpha"):
                raise DataError(f"augmentation: {name} needs {name}_alpha above 0, got 0")

    def with_localizer_errors(self, errors_mm: np.ndarray) -> AugmentConfig:
        """A copy whose `shift_mm` is the localizer's error.

        Parameters
        ----------
        errors_mm : ndarray, shape (..., 3)
            Found minus true disc positions, LPS, mm; one row a disc, of studies that the localizer was not trained on.
            Rows with nan (discs not found) are left out.

        The spread along each axis is 1.4826 times the median distance from zero, at least `MIN_SHIFT_MM`: a
        steady offset counts as well, since training crops are cut around the truth, but a few discs taken for their
        neighbour do not. Raises `DataError` when the shape is another or no finite row is left.
        """
        errors = np.asarray(errors_mm, dtype=float)
        if errors.ndim < 2 or errors.shape[-1] != 3:
            raise DataError(f"the localizer's errors must have shape (..., 3), LPS in mm, got {errors.shape}")
        errors = errors.reshape(-1, 3)
        errors = errors[np.isfinite(errors).all(axis=1)]
        if not len(errors):
            raise DataError("the localizer's errors hold no finite row; were all discs missed?")
        spread = NORMAL_FROM_MEDIAN * np.median(np.abs(errors), axis=0)
        return replace(self, shift_mm=tuple(np.maximum(spread, MIN_SHIFT_MM).tolist()))


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
    mirrored = torch.rand(len(labels), generator=generator) < config.mirror
    labels = torch.where(mirrored[:, None].to(device), mirror_labels(labels), labels)
    rows = mirrored.nonzero()[:, 0].to(device)
    shift = torch.randn(len(labels), N_LEVELS, 3, generator=generator) * torch.tensor(config.shift_mm)
    result = {}
    for view in VIEWS:
        image = images[view]
        if len(rows):
            image = image.index_copy(0, rows, mirror_images({view: image[rows]})[view])
        # From patient axes to the crop's own: through-plane, rows, columns.
        steps = shift @ torch.tensor(np.stack(VIEW_AXES[view]), dtype=shift.dtype).T
        image = _move(image, steps, config, spec.extents[view], generator)
        result[view] = _change_contrast(image, config, generator)
    return result, labels


def _move(
    image: torch.Tensor,
    shift: torch.Tensor,
    config: AugmentConfig,
    extent: tuple[float, float, float],
    generator: torch.Generator | None,
) -> torch.Tensor:
    """Shift by (B, 5, 3) mm along the crop's axes, rotate and zoom every disc's crop by its own draw."""
    b, levels, depth, height, width = image.shape
    n, device = b * levels, image.device
    flat, shift = image.reshape(n, depth, height, width), shift.reshape(n, 3)
    through = shift[:, 0] * (depth / extent[0])
    if through.any():
        k = torch.arange(depth)
        # Linear interpolation between slices as a matrix; slices beyond the box are zeros, as in `datasets`.
        weights = (1 - (k[:, None] + through[:, None, None] - k).abs()).clamp(min=0)
        flat = (weights.to(device, flat.dtype) @ flat.flatten(2)).reshape(flat.shape)
    if shift[:, 1:].any() or config.rotation_degrees or config.zoom:
        draw = torch.randn(n, 2, generator=generator)
        angle = draw[:, 0] * float(np.radians(config.rotation_degrees))
        scale = (draw[:, 1] * config.zoom).exp()
        theta = torch.zeros(n, 2, 3)
        # Coordinates of affine_grid are -1 to 1 over the box's width and height, so mm carry the extents along.
        aspect = extent[1] / extent[2]
        theta[:, 0, 0] = angle.cos() * scale
        theta[:, 0, 1] = -angle.sin() * scale * aspect
        theta[:, 1, 0] = angle.sin() * scale / aspect
        theta[:, 1, 1] = angle.cos() * scale
        theta[:, 0, 2] = shift[:, 2] * (2 / extent[2])
        theta[:, 1, 2] = shift[:, 1] * (2 / extent[1])
        # Slices are the channels of a 2D resampling.
        grid = torch.nn.functional.affine_grid(theta.to(device), [n, depth, height, width], align_corners=False)
        flat = torch.nn.functional.grid_sample(flat, grid.to(flat.dtype), padding_mode="zeros", align_corners=False)
    return flat.reshape(image.shape)


def _change_contrast(image: torch.Tensor, config: AugmentConfig, generator: torch.Generator | None) -> torch.Tensor:
    b, levels, depth = image.shape[:3]

    def spread(values: torch.Tensor) -> torch.Tensor:
        return values.to(image.device)[:, None, None, None, None]

    draw = torch.randn(b, 2, generator=generator)
    empty = image == 0
    gain, offset = (draw[:, 0] * config.contrast).exp(), draw[:, 1] * config.brightness
    image = torch.addcmul(spread(offset), image, spread(gain))  # a new tensor, which may then be changed in place
    if config.noise:
        strength = torch.rand(b, generator=generator) * config.noise
        noise = torch.randn(image.shape, generator=generator).to(image.device)
        image.addcmul_(noise, spread(strength))
    if config.slice_dropout:
        lost = torch.rand(b, levels, generator=generator) < config.slice_dropout
        which = torch.randint(depth, (b, levels), generator=generator)
        dropped = lost[..., None] & (torch.arange(depth) == which[..., None])
        empty |= dropped.to(image.device)[..., None, None]
    return image.masked_fill_(empty, 0)


class IntensityAugmentation:
    """Gamma, blur and coarser resolution with albumentations, the same draw through all slices of a view.

    Noise is left to `augment_batch`: albumentations would add one and the same noise image to every slice.

    Takes and returns `dict view -> (5, D, H, W)`, as `datasets.CropDataset(transform=...)` wants it. Reproducible
    from `seed`, or from the last `reseed`; worker processes of a DataLoader draw their own streams.
    """

    def __init__(self, probability: float = 0.5, *, seed: int = 0):
        # albumentations asks a server for newer versions when it is imported, unless this is set.
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        import albumentations as A
        import cv2

        self.probability = probability
        self.pipeline = A.Compose(
            [
                A.RandomGamma(gamma_limit=(70, 140), p=0.7),
                A.OneOf(
                    [
                        A.GaussianBlur(blur_limit=(3, 5), p=1.0),
                        A.Downscale(
                            scale_range=(0.5, 0.8),
                            interpolation_pair={"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR},
                            p=1.0,
                        ),
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
