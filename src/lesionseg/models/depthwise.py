"""Depthwise convolutions that stay fast on the smallest maps."""

import torch.nn.functional as F
from torch import Tensor, nn


class DepthwiseConv2d(nn.Conv2d):
    """A convolution of each channel by itself, whose zeros are laid around small maps beforehand.

    The CPU's library has no fast kernel where a map is smaller than the convolution, as the 2x2
    maps of 64-pixel images are: its backward pass took a quarter of a training step.
    """

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Conv2d`, of zero padding."""
        if min(input.shape[-2:]) >= max(self.kernel_size):
            return super().forward(input)
        padded = F.pad(input, self._reversed_padding_repeated_twice)
        return F.conv2d(padded, self.weight, self.bias, self.stride, groups=self.groups)


def use_depthwise(features: nn.Module) -> None:
    """Make the depthwise convolutions of a network `DepthwiseConv2d`; weights stay as they are."""
    for module in features.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels:
            module.__class__ = DepthwiseConv2d
