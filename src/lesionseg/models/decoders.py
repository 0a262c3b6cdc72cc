"""Decoders: from the encoder's five maps to one map of logits at the image's size."""

from itertools import pairwise

from torch import Tensor, cat, nn

from lesionseg.models.encoder import CHANNELS


def _block(convolution: nn.Module, channels: int, dropout: float) -> nn.Sequential:
    """Convolution, batch norm, ReLU and channel dropout."""
    return nn.Sequential(
        convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.Dropout2d(dropout)
    )


class BilinearDecoder(nn.Module):
    """Seed system 1: five 3x3 convolutions, each upsampled twofold; no skips.

    The channels go 1280-512-256-64-32-16 while the map grows from 1/32 of the image to its size.
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
    """Seed system 2: transposed convolutions, each joined with the encoder's map of its scale.

    A twofold transposed convolution, the skip of the same stride beside it, and a 3x3 convolution
    that fuses the two, at strides 16, 8, 4 and 2; a last transposed convolution to stride 1.
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


DECODERS: dict[str, type[BilinearDecoder] | type[TransposedDecoder]] = {
    "bilinear": BilinearDecoder,
    "transposed": TransposedDecoder,
}
