"""Figures of scores, images and masks: arrays and tables in, a matplotlib `Figure` out, no files.

Each run has one hue, from the palette of Okabe and Ito (2008) that colour-blind people tell apart,
and one line style, so that a print without colour can be read as well.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from PIL import Image
from skimage.measure import approximate_polygon, find_contours

RUN_LABELS = {"train_frozen": "frozen", "train_finetuned": "fine-tuned"}
RUN_COLORS = {"train_frozen": "#d55e00", "train_finetuned": "#0072b2"}
RUN_BRIGHT_COLORS = {"train_frozen": "#e69f00", "train_finetuned": "#56b4e9"}  # on photographs
RUN_STYLES: Mapping[str, Any] = {"train_frozen": "--", "train_finetuned": "-"}
INK = "#1f2328"  # text, ticks and grid
PAPER = "#fefefe"  # background; with INK, a page may replace both for its dark mode
TRUTH = "#ffffff"
CASING = "#000000"  # a rim around contours, seen on any skin

_STYLE: Any = {  # Any: rc_context wants its own literal types
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.facecolor": PAPER,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.dpi": 100,
    "figure.facecolor": PAPER,
    "font.size": 10,
    "grid.alpha": 0.12,
    "grid.color": INK,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
_styled = matplotlib.rc_context(_STYLE)
_IMAGE_SIDE = 2.56  # inches; at 100 dpi an image has 256 pixels a side in the figure


@_styled
def draw_curves(
    histories: Mapping[str, pd.DataFrame],
    *,
    quantities: Sequence[str] = ("loss", "jaccard", "dice"),
) -> Figure:
    """Curves over the epochs, a panel for each quantity, the epoch of the best val jaccard marked.

    Args:
        histories: For each run its epochs: columns `epoch`, `train_loss` and `val_<quantity>`.
        quantities: The panels. Beside the validation loss, the training loss is dotted.
    """
    figure = Figure(figsize=(3.7 * len(quantities), 3), layout="constrained")
    panels = figure.subplots(1, len(quantities), squeeze=False)[0]
    for axes, quantity in zip(panels, quantities, strict=True):
        for run, history in histories.items():
            _draw_curve(axes, history, run=run, quantity=quantity)
        axes.set(title=f"val/{quantity}", xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(handles=_curve_legend(histories, quantity=quantity), fontsize=8.5)
    return figure


def _draw_curve(axes: Axes, history: pd.DataFrame, *, run: str, quantity: str) -> None:
    color, values = RUN_COLORS[run], history[f"val_{quantity}"]
    axes.plot(history["epoch"], values, color=color, linestyle=RUN_STYLES[run])
    if quantity == "loss":
        axes.plot(history["epoch"], history["train_loss"], color=color, linestyle=":")
    best = int(history["val_jaccard"].to_numpy().argmax())
    axes.plot(history["epoch"].iloc[best], values.iloc[best], color=color, marker="o", markersize=7)


def _curve_legend(histories: Mapping[str, pd.DataFrame], *, quantity: str) -> list[Line2D]:
    lines = [
        Line2D([], [], color=RUN_COLORS[run], linestyle=RUN_STYLES[run], label=RUN_LABELS[run])
        for run in histories
    ]
    if quantity == "loss":
        lines.append(Line2D([], [], color=INK, linestyle=":", label="on train"))
    best = Line2D([], [], color=INK, linestyle="", marker="o", label="best epoch")
    return [*lines, best]


@_styled
def draw_differences(comparison: Mapping[str, Any], *, labels: Mapping[str, str]) -> Figure:
    """Fine-tuned minus frozen with its interval for each metric; right of 0, fine-tuned is better.

    Args:
        comparison: `{scope: {metric: {"difference": d, "interval": [low, high]}}}`.
        labels: The scopes to draw and their names in the legend.
    """
    figure = Figure(figsize=(4.9, 4), layout="constrained")
    axes = figure.subplots()
    metrics = list(comparison[next(iter(labels))])
    for number, (scope, marker) in enumerate(zip(labels, "osD^", strict=False)):
        for row, metric in enumerate(metrics):
            place = row + 0.28 * (number - (len(labels) - 1) / 2)
            _draw_interval(axes, comparison[scope][metric], place=place, marker=marker)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(range(len(metrics)), [metric.replace("_", " ") for metric in metrics])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("fine-tuned minus frozen")
    markers = [
        Line2D([], [], color=INK, linestyle="", marker=marker, markersize=5, label=label)
        for label, marker in zip(labels.values(), "osD^", strict=False)
    ]
    figure.legend(handles=markers, loc="outside upper right", ncols=len(labels), fontsize=8.5)
    return figure


def _draw_interval(axes: Axes, result: Mapping[str, Any], *, place: float, marker: str) -> None:
    low, high = result["interval"]
    color = INK
    if low > 0:
        color = RUN_COLORS["train_finetuned"]
    elif high < 0:
        color = RUN_COLORS["train_frozen"]
    axes.plot([low, high], [place, place], color=color, linewidth=1.8)
    axes.plot(result["difference"], place, color=color, marker=marker, markersize=6)


@_styled
def draw_scatter(per_image: pd.DataFrame, *, scope: str = "test") -> Figure:
    """The jaccard of both models for each image; above the diagonal, fine-tuned is better.

    Args:
        per_image: Columns `id`, `run`, `scope` and `jaccard`.
        scope: Which of the scopes to draw.
    """
    rows = per_image[per_image["scope"] == scope]
    scores = rows.pivot(index="id", columns="run", values="jaccard")
    frozen, finetuned = scores["train_frozen"], scores["train_finetuned"]
    figure = Figure(figsize=(4.8, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, alpha=0.5)
    for run, better in (
        ("train_finetuned", finetuned > frozen),
        ("train_frozen", frozen > finetuned),
    ):
        label = f"{RUN_LABELS[run]} better: {better.sum()} of {len(scores)}"
        _draw_points(axes, scores[better], color=RUN_COLORS[run], label=label)
    equal = frozen == finetuned
    if equal.any():
        _draw_points(axes, scores[equal], color=INK, label=f"equal: {equal.sum()} of {len(scores)}")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.set(xlabel="jaccard, frozen", ylabel="jaccard, fine-tuned")
    axes.legend(loc="lower right", fontsize=8.5)
    return figure


def _draw_points(axes: Axes, scores: pd.DataFrame, *, color: str, label: str) -> None:
    axes.plot(
        scores["train_frozen"],
        scores["train_finetuned"],
        color=color,
        label=label,
        linestyle="",
        marker="o",
        markersize=4.5,
        alpha=0.7,
        markeredgewidth=0,
    )


@_styled
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
        truth: (h, w) in [0, 1], of any size; it is stretched over the image.
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
    for run, mask in reversed(predictions.items()):  # the frozen one's dashes come on top
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
    padded = np.pad(mask.astype(float), 1)  # closes the outline of a lesion at the border
    rim = withStroke(linewidth=linewidth + 1.2, foreground=CASING)
    for contour in find_contours(padded, 0.5):
        outline = approximate_polygon(contour, 0.25)
        rows, columns = ((outline - 0.5) / mask.shape * size - 0.5).T
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


@_styled
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


def render_svg(figure: Figure) -> str:
    """The figure as SVG text, the same for the same figure; photographs inside are JPEG."""
    stream = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": "lesionseg", "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata=nothing)
    return re.sub(r"data:image/png;base64,([\w+/=\s]+)", _png_to_jpeg, stream.getvalue())


def _png_to_jpeg(png: re.Match[str]) -> str:
    """A tenth of the bytes of an image's data URI."""
    image = Image.open(io.BytesIO(base64.b64decode(png[1])))
    stream = io.BytesIO()
    image.convert("RGB").save(stream, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
