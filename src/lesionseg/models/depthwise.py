"""Depthwise convolutions that stay fast on the smallest maps, and in bfloat16 on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DepthwiseConv2d(nn.Conv2d):
    """A convolution of each channel by itself that avoids two cases in which a CPU is slow.

    The CPU's library has no fast kernel for maps smaller than the convolution, such as the 2x2 maps
    of 64-pixel images: the backward pass took a quarter of a training step. Such maps are padded
    with zeros beforehand. And with a stride above 1, the backward pass in bfloat16 takes 5 to 80
    times as long as in float32: autocast is then disabled.
    """

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Conv2d` with zero padding; in float32 if bfloat16 is slow."""
        if input.device.type == "cpu" and max(self.stride) > 1 and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return self._convolve(input.float())
        return self._convolve(input)

    def _convolve(self, input: Tensor) -> Tensor:
        if min(input.shape[-2:]) >= max(self.kernel_size):
            return super().forward(input)
        padded = F.pad(input, self._reversed_padding_repeated_twice)
        return F.conv2d(padded, self.weight, self.bias, self.stride, groups=self.groups)


def use_depthwise(features: nn.Module) -> None:
    """Make the depthwise convolutions of a network `DepthwiseConv2d`, keeping their weights."""
    for module in features.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels:
            module.__class__ = DepthwiseConv2d
