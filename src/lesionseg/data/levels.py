"""Levels of more than 8 bits, scaled to 8 bits by the range that they evidently have.

A camera's 10, 12 or 14 bits are stored in 16-bit files, and files of floats hold 0 to 1 or 0 to
255: what a file can hold says nothing about which level is white in it.
"""

import logging
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from lesionseg.errors import DataError

DEEPEST = 65535
WHITES = (255, 1023, 4095, 16383, DEEPEST)  # of 8, 10, 12, 14 and 16 bits
DARKEST = 16  # if all levels are below this, the image is black in any of these ranges
MAX_PIXELS = 178_956_970  # twice Pillow's MAX_IMAGE_PIXELS, above which it refuses as well
_GREY, _RGB = 1, 2  # TIFF's PhotometricInterpretation; 0 is grey with 0 as white
_PLANAR = 2  # its PlanarConfiguration: all of red, then all of green
_LONGEST = 2**31 - 1

logger = logging.getLogger(__name__)
_noted: set[float] = set()  # whites already logged: once each, however many files have them


def is_deep(image: Image.Image) -> bool:
    """Whether an image has grey levels of 16 or 32 bits or floats, which Pillow would clip."""
    return image.mode.startswith(("I", "F"))


def find_white(levels: NDArray[Any]) -> float | None:
    """The smallest usual white that no level exceeds, or None if that cannot be told.

    Args:
        levels: Of any shape, whole numbers or floats. White is 1 for floats up to 1, else one of
            `WHITES`.
    """
    lowest, highest = levels.min(), levels.max()
    if not (lowest >= 0 and highest <= DEEPEST):  # also true of NaN
        return None
    if levels.dtype.kind == "f" and highest <= 1:
        return 1
    if 0 < highest < DARKEST:
        return None
    return next(white for white in WHITES if highest <= white)


def to_8_bit(levels: NDArray[Any], *, name: str, declared: int | None = None) -> NDArray[np.uint8]:
    """Levels in [0, 255], of the same shape; the log says once what was taken for white.

    Args:
        levels: Of any shape, whole numbers or floats.
        name: What the error and the log call the file.
        declared: The white that the file declares; takes precedence unless some level exceeds it.

    Raises:
        DataError: Levels are negative or not finite, or have no usual range.
    """
    white = find_white(levels)
    if white is None:
        raise DataError(
            f"{name} holds values from {levels.min():g} to {levels.max():g}; an image's are from "
            f"0 to 1, or from 0 to one of {', '.join(map(str, WHITES))}. Save it again with 8 bits"
        )
    if declared is not None and declared >= levels.max():
        white = declared
    elif white not in _noted and (white != DEEPEST or levels.dtype.kind == "f"):
        _noted.add(white)
        logger.warning(
            "%s has levels up to %g; white is taken to be %g. Other images like it are read so too",
            name,
            levels.max(),
            white,
        )
    if white == DEEPEST and levels.dtype.kind != "f":
        return (levels // 257).astype(np.uint8)
    return np.rint(levels * np.float32(255 / white)).astype(np.uint8)


def read_tiff(source: Path | BinaryIO, *, name: str) -> Image.Image:
    """A TIFF file that Pillow cannot read at its depth; not turned upright yet, as its EXIF says.

    Returns:
        Grey levels as mode I or F; with colours or alpha, 8 bits per channel.

    Raises:
        DataError: The levels have no usual range.
        ValueError: The file is damaged, or of a kind that tifffile cannot decode.
        DecompressionBombError: It is too large.
    """
    if not isinstance(source, Path):
        source.seek(0)
    try:
        levels, orientation = _decode_tiff(source)
    except (ValueError, OSError, Image.DecompressionBombError):
        raise
    except Exception as error:  # of any kind, depending on the damage
        raise ValueError(f"damaged TIFF: {error}") from error
    image = _to_image(levels, name=name)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return image


def _decode_tiff(source: Path | BinaryIO) -> tuple[NDArray[Any], Any]:
    """Levels (H, W) or (H, W, S) as they are stored, and the tag Orientation."""
    from tifffile import TiffFile  # takes a third of a second, and few files need it

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # its messages name no file
    with TiffFile(source) as tiff:
        page: Any = tiff.pages.first
        series = tiff.series[0]
        num_pixels = series.size // page.samplesperpixel
        if num_pixels > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{num_pixels} pixels")
        if page.photometric not in (_GREY, _RGB):
            raise ValueError(f"TIFF with the photometric interpretation {page.photometric}")
        levels = series.asarray()
        if page.planarconfig == _PLANAR and levels.ndim == 3:
            levels = np.moveaxis(levels, 0, -1)
        return levels, page.tags.valueof(ExifTags.Base.Orientation, 1)


def _to_image(levels: NDArray[Any], *, name: str) -> Image.Image:
    """Levels (H, W) or (H, W, 2 to 4)."""
    if levels.ndim == 2:
        is_float = levels.dtype.kind == "f"
        if not is_float and levels.max() > _LONGEST:
            raise ValueError(f"levels up to {levels.max()}")
        return Image.fromarray(levels.astype(np.float32 if is_float else np.int32))
    if levels.ndim != 3 or levels.shape[2] not in (2, 3, 4):
        raise ValueError(f"TIFF of the shape {' x '.join(map(str, levels.shape))}")
    num_colours = levels.shape[2] - 1 + levels.shape[2] % 2  # 1, 3 and 3 of 2, 3 and 4
    channels = [to_8_bit(levels[..., :num_colours], name=name)]
    if levels.shape[2] > num_colours:
        channels.append(to_8_bit(levels[..., num_colours:], name=name))
    return Image.fromarray(np.concatenate(channels, axis=2))
