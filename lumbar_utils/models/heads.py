"""Heads: they join the three views' features into 25 targets x 3 classes.

`UnifiedHead` is the baseline's, one linear layer over everything. `PerLevelHead` reads every level with the same
weights, so that one study is trained on five times. `Readout` is the last layer of the latter and of the auxiliary
heads.
"""

from __future__ import annotations

import torch
from torch import nn

from ..labels import CONDITIONS, N_CONDITIONS, N_LEVELS, N_SEVERITIES, N_TARGETS, VIEWS

RIGHT_SIDE, LEFT_SIDE = 0, 1
SIDED = ("neural_foraminal_narrowing", "subarticular_stenosis")


class Readout(nn.Module):
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


class PerLevelHead(nn.Module):
    """The same weights for all levels (and, `sided`, for both sides), a level embedding, a light mixing over levels.

    Takes (B, 5, sides, F) of each view, gives logits (B, 25, 3); sagittal T2 always has one side.
    """

    def __init__(self, features: int, *, sided: bool, width: int, dropout: float):
        super().__init__()
        self.sides = 2 if sided else 1
        self.dropout = nn.Dropout(dropout)
        # Per side: sagittal T2, axial T2 of this and of the other side, sagittal T1 of this side.
        self.project = nn.Linear(features * (4 if sided else len(VIEWS)), width)
        self.norm = nn.LayerNorm(width)
        self.level = nn.Parameter(torch.zeros(N_LEVELS, 1, width))
        self.mix = nn.Linear(N_LEVELS, N_LEVELS, bias=False)
        nn.init.zeros_(self.mix.weight)
        self.readout = Readout(width, self.sides)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        if self.sides == 2:
            sagittal, axial, t1 = features
            joined = torch.cat([sagittal.expand(-1, -1, 2, -1), axial, axial.flip(2), t1], dim=-1)
        else:
            joined = torch.cat(features, dim=-1)
        hidden = nn.functional.gelu(self.norm(self.project(self.dropout(joined))) + self.level)
        hidden = hidden + self.mix(hidden.transpose(1, -1)).transpose(1, -1)
        return self.readout(self.dropout(hidden))


class UnifiedHead(nn.Module):
    """The baseline's: the features of all levels and views side by side, (B, 5, 1, F) each, one linear layer."""

    def __init__(self, features: int, *, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = _small(nn.Linear(features * len(VIEWS) * N_LEVELS, N_TARGETS * N_SEVERITIES))

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        joined = torch.cat([f.flatten(1) for f in features], dim=1)
        return self.linear(self.dropout(joined)).reshape(len(joined), N_TARGETS, N_SEVERITIES)


def _small(layer: nn.Linear) -> nn.Linear:
    """Start near zero, so that an untrained network predicts the prior that its biases hold."""
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer
