"""The guards around 3-D convolutions that are larger than their input, and around LayerNorm."""

import pytest
import torch
from torch import nn

from avssl.models.guard import GuardedConv3d, GuardedLayerNorm, guard_gradients


def convolution(kernel_size, padding, *, stride=1, groups=1):
    torch.manual_seed(0)
    return nn.Conv3d(16, 16, kernel_size, stride=stride, padding=padding, groups=groups)


def gradients(module, x, *, bfloat16=False):
    module.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        y = module(x)
    weight = 0.5 + torch.rand(y.shape, generator=torch.Generator().manual_seed(2))  # one sign: no cancelling sums
    (y.to(x.dtype) * weight).sum().backward()
    return y.detach(), {"input": x.grad, **{name: p.grad.clone() for name, p in module.named_parameters()}}


@pytest.mark.parametrize("groups", [1, 16])  # 16: depthwise, as in X3D and CSN
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 9, 8), (2, 9, 8), (3, 1, 8), (4, 2, 2), (7, 3, 1), (8, 9, 8)])
@pytest.mark.parametrize("kernel_size", [(3, 1, 1), (5, 1, 1), (7, 1, 1), (1, 3, 3), (3, 3, 3), (3, 7, 7)])
def test_guarded_convolution_in_both_precisions(kernel_size, size, stride, groups):
    padding = tuple(side // 2 for side in kernel_size)
    x = torch.randn(4, 16, *size, generator=torch.Generator().manual_seed(1))
    x = x.contiguous(memory_format=torch.channels_last_3d)  # laid out otherwise, depthwise ones take another path
    original = convolution(kernel_size, padding, stride=stride, groups=groups).double()  # float32 is not always right
    guarded = guard_gradients(convolution(kernel_size, padding, stride=stride, groups=groups))
    assert isinstance(guarded, GuardedConv3d)
    expected_output, expected = gradients(original, x.double())
    output, actual = gradients(guarded, x)
    torch.testing.assert_close(output, expected_output.float())
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient.float(), rtol=1e-4, atol=1e-3)
    _, actual = gradients(guarded, x, bfloat16=True)
    for name, gradient in expected.items():
        error = (actual[name] - gradient).norm() / gradient.norm()
        assert error < 0.02, f"{name}: relative error {error}"


def test_guarded_layer_norm_sums_over_many_tokens():
    x = torch.randn(8, 1000, 16, generator=torch.Generator().manual_seed(1))
    _, expected = gradients(nn.LayerNorm(16), x)
    guarded = guard_gradients(nn.Sequential(nn.LayerNorm(16)))[0]
    assert isinstance(guarded, GuardedLayerNorm)
    _, actual = gradients(guarded, x.bfloat16())
    for name, gradient in expected.items():
        assert (actual[name] - gradient).norm() / gradient.norm() < 0.02, name


def test_guard_with_stride_and_pure_bfloat16():
    x = torch.randn(4, 16, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    expected_output, expected = gradients(convolution(3, 1, stride=2), x)
    guarded = guard_gradients(convolution(3, 1, stride=2)).bfloat16()
    output, actual = gradients(guarded, x.bfloat16())
    assert output.dtype == torch.bfloat16
    assert output.shape == expected_output.shape
    for name, gradient in expected.items():
        assert (actual[name].float() - gradient).norm() / gradient.norm() < 0.02


def test_guard_leaves_other_convolutions_and_names_alone():
    module = nn.Sequential(convolution(1, 0), convolution(3, 0), convolution((1, 3, 3), (0, 1, 1)))
    names = list(module.state_dict())
    guard_gradients(module)
    assert [type(child) for child in module] == [nn.Conv3d, nn.Conv3d, GuardedConv3d]
    assert list(module.state_dict()) == names
