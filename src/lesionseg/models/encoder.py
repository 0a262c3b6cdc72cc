"""MobileNetV2 as an encoder: one feature map at each of five scales."""

from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn

from lesionseg.models.torchvision import mobilenet_v2

# Last block of torchvision's `mobilenet_v2().features` at each stride, and its channels.
STRIDES = (2, 4, 8, 16, 32)
TAPS = (1, 3, 6, 13, 18)
CHANNELS = (16, 24, 32, 96, 1280)


class Encoder(nn.Module):
    """MobileNetV2 1.0 without its classifier (Sandler et al. 2018, arXiv:1801.04381).

    Frozen, it takes no gradient and its batch norms stay in evaluation mode whatever `.train()`
    says, so that neither weights nor running statistics ever move.
    """

    def __init__(self, *, state: Mapping[str, Tensor], frozen: bool) -> None:
        super().__init__()
        self.frozen = frozen
        self.features = mobilenet_v2(weights=None).features
        self.features.load_state_dict(state)
        self.features.requires_grad_(not frozen)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set training mode, except where the encoder is frozen."""
        return super().train(mode and not self.frozen)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps at strides 2, 4, 8, 16 and 32.

        Args:
            images: (N, 3, H, W), normalised; H and W are multiples of 32.

        Returns:
            Five maps, (N, C, H / stride, W / stride) with C = 16, 24, 32, 96, 1280.
        """
        maps = []
        for index, block in enumerate(self.features):
            images = block(images)
            if index in TAPS:
                maps.append(images)
        return maps
