"""Decoders: from the encoder's five maps to one map of logits at the image's size."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, cat, nn

from lesionseg.models.depthwise import DepthwiseConv2d
from lesionseg.models.encoder import CHANNELS


def _block(convolution: nn.Module, channels: int, dropout: float) -> nn.Sequential:
    """Convolution, batch norm, ReLU and channel dropout."""
    return nn.Sequential(
        convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.Dropout2d(dropout)
    )


class BilinearDecoder(nn.Module):
    """Baseline 1: five 3x3 convolutions, each upsampled twofold; no skips.

    The channels go 1280-512-256-64-32-16 while the map grows from 1/32 of the image to full size.
    """

    def __init__(self, *, dropout: float) -> None:
        super().__init__()
        widths = (CHANNELS[-1], 512, 256, 64, 32, 16)
        self.blocks = nn.ModuleList(
            _block(nn.Conv2d(before, after, 3, padding=1, bias=False), after, dropout)
            for before, after in pairwise(widths)
        )
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.head = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Logits (N, 1, H, W) from the encoder's maps, of which the last is used."""
        features = maps[-1]
        for block in self.blocks:
            features = self.upsample(block(features))
        logits: Tensor = self.head(features)
        return logits


class TransposedDecoder(nn.Module):
    """Baseline 2: transposed convolutions, each joined with the encoder's map at its scale.

    At strides 16, 8, 4 and 2, a twofold transposed convolution, and a 3x3 convolution that fuses
    its output with the skip of the same stride; then a last transposed convolution to stride 1.
    """

    def __init__(self, *, dropout: float) -> None:
        super().__init__()
        skips = CHANNELS[-2::-1]
        widths = (128, 64, 32, 16)
        self.ups = nn.ModuleList(
            _block(nn.ConvTranspose2d(i, o, 2, stride=2, bias=False), o, 0.0)
            for i, o in pairwise((CHANNELS[-1], *widths))
        )
        self.fuses = nn.ModuleList(
            _block(nn.Conv2d(width + skip, width, 3, padding=1, bias=False), width, dropout)
            for width, skip in zip(widths, skips, strict=True)
        )
        self.last = _block(
            nn.ConvTranspose2d(widths[-1], widths[-1], 2, stride=2, bias=False), widths[-1], 0.0
        )
        self.head = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Logits (N, 1, H, W) from the encoder's five maps."""
        features, *skips = reversed(maps)
        for up, fuse, skip in zip(self.ups, self.fuses, skips, strict=True):
            features = fuse(cat([up(features), skip], dim=1))
        logits: Tensor = self.head(self.last(features))
        return logits


class PyramidDecoder(nn.Module):
    """Multi-scale aggregation, the future work of baseline 1: all scales, then all fused.

    As in feature pyramid networks (Lin et al. 2017, arXiv:1612.03144), 1x1 convolutions bring the
    maps at strides 4 to 32 to the same width, and to each is added the next coarser one, upsampled
    twofold; the coarsest also gets the mean of the whole map, its context (Liu et al. 2015,
    arXiv:1506.04579). The four sums, each smoothed, are fused at stride 4, and the result with the
    map of stride 2, where the logits are made. Twofold upsampling brings these to the image's size:
    the boundary is smooth at that scale, and the last octave would take half of the decoder's time.

    Fast, because convolutions run where there are few pixels: the smoothing is separable, and the
    1x1 convolution that fuses all maps side by side is split into one for each map before it is
    upsampled. That is equivalent, as both are linear.
    """

    WIDTH, LAST_WIDTH = 64, 16

    def __init__(self, *, dropout: float) -> None:
        super().__init__()
        width, last = self.WIDTH, self.LAST_WIDTH
        finest, *others = CHANNELS
        self.laterals = nn.ModuleList(_lateral(channels, width) for channels in others)
        self.context = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(others[-1], width, 1))
        self.smooths = nn.ModuleList(_separable(width) for _ in others)
        self.fuses = nn.ModuleList(nn.Conv2d(width, width, 1, bias=False) for _ in others)
        self.fused = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Dropout2d(dropout)
        )
        self.narrow = nn.Conv2d(width, last, 1, bias=False)
        self.finest = nn.Conv2d(finest, last, 1, bias=False)
        self.joined = nn.Sequential(nn.BatchNorm2d(last), nn.ReLU(inplace=True))
        self.last = _block(nn.Conv2d(last, last, 3, padding=1, bias=False), last, 0.0)
        self.head = nn.Conv2d(last, 1, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Logits (N, 1, H, W) from the encoder's five maps."""
        finest, *others = maps
        laterals = [lateral(m) for lateral, m in zip(self.laterals, others, strict=True)]
        features = laterals.pop() + self.context(others[-1])
        levels = [features := self.smooths[-1](features)]
        for lateral, smooth in zip(reversed(laterals), reversed(self.smooths[:-1]), strict=True):
            levels.append(features := smooth(_upsample(features, 2) + lateral))
        fused = [fuse(level) for fuse, level in zip(self.fuses, reversed(levels), strict=True)]
        total = sum((_upsample(m, 2**i) for i, m in enumerate(fused[1:], 1)), start=fused[0])
        features = _upsample(self.narrow(self.fused(total)), 2) + self.finest(finest)
        logits: Tensor = self.head(self.last(self.joined(features)))
        return _upsample(logits, 2)


def _lateral(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))


def _separable(width: int) -> nn.Sequential:
    """A 3x3 convolution as one per channel, followed by one across channels."""
    return nn.Sequential(
        DepthwiseConv2d(width, width, 3, padding=1, groups=width, bias=False),
        _block(nn.Conv2d(width, width, 1, bias=False), width, 0.0),
    )


def _upsample(features: Tensor, factor: int) -> Tensor:
    return F.interpolate(features, scale_factor=factor, mode="bilinear", align_corners=False)


DECODERS: dict[str, type[nn.Module]] = {
    "bilinear": BilinearDecoder,
    "transposed": TransposedDecoder,
    "pyramid": PyramidDecoder,
}
