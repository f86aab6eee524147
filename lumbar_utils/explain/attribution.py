"""Where in the crops a prediction comes from: attribution maps over the crops in 3D, for every target and view.

Integrated gradients (Sundararajan, Taly and Yan 2017, ICML, arXiv:1703.01365): the crop is faded in from a neutral one,
and at every voxel the score's gradients on the way are averaged and multiplied by what the voxel changed. Summed over
the crop the result is the score of the crop less that of the neutral one, so a constant part of the features, such as
what padding and batch normalisation make of nothing at all, cannot be on the map. Neutral is 0, what lies outside the
crop as well (see `models.inputs`), so the rim of a crop stands out no more than it does in the image.

Two things make the map of a small network readable. It strides by 4 voxels before its first block, so that gradients
come in a grid of that width; each step of the way is therefore taken with the crop shifted by up to such a stride, and
shifted back. And single voxels' gradients are noise, so the map is smoothed, in millimetres, as gradients are averaged
over noisy copies by SmoothGrad (Smilkov and others 2017, arXiv:1706.03825), before its negative part is left out.

How far the maps can be trusted is measured on phantoms by `benchmarks/attribution_sanity.py`, with the sanity check of
Adebayo and others (2018, NeurIPS): the same network with random weights must not find the narrowing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, shift
from torch.nn.functional import pad

from ..crops.extraction import LATERAL_AXIS, StudyCrops
from ..devices import choose_compute
from ..errors import DataError
from ..inference.predictor import Predictor
from ..labels import N_LEVELS, N_SEVERITIES, N_TARGETS, VIEWS, target_index
from ..models.classifier import LumbarClassifier
from ..models.inputs import batch_of, study_input

STEPS = 12
"""On the way from the neutral crop, in pairs with mirrored shifts; an even number."""
SHIFTS = (2, 4, 4)
"""Largest shift in voxels, slices first."""
SMOOTHING_MM = 4.0
"""Standard deviation of the Gaussian over the map."""


@dataclass(frozen=True, eq=False)
class StudyAttribution:
    """What in a study's crops speaks for a narrowing, target by target.

    `maps` are float32 (25, D, H, W) by view: for each target the map over the crop of its level, in the crop's own
    voxels (see `StudyCrops`), not negative; 0 where nothing was scanned, and everywhere in a view that is missing. All
    views of a target have one scale. `scores` (25,) are the log odds that the maps explain: of moderate or severe
    against normal/mild, or of one severity against the two others, as the network's loss, weights included, made them.
    """

    study_id: str
    maps: Mapping[str, np.ndarray]
    scores: np.ndarray

    def of(self, view: str, condition: int | str, level: int | str) -> np.ndarray:
        """One map, (D, H, W)."""
        return self.maps[view][target_index(condition, level)]

    def scaled(self, view: str, condition: int | str, level: int | str) -> np.ndarray:
        """One map, (D, H, W), as a fraction of its own largest value: 0 to 1."""
        values = self.of(view, condition, level)
        return values / max(float(values.max()), 1e-12)

    def slice_shares(self, view: str, condition: int | str, level: int | str) -> np.ndarray:
        """The fraction of a map's sum in each slice of the crop, (D,), summing to one, or 0 for an empty map."""
        mass = self.of(view, condition, level).sum(axis=(1, 2), dtype=np.float64)
        return mass / max(float(mass.sum()), 1e-12)

    def slice_of(self, view: str, condition: int | str, level: int | str) -> int | None:
        """The slice, along the crop's first axis, that holds the map's highest point; None for an empty map."""
        peaks = self.of(view, condition, level).max(axis=(1, 2))
        return int(peaks.argmax()) if peaks.any() else None


def attribution_maps(
    network: LumbarClassifier | Predictor,
    crops: StudyCrops,
    *,
    targets: Sequence[int] | None = None,
    severity: int | None = None,
) -> StudyAttribution:
    """Attribution maps of one study; those of a Predictor are the weighted mean of its networks'.

    Crops are of the specification that the network was trained on. `targets` are indices into `labels.TARGETS`, default
    all 25; the others' maps and scores stay 0. `severity` 0, 1 or 2 explains the log odds of this severity against the
    two others instead of those of moderate or severe. Raises `DataError` when the crops do not fit, or there is no such
    target or severity.
    """
    if severity is not None and severity not in range(N_SEVERITIES):
        raise DataError(f"severity must be 0, 1 or 2, got {severity}")
    chosen = list(range(N_TARGETS)) if targets is None else [int(t) for t in targets]
    if not all(0 <= target < N_TARGETS for target in chosen):
        raise DataError(f"targets are numbers from 0 to {N_TARGETS - 1}, got {list(chosen)}")
    if isinstance(network, LumbarClassifier):
        return _maps_of_one(network, crops, chosen, severity)
    if any(spec != crops.spec for spec in network.specs):
        raise DataError(
            f"study {crops.study_id}: crops of {crops.spec.to_json()}, but a network was trained on others: "
            f"{[spec.to_json() for spec in network.specs]}; explain its networks one by one"
        )
    results = [_maps_of_one(model, crops, chosen, severity) for model in network.models]
    maps = {view: np.average([r.maps[view] for r in results], 0, network.weights).astype("f4") for view in VIEWS}
    return StudyAttribution(crops.study_id, maps, np.average([r.scores for r in results], 0, network.weights))


def _maps_of_one(
    model: LumbarClassifier, crops: StudyCrops, targets: list[int], severity: int | None
) -> StudyAttribution:
    inputs = batch_of([study_input(crops)])
    device = next(model.parameters()).device
    images = {view: image.to(device) for view, image in inputs["images"].items()}
    present = inputs["present"].to(device)
    maps = {view: np.zeros((N_TARGETS, *crops.spec.shapes[view]), dtype=np.float32) for view in VIEWS}
    scores = np.zeros(N_TARGETS)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            known = [model._encode(i, images[view], present[:, i]) for i, view in enumerate(VIEWS)]
            scores[targets] = log_odds(model.head(known).float() + model.bias, severity)[0, targets].cpu()
        for level in sorted({target % N_LEVELS for target in targets}):
            wanted = [target for target in targets if target % N_LEVELS == level]
            for i, view in enumerate(VIEWS):
                if not present[0, i, level]:
                    continue
                spacing = np.divide(crops.spec.extents[view], crops.spec.shapes[view])  # mm along the crop's axes
                found = attributions(model, images[view][0, level], known, i, level, wanted, severity=severity)
                for target, values in found.items():
                    smooth = gaussian_filter(values, SMOOTHING_MM / spacing, mode="constant")
                    maps[view][target] = np.maximum(smooth, 0) * crops.covered[view][level]
    finally:
        model.train(was_training)
    return StudyAttribution(crops.study_id, maps, scores)


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
    """Each target's map (D, H, W) over one crop, neither smoothed nor cut off at 0; the other crops stay as they are.

    `image` (D, H, W) is the crop as `models.inputs.study_input` makes it, of that view and level; `known` are the
    features (1, 5, sides, F) of all views of the study; the model is in evaluation mode. Without shifts the sum of a
    map is about the score of the study less that of one with a neutral crop.
    """
    rng = np.random.default_rng(0)
    moves = [tuple(int(rng.integers(-most, most + 1)) for most in shifts) for _ in range(steps)]
    for first in range(0, steps - 1, 2):  # in pairs, mirror images of each other: so are a mirrored study's maps then
        across = LATERAL_AXIS[VIEWS[view]]
        moves[first + 1] = tuple(-by if axis == across else by for axis, by in enumerate(moves[first]))
    padded = pad(image[None], [most for most in reversed(shifts) for _ in range(2)], mode="replicate")[0]
    starts = np.subtract(shifts, moves)
    moved = torch.stack([padded[tuple(map(slice, start, start + image.shape))] for start in starts])
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
        back = [shift(p, np.negative(move), order=0) for p, move in zip(products, moves, strict=True)]
        found[target] = np.mean(back, axis=0)  # what was moved out of the crop is 0
    return found
