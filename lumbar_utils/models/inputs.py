"""What the network takes: the crops of a study, centred and scaled, and which view shows which level.

What a crop does not cover holds 0 in the cache, which is the black of air. Here it becomes `CENTER`, a typical
tissue intensity, and after `(x - CENTER) / SCALE` exactly 0: the same value that the convolutions' padding puts
outside the crop, so that a place outside the scan looks like a place outside the box and not like an organ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ..crops.extraction import StudyCrops
from ..labels import N_LEVELS, VIEWS

CENTER, SCALE = 0.35, 0.25
"""Middle and spread of the normalised intensities of lumbar crops; batch normalisation evens out the rest."""

Images = Mapping[str, np.ndarray]
"""View -> float16 (5, D, H, W), centred and scaled, 0 where not covered."""


@dataclass(frozen=True, eq=False)
class StudyInput:
    """One study as the network takes it.

    Attributes
    ----------
    study_id : str
    images : dict view -> ndarray of float16, shape (5, D, H, W)
        `(intensity - CENTER) / SCALE`; 0 where not covered.
    present : ndarray of bool, shape (3, 5)
        Which view (in the order of `labels.VIEWS`) shows which level.
    """

    study_id: str
    images: Images
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
