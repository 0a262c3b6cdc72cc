"""Figures of scores: tables in, a matplotlib `Figure` out, no files; and figures as SVG."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, PercentFormatter
from PIL import Image

from lesionseg.report.style import (
    INK,
    PAPER,
    RUN_COLORS,
    RUN_FILLS,
    RUN_MARKERS,
    RUN_STYLES,
    styled,
)
from lesionseg.results.evaluation import Compared, Comparison
from lesionseg.results.layout import FINETUNED, FROZEN
from lesionseg.results.vocabulary import METRICS, RUN_LABELS, SCOPES, STRATA

# The names of these colours, light or dark, in the pages' style sheet.
_PAGE_COLORS = {
    INK: "currentColor",
    PAPER: "var(--card)",
    RUN_COLORS[FROZEN]: "var(--frozen)",
    RUN_COLORS[FINETUNED]: "var(--finetuned)",
}


@styled
def draw_curves(
    histories: Mapping[str, pd.DataFrame],
    *,
    quantities: Sequence[str] = ("loss", "jaccard", "dice"),
) -> Figure:
    """Curves over the epochs, a panel for each quantity, the epoch of the best val jaccard marked.

    Args:
        histories: For each run its epochs: columns `epoch`, `train_loss` and `val_<quantity>`.
        quantities: The panels. The panel of the validation loss has the training loss dotted.
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


@styled
def draw_differences(
    comparison: Mapping[str, Mapping[str, Compared]], *, labels: Mapping[str, str]
) -> Figure:
    """Fine-tuned minus frozen with its interval for each metric; right of 0, fine-tuned is better.

    Args:
        comparison: By scope and metric. hd95 is left out: its scale differs, and lower is better.
        labels: The scopes to draw and their names in the legend.
    """
    figure = Figure(figsize=(4.9, 4), layout="constrained")
    axes = figure.subplots()
    metrics = [name for name in comparison[next(iter(labels))] if not METRICS[name].lower_is_better]
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


@styled
def draw_sets(comparisons: Mapping[str, Comparison]) -> Figure:
    """Jaccard, fine-tuned minus frozen, on each test set with its interval, at both sizes.

    Args:
        comparisons: By the test set's name, from top to bottom.
    """
    figure = Figure(figsize=(4.9, 1.3 + 0.55 * len(comparisons)), layout="constrained")
    axes = figure.subplots()
    for row, comparison in enumerate(comparisons.values()):
        for scope, marker, shift in zip(SCOPES, "os", (-0.14, 0.14), strict=True):
            result = comparison.at(scope)["jaccard"]
            _draw_interval(axes, result, place=row + shift, marker=marker)
    axes.axvline(0, color=INK, linewidth=1)
    names = [f"{name}\n{one.num_images} images" for name, one in comparisons.items()]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("jaccard, fine-tuned minus frozen")
    markers = [
        Line2D([], [], color=INK, linestyle="", marker=marker, markersize=5, label=label)
        for label, marker in (("at the network's size", "o"), ("at own size", "s"))
    ]
    figure.legend(handles=markers, loc="outside upper right", ncols=2, fontsize=8.5)
    return figure


def _draw_interval(axes: Axes, result: Compared, *, place: float, marker: str) -> None:
    low, high = result.interval
    color = INK
    if low > 0:
        color = RUN_COLORS["train_finetuned"]
    elif high < 0:
        color = RUN_COLORS["train_frozen"]
    axes.plot([low, high], [place, place], color=color, linewidth=1.8)
    axes.plot(result.difference, place, color=color, marker=marker, markersize=6)


@styled
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


@styled
def draw_reliability(calibration: pd.DataFrame) -> Figure:
    """Share of lesion pixels against their mean probability; on the diagonal, both agree.

    Above the diagonal a model is less sure of lesion than it could be, below it too sure. The panel
    underneath counts the pixels of each bin, on a logarithmic scale. Empty bins are left out.

    Args:
        calibration: A row for each bin: `probability_low` and `probability_high`, and for each run
            `<run>_num_pixels`, `<run>_probability` and `<run>_lesion_fraction`.
    """
    figure = Figure(figsize=(4.8, 5.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
    edges = [*calibration["probability_low"], calibration["probability_high"].iloc[-1]]
    for run in RUN_LABELS:
        num_pixels = calibration[f"{run}_num_pixels"]
        filled = calibration[num_pixels > 0]
        upper.plot(filled[f"{run}_probability"], filled[f"{run}_lesion_fraction"], **_look(run))
        color, style = RUN_COLORS[run], RUN_STYLES[run]
        counts = num_pixels.where(num_pixels > 0)  # 0 has no logarithm
        lower.stairs(counts, edges, baseline=None, color=color, linestyle=style, linewidth=1.5)
    upper.plot([0, 1], [0, 1], color=INK, linewidth=1, alpha=0.5, zorder=1, label="calibrated")
    lower.set_yscale("log")
    lower.yaxis.set_major_formatter(EngFormatter(sep=""))
    lower.set(ylabel="pixels", xlabel="probability of lesion")
    upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="share that is lesion")
    upper.legend(loc="upper left", fontsize=8.5)
    return figure


@styled
def draw_thresholds(thresholds: pd.DataFrame, *, chosen: float) -> Figure:
    """Mean jaccard and dice over the val images against the threshold, each model's best marked.

    Args:
        thresholds: `threshold`, and for each run `<run>_jaccard` and `<run>_dice`.
        chosen: The threshold that all other scores use.
    """
    figure = Figure(figsize=(7.4, 3.1), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("jaccard", "dice"), strict=True):
        axes.axvline(chosen, color=INK, linewidth=1, linestyle=":", label=f"used: {chosen:g}")
        for run in RUN_LABELS:
            values = thresholds[f"{run}_{metric}"]
            best = int(values.to_numpy().argmax())
            label = f"{RUN_LABELS[run]}, best at {thresholds['threshold'].iloc[best]:g}"
            look = {**_look(run), "label": label, "markevery": [best], "markersize": 7}
            axes.plot(thresholds["threshold"], values, **look)
        axes.set(title=f"val/{metric}", xlabel="threshold", xlim=(0, 1))
        legend = axes.legend(loc="lower center", fontsize=8.5, frameon=True, edgecolor="none")
        legend.get_frame().set(facecolor=PAPER, alpha=0.9)
    return figure


@styled
def draw_strata(strata: pd.DataFrame) -> Figure:
    """Mean jaccard and failure rate of both models in each group of test images.

    Args:
        strata: A row for each group: `stratum`, `group` and `num_images`, and for each run
            `<run>_jaccard` and `<run>_failure_rate`, in [0, 1].
    """
    places, labels = _strata_rows(strata)
    height = 0.23 * (places[-1] + 1) + 0.9
    figure = Figure(figsize=(7, height), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    for axes, name in zip(panels, ("jaccard", "failure_rate"), strict=True):
        _draw_dumbbells(axes, strata, places=places, name=name)
        axes.set_title("mean jaccard" if name == "jaccard" else "failure rate")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    ticks = panels[0].set_yticks(list(labels), list(labels.values()))
    for tick, place in zip(ticks, labels, strict=True):
        tick.label1.set_fontweight("normal" if place in places else "bold")
    panels[0].set_ylim(places[-1] + 0.7, -0.7)
    panels[1].xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    right = panels[1].get_xlim()[1]
    panels[1].set_xlim(-0.05 * right, right)  # room for marks at 0, but no rates below it
    handles = panels[0].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8.5)
    return figure


def _strata_rows(strata: pd.DataFrame) -> tuple[list[int], dict[int, str]]:
    """The place of each group from the top, and the text at each place, strata's names included."""
    places: list[int] = []
    labels: dict[int, str] = {}
    previous = "all"  # needs no heading
    for row in strata.to_dict("records"):
        stratum, group = str(row["stratum"]), str(row["group"])
        if stratum != previous:
            labels[len(labels)] = STRATA[stratum].label if stratum in STRATA else stratum
            previous = stratum
        places.append(len(labels))
        name = "all images" if stratum == "all" else group
        labels[len(labels)] = f"{name} (n = {row['num_images']})"
    return places, labels


def _draw_dumbbells(axes: Axes, table: pd.DataFrame, *, places: Sequence[int], name: str) -> None:
    """For each row two marks and the line between them; when they meet, one is inside the other."""
    frozen, finetuned = (table[f"{run}_{name}"] for run in RUN_LABELS)
    axes.hlines(places, frozen, finetuned, color=INK, linewidth=2, alpha=0.3)
    for run, values, size in zip(RUN_LABELS, (frozen, finetuned), (8, 4.5), strict=True):
        axes.plot(values, places, **{**_look(run), "linestyle": "", "markersize": size})


@styled
def draw_seeds(seeds: pd.DataFrame, *, metric: str = "jaccard") -> Figure:
    """The mean over test images of each training seed, both models of a seed joined by a line.

    With more than one seed, their mean and standard deviation (over seeds, N - 1) are drawn beside
    them, and given as text.

    Args:
        seeds: Columns `run`, `seed`, `scope` and `metric`.
        metric: Which of the metrics to draw.
    """
    rows = seeds[seeds["scope"] == "test"]
    means = rows.pivot(index="seed", columns="run", values=metric)[list(RUN_LABELS)]
    figure = Figure(figsize=(4.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for values in means.to_numpy():
        axes.plot([0, 1], values, color=INK, linewidth=1, alpha=0.35)
    labels = []
    for place, (run, label) in enumerate(RUN_LABELS.items()):
        look = {**_look(run), "linestyle": ""}
        axes.plot([place] * len(means), means[run], **look)
        labels.append(label)
        if len(means) > 1:
            mean, sd = float(means[run].mean()), float(means[run].std())
            beside = place + (0.2 if place else -0.2)
            axes.errorbar(beside, mean, yerr=sd, **{**look, "markersize": 8, "capsize": 4})
            labels[-1] += f"\n{mean:.3f} ± {sd:.3f}"
    axes.set_xticks([0, 1], labels)
    axes.grid(visible=False, axis="x")
    axes.ticklabel_format(axis="y", useOffset=False)  # seeds may differ in the fourth digit only
    axes.set(xlim=(-0.5, 1.5), title=f"test/{metric}")
    return figure


def _look(run: str) -> dict[str, Any]:
    """How a run's curve and marks look, and its name in a legend."""
    return {
        "color": RUN_COLORS[run],
        "linestyle": RUN_STYLES[run],
        "marker": RUN_MARKERS[run],
        "markerfacecolor": RUN_FILLS[run],
        "markersize": 5.5,
        "label": RUN_LABELS[run],
    }


def render_svg(figure: Figure) -> str:
    """The figure as SVG text, the same for the same figure; photographs inside are JPEG."""
    stream = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": "lesionseg", "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata=nothing)
    return re.sub(r"data:image/png;base64,([\w+/=\s]+)", _png_to_jpeg, stream.getvalue())


def inline_svg(name: str, svg: str) -> Markup:
    """The SVG element for a page, with ids of its own and in the page's colours, light or dark.

    Args:
        name: Name of the figure, unique on the page.
        svg: As from `render_svg`.
    """
    element = svg[svg.index("<svg") :]
    element = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", element)
    for color, replacement in _PAGE_COLORS.items():
        element = element.replace(color, replacement)
    return Markup(element)  # drawn here: matplotlib escapes all text in it


def _png_to_jpeg(png: re.Match[str]) -> str:
    """An image's data URI as JPEG, with a tenth of the bytes."""
    image = Image.open(io.BytesIO(base64.b64decode(png[1])))
    stream = io.BytesIO()
    image.convert("RGB").save(stream, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
