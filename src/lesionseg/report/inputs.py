"""The files that the report is made of, read and checked against each other."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lesionseg import files
from lesionseg.config import RUNS
from lesionseg.data.dataset import SPLITS, load_split
from lesionseg.data.manifest import ManifestRow, read_manifest
from lesionseg.errors import DataError
from lesionseg.report.terms import (
    FAILURE_BELOW,
    MEASURES,
    METRICS,
    POOLED,
    SCOPES,
    STRATA,
    VARIANTS,
)
from lesionseg.results.tables import read_table

# Keys of the JSON files, `val.loss` for {"val": {"loss": ...}}, and what their values are.
Schema = Mapping[str, type]
_KINDS = {float: "a number", str: "text", dict: "an object", list: "two numbers [low, high]"}
_VAL_SCORES = ("loss", "jaccard", "dice", "accuracy", "sensitivity", "specificity")
_TRAINING: Schema = dict.fromkeys(["best_epoch", *(f"val.{name}" for name in _VAL_SCORES)], float)
_RUN: Schema = {
    **dict.fromkeys(["commit", "dvc_experiment", "training_key", "device", "precision"], str),
    **dict.fromkeys(["data_sha256", "model_sha256"], str),
    **dict.fromkeys(["seconds", "images_per_second"], float),
    **dict.fromkeys(["num_parameters", "num_trained_parameters"], float),
    **dict.fromkeys(["versions", "params"], dict),
}
_SCORES: Schema = dict.fromkeys(
    [
        *(f"{scope}.{metric}" for scope in SCOPES for metric in (*METRICS, "failure_rate")),
        *(f"{scope}.pooled_{metric}" for scope in SCOPES for metric in POOLED),
        "test.ece",
    ],
    float,
)
_COMPARED: Schema = {
    **dict.fromkeys([*RUNS, "difference", "wilcoxon_p", "rank_biserial"], float),
    **dict.fromkeys(["wins", "ties", "losses"], float),
    **dict.fromkeys([*(f"{run}_interval" for run in RUNS), "interval"], list),
}
_EACH_SCORE = [f"{scope}.{metric}" for scope in SCOPES for metric in METRICS]
_COMPARISON: Schema = {
    **dict.fromkeys(["num_images", "confidence", "num_resamples"], float),
    **dict.fromkeys(["threshold", "surface_tolerance"], float),
    **{f"limits.{mask}": float for mask in ("perfect_own_size", "pixel_larger", "pixel_smaller")},
    **{f"models.{run}": str for run in RUNS},
    **{f"{score}.{part}": kind for score in _EACH_SCORE for part, kind in _COMPARED.items()},
}
_SEEDS: Schema = {
    "seeds.num_seeds": float,
    **{
        f"seeds.{score}.{part}": float
        for score in _EACH_SCORE
        for part in (
            *(f"{run}.{number}" for run in RUNS for number in ("mean", "sd")),
            *("difference.mean", "difference.sd", "difference.num_better"),
        )
    },
}

_HISTORY_COLUMNS = ("epoch", "train_loss", "val_loss", "val_jaccard", "val_dice")
_BIN_COLUMNS = ("num_pixels", "probability", "lesion_fraction")
_TOLERANCE = 1e-4  # between means that were rounded in different files


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
    """All that the page tells. Dictionaries by run have the keys `RUNS`.

    Attributes:
        histories: Epochs of each training.
        metrics: The best epoch's scores on the validation split.
        runs: Where each model comes from.
        scores: Means over the test images, pooled scores, failure rates and calibration errors.
        comparison: Intervals, paired tests, and the spread over seeds if there are several.
        per_image: A row for each id, run and scope.
        attributes: Measures and groups of each test image, in the order of the test split.
        strata: Scores in each group.
        calibration: Probabilities against shares of lesion, in bins.
        thresholds: Scores on the validation split at each threshold.
        seeds: Mean scores of each training seed; the first one's model is the page's.
        variants: Mean scores of other ways to predict, beside those of the page (`single`).
        test_rows: Where image and mask of each test image lie, by id.
        raw_dir: What those paths are relative to.
        masks_dir: Holds `<run>/<id>_segmentation.png`.
        splits: By name.
        leaks: Images in two splits.
    """

    histories: dict[str, pd.DataFrame]
    metrics: dict[str, dict[str, Any]]
    runs: dict[str, dict[str, Any]]
    scores: dict[str, dict[str, Any]]
    comparison: dict[str, Any]
    per_image: pd.DataFrame
    attributes: pd.DataFrame
    strata: pd.DataFrame
    calibration: pd.DataFrame
    thresholds: pd.DataFrame
    seeds: pd.DataFrame
    variants: pd.DataFrame
    test_rows: dict[str, ManifestRow]
    raw_dir: Path
    masks_dir: Path
    splits: dict[str, Split]
    leaks: pd.DataFrame


def read_inputs(*, results_dir: Path, processed_dir: Path, raw_dir: Path) -> Inputs:
    """All inputs of the report, which agree with each other.

    Raises:
        MissingFileError: An input is not there; the message names the stage to run.
        DataError: An input is broken, or was made from other files than the rest.
    """
    evaluate_dir = results_dir / "evaluate"
    inputs = Inputs(
        histories={
            run: read_table(results_dir / run / "history.csv", _HISTORY_COLUMNS, stage=run)
            for run in RUNS
        },
        metrics={
            run: _read_record(results_dir / run / "metrics.json", _TRAINING, stage=run)
            for run in RUNS
        },
        runs={run: _read_record(results_dir / run / "run.json", _RUN, stage=run) for run in RUNS},
        scores={
            run: _read_record(evaluate_dir / f"{run}.json", _SCORES, stage="evaluate")
            for run in RUNS
        },
        comparison=_read_comparison(evaluate_dir / "comparison.json"),
        **_read_tables(evaluate_dir),
        test_rows={row.id: row for row in read_manifest(raw_dir) if row.split == "test"},
        raw_dir=raw_dir,
        masks_dir=evaluate_dir / "masks",
        splits={name: _read_split(processed_dir, name) for name in SPLITS},
        leaks=read_table(
            processed_dir / "leaks.csv",
            ["distance"],
            text=["id", "split", "other_id", "other_split", "kind", "action"],
            stage="preprocess",
        ),
    )
    _check_rows(inputs, results_dir)
    _check_training(inputs, results_dir)
    _check_models(inputs, evaluate_dir)
    _check_images(inputs, evaluate_dir)
    _check_means(inputs, evaluate_dir)
    _check_strata(inputs, evaluate_dir)
    _check_calibration(inputs, evaluate_dir)
    _check_seeds(inputs, evaluate_dir)
    _check_variants(inputs, evaluate_dir)
    return inputs


def scores_by_run(per_image: pd.DataFrame, *, scope: str, metric: str) -> pd.DataFrame:
    """A row for each id, in the order of the ids, and a column for each run."""
    rows = per_image[per_image["scope"] == scope]
    return rows.pivot(index="id", columns="run", values=metric)[list(RUNS)]


def _read_comparison(path: Path) -> dict[str, Any]:
    comparison = _read_record(path, _COMPARISON, stage="evaluate")
    if "seeds" not in comparison:
        raise DataError(f"{path} has no seeds. Run: dvc repro -f evaluate")
    if comparison["seeds"] is not None:
        _check_record(path, comparison, _SEEDS, stage="evaluate")
    return comparison


def _read_tables(evaluate_dir: Path) -> dict[str, pd.DataFrame]:
    """The tables of `evaluate` under the names of their files."""
    each_run = {
        name: [f"{run}_{name}" for run in RUNS]
        for name in (*_BIN_COLUMNS, "jaccard", "dice", "failure_rate")
    }
    text: dict[str, Sequence[str]] = {
        "per_image": ["id", "run", "scope"],
        "attributes": ["id", *STRATA],
        "strata": ["stratum", "group"],
        "seeds": ["run", "scope"],
        "variants": ["run", "variant", "scope"],
    }
    blank: dict[str, Sequence[str]] = {
        "attributes": MEASURES,
        "strata": ["difference_low", "difference_high"],
        "calibration": [*each_run["probability"], *each_run["lesion_fraction"]],
    }
    numbers: dict[str, Sequence[str]] = {
        "per_image": [*METRICS],
        "attributes": [],
        "strata": ["num_images", *each_run["jaccard"], *each_run["failure_rate"], "difference"],
        "calibration": ["probability_low", "probability_high", *each_run["num_pixels"]],
        "thresholds": ["threshold", *each_run["jaccard"], *each_run["dice"]],
        "seeds": ["seed", *METRICS],
        "variants": ["num_models", "num_views", *METRICS],
    }
    return {
        name: read_table(
            evaluate_dir / f"{name}.csv",
            columns,
            text=text.get(name, ()),
            blank=blank.get(name, ()),
            stage="evaluate",
        )
        for name, columns in numbers.items()
    }


def _read_record(path: Path, schema: Schema, *, stage: str) -> dict[str, Any]:
    """A JSON file's object, which holds what `schema` says."""
    record = files.read_json(path, stage=stage)
    _check_record(path, record, schema, stage=stage)
    return record


def _check_record(path: Path, record: Mapping[str, Any], schema: Schema, *, stage: str) -> None:
    for key, kind in schema.items():
        value: Any = record
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise DataError(f"{path} has no {key}. Run: dvc repro -f {stage}")
            value = value[part]
        if not _is_of_kind(value, kind):
            raise DataError(
                f"{path}: {key} must be {_KINDS[kind]}, got {value!r}. Run: dvc repro -f {stage}"
            )


def _is_of_kind(value: object, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    if kind is list:
        return (
            isinstance(value, list)
            and len(value) == 2
            and all(_is_of_kind(v, float) for v in value)
        )
    return isinstance(value, kind)


def _read_split(processed_dir: Path, name: str) -> Split:
    arrays = load_split(processed_dir, name)
    index = read_table(
        processed_dir / name / "index.csv", ["height", "width"], text=["id"], stage="preprocess"
    )
    return Split(index=index, images=arrays.images, masks=arrays.masks)


def _check_rows(inputs: Inputs, results_dir: Path) -> None:
    """Refuse tables that are cut off below their heading; leaks alone may have no rows."""
    tables = {f"{run}/history.csv": (table, run) for run, table in inputs.histories.items()}
    names = ("per_image", "attributes", "strata", "calibration", "thresholds", "seeds", "variants")
    tables |= {f"evaluate/{name}.csv": (getattr(inputs, name), "evaluate") for name in names}
    for name, (table, stage) in tables.items():
        if table.empty:
            raise DataError(f"{results_dir / name} has no rows. Run: dvc repro -f {stage}")


def _check_training(inputs: Inputs, results_dir: Path) -> None:
    hashes = [record["data_sha256"] for record in inputs.runs.values()]
    if len(set(hashes)) > 1:
        raise DataError(
            f"{results_dir}/*/run.json: the models were trained on different data, data_sha256 is "
            f"{hashes[0]} and {hashes[1]}. Run: dvc repro {' '.join(RUNS)}"
        )


def _check_models(inputs: Inputs, evaluate_dir: Path) -> None:
    """Refuse scores of models that have been trained again since."""
    for run in RUNS:
        evaluated, trained = inputs.comparison["models"][run], inputs.runs[run]["model_sha256"]
        if evaluated != trained:
            raise DataError(
                f"{evaluate_dir / 'comparison.json'} is stale: it is about the model of {run} with "
                f"SHA-256 {evaluated:.12}..., the one trained last has {trained:.12}.... "
                "Run: dvc repro evaluate"
            )


def _check_images(inputs: Inputs, evaluate_dir: Path) -> None:
    """Refuse an evaluation of other images than those of the test split."""
    ids = inputs.splits["test"].index["id"].tolist()
    num_compared = inputs.comparison["num_images"]
    if num_compared != len(ids):
        raise _stale(
            evaluate_dir / "comparison.json",
            f"it compares {num_compared} images, the test split has {len(ids)}",
        )
    table = inputs.per_image
    for run, scope in itertools.product(RUNS, SCOPES):
        rows = table[(table["run"] == run) & (table["scope"] == scope)]
        if sorted(rows["id"]) != sorted(ids):
            raise _stale(
                evaluate_dir / "per_image.csv",
                f"the ids of {run} in {scope} are not those of the test split",
            )
    if inputs.attributes["id"].tolist() != ids:
        raise _stale(
            evaluate_dir / "attributes.csv", "its ids are not those of the test split, in order"
        )
    if lost := [name for name in ids if name not in inputs.test_rows]:
        raise DataError(
            f"{inputs.raw_dir / 'manifest.csv'} has no test image {lost[0]}, which the test split "
            "has. Run: dvc repro preprocess"
        )


def _check_means(inputs: Inputs, evaluate_dir: Path) -> None:
    """Refuse files of different ages: all scores on the page must come from the same evaluation."""
    for run, scope in itertools.product(RUNS, SCOPES):
        means, path = inputs.scores[run][scope], evaluate_dir / f"{run}.json"
        for metric in METRICS:
            scores = scores_by_run(inputs.per_image, scope=scope, metric=metric)[run]
            others = (inputs.comparison[scope][metric][run], scores.mean())
            if not _agree(means[metric], *others):
                raise _stale(
                    path,
                    f"{scope} {metric} of {run} is {means[metric]:.4f}, but {others[0]:.4f} in "
                    f"comparison.json and {others[1]:.4f} in per_image.csv",
                )
        failures = scores_by_run(inputs.per_image, scope=scope, metric="jaccard") < FAILURE_BELOW
        if not _agree(means["failure_rate"], failures[run].mean()):
            raise _stale(
                path,
                f"{scope} failure_rate of {run} is {means['failure_rate']:.4f}, but "
                f"{failures[run].mean():.4f} in per_image.csv",
            )


def _check_strata(inputs: Inputs, evaluate_dir: Path) -> None:
    """Refuse groups other than those of attributes.csv, or with other scores than per_image.csv."""
    path = evaluate_dir / "strata.csv"
    jaccard = scores_by_run(inputs.per_image, scope="test", metric="jaccard")
    groups = inputs.attributes.set_index("id")[list(STRATA)].assign(all="all")
    keys = inputs.strata[["stratum", "group"]].apply(tuple, axis=1).tolist()
    expected = {(stratum, group) for stratum in groups for group in groups[stratum].unique()}
    if sorted(keys) != sorted(expected):
        wrong = sorted(set(keys) ^ expected) or [key for key in keys if keys.count(key) > 1]
        raise _stale(path, f"its groups are not those of attributes.csv, {wrong[0]} is in one only")
    for row in inputs.strata.to_dict("records"):
        in_group = groups[row["stratum"]] == row["group"]
        members = jaccard[jaccard.index.isin(groups.index[in_group])]
        name = f"{row['stratum']} {row['group']}"
        if row["num_images"] != len(members):
            raise _stale(
                path,
                f"{name} has {row['num_images']:g} images, {len(members)} in attributes.csv",
            )
        for run in RUNS:
            if not _agree(row[f"{run}_jaccard"], members[run].mean()):
                raise _stale(
                    path,
                    f"the jaccard of {run} in {name} is {row[f'{run}_jaccard']:.4f}, but "
                    f"{members[run].mean():.4f} in per_image.csv",
                )


def _check_calibration(inputs: Inputs, evaluate_dir: Path) -> None:
    expected = inputs.splits["test"].masks.size
    for run in RUNS:
        num_pixels = int(inputs.calibration[f"{run}_num_pixels"].sum())
        if num_pixels != expected:
            raise _stale(
                evaluate_dir / "calibration.csv",
                f"it counts {num_pixels} pixels for {run}, the test split has {expected}",
            )


def _check_seeds(inputs: Inputs, evaluate_dir: Path) -> None:
    """Refuse a first seed whose scores are not those of the page."""
    path, table = evaluate_dir / "seeds.csv", inputs.seeds
    seeds = table["seed"].unique()
    for run, scope in itertools.product(RUNS, SCOPES):
        rows = table[(table["run"] == run) & (table["scope"] == scope)]
        if rows["seed"].tolist() != seeds.tolist():
            raise _stale(path, f"the seeds of {run} in {scope} are not those of the other rows")
        for metric in METRICS:
            first, mean = rows[metric].iloc[0], inputs.scores[run][scope][metric]
            if not _agree(first, mean):
                raise _stale(
                    path,
                    f"{scope} {metric} of {run} is {first:.4f} in its first seed, but {mean:.4f} "
                    f"in {run}.json",
                )
    compared = inputs.comparison["seeds"]
    if (compared["num_seeds"] if compared else 1) != len(seeds):
        raise _stale(
            evaluate_dir / "comparison.json",
            f"it compares {compared['num_seeds'] if compared else 1} seeds, "
            f"seeds.csv has {len(seeds)}",
        )


def _check_variants(inputs: Inputs, evaluate_dir: Path) -> None:
    """Refuse variants that differ between the rows, and a `single` other than the main scores."""
    path, table = evaluate_dir / "variants.csv", inputs.variants
    names = list(table["variant"].unique())
    if "single" not in names or not set(names) <= set(VARIANTS):
        raise _stale(path, f"its variants are {', '.join(names) or 'none'}")
    for run, scope in itertools.product(RUNS, SCOPES):
        rows = table[(table["run"] == run) & (table["scope"] == scope)]
        if rows["variant"].tolist() != names:
            raise _stale(path, f"the variants of {run} in {scope} are not those of the other rows")
        for metric in METRICS:
            single = rows[metric].iloc[names.index("single")]
            mean = inputs.scores[run][scope][metric]
            if not _agree(single, mean):
                raise _stale(
                    path,
                    f"{scope} {metric} of {run} is {single:.4f} in single, but {mean:.4f} in "
                    f"{run}.json",
                )


def _agree(mean: float, *others: float) -> bool:
    return all(math.isclose(mean, other, abs_tol=_TOLERANCE) for other in others)


def _stale(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is stale: {reason}. Run: dvc repro -f evaluate")
