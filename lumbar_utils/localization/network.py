"""The network: one sagittal slice with its neighbours in, one heat map per disc level out.

A small 2.5D U-Net. Its logits are read as one categorical distribution per level over *all* voxels of the series
plus "not in view", whose logit is fixed at 0. Two things follow from that reading which five independent heat maps
do not give: the slice is found together with the place in it, and the masses of rival peaks are probabilities that
`decoding` can combine over the levels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from ..errors import DataError
from ..labels import LEVELS

CHAIN = ("t11_t12", "t12_l1", *LEVELS, "s1_s2")
"""The five levels and their neighbours, from the head down. A network that has to find the rudimentary disc below
L5/S1 has to know the sacrum, and a chain that is off by one has nowhere to put its ends."""


@dataclass(frozen=True)
class LocalizerConfig:
    """Everything that must be equal in training and use."""

    pixel_mm: float = 2.0  # in-plane size to which series are resampled; the maps that come out have twice that size
    neighbours: int = 1  # slices on each side that enter beside the slice itself
    widths: tuple[int, ...] = (16, 32, 64, 128, 192)  # channels of the U-Net's stages, each at half the size before
    sigma_mm: float = 4.0  # spread of the training target in the plane
    through_sigma_mm: float = 4.0  # and across it
    chain: tuple[str, ...] = CHAIN  # the discs that are looked for, `CHAIN` or, where only their truth is known, LEVELS
    trained_on: str = ""  # "synthetic", "competition", or both in the order of training: "synthetic, competition"

    def __post_init__(self):
        object.__setattr__(self, "chain", tuple(str(level) for level in self.chain))
        if self.chain not in (CHAIN, LEVELS):
            raise DataError(f"localizer config: chain must be {CHAIN} or {LEVELS}, got {self.chain}")
        object.__setattr__(self, "widths", tuple(int(w) for w in self.widths))
        if min(self.pixel_mm, self.sigma_mm, self.through_sigma_mm) <= 0 or self.neighbours < 0:
            raise DataError(f"localizer config: lengths must be positive and neighbours >= 0, got {self}")
        if len(self.widths) < 2 or any(w < 8 or w % 8 for w in self.widths):
            raise DataError(f"localizer config: widths must be two or more multiples of 8, got {self.widths}")

    @property
    def lumbar(self) -> slice:
        """Where the five levels are in the chain."""
        first = self.chain.index(LEVELS[0])
        return slice(first, first + len(LEVELS))

    @property
    def channels(self) -> int:
        """A slice and its neighbours."""
        return 2 * self.neighbours + 1

    @property
    def multiple(self) -> int:
        """Rows and columns of the input must be a multiple of this."""
        return 2 ** len(self.widths)


class _Block(nn.Sequential):
    """Two 3 x 3 convolutions, the first of which may halve the size."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class SliceUNet(nn.Module):
    """Maps slices (n, 2 * neighbours + 1, H, W) to logits (n, levels, H / 2, W / 2), levels as in `config.chain`."""

    def __init__(self, config: LocalizerConfig):
        super().__init__()
        self.config = config
        widths = config.widths
        self.stem = nn.Sequential(
            nn.Conv2d(config.channels, widths[0], 4, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)
        )
        self.first = _Block(widths[0], widths[0])
        self.down = nn.ModuleList(_Block(a, b, 2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(
            _Block(a + b, a) for a, b in zip(reversed(widths[:-1]), reversed(widths[1:]), strict=True)
        )
        self.head = nn.Conv2d(widths[0], len(config.chain), 1)
        nn.init.normal_(self.head.weight, std=0.01)
        # About 3 slices of 80 x 64 voxels share half of the probability at the start, "not in view" has the rest.
        nn.init.constant_(self.head.bias, -10.0)

    def restore_weights(self, other: SliceUNet) -> None:
        """Copy the weights of a network of the same size whose chain holds all of this one's levels."""
        absent = [level for level in self.config.chain if level not in other.config.chain]
        alike = replace(other.config, chain=self.config.chain, trained_on=self.config.trained_on)
        if absent or alike != self.config:
            why = f"it does not know {absent}" if absent else f"{other.config} is not {self.config}"
            raise DataError(f"these weights are of another localizer network: {why}")
        rows = [other.config.chain.index(level) for level in self.config.chain]
        state = other.state_dict()
        self.load_state_dict({name: v[rows] if name.startswith("head.") else v for name, v in state.items()})

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        """Slices with values of about 0..1; see the class for shapes."""
        x = self.first(self.stem((slices - 0.35) * 3.0))
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(x)
        for block, skip in zip(self.up, reversed(skips), strict=True):
            x = block(torch.cat([functional.interpolate(x, scale_factor=2, mode="nearest"), skip], dim=1))
        return self.head(x)


def with_neighbours(volume: torch.Tensor, neighbours: int) -> torch.Tensor:
    """Slices (n, H, W) to (n, 2 * neighbours + 1, H, W); beyond the ends the last slice is repeated."""
    n = volume.shape[0]
    index = torch.arange(n)[:, None] + torch.arange(-neighbours, neighbours + 1)[None, :]
    return volume[index.clamp(0, n - 1)]


def log_probability(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (..., slices, levels, h, w) to each level's log probabilities, of all voxels (the same shape) and of "not
    in view" (..., levels)."""
    flat = logits.float().transpose(-4, -3).flatten(-3)
    total = functional.softplus(torch.logsumexp(flat, dim=-1))
    return logits.float() - total[..., None, :, None, None], -total
