"""Photographs with their masks: arrays in, a matplotlib `Figure` out, no files."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from lesionseg.outlines import CASING, find_outlines
from lesionseg.report.style import (
    RUN_BRIGHT_COLORS,
    RUN_STYLES,
    TRUTH,
    styled,
)
from lesionseg.results.vocabulary import RUN_LABELS

_IMAGE_SIDE = 2.56  # inches; at 100 dpi an image has 256 pixels a side in the figure


@styled
def draw_overlay(
    image: NDArray[np.uint8],
    truth: NDArray[Any],
    predictions: dict[str, NDArray[Any]],
    *,
    legend: bool = True,
) -> Figure:
    """An image with the outlines of its mask and of the predictions.

    Args:
        image: (H, W, 3) uint8.
        truth: (h, w) in [0, 1], of any size; stretched over the image.
        predictions: For each run its mask, like `truth`.
        legend: Whether to explain the colours under the image.
    """
    figure = Figure(figsize=(_IMAGE_SIDE, _IMAGE_SIDE + (0.35 if legend else 0)))
    share = _IMAGE_SIDE / figure.get_figheight()
    axes = figure.add_axes((0, 1 - share, 1, share))
    axes.imshow(image, aspect="auto")
    axes.set_axis_off()
    size = image.shape[:2]
    _draw_contours(axes, truth, size=size, color=TRUTH, linestyle="-", linewidth=2.2)
    for run, mask in reversed(predictions.items()):  # the dashes of frozen go on top
        color = RUN_BRIGHT_COLORS[run]
        _draw_contours(axes, mask, size=size, color=color, linestyle=RUN_STYLES[run])
    if legend:
        figure.legend(handles=_overlay_legend(predictions), loc="lower center", ncols=3, fontsize=8)
    return figure


def _draw_contours(
    axes: Axes,
    mask: NDArray[Any],
    *,
    size: tuple[int, ...],
    color: str,
    linestyle: str,
    linewidth: float = 1.6,
) -> None:
    rim = withStroke(linewidth=linewidth + 1.2, foreground=CASING)
    for outline in find_outlines(mask, tolerance=0.25):
        rows, columns = (outline / mask.shape * size - 0.5).T
        axes.plot(
            columns,
            rows,
            color=color,
            linestyle=linestyle,
            linewidth=linewidth,
            path_effects=[rim],
        )


def _overlay_legend(predictions: Mapping[str, Any]) -> list[Line2D]:
    rim = [withStroke(linewidth=2.8, foreground=CASING)]
    truth = Line2D([], [], color=TRUTH, linewidth=1.6, path_effects=rim, label="truth")
    runs = [
        Line2D(
            [],
            [],
            color=RUN_BRIGHT_COLORS[run],
            linestyle=RUN_STYLES[run],
            linewidth=1.6,
            path_effects=rim,
            label=RUN_LABELS[run],
        )
        for run in predictions
    ]
    return [truth, *runs]


@styled
def draw_samples(
    images: NDArray[np.uint8], masks: NDArray[np.uint8], *, num_columns: int = 4
) -> Figure:
    """Images in rows of `num_columns`, each with its mask below.

    Args:
        images: (N, H, W, 3) uint8.
        masks: (N, H, W) uint8 in {0, 1}.
        num_columns: Images in a row.
    """
    num_columns = min(num_columns, len(images))
    num_rows = -(-len(images) // num_columns)
    figure = Figure(figsize=(1.7 * num_columns, 3.4 * num_rows), layout="constrained")
    panels = figure.subplots(2 * num_rows, num_columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        row, column = divmod(number, num_columns)
        panels[2 * row, column].imshow(image)
        panels[2 * row + 1, column].imshow(mask, cmap="gray", vmin=0, vmax=1)
    return figure
