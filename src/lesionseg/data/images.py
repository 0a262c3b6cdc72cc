"""Image files as arrays, and arrays at the size the network sees."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lesionseg.data.levels import DEEPEST, is_deep, to_8_bit
from lesionseg.data.rasters import name_of, opened, raw_mode, upright, upright_size


def read_image(path: Path | BinaryIO, *, at_least: int | None = None) -> NDArray[np.uint8]:
    """The pixels of an image file as a viewer shows them: turned by EXIF, on white if transparent.

    Levels of more than 8 bits are scaled from the range that the file declares, or else from the
    smallest usual one that holds them all: 0 to 1 for fractions; 8, 10, 12, 14 or 16 bits.

    Args:
        path: Any format and colour space that Pillow reads, and TIFF of any depth; or a stream of
            its bytes. HEIC if pillow-heif is installed.
        at_least: Height and width in pixels that the caller will resize to. A JPEG is then decoded
            at 1/2, 1/4 or 1/8 scale, as long as both sides keep twice this: most of its inverse
            cosine transforms are skipped, and what remains is still above the Nyquist rate.

    Returns:
        (H, W, 3) uint8 RGB in [0, 255].

    Raises:
        DataError: The file is missing, truncated, too large or not an image, or its levels have no
            usual range.
    """
    return read_image_and_size(path, at_least=at_least)[0]


def read_image_and_size(
    path: Path | BinaryIO, *, at_least: int | None = None
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The pixels as from `read_image`, and the (H, W) of the file itself, turned by EXIF."""
    with opened(path) as image:
        size = upright_size(image)
        if at_least is not None:
            image.draft(None, (2 * at_least, 2 * at_least))  # affects only JPEG
        declared = _declared_white(image)
        return np.array(_to_rgb(upright(image), name=name_of(path), declared=declared)), size


def resize_image(image: NDArray[np.uint8], *, size: int) -> NDArray[np.uint8]:
    """An image at another size, its sides scaled independently.

    Pillow's bilinear filter widens with the scale (it antialiases), never rings, and is also used
    in `resize_mask`: image and mask are averages over the same neighbourhoods.

    Args:
        image: (H, W, 3) uint8 RGB in [0, 255].
        size: The new height and width in pixels.

    Returns:
        (size, size, 3) uint8 RGB in [0, 255].
    """
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def resize_mask(mask: NDArray[np.uint8], *, size: int) -> NDArray[np.uint8]:
    """A mask at another size: 1 where at least half of a pixel's neighbourhood is lesion.

    Nearest neighbour would take one of the many pixels that fall onto a new one. Resized to 128
    pixels and back, ISIC 2016's masks have a Jaccard index of 0.982 with the originals this way,
    and of 0.978 with nearest neighbour.

    Args:
        mask: (H, W) uint8 in {0, 1}.
        size: The new height and width in pixels.

    Returns:
        (size, size) uint8 in {0, 1}.
    """
    levels = Image.fromarray(mask * np.uint8(255))
    # Averaging whole blocks first, down to three times the size, takes half the time.
    share = levels.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return (np.asarray(share) > 127).astype(np.uint8)


def _declared_white(image: Image.Image) -> int | None:
    """The level that a file with deep levels declares as white."""
    if image.format == "PPM":
        return DEEPEST  # Pillow has scaled it to this
    if image.format == "TIFF" and raw_mode(image).startswith("I;16S"):
        return 32767
    declared = getattr(image, "tag_v2", {}).get(281)  # MaxSampleValue; by default all bits set
    return declared if isinstance(declared, int) and declared < DEEPEST else None


def _to_rgb(image: Image.Image, *, name: str, declared: int | None) -> Image.Image:
    if is_deep(image):
        image = _to_8_bit(image, name=name, declared=declared)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_8_bit(image: Image.Image, *, name: str, declared: int | None) -> Image.Image:
    """Deep grey levels as 8-bit ones; one level may mark transparent pixels."""
    levels = np.asarray(image)
    grey = Image.fromarray(to_8_bit(levels, name=name, declared=declared))
    if (transparent := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(levels != transparent))
    return grey
