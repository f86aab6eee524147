"""Where in the crops a prediction comes from: attribution maps over the crops in 3D, for every target and view.

The maps are made by integrated gradients (see `integrated_gradients`) and have the crop's own resolution. How far they
can be trusted is measured on phantoms by `benchmarks/attribution_sanity.py`, with the sanity check of Adebayo and
others (2018, NeurIPS): the same network with random weights must not find the narrowing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..crops.extraction import StudyCrops
from ..errors import DataError
from ..labels import N_LEVELS, N_SEVERITIES, N_TARGETS, VIEWS, target_index
from ..models.classifier import LumbarClassifier
from ..models.inputs import batch_of, study_input
from .integrated_gradients import attributions, log_odds, smoothed

if TYPE_CHECKING:
    from ..inference.predictor import Predictor


@dataclass(frozen=True, eq=False)
class StudyAttribution:
    """What in a study's crops speaks for a narrowing, target by target.

    Attributes
    ----------
    study_id : str
    maps : dict view -> ndarray of float32, shape (25, D, H, W)
        For each target the map over the crop of its level, in the crop's own voxels (see `StudyCrops`), not negative;
        0 where nothing was scanned, and everywhere in a view that is missing. All views of a target have one scale.
    scores : ndarray of float64, shape (25,)
        The log odds that the maps explain: of moderate or severe against normal/mild, or of one severity against the
        two others.
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
    """Attribution maps of one study.

    Parameters
    ----------
    network : LumbarClassifier or Predictor
        The maps of a Predictor are the weighted mean of its networks'.
    crops : StudyCrops
        Of the specification that the network was trained on.
    targets : sequence of int, optional
        Indices into `labels.TARGETS`; the others' maps and scores stay 0. Default all 25.
    severity : {0, 1, 2}, optional
        Explain the log odds of this severity against the two others instead of those of moderate or severe.

    Raises
    ------
    DataError
        When the crops do not fit, or there is no such target or severity.
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
    maps = {
        view: sum(weight * one.maps[view] for weight, one in zip(network.weights, results, strict=True)).astype("f4")
        for view in VIEWS
    }
    scores = sum(weight * one.scores for weight, one in zip(network.weights, results, strict=True))
    return StudyAttribution(crops.study_id, maps, scores)


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
                    maps[view][target] = smoothed(values, spacing) * crops.covered[view][level]
    finally:
        model.train(was_training)
    return StudyAttribution(crops.study_id, maps, scores)
