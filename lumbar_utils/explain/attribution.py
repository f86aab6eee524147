"""Where in the crops a grade comes from: maps over the crops in 3D, for every target and view.

By default by integrated gradients (see `integrated_gradients`), which have the crop's own resolution. A layer's
class-activation map is `method="hirescam"`: the product of the layer's features and of the gradient of the target's
score with respect to them, summed over the channels, where positive (Draelos and Carin 2020, arXiv:2011.08891).
The last layer of a thin stack's encoder is of no use for it: 8 slices of 48 x 48 pixels leave 2 x 2 x 1 places in a 3D
ResNet18. So these maps are taken further down, see `LAYERS`, where two places are left along the slices and the sum
holds what features have anywhere, at the rim above all: on the demo's network they miss the narrowing.

How far a map can be trusted is measured on phantoms by `benchmarks/attribution_sanity.py`, with the sanity check of
Adebayo and others (2018, NeurIPS): the same network with random weights must not find the narrowing.

HiResCAM is for convolutional encoders, 3D and 2.5D; both are for both heads, also where the sides are cut apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..crops.extraction import LATERAL_AXIS, StudyCrops
from ..errors import DataError
from ..labels import N_LEVELS, N_SEVERITIES, N_TARGETS, VIEWS, target_index
from ..models.classifier import SPLIT_VIEWS, LumbarClassifier, split_sides
from ..models.inputs import batch_of, study_input
from ..models.slice_encoders import SliceEncoder
from .integrated_gradients import attributions, log_odds, smoothed, spacing_of

if TYPE_CHECKING:
    from ..inference.predictor import Predictor

METHODS = ("integrated", "hirescam")
LAYERS = (12,)
"""Of HiResCAM, default: the last layer with at least 12 places along a slice's longer side, which is one in 6 mm. Half
as fine, a small network's maps found the foramen half as often and told slices apart less; both together: between."""


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
        The log odds of moderate or severe against normal/mild that the maps explain, or the severity's that was asked
        for.
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
        """The share of a map's mass in each slice of the crop, (D,), summing to one, or 0 for an empty map."""
        mass = self.of(view, condition, level).sum(axis=(1, 2), dtype=np.float64)
        return mass / max(float(mass.sum()), 1e-12)

    def slice_of(self, view: str, condition: int | str, level: int | str) -> int | None:
        """The slice, along the crop's first axis, that holds the map's highest point; None for an empty map."""
        peaks = self.of(view, condition, level).max(axis=(1, 2))
        if not peaks.any():
            return None
        best = np.flatnonzero(peaks >= peaks.max() * (1 - 1e-6))  # neighbours can share a coarse layer's slice
        return int(best[len(best) // 2])

    def view_shares(self, condition: int | str, level: int | str) -> dict[str, float]:
        """How the target's mass is shared among the views, each view's mean over its crop; sums to one, or 0."""
        mass = {view: float(self.of(view, condition, level).mean(dtype=np.float64)) for view in VIEWS}
        total = max(sum(mass.values()), 1e-12)
        return {view: value / total for view, value in mass.items()}


@dataclass(frozen=True, eq=False)
class FeatureLayer:
    """A layer of an encoder whose features still lie in the crop.

    Attributes
    ----------
    name : str
        Of the module inside of the encoder.
    centers : tuple of ndarray
        For each axis of the features, the pixel of the encoder's input in the middle of what each position looks at:
        rows, columns and, for a 3D encoder, slices. Exact for layers with kernel, stride and padding: a stride of 2
        with a padded kernel of 3 looks at pixels 0, 2, 4, ... and not at 0.5, 2.5, 4.5, ...
    """

    name: str
    centers: tuple[np.ndarray, ...]


def explain(
    source: LumbarClassifier | Predictor,
    crops: StudyCrops,
    *,
    targets: Sequence[int] | None = None,
    severity: int | None = None,
    method: str = "integrated",
    layers: Sequence[int] = LAYERS,
) -> StudyAttribution:
    """Class-activation maps of one study.

    Parameters
    ----------
    source : LumbarClassifier or Predictor
        The maps of a Predictor are the weighted mean of its networks'.
    crops : StudyCrops
        Of the specification that the network was trained on.
    targets : sequence of int, optional
        Indices into `labels.TARGETS`; the others' maps and scores stay 0. Default all 25.
    severity : {0, 1, 2}, optional
        Explain the log odds of this grade against the two others instead of those of moderate or severe.
    method : {"integrated", "hirescam"}
        Integrated gradients, or the class-activation map of a layer.
    layers : sequence of int
        Of HiResCAM: for each number the last layer with at least so many places along the longer side of a slice (the
        one with most places where none has so many). Maps of several layers are scaled to the same mass and averaged.

    Raises
    ------
    DataError
        When the crops do not fit, or, for HiResCAM, the encoder has no layer of features in space (a transformer).
    """
    if method not in METHODS:
        raise DataError(f"method must be one of {METHODS}, got {method!r}")
    if severity is not None and severity not in range(N_SEVERITIES):
        raise DataError(f"severity must be 0, 1 or 2, got {severity}")
    chosen = list(range(N_TARGETS)) if targets is None else [int(t) for t in targets]
    if not all(0 <= target < N_TARGETS for target in chosen):
        raise DataError(f"targets are numbers from 0 to {N_TARGETS - 1}, got {list(chosen)}")
    members = _members(source, crops)
    results = [_explain_one(model, crops, chosen, severity, method, layers) for model, _ in members]
    shares = [share for _, share in members]
    maps = {view: sum(s * r.maps[view] for s, r in zip(shares, results, strict=True)) for view in VIEWS}
    scores = sum(s * r.scores for s, r in zip(shares, results, strict=True))
    return StudyAttribution(crops.study_id, {view: m.astype(np.float32) for view, m in maps.items()}, scores)


def feature_layers(encoder: nn.Module, shape: tuple[int, int, int]) -> list[FeatureLayer]:
    """Layers with features in space, one for each size that they have, in the order of the network: fine to coarse.

    Parameters
    ----------
    encoder : nn.Module
        As `encoders.build_encoder` makes it.
    shape : (H, W, D)
        Of its input.
    """
    flat = isinstance(encoder, SliceEncoder)
    axes = 2 if flat else 3
    centers = {tuple(shape[:axes]): tuple(np.arange(n, dtype=np.float64) for n in shape[:axes])}
    outermost: dict[tuple, tuple[int, str]] = {}
    names = {module: name for name, module in encoder.named_modules()}

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        sizes = [tuple(t.shape[2:]) for t in (*inputs[:1], output) if isinstance(t, torch.Tensor)]
        if len(sizes) < 2 or not all(len(size) == axes for size in sizes):
            return
        before, after = sizes
        if after not in centers and before in centers and hasattr(module, "kernel_size"):
            centers[after] = _centers_after(module, centers[before], after)
        name = names[module]
        depth = name.count(".") + 1 if name else 0
        # The last of the outermost: the end of a stage, not a branch in the middle of the next stage's first block.
        if after in centers and (after not in outermost or depth <= outermost[after][0]):
            outermost[after] = depth, name

    device = next(encoder.parameters()).device
    with _hooked((module, note) for module in encoder.modules()), torch.no_grad():
        encoder(torch.zeros((1, 1, *shape), device=device))
    found = [FeatureLayer(outermost[size][1], centers[size]) for size in centers if size in outermost]
    found = [layer for layer in found if min(map(len, layer.centers[:2])) > 1]
    if not found:
        raise DataError(
            f"{type(encoder).__name__}: no layer whose features lie in space; activation maps are for convolutional "
            "encoders"
        )
    return found


def _explain_one(model, crops, targets, severity, method, layers) -> StudyAttribution:
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
        found = _integrated if method == "integrated" else _hirescam
        for i, target, values in found(model, crops, images, present, known, targets, severity, layers):
            maps[VIEWS[i]][target] = values * crops.covered[VIEWS[i]][target % N_LEVELS]
    finally:
        model.train(was_training)
    return StudyAttribution(crops.study_id, maps, scores)


def _integrated(model, crops, images, present, known, targets, severity, layers) -> Iterator[tuple]:
    """(view's number, target, map over the crop) by integrated gradients."""
    for level in sorted({target % N_LEVELS for target in targets}):
        wanted = [target for target in targets if target % N_LEVELS == level]
        for i in (i for i in range(len(VIEWS)) if present[0, i, level]):
            spacing = spacing_of(crops.spec.extents, crops.spec.shapes, i)
            raw = attributions(model, images[VIEWS[i]][0, level], known, i, level, wanted, severity=severity)
            yield from ((i, target, smoothed(values, spacing)) for target, values in raw.items())


def _hirescam(model, crops, images, present, known, targets, severity, layers) -> Iterator[tuple]:
    """The same by HiResCAM."""
    chosen = {i: _chosen_layers(model, i, crops, layers) for i in range(len(VIEWS)) if present[0, i].any()}
    for level in sorted({target % N_LEVELS for target in targets}):
        taps, logits = _logits_with_taps(model, images, present, known, chosen, level)
        for target in (target for target in targets if target % N_LEVELS == level and taps):
            score = log_odds(logits, severity)[target]
            gradients = torch.autograd.grad(score, list(taps.values()), retain_graph=True)
            parts: dict[int, list[np.ndarray]] = {}
            for ((i, n), features), gradient in zip(taps.items(), gradients, strict=True):
                stacks = _stacks(_products(features.detach(), gradient), model, i)
                parts.setdefault(i, []).append(_placed(stacks, chosen[i][n], i, crops, model))
            yield from ((i, target, _fused(maps_of_layers)) for i, maps_of_layers in parts.items())


def _logits_with_taps(model, images, present, known, chosen, level) -> tuple[dict, torch.Tensor]:
    """Logits (25, 3) whose graph holds one level only, and that level's features by (view, number of the layer).

    What the other levels' crops look like is a constant for the maps of this one, so it is not computed again.
    """
    taps: dict[tuple[int, int], torch.Tensor] = {}

    def keep(key):
        return lambda module, inputs, output: taps.__setitem__(key, output)

    here = torch.zeros(N_LEVELS, dtype=torch.bool, device=present.device)
    here[level] = True
    features = []
    for i, view in enumerate(VIEWS):
        only = present[:, i] & here
        if not only.any():
            features.append(known[i])
            continue
        hooks = [(model.encoders[i].get_submodule(layer.name), keep((i, n))) for n, layer in enumerate(chosen[i])]
        # The weights' own gradients are never asked for; the graph has to start at the images, weights frozen or not.
        with _hooked(hooks), torch.enable_grad():
            encoded = model._encode(i, images[view].requires_grad_(), only)
        features.append(torch.where(only[..., None, None], encoded, known[i]))
    with torch.enable_grad():
        logits = model.head(features).float() + model.bias
    return taps, logits[0]


def _members(source, crops: StudyCrops) -> list[tuple[LumbarClassifier, float]]:
    """Networks and their shares."""
    if isinstance(source, LumbarClassifier):
        return [(source, 1.0)]
    if any(spec != crops.spec for spec in source.specs):
        raise DataError(
            f"study {crops.study_id}: crops of {crops.spec.to_json()}, but a network was trained on others: "
            f"{[spec.to_json() for spec in source.specs]}; explain its networks one by one"
        )
    return list(zip(source.models, source.weights, strict=True))


def _chosen_layers(model, i: int, crops: StudyCrops, layers: Sequence[int]) -> list[FeatureLayer]:
    found = feature_layers(model.encoders[i], _input_shape(model, VIEWS[i], crops))
    chosen = []
    for places in layers:
        fine = [layer for layer in found if max(map(len, layer.centers[:2])) >= places]
        layer = fine[-1] if fine else found[0]
        if layer not in chosen:
            chosen.append(layer)
    return chosen


def _products(features: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """(N, C, ...) and its gradient to a map (N, ...), not negative."""
    return (features * gradient).sum(dim=1).clamp(min=0).float()


def _stacks(product: torch.Tensor, model: LumbarClassifier, i: int) -> np.ndarray:
    """One level's maps (sides, h, w, d), of a 3D network's or of a 2D one's, which has the slices in the batch."""
    if product.ndim == 3:
        product = product.unflatten(0, (_sides(model, VIEWS[i]), -1)).movedim(1, -1)
    return product.cpu().numpy()


def _placed(stacks: np.ndarray, layer: FeatureLayer, i: int, crops: StudyCrops, model) -> np.ndarray:
    """Maps (sides, h, w, d) of one level on the crop's voxels (D, H, W), halves put back where they were cut out."""
    view = VIEWS[i]
    shape = _input_shape(model, view, crops)
    fine = [_spread(stack, layer.centers, shape).transpose(2, 0, 1) for stack in stacks]
    if len(fine) == 1:
        return fine[0]
    whole = np.zeros(crops.spec.shapes[view], dtype=np.float32)
    across = np.moveaxis(whole, LATERAL_AXIS[view], 0)
    right, left = (np.moveaxis(half, LATERAL_AXIS[view], 0) for half in fine)
    across[: len(right)] += right
    across[len(across) - len(left) :] += left[::-1]
    return whole


def _spread(values: np.ndarray, centers: tuple[np.ndarray, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Features (h, w, d) on the pixels (H, W, D) of the input, linear between the places where they lie."""
    for axis, size in enumerate(shape):
        if axis < len(centers):
            weights = np.stack([np.interp(np.arange(size), centers[axis], row) for row in np.eye(len(centers[axis]))])
            values = np.moveaxis(np.tensordot(weights.T, values, axes=(1, axis)), 0, axis)
    return values.astype(np.float32)


def _fused(maps: list[np.ndarray]) -> np.ndarray:
    """One map of several layers', at the scale of the last one."""
    if len(maps) == 1:
        return maps[0]
    means = [float(m.mean(dtype=np.float64)) for m in maps]
    scaled = [m / mean for m, mean in zip(maps, means, strict=True) if mean > 0]
    return means[-1] * np.mean(scaled, axis=0) if scaled else maps[-1]


def _centers_after(module: nn.Module, before: tuple[np.ndarray, ...], size: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Where the outputs of a strided layer look, given where its inputs do."""
    result = []
    for axis, (inputs, n) in enumerate(zip(before, size, strict=True)):
        kernel, stride, padding, dilation = (_along(module, name, axis) for name in _WINDOW)
        if padding is None:  # "same", or another rule: spread evenly
            places = (np.arange(n) + 0.5) * len(inputs) / n - 0.5
        else:
            places = np.arange(n) * stride + (kernel - 1) * dilation / 2 - padding
        step = inputs[1] - inputs[0] if len(inputs) > 1 else 1.0
        result.append(inputs[0] + places * step)
    return tuple(result)


_WINDOW = ("kernel_size", "stride", "padding", "dilation")


def _along(module: nn.Module, name: str, axis: int) -> float | None:
    value = getattr(module, name, 1 if name == "dilation" else None)
    value = value[axis] if isinstance(value, tuple | list) else value
    return None if isinstance(value, str) else value


def _sides(model: LumbarClassifier, view: str) -> int:
    return 2 if model.config.sides and view in SPLIT_VIEWS else 1


def _input_shape(model: LumbarClassifier, view: str, crops: StudyCrops) -> tuple[int, int, int]:
    """(H, W, D) of what the view's encoder gets."""
    shape = crops.spec.shapes[view]
    if _sides(model, view) == 2:
        shape = tuple(split_sides(torch.empty((1, *shape), device="meta"), view)[0].shape[1:])
    depth, height, width = shape
    return height, width, depth


@contextmanager
def _hooked(pairs) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
