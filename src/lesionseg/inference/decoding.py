"""Image files of any kind and size as the network sees them."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile

from lesionseg.data.images import read_image, resize_image
from lesionseg.errors import DataError

_TURNED = (5, 6, 7, 8)  # EXIF orientations by which height and width change places


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """An image at the network's size, and the size to bring its prediction back to.

    Attributes:
        pixels: (S, S, 3) uint8 RGB in [0, 255].
        size: (H, W) of the image itself in pixels, as a viewer shows it.
    """

    pixels: NDArray[np.uint8]
    size: tuple[int, int]


def decode(source: Path | bytes, *, image_size: int) -> Decoded:
    """An image, prepared just as `preprocess` does it for training and evaluation.

    Args:
        source: A file, or a file's content.
        image_size: Height and width in pixels of what the network sees.

    Raises:
        DataError: The file is missing, damaged, no image, or so large that Pillow takes it for a
            decompression bomb.
    """
    try:
        image = read_image(_stream(source), at_least=image_size)
        height, width = _jpeg_size(source) or image.shape[:2]
    except DataError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        name = source if isinstance(source, Path) else "this"
        raise DataError(
            f"{name} cannot be read as an image ({reason}). Replace the file"
        ) from error
    return Decoded(pixels=resize_image(image, size=image_size), size=(height, width))


def _jpeg_size(source: Path | bytes) -> tuple[int, int] | None:
    """(H, W) from the header of a JPEG, which alone is decoded at another size than its own."""
    with Image.open(_stream(source)) as image:
        if not isinstance(image, JpegImageFile):
            return None
        width, height = image.size
        is_turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
    return (width, height) if is_turned else (height, width)


def _stream(source: Path | bytes) -> Path | io.BytesIO:
    return source if isinstance(source, Path) else io.BytesIO(source)
