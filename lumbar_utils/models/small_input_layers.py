"""Layers of timm's and timm-3d's networks made quick, and right, on small stacks: the numbers are the same.

A level's crop has few slices and, at the end of a network, few pixels. Libraries are made for more of both.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import nn

FOLD_LIMIT = 1.5
"""A stack is folded into channels when it has at most so many slices for each of the kernel's."""
SMALL_IMAGE = 9
"""Pixels up to which a convolution may be one matrix product on a CPU,"""
MIN_PAIRS = 0.4
"""where so much of the matrix is not zero: with a kernel of 3 x 3 it is, with one of 1 x 1 it soon is not."""
MAX_MATRIX = 2**23
"""Entries of such a matrix, which is made anew for every batch."""


class ThinConv3d(nn.Conv3d):
    """A 3D convolution that runs as a 2D one over a thin stack, its slices folded into the channels.

    The 2D kernel from input slice j to output slice i is the plane `j - stride * i + padding` of the 3D kernel. The
    numbers are the same. On a CPU it takes half the time, and a third with one slice, where all planes but the middle
    one meet zeros only; with 8 slices that is most of a ResNet. A GPU keeps its own 3D kernels for two and more.
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
            padded = nn.functional.pad(self.weight, (depth, depth))
            starts = [depth + padding - i * stride for i in range(out_depth)]
            planes = torch.stack([padded[..., start : start + depth] for start in starts])
            weight = planes.permute(0, 1, 5, 2, 3, 4).flatten(2, 3).flatten(0, 1)
            bias = None if self.bias is None else self.bias.repeat(out_depth)
        # With channels-last memory neither of the two permutations moves anything.
        folded = x.permute(0, 4, 1, 2, 3).reshape(n, depth * channels, height, width)
        result = _conv2d(folded, weight, bias, self.stride[:2], self.padding[:2], self.dilation[:2])
        return result.unflatten(1, (out_depth, -1)).permute(0, 2, 3, 4, 1)


class ThinConv2d(nn.Conv2d):
    """A 2D convolution that is quick on small images and right on narrow ones, see `_conv2d`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.groups == 1:
            return _conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation)
        kernel, stride, padding, dilation = (v[1] for v in (self.kernel_size, self.stride, self.padding, self.dilation))
        out_width = _out_size(x.shape[-1], kernel, stride, padding, dilation)
        return super().forward(_widened(x, kernel, stride))[..., :out_width]


def make_thin(network: nn.Module) -> None:
    """Let the layers of a network be those of this module where they can."""
    for module in network.modules():
        if type(module) is nn.AvgPool3d:
            module.__class__ = ThinAvgPool3d
        if type(module) is nn.MaxPool3d:
            module.__class__ = ThinMaxPool3d
        plain = getattr(module, "padding_mode", "") == "zeros" and not isinstance(module.padding, str)
        if type(module) is nn.Conv3d and plain:
            module.__class__ = ThinConv3d
        if type(module) is nn.Conv2d and plain:
            module.__class__ = ThinConv2d


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


def _conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> torch.Tensor:
    """A convolution without groups, (N, C, H, W) to (N, O, H', W')."""
    if x.device.type == "cpu" and x.shape[2] * x.shape[3] <= SMALL_IMAGE:
        pairs = _pairs(tuple(x.shape[2:]), tuple(weight.shape[2:]), stride, padding, dilation)
        entries = weight.shape[0] * weight.shape[1] * len(pairs.places)
        if pairs.share >= MIN_PAIRS and entries <= MAX_MATRIX:
            return _as_product(x, weight, bias, pairs)
    out_width = _out_size(x.shape[3], weight.shape[3], stride[1], padding[1], dilation[1])
    x = _widened(x, weight.shape[3], stride[1])
    return nn.functional.conv2d(x, weight, bias, stride, padding, dilation)[..., :out_width]


def _as_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, pairs: _Pairs) -> torch.Tensor:
    """A convolution of a few pixels as the product with one matrix, from all of them to all that come out.

    From `x` (N, C, H, W), `weight` (O, C, *kernel) and `bias` (O,) or None to (N, O, H', W').

    With 3 x 3 kernels on 2 x 2 pixels every pixel meets every other, so nothing of it is zero. oneDNN takes 4 to 15
    times as long, training included: most of a small ResNet's time goes into such images.
    """
    height, width = x.shape[2:]
    if torch.is_autocast_enabled("cpu"):
        weight = weight.to(torch.get_autocast_dtype("cpu"))
    planes = nn.functional.pad(weight.flatten(2).permute(2, 0, 1), (0, 0, 0, 0, 0, 1))  # the last one is zero
    matrix = (
        planes.index_select(0, pairs.places).unflatten(0, (-1, height * width)).transpose(1, 2).flatten(2).flatten(0, 1)
    )
    result = (x.permute(0, 2, 3, 1).flatten(1) @ matrix.T).unflatten(1, (*pairs.size, len(weight)))
    return (result if bias is None else result + bias.to(result.dtype)).permute(0, 3, 1, 2)


class _Pairs(NamedTuple):
    """How the pixels of a small image meet.

    `places` names for each pixel that comes out and each that goes in the kernel's place between them, or the number of
    all places where there is none; `size` (H', W') is what comes out, `share` the part of the pairs that have a place.
    """

    places: torch.Tensor
    size: tuple[int, int]
    share: float


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # what is kept must serve trainings too, whoever asks first
def _pairs(image: tuple, kernel: tuple, stride: tuple, padding: tuple, dilation: tuple) -> _Pairs:
    """The pairs of an image (H, W) and a kernel; everything in pixels, (down, right)."""
    # Plain numbers, which a compiler can follow; a tensor only at the end.
    size = tuple(_out_size(image[k], kernel[k], stride[k], padding[k], dilation[k]) for k in range(2))
    rows, columns = (_meetings(image[k], size[k], kernel[k], stride[k], padding[k], dilation[k]) for k in range(2))
    nowhere = kernel[0] * kernel[1]
    places = [
        nowhere if row is None or column is None else row * kernel[1] + column
        for of_row in rows
        for of_column in columns
        for row in of_row
        for column in of_column
    ]
    share = 1 - places.count(nowhere) / len(places) if places else 0.0
    return _Pairs(torch.tensor(places, dtype=torch.long), size, share)


def _meetings(image: int, size: int, kernel: int, stride: int, padding: int, dilation: int) -> list[list[int | None]]:
    """Along one axis, for each pixel that comes out and each that goes in: the kernel's place between them, or None."""
    steps = [[i - stride * o + padding for i in range(image)] for o in range(size)]
    inside = range(0, kernel * dilation, dilation)
    return [[step // dilation if step in inside else None for step in row] for row in steps]


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
    return nn.functional.pad(x, (0, kernel - x.shape[-1]))
