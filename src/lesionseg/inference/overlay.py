"""A photograph with the outlines of its predicted mask."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from skimage.measure import approximate_polygon

from lesionseg.data.images import read_image
from lesionseg.outlines import CASING, COLOR, Region

LONGER_SIDE = 1024  # pixels, at most, of an overlay
_LINE_WIDTH = (2, 0.004)  # in pixels, and as a share of the longer side: the larger one counts
_TOLERANCE = 0.5  # pixels between the outline and the drawn line
_RIM_WIDTH = 1  # pixels
_SAMPLES = 2  # drawn at twice the size, for smooth lines


def draw_regions(path: Path, regions: Sequence[Region], *, size: tuple[int, int]) -> Image.Image:
    """The image at `LONGER_SIDE` or its own size, whichever is smaller, with outlines on it.

    Args:
        path: The image.
        regions: The regions of the predicted mask.
        size: (H, W) of the image in pixels, to which the regions' coordinates belong.

    Raises:
        DataError: The image cannot be read.
    """
    height, width = size
    scale = min(1.0, LONGER_SIDE / max(height, width))
    shown = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = Image.fromarray(read_image(path, at_least=LONGER_SIDE // 2)).resize(
        (shown[0] * _SAMPLES, shown[1] * _SAMPLES), Image.Resampling.BILINEAR
    )
    canvas = ImageDraw.Draw(image)
    factors = np.array(image.size) / (width, height)
    outlines = [
        # Drawing the steps between pixels, hardly visible here, would take most of the time.
        (approximate_polygon(ring * factors, _TOLERANCE * _SAMPLES) - 0.5).ravel().tolist()
        for region in regions
        for ring in region.rings
    ]
    line_width = max(_LINE_WIDTH[0], round(_LINE_WIDTH[1] * max(shown)))
    for color, drawn in ((CASING, line_width + 2 * _RIM_WIDTH), (COLOR, line_width)):
        for outline in outlines:
            canvas.line(outline, fill=color, width=drawn * _SAMPLES, joint="curve")
    return image.resize(shown, Image.Resampling.BOX)
