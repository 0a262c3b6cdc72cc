"""Mask files as people have them, as arrays of 0 and 1; refused where their meaning is unclear."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter

from lesionseg.data.images import full_scale, opened, orientation, upright
from lesionseg.errors import DataError

FOREGROUND_ABOVE = 128  # the rule of the ISIC challenge and its scorer
# Levels between these are neither black nor white; JPEG moves both by less.
_BLACK, _WHITE = 32, 223
_PHOTOGRAPH = 2 / 3  # share of middle levels; photographs of skin have 0.8 and more
_SOLID = 5  # pixels; a square of one middle level as large is an area, not an edge
_WHITES = (1.0, 255.0, 65535.0)  # of fractions, 8 and 16 bits


@dataclass(frozen=True, kw_only=True)
class ReadMask:
    """A mask, and how its file was understood.

    Attributes:
        mask: (H, W) uint8 in {0, 1}, upright.
        meaning: What was taken for lesion where the file is not simply black and white, else "".
        is_plain: Whether the file itself is an upright 8-bit grey PNG that is read by the rule
            above 128, as any other program would.
    """

    mask: NDArray[np.uint8]
    meaning: str
    is_plain: bool


def read_mask(path: Path) -> NDArray[np.uint8]:
    """The pixels of a mask file, turned by EXIF: 1 in the lesion.

    See `understand_mask`.

    Returns:
        (H, W) uint8 in {0, 1}.

    Raises:
        DataError: The file is missing, truncated or no image, or it is not clear what is lesion.
    """
    return understand_mask(path).mask


def understand_mask(path: Path) -> ReadMask:
    """A mask file of any kind that means one thing only.

    Two levels, 0 and another: the other is lesion, whatever it is. More levels, as JPEG and smooth
    edges make them: above 128 of 255, as in the challenge, in the scale of the file's depth. With
    transparent pixels: lesion is what can be seen, or what is bright among it.

    Raises:
        DataError: The file is missing, truncated or no image, or it is not clear what is lesion.
    """
    with opened(path) as image:
        is_turned = orientation(image) != 1
        is_grey_png = image.format == "PNG" and image.mode in ("L", "1")
        lossless = image.format != "JPEG"
        image = upright(image)
        if image.has_transparency_data:
            levels, meaning = _visible(image)
        else:
            levels, meaning = _levels(image), ""
        is_plain = is_grey_png and not is_turned and not image.has_transparency_data
    mask, of_levels = _split(levels, path, lossless=lossless)
    meaning = meaning or of_levels
    return ReadMask(mask=mask, meaning=meaning, is_plain=is_plain and not meaning)


def _levels(image: Image.Image) -> NDArray[Any]:
    """(H, W) grey levels in the file's own depth."""
    if image.mode.startswith("I") or image.mode == "F":
        return np.asarray(image)
    return np.asarray(image if image.mode == "L" else image.convert("L"))


def _visible(image: Image.Image) -> tuple[NDArray[np.uint8], str]:
    """Levels of an image with an alpha channel, and what they mean."""
    pixels = np.asarray(image.convert("RGBA"))
    shown = pixels[..., 3] > FOREGROUND_ABOVE
    if shown.all():
        return np.asarray(image.convert("RGB").convert("L")), ""
    colours = pixels[shown][:, :3]
    if not len(colours) or not np.ptp(colours, axis=0).any():
        return shown.astype(np.uint8) * np.uint8(255), "what is not transparent is lesion"
    black = Image.new("RGBA", image.size, "black")
    flat = Image.alpha_composite(black, image.convert("RGBA"))
    return np.asarray(flat.convert("L")), "what is bright and not transparent is lesion"


def _split(levels: NDArray[Any], path: Path, *, lossless: bool) -> tuple[NDArray[np.uint8], str]:
    """Lesion in grey levels, and what they mean.

    Raises:
        DataError: It is not clear what is lesion.
    """
    low, high = float(levels.min()), float(levels.max())
    scale = full_scale(levels, path)
    if low == high:  # one level
        return _of_one_level(levels, path, scale=scale, lossless=lossless)
    is_high = levels == high
    two_levels = bool((is_high | (levels == low)).all())
    if two_levels and low == 0 and (lossless or high > FOREGROUND_ABOVE * scale / 255):
        meaning = "" if high in _WHITES and high == scale else f"0 is skin and {high:g} is lesion"
        return is_high.astype(np.uint8), meaning
    scaled = levels if levels.dtype == np.uint8 else levels * (255 / scale)
    mask = scaled > FOREGROUND_ABOVE
    if not mask.any():
        raise DataError(
            f"{path}: a mask must be 0 outside the lesion and 255 inside, got levels from "
            f"{low:g} to {high:g}. Save it again with 255 as its foreground"
        )
    _refuse_areas_between(scaled, path, two_levels=two_levels)
    meaning = (
        "" if levels.dtype == np.uint8 else f"levels above {FOREGROUND_ABOVE} of 255 are lesion"
    )
    return mask.astype(np.uint8), meaning


def _of_one_level(
    levels: NDArray[Any], path: Path, *, scale: float, lossless: bool
) -> tuple[NDArray[np.uint8], str]:
    """An empty mask, or a full one."""
    level = float(levels.flat[0])
    if level and not lossless and level <= FOREGROUND_ABOVE:
        raise DataError(
            f"{path}: all of the mask has the level {level:g}, which is neither black nor white. "
            "Save it again, with 0 outside the lesion and 255 inside"
        )
    meaning = "" if level in (0, scale) else f"{level:g}, everywhere, is lesion"
    return np.full(levels.shape, level > 0, np.uint8), meaning


def _refuse_areas_between(scaled: NDArray[Any], path: Path, *, two_levels: bool) -> None:
    """Raise DataError where middle levels are more than the edges between black and white."""
    between = (scaled > _BLACK) & (scaled <= _WHITE)
    if between.mean() > _PHOTOGRAPH and not two_levels:
        raise DataError(
            f"{path}: {between.mean():.0%} of the mask's pixels are neither black nor white; it "
            "looks like a photograph. Put masks into masks/ and images into images/"
        )
    if not between.any():
        return
    flat = minimum_filter(scaled, _SOLID) == maximum_filter(scaled, _SOLID)
    areas = flat & between
    if areas.any():
        level = float(scaled[areas][0])
        raise DataError(
            f"{path}: the level {level:.0f} of 255 fills areas of the mask, and it is not clear "
            "whether they are lesion. Save it again, with 0 outside the lesion and 255 inside"
        )
