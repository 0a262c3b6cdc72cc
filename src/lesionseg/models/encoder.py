"""MobileNetV2 as an encoder: one feature map at each of five scales."""

import copy
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Self

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lesionseg.mobilenet import mobilenet_v2
from lesionseg.models.depthwise import use_depthwise

# Last block of torchvision's `mobilenet_v2().features` at strides 2, 4, 8, 16 and 32, and its
# channels.
TAPS = (1, 3, 6, 13, 18)
CHANNELS = (16, 24, 32, 96, 1280)


class Encoder(nn.Module):
    """MobileNetV2 1.0 without its classifier (Sandler et al. 2018, arXiv:1801.04381).

    Frozen, it takes no gradient and its batch norms stay in evaluation mode even after `.train()`,
    so that neither weights nor running statistics ever change.
    """

    def __init__(self, *, state: Mapping[str, Tensor], frozen: bool) -> None:
        super().__init__()
        self.frozen = frozen
        self.features = mobilenet_v2(weights=None).features
        use_depthwise(self.features)
        self.features.load_state_dict(state)
        self.features.requires_grad_(not frozen)
        self._follow_features()
        self.register_load_state_dict_post_hook(Encoder._follow_features)  # type: ignore[no-untyped-call]
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set training mode, unless the encoder is frozen."""
        return super().train(mode and not self.frozen)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps at strides 2, 4, 8, 16 and 32.

        Args:
            images: (N, 3, H, W), normalised; H and W are multiples of 32.

        Returns:
            Five maps, (N, C, H / stride, W / stride) with C = 16, 24, 32, 96, 1280.
        """
        maps = []
        for index, block in enumerate(self._folded[0] if self._folded else self.features):
            images = block(images)
            if index in TAPS:
                maps.append(images)
        return maps

    def fold(self) -> None:
        """Fold the batch norms into the weights themselves, permanently: no further training.

        Nothing remains but what is computed with, as needed in a file for another program.
        """
        _fold(self.features.eval().requires_grad_(False))
        self.frozen = True
        self._follow_features()
        self.eval()

    def _follow_features(self, *_: Any) -> None:
        """Remake the copy that a frozen encoder computes with; its state keeps the batch norms."""
        has_norms = any(isinstance(m, nn.BatchNorm2d) for m in self.features.modules())
        # In a list, which hides it from `state_dict()`.
        self._folded = [fold_batch_norms(self.features)] if self.frozen and has_norms else []

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        """Move or convert the encoder and the copy that it computes with."""
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._follow_features()
        return self


def fold_batch_norms(features: nn.Sequential) -> nn.Sequential:
    """A copy with the same output, up to rounding, that takes two thirds of the time.

    In evaluation mode a batch norm scales and shifts each channel by fixed numbers, which can be
    included in the convolution before it.
    """
    folded = copy.deepcopy(features).eval().requires_grad_(False)
    _fold(folded)
    return folded


def _fold(features: nn.Sequential) -> None:
    for block in list(features.modules()):
        if isinstance(block, nn.Sequential):
            for index, (first, second) in enumerate(pairwise(list(block))):
                if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                    block[index] = fuse_conv_bn_eval(first, second)
                    block[index + 1] = nn.Identity()
