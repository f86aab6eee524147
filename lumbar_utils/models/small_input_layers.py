"""Layers of timm's and timm-3d's networks made quick, and right, on small stacks: the numbers are the same.

A level's crop has few slices and, at the end of a network, few pixels. Libraries are made for more of both. One CPU
thread in bfloat16, 48 x 48 pixels, batches of 4 studies (CPU seconds, same run, with and without):

                                     3D ResNet18               2.5D ResNet18
                                     training    prediction    training    prediction
    slices folded into channels      0.49, 1.24  0.17, 0.35
    few pixels as a matrix product   0.49, 0.53  0.17, 0.17    0.94, 1.44  0.31, 0.42
"""

from __future__ import annotations

from functools import lru_cache

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
            padded = nn.functional.pad(self.weight, (depth, depth))
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
    """A maximum pooling that stays in half precision: autocast on a CPU would go to float32 for nothing."""

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
        return nn.functional.avg_pool3d(
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
    """A convolution, (N, C, H, W) to (N, O, H', W'); of a few pixels as the product with one matrix.

    The matrix leads from all pixels to all that come out: with 3 x 3 kernels on 2 x 2 pixels every pixel meets every
    other, so nothing of it is zero. oneDNN takes 4 to 15 times as long for such images.
    """
    height, width = x.shape[2:]
    size = [_out_size(x.shape[2 + k], weight.shape[2 + k], stride[k], padding[k], dilation[k]) for k in range(2)]
    if x.device.type == "cpu" and groups == 1 and height * width <= SMALL_IMAGE:
        places, share = _places((height, width), tuple(weight.shape[2:]), stride, padding, dilation)
        if share >= MIN_PAIRS and weight.shape[0] * weight.shape[1] * places.numel() <= MAX_MATRIX:
            if torch.is_autocast_enabled("cpu"):
                weight = weight.to(torch.get_autocast_dtype("cpu"))
            planes = nn.functional.pad(weight.flatten(2).permute(2, 0, 1), (0, 0, 0, 0, 0, 1))  # the last one is zero
            matrix = planes.index_select(0, places.flatten()).unflatten(0, places.shape)
            matrix = matrix.transpose(1, 2).flatten(2).flatten(0, 1)
            result = (x.permute(0, 2, 3, 1).flatten(1) @ matrix.T).unflatten(1, (*size, len(weight)))
            return (result if bias is None else result + bias.to(result.dtype)).permute(0, 3, 1, 2)
    x = _widened(x, weight.shape[3], stride[1])
    return nn.functional.conv2d(x, weight, bias, stride, padding, dilation, groups)[..., : size[1]]


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # what is kept must serve trainings too, whoever asks first
def _places(image: tuple, kernel: tuple, stride: tuple, padding: tuple, dilation: tuple) -> tuple[torch.Tensor, float]:
    """Which place of the kernel lies between each pixel that comes out and each that goes in, int64 (H' W', H W).

    Where there is none it is the number of all places; the second result is the fraction of pairs that have one.
    """
    pixels, none = image[0] * image[1], kernel[0] * kernel[1]
    numbers = torch.arange(1.0, pixels + 1).reshape(1, 1, *image)  # 0 is the padding
    met = nn.functional.unfold(numbers, kernel, dilation, padding, stride)[0].T.long()
    places = torch.full((len(met), pixels + 1), none)
    places.scatter_(1, met, torch.arange(none).expand(len(met), -1).contiguous())
    # Plain numbers, which a compiler can follow.
    pairs = [
        sum(0 <= o * s - p + k * d < n for o in range(_out_size(n, size, s, p, d)) for k in range(size))
        for n, size, s, p, d in zip(image, kernel, stride, padding, dilation, strict=True)
    ]
    return places[:, 1:], pairs[0] * pairs[1] / (len(met) * pixels)


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
