"""Figures of a learning curve: a record in, a matplotlib `Figure` out, no files."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from lesionseg.curve.record import Curve, Estimate, Guess, Prediction, SetCurve
from lesionseg.curve.text import title
from lesionseg.report.style import (
    INK,
    RUN_COLORS,
    RUN_FILLS,
    RUN_MARKERS,
    RUN_STYLES,
    styled,
)
from lesionseg.results.layout import FROZEN, RUNS
from lesionseg.results.vocabulary import RUN_LABELS

_BAND = 0.16  # opacity
_MOST_BESIDE = 3  # sets side by side
_ASIDE = 0.03  # shift of a guess, so that those of both models are side by side


@styled
def draw_curve(curve: Curve, *, names: Sequence[str] | None = None) -> Figure:
    """Jaccard against the number of training images, and the models' difference underneath.

    A panel for each set of test images. Lines are means over the seeds, bands their intervals,
    short strokes the seeds; the dotted line, to twice as many images, is the guess.

    Args:
        curve: What to draw.
        names: Names of the sets to draw; all of them if None.
    """
    sets = [one for one in curve.sets if names is None or one.name in names]
    num_columns = min(len(sets), _MOST_BESIDE)
    num_rows = math.ceil(len(sets) / num_columns)
    figure = Figure(figsize=(4.1 * num_columns, 5.2 * num_rows), layout="constrained")
    panels = figure.subplots(
        2 * num_rows, num_columns, sharex="col", squeeze=False, height_ratios=[2, 1] * num_rows
    )
    for place in range(num_rows * num_columns):
        row, column = divmod(place, num_columns)
        upper, lower = panels[2 * row, column], panels[2 * row + 1, column]
        if place < len(sets):
            _draw_set(upper, lower, sets[place])
        else:
            upper.remove()
            lower.remove()
    handles = panels[0, 0].get_legend_handles_labels()[0]
    if any(one.guess for one in sets):
        handles.append(Line2D([], [], color=INK, linestyle=":", marker="x", label="guess"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8.5)
    return figure


def _draw_set(upper: Axes, lower: Axes, one: SetCurve) -> None:
    for run in RUNS:
        _draw_model(upper, one, run)
    _draw_difference(lower, one)
    upper.set_title(title(one), parse_math=False)
    upper.set_ylabel("jaccard")
    lower.set(ylabel="fine-tuned\nminus frozen", xlabel="training images")
    lower.xaxis.set_tick_params(labelbottom=True)
    _number_sizes(lower, one)


def _draw_model(axes: Axes, one: SetCurve, run: str) -> None:
    sizes, points = [point.num_images for point in one.points], one.points
    color = RUN_COLORS[run]
    estimates = [point.at(run) for point in points]
    _draw_band(axes, sizes, estimates, color=color)
    for size, estimate in zip(sizes, estimates, strict=True):
        axes.plot([size] * len(estimate.values), estimate.values, "_", color=color, alpha=0.45)
    axes.plot(
        sizes,
        [estimate.mean for estimate in estimates],
        color=color,
        linestyle=RUN_STYLES[run],
        marker=RUN_MARKERS[run],
        markerfacecolor=RUN_FILLS[run],
        markersize=5.5,
        label=RUN_LABELS[run],
    )
    if one.guess:
        _draw_guess(axes, one, one.guess, run)


def _draw_band(
    axes: Axes, sizes: Sequence[int], estimates: Sequence[Estimate], *, color: str
) -> None:
    """The intervals of estimates, if they have them."""
    intervals = [estimate.interval for estimate in estimates if estimate.interval]
    if intervals:
        low, high = zip(*intervals, strict=True)
        axes.fill_between(sizes, low, high, color=color, alpha=_BAND, linewidth=0)


def _draw_guess(axes: Axes, one: SetCurve, guess: Guess, run: str) -> None:
    """The law from the largest size to twice that, and the guess there with its interval."""
    law, last = guess.at(run), one.points[-1].num_images
    sizes = [last * 2 ** (step / 10) for step in range(11)]
    jaccards = [1 - law.a - law.b * size**-law.c for size in sizes]
    color = RUN_COLORS[run]
    axes.plot(sizes, jaccards, color=color, linestyle=":")
    beside = sizes[-1] * (1 - _ASIDE if run == FROZEN else 1 + _ASIDE)
    _draw_prediction(axes, beside, law.jaccard, color=color)


def _draw_prediction(axes: Axes, place: float, prediction: Prediction, *, color: str) -> None:
    axes.plot(place, prediction.value, color=color, marker="x", markersize=5)
    if prediction.interval:
        axes.plot([place] * 2, prediction.interval, color=color, linewidth=1.2, alpha=0.7)


def _draw_difference(axes: Axes, one: SetCurve) -> None:
    sizes = [point.num_images for point in one.points]
    differences = [point.difference for point in one.points]
    axes.axhline(0, color=INK, linewidth=1)
    _draw_band(axes, sizes, differences, color=INK)
    axes.plot(sizes, [one.mean for one in differences], color=INK, marker="o", markersize=4)
    if one.guess:
        _draw_prediction(axes, one.guess.num_images, one.guess.difference, color=INK)


def _number_sizes(axes: Axes, one: SetCurve) -> None:
    """A logarithmic axis whose ticks are the sizes."""
    sizes = [point.num_images for point in one.points]
    sizes += [one.guess.num_images] if one.guess else []
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(sizes, [str(size) for size in sizes])
