"""Figures show the numbers they are given, all of them, and say whose they are."""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from lesionseg.report import figures, style
from tests.trained_results import compare_one

RUNS = ("train_frozen", "train_finetuned")
EMPTY_BIN = 7


def make_calibration() -> pd.DataFrame:
    """15 bins; one is empty for the fine-tuned model."""
    low = np.arange(15) / 15
    table = pd.DataFrame({"probability_low": low, "probability_high": low + 1 / 15})
    for number, run in enumerate(RUNS):
        table[f"{run}_num_pixels"] = (1e6 * np.exp(-8 * low) + 100 * (number + 1)).astype(int)
        table[f"{run}_probability"] = low + 0.03 + 0.01 * number
        table[f"{run}_lesion_fraction"] = low ** (1.5 + number)
    table.loc[EMPTY_BIN, "train_finetuned_num_pixels"] = 0
    blank = ["train_finetuned_probability", "train_finetuned_lesion_fraction"]
    table.loc[EMPTY_BIN, blank] = np.nan
    return table


def make_thresholds() -> pd.DataFrame:
    """The frozen model's jaccard is best at 0.35 and its dice at 0.4, the other's 0.1 above."""
    thresholds = np.linspace(0.05, 0.95, 19).round(2)
    table = pd.DataFrame({"threshold": thresholds})
    for number, run in enumerate(RUNS):
        table[f"{run}_jaccard"] = 0.7 - (thresholds - 0.35 - 0.1 * number) ** 2
        table[f"{run}_dice"] = 0.8 - (thresholds - 0.4 - 0.1 * number) ** 2
    return table


def make_strata() -> pd.DataFrame:
    groups = [("all", "all", 30), ("size", "small", 20), ("size", "large", 10)]
    groups += [("hair", "none", 29), ("hair", "some", 1)]
    table = pd.DataFrame(groups, columns=["stratum", "group", "num_images"])
    for number, run in enumerate(RUNS):
        table[f"{run}_jaccard"] = [0.7 + 0.02 * number + 0.01 * row for row in range(5)]
        table[f"{run}_failure_rate"] = [0.3 - 0.05 * number - 0.02 * row for row in range(5)]
    return table


def make_seeds(num_seeds: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        {"run": run, "seed": seed, "scope": scope, "jaccard": rng.random(), "dice": rng.random()}
        for seed in range(num_seeds)
        for run in RUNS
        for scope in ("test", "test_own_size")
    ]
    return pd.DataFrame(rows)


def make_comparison(*metrics: str) -> dict:
    result = compare_one(difference=0.02, interval=(0.01, 0.03))
    return {scope: dict.fromkeys(metrics, result) for scope in ("test", "test_own_size")}


DRAWERS = {
    "reliability": lambda: figures.draw_reliability(make_calibration()),
    "thresholds": lambda: figures.draw_thresholds(make_thresholds(), chosen=0.5),
    "strata": lambda: figures.draw_strata(make_strata()),
    "seeds": lambda: figures.draw_seeds(make_seeds()),
    "one seed": lambda: figures.draw_seeds(make_seeds(1)),
    "differences": lambda: figures.draw_differences(
        make_comparison("jaccard", "threshold_jaccard"),
        labels={"test": "test", "test_own_size": "test, own size"},
    ),
}


@pytest.fixture(params=DRAWERS)
def draw(request):
    return DRAWERS[request.param]


def lines_of(axes, run):
    """What is drawn in a run's colour, as arrays (N, 2)."""
    lines = [line for line in axes.lines if to_hex(line.get_color()) == style.RUN_COLORS[run]]
    return [np.asarray(line.get_xydata(), dtype=float) for line in lines]


def legend_of(owner):
    (legend,) = getattr(owner, "legends", None) or [owner.get_legend()]
    return [text.get_text() for text in legend.get_texts()]


def test_a_figure_drawn_twice_is_the_same_svg_to_the_byte(draw):
    assert figures.render_svg(draw()) == figures.render_svg(draw())


def test_a_page_can_replace_every_colour(draw):
    colors = set(re.findall(r"#[0-9a-f]{6}\b", figures.render_svg(draw())))
    assert colors <= {style.INK, style.PAPER, *style.RUN_COLORS.values()}


@pytest.mark.parametrize("run", RUNS)
def test_outlines_on_the_page_have_the_colours_of_those_in_figures(run):
    css = Path(style.__file__).with_name("page.css").read_text()
    colors = re.findall(rf"\.{run} \.line {{ stroke: (#\w+); }}", css)
    assert colors == [style.RUN_BRIGHT_COLORS[run]]


def test_names_from_tables_are_escaped():
    hostile = "<script>alert('&\"')<b>"
    svg = figures.render_svg(figures.draw_strata(make_strata().replace("small", hostile)))
    assert hostile not in svg
    assert f"{hostile} (n = 20)" in ElementTree.fromstring(svg).itertext()


def test_nothing_is_cut_off_at_the_edge(draw):
    figure = draw()
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= width
    assert box.y1 <= height


def test_without_colour_runs_differ_by_line_marker_and_filling():
    for look in (style.RUN_STYLES, style.RUN_MARKERS, style.RUN_FILLS):
        assert look["train_frozen"] != look["train_finetuned"]


def test_reliability_is_drawn_from_the_bins_that_hold_pixels():
    table = make_calibration()
    curves, _ = figures.draw_reliability(table).axes
    for run, num_bins in zip(RUNS, (15, 14), strict=True):
        (drawn,) = lines_of(curves, run)
        expected = table[[f"{run}_probability", f"{run}_lesion_fraction"]].dropna()
        assert len(drawn) == num_bins
        np.testing.assert_array_equal(drawn, expected)


def test_pixels_of_bins_are_counted_on_a_logarithmic_scale_with_a_gap_where_there_are_none():
    table = make_calibration()
    _, counts = figures.draw_reliability(table).axes
    assert counts.get_yscale() == "log"
    for run, steps in zip(RUNS, counts.patches, strict=True):
        values, edges, _ = steps.get_data()
        expected = table[f"{run}_num_pixels"].replace(0, np.nan)
        np.testing.assert_array_equal(values, expected)
        np.testing.assert_allclose(edges, np.arange(16) / 15)


def test_reliability_names_both_models_and_the_diagonal():
    curves, _ = figures.draw_reliability(make_calibration()).axes
    assert legend_of(curves) == ["frozen", "fine-tuned", "calibrated"]


def test_thresholds_are_drawn_as_given_for_jaccard_and_dice():
    table = make_thresholds()
    panels = figures.draw_thresholds(table, chosen=0.5).axes
    for axes, metric in zip(panels, ("jaccard", "dice"), strict=True):
        assert axes.get_title(loc="left") == f"val/{metric}"
        for run in RUNS:
            (drawn,) = lines_of(axes, run)
            np.testing.assert_array_equal(drawn, table[["threshold", f"{run}_{metric}"]])


def test_each_model_s_best_threshold_is_marked_and_named():
    table = make_thresholds()
    jaccard, dice = figures.draw_thresholds(table, chosen=0.25).axes
    marks = [table["threshold"][line.get_markevery()].tolist() for line in jaccard.lines[1:]]
    assert marks == [[0.35], [0.45]]
    used = "used: 0.25"
    assert legend_of(jaccard) == [used, "frozen, best at 0.35", "fine-tuned, best at 0.45"]
    assert legend_of(dice) == [used, "frozen, best at 0.4", "fine-tuned, best at 0.5"]


def test_the_chosen_threshold_is_a_vertical_line():
    for axes in figures.draw_thresholds(make_thresholds(), chosen=0.25).axes:
        assert axes.lines[0].get_xdata() == [0.25, 0.25]


def test_groups_stand_under_their_stratum_with_their_number_of_images():
    jaccard, _ = figures.draw_strata(make_strata()).axes
    texts = [label.get_text() for label in jaccard.get_yticklabels()]
    groups = ["all images (n = 30)", "lesion size", "small (n = 20)", "large (n = 10)"]
    assert texts == [*groups, "hair", "none (n = 29)", "some (n = 1)"]
    bold = [label.get_text() for label in jaccard.get_yticklabels() if label.get_weight() == "bold"]
    assert bold == ["lesion size", "hair"]


@pytest.mark.parametrize(("panel", "name"), [(0, "jaccard"), (1, "failure_rate")])
def test_each_group_s_scores_lie_in_its_row(panel, name):
    table = make_strata()
    axes = figures.draw_strata(table).axes[panel]
    for run in RUNS:
        (drawn,) = lines_of(axes, run)
        expected = np.column_stack([table[f"{run}_{name}"], [0, 2, 3, 5, 6]])
        np.testing.assert_array_equal(drawn, expected)
    (bars,) = axes.collections
    ends = [segment[:, 0].tolist() for segment in bars.get_segments()]
    assert ends == table[[f"{run}_{name}" for run in RUNS]].to_numpy().tolist()


def test_rows_of_strata_run_downwards():
    bottom, top = figures.draw_strata(make_strata()).axes[0].get_ylim()
    assert bottom > top


def test_models_that_never_fail_stand_at_0_percent():
    table = make_strata().assign(**{f"{run}_failure_rate": 0.0 for run in RUNS})
    figure = figures.draw_strata(table)
    figure.draw_without_rendering()
    low, high = figure.axes[1].get_xlim()
    assert -0.01 < low < 0 < high


def test_both_models_of_a_seed_are_joined():
    seeds = make_seeds()
    axes = figures.draw_seeds(seeds).axes[0]
    means = seeds[seeds["scope"] == "test"].pivot(index="seed", columns="run", values="jaccard")
    pairs = [line.get_xydata() for line in axes.lines if to_hex(line.get_color()) == style.INK]
    assert len(pairs) == 3
    for pair, (_, values) in zip(pairs, means.iterrows(), strict=True):
        np.testing.assert_array_equal(pair, [(0, values[RUNS[0]]), (1, values[RUNS[1]])])


@pytest.mark.parametrize("metric", ["jaccard", "dice"])
def test_seeds_stand_beside_their_mean_and_standard_deviation(metric):
    seeds = make_seeds()
    axes = figures.draw_seeds(seeds, metric=metric).axes[0]
    texts = []
    for run, label in zip(RUNS, ("frozen", "fine-tuned"), strict=True):
        values = seeds[(seeds["run"] == run) & (seeds["scope"] == "test")][metric].to_numpy()
        mean, sd = values.mean(), np.sqrt(((values - values.mean()) ** 2).sum() / 2)
        points, centre, *caps = lines_of(axes, run)
        np.testing.assert_array_equal(points[:, 1], values)
        assert centre[0, 1] == pytest.approx(mean)
        assert [cap[0, 1] for cap in caps] == pytest.approx([mean - sd, mean + sd])
        texts.append(f"{label}\n{mean:.3f} ± {sd:.3f}")
    assert [text.get_text() for text in axes.get_xticklabels()] == texts
    assert axes.get_title(loc="left") == f"test/{metric}"


def test_a_single_seed_has_no_standard_deviation():
    axes = figures.draw_seeds(make_seeds(1)).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["frozen", "fine-tuned"]
    assert all(len(lines_of(axes, run)) == 1 for run in RUNS)


def test_the_order_of_rows_does_not_change_the_seeds():
    seeds = make_seeds()
    assert figures.render_svg(figures.draw_seeds(seeds[::-1])) == figures.render_svg(
        figures.draw_seeds(seeds)
    )


def test_differences_leave_out_the_metric_on_another_scale():
    comparison = make_comparison("jaccard", "hd95", "nsd")
    axes = figures.draw_differences(comparison, labels={"test": "test"}).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["jaccard", "nsd"]
    assert len(axes.lines) == 2 * 2 + 1  # an interval and its centre for each, and the line at 0
