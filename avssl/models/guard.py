"""The guard around 3-D convolutions on CPUs with bfloat16 instructions; what it guards against is said at the class."""

import torch.nn.functional as F
from torch import Tensor, nn


def guard_conv3d(module: nn.Module) -> nn.Module:
    """Make every 3-D convolution inside `module` safe under bfloat16 on CPU; parameters and their names stay the same.

    Returns:
        The module itself, changed in place.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv3d) and any(child.padding):
            child.__class__ = GuardedConv3d
    return module


class GuardedConv3d(nn.Conv3d):
    """A convolution that pads its input itself where the input is smaller than torch's bfloat16 kernels can bear.

    There the weight gradient of torch 2.11 and 2.13 is garbage (up to 1e35, or NaN) on CPUs with bfloat16 instructions,
    or is written out of bounds. Measured with kernels 3, 5 and 7 and half of them as padding, with and without stride,
    dense and depthwise: wrong are T from 2 to kernel - 1, and H or W of at most the padding. Right are T = 1 and all
    larger sizes. float32 is wrong too for temporal kernel 7 with stride 2 at 5 and 6 frames. Padding first gives the
    same sums and is right everywhere, so the guard asks for the device but not for the precision, which autocast hides.
    """

    def forward(self, input: Tensor) -> Tensor:
        sizes = input.shape[2:]
        unsafe = [1 < sizes[0] < self.kernel_size[0], sizes[1] <= self.padding[1], sizes[2] <= self.padding[2]]
        first = [pad if wrong else 0 for pad, wrong in zip(self.padding, unsafe, strict=True)]
        if input.device.type != "cpu" or not any(first):
            return super().forward(input)
        padded = F.pad(input, [pad for pad in reversed(first) for _ in range(2)])  # (B, C, T', H', W')
        rest = [pad - done for pad, done in zip(self.padding, first, strict=True)]
        return F.conv3d(padded, self.weight, self.bias, self.stride, rest, self.dilation, self.groups)
