"""Layers of timm's and timm-3d's networks made quick, and right, on small stacks: the numbers are the same.

A level's crop has few slices and, at the end of a network, few pixels. Libraries are made for more of both. One CPU
thread in bfloat16, 48 x 48 pixels, batches of 4 studies (CPU seconds, same run, with and without):

                                     3D ResNet18               2.5D ResNet18
                                     training    prediction    training    prediction
    slices folded into channels      0.49, 1.24  0.17, 0.35
    few pixels as a matrix product   0.49, 0.53  0.17, 0.17    0.94, 1.44  0.31, 0.42
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

FOLD_LIMIT = 1.5
"""A stack is folded into channels when it has at most so many slices for each of the kernel's."""
SMALL_IMAGE = 9
"""Pixels up to which a convolution is one matrix product on a CPU."""


def adapt_to_small_inputs(network: nn.Module) -> None:
    """Let the layers of a network be those of this module where they can; parameters and their names stay."""
    for module in network.modules():
        own = _OWN.get(type(module))
        if own and getattr(module, "padding_mode", "zeros") == "zeros" and not isinstance(module.padding, str):
            module.__class__ = own


class SmallConv3d(nn.Conv3d):
    """A 3D convolution that runs as a 2D one over a thin stack, its slices folded into the channels.

    The 2D kernel from input slice j to output slice i is the plane `j - stride * i + padding` of the 3D kernel. With
    one slice all planes but the middle one meet zeros only. A GPU keeps its own 3D kernels for two slices and more.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, channels, height, width, depth = x.shape
        kernel, stride, padding = self.kernel_size[2], self.stride[2], self.padding[2]
        out_depth = _out_size(depth, kernel, stride, padding)
        foldable = self.groups == 1 and self.dilation[2] == 1 and depth <= FOLD_LIMIT * kernel and out_depth > 0
        if not foldable or (depth > 1 and x.device.type != "cpu"):
            return super().forward(_widened(x, kernel, stride))[..., :out_depth]
        if depth == 1 and out_depth == 1:
            weight, bias = self.weight[..., padding], self.bias
        else:
            padded = functional.pad(self.weight, (depth, depth))
            starts = [depth + padding - i * stride for i in range(out_depth)]
            planes = torch.stack([padded[..., start : start + depth] for start in starts])
            weight = planes.permute(0, 1, 5, 2, 3, 4).flatten(2, 3).flatten(0, 1)
            bias = None if self.bias is None else self.bias.repeat(out_depth)
        # With channels-last memory neither of the two permutations moves anything.
        folded = x.permute(0, 4, 1, 2, 3).reshape(n, depth * channels, height, width)
        result = _conv2d(folded, weight, bias, self.stride[:2], self.padding[:2], self.dilation[:2])
        return result.unflatten(1, (out_depth, -1)).permute(0, 2, 3, 4, 1)


class SmallConv2d(nn.Conv2d):
    """A 2D convolution that is quick on small images and right on narrow ones, see `_conv2d`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class SmallMaxPool3d(nn.MaxPool3d):
    """A maximum pooling that stays in half precision, where autocast on a CPU would go to float32 for nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x)


class SmallAvgPool3d(nn.AvgPool3d):
    """An average pooling that leaves an axis alone on which its kernel does not fit, as on the last slice left."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel, stride = (v if isinstance(v, tuple) else (v,) * 3 for v in (self.kernel_size, self.stride))
        fits = [size >= k for size, k in zip(x.shape[2:], kernel, strict=True)]
        kernel = tuple(k if fit else 1 for k, fit in zip(kernel, fits, strict=True))
        stride = tuple(s if fit else 1 for s, fit in zip(stride, fits, strict=True))
        return functional.avg_pool3d(
            x, kernel, stride, self.padding, self.ceil_mode, self.count_include_pad, self.divisor_override
        )


_OWN = {nn.AvgPool3d: SmallAvgPool3d, nn.MaxPool3d: SmallMaxPool3d, nn.Conv3d: SmallConv3d, nn.Conv2d: SmallConv2d}


def _conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int = 1,
) -> torch.Tensor:
    """A convolution; of few pixels as a matrix product, as oneDNN takes two to three times as long to train on them."""
    size = [_out_size(x.shape[2 + k], weight.shape[2 + k], stride[k], padding[k], dilation[k]) for k in range(2)]
    if x.device.type == "cpu" and groups == 1 and x.shape[2] * x.shape[3] <= SMALL_IMAGE:
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        patches = functional.unfold(x, weight.shape[2:], dilation, padding, stride).transpose(1, 2)
        return functional.linear(patches, weight.flatten(1), bias).unflatten(1, size).permute(0, 3, 1, 2)
    x = _widened(x, weight.shape[3], stride[1])
    return functional.conv2d(x, weight, bias, stride, padding, dilation, groups)[..., : size[1]]


def _out_size(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """Pixels along one axis that a convolution makes of `size`."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _widened(x: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """On a CPU: the image with zeros at the end of its last axis, at least as wide as a strided kernel.

    oneDNN 3.13 (in torch 2.15) on CPUs with bfloat16 instructions reads memory that nobody has written where a 3 x 3
    kernel of stride 2 runs over a last axis of one or two pixels: numbers of any size, or nan, come out and go into
    the gradients. Half a crop at the end of a ResNet is that narrow. The zeros are what the padding would have been;
    the caller cuts off the columns that they add.
    """
    if x.device.type != "cpu" or stride == 1 or kernel == 1 or x.shape[-1] >= kernel:
        return x
    return functional.pad(x, (0, kernel - x.shape[-1]))
