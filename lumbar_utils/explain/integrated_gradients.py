"""Integrated gradients: how much each voxel of a crop contributes to a target's score.

Sundararajan, Taly and Yan 2017 (ICML, arXiv:1703.01365): the crop is faded in from a neutral one, and at every voxel
the score's gradients on the way are averaged and multiplied by what the voxel changed. Summed over the crop the result
is the score of the crop less that of the neutral one, so a constant part of the features, such as what padding and
batch normalisation make of nothing at all, cannot be on the map. Neutral is 0, what lies outside the crop as well (see
`models.inputs`), so the rim of a crop stands out no more than it does in the image.

Two things make the map of a small network readable. It strides by 4 voxels before its first block, so that gradients
come in a grid of that width; each step of the way is therefore taken with the crop shifted by up to such a stride, and
shifted back. And single voxels' gradients are noise, so the map is smoothed, in millimetres, as gradients are averaged
over noisy copies by SmoothGrad (Smilkov and others 2017, arXiv:1706.03825), before its negative part is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from ..crops.extraction import LATERAL_AXIS
from ..devices import choose_compute
from ..labels import N_LEVELS, N_SEVERITIES, VIEWS
from ..models.classifier import LumbarClassifier

STEPS = 12
"""On the way from the neutral crop, in pairs with mirrored shifts; an even number."""
SHIFTS = (2, 4, 4)
"""Largest shift in voxels, slices first."""
SMOOTHING_MM = 4.0
"""Standard deviation of the Gaussian over the map."""


def log_odds(logits: torch.Tensor, severity: int | None) -> torch.Tensor:
    """Log odds (..., 25) of moderate or severe, or of one severity, from logits (..., 25, 3)."""
    logits = logits.float()
    if severity is None:
        return logits[..., 1:].logsumexp(-1) - logits[..., 0]
    others = [k for k in range(N_SEVERITIES) if k != severity]
    return logits[..., severity] - logits[..., others].logsumexp(-1)


def attributions(
    model: LumbarClassifier,
    image: torch.Tensor,
    known: Sequence[torch.Tensor],
    view: int,
    level: int,
    targets: Sequence[int],
    *,
    severity: int | None = None,
    steps: int = STEPS,
    shifts: tuple[int, int, int] = SHIFTS,
) -> dict[int, np.ndarray]:
    """Each target's map over one crop, neither smoothed nor cut off at 0; all other crops stay as they are.

    Parameters
    ----------
    model : LumbarClassifier
        In evaluation mode.
    image : tensor (D, H, W)
        The crop as `models.inputs.study_input` makes it, on the model's device.
    known : sequence of tensor (1, 5, sides, F)
        The features of all views of the study.
    view, level : int
        Where the crop belongs; `view` counts in `labels.VIEWS`.

    Returns
    -------
    dict target -> ndarray of float32, shape (D, H, W)
        Without shifts its sum is about the score of the study less that of one with a neutral crop.
    """
    rng = np.random.default_rng(0)
    moves = [tuple(int(rng.integers(-most, most + 1)) for most in shifts) for _ in range(steps)]
    for first in range(0, steps - 1, 2):  # in pairs, mirror images of each other: so are a mirrored study's maps then
        across = LATERAL_AXIS[VIEWS[view]]
        moves[first + 1] = tuple(-by if axis == across else by for axis, by in enumerate(moves[first]))
    moved = torch.stack([_shifted(image, move) for move in moves])
    weights = (torch.arange(steps, device=image.device) // 2 * 2 + 1) / steps
    path = (moved * weights[:, None, None, None]).requires_grad_()
    here = torch.zeros((steps, N_LEVELS), dtype=torch.bool, device=image.device)
    here[:, level] = True
    compute = choose_compute(str(image.device))
    if compute.scales_gradients:  # float16, in which small gradients would be 0
        compute = choose_compute(str(image.device), "float32")
    with torch.enable_grad(), compute.autocast():
        whole = torch.stack([path if i == level else torch.zeros_like(path) for i in range(N_LEVELS)], dim=1)
        encoded = model._encode(view, whole, here)
        features = [other.expand(steps, -1, -1, -1) for other in known]
        features[view] = torch.where(here[..., None, None], encoded, features[view])
        odds = log_odds(model.head(features).float() + model.bias, severity)
    found = {}
    for target in targets:
        (gradient,) = torch.autograd.grad(odds[:, target].sum(), path, retain_graph=True)
        products = (gradient.float() * moved).cpu().numpy()
        found[target] = np.mean([_moved_back(p, move) for p, move in zip(products, moves, strict=True)], axis=0)
    return found


def smoothed(values: np.ndarray, spacing: Sequence[float], sigma: float = SMOOTHING_MM) -> np.ndarray:
    """A map (D, H, W) as one looks at it: smoothed by `sigma` mm, voxels `spacing` mm apart, where positive."""
    blurred = gaussian_filter(values, [sigma / step for step in spacing], mode="constant")
    return np.maximum(blurred, 0).astype(np.float32)


def _shifted(image: torch.Tensor, move: tuple[int, ...]) -> torch.Tensor:
    """The image moved by whole voxels; what is new at the rim repeats the old rim."""
    for axis, by in enumerate(move):
        places = (torch.arange(image.shape[axis], device=image.device) - by).clamp(0, image.shape[axis] - 1)
        image = image.index_select(axis, places)
    return image


def _moved_back(values: np.ndarray, move: tuple[int, ...]) -> np.ndarray:
    """The inverse for a map: what was moved out of the crop is 0."""
    result = np.zeros_like(values)
    to = tuple(slice(max(0, -by), n - max(0, by)) for n, by in zip(values.shape, move, strict=True))
    origin = tuple(slice(max(0, by), n + min(0, by)) for n, by in zip(values.shape, move, strict=True))
    result[to] = values[origin]
    return result
