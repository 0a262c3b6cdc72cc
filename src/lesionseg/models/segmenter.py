"""The whole network: normalisation, encoder, decoder; and its file."""

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lesionseg.errors import DataError, first_line, rerun
from lesionseg.files import require, write_bytes
from lesionseg.models.decoders import DECODERS
from lesionseg.models.encoder import Encoder

# Statistics of ImageNet's RGB channels in [0, 1], with which the encoder was pretrained.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Segmenter(nn.Module):
    """Encoder and decoder with the normalisation inside."""

    mean: Tensor
    std: Tensor

    def __init__(self, *, encoder: Encoder, decoder: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the lesion, (N, 1, H, W).

        Args:
            images: (N, 3, H, W) float32 in [0, 1]; H and W are multiples of 32.
        """
        logits: Tensor = self.decoder(self.encoder((images - self.mean) / self.std))
        return logits


def build_segmenter(
    *, encoder_state: Mapping[str, Tensor], decoder: str, dropout: float, frozen: bool, seed: int
) -> Segmenter:
    """A network with the given encoder weights and a decoder drawn from `seed`.

    The same seed gives the same decoder, frozen or not.

    Args:
        encoder_state: Weights of torchvision's `mobilenet_v2().features`.
        decoder: A name in `DECODERS`.
        dropout: Probability of dropping a channel in the decoder, in [0, 1).
        frozen: Whether the encoder stays unchanged.
        seed: Seed of the decoder's weights.
    """
    with torch.random.fork_rng(devices=[]):
        encoder = Encoder(state=encoder_state, frozen=frozen)
        torch.manual_seed(seed)
        return Segmenter(encoder=encoder, decoder=DECODERS[decoder](dropout=dropout))


def load_encoder_state(path: Path) -> dict[str, Tensor]:
    """Weights of the encoder as written by the download stage.

    Raises:
        MissingFileError: The file is missing.
        DataError: It cannot be read, or holds other or non-finite weights.
    """
    require(path, stage="download")
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        _require_finite(state)
        with torch.random.fork_rng(devices=[]):
            Encoder(state=state, frozen=True)
    except Exception as error:  # noqa: BLE001  (torch.load raises whatever the pickle holds)
        raise DataError(
            f"{path} holds no weights of the encoder ({first_line(error)})",
            remedy=f"Run: {rerun('download')}",
        ) from None
    return state


def _require_finite(state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has values that are not finite")


def save_model(
    path: Path, *, state: Mapping[str, Tensor], decoder: str, image_size: int, frozen: bool
) -> None:
    """Write `model.pt`: weights, and what is needed to rebuild the network."""
    content = {
        "decoder": decoder,
        "image_size": image_size,
        "frozen": frozen,
        "state": {name: tensor.cpu().contiguous() for name, tensor in state.items()},
    }
    # Via memory: torch would write the file's own name into the file, and so change its bytes.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def load_model(path: Path, *, stage: str) -> tuple[Segmenter, int]:
    """The network in a `model.pt`, for prediction, and its image size in pixels.

    It is in evaluation mode and its encoder's batch norms are folded, however it was trained: that
    is faster.

    Raises:
        MissingFileError: The file is missing.
        DataError: It is not a model of this program.
    """
    require(path, stage=stage)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = content["state"]
        prefix = "encoder.features."
        encoder_state = {
            k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)
        }
        encoder = Encoder(state=encoder_state, frozen=False)
        model = Segmenter(encoder=encoder, decoder=DECODERS[content["decoder"]](dropout=0.0))
        model.load_state_dict(state)
        _require_finite(state)
        image_size = int(content["image_size"])
        encoder.fold()  # it only predicts from now on
    except Exception as error:  # noqa: BLE001  (torch.load raises whatever the pickle holds)
        raise DataError(
            f"{path} is not a model ({first_line(error)})", remedy=f"Run: {rerun(stage)}"
        ) from None
    return model.eval(), image_size
