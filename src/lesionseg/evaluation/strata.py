"""Where a model fails: images grouped by what can be measured on them and their true masks.

Nothing here depends on a model. The measures are designed for dermoscopy at 256 x 256 pixels;
lengths are in pixels of that size.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import (
    binary_dilation,
    binary_erosion,
    distance_transform_edt,
    gaussian_filter,
    grey_closing,
    minimum_filter,
)
from scipy.signal import fftconvolve
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.filters import apply_hysteresis_threshold

from lesionseg.metrics import Scores, failure_rate
from lesionseg.results.layout import RUNS
from lesionseg.results.tables import Row
from lesionseg.results.vocabulary import FEW_IMAGES, STRATA, UNKNOWN, Stratum

MEASURED_SIZE = 256  # height and width that the lengths below are meant for
BORDER = 3  # pixels; masks drawn up to the border often end one or two pixels before it
MARGIN = 8  # pixels around the mask that are neither lesion nor skin: outlines are rough
RING = 40  # pixels around the mask whose skin the lesion is compared with
FRAME = 10  # pixels along the border without skin: shadows of the dermatoscope's rim
MIN_SKIN = 655  # pixels, 1 %; with fewer there is no skin to measure
BLACK = 60  # the brightest channel of a black corner is below this, out of 255
SMOOTHING = 3.0  # pixels, standard deviation; removes detail that nobody draws by hand
HAIR_WIDTH = 9  # pixels; anything this wide is not a hair
HAIR_LENGTH = 21  # pixels; longer than a ruler's stroke
HAIR_DEPTH = 14  # grey levels; a deeper valley counts no more than this
HAIR_LOW, HAIR_HIGH = 4.0, 6.0  # grey levels of the faint and the clear parts of a hair

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def measure_image(image: Image, mask: Mask) -> dict[str, float]:
    """The measures that `STRATA` groups; flips and quarter turns leave them unchanged.

    Skin is what lies outside the mask and its margin, outside the dermatoscope's black corners,
    and not along the image's border. Hair is looked for on skin only: inside a lesion, streaks and
    networks look the same.

    Args:
        image: (H, W, 3) uint8 RGB in [0, 255], meant for H = W = `MEASURED_SIZE`.
        mask: (H, W) bool, True in the true lesion.

    Returns:
        lesion_fraction: Share of the pixels that are lesion, in [0, 1].
        border_fraction: The same among pixels less than `BORDER` from the border.
        contrast: CIEDE2000 difference between the median CIELAB colours of the lesion and of the
            hairless skin up to `RING` pixels around it; NaN without a lesion or such skin.
        outline_roughness: Pixels of the mask that change when it is smoothed, divided by the pixels
            of its outline; NaN without a lesion.
        hair_fraction: Share of the skin's pixels that are hair, in [0, 1]; NaN without skin.
        ita: Individual typology angle of the hairless skin's median colour, in degrees; NaN
            without skin, or if the colour is uninformative: see `_typology_angle`.
    """
    distance = distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, np.inf)
    skin = _find_skin(image, distance)
    hair = _find_hair(image) & skin
    bare = skin & ~binary_dilation(hair, iterations=2)
    lab = rgb2lab(image / np.float32(255))
    around = _median_colour(lab, bare & (distance <= RING))
    return {
        "lesion_fraction": float(mask.mean()),
        "border_fraction": float(mask[~_inside(mask.shape, BORDER)].mean()),
        "contrast": float(deltaE_ciede2000(_median_colour(lab, mask), around)),
        "outline_roughness": _roughness(mask),
        "hair_fraction": float(hair.sum() / skin.sum()) if skin.any() else np.nan,
        "ita": _typology_angle(_median_colour(lab, bare)),
    }


def group_of(measures: Mapping[str, float]) -> dict[str, str]:
    """The group of an image in each stratum, by the stratum's name; NaN is `UNKNOWN`.

    Args:
        measures: As from `measure_image`.
    """
    return {stratum.name: _group(stratum, measures[stratum.measure]) for stratum in STRATA.values()}


def summarise_strata(
    attributes: pd.DataFrame,
    jaccards: Mapping[str, Scores],
    *,
    interval: Callable[[Scores], tuple[float, float]],
) -> list[Row]:
    """Mean jaccard and failure rate of both models in each group, the row "all" first.

    A failure is an image with a jaccard below 0.65, as in the 2018 challenge. Groups are in the
    order of `STRATA`; those without images are left out.

    Args:
        attributes: One row for each image, with a column of group names for each stratum.
        jaccards: (N,) jaccards in [0, 1] of each run on these images, in the same order.
        interval: Lower and upper end for the differences (n,), fine-tuned minus frozen, of a
            group's images. Not called for groups below `FEW_IMAGES`, whose ends are None.
    """
    groups = {("all", "all"): np.ones(len(attributes), dtype=np.bool_)}
    for stratum in STRATA.values():
        column = attributes[stratum.name].to_numpy()
        groups |= {(stratum.name, group): column == group for group in stratum.groups}
    return [
        {
            "stratum": stratum,
            "group": group,
            **_summarise({run: jaccards[run][where] for run in RUNS}, interval),
        }
        for (stratum, group), where in groups.items()
        if where.any()
    ]


def _find_skin(image: Image, distance: NDArray[np.float64]) -> Mask:
    """(H, W) bool; False everywhere if there are fewer than `MIN_SKIN` pixels of skin."""
    # Closing brightens what is thin and dark: black corners stay, hairs do not.
    brightness = grey_closing(image.max(axis=-1), size=HAIR_WIDTH, mode="nearest")
    lit = minimum_filter(brightness, size=2 * FRAME + 1, mode="nearest") >= BLACK
    skin: Mask = lit & (distance > MARGIN) & _inside(distance.shape, FRAME)
    return skin if np.count_nonzero(skin) >= MIN_SKIN else np.zeros_like(skin)


def _find_hair(image: Image) -> Mask:
    """(H, W) bool: dark lines, straight for about `HAIR_LENGTH` pixels.

    The closing of Lee et al. 1997 (DullRazor, doi:10.1016/S0010-4825(97)00020-6) gives how much
    darker a pixel is than its sides. Averaged along lines, the best direction must stand out from
    the mean of all: skin's texture does not, and a ruler's strokes are too short. The red channel
    shows hair, but hardly any vessels or brown pigment. Light hair is not looked for: on the
    training images, the same method with signs changed found creases and reflections of skin, but
    no hair.
    """
    red = image[..., 0]
    closed = [grey_closing(red, footprint=bar, mode="nearest") for bar in _bars(HAIR_WIDTH, 4)]
    depth = np.minimum(np.max(closed, axis=0) - red, HAIR_DEPTH).astype(np.float32)
    lines = _bars(HAIR_LENGTH, 8).astype(np.float32)
    lines /= lines.sum(axis=(1, 2), keepdims=True)
    beyond = HAIR_LENGTH // 2
    means = fftconvolve(depth[None], lines, axes=(1, 2))[:, beyond:-beyond, beyond:-beyond]
    hair: Mask = apply_hysteresis_threshold(means.max(0) - means.mean(0), HAIR_LOW, HAIR_HIGH)
    return hair


def _bars(length: int, num_directions: int) -> Mask:
    """(num_directions, length, length) bool: lines through the centre, symmetric to it."""
    angles = np.arange(num_directions)[:, None] * np.pi / num_directions
    steps = np.arange(length) - length // 2
    rows, columns = np.rint([steps * np.sin(angles), steps * np.cos(angles)]).astype(int)
    bars = np.zeros((num_directions, length, length), dtype=np.bool_)
    bars[np.arange(num_directions)[:, None], rows + length // 2, columns + length // 2] = True
    return bars


def _inside(shape: tuple[int, ...], width: int) -> Mask:
    """(H, W) bool: True at least `width` pixels from the border."""
    inside = np.zeros(shape, dtype=np.bool_)
    inside[width:-width, width:-width] = True
    return inside


def _median_colour(lab: NDArray[np.float32], where: Mask) -> NDArray[np.float32]:
    """(3,) medians of L*, a* and b*; NaN if there are no pixels."""
    return np.median(lab[where], axis=0) if where.any() else np.full(3, np.nan, np.float32)


def _typology_angle(colour: NDArray[np.float32]) -> float:
    """Degrees in (-90, 90) from L* and b*; NaN unless b* is positive, as skin is never bluish but
    a photograph's white balance may be.

    Chardon et al. 1991, doi:10.1111/j.1467-2494.1991.tb00561.x.
    """
    lightness, _, b = colour
    return float(np.degrees(np.arctan2(lightness - 50, b))) if b > 0 else np.nan


def _roughness(mask: Mask) -> float:
    """See `measure_image`; the image's border is not part of the outline."""
    outline = np.count_nonzero(mask & ~binary_erosion(mask, border_value=1))
    smoothed = gaussian_filter(mask.astype(np.float32), SMOOTHING, mode="nearest") > 0.5
    return np.count_nonzero(smoothed != mask) / outline if outline else np.nan


def _group(stratum: Stratum, value: float) -> str:
    if np.isnan(value):
        return UNKNOWN
    return stratum.groups[int(np.digitize(value, stratum.limits, right=True))]


def _summarise(
    jaccards: Mapping[str, Scores], interval: Callable[[Scores], tuple[float, float]]
) -> dict[str, int | float | None]:
    frozen, finetuned = (jaccards[run] for run in RUNS)
    difference = finetuned - frozen
    low, high = interval(difference) if len(difference) >= FEW_IMAGES else (None, None)
    row: dict[str, int | float | None] = {"num_images": len(difference)}
    for run in RUNS:
        row[f"{run}_jaccard"] = float(jaccards[run].mean())
        row[f"{run}_failure_rate"] = failure_rate(jaccards[run])
    return row | {
        "difference": float(difference.mean()),
        "difference_low": low,
        "difference_high": high,
    }
