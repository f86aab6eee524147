"""Mixup and cutmix on crops: a study is blended with another of its batch, or gets a box of it pasted.

Both are a convex sum with a weight for every pixel: constant in mixup, 0 inside a box and 1 outside in cutmix. The
labels of both studies then count by the share of the pixels that is their own (Zhang and others 2018, ICLR; Yun and
others 2019, ICCV). Partners show the same views of the same levels, so that a view that is there never fades into one
that is not. Mix after `augmentation.augment_batch`, so that each of the two has its own place and contrast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ..crops.extraction import VIEW_AXES
from ..labels import VIEWS
from .augmentation import AugmentConfig


@dataclass(frozen=True, eq=False)
class Mixed:
    """A batch after mixing; the loss is `share` times that of `labels` plus the rest times that of `partner_labels`.

    Attributes
    ----------
    images : dict view -> tensor (B, 5, D, H, W)
    labels, partner_labels : tensors (B, 25)
        Labels of each study and of what was mixed into it; equal where nothing was, and one
        and the same tensor when mixing is switched off.
    share : float32 tensor (B,)
        How much of each study is its own, 0 to 1; exactly 1 where nothing was mixed in.
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
    """Mix a batch with itself as `config.mixup` and `config.cutmix` say; the inputs are left as they are.

    A pixel that neither study covers stays exactly 0. `present` needs no change: partners have the same.

    Parameters
    ----------
    images : dict view -> tensor (B, 5, D, H, W)
    labels : tensor (B, 25)
    present : bool tensor (B, 3) or (B, 3, 5)
        Best on the CPU, as the loader brings it, because it is read there.
    generator : torch.Generator, optional
        On the CPU; all draws follow from it, so the same seed gives the same batch on any device.
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
    own = np.where(blended & ~alone, _beta(config.mixup_alpha, n, rng), 1.0)
    side = np.where(boxed & ~alone, np.sqrt(1 - _beta(config.cutmix_alpha, n, rng)), 0.0)
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


def _beta(alpha: float, n: int, rng: np.random.Generator) -> np.ndarray:
    return rng.beta(alpha, alpha, n) if alpha else np.ones(n)


def _boxes(view: str, shape: tuple[int, int], corner: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Pixels of a view inside each study's box: bool (n, H, W).

    The box is placed along the patient's axes, as fractions of the crop, so all views lose the same anatomy.
    """
    inside = []
    for size, direction in zip(shape, VIEW_AXES[view][1:], strict=True):
        position = (np.arange(size) + 0.5) / size
        low = corner[:, np.abs(direction).argmax(), None]
        inside.append((position >= low) & (position < low + side[:, None]))
    return inside[0][:, :, None] & inside[1][:, None, :]
