"""Mask files of any kind as arrays of 0 and 1; refused if their meaning is unclear."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from lesionseg.data.levels import DEEPEST, WHITES, find_white, is_deep
from lesionseg.data.rasters import NamedBytes, name_of, opened, raw_mode, upright
from lesionseg.errors import DataError

FOREGROUND_ABOVE = 128  # the rule of the ISIC challenge and its scorer
# Levels between these are neither black nor white; compression and smoothing shift both by less.
_BLACK, _WHITE = 32, 223
_MIDDLE = 2 / 3  # share of middle levels; most photographs of skin have 0.8 and more
_SOLID = 5  # pixels; a square of this side and of one level is an area, not an edge
_NUM_CLEAN = 8  # most levels in a mask that has not been smoothed or compressed
_GREY = 16  # largest difference between the channels of a grey pixel after compression
_LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "HEIF", "JPEG2000")

_BRIGHT = f"levels above {FOREGROUND_ABOVE} of 255 are lesion"
_VISIBLE = "what is not transparent is lesion"
_VISIBLE_AND_BRIGHT = "what is bright and not transparent is lesion"
_PHOTOGRAPH = "so that it looks like a photograph"


@dataclass(frozen=True, kw_only=True)
class ReadMask:
    """A mask, and how its file was understood.

    Attributes:
        mask: (H, W) uint8 in {0, 1}, upright.
        meaning: What was taken for lesion if the file is not simply black and white, else "".
        is_plain: Whether the file itself is an upright 8-bit grey PNG of 0 and 255, which every
            program reads in the same way.
    """

    mask: NDArray[np.uint8]
    meaning: str
    is_plain: bool


class _UnclearMaskError(Exception):
    """What a mask holds instead of skin and lesion."""


def read_mask(path: Path) -> NDArray[np.uint8]:
    """The pixels of a mask file, turned by EXIF: 1 in the lesion.

    See `understand_mask`.

    Returns:
        (H, W) uint8 in {0, 1}.

    Raises:
        DataError: The file is missing, truncated or not an image, or it is unclear what is lesion.
    """
    return understand_mask(path).mask


def understand_mask(source: Path | NamedBytes) -> ReadMask:
    """A mask file of any kind whose meaning is unambiguous.

    Two levels, 0 and another, or black and a colour: the other is lesion, whatever it is. More
    levels, as JPEG and smooth edges give: above 128 of 255 is lesion, as in the challenge, scaled
    to the file's depth. With transparent pixels: whatever is visible is lesion if it has one
    colour, else the bright part of it.

    Raises:
        DataError: The file is missing, truncated or not an image, or it is unclear what is lesion.
    """
    with opened(source) as image:
        is_grey_png = image.format == "PNG" and raw_mode(image) == "L"
        is_lossy = image.format in _LOSSY
        shown = upright(image)
        is_plain = is_grey_png and shown is image and not image.has_transparency_data
        try:
            levels, meaning = _read_levels(shown)
            mask, of_levels = _split(levels, is_lossy=is_lossy)
        except _UnclearMaskError as error:
            raise DataError(
                f"{name_of(source)}: a mask must be 0 outside the lesion and 255 inside, got "
                f"{error}. Save it again with 255 as its foreground"
            ) from None
    meaning = meaning or of_levels
    return ReadMask(mask=mask, meaning=meaning, is_plain=is_plain and not meaning)


def _read_levels(image: Image.Image) -> tuple[Image.Image, str]:
    """A mask's levels as an image of mode L, and what they mean if that is already known."""
    if is_deep(image):
        return _read_deep(np.asarray(image))
    if image.has_transparency_data:
        return _read_visible(image.convert("RGBA"))
    if image.mode in ("1", "L"):
        return image.convert("L") if image.mode == "1" else image, ""
    return _read_colours(image.convert("RGB"))


def _split(image: Image.Image, *, is_lossy: bool) -> tuple[NDArray[np.uint8], str]:
    """The lesion in an image of mode L, (H, W) in {0, 1}, and what the image's levels mean."""
    present = [level for level, count in enumerate(image.histogram()) if count]
    levels = np.asarray(image)
    is_two = present[0] == 0 and len(present) == 2
    if set(present) <= {0, 255}:
        return (levels > FOREGROUND_ABOVE).view(np.uint8), ""
    if len(present) == 1 or is_two:
        if is_lossy and present[-1] <= FOREGROUND_ABOVE:
            raise _UnclearMaskError(f"nothing above {present[-1]} in a compressed file")
        meaning = _of_two(present[-1]) if is_two else f"{present[0]}, everywhere, is lesion"
        return (levels > 0).view(np.uint8), meaning
    _refuse_other_areas(levels, present, is_lossy=is_lossy)
    return (levels > FOREGROUND_ABOVE).view(np.uint8), _BRIGHT


def _refuse_other_areas(
    levels: NDArray[np.uint8], present: Sequence[int], *, is_lossy: bool
) -> None:
    """Raise if there is more than skin, lesion and the edge between them."""
    if present[-1] <= FOREGROUND_ABOVE:
        raise _UnclearMaskError(f"levels from {present[0]} to {present[-1]}")
    share = float(np.mean((levels > _BLACK) & (levels <= _WHITE)))
    if share > _MIDDLE and len(present) > 2:
        raise _UnclearMaskError(f"{share:.0%} that is neither, {_PHOTOGRAPH}")
    is_clean = not is_lossy and len(present) <= _NUM_CLEAN
    solid = _solid_levels(levels)
    between = solid[(solid > (0 if is_clean else _BLACK)) & (solid <= _WHITE)]
    if between.size:
        raise _UnclearMaskError(f"areas of level {between[0]} as well")


def _solid_levels(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The levels, ascending, that fill a square of `_SOLID` pixels somewhere."""
    height, width = (max(0, side - _SOLID + 1) for side in levels.shape)
    starts = levels[:, :width]  # of runs in a row, then of squares
    is_run = np.ones(starts.shape, bool)
    for step in range(1, _SOLID):
        is_run &= starts == levels[:, step : step + width]
    is_square = is_run[:height].copy()
    for step in range(1, _SOLID):
        is_square &= is_run[step : step + height]
        is_square &= starts[:height] == starts[step : step + height]
    return np.flatnonzero(np.bincount(starts[:height][is_square], minlength=256)).astype(np.uint8)


def _read_deep(levels: NDArray[Any]) -> tuple[Image.Image, str]:
    """Two levels as 0 and 255; more levels scaled to 8 bits so that only 0 becomes 0."""
    highest = levels.max()
    is_highest = levels == highest
    if highest > 0 and (is_highest | (levels == 0)).all():
        grey = Image.fromarray(is_highest.view(np.uint8) * np.uint8(255))
        if highest in (255, DEEPEST) or (highest == 1 and levels.dtype.kind == "f"):
            return grey, ""
        is_full = bool(is_highest.all())
        return grey, f"{highest:g}, everywhere, is lesion" if is_full else _of_two(highest)
    white = find_white(levels)
    if white is None:
        raise _UnclearMaskError(f"levels from {levels.min():g} to {highest:g}")
    return Image.fromarray(np.ceil(levels * 255.0 / white).astype(np.uint8)), ""


def _read_visible(image: Image.Image) -> tuple[Image.Image, str]:
    """The alpha channel of an image of mode RGBA, or its visible colours on black as grey."""
    alpha, colours = image.getchannel("A"), image.convert("RGB")
    opacity = np.asarray(alpha)
    if opacity.min() == 255:
        return _read_colours(colours)
    if not opacity.any() and colours.getcolors(1) is None:
        raise _UnclearMaskError("colours that are all transparent")
    visible = np.asarray(colours)[opacity > 0]
    if not opacity.all() and (visible == visible[:1]).all():
        return alpha, _VISIBLE
    flat = Image.composite(colours, Image.new("RGB", image.size), alpha)
    return _read_colours(flat)[0], _VISIBLE_AND_BRIGHT


def _read_colours(image: Image.Image) -> tuple[Image.Image, str]:
    """The grey levels of an image of mode RGB; black and one colour as 0 and 255."""
    red, green, blue = image.split()
    lightest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    darkest = ImageChops.darker(ImageChops.darker(red, green), blue)
    spread = int(np.asarray(ImageChops.subtract(lightest, darkest)).max())
    if spread == 0:
        return lightest, ""
    if (0, 0, 0) in [colour for _, colour in image.getcolors(2) or ()]:
        return lightest.point(lambda level: 255 * (level > 0)), "what is not black is lesion"
    if spread > _GREY:
        is_photograph = image.getcolors(256) is None
        raise _UnclearMaskError(
            f"many colours, {_PHOTOGRAPH}" if is_photograph else "several colours"
        )
    return image.convert("L"), ""


def _of_two(level: float) -> str:
    """What 0 and another level mean; unusual levels get one wording, so that messages can merge."""
    named = f"{level:g}" if level in (1, *WHITES) else "the one other level"
    return f"0 is skin and {named} is lesion"
