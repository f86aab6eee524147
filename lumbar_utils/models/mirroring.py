"""The mirror image of a study: crops flipped from right to left, left and right targets exchanged."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ..crops.extraction import LATERAL_AXIS
from ..labels import MIRROR_PERMUTATION


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
