"""Opening image files: which formats, what damage, which size, and which way is up."""

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    TiffImageFile,
)

from lesionseg.data.levels import MAX_PIXELS, is_deep, read_tiff
from lesionseg.errors import DataError, first_line, rerun

# What Pillow raises for a damaged file, depending on where the damage is.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    RuntimeError,
    struct.error,
    Image.DecompressionBombError,
)
# How a viewer turns an image, by its EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PLANAR = 2  # of TIFF's PlanarConfiguration: all of red, then all of green
_WHITE_IS_ZERO = 0  # of TIFF's PhotometricInterpretation
# Pillow keeps the high byte of 16-bit colours; that of 14-bit ones is always below this.
_LOWEST_HIGH_BYTE = 64


@contextmanager
def opened(source: Path | BinaryIO) -> Iterator[Image.Image]:
    """An open image; any damage found in the block is a `DataError`.

    Args:
        source: A file of any format that Pillow, tifffile or pillow-heif reads; or a stream.

    Raises:
        DataError: The file is missing, too large, damaged or not an image.
    """
    try:
        with _open(source) as image:
            yield _at_full_depth(image, source)
    except DataError:
        raise
    except DAMAGE as error:
        reason = describe(error).replace(f": '{source}'", "")  # how Pillow names the path
        raise DataError(
            f"{name_of(source)} cannot be read as an image ({reason})",
            remedy="Replace the file; what belongs to data/raw comes back with: "
            + rerun("download"),
        ) from error


class NamedBytes(BytesIO):
    """A file's content with a name for messages."""

    def __init__(self, content: bytes, *, name: str) -> None:
        super().__init__(content)
        self.name: str = name


def name_of(source: Path | BinaryIO) -> str:
    """What a message calls a file; a stream may have a `name`, as open files do."""
    return str(source) if isinstance(source, Path) else getattr(source, "name", "this")


def describe(error: Exception) -> str:
    """Why a file cannot be read, in one line."""
    if isinstance(error, FileNotFoundError):
        return "file not found"
    if isinstance(error, UnidentifiedImageError):
        return "unknown or damaged format"
    if isinstance(error, Image.DecompressionBombError):
        found = re.search(r"(\d+) pixels", str(error))
        size = f"{int(found[1]) / 1e6:.1f} megapixels, " if found else ""
        return f"too large: {size}more than the {MAX_PIXELS / 1e6:.1f} that can be read"
    return first_line(error)


def upright(image: Image.Image) -> Image.Image:
    """The decoded image, turned as its EXIF orientation says, if it has one."""
    image.load()  # this already turns a TIFF
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(H, W) of an image that may not be decoded yet, as a viewer shows it."""
    is_turned = image.format != "TIFF" and orientation(image) in (5, 6, 7, 8)
    return (image.width, image.height) if is_turned else (image.height, image.width)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 if there is none or EXIF is damaged, as viewers assume."""
    if isinstance(image, PngImageFile):
        image.load()  # EXIF may come last, and damage before it must not count as damaged EXIF
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(value) if value in _TURNS else 1
    except Exception:  # noqa: BLE001  (damaged EXIF may raise anything)
        return 1


def raw_mode(image: Image.Image) -> str:
    """How a file that has not been decoded yet stores its pixels, such as `RGB;16B`."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _open(source: Path | BinaryIO) -> Image.Image:
    """Open with Pillow, or else with pillow-heif for HEIC or tifffile for deep TIFF."""
    try:
        return Image.open(source)
    except UnidentifiedImageError:
        start = _first_bytes(source)
        if start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS:
            return _open_heic(source)
        if start[:4] in _TIFF_STARTS:
            return read_tiff(source, name=name_of(source))
        raise


def _first_bytes(source: Path | BinaryIO) -> bytes:
    if isinstance(source, Path):
        with source.open("rb") as stream:
            return stream.read(12)
    source.seek(0)
    return source.read(12)


def _open_heic(source: Path | BinaryIO) -> Image.Image:
    try:
        import pillow_heif
    except ImportError:
        raise DataError(
            f"{name_of(source)} is a HEIC photograph, and pillow-heif is not installed. "
            "Run: pip install pillow-heif"
        ) from None
    pillow_heif.register_heif_opener()
    return Image.open(source)


def _at_full_depth(image: Image.Image, source: Path | BinaryIO) -> Image.Image:
    """The image, read in another way if Pillow would lose or misread deep levels."""
    if isinstance(image, TiffImageFile):
        return _deep_tiff(image, source)
    if image.mode in ("RGB", "RGBA") and ";16" in raw_mode(image) and not _is_bright(image):
        raise DataError(
            f"{name_of(source)} has 16 bits for each colour and uses only the lower ones, so that "
            "it is not clear what is white. Save it again with 8 bits"
        )
    return image


def _deep_tiff(image: TiffImageFile, source: Path | BinaryIO) -> Image.Image:
    tags = image.tag_v2
    if is_deep(image) and tags.get(PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO:
        raise DataError(
            f"{name_of(source)} has deep levels with 0 as white. Save it again with 8 bits"
        )
    is_planar = tags.get(PLANAR_CONFIGURATION) == _PLANAR  # Pillow 13 reads it as if 8 bits
    has_deep_colours = image.mode in ("RGB", "RGBA") and max(tags.get(BITSPERSAMPLE, (8,))) > 8
    if has_deep_colours and (is_planar or not _is_bright(image)):
        return read_tiff(source, name=name_of(source))
    return image


def _is_bright(image: Image.Image) -> bool:
    """Whether the high bytes of colours and alpha channel are too large for 14-bit levels."""
    highest = [int(np.asarray(channel).max()) for channel in image.split()]
    return min([max(highest[:3]), *highest[3:]]) >= _LOWEST_HIGH_BYTE
