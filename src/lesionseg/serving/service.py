"""The model behind the server: one image at a time in the network, a few being read or written."""

import threading
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from fastapi import HTTPException
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from pydantic_core import to_json

from lesionseg.data.rasters import NamedBytes
from lesionseg.inference.decoding import decode
from lesionseg.inference.payloads import count_pixels, mask_png, probability_png, to_text
from lesionseg.inference.prediction import resize_probabilities
from lesionseg.inference.predictor import Predictor
from lesionseg.serving.limits import Limits

LARGE = 4_000_000  # pixels; above this, an image counts as a photograph


class Answer(BaseModel):
    """What is said about an image, at its own size as a viewer shows it."""

    height: int = Field(description="In pixels.")
    width: int = Field(description="In pixels.")
    lesion_fraction: float = Field(description="The mask's share of the image, in [0, 1].")
    threshold: float = Field(description="A pixel is lesion above this probability.")
    mask: str = Field(description="Base64 of an 8-bit grey PNG: 255 in the lesion, 0 elsewhere.")
    probability: str | None = Field(
        default=None,
        description="Base64 of a 16-bit grey PNG: its level / 65535 is the probability of lesion.",
    )


@dataclass(frozen=True, kw_only=True)
class Served:
    """Which model is served.

    Attributes:
        name: The model's name as given by the user.
        sha256: SHA-256 of its file.
        threshold: A pixel is lesion above this probability, in (0, 1).
    """

    name: str
    sha256: str
    threshold: float


class Service:
    """Answers one image per call; any number of threads may call."""

    def __init__(self, predictor: Predictor, served: Served, limits: Limits) -> None:
        self._predictor = predictor
        self._limits = limits
        self._network = threading.Lock()
        self._large = threading.Lock()
        self.served = served
        self.image_size = size = predictor.image_size
        predictor.forward(np.zeros((1, size, size, 3), np.uint8))  # the first pass takes longest

    def answer(self, content: bytes, *, probability: bool) -> bytes:
        """JSON of an `Answer`.

        Args:
            content: A JPEG or PNG file.
            probability: Whether to include the probabilities.

        Raises:
            DataError: It cannot be read as an image.
            HTTPException: 413 if it has too many pixels.
        """
        with self._room_for(content):
            values = self._predict(content)
            mask = values > self.served.threshold
            answer = Answer(
                height=mask.shape[0],
                width=mask.shape[1],
                lesion_fraction=float(mask.mean()),
                threshold=self.served.threshold,
                mask=to_text(mask_png(mask)),
                probability=to_text(probability_png(values)) if probability else None,
            )
            return to_json(answer, exclude_none=True)

    def mask(self, content: bytes) -> bytes:
        """The mask as a PNG file; argument and errors as for `answer`."""
        with self._room_for(content):
            return mask_png(self._predict(content) > self.served.threshold)

    def _room_for(self, content: bytes) -> "threading.Lock | nullcontext[None]":
        """What to hold meanwhile: only one photograph may be in memory at its own size."""
        num_pixels, most = count_pixels(content), self._limits.max_pixels
        if num_pixels > most:
            raise HTTPException(
                413, f"an image may have {most} pixels, got {num_pixels}. Send a smaller one"
            )
        return self._large if num_pixels > LARGE else nullcontext()

    def _predict(self, content: bytes) -> NDArray[np.float32]:
        decoded = decode(NamedBytes(content, name="the file"), image_size=self.image_size)
        with self._network:  # its own threads take all cores
            small = self._predictor.forward(decoded.pixels[None])[0]
        return resize_probabilities(small, decoded.size)
