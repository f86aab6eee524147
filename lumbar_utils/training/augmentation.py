"""Augmentation that keeps left and right apart: of intensity with albumentations, of position on whole batches.

Intensity is drawn once a series: all slices and levels of a view get the same draw, as one acquisition would. Position
is drawn once a disc, because the localizer's error differs from disc to disc: the shift in patient axes and the same
for all views, as they are cut around one point; rotation and zoom for each view. Mirroring flips the axis that runs
from right to left in all views, and swaps the left and right targets. What a crop does not cover is 0 before and after.

Then mixup and cutmix: a study is blended with another of its batch, or gets a box of it pasted. Both are a convex sum
with a weight for every pixel: constant in mixup, 0 inside a box and 1 outside in cutmix. The labels of both studies
count by the share of the pixels that is their own (Zhang and others 2018, ICLR; Yun and others 2019, ICCV). Partners
show the same views of the same levels, so that a view that is there never fades into one that is not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..crops.extraction import VIEW_AXES, CropSpec
from ..errors import DataError
from ..labels import AXIAL_T2, N_LEVELS, SAGITTAL_T1, VIEWS
from ..models.inputs import CENTER, SCALE, mirror_images, mirror_labels

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
    rotation_degrees, zoom : float
        Standard deviations of the rotation in the plane, and of the logarithm of the magnification.
    contrast, brightness, noise : float
        Standard deviations of the logarithm of the gain and of the offset, and the largest one of white noise, the
        latter two in units of the network's input; one draw a view.
    slice_dropout : float
        Probability that one slice of a crop is blanked, as a slice that failed to read would be.
    few_slices : float
        Probability that a crop shows a few slices only, as single pictures of a patient do: T2 views two to five
        around the middle, of axial ones no more than the surroundings of the canal; each half of T1 one to three
        beside each other, which stand for the rest of the half.
    intensity : float
        Probability of the albumentations pipeline (gamma, blur, sharpening, coarser resolution) a view. It runs in the
        loader's workers and costs one to two ms a view; 0 leaves it out.
    mixup, cutmix : float
        Probabilities that a study is blended with another of its batch, or gets a box of it pasted, see
        `mix_batch`; their sum is at most 1.
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
    few_slices: float = 0.0
    intensity: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_alpha: float = 0.4
    cutmix_alpha: float = 1.0

    def __post_init__(self):
        try:
            shift = np.broadcast_to(np.asarray(self.shift_mm, dtype=float), 3)
        except (TypeError, ValueError) as error:
            message = f"augmentation: shift_mm must be one number or three (L, P, S), got {self.shift_mm!r}"
            raise DataError(message) from error
        object.__setattr__(self, "shift_mm", tuple(shift.tolist()))  # JSON brings a list
        for name in self.__dataclass_fields__:
            if not np.min(getattr(self, name)) >= 0:
                raise DataError(f"augmentation: {name} must not be negative, got {getattr(self, name)}")
        for name in ("mirror", "slice_dropout", "few_slices", "intensity"):
            if getattr(self, name) > 1:
                raise DataError(f"augmentation: {name} must be at most 1, got {getattr(self, name)}")
        if self.mixup + self.cutmix > 1:
            raise DataError(f"augmentation: mixup + cutmix must be at most 1, got {self.mixup + self.cutmix}")
        for name in ("mixup", "cutmix"):
            if getattr(self, name) and not getattr(self, f"{name}_alpha"):
                raise DataError(f"augmentation: {name} needs {name}_alpha above 0, got 0")

    def with_localizer_errors(self, errors_mm: np.ndarray) -> AugmentConfig:
        """A copy whose `shift_mm` is the localizer's error.

        `errors_mm` (..., 3) are found minus true disc positions, LPS, mm, of studies that the localizer was not trained
        on; nan where a disc was not found. The spread along each axis is 1.4826 times the median distance from zero, at
        least `MIN_SHIFT_MM`: a steady offset counts as well, since training crops are cut around the truth, but a few
        discs taken for their neighbour do not. Raises `DataError` when the shape is another or no finite row is left.
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
    """Augment images (B, 5, D, H, W) by view and labels (B, 25) on their device; the inputs are left as they are.

    The specification tells how many mm a voxel is. All draws come from the generator, which lies on the CPU, so the
    same seed gives the same batch on any device.
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
        moved = _move(image, steps, config, spec.extents[view], generator)
        result[view] = _change_contrast(_keep_few_slices(moved, view, config, generator), config, generator)
    return result, labels


def _keep_few_slices(
    image: torch.Tensor, view: str, config: AugmentConfig, generator: torch.Generator | None
) -> torch.Tensor:
    """Crops (B, 5, D, H, W) of which some show a few slices only, see `AugmentConfig.few_slices`."""
    b, levels, depth = image.shape[:3]
    chosen = torch.rand(b, levels, generator=generator) < config.few_slices
    if not chosen.any():
        return image
    draw, wander = torch.rand(b, levels, 2, generator=generator), torch.randn(b, levels, 2, generator=generator)
    k = torch.arange(depth)
    if view != SAGITTAL_T1:
        half_width = 0.5 + 1.5 * draw[..., :1]
        shown = ((k - (depth - 1) / 2 - wander[..., :1] * depth / 12).abs() <= half_width)[..., None, None]
        if view == AXIAL_T2:  # 37 to 49 of 70 mm from front to back, 46 to 70 from side to side
            rows, columns = (torch.linspace(-1, 1, n).abs() for n in image.shape[3:])
            reach = torch.rand(2, b, levels, 1, 1, 1, generator=generator)
            shown = shown & (rows[:, None] <= 0.53 + 0.17 * reach[0]) & (columns <= 0.66 + 0.34 * reach[1])
        return image * (shown | ~chosen[..., None, None, None]).to(image.device)
    # The foramina lie a quarter of the box from its ends, and a little more medially in the upper lumbar spine.
    half = (2 * k >= depth).long()
    middle, reach = torch.tensor([0.25, 0.72])[half] * depth + wander[..., half], (2 * draw).floor()[..., half]
    nearest = torch.minimum(torch.maximum(k.expand_as(middle), (middle - reach).floor()), (middle + reach).ceil())
    nearest = torch.where(chosen[..., None], nearest.long().clamp(0, depth - 1), k)
    index = nearest.to(image.device)[..., None, None].expand_as(image)
    return image.gather(2, index)


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
        # Coordinates of affine_grid are -1 to 1 over the box's width and height, so mm carry the extents along.
        aspect, cos, sin = extent[1] / extent[2], angle.cos() * scale, angle.sin() * scale
        rows = (cos, -sin * aspect, shift[:, 2] * (2 / extent[2])), (sin / aspect, cos, shift[:, 1] * (2 / extent[1]))
        theta = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=1)
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


@dataclass(frozen=True, eq=False)
class Mixed:
    """A batch after mixing; the loss is `share` times that of `labels` plus the rest times that of `partner_labels`.

    `partner_labels` (B, 25) are those of what was mixed into each study: equal to `labels` where nothing was, and the
    same tensor when mixing is switched off; `share` (B,) is then 1.
    """

    images: dict[str, torch.Tensor]
    labels: torch.Tensor
    partner_labels: torch.Tensor
    share: torch.Tensor


def mix_batch(
    images: Mapping[str, torch.Tensor],
    labels: torch.Tensor,
    present: torch.Tensor,
    config: AugmentConfig,
    generator: torch.Generator | None = None,
) -> Mixed:
    """Mix a batch of images (B, 5, D, H, W) by view with itself as `config.mixup` and `config.cutmix` say.

    A pixel that neither study covers stays exactly 0. `present`, bool (B, 3) or (B, 3, 5) on the CPU, needs no change:
    partners have the same. All draws follow from the generator, so a seed gives the same batch on any device.
    """
    n, device = len(labels), labels.device
    if not (config.mixup or config.cutmix):
        return Mixed(dict(images), labels, labels, torch.ones(n, device=device))
    # torch draws from a beta distribution with a generator of one's own only through private functions.
    rng = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator)))
    lot = rng.random(n)
    blended, boxed = lot < config.mixup, (lot >= config.mixup) & (lot < config.mixup + config.cutmix)
    partner = np.where(blended | boxed, _partners(present.cpu().numpy().reshape(n, -1), rng), np.arange(n))
    alone = partner == np.arange(n)
    drawn = [rng.beta(alpha, alpha, n) if alpha else np.ones(n) for alpha in (config.mixup_alpha, config.cutmix_alpha)]
    own = np.where(blended & ~alone, drawn[0], 1.0)
    side = np.where(boxed & ~alone, np.sqrt(1 - drawn[1]), 0.0)
    corner = rng.random((n, 3)) * (1 - side[:, None])

    order = torch.as_tensor(partner, device=device)
    mixed, shares = {}, []
    for view in VIEWS:
        image = images[view]
        weight = own[:, None, None] * ~_boxes(view, image.shape[-2:], corner, side)
        shares.append(weight.mean(axis=(1, 2)))
        weight = torch.as_tensor(weight, dtype=image.dtype, device=device)[:, None, None]
        mixed[view] = torch.lerp(image[order], image, weight)
    share = torch.as_tensor(np.mean(shares, axis=0), dtype=torch.float32, device=device)
    return Mixed(mixed, labels, labels[order], share)


def _partners(present: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A permutation without fixed points within each group of equal rows; who is alone is its own partner."""
    partner = np.arange(len(present))
    order = rng.permutation(len(present))
    group = np.unique(present[order], axis=0, return_inverse=True)[1].ravel()
    for number in np.unique(group):
        members = order[group == number]
        partner[members] = np.roll(members, 1)
    return partner


def _boxes(view: str, shape: tuple[int, int], corner: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Pixels inside each study's box, bool (n, H, W): along the patient's axes, so that all views lose the same."""
    inside = []
    for size, direction in zip(shape, VIEW_AXES[view][1:], strict=True):
        position = (np.arange(size) + 0.5) / size
        low = corner[:, np.abs(direction).argmax(), None]
        inside.append((position >= low) & (position < low + side[:, None]))
    return inside[0][:, :, None] & inside[1][:, None, :]


class IntensityAugmentation:
    """Gamma, blur, sharpening, coarser resolution with albumentations, one draw through a view's slices (5, D, H, W).

    Noise is left to `augment_batch`: albumentations would add one and the same noise image to every slice. Reproducible
    from `seed`, or from the last `reseed`; worker processes of a DataLoader draw their own streams.
    """

    def __init__(self, probability: float = 0.5, *, seed: int = 0):
        # albumentations asks a server for newer versions when it is imported, unless this is set.
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        import albumentations as A
        import cv2

        self.probability = probability
        pair = {"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR}
        coarser = A.Downscale(scale_range=(0.5, 0.8), interpolation_pair=pair, p=1.0)
        # Scanners sharpen their images, each in its own way.
        sharper = A.UnsharpMask(blur_limit=(3, 5), alpha=(0.4, 1.0), threshold=0, p=1.0)
        edges = A.OneOf([A.GaussianBlur(blur_limit=(3, 5), p=1.0), coarser, sharper], p=0.6)
        self.pipeline = A.Compose([A.RandomGamma(gamma_limit=(50, 190), p=0.8), edges], strict=True, seed=seed)
        self._rng = np.random.default_rng(seed)
        self._worker: int | None = None

    LOW, HIGH = -CENTER / SCALE, (1.5 - CENTER) / SCALE
    """Range of the network's input that is mapped to albumentations' 0 to 1, from black on; the rest is clipped."""

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
