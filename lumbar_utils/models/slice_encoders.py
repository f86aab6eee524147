"""From slices to one vector: how the features along a stack are pooled, and the encoders that have them pooled.

All three poolings start as the plain average and learn to leave it. `attention` weighs the slices by a gated score
(Ilse et al. 2018, Attention-based Deep Multiple Instance Learning) of what a slice shows and where in the stack it
lies. `recurrent` lets a bidirectional GRU read the slices first, so that a slice knows its neighbours.
"""

from __future__ import annotations

import torch
from torch import nn

from ..errors import DataError

SLICE_POOLINGS = ("average", "attention", "recurrent")
WAVES = 8
"""Cosines over the stack that encode a slice's place; they mean the same whatever the number of slices."""


class AveragePooling(nn.Module):
    """Slices (N, D, F) -> their mean (N, F)."""

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        return slices.mean(dim=1)


class AttentionPooling(nn.Module):
    """Slices (N, D, F) -> a learned weighted mean (N, F)."""

    def __init__(self, features: int, width: int = 128):
        super().__init__()
        self.content = nn.Linear(features, 2 * width)
        self.place = nn.Linear(WAVES, 2 * width, bias=False)
        self.score = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def weights(self, slices: torch.Tensor) -> torch.Tensor:
        """How much each slice counts, (N, D), rows summing to one."""
        hidden, gate = (self.content(slices) + self.place(_waves(slices))).chunk(2, dim=-1)
        return self.score(hidden.tanh() * gate.sigmoid())[..., 0].float().softmax(dim=1)

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        return (self.weights(slices).to(slices.dtype)[..., None] * slices).sum(dim=1)


class RecurrentPooling(nn.Module):
    """Slices (N, D, F), read in both directions by a GRU, whose output is added to them -> a weighted mean (N, F)."""

    def __init__(self, features: int, width: int = 128):
        super().__init__()
        self.recurrence = nn.GRU(features, width, batch_first=True, bidirectional=True)
        self.project = nn.Linear(2 * width, features)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        self.attention = AttentionPooling(features, width)

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        # A recurrence piles up rounding errors; these are a thousandth of the network's operations.
        with torch.autocast(slices.device.type, enabled=False):
            read, _ = self.recurrence(slices.float())
        return self.attention(slices + self.project(read).to(slices.dtype))


def _waves(slices: torch.Tensor) -> torch.Tensor:
    depth = slices.shape[1]
    place = (torch.arange(depth, device=slices.device) + 0.5) / depth
    return torch.cos(torch.pi * place[:, None] * torch.arange(1, WAVES + 1, device=slices.device))


def build_pooling(name: str, features: int) -> nn.Module:
    """One of `SLICE_POOLINGS` for F features; raises `DataError` for another name."""
    if name == "average":
        return AveragePooling()
    if name == "attention":
        return AttentionPooling(features)
    if name == "recurrent":
        return RecurrentPooling(features)
    raise DataError(f"slice_pooling must be one of {SLICE_POOLINGS}, got {name!r}")


class SliceEncoder(nn.Module):
    """A 2D network, the same for all slices, and a pooling over them: (N, 1, H, W, D) -> (N, F).

    Parameters
    ----------
    network : nn.Module
        From (N, 3, H, W) to pooled features (N, F). Its three channels are a slice and its two neighbours; the first
        and the last slice are repeated for the neighbour that they lack.
    slice_pooling : str
        One of `SLICE_POOLINGS`.
    """

    def __init__(self, network: nn.Module, slice_pooling: str):
        super().__init__()
        self.network = network
        # timm counts what comes before a last hidden layer where a model has one, and we get what comes after it.
        self.num_features = int(getattr(network, "head_hidden_size", None) or network.num_features)
        self.pooling = build_pooling(slice_pooling, self.num_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        slices = with_neighbours(x)
        return self.pooling(self.network(slices).unflatten(0, (len(x), -1)))


class VolumeEncoder(nn.Module):
    """A 3D network and a pooling over the positions that it leaves along D: (N, 1, H, W, D) -> (N, F).

    With the strides as they come, a ResNet leaves one position of 8 slices, and every pooling is then the average.

    Parameters
    ----------
    network : nn.Module
        With `forward_features`, from (N, 1, H, W, D) to (N, F, h, w, d).
    slice_pooling : str
        One of `SLICE_POOLINGS`.
    """

    def __init__(self, network: nn.Module, slice_pooling: str):
        super().__init__()
        self.network = network
        self.num_features = int(network.num_features)
        self.pooling = build_pooling(slice_pooling, self.num_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pooling(self.network.forward_features(x).mean(dim=(2, 3)).transpose(1, 2))


def with_neighbours(x: torch.Tensor) -> torch.Tensor:
    """Stacks (N, 1, H, W, D) -> images (N * D, 3, H, W) in channels-last memory: before, slice, after."""
    slices = x[:, 0].movedim(-1, 1)
    padded = torch.cat([slices[:, :1], slices, slices[:, -1:]], dim=1)
    # A view up to here but for the padding; flattening makes the one copy, in the order that channels-last wants.
    return padded.unfold(1, 3, 1).flatten(0, 1).permute(0, 3, 1, 2)
