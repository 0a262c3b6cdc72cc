"""Synthetic dermoscopy with exact masks, for demonstrations and tests.

A phantom is light falling through absorbing layers: skin of some colour, melanin in it, and on top
hairs, gel bubbles and a ruler. Colours follow the Beer-Lambert law, light times exp(-density) per
channel, so that a few numbers give pale and dark, brown and blue-black. All lengths are shares of
the frame's side: one seed is one scene, whatever the size.

Inside a function, `field` and `density` are float32 of axes (H, W) and (H, W, 3).
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage
from tqdm import tqdm

from lesionseg.files import write_bytes

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

KINDS = ("network", "homogeneous", "globules", "veil", "multicolour", "faint")

# Skin as a dermoscope shows it, RGB in [0, 1], from pale through pink and tan to dark.
SKIN = np.array(
    [
        (0.86, 0.84, 0.82),
        (0.76, 0.80, 0.88),
        (0.90, 0.78, 0.72),
        (0.88, 0.68, 0.64),
        (0.92, 0.70, 0.54),
        (0.78, 0.62, 0.50),
        (0.60, 0.44, 0.34),
        (0.44, 0.31, 0.24),
    ],
    np.float32,
)
# How strongly each pigment absorbs red, green and blue, at unit density.
BROWN = np.array((0.40, 0.80, 1.15), np.float32)
BLACK = np.array((1.05, 1.15, 1.05), np.float32)
RED = np.array((0.12, 0.48, 0.44), np.float32)
VEIL = np.array((0.50, 0.55, 0.66), np.float32)  # the colour of a blue-white veil, RGB in [0, 1]


@dataclass(frozen=True, kw_only=True)
class Clinic:
    """Whose skin is shown.

    Attributes:
        tone: Both parameters of the beta distribution of skin tones, 0 the palest of `SKIN`.
        hairy_fraction: Share of the images with hairs.
        very_hairy_fraction: Share of those images that have many hairs.
    """

    tone: tuple[float, float]
    hairy_fraction: float
    very_hairy_fraction: float


HOME = Clinic(tone=(1.1, 1.5), hairy_fraction=0.5, very_hairy_fraction=0.25)
# A different look, for an external test set.
ELSEWHERE = Clinic(tone=(3.0, 1.2), hairy_fraction=0.9, very_hairy_fraction=0.6)


def draw_phantom(*, size: int, seed: int, clinic: Clinic = HOME) -> tuple[Bytes, Bytes]:
    """A lesion on skin and its exact outline.

    Args:
        size: Height and width in pixels.
        seed: Each seed is a different scene; equal seed, size and clinic give equal bytes.
        clinic: Whose skin.

    Returns:
        The image, (size, size, 3) uint8 RGB in [0, 255], and the mask, (size, size) uint8, 255 in
        the lesion and 0 elsewhere; the lesion is one connected region of 2 % to 60 % of the frame.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    view = _field_of_view(rng, size)
    mask = _lesion_mask(rng, size, view > 0.5)
    colour = np.exp(-_skin_density(rng, size, clinic))
    colour = _add_lesion(rng, colour, mask)
    colour = _add_strokes(rng, colour, clinic)
    colour = _add_bubbles(rng, colour)
    colour *= (_light(rng, size) * (0.03 + 0.97 * view))[..., None]
    colour += 0.012 * rng.standard_normal((size, size, 1), np.float32)
    image = (colour.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return image, mask.astype(np.uint8) * 255


def write_phantoms(
    raw_dir: Path, *, num_train: int, num_test: int, size: int, seed: int, clinic: Clinic = HOME
) -> None:
    """Write images and masks as `raw_dir/{train,test}/{images,masks}/PHANTOM_0000000.*`.

    Images are JPEG of quality 95, masks PNG of one 8-bit channel with 0 and 255. The numbers go on
    from train to test; apart from `size`, an image depends only on `seed`, its number and `clinic`.
    """
    logger.info("Drawing %d + %d phantoms of %d x %d pixels", num_train, num_test, size, size)
    for number in tqdm(range(num_train + num_test), "phantoms", unit="image", disable=None):
        split_dir = raw_dir / ("train" if number < num_train else "test")
        entropy = np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)
        image, mask = draw_phantom(size=size, seed=int(entropy[0]), clinic=clinic)
        name = f"PHANTOM_{number:07d}"
        write_bytes(split_dir / "images" / f"{name}.jpg", _encode(image, "JPEG"))
        write_bytes(split_dir / "masks" / f"{name}.png", _encode(mask, "PNG"))


def _encode(pixels: Bytes, file_format: str) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, file_format, quality=95)
    return stream.getvalue()


def _noise(rng: np.random.Generator, size: int, cells: float, octaves: int = 1) -> Floats:
    """A smooth field of about unit variance: `cells` bumps per side, finer octaves half as high."""
    field = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        num_cells = max(2, round(cells * 2**octave))
        coarse = Image.fromarray(rng.standard_normal((num_cells, num_cells), np.float32))
        fine = coarse.resize((size, size), Image.Resampling.BICUBIC)
        field += np.asarray(fine) * np.float32(1.4 / 2**octave)
    return field


def _grid(size: int) -> tuple[Floats, Floats]:
    """Rows and columns of pixel centres from -1 to 1, as (H, 1) and (1, W)."""
    axis = np.linspace(1 / size - 1, 1 - 1 / size, size, dtype=np.float32)
    return axis[:, None], axis[None, :]


def _field_of_view(rng: np.random.Generator, size: int) -> Floats:
    """1 where the dermoscope sees and 0 in its dark corners, if it has any; (H, W)."""
    if rng.random() > 0.25:
        return np.ones((size, size), np.float32)
    y, x = _grid(size)
    radius = rng.uniform(0.95, 1.3)
    shift_y, shift_x = rng.uniform(-0.06, 0.06), rng.uniform(-0.06, 0.06)
    distance = np.hypot(y - shift_y, x - shift_x)
    return _sigmoid((radius - distance) / rng.uniform(0.01, 0.04))


def _lesion_mask(rng: np.random.Generator, size: int, seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A ragged ellipse of a given area: the largest part of a noisy cone above a level."""
    area = math.exp(rng.uniform(math.log(0.022), math.log(0.58)))
    y, x = _grid(size)
    reach = 0.8 if rng.random() < 0.15 else 0.25
    centre_y, centre_x = rng.uniform(-reach, reach), rng.uniform(-reach, reach)
    angle, stretch = rng.uniform(0, math.pi), math.sqrt(rng.uniform(1.0, 2.0))
    radius = math.sqrt(4 * area / math.pi)
    along = (math.cos(angle) * (y - centre_y) + math.sin(angle) * (x - centre_x)) / stretch
    across = (math.cos(angle) * (x - centre_x) - math.sin(angle) * (y - centre_y)) * stretch
    field = -np.hypot(along, across) / radius
    field += rng.uniform(0.03, 0.16) * _noise(rng, size, 2.5 / radius)
    field += rng.uniform(0.01, 0.07) * _noise(rng, size, 9 / radius, octaves=2)
    field[~seen] = -np.inf
    return _largest_part(field > np.quantile(field, 1 - area))


def _largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected region without its holes."""
    parts, _ = ndimage.label(mask)
    largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    outside, _ = ndimage.label(np.pad(~largest, 1, constant_values=True))
    filled: NDArray[np.bool_] = outside[1:-1, 1:-1] != outside[0, 0]
    return filled


def _skin_density(rng: np.random.Generator, size: int, clinic: Clinic) -> Floats:
    """Skin with red patches, pores and freckles; (H, W, 3), 0 is white."""
    tone = rng.beta(*clinic.tone) * (len(SKIN) - 1)
    low, weight = int(tone), np.float32(tone % 1)
    base = SKIN[low] * (1 - weight) + SKIN[min(low + 1, len(SKIN) - 1)] * weight
    base = base * rng.uniform(0.95, 1.05, 3).astype(np.float32)
    red = rng.uniform(0.02, 0.12) * _noise(rng, size, 4, octaves=3)
    grain = rng.uniform(0.01, 0.03) * _noise(rng, size, 90)
    lines = rng.uniform(0, 0.05) * np.exp(-((_noise(rng, size, 24) / 0.25) ** 2))
    freckles = _spots(rng, size, cells=rng.uniform(10, 40), level=rng.uniform(2.1, 3.6))
    brown = grain + lines + rng.uniform(0.1, 0.5) * freckles
    density: Floats = red[..., None] * RED + brown[..., None] * BROWN - np.log(base)
    return density


def _spots(rng: np.random.Generator, size: int, *, cells: float, level: float) -> Floats:
    """Soft dots, about 0 to 1, where a field of `cells` bumps exceeds `level` deviations."""
    return _sigmoid((_noise(rng, size, cells) - level) * 5)


def _add_lesion(rng: np.random.Generator, colour: Floats, mask: NDArray[np.bool_]) -> Floats:
    """The skin's colour, darkened by the lesion's pigment; half of it at the mask's outline."""
    size = len(mask)
    kind = rng.choice(KINDS)
    inside = _blur(mask, rng.uniform(0.004, 0.025))
    core = np.float32(rng.uniform(0, 0.7))
    depth = inside * (1 - core + core * _blur(mask, 0.18 * math.sqrt(mask.mean())))
    strength = rng.uniform(0.2, 0.45) if kind == "faint" else rng.uniform(0.6, 2.2)
    pigment = np.exp(rng.uniform(0.1, 0.35) * _noise(rng, size, 7, octaves=4))
    pigment *= _structure(rng, size, kind)
    black = np.float32(rng.uniform(0, 0.6) * (kind != "faint"))
    absorption = np.broadcast_to(BROWN * (1 - black) + BLACK * black, colour.shape)
    if kind == "multicolour" or rng.random() < 0.25:
        absorption = _mottle(rng, size, absorption)
    result: Floats = colour * np.exp(
        -np.float32(strength) * (depth * pigment)[..., None] * absorption
    )
    if kind == "veil":
        share = _sigmoid((_noise(rng, size, 3, octaves=2) + 0.3) * 3) * inside
        share *= rng.uniform(0.4, 0.75)
        result += share[..., None] * (VEIL * colour.mean() / 0.7 - result)
    return result


def _structure(rng: np.random.Generator, size: int, kind: str) -> Floats:
    """The relative amount of pigment of one kind of lesion; (H, W), about 0.4 to 2."""
    if kind == "network":
        ridges = np.exp(-((_noise(rng, size, rng.uniform(32, 56)) / 0.5) ** 2))
        structure: Floats = 0.6 + rng.uniform(0.3, 0.9) * ridges
        return structure
    if kind in ("globules", "multicolour"):
        return 0.75 + rng.uniform(0.3, 1.0) * _spots(
            rng, size, cells=rng.uniform(28, 60), level=1.2
        )
    return np.ones((size, size), np.float32)


def _mottle(rng: np.random.Generator, size: int, absorption: Floats) -> Floats:
    """Absorption with black and red patches; (H, W, 3)."""
    black = _sigmoid(_noise(rng, size, 4, octaves=3) * 2 - 1.0)[..., None]
    red = _sigmoid(_noise(rng, size, 4, octaves=2) * 2 - 1.5)[..., None]
    mixed = absorption + black * (1.6 * BLACK - absorption)
    return mixed + red * (0.8 * RED - mixed)


def _add_strokes(rng: np.random.Generator, colour: Floats, clinic: Clinic) -> Floats:
    """Hairs and, sometimes, the ticks of a ruler over everything else."""
    size = len(colour)
    canvas = Image.new("L", (2 * size, 2 * size))
    draw = ImageDraw.Draw(canvas)
    if rng.random() < clinic.hairy_fraction:
        is_very_hairy = rng.random() >= 1 - clinic.very_hairy_fraction
        num_hairs = int(rng.integers(8, 35) if is_very_hairy else rng.integers(1, 8))
        width = rng.uniform(0.004, 0.010)
        for points in _hairs(rng, num_hairs):
            pixels = max(1, round(width * rng.uniform(0.6, 1.2) * 2 * size))
            shade = int(rng.integers(120, 256))
            draw.line([tuple(p) for p in points * 2 * size], fill=shade, width=pixels)
    if rng.random() < 0.2:
        _draw_ruler(rng, draw, 2 * size)
    ink = SKIN[-1] * np.float32(rng.uniform(0.15, 0.9))
    cover = np.asarray(canvas.reduce(2), np.float32)[..., None] / 255
    result: Floats = colour + cover * (ink - colour)
    return result


def _hairs(rng: np.random.Generator, num_hairs: int) -> Iterator[NDArray[np.float64]]:
    """Quadratic Bezier curves that run roughly one way; (16, 2) in x and y, 0 to 1 the frame."""
    t = np.linspace(0, 1, 16)[:, None]
    main = rng.uniform(0, 2 * np.pi)
    for _ in range(num_hairs):
        angle, length = main + rng.normal(0, 0.5), rng.uniform(0.25, 1.2)
        step = length / 2 * np.array((np.cos(angle), np.sin(angle)))
        middle = rng.uniform(0, 1, 2)
        bend = middle + rng.normal(0, 0.12, 2)
        yield (1 - t) ** 2 * (middle - step) + 2 * t * (1 - t) * bend + t**2 * (middle + step)


def _draw_ruler(rng: np.random.Generator, draw: ImageDraw.ImageDraw, side: int) -> None:
    """Ticks at equal distances along one edge, every fifth one longer."""
    pitch, offset, edge = rng.uniform(0.03, 0.06), rng.uniform(0.01, 0.05), rng.integers(4)
    for tick, place in enumerate(np.arange(rng.uniform(0, 0.4), rng.uniform(0.5, 1), pitch)):
        end = offset + (0.06 if tick % 5 == 0 else 0.035)
        near, far = (1 - offset, 1 - end) if edge >= 2 else (offset, end)
        line = [(near, place), (far, place)] if edge % 2 else [(place, near), (place, far)]
        points = [(x * side, y * side) for x, y in line]
        draw.line(points, fill=220, width=max(1, side // 150))


def _add_bubbles(rng: np.random.Generator, colour: Floats) -> Floats:
    """Bubbles in the gel: bright rings with a highlight, in one image of five."""
    if rng.random() > 0.2:
        return colour
    size = len(colour)
    canvas = Image.new("L", (size, size))
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(1, 9)):
        x, y = rng.uniform(0, size, 2)
        radius = size * rng.exponential(0.02) + size * 0.01
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, outline=130, width=max(1, size // 100))
        start = rng.uniform(0, 360)
        draw.arc(box, start, start + 80, fill=255, width=max(1, size // 50))
    canvas = canvas.filter(ImageFilter.GaussianBlur(size / 200))
    shine = np.asarray(canvas, np.float32)[..., None] * np.float32(0.6 / 255)
    result: Floats = colour + shine * (np.float32(1) - colour)
    return result


def _light(rng: np.random.Generator, size: int) -> Floats:
    """Brightness of the lamp, about 0.6 to 1.2: brighter on one side, darker to the corners."""
    y, x = _grid(size)
    slope_y, slope_x = rng.normal(0, 0.06), rng.normal(0, 0.06)
    vignette = rng.uniform(0, 0.2) * (y**2 + x**2)
    brightness = rng.uniform(0.95, 1.2) + slope_y * y + slope_x * x - vignette
    return np.asarray(brightness, np.float32)


def _blur(mask: NDArray[np.bool_], sigma: float) -> Floats:
    """The mask's Gaussian blur, 0 to 1; sigma as a share of the side."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    blurred = picture.filter(ImageFilter.GaussianBlur(sigma * len(mask)))
    return np.asarray(blurred, np.float32) * np.float32(1 / 255)


def _sigmoid(field: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-field.clip(-30, 30))), np.float32)
