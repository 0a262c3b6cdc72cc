"""Images and masks as servers exchange them: files as bytes or base64, and PNG.

Both servers, MLflow's and `lesionseg serve`, are built on this module, and it writes all masks.
"""

import base64
import binascii
import io
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lesionseg.errors import DataError, first_line

PROBABILITY_LEVELS = 65535  # a grey level of the 16-bit PNG divided by this is the probability
PILLOW_PIXELS = 89_478_485  # above twice this, Pillow takes an image for a decompression bomb
_ROWS = 256  # rounded at a time
# Only these, as some of the many formats that Pillow reads run other programs.
FORMATS = ("JPEG", "PNG")


def read_base64(text: str, *, where: str = "") -> bytes:
    """The bytes encoded by a base64 text, with or without line breaks or a data URL's prefix.

    Args:
        text: The text.
        where: The beginning of a message, such as `row 3: `.

    Raises:
        DataError: It is not base64.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where}image is not base64 ({error})") from None


def count_pixels(content: bytes, *, where: str = "") -> int:
    """Height times width of a JPEG or PNG file, as declared in its header.

    A few hundred bytes can declare any size, and an answer has the declared size.

    Args:
        content: The file's bytes.
        where: The beginning of a message.

    Raises:
        DataError: It is not such a file, or its header is damaged.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            return int(opened.width * opened.height)
    except Image.DecompressionBombError:
        raise DataError(
            f"{where}this image declares more than {2 * PILLOW_PIXELS} pixels"
        ) from None
    except UnidentifiedImageError:
        raise DataError(f"{where}image is neither a JPEG nor a PNG file") from None
    except Exception as error:
        raise DataError(f"{where}cannot be read as an image ({first_line(error)})") from error


def mask_png(mask: NDArray[np.bool_]) -> bytes:
    """An 8-bit grey PNG of a mask, (H, W) bool: 255 in the lesion and 0 elsewhere.

    A mask consists of runs of equal bytes. Compressing only these takes less time and gives fewer
    bytes than looking for anything that repeats.
    """
    return _to_png(mask.view(np.uint8) * np.uint8(255), compress_type=zlib.Z_RLE)


def probability_png(probability: NDArray[np.float32]) -> bytes:
    """A 16-bit grey PNG of probabilities, (H, W) float32 in [0, 1], multiplied by 65535."""
    levels = np.empty(probability.shape, np.uint16)
    for start in range(0, len(levels), _ROWS):  # whole copies of a photograph are 100 MB each
        rows = slice(start, start + _ROWS)
        levels[rows] = np.rint(probability[rows] * PROBABILITY_LEVELS)
    return _to_png(levels, compress_level=1)  # the fastest level by far


def to_text(content: bytes) -> str:
    """Base64 of bytes."""
    return base64.b64encode(content).decode("ascii")


def _to_png(levels: NDArray[np.uint8] | NDArray[np.uint16], **how: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(levels).save(stream, format="PNG", **how)
    return stream.getvalue()
