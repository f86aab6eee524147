"""timm-3d encoders, kept quiet, loaded without the network, and made cheap for thin stacks.

timm-3d's own download path does not work with today's huggingface_hub, so pretrained weights come from a local file;
2D weights are inflated along the last axis. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import warnings
from pathlib import Path

import torch
from torch import nn

from .errors import DataError

FOLD_LIMIT = 1.5
"""A stack is folded into channels when it has at most so many slices for each of the kernel's."""


class ThinConv3d(nn.Conv3d):
    """A 3D convolution that runs as a 2D one over a thin stack, its slices folded into the channels.

    The 2D kernel from input slice j to output slice i is the plane `j - stride * i + padding` of the 3D kernel. The
    numbers are the same. On a CPU it takes half the time, and a third with one slice, where all planes but the middle
    one meet zeros only; with 8 slices that is most of a ResNet. A GPU keeps its own 3D kernels for two and more.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, channels, height, width, depth = x.shape
        kernel, stride, padding = self.kernel_size[2], self.stride[2], self.padding[2]
        out_depth = (depth + 2 * padding - kernel) // stride + 1
        foldable = self.groups == 1 and self.dilation[2] == 1 and depth <= FOLD_LIMIT * kernel and out_depth > 0
        if not foldable or (depth > 1 and x.device.type != "cpu"):
            return super().forward(x)
        if depth == 1 and out_depth == 1:
            weight, bias = self.weight[..., padding], self.bias
        else:
            padded = nn.functional.pad(self.weight, (depth, depth))
            starts = [depth + padding - i * stride for i in range(out_depth)]
            planes = torch.stack([padded[..., start : start + depth] for start in starts])
            weight = planes.permute(0, 1, 5, 2, 3, 4).flatten(2, 3).flatten(0, 1)
            bias = None if self.bias is None else self.bias.repeat(out_depth)
        # With channels-last memory neither of the two permutations moves anything.
        folded = x.permute(0, 4, 1, 2, 3).reshape(n, depth * channels, height, width)
        result = nn.functional.conv2d(folded, weight, bias, self.stride[:2], self.padding[:2], self.dilation[:2])
        return result.unflatten(1, (out_depth, -1)).permute(0, 2, 3, 4, 1)


class ThinMaxPool3d(nn.MaxPool3d):
    """A maximum pooling that stays in half precision: autocast on a CPU would go to float32 for nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x)


class ThinAvgPool3d(nn.AvgPool3d):
    """An average pooling that leaves an axis alone on which its kernel does not fit, as on the last slice left."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel, stride = (v if isinstance(v, tuple) else (v,) * 3 for v in (self.kernel_size, self.stride))
        fits = [size >= k for size, k in zip(x.shape[2:], kernel, strict=True)]
        kernel = tuple(k if fit else 1 for k, fit in zip(kernel, fits, strict=True))
        stride = tuple(s if fit else 1 for s, fit in zip(stride, fits, strict=True))
        return nn.functional.avg_pool3d(
            x, kernel, stride, self.padding, self.ceil_mode, self.count_include_pad, self.divisor_override
        )


def build_encoder(
    name: str, *, depth_strides: tuple[int, int] = (2, 2), pretrained: Path | str | None = None
) -> nn.Module:
    """A timm-3d network for (N, 1, H, W, D) that returns pooled features (N, F).

    Parameters
    ----------
    name : str
        A timm-3d model.
    depth_strides : (int, int)
        Strides along D of the first convolution and the first pooling; other than (2, 2) for ResNets only.
    pretrained : path-like, optional
        Local file with 2D or 3D weights, safetensors or a torch state dict.

    Raises
    ------
    DataError
        When the name is unknown or the weights are absent or do not fit.
    """
    timm_3d = _import_timm_3d()
    if not timm_3d.is_model(name):
        known = timm_3d.list_models()
        near = difflib.get_close_matches(name, known, n=5) or known[:5]
        raise DataError(f"unknown encoder {name!r}; timm-3d has {len(known)} models, the nearest: {', '.join(near)}")
    options: dict = {}
    if pretrained:
        options = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": _read_weights(Path(pretrained))}}
    try:
        # timm-3d prints a line for every layer that it inflates.
        with contextlib.redirect_stdout(io.StringIO()):
            encoder = timm_3d.create_model(name, in_chans=1, num_classes=0, **options)
    except (RuntimeError, KeyError, ValueError) as error:
        if not pretrained:
            raise
        raise DataError(f"{pretrained}: these weights do not fit encoder {name!r}: {error}") from error
    encoder = encoder.to(memory_format=torch.channels_last_3d)
    for layer, stride in zip(("conv1", "maxpool"), depth_strides, strict=True):
        if stride != 2:
            _set_depth_stride(encoder, layer, stride)
    for module in encoder.modules():
        if type(module) is nn.AvgPool3d:
            module.__class__ = ThinAvgPool3d
        if type(module) is nn.MaxPool3d:
            module.__class__ = ThinMaxPool3d
        if type(module) is nn.Conv3d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            module.__class__ = ThinConv3d
    return encoder


def _set_depth_stride(encoder: nn.Module, name: str, stride: int) -> None:
    layer = getattr(encoder, name, None)
    if not isinstance(layer, nn.Conv3d | nn.MaxPool3d):
        raise DataError(f"the depth stride can be changed for ResNets with a plain stem only; {name} is {type(layer)}")
    old = layer.stride if isinstance(layer.stride, tuple) else (layer.stride,) * 3
    layer.stride = (old[0], old[1], stride)


def _import_timm_3d():
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # deprecations inside timm-3d, of no use to the reader
            import timm_3d
    except ImportError as error:
        raise ImportError(
            f"{error}; the classifier needs timm-3d and timm: pip install timm-3d timm; without internet (Kaggle) "
            "attach the folder that `make kaggle` packs and put it on sys.path"
        ) from error
    return timm_3d


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise DataError(
            f"{path}: no pretrained weights here; give the path of a local file with the encoder's state dict "
            "(safetensors or torch), or leave `pretrained` out to start from random weights"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(f"{path}: cannot be read as weights ({error})") from error
    if isinstance(state, dict) and "state_dict" in state:
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise DataError(f"{path}: expected a state dict of tensors, got {type(state).__name__}")
    return state
