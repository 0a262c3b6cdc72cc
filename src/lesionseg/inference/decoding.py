"""Image files of any kind and size as the network sees them."""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from lesionseg.data.images import read_image_and_size, resize_image
from lesionseg.data.rasters import describe, name_of
from lesionseg.errors import DataError

# Each may hold an image at its own size; beyond eight the disk becomes the limit.
NUM_THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """An image at the network's size, and the size to bring its prediction back to.

    Attributes:
        pixels: (S, S, 3) uint8 RGB in [0, 255].
        size: (H, W) of the image itself in pixels, as a viewer shows it.
    """

    pixels: NDArray[np.uint8]
    size: tuple[int, int]


def decode(source: Path | bytes | BinaryIO, *, image_size: int) -> Decoded:
    """An image, prepared exactly as in `preprocess` for training and evaluation.

    Args:
        source: A file, or its content; a stream may have a `name` for messages.
        image_size: Height and width in pixels of what the network sees.

    Raises:
        DataError: The file is missing, damaged, not an image, or so large that Pillow takes it for
            a decompression bomb.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        image, size = read_image_and_size(file, at_least=image_size)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{name_of(file)} cannot be read as an image ({describe(error)})",
            remedy="Replace the file",
        ) from error
    return Decoded(pixels=resize_image(image, size=image_size), size=size)


def problem_of(error: DataError) -> str:
    """Why an image cannot be read, without the remedy, which is only for the pipeline's files."""
    return f"{error.problem}." if error.remedy else error.problem
