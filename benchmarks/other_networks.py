"""Designs of public solutions to the same task, written against this library's batches, to be compared with its own.

Each takes `images` (dict view -> (B, 5, D, H, W)) and `present` (B, 3, 5) and returns `logits` (B, 25, 3), as
`LumbarClassifier` does. They know nothing of missing views: those are zeros to them. Their layers are made as quick on
small crops as ours, which changes no number.
"""

from __future__ import annotations

import numpy as np
import timm
import torch
from torch import nn

from lumbar_utils.labels import N_CONDITIONS, N_LEVELS, N_SEVERITIES, VIEWS
from lumbar_utils.models.small_input_layers import adapt_to_small_inputs

HIDDEN = 256


class ByLevel(nn.Module):
    """One encoder a view, the features of a level's views side by side, one linear layer for all levels."""

    def __init__(self, encoders: list[nn.Module], features: int, prior: np.ndarray):
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(features * len(VIEWS), N_CONDITIONS * N_SEVERITIES))
        nn.init.normal_(self.head[1].weight, std=0.01)
        nn.init.zeros_(self.head[1].bias)
        self.bias = nn.Parameter(torch.as_tensor(np.log(np.clip(prior, 1e-6, 1)), dtype=torch.float32))

    def forward(self, images: dict[str, torch.Tensor], present: torch.Tensor) -> dict:
        seen = [encoder(images[view].flatten(0, 1)) for view, encoder in zip(VIEWS, self.encoders, strict=True)]
        logits = self.head(torch.cat(seen, dim=-1)).float().unflatten(0, (-1, N_LEVELS))
        logits = logits.unflatten(-1, (N_CONDITIONS, N_SEVERITIES)).transpose(1, 2).flatten(1, 2)
        return {"logits": logits + self.bias, "aux": {}}


class SlicesThenLSTM(nn.Module):
    """A 2D ResNet18 on each slice with its neighbours as colours, a two-way LSTM, its mean and maximum."""

    def __init__(self):
        super().__init__()
        self.backbone = timm.create_model("resnet18", in_chans=3, num_classes=0)
        adapt_to_small_inputs(self.backbone)
        self.lstm = nn.LSTM(self.backbone.num_features, HIDDEN, batch_first=True, bidirectional=True)

    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        """(N, D, H, W) to (N, 4 * HIDDEN)."""
        around = nn.functional.pad(stack[:, None], (0, 0, 0, 0, 1, 1), mode="replicate")[:, 0]
        colours = around.unfold(1, 3, 1).permute(0, 1, 4, 2, 3)
        slices = colours.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        hidden = self.lstm(self.backbone(slices).unflatten(0, (len(stack), -1)))[0]
        return torch.cat([hidden.mean(dim=1), hidden.amax(dim=1)], dim=-1)


class MonaiResNet50(nn.Module):
    """MONAI's 3D ResNet50 with the stem's stride of 2 that timm-3d has too; slices on the last axis.

    As MONAI has it, with a stride of 1, a step takes four times as long.
    """

    features = 2048

    def __init__(self):
        super().__init__()
        from monai.networks.nets import resnet50

        self.network = resnet50(spatial_dims=3, n_input_channels=1, conv1_t_stride=2, feed_forward=False)
        adapt_to_small_inputs(self.network)

    def forward(self, stack: torch.Tensor) -> torch.Tensor:
        """(N, D, H, W) to (N, 2048)."""
        slices_last = stack[:, None].permute(0, 1, 3, 4, 2)
        return self.network(slices_last.contiguous(memory_format=torch.channels_last_3d))


NETWORKS = {
    "recurrent": lambda prior: ByLevel([SlicesThenLSTM() for _ in VIEWS], 4 * HIDDEN, prior),
    "monai": lambda prior: ByLevel([MonaiResNet50() for _ in VIEWS], MonaiResNet50.features, prior),
}
"""Name -> function of the class prior (25, 3)."""
