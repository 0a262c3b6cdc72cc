"""Image files as arrays, and arrays at the size the network sees."""

import importlib.util
import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from lesionseg.errors import DataError

# What Pillow raises for a damaged file, by its place of damage.
DAMAGE = (
    *(OSError, SyntaxError, ValueError, TypeError, EOFError, RuntimeError),
    *(struct.error, Image.DecompressionBombError),
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
# Largest values of the ways to store a level: 8, 10, 12, 14 and 16 bits.
_SCALES = (255, 1023, 4095, 16383, 65535)
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_log = logging.getLogger(__name__)
_noted: set[str] = set()  # one line for each kind, however many files are of it


def read_image(path: Path | BinaryIO, *, at_least: int | None = None) -> NDArray[np.uint8]:
    """The pixels of an image file as a viewer shows them: turned by EXIF, on white if transparent.

    Levels of more than 8 bits are scaled from the range that the file declares, or else from the
    smallest usual one that holds them all: 0 to 1 for fractions; 8, 10, 12, 14 or 16 bits.

    Args:
        path: Any format and colour space that Pillow reads, and TIFF of any depth; or a stream of
            its bytes. HEIC where pillow-heif is installed.
        at_least: Height and width in pixels that the caller will resize to. A JPEG is then decoded
            at 1/2, 1/4 or 1/8 scale, as long as both sides keep twice this: most of its inverse
            cosine transforms are left out, and what remains is still above the Nyquist rate.

    Returns:
        (H, W, 3) uint8 RGB in [0, 255].

    Raises:
        DataError: The file is missing, truncated, too large or no image, or its levels are of no
            usual range.
    """
    return read_image_and_size(path, at_least=at_least)[0]


def read_image_and_size(
    path: Path | BinaryIO, *, at_least: int | None = None
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The pixels as from `read_image`, and the (H, W) of the file itself, turned by EXIF."""
    with opened(path) as image:
        is_deep = ";16" in str(getattr(image, "tile", ""))  # first: it is gone once decoded
        size = upright_size(image)
        if at_least is not None:
            image.draft(None, (2 * at_least, 2 * at_least))  # does nothing but for JPEG
        shown = upright(image)
        pixels = np.array(_to_rgb(shown, path))
        # Pillow keeps the upper 8 bits of 16-bit colours.
        if is_deep and shown.mode in ("RGB", "RGBA") and pixels.max() <= _SCALES[3] >> 8:
            raise DataError(
                f"{_name(path)} has 16 bits for each colour and uses only the lower ones. Save it "
                "again with 8 bits"
            )
    return pixels, size


def upright(image: Image.Image) -> Image.Image:
    """The decoded image, turned as its EXIF orientation says; as it is where that says nothing."""
    image.load()  # a TIFF is turned here already
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(H, W) of an image that may not be decoded yet, as a viewer shows it."""
    is_turned = image.format != "TIFF" and orientation(image) in (5, 6, 7, 8)
    return (image.width, image.height) if is_turned else (image.height, image.width)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none or the block is damaged, as viewers take it."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001  (a damaged block raises whatever it likes)
        return 1
    return value if value in _TURNS else 1


def full_scale(levels: NDArray[Any], path: Path | BinaryIO) -> float:
    """The value that stands for white among levels of more than 8 bits.

    Args:
        levels: Of any shape, integers or fractions.
        path: Of their file, for the error.

    Raises:
        DataError: Some are negative, not finite, or above 65535.
    """
    low, high = float(levels.min()), float(levels.max())
    if not (low >= 0 and high <= _SCALES[-1]):  # NaN is neither
        raise DataError(
            f"{_name(path)} holds values from {low:g} to {high:g}; an image's are from 0 to 1, or "
            "from 0 to 65535. Save it again with 8 bits"
        )
    if levels.dtype.kind == "f" and high <= 1:
        return 1.0
    return next(float(scale) for scale in _SCALES if high <= scale)


def to_8_bit(image: Image.Image, path: Path | BinaryIO) -> Image.Image:
    """Levels of more than 8 bits as 8-bit ones, which Pillow itself would clip; others as is."""
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    levels = np.asarray(image)
    declared = getattr(image, "tag_v2", {}).get(281)  # MaxSampleValue of a TIFF
    scale = full_scale(levels, path)
    if isinstance(declared, int) and declared >= levels.max():
        scale = float(declared)
    elif scale != _SCALES[-1]:
        _note(
            path, f"has {image.mode} levels up to {levels.max():g}; white is taken to be {scale:g}"
        )
    if levels.dtype.kind == "f":
        return Image.fromarray(np.rint(levels * (255 / scale)).astype(np.uint8))
    return Image.fromarray((levels.astype(np.int64) * 255 // int(scale)).astype(np.uint8))


def resize_image(image: NDArray[np.uint8], *, size: int) -> NDArray[np.uint8]:
    """An image at another size, its sides scaled independently.

    Pillow's bilinear filter widens with the scale (it antialiases), rings nowhere, and is the
    filter of `resize_mask`: image and mask are averages over the same neighbourhoods.

    Args:
        image: (H, W, 3) uint8 RGB in [0, 255].
        size: The new height and width in pixels.

    Returns:
        (size, size, 3) uint8 RGB in [0, 255].
    """
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def resize_mask(mask: NDArray[np.uint8], *, size: int) -> NDArray[np.uint8]:
    """A mask at another size: 1 where at least half of a pixel's neighbourhood is lesion.

    Nearest neighbour would take one of the many pixels that fall onto a new one. Brought back to
    the size they came from, ISIC 2016's masks at 128 pixels keep a Jaccard index of 0.982 with
    themselves this way, and of 0.978 that way.

    Args:
        mask: (H, W) uint8 in {0, 1}.
        size: The new height and width in pixels.

    Returns:
        (size, size) uint8 in {0, 1}.
    """
    levels = Image.fromarray(mask * np.uint8(255))
    # Whole blocks are averaged first, down to three times the size: half the time.
    share = levels.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return (np.asarray(share) > 127).astype(np.uint8)


@contextmanager
def opened(path: Path | BinaryIO) -> Iterator[Image.Image]:
    """An open image; any damage found in the block is a `DataError`."""
    try:
        with _open(path) as image:
            yield image
    except DataError:
        raise
    except DAMAGE as error:
        reason = "file not found" if isinstance(error, FileNotFoundError) else _reason(error, path)
        raise DataError(
            f"{_name(path)} cannot be read as an image ({reason}). "
            "Replace the file; what belongs to data/raw comes back with: dvc repro -f download"
        ) from error


def _open(path: Path | BinaryIO) -> Image.Image:
    """Open with Pillow, or with what reads more: pillow-heif for HEIC, tifffile for deep TIFF."""
    try:
        image = Image.open(path)
        bits = getattr(image, "tag_v2", {}).get(258, (8,))  # BitsPerSample of a TIFF
        is_deep = image.mode in ("RGB", "RGBA") and max(bits) > 8
        if not is_deep:
            return image
        image.close()
        return _open_deep_tiff(path)
    except UnidentifiedImageError:
        start = _first_bytes(path)
        if start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS:
            return _open_heic(path)
        if start[:4] in (b"II*\0", b"MM\0*"):
            return _open_deep_tiff(path)
        raise


def _first_bytes(path: Path | BinaryIO) -> bytes:
    if isinstance(path, Path):
        with path.open("rb") as stream:
            return stream.read(12)
    path.seek(0)
    start = path.read(12)
    path.seek(0)
    return start


def _open_heic(path: Path | BinaryIO) -> Image.Image:
    if importlib.util.find_spec("pillow_heif") is None:
        raise DataError(
            f"{_name(path)} is a HEIC photograph, and pillow-heif is not installed. "
            "Run: pip install pillow-heif"
        )
    import pillow_heif

    pillow_heif.register_heif_opener()
    return Image.open(path)


def _open_deep_tiff(path: Path | BinaryIO) -> Image.Image:
    """A TIFF of more than 8 bits for each of several colours, at 8."""
    import tifffile

    levels = tifffile.imread(path)
    if levels.ndim != 3 or levels.shape[2] not in (3, 4):
        raise UnidentifiedImageError("a TIFF of an unusual kind")
    scale = full_scale(levels, path)
    _note(path, f"has {levels.dtype} colours up to {levels.max():g}; white is {scale:g}")
    return Image.fromarray(np.rint(levels * (255 / scale)).astype(np.uint8))


def _note(path: Path | BinaryIO, what: str) -> None:
    """Say it once for each kind."""
    kind = what.partition(" up to ")[0] + what.rpartition(" ")[2]
    if kind not in _noted:
        _noted.add(kind)
        _log.warning("%s %s. Other images like it are read so too", _name(path), what)


def _name(path: Path | BinaryIO) -> str:
    return str(path) if isinstance(path, Path) else "this"


def _reason(error: Exception, path: Path | BinaryIO) -> str:
    """The first line of Pillow's message; it says the path again, in its own way."""
    if isinstance(error, UnidentifiedImageError):
        return "unknown or damaged format"
    if isinstance(error, Image.DecompressionBombError):
        return f"too large: more than {2e-6 * (Image.MAX_IMAGE_PIXELS or 0):.0f} megapixels"
    return (str(error).splitlines() or [type(error).__name__])[0].replace(f": '{path}'", "")


def _to_rgb(image: Image.Image, path: Path | BinaryIO) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return to_8_bit(image, path).convert("RGB")
