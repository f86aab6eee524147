"""The grading network: per disc three stacks, each through its own 3D ResNet18, joined into 25 targets x 3 classes.

Two heads. `unified` is the source's own network: the features of all levels and views side by side, one linear
layer, 75 numbers. `per_level` (default) reads every level with the same weights, adds a level embedding and a light
mixing over levels, and, with `split_sides`, every side with the same weights as well: axial T2 and sagittal T1 are
cut at the mid-line and the left part is mirrored, so that the encoder always sees one side, lateral to medial. One
study then teaches ten half-discs instead of five discs, and left and right cannot be confused.

Slices go on the last axis, where timm-3d inflates 2D weights. A view that is missing has a learned stand-in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np
import torch
from torch import nn

from .augment import mirror_images, mirror_probabilities
from .crops import LATERAL_AXIS
from .datasets import StudyInput, batch_of
from .devices import Compute
from .encoders import build_encoder
from .errors import DataError
from .labels import AXIAL_T2, CONDITIONS, N_CONDITIONS, N_LEVELS, N_SEVERITIES, N_TARGETS, SAGITTAL_T1, VIEWS

HEADS = ("per_level", "unified")
SPLIT_VIEWS = (AXIAL_T2, SAGITTAL_T1)
"""Views that show both sides of the body well enough to be cut at the mid-line; sagittal T2 is used for the canal."""
SIDE_OVERLAP = {AXIAL_T2: 1 / 6, SAGITTAL_T1: 0.0}
"""How far a half reaches over the mid-line, as a fraction of the box: 12 mm of 70 hold the whole canal."""
RIGHT_SIDE, LEFT_SIDE = 0, 1
SIDED = ("neural_foraminal_narrowing", "subarticular_stenosis")


@dataclass(frozen=True)
class ClassifierConfig:
    """The network's design; saved as JSON with the weights.

    Parameters
    ----------
    encoder : str
        A timm-3d model; `resnet18` is the source's.
    head : {"per_level", "unified"}
    split_sides : bool
        Only for `per_level`, see the module's text.
    width : int
        Width of the `per_level` head.
    dropout : float
        On the concatenated features.
    view_dropout : float
        Probability, in training, that a study's view is replaced by its stand-in; at least one view stays.
    auxiliary : bool
        One small head per view, which is trained to grade from that view alone.
    stem_depth_stride, pool_depth_stride : int
        Strides along the slices in the first convolution and the first pooling, 1 or 2; ResNets only. The
        original 2 and 2 leave one position of 8 slices after the second stage.
    pretrained : str, optional
        File with 2D (inflated) or 3D weights of the encoder, safetensors or a torch state dict.
    """

    encoder: str = "resnet18"
    head: str = "per_level"
    split_sides: bool = True
    width: int = 256
    dropout: float = 0.2
    view_dropout: float = 0.1
    auxiliary: bool = True
    stem_depth_stride: int = 2
    pool_depth_stride: int = 2
    pretrained: str | None = None

    def __post_init__(self):
        if self.head not in HEADS:
            raise DataError(f"head must be one of {HEADS}, got {self.head!r}")
        for name in ("stem_depth_stride", "pool_depth_stride"):
            if getattr(self, name) not in (1, 2):
                raise DataError(f"{name} must be 1 or 2, got {getattr(self, name)}")
        for name in ("dropout", "view_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise DataError(f"{name} must lie in [0, 1), got {getattr(self, name)}")

    @property
    def sides(self) -> bool:
        """Whether views are cut at the mid-line."""
        return self.split_sides and self.head == "per_level"

    def to_json(self) -> dict:
        """A JSON-ready dictionary."""
        return asdict(self)


class LumbarClassifier(nn.Module):
    """Three encoders and a head.

    Parameters
    ----------
    config : ClassifierConfig
    prior : array_like, shape (25, 3), optional
        Class probabilities that the untrained network predicts: biases start at their logarithm.

    Raises
    ------
    DataError
        When the encoder is unknown or its weights file is absent or does not fit.
    """

    def __init__(self, config: ClassifierConfig | None = None, prior: np.ndarray | None = None):
        super().__init__()
        self.config = config = config or ClassifierConfig()
        strides = (config.stem_depth_stride, config.pool_depth_stride)
        self.encoders = nn.ModuleList(
            [build_encoder(config.encoder, depth_strides=strides, pretrained=config.pretrained) for _ in VIEWS]
        )
        features = int(self.encoders[0].num_features)
        self.stand_ins = nn.Parameter(torch.zeros(len(VIEWS), features))
        self.head = (_PerLevelHead if config.head == "per_level" else _UnifiedHead)(features, config)
        self.auxiliary = nn.ModuleList(
            [_Readout(features, self._sides(view)) for view in VIEWS] if config.auxiliary else []
        )
        prior = np.full((N_TARGETS, N_SEVERITIES), 1 / N_SEVERITIES) if prior is None else np.asarray(prior)
        bias = torch.as_tensor(np.log(np.clip(prior, 1e-6, 1)), dtype=torch.float32)
        self.bias = nn.Parameter(bias.clone())
        self.auxiliary_bias = nn.Parameter(bias.expand(len(self.auxiliary), -1, -1).clone())

    def forward(self, images: Mapping[str, torch.Tensor], present: torch.Tensor) -> dict:
        """Grade a batch.

        Parameters
        ----------
        images : dict view -> tensor (B, 5, D, H, W)
            As made by `datasets.study_input`.
        present : bool tensor (B, 3) or (B, 3, 5)
            Which view, in the order of `labels.VIEWS`, is there, for the study or for each level.

        Returns
        -------
        dict with `logits` (B, 25, 3) and `aux`, a dict view -> (B, 25, 3), empty without auxiliary heads.
        """
        present = present if present.ndim == 3 else present[..., None].expand(-1, -1, N_LEVELS)
        if self.training and self.config.view_dropout:
            present = self._drop_views(present)
        features = [self._encode(i, images[view], present[:, i]) for i, view in enumerate(VIEWS)]
        logits = self.head(features).float() + self.bias
        aux = {
            view: self.auxiliary[i](features[i]).float() + self.auxiliary_bias[i]
            for i, view in enumerate(VIEWS[: len(self.auxiliary)])
        }
        return {"logits": logits, "aux": aux}

    def _sides(self, view: str) -> int:
        return 2 if self.config.sides and view in SPLIT_VIEWS else 1

    def _encode(self, i: int, image: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Features of one view, (B, 5, sides, F); what is not there is not computed and gets the stand-in."""
        view = VIEWS[i]
        if image.shape[1] != N_LEVELS or image.ndim != 5:
            raise DataError(f"{view}: crops must have shape (B, {N_LEVELS}, D, H, W), got {tuple(image.shape)}")
        sides = self._sides(view)
        result = self.stand_ins[i].expand(*present.shape, sides, -1)
        if not bool(present.any()):
            return result
        stacks = image[present]
        if sides == 2:
            stacks = torch.stack(split_sides(stacks, view), dim=1).flatten(0, 1)
        encoded = self.encoders[i](stacks.permute(0, 2, 3, 1)[:, None])
        result = result.to(encoded.dtype).clone()
        result[present] = encoded.reshape(-1, sides, encoded.shape[-1])
        return result

    def _drop_views(self, present: torch.Tensor) -> torch.Tensor:
        # Drawn on the CPU so that a seed means the same on every device.
        kept = (torch.rand(present.shape[:2]) >= self.config.view_dropout).to(present.device)[..., None] & present
        nothing = ~kept.flatten(1).any(dim=1)
        return torch.where(nothing[:, None, None], present, kept)


@torch.inference_mode()
def grade(
    model: LumbarClassifier,
    inputs: Iterable[StudyInput],
    compute: Compute,
    *,
    batch_size: int = 8,
    mirror: bool = False,
) -> np.ndarray:
    """Class probabilities of studies, float64 (n, 25, 3), rows summing to one.

    Parameters
    ----------
    inputs : iterable of StudyInput
        Read `batch_size` at a time, so a generator keeps memory flat.
    compute : Compute
        The model must already lie on its device.
    mirror : bool
        Also grade the mirrored studies and average.
    """
    model.eval()
    results = []
    remaining = iter(inputs)
    while chunk := list(islice(remaining, batch_size)):
        batch = batch_of(chunk)
        images = {view: image.to(compute.device) for view, image in batch["images"].items()}
        present = batch["present"].to(compute.device)
        with compute.autocast():
            p = model(images, present)["logits"].double().softmax(-1)
            if mirror:
                mirrored = model(mirror_images(images), present)["logits"].double().softmax(-1)
                p = (p + mirror_probabilities(mirrored)) / 2
        results.append(p.cpu().numpy())
    return np.concatenate(results) if results else np.zeros((0, N_TARGETS, N_SEVERITIES))


def split_sides(stacks: torch.Tensor, view: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut crops (N, D, H, W) at the mid-line into the patient's right and left, both running lateral to medial."""
    axis = LATERAL_AXIS[view] - 3
    length = stacks.shape[axis]
    half = min(length, int(np.ceil(length * (0.5 + SIDE_OVERLAP[view]) - 1e-9)))
    return stacks.narrow(axis, 0, half), stacks.narrow(axis, length - half, half).flip(axis)


class _Readout(nn.Module):
    """A linear layer from features (B, 5, sides, F) to logits (B, 25, 3), the same for all levels and both sides."""

    def __init__(self, features: int, sides: int):
        super().__init__()
        self.sides = sides
        conditions = 1 if sides == 2 else N_CONDITIONS
        self.canal = _small(nn.Linear(features, conditions * N_SEVERITIES))
        self.sided = _small(nn.Linear(features, len(SIDED) * N_SEVERITIES)) if sides == 2 else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        b = len(features)
        if self.sides == 1:
            return self.canal(features[:, :, 0]).reshape(b, N_LEVELS, N_CONDITIONS, -1).transpose(1, 2).flatten(1, 2)
        canal = self.canal(features.mean(dim=2))
        sided = self.sided(features).unflatten(-1, (len(SIDED), N_SEVERITIES))
        columns = []
        for condition in CONDITIONS:
            side, _, kind = condition.partition("_")
            if kind in SIDED:
                columns.append(sided[:, :, LEFT_SIDE if side == "left" else RIGHT_SIDE, SIDED.index(kind)])
            else:
                columns.append(canal)
        return torch.stack(columns, dim=1).flatten(1, 2)


class _PerLevelHead(nn.Module):
    def __init__(self, features: int, config: ClassifierConfig):
        super().__init__()
        self.sides = 2 if config.sides else 1
        # Per side: sagittal T2, axial T2 of this and of the other side, sagittal T1 of this side.
        joined = features * (4 if self.sides == 2 else len(VIEWS))
        self.dropout = nn.Dropout(config.dropout)
        self.project = nn.Linear(joined, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.level = nn.Parameter(torch.zeros(N_LEVELS, 1, config.width))
        self.mix = nn.Linear(N_LEVELS, N_LEVELS, bias=False)
        nn.init.zeros_(self.mix.weight)
        self.readout = _Readout(config.width, self.sides)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        if self.sides == 2:
            sagittal, axial, t1 = features
            joined = torch.cat([sagittal.expand(-1, -1, 2, -1), axial, axial.flip(2), t1], dim=-1)
        else:
            joined = torch.cat(features, dim=-1)
        hidden = nn.functional.gelu(self.norm(self.project(self.dropout(joined))) + self.level)
        hidden = hidden + self.mix(hidden.transpose(1, -1)).transpose(1, -1)
        return self.readout(self.dropout(hidden))


class _UnifiedHead(nn.Module):
    def __init__(self, features: int, config: ClassifierConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.linear = _small(nn.Linear(features * len(VIEWS) * N_LEVELS, N_TARGETS * N_SEVERITIES))

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        joined = torch.cat([f.flatten(1) for f in features], dim=1)
        return self.linear(self.dropout(joined)).reshape(len(joined), N_TARGETS, N_SEVERITIES)


def _small(layer: nn.Linear) -> nn.Linear:
    """Start near zero, so that an untrained network predicts the prior that its biases hold."""
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer
