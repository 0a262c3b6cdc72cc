"""The report: one HTML file that needs nothing else, from the files of the other stages."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from lesionseg import files
from lesionseg.config import RUNS
from lesionseg.data.dataset import SPLITS, load_split
from lesionseg.errors import DataError
from lesionseg.report import figures

SCOPES = {
    "test": "Scored at the size the network sees, the same for all images.",
    "test_own_size": "Scored at each image's own size, as in the challenge.",
}
METRICS = {
    "jaccard": "Shared area over joint area, TP / (TP + FP + FN); also called IoU.",
    "dice": "2 TP / (2 TP + FP + FN), which is 2 jaccard / (1 + jaccard) in each image.",
    "threshold_jaccard": "The jaccard, counted as 0 in an image below 0.65; it punishes failures.",
    "accuracy": "Share of all pixels that are right; high wherever lesions are small.",
    "sensitivity": "Share of the lesion's pixels that were found, TP / (TP + FN).",
    "specificity": "Share of the skin's pixels that were left alone, TN / (TN + FP).",
}
_HISTORY_COLUMNS = ("epoch", "train_loss", "val_loss", "val_jaccard", "val_dice")
_VAL_SCORES = ("loss", "jaccard", "dice", "accuracy", "sensitivity", "specificity")
_METRICS_KEYS = ("best_epoch", *(f"val.{name}" for name in _VAL_SCORES))
_SCORE_KEYS = tuple(f"{scope}.{metric}" for scope in SCOPES for metric in METRICS)
_COMPARISON_KEYS = (
    *("num_images", "confidence", "num_resamples"),
    *(f"{key}.{part}" for key in _SCORE_KEYS for part in (*RUNS, "difference", "interval")),
)
_RUN_KEYS = (
    *("commit", "dvc_experiment", "data_sha256", "device", "precision", "seconds"),
    *("images_per_second", "num_parameters", "num_trained_parameters", "versions", "params"),
)
_LEAK_COLUMNS = ("id", "split", "other_id", "other_split", "kind", "distance", "action")
_MAX_LEAKS = 100
_TOLERANCE = 1e-4  # between means that were rounded in different files
_MASK_SIDE = 256  # pixels of a predicted mask from which its outline is drawn
_PAGE_COLORS = {
    figures.INK: "currentColor",
    figures.PAPER: "var(--card)",
    figures.RUN_COLORS["train_frozen"]: "var(--frozen)",
    figures.RUN_COLORS["train_finetuned"]: "var(--finetuned)",
}


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split of the data.

    Attributes:
        index: Columns `id`, `height`, `width`, a row for each image.
        images: (N, H, W, 3) uint8.
        masks: (N, H, W) uint8 in {0, 1}.
    """

    index: pd.DataFrame
    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """All that the page tells. Dictionaries by run have the keys `RUNS`."""

    histories: dict[str, pd.DataFrame]
    metrics: dict[str, dict[str, Any]]
    runs: dict[str, dict[str, Any]]
    comparison: dict[str, Any]
    per_image: pd.DataFrame
    masks_dir: Path
    splits: dict[str, Split]
    leaks: pd.DataFrame


@dataclass(frozen=True, kw_only=True)
class Example:
    """A test image among the best, the median or the worst."""

    figure: str
    id: str
    jaccard: dict[str, float]


def write_report(
    *, results_dir: Path, processed_dir: Path, report_dir: Path, title: str, num_examples: int
) -> Path:
    """The page that was written, `report_dir/report.html`, with its figures beside it as SVG.

    Args:
        results_dir: Holds `train_frozen/`, `train_finetuned/` and `evaluate/`.
        processed_dir: Holds `train/`, `val/`, `test/` and `leaks.csv`.
        report_dir: Replaced as a whole, or left as it was.
        title: The page's first line.
        num_examples: Images in each row of examples.

    Raises:
        MissingFileError: An input is not there; the message names the stage to run.
        DataError: An input is broken, or was made from other files than the rest.
    """
    inputs = _read_inputs(results_dir, processed_dir)
    examples = _choose_examples(inputs.per_image, num_examples)
    drawn = _draw_figures(inputs, examples, num_examples)
    svgs = {name: figures.render_svg(figure) for name, figure in drawn.items()}
    html = _render(inputs, examples, svgs, title=title)
    with files.replacing(report_dir) as temporary:
        (temporary / "figures").mkdir(parents=True)
        for name, svg in svgs.items():
            (temporary / "figures" / f"{name}.svg").write_text(svg, encoding="utf-8")
        (temporary / "report.html").write_text(html, encoding="utf-8")
    return report_dir / "report.html"


def answer(comparison: Mapping[str, Any]) -> str:
    """One sentence: which model is better, by how much, and how sure that is."""
    result = comparison["test"]["jaccard"]
    low, high = result["interval"]
    verb, verdict = "changes", "the interval contains 0, so no difference is shown on this data."
    if low > 0:
        verb, verdict = "raises", "fine-tuning is better on this data."
    elif high < 0:
        verb, verdict = "lowers", "the frozen encoder is better on this data."
    return (
        f"Fine-tuning {verb} the mean test jaccard from {result['train_frozen']:.3f} "
        f"to {result['train_finetuned']:.3f}, a difference of {_signed(result['difference'])} "
        f"({100 * comparison['confidence']:g} % interval {_signed(low)} to {_signed(high)} "
        f"over {comparison['num_images']} images): {verdict}"
    )


def _read_inputs(results_dir: Path, processed_dir: Path) -> Inputs:
    evaluate_dir = results_dir / "evaluate"
    inputs = Inputs(
        histories={
            run: _read_table(results_dir / run / "history.csv", _HISTORY_COLUMNS, stage=run)
            for run in RUNS
        },
        metrics={
            run: _read_record(results_dir / run / "metrics.json", _METRICS_KEYS, stage=run)
            for run in RUNS
        },
        runs={
            run: _read_record(results_dir / run / "run.json", _RUN_KEYS, stage=run) for run in RUNS
        },
        comparison=_read_record(
            evaluate_dir / "comparison.json", _COMPARISON_KEYS, stage="evaluate"
        ),
        per_image=_read_table(
            evaluate_dir / "per_image.csv", ("id", "run", "scope", *METRICS), stage="evaluate"
        ),
        masks_dir=evaluate_dir / "masks",
        splits={name: _read_split(processed_dir, name) for name in SPLITS},
        leaks=_read_table(processed_dir / "leaks.csv", _LEAK_COLUMNS, stage="preprocess"),
    )
    _check_training(inputs, results_dir)
    _check_evaluation(inputs, evaluate_dir)
    return inputs


def _read_table(path: Path, columns: Sequence[str], *, stage: str) -> pd.DataFrame:
    """A CSV file's rows; ids stay text, whatever they look like."""
    files.require(path, stage=stage)
    try:
        table = pd.read_csv(
            path,
            dtype=dict.fromkeys(("id", "other_id"), "str"),
            keep_default_na=False,
            na_values=[""],
        )
    except ValueError as error:
        raise DataError(
            f"{path} is not CSV ({str(error).splitlines()[0]}). Run: dvc repro -f {stage}"
        ) from None
    missing = [column for column in columns if column not in table]
    if missing:
        raise DataError(f"{path} has no column {missing[0]}. Run: dvc repro -f {stage}")
    return table


def _read_record(path: Path, keys: Sequence[str], *, stage: str) -> dict[str, Any]:
    """A JSON file's object, which holds `keys`: `val.loss` is `{"val": {"loss": ...}}`."""
    record = files.read_json(path, stage=stage)
    for key in keys:
        value: Any = record
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise DataError(f"{path} has no {key}. Run: dvc repro -f {stage}")
            value = value[part]
    return record


def _read_split(processed_dir: Path, name: str) -> Split:
    arrays = load_split(processed_dir, name)
    index = _read_table(
        processed_dir / name / "index.csv", ("id", "height", "width"), stage="preprocess"
    )
    return Split(index=index, images=arrays.images, masks=arrays.masks)


def _check_training(inputs: Inputs, results_dir: Path) -> None:
    hashes = [record["data_sha256"] for record in inputs.runs.values()]
    if len(set(hashes)) > 1:
        raise DataError(
            f"{results_dir}/*/run.json: the models were trained on different data, data_sha256 is "
            f"{_text(hashes[0])} and {_text(hashes[1])}. Run: dvc repro {' '.join(RUNS)}"
        )


def _check_evaluation(inputs: Inputs, evaluate_dir: Path) -> None:
    """Refuse files of different ages: all scores on the page must come from the same evaluation."""
    metrics_paths = {run: evaluate_dir / f"{run}.json" for run in RUNS}
    metrics = {
        run: _read_record(path, _SCORE_KEYS, stage="evaluate")
        for run, path in metrics_paths.items()
    }
    num_compared, num_images = inputs.comparison["num_images"], len(inputs.splits["test"].index)
    if num_compared != num_images:
        raise DataError(
            f"{evaluate_dir / 'comparison.json'} is stale: it compares {num_compared} images, "
            f"the test split has {num_images}. Run: dvc repro -f evaluate"
        )
    for run, scope in itertools.product(RUNS, SCOPES):
        table = inputs.per_image
        rows = table[(table["run"] == run) & (table["scope"] == scope)]
        if sorted(rows["id"]) != sorted(inputs.splits["test"].index["id"]):
            raise DataError(
                f"{evaluate_dir / 'per_image.csv'} is stale: the ids of {run} in {scope} are not "
                "those of the test split. Run: dvc repro -f evaluate"
            )
        for metric in METRICS:
            mean = metrics[run][scope][metric]
            others = (inputs.comparison[scope][metric][run], rows[metric].mean())
            if not all(math.isclose(mean, other, abs_tol=_TOLERANCE) for other in others):
                raise DataError(
                    f"{metrics_paths[run]} is stale: {scope} {metric} of {run} is {mean:.4f}, but "
                    f"{others[0]:.4f} in comparison.json and {others[1]:.4f} in per_image.csv. "
                    "Run: dvc repro -f evaluate"
                )


def _choose_examples(per_image: pd.DataFrame, num_examples: int) -> dict[str, list[Example]]:
    """Images of the best, median and worst jaccard of the fine-tuned model; equal ones by id."""
    scores = per_image[per_image["scope"] == "test"].pivot(
        index="id", columns="run", values="jaccard"
    )
    ranked = scores.reset_index().sort_values(["train_finetuned", "id"], ascending=[False, True])
    num = min(num_examples, len(ranked))
    middle = (len(ranked) - num) // 2
    rows = {
        "best": ranked[:num],
        "median": ranked[middle : middle + num],
        "worst": ranked[::-1][:num],
    }
    return {
        name: [
            Example(
                figure=f"{name}_{number}",
                id=str(row["id"]),
                jaccard={run: float(row[run]) for run in RUNS},
            )
            for number, row in enumerate(chosen.to_dict("records"), start=1)
        ]
        for name, chosen in rows.items()
    }


def _draw_figures(
    inputs: Inputs, examples: Mapping[str, Sequence[Example]], num_examples: int
) -> dict[str, Figure]:
    """Every figure under the name of its file."""
    train = inputs.splits["train"]
    spread = np.linspace(0, len(train.index) - 1, min(num_examples, len(train.index))).astype(int)
    drawn = {
        "differences": figures.draw_differences(
            {
                scope: {metric: inputs.comparison[scope][metric] for metric in METRICS}
                for scope in SCOPES
            },
            labels={"test": "test", "test_own_size": "test, own size"},
        ),
        "scatter": figures.draw_scatter(inputs.per_image),
        "samples": figures.draw_samples(train.images[spread], train.masks[spread]),
        "lead": _draw_example(
            inputs, examples["median"][len(examples["median"]) // 2], legend=True
        ),
    }
    for quantity in ("loss", "jaccard", "dice"):
        drawn[f"curves_{quantity}"] = figures.draw_curves(inputs.histories, quantities=[quantity])
    for row in examples.values():
        drawn.update({example.figure: _draw_example(inputs, example) for example in row})
    return drawn


def _draw_example(inputs: Inputs, example: Example, *, legend: bool = False) -> Figure:
    test = inputs.splits["test"]
    position = int(np.flatnonzero(test.index["id"] == example.id)[0])
    predictions = {
        run: _read_mask(inputs.masks_dir / run / f"{example.id}_segmentation.png") for run in RUNS
    }
    return figures.draw_overlay(
        test.images[position], test.masks[position], predictions, legend=legend
    )


def _read_mask(path: Path) -> NDArray[np.float64]:
    """A predicted mask in [0, 1], made small: outlines of millions of pixels help nobody."""
    files.require(path, stage="evaluate")
    try:
        with Image.open(path) as mask:
            small = mask.convert("L").resize((_MASK_SIDE, _MASK_SIDE), Image.Resampling.BOX)
    except OSError as error:
        raise DataError(f"{path} is not an image ({error}). Run: dvc repro -f evaluate") from None
    return np.asarray(small) / 255


def _render(
    inputs: Inputs,
    examples: Mapping[str, Sequence[Example]],
    svgs: Mapping[str, str],
    *,
    title: str,
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lesionseg.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["signed"] = _signed
    return environment.get_template("page.html").render(
        title=title,
        answer=answer(inputs.comparison),
        comparison=inputs.comparison,
        confidence=f"{100 * inputs.comparison['confidence']:g} %",
        labels=figures.RUN_LABELS,
        legend=[
            ("truth", figures.TRUTH, False),
            *(
                (figures.RUN_LABELS[run], figures.RUN_BRIGHT_COLORS[run], run == "train_frozen")
                for run in RUNS
            ),
        ],
        runs=RUNS,
        scopes=SCOPES,
        metrics=METRICS,
        examples=examples,
        svgs={name: _inline(name, svg) for name, svg in svgs.items()},
        training=_training_rows(inputs),
        splits=_split_rows(inputs.splits),
        image_size=inputs.splits["test"].images.shape[1:3],
        leaks=inputs.leaks[list(_LEAK_COLUMNS)].head(_MAX_LEAKS).round(2).to_dict("records"),
        num_leaks=len(inputs.leaks),
        parameters=_parameter_rows(inputs.runs),
        provenance=_provenance_rows(inputs.runs),
        experiment=inputs.runs["train_finetuned"]["dvc_experiment"],
        commit=inputs.runs["train_finetuned"]["commit"],
    )


def _inline(name: str, svg: str) -> Markup:
    """The SVG element with ids of its own and with the page's colours, light or dark."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", element)
    for color, replacement in _PAGE_COLORS.items():
        element = element.replace(color, replacement)
    return Markup(element)  # drawn here: matplotlib escapes all text in it


def _training_rows(inputs: Inputs) -> list[tuple[str, list[str]]]:
    """Label and a value for each run."""
    metrics, runs = inputs.metrics.values(), inputs.runs.values()
    return [
        ("Best epoch, by val/jaccard", [str(record["best_epoch"]) for record in metrics]),
        *(
            (f"val/{name}", [f"{record['val'][name]:.3f}" for record in metrics])
            for name in _VAL_SCORES
        ),
        ("Parameters", [f"{record['num_parameters']:,}" for record in runs]),
        ("... of them trained", [f"{record['num_trained_parameters']:,}" for record in runs]),
        ("Training time", [_duration(record["seconds"]) for record in runs]),
        ("Training images per second", [f"{record['images_per_second']:.0f}" for record in runs]),
    ]


def _split_rows(splits: Mapping[str, Split]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "num_images": len(split.index),
            "heights": f"{split.index['height'].min()} to {split.index['height'].max()}",
            "widths": f"{split.index['width'].min()} to {split.index['width'].max()}",
            "lesion": f"{100 * float(np.mean(split.masks)):.1f} %",
        }
        for name, split in splits.items()
    ]


def _parameter_rows(runs: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Name and a value for each run."""
    names = dict.fromkeys(name for record in runs.values() for name in record["params"])
    return [
        (name, [_text(record["params"].get(name)) for record in runs.values()]) for name in names
    ]


def _provenance_rows(runs: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Label and a value for each run."""
    labels = {
        "commit": "Commit",
        "dvc_experiment": "DVC experiment",
        "data_sha256": "SHA-256 of the data",
        "device": "Device",
        "precision": "Precision",
    }
    rows = [
        (label, [_text(record[key]) for record in runs.values()]) for key, label in labels.items()
    ]
    names = dict.fromkeys(name for record in runs.values() for name in record["versions"])
    return rows + [
        (name, [_text(record["versions"].get(name)) for record in runs.values()]) for name in names
    ]


def _text(value: object) -> str:
    return "–" if value in (None, "") else str(value)


def _signed(value: float) -> str:
    """Three decimals with sign, or one digit where those would read as 0."""
    return f"{value:+.3f}" if value == 0 or abs(value) >= 0.0005 else f"{value:+.1g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
