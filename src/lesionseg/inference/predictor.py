"""Trained models that predict: images of any size in, probabilities of the same size out.

Independent of the command line and the server, which are both built on it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from lesionseg.data.images import resize_image
from lesionseg.errors import DataError, LesionsegError
from lesionseg.hardware import choose_device
from lesionseg.inference.decoding import Decoded, decode
from lesionseg.inference.prediction import predict_batch, resize_probabilities
from lesionseg.models.segmenter import Segmenter, load_model

BATCH_SIZE = 32


class Predictor:
    """Segmenters in evaluation mode on their device, in float32 as in the stage `evaluate`.

    With several, an ensemble, the mean probability is taken, as there.

    Attributes:
        image_size: Height and width in pixels of what the network sees.
    """

    def __init__(
        self,
        models: Sequence[Segmenter],
        *,
        image_size: int,
        device: torch.device,
        num_views: int = 1,
    ) -> None:
        self._models = [
            model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
            for model in models
        ]
        self._device = device
        self._num_views = num_views
        self.image_size = image_size

    @classmethod
    def load(
        cls,
        *paths: Path,
        device: str = "auto",
        stage: str = "train_finetuned",
        num_views: int = 1,
        remedy_of: Callable[[Path], str] | None = None,
    ) -> "Predictor":
        """The models in one or several `model.pt`.

        Args:
            paths: The files.
            device: `auto` takes CUDA if available; or cpu, cuda, cuda:1.
            stage: The stage that makes the files, named in errors.
            num_views: Views of each image, whose mean probability is taken, as in `predict_batch`.
            remedy_of: What to do about a file that is not a model, if not to run the stage again.

        Raises:
            MissingFileError: A file is missing.
            DataError: It is not a model of this program, or is for images of another size.
            ConfigError: There is no such device.
        """
        chosen = choose_device(device)
        loaded = [load_network(path, stage=stage, remedy_of=remedy_of) for path in paths]
        models, sizes = zip(*loaded, strict=True)
        if len(set(sizes)) > 1:
            listed = ", ".join(f"{path}: {size}" for path, size in zip(paths, sizes, strict=True))
            raise DataError(
                f"the models are for images of different sizes in pixels ({listed}). "
                "Take models of one size"
            )
        return cls(models, image_size=sizes[0], device=chosen, num_views=num_views)

    def predict(
        self, images: Sequence[NDArray[np.uint8]], *, batch_size: int = BATCH_SIZE
    ) -> list[NDArray[np.float32]]:
        """The lesion's probability in each pixel of each image, (H, W) float32 in [0, 1].

        Args:
            images: (H, W, 3) uint8 RGB in [0, 255], of any sizes.
            batch_size: Images in a forward pass.

        Raises:
            DataError: An image has another shape or type.
        """
        for number, image in enumerate(images):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
                raise DataError(
                    f"image {number} must be (height, width, 3) uint8, "
                    f"got {image.shape} {image.dtype}"
                )
        decoded = [
            Decoded(pixels=resize_image(image, size=self.image_size), size=image.shape[:2])
            for image in images
        ]
        return self._predict(decoded, batch_size)

    def predict_encoded(
        self, images: Sequence[Path | bytes | BinaryIO], *, batch_size: int = BATCH_SIZE
    ) -> list[NDArray[np.float32]]:
        """Like `predict`, for image files or their contents, prepared as in the stage `evaluate`.

        A large JPEG is decoded at reduced scale, which is faster, but differs slightly from what
        `predict` makes of all its pixels.

        Args:
            images: As for `decode`.
            batch_size: Images in a forward pass.

        Raises:
            DataError: One of them cannot be read.
        """
        decoded = [decode(image, image_size=self.image_size) for image in images]
        return self._predict(decoded, batch_size)

    def _predict(self, decoded: Sequence[Decoded], batch_size: int) -> list[NDArray[np.float32]]:
        maps = []
        for start in range(0, len(decoded), batch_size):
            batch = decoded[start : start + batch_size]
            small = self.forward(np.stack([image.pixels for image in batch]))
            maps += [resize_probabilities(p, d.size) for p, d in zip(small, batch, strict=True)]
        return maps

    @torch.inference_mode()
    def forward(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities (N, S, S) float32 in [0, 1] at the network's size, of one batch.

        Args:
            pixels: (N, S, S, 3) uint8 RGB in [0, 255], S being `image_size`.

        Raises:
            LesionsegError: The device has too little memory for so many images at once.
        """
        try:
            images = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).float() / 255
            maps = [predict_batch(m, images, num_views=self._num_views) for m in self._models]
            predicted = torch.stack(maps).mean(dim=0)
        except torch.OutOfMemoryError:
            raise LesionsegError(
                f"{self._device} has no memory for {len(pixels)} images of {self.image_size} "
                "pixels at once; use a smaller batch size"
            ) from None
        probabilities: NDArray[np.float32] = predicted.cpu().numpy()
        return probabilities


def load_network(
    path: Path, *, stage: str, remedy_of: Callable[[Path], str] | None = None
) -> tuple[Segmenter, int]:
    """The network in a `model.pt` and its image size in pixels, as from `load_model`.

    Args:
        path: The file.
        stage: The stage that makes it, named in errors.
        remedy_of: What to do about a file that is not a model, if not to run the stage again.

    Raises:
        MissingFileError: The file is missing.
        DataError: It is not a model of this program.
    """
    try:
        return load_model(path, stage=stage)
    except DataError as error:
        if remedy_of is None:
            raise
        raise DataError(error.problem, remedy=remedy_of(path)) from error
