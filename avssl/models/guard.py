"""Layers of torch whose gradients are wrong on CPU, made right; what was measured is said at each class."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def guard_gradients(module: nn.Module) -> nn.Module:
    """Make every 3-D convolution and LayerNorm inside `module` safe on CPU; parameters and their names stay the same.

    Returns:
        The module itself, changed in place.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv3d) and any(child.padding):
            child.__class__ = GuardedConv3d
        elif isinstance(child, nn.LayerNorm):
            child.__class__ = GuardedLayerNorm
    return module


class GuardedConv3d(nn.Conv3d):
    """A convolution that pads its input itself where the input is smaller than torch's kernels can bear.

    There the weight gradient of torch 2.11 and 2.13 is garbage (up to 1e35, or NaN) on CPUs with bfloat16 instructions,
    or is written out of bounds. Measured against float64 with kernels 3, 5 and 7 and half of them as padding, with and
    without stride, dense and depthwise: bfloat16 is wrong for T from 2 to kernel - 1 and for H or W of at most the
    padding; float32 is wrong too, for temporal kernel 7 with stride 2 and 5 to 7 frames. T = 1 and larger sizes are
    right. Padding first gives the same sums and was right everywhere, so the guard does not ask for the precision.
    """

    def forward(self, input: Tensor) -> Tensor:
        sizes = input.shape[2:]
        unsafe = [1 < sizes[0] <= self.kernel_size[0], sizes[1] <= self.padding[1], sizes[2] <= self.padding[2]]
        first = [pad if wrong else 0 for pad, wrong in zip(self.padding, unsafe, strict=True)]
        if input.device.type != "cpu" or not any(first):
            return super().forward(input)
        padded = F.pad(input, [pad for pad in reversed(first) for _ in range(2)])  # (B, C, T', H', W')
        rest = [pad - done for pad, done in zip(self.padding, first, strict=True)]
        return F.conv3d(padded, self.weight, self.bias, self.stride, rest, self.dilation, self.groups)


class GuardedLayerNorm(nn.LayerNorm):
    """A normalization in float32 whatever the autocast, as on a GPU.

    On CPU, torch 2.11 normalizes bfloat16 as it is and sums the bias gradient over the tokens in bfloat16, where the
    sum stops growing after some hundred of them: at 2,048 tokens it is a quarter of the true one, at 20,000 a fortieth.
    """

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())
