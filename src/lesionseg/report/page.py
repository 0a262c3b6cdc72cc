"""The report: one HTML file that needs nothing else, from the files of the other stages."""

import functools
from collections.abc import Hashable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from lesionseg import files
from lesionseg.report import facts, figures
from lesionseg.report.external import answer_elsewhere, in_plain_words
from lesionseg.report.gallery import Case, choose_rows, read_cases, read_prediction
from lesionseg.report.inputs import IndexedSplit, Inputs, read_inputs
from lesionseg.report.overlays import draw_overlay, draw_samples
from lesionseg.report.scatter import SIDE, place_points
from lesionseg.results import vocabulary
from lesionseg.results.evaluation import Comparison
from lesionseg.results.layout import FINETUNED, FROZEN, RUNS, Results
from lesionseg.results.training import VAL_SCORES
from lesionseg.templates import load_template

_LEAK_COLUMNS = ["id", "split", "other_id", "other_split", "kind", "distance", "action"]
_MAX_LEAKS = 100


def write_report(
    results: Results,
    data_dir: Path,
    *,
    report_dir: Path,
    title: str,
    num_examples: int,
) -> Path:
    """The page that was written, `report_dir/report.html`, with its figures beside it as SVG.

    Args:
        results: Holds both trainings and their evaluation.
        data_dir: Holds `raw/`, `processed/` and `external/`, as written by the stages.
        report_dir: Replaced as a whole, or left as it was.
        title: The page's first line.
        num_examples: Images in each row of examples.

    Raises:
        MissingFileError: An input is missing; the message names the stage to run.
        DataError: An input is damaged, or was made from other files than the rest.
    """
    inputs = read_inputs(results, data_dir)
    cases = read_cases(inputs)
    drawn = draw_figures(inputs, cases, num_examples=num_examples)
    svgs = {name: figures.render_svg(figure) for name, figure in drawn.items()}
    html = render_page(inputs, cases, svgs, title=title, num_examples=num_examples)
    with files.replacing(report_dir) as temporary:
        (temporary / "figures").mkdir(parents=True)
        for name, svg in svgs.items():
            (temporary / "figures" / f"{name}.svg").write_text(svg, encoding="utf-8")
        (temporary / "report.html").write_text(html, encoding="utf-8")
    return report_dir / "report.html"


def answer(comparison: Comparison) -> str:
    """One sentence: which model is better, by how much, and how sure that is."""
    result = comparison.test["jaccard"]
    low, high = result.interval
    verb, verdict = "changes", "the interval contains 0, so no difference is shown on this data."
    if low > 0:
        verb, verdict = "raises", "fine-tuning is better on this data."
    elif high < 0:
        verb, verdict = "lowers", "the frozen encoder is better on this data."
    return (
        f"Fine-tuning {verb} the mean test jaccard from {result.train_frozen:.3f} "
        f"to {result.train_finetuned:.3f}, a difference of {_signed(result.difference)} "
        f"({100 * comparison.confidence:g} % interval {_signed(low)} to {_signed(high)} "
        f"over {comparison.num_images} images): {verdict}"
    )


def answer_of_seeds(comparison: Comparison) -> str:
    """One sentence: what other trainings say, if there were any."""
    seeds = comparison.seeds
    if seeds is None:
        return "Each model was trained once, so how much another training would differ is unknown."
    difference = seeds.test["jaccard"].difference
    return (
        f"Over {seeds.num_seeds} training seeds the difference is "
        f"{_signed(difference.mean)} on average (standard deviation {difference.sd:.3f}), "
        f"and fine-tuning is better in {difference.num_better} of {seeds.num_seeds}."
    )


def draw_figures(inputs: Inputs, cases: Sequence[Case], *, num_examples: int) -> dict[str, Figure]:
    """Every figure by the name of its file; predictions of the examples are read from their files.

    Raises:
        MissingFileError: A prediction is missing.
        DataError: It is damaged, or differs in size from its image.
    """
    train = inputs.splits["train"]
    spread = np.linspace(0, len(train.index) - 1, min(num_examples, len(train.index))).astype(int)
    drawn = {
        "differences": figures.draw_differences(
            {scope: inputs.comparison.at(scope) for scope in vocabulary.SCOPES},
            labels=vocabulary.SCOPE_LABELS,
        ),
        "scatter": figures.draw_scatter(inputs.per_image),
        "samples": draw_samples(train.images[spread], train.masks[spread]),
        "strata": figures.draw_strata(inputs.strata),
        "reliability": figures.draw_reliability(inputs.calibration),
        "thresholds": figures.draw_thresholds(
            inputs.thresholds, chosen=inputs.comparison.threshold
        ),
    }
    if inputs.external:
        others = {one.facts.name: one.comparison for one in inputs.external}
        drawn["sets"] = figures.draw_sets({"test": inputs.comparison, **others})
    if inputs.comparison.seeds:
        drawn["seeds"] = figures.draw_seeds(inputs.seeds)
    for quantity in ("loss", "jaccard", "dice"):
        drawn[f"curves_{quantity}"] = figures.draw_curves(inputs.histories, quantities=[quantity])
    for name, row in choose_rows(cases, num_examples=num_examples).items():
        for number, case in enumerate(row, start=1):
            drawn[f"{name}_{number}"] = _draw_overlay(inputs, case)
    return drawn


def _draw_overlay(inputs: Inputs, case: Case) -> Figure:
    """The case as the network sees it, for papers; the page draws its own."""
    test, row = inputs.splits["test"], inputs.test_rows[case.id]
    position = int(np.flatnonzero(test.index["id"] == case.id)[0])
    paths = {run: inputs.evaluation.mask(run, case.id) for run in RUNS}
    size = (row.height, row.width)
    return draw_overlay(
        test.images[position],
        test.masks[position],
        {run: read_prediction(path, size=size) for run, path in paths.items()},
    )


def render_page(
    inputs: Inputs,
    cases: Sequence[Case],
    svgs: Mapping[str, str],
    *,
    title: str,
    num_examples: int,
) -> str:
    """The page as HTML text, from what was read and drawn; only the template's files are opened.

    Args:
        inputs: As from `read_inputs`.
        cases: As from `read_cases`, for the same inputs.
        svgs: SVG text by figure, named as in `draw_figures`.
        title: The page's first line.
        num_examples: Images in each row of examples.
    """
    comparison, scatter = inputs.comparison, place_points(cases)
    return _load_template().render(
        # The words of the page and the files inlined into it.
        title=title,
        facts=facts.say_facts(inputs),
        style=Markup(_read_asset("page.css")),
        script=Markup(_read_asset("page.js")),
        labels=vocabulary.RUN_LABELS,
        outlines={"truth": "truth", **vocabulary.RUN_LABELS},
        terms=vocabulary,
        runs=RUNS,
        svgs={name: figures.inline_svg(name, svg) for name, svg in svgs.items()},
        # The answer and the comparison.
        answer=answer(comparison),
        answer_of_seeds=answer_of_seeds(comparison),
        answer_elsewhere=answer_elsewhere(comparison, inputs.external),
        in_plain_words=in_plain_words(inputs.scores, comparison.num_images),
        external=inputs.external,
        comparison=comparison,
        scores=inputs.scores,
        confidence=f"{100 * comparison.confidence:g} %",
        cross_validated=bool(inputs.records[FROZEN].params.get("train.cross_validate")),
        first_seed=int(inputs.seeds["seed"].iloc[0]),
        variants=_variant_rows(inputs.variants),
        training=_training_rows(inputs),
        # Single images.
        cases=cases,
        rows=choose_rows(cases, num_examples=num_examples),
        middle=_middle(cases),
        num_examples=num_examples,
        scatter=scatter,
        scatter_side=SIDE,
        # Groups of images and thresholds.
        strata=_strata_rows(inputs.strata),
        has_unknown=vocabulary.UNKNOWN in inputs.strata["group"].tolist(),
        best_thresholds={run: _best_threshold(inputs.thresholds, run) for run in RUNS},
        **_of_data(inputs),
    )


def _of_data(inputs: Inputs) -> dict[str, object]:
    """What the page shows of data and provenance, by the template's names."""
    record = inputs.records[FINETUNED]
    return {
        "splits": _split_rows(inputs.splits),
        "image_size": inputs.splits["test"].images.shape[1:3],
        "leaks": inputs.leaks[_LEAK_COLUMNS].head(_MAX_LEAKS).round(2).to_dict("records"),
        "num_leaks": len(inputs.leaks),
        "has_groups": any("group" in split.index for split in inputs.splits.values()),
        "has_archive_ids": facts.has_archive_ids(record),
        "settings": facts.list_settings(inputs),
        "is_of_patients": record.params.get("download.source") != "phantom",
        "parameters": facts.parameter_rows(inputs.records),
        "provenance": facts.provenance_rows(inputs.records),
        "experiment": record.dvc_experiment,
        # Relative to the report's folder; not checked, as the report would then depend on it.
        "segment_page": f"../{Results().segment_page.name}",
        "commit": record.commit,
    }


@functools.cache
def _load_template() -> jinja2.Template:
    return load_template(
        "lesionseg.report",
        "page.html",
        signed=_signed,
        effect_size=_effect_size,
        p_value=_p_value,
        percent=_percent,
    )


def _read_asset(name: str) -> str:
    return resources.files("lesionseg.report").joinpath(name).read_text(encoding="utf-8")


def _middle(cases: Sequence[Case]) -> Case:
    """The case whose fine-tuned jaccard is the median."""
    ranked = sorted(cases, key=lambda case: (-case.scores["jaccard"]["train_finetuned"], case.id))
    return ranked[len(ranked) // 2]


def _strata_rows(strata: pd.DataFrame) -> dict[str, list[dict[Hashable, Any]]]:
    """Rows of strata.csv by stratum, NaN as None."""
    rows = strata.astype(object).where(strata.notna(), None)
    return {
        str(stratum): group.to_dict("records")
        for stratum, group in rows.groupby("stratum", sort=False)
    }


def _variant_rows(variants: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """By run, for each variant, its rows of variants.csv by scope; empty if there is only one."""
    names = variants["variant"].unique()
    if len(names) == 1:
        return {}
    rows = {(r["run"], r["variant"], r["scope"]): r for r in variants.to_dict("records")}
    return {
        run: [{scope: rows[run, name, scope] for scope in vocabulary.SCOPES} for name in names]
        for run in RUNS
    }


def _best_threshold(thresholds: pd.DataFrame, run: str) -> float:
    """The lowest threshold with the best mean jaccard on val."""
    return float(
        thresholds["threshold"].iloc[int(thresholds[f"{run}_jaccard"].to_numpy().argmax())]
    )


def _training_rows(inputs: Inputs) -> list[tuple[str, list[str]]]:
    """Label and a value for each run."""
    best, records = inputs.best.values(), inputs.records.values()
    return [
        ("Best epoch, by val/jaccard", [str(epoch.best_epoch) for epoch in best]),
        *(
            (f"val/{name}", [f"{epoch.val[name]:.3f}" for epoch in best])
            for name in ("loss", *VAL_SCORES)
        ),
        ("Parameters", [f"{record.num_parameters:,}" for record in records]),
        ("... of them trained", [f"{record.num_trained_parameters:,}" for record in records]),
        ("Training time", [_duration(record.seconds) for record in records]),
        ("Training images per second", [f"{record.images_per_second:.0f}" for record in records]),
    ]


def _split_rows(splits: Mapping[str, IndexedSplit]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "num_images": len(split.index),
            "heights": _range(split.index["height"]),
            "widths": _range(split.index["width"]),
            "lesion": f"{100 * float(np.mean(split.masks)):.1f} %",
        }
        for name, split in splits.items()
    ]


def _range(values: "pd.Series[Any]") -> str:
    low, high = values.min(), values.max()
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _signed(value: float, num_decimals: int = 3) -> str:
    """A number with its sign, and with one significant digit if its decimals would all be 0."""
    if value == 0 or abs(value) >= 0.5 * 10**-num_decimals:
        return f"{value:+.{num_decimals}f}"
    return f"{value:+.1g}"


def _effect_size(value: float) -> str:
    return f"{value:+z.2f}"


def _p_value(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
