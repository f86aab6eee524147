"""What the network takes: the crops of a study, centred and scaled, which view shows which level, and mirror images.

What a crop does not cover holds 0 in the cache, which is the black of air. Here it becomes `CENTER`, a typical
tissue intensity, and after `(x - CENTER) / SCALE` exactly 0: the same value that the convolutions' padding puts
outside the crop, so that a place outside the scan looks like a place outside the box and not like an organ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from ..crops.extraction import LATERAL_AXIS, StudyCrops
from ..labels import MIRROR_PERMUTATION, N_LEVELS, VIEWS

Array = TypeVar("Array", torch.Tensor, np.ndarray)

CENTER, SCALE = 0.35, 0.25
"""Middle and spread of the normalised intensities of lumbar crops; batch normalisation evens out the rest."""


@dataclass(frozen=True, eq=False)
class StudyInput:
    """One study as the network takes it.

    `images`: view -> float16 (5, D, H, W), `(intensity - CENTER) / SCALE`, 0 where not covered; `present`: bool (3, 5),
    which view (in the order of `labels.VIEWS`) shows which level.
    """

    study_id: str
    images: Mapping[str, np.ndarray]
    present: np.ndarray


def study_input(crops: StudyCrops) -> StudyInput:
    """Centre and scale the crops of a study and mark what is there."""
    images, present = {}, np.zeros((len(VIEWS), N_LEVELS), dtype=bool)
    for i, view in enumerate(VIEWS):
        covered = np.asarray(crops.covered[view], dtype=bool)
        scaled = (np.asarray(crops.images[view], dtype=np.float32) - CENTER) / SCALE
        usable = covered & (np.abs(scaled) <= np.finfo(np.float16).max)
        images[view] = np.where(usable, scaled, 0).astype(np.float16)
        present[i] = covered.reshape(N_LEVELS, -1).any(axis=1)
    return StudyInput(str(crops.study_id), images, present)


def batch_of(inputs: Iterable[StudyInput]) -> dict:
    """Stack studies into one batch: `images` (dict view -> (B, 5, D, H, W) float32), `present` (B, 3, 5)."""
    inputs = list(inputs)
    return {
        "images": {v: torch.from_numpy(np.stack([i.images[v] for i in inputs]).astype(np.float32)) for v in VIEWS},
        "present": torch.from_numpy(np.stack([i.present for i in inputs])),
    }


def mirror_images(images: Mapping[str, Array]) -> dict[str, Array]:
    """Mirror crops of any leading shape (..., D, H, W): flip the axis that runs from right to left in each view."""
    flip = {view: LATERAL_AXIS[view] - 3 for view in images}
    return {v: x.flip(flip[v]) if isinstance(x, torch.Tensor) else np.flip(x, flip[v]) for v, x in images.items()}


def mirror_labels(labels: Array) -> Array:
    """Labels (..., 25) of the mirrored study: left and right change places. Its own inverse."""
    return labels[..., MIRROR_PERMUTATION.tolist()]


def mirror_probabilities(probabilities: Array) -> Array:
    """Predictions (..., 25, 3) of the mirrored study, read back for the study itself. Its own inverse."""
    return probabilities[..., MIRROR_PERMUTATION.tolist(), :]
