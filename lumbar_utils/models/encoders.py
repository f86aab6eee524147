"""Encoders by name, of two families with one interface: a stack (N, 1, H, W, D) goes in, features (N, F) come out.

`3d` is a timm-3d network, kept quiet and made cheap for thin stacks; `2.5d` is a timm network that reads the slices one
by one, each with its two neighbours; `2d` one that reads the whole stack at once, its slices as channels, in a tenth of
the time. Pretrained 2D weights come from a local file for both, since timm-3d's own
download path does not work with today's huggingface_hub; for 3D they are inflated along the last axis. Of torch files
only tensors are unpickled.

All three poolings over the slices start as the plain average and learn to leave it. `attention` weighs the slices by a
gated score (Ilse et al. 2018, Attention-based Deep Multiple Instance Learning) of what a slice shows and where in the
stack it lies. `recurrent` lets a bidirectional GRU read the slices first, so that a slice knows its neighbours.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import warnings
from pathlib import Path

import torch
from torch import nn

from ..errors import DataError
from .small_input_layers import adapt_to_small_inputs

FAMILIES = ("3d", "2.5d", "2d")
STACK_CHANNELS = 12
"""To which a `2d` encoder resamples its slices: those of half a sagittal T1 crop."""
WAVES = 8
"""Cosines over the stack that encode a slice's place; they mean the same whatever the number of slices."""


def build_encoder(
    name: str,
    *,
    family: str = "3d",
    slice_pooling: str = "average",
    keep_slices: bool = False,
    depth_strides: tuple[int, int] = (2, 2),
    pretrained: Path | str | None = None,
) -> nn.Module:
    """A network for (N, 1, H, W, D) that returns pooled features (N, `num_features`), by `ClassifierConfig`'s options.

    Raises `DataError` for an unknown name, strides that it cannot have, and weights that are absent or do not fit.
    """
    weights = _read_weights(Path(pretrained)) if pretrained else None
    flat = family != "3d"
    # Three channels in 2.5D: the slice and its neighbours.
    channels = {"3d": 1, "2.5d": 3, "2d": STACK_CHANNELS}[family]
    network = _create(_import_timm(flat), name, in_chans=channels)
    if torch.cuda.is_available():  # on a CPU the optimiser copies what is not contiguous, which costs a tenth of a step
        network = network.to(memory_format=torch.channels_last if flat else torch.channels_last_3d)
    if weights is not None:
        _load(network, weights, f"{pretrained}: these weights do not fit the {family} encoder {name!r}")
    kept = [part for part, stride in zip(("conv1", "maxpool"), depth_strides, strict=True) if stride == 1]
    kept += ["layer2", "layer3", "layer4"] if keep_slices else []
    for part in kept:
        _keep_depth(network, part, name)
    adapt_to_small_inputs(network)
    if family == "2d":
        return StackEncoder(network)
    if flat:
        return SliceEncoder(network, slice_pooling)
    # The bare network averages over everything itself.
    return network if slice_pooling == "average" else VolumeEncoder(network, slice_pooling)


def _create(package, name: str, *, in_chans: int) -> nn.Module:
    if not package.is_model(name):
        known = package.list_models()
        near = ", ".join(difflib.get_close_matches(name, known, n=5) or known[:5])
        library = package.__name__.replace("_", "-")
        raise DataError(f"unknown encoder {name!r}; {library} has {len(known)} models, the nearest: {near}")
    with contextlib.redirect_stdout(io.StringIO()):
        return package.create_model(name, in_chans=in_chans, num_classes=0)


def _keep_depth(network: nn.Module, part: str, name: str) -> None:
    """Set every stride along D to 1 in one part of a ResNet, poolings included."""
    layers = [m for m in getattr(network, part, nn.Identity()).modules() if hasattr(m, "kernel_size")]
    if not hasattr(network, "layer4") or not layers or "Blur" in repr(network):
        raise DataError(
            f"the strides along the slices can be changed for timm-3d's plain ResNets only, not for {name!r}; take "
            "resnet18 or the like, or leave stem_depth_stride and pool_depth_stride at 2 and keep_slices off"
        )
    for layer in layers:
        kernel, stride = (v if isinstance(v, tuple) else (v,) * 3 for v in (layer.kernel_size, layer.stride))
        if isinstance(layer, nn.AvgPool3d) and stride[2] > 1:  # it averages what the stride would have skipped
            layer.kernel_size = (*kernel[:2], 1)
        layer.stride = (*stride[:2], 1)


@torch.no_grad()
def _load(network: nn.Module, weights: dict[str, torch.Tensor], issue: str) -> None:
    """Copy weights by name; 2D kernels are spread evenly over the depth, colours are added up for one channel.

    timm's own loading takes neither 3D weights for one channel nor grey ones for three, and passes over absent tensors.
    """
    wanted = {key: t for key, t in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    absent = [key for key in wanted if key not in weights]
    if absent:
        raise DataError(
            f"{issue}: {len(absent)} of {len(wanted)} tensors are absent, the first is {absent[0]!r}; expected the "
            "state dict of the timm model of the same name"
        )
    for key, own in wanted.items():
        value = given = weights[key].to(own.dtype)
        if (own.ndim, value.ndim) == (5, 4):
            value = value[..., None].expand(*value.shape, own.shape[-1]) / own.shape[-1]
        if own.ndim == value.ndim >= 4 and own.shape[1] != value.shape[1] and 3 in (own.shape[1], value.shape[1]):
            value = value.sum(dim=1, keepdim=True).expand(-1, own.shape[1], *value.shape[2:]) / own.shape[1]
        if value.shape != own.shape:
            raise DataError(f"{issue}: {key} must have shape {tuple(own.shape)}, got {tuple(given.shape)}")
        own.copy_(value)


def _import_timm(flat: bool):
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # deprecations inside timm-3d, of no use to the reader
            return importlib.import_module("timm" if flat else "timm_3d")
    except ImportError as error:
        raise ImportError(
            f"{error}; the classifier needs timm-3d and timm: pip install timm-3d timm; without internet (Kaggle) "
            "attach the data set that `make kaggle` packs and call lumbar_utils.kaggle.prepare_session()"
        ) from error


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise DataError(
            f"{path}: no pretrained weights here; give the path of a local file with the encoder's state dict "
            "(safetensors or torch), or leave `pretrained` out to start from random weights"
        )
    from timm.models import load_state_dict

    try:
        state = load_state_dict(str(path), weights_only=True)
    except Exception as error:
        raise DataError(f"{path}: cannot be read as weights ({error})") from error
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise DataError(f"{path}: expected a state dict of tensors")
    return state


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


class AveragePooling(nn.Module):
    """Slices (N, D, F) -> their mean (N, F)."""

    def __init__(self, features: int):
        super().__init__()

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        return slices.mean(dim=1)


SLICE_POOLINGS = {"average": AveragePooling, "attention": AttentionPooling, "recurrent": RecurrentPooling}


def _waves(slices: torch.Tensor) -> torch.Tensor:
    depth = slices.shape[1]
    place = (torch.arange(depth, device=slices.device) + 0.5) / depth
    return torch.cos(torch.pi * place[:, None] * torch.arange(1, WAVES + 1, device=slices.device))


class SliceEncoder(nn.Module):
    """One 2D network over all slices with their neighbours as channels, and a pooling: (N, 1, H, W, D) -> (N, F)."""

    def __init__(self, network: nn.Module, slice_pooling: str):
        super().__init__()
        self.network = network
        # timm counts what comes before a last hidden layer where a model has one, and we get what comes after it.
        self.num_features = int(getattr(network, "head_hidden_size", None) or network.num_features)
        self.pooling = SLICE_POOLINGS[slice_pooling](self.num_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pooling(self.network(with_neighbours(x)).unflatten(0, (len(x), -1)))


class StackEncoder(nn.Module):
    """One 2D network over all slices at once, as its channels: (N, 1, H, W, D) -> (N, F)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.num_features = int(getattr(network, "head_hidden_size", None) or network.num_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] != STACK_CHANNELS:
            size = (*x.shape[2:4], STACK_CHANNELS)
            x = nn.functional.interpolate(x, size=size, mode="trilinear", align_corners=False)
        return self.network(x[:, 0].permute(0, 3, 1, 2))


class VolumeEncoder(nn.Module):
    """A 3D network and a pooling over the positions that it leaves along D: (N, 1, H, W, D) -> (N, F)."""

    def __init__(self, network: nn.Module, slice_pooling: str):
        super().__init__()
        self.network = network
        self.num_features = int(network.num_features)
        self.pooling = SLICE_POOLINGS[slice_pooling](self.num_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pooling(self.network.forward_features(x).mean(dim=(2, 3)).transpose(1, 2))


def with_neighbours(x: torch.Tensor) -> torch.Tensor:
    """Stacks (N, 1, H, W, D) -> images (N * D, 3, H, W) in channels-last memory: before, slice, after."""
    slices = x[:, 0].movedim(-1, 1)
    padded = torch.cat([slices[:, :1], slices, slices[:, -1:]], dim=1)
    # A view up to here but for the padding; flattening makes the one copy, in the order that channels-last wants.
    return padded.unfold(1, 3, 1).flatten(0, 1).permute(0, 3, 1, 2)
