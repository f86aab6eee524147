"""Encoders by name, of two families with one interface: a stack (N, 1, H, W, D) goes in, features (N, F) come out.

`3d` is a timm-3d network, kept quiet and made cheap for thin stacks; `2.5d` is a timm network that reads the slices one
by one, each with its two neighbours. Pretrained 2D weights come from a local file for both, since timm-3d's own
download path does not work with today's huggingface_hub; for 3D they are inflated along the last axis. Of torch files
only tensors are unpickled.
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
from .slice_encoders import SliceEncoder, VolumeEncoder
from .small_input_layers import adapt_to_small_inputs

FAMILIES = ("3d", "2.5d")


def build_encoder(
    name: str,
    *,
    family: str = "3d",
    slice_pooling: str = "average",
    keep_slices: bool = False,
    depth_strides: tuple[int, int] = (2, 2),
    pretrained: Path | str | None = None,
) -> nn.Module:
    """A network for (N, 1, H, W, D) that returns pooled features (N, F), F being its `num_features`.

    Parameters
    ----------
    name : str
        A timm-3d model for `3d`, a timm model for `2.5d`.
    family : {"3d", "2.5d"}
    slice_pooling : {"average", "attention", "recurrent"}
        How the slices, or the positions along D that a 3D network leaves, become one. See `slice_encoders`.
    keep_slices : bool
        Stages 2 to 4 of a 3D ResNet keep their slices.
    depth_strides : (int, int)
        Strides along D of a 3D ResNet's stem and first pooling, 2 or 1.
    pretrained : path-like, optional
        Local file with 2D weights, or 3D ones for `3d`, under timm's names; safetensors or a torch state dict.

    Raises
    ------
    DataError
        When the name is unknown, the network has no such strides, or the weights are absent or do not fit.
    """
    if family not in FAMILIES:
        raise DataError(f"family must be one of {FAMILIES}, got {family!r}")
    weights = _read_weights(Path(pretrained)) if pretrained else None
    flat = family == "2.5d"
    # Three channels in 2.5D: the slice and its neighbours.
    network = _create(_import_timm(flat), name, in_chans=3 if flat else 1)
    if torch.cuda.is_available():  # on a CPU the optimiser copies what is not contiguous, which costs a tenth of a step
        network = network.to(memory_format=torch.channels_last if flat else torch.channels_last_3d)
    if weights is not None:
        _load(network, weights, f"{pretrained}: these weights do not fit the {family} encoder {name!r}")
    kept = [part for part, stride in zip(("conv1", "maxpool"), depth_strides, strict=True) if stride == 1]
    kept += ["layer2", "layer3", "layer4"] if keep_slices else []
    for part in kept:
        _keep_depth(network, part, name)
    adapt_to_small_inputs(network)
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

    timm's own loading takes neither 3D weights for one channel nor grey ones for three, and passes over tensors that
    are absent; half a network loaded in silence is worse than none. A classifier's layers, which the file has beyond
    the network's, are left out.
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
        if own.ndim == value.ndim >= 4 and (own.shape[1], value.shape[1]) == (1, 3):
            value = value.sum(dim=1, keepdim=True)
        if own.ndim == value.ndim >= 4 and (own.shape[1], value.shape[1]) == (3, 1):
            value = value.expand(-1, 3, *value.shape[2:]) / 3
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
