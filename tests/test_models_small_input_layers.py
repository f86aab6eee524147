"""Layers for small inputs give the numbers of torch's own, gradients included, where those are right."""

import numpy as np
import pytest
import torch
from torch import nn

from lumbar_utils.models.encoders import build_encoder
from lumbar_utils.models.small_input_layers import SmallConv2d, SmallConv3d


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 8, 12])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_folded_convolution_is_exact(depth, stride, kernel):
    torch.manual_seed(0)
    plain = nn.Conv3d(3, 4, kernel, stride=stride, padding=kernel // 2)
    small = SmallConv3d(3, 4, kernel, stride=stride, padding=kernel // 2)
    small.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 12, 12, depth)  # torch's own float32 gradient is wrong for images smaller than the kernel
    assert torch.allclose(small(x), plain(x), atol=1e-5)
    for layer in (small, plain):
        layer(x).square().sum().backward()
    assert torch.allclose(small.weight.grad, plain.weight.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (2, 1), (1, 4), (3, 3), (3, 2), (9, 1), (4, 3)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [(3, 1, 1, 1), (3, 2, 1, 1), (1, 1, 0, 1), (1, 2, 0, 1), (5, 1, 2, 1), (3, 1, 2, 2), ((3, 1), (2, 1), (1, 0), 1)],
)
def test_a_convolution_of_few_pixels_is_a_matrix_product(shape, kernel, stride, padding, dilation):
    torch.manual_seed(0)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    exact = nn.Conv2d(3, 5, kernel, **options).double()
    small = SmallConv2d(3, 5, kernel, **options)
    small.load_state_dict(exact.state_dict())
    stack = torch.randn(4, 3, *shape, dtype=torch.float64, requires_grad=True)
    own = stack.detach().float().requires_grad_()
    wanted, got = exact(stack), small(own)
    assert got.shape == wanted.shape
    weight = torch.randn_like(wanted)
    (wanted * weight).sum().backward()
    (got * weight.float()).sum().backward()
    pairs = [
        (got, wanted),
        (own.grad, stack.grad),
        (small.weight.grad, exact.weight.grad),
        (small.bias.grad, exact.bias.grad),
    ]
    for a, b in pairs:
        np.testing.assert_allclose(a.detach(), b.detach(), rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        half = small(own)
    assert half.dtype == torch.bfloat16 and torch.allclose(half.double(), wanted, atol=0.05)


@pytest.mark.parametrize(("shape", "kernel", "product"), [((2, 2), 3, True), ((3, 3), 1, True), ((4, 3), 3, False)])
def test_only_few_pixels_are_multiplied(shape, kernel, product, monkeypatch):
    convolved, own = [], nn.functional.conv2d
    monkeypatch.setattr(nn.functional, "conv2d", lambda *given: convolved.append(1) or own(*given))
    layer = SmallConv2d(4, 4, kernel, padding=kernel // 2)
    assert layer(torch.randn(2, 4, *shape)).shape == (2, 4, *shape)
    assert bool(convolved) != product
    assert layer(torch.randn(0, 4, *shape)).shape == (0, 4, *shape)


def test_grouped_convolutions_keep_their_groups():
    torch.manual_seed(0)
    exact = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4).double()
    small = SmallConv2d(4, 4, 3, stride=2, padding=1, groups=4)
    small.load_state_dict(exact.state_dict())
    stack = torch.randn(2, 4, 2, 2)
    assert torch.allclose(small(stack).double(), exact(stack.double()), atol=1e-5)


@pytest.mark.parametrize("family", ["3d", "2.5d"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("height", [3, 6])
def test_narrow_halves_are_read_right(family, dtype, height):
    """oneDNN reads memory that nobody has written where a strided kernel runs over one or two columns."""
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", family=family)
    if family == "3d":
        narrow, stack = encoder.layer4[0].conv1, torch.randn(16, 256, height, 2, 1)
        wanted = torch.nn.functional.conv3d(stack.double(), narrow.weight.double(), stride=2, padding=1)
    else:
        narrow, stack = encoder.network.layer4[0].conv1, torch.randn(16, 256, height, 2)
        wanted = torch.nn.functional.conv2d(stack.double(), narrow.weight.double(), stride=2, padding=1)
    gradient = torch.autograd.grad(wanted.square().sum(), narrow.weight)[0]
    for _ in range(5):
        # What is read must not be what happens to lie there: leave memory that is full of nan behind.
        left = [torch.full((2**size,), float("nan")) for size in range(6, 21) for _ in range(4)]
        del left
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            got = narrow(stack)
        assert got.shape == wanted.shape
        np.testing.assert_allclose(
            got.detach().double(), wanted.detach(), atol=0.03 * float(wanted.detach().abs().max())
        )
        own = torch.autograd.grad(got.double().square().sum(), narrow.weight)[0]
        np.testing.assert_allclose(own, gradient, atol=0.05 * float(gradient.abs().max()))
