"""The guard around 3-D convolutions that see exactly two frames."""

import pytest
import torch
from torch import nn

from avssl.models.video import GuardedConv3d, guard_conv3d


def convolution(kernel_size, padding, stride=1):
    torch.manual_seed(0)
    return nn.Conv3d(16, 16, kernel_size, stride=stride, padding=padding)


def gradients(module, x, *, bfloat16=False):
    module.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        y = module(x)
    weight = 0.5 + torch.rand(y.shape, generator=torch.Generator().manual_seed(2))  # one sign: no cancelling sums
    (y.float() * weight).sum().backward()
    return y.detach(), {"input": x.grad, **{name: p.grad.clone() for name, p in module.named_parameters()}}


@pytest.mark.parametrize("num_frames", [1, 2, 3, 8])
@pytest.mark.parametrize(
    "kernel_size, padding", [((3, 1, 1), (1, 0, 0)), ((3, 3, 3), (1, 1, 1)), ((3, 7, 7), (1, 3, 3))]
)
def test_guarded_convolution_in_both_precisions(kernel_size, padding, num_frames):
    x = torch.randn(4, 16, num_frames, 9, 8, generator=torch.Generator().manual_seed(1))
    original = convolution(kernel_size, padding)
    guarded = guard_conv3d(convolution(kernel_size, padding))
    assert isinstance(guarded, GuardedConv3d)
    expected_output, expected = gradients(original, x)
    output, actual = gradients(guarded, x)
    torch.testing.assert_close(output, expected_output)
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-3)
    _, actual = gradients(guarded, x, bfloat16=True)
    for name, gradient in expected.items():
        error = (actual[name] - gradient).norm() / gradient.norm()
        assert error < 0.02, f"{name}: relative error {error}"


def test_guard_with_stride_and_pure_bfloat16():
    x = torch.randn(4, 16, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    expected_output, expected = gradients(convolution(3, 1, stride=2), x)
    guarded = guard_conv3d(convolution(3, 1, stride=2)).bfloat16()
    output, actual = gradients(guarded, x.bfloat16())
    assert output.dtype == torch.bfloat16
    assert output.shape == expected_output.shape
    for name, gradient in expected.items():
        assert (actual[name].float() - gradient).norm() / gradient.norm() < 0.02


def test_guard_leaves_other_convolutions_and_names_alone():
    module = nn.Sequential(convolution((1, 3, 3), (0, 1, 1)), convolution(3, 0), convolution(3, 1))
    names = list(module.state_dict())
    guard_conv3d(module)
    assert [type(child) for child in module] == [nn.Conv3d, nn.Conv3d, GuardedConv3d]
    assert list(module.state_dict()) == names
