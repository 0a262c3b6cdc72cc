"""The files that the report is made from, read and checked against each other."""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lesionseg.data.dataset import SPLITS, load_split
from lesionseg.data.manifest import ManifestRow, read_manifest
from lesionseg.errors import DataError, repro
from lesionseg.report.external import ExternalScores, read_external
from lesionseg.results.evaluation import TABLES, Comparison, ModelScores, rows_of
from lesionseg.results.layout import RUNS, EvaluationFiles, Results
from lesionseg.results.records import unreadable
from lesionseg.results.tables import Table
from lesionseg.results.training import BestEpoch, TrainingRecord, history_table
from lesionseg.results.vocabulary import FAILURE_BELOW, METRICS, SCOPES, STRATA, VARIANTS

_TOLERANCE = 1e-4  # between means that were rounded in different files
_LEAKS = Table(
    stage="preprocess",
    text=("id", "split", "other_id", "other_split", "kind", "action"),
    numbers=("distance",),
    may_be_empty=True,
)
_INDEX = Table(stage="preprocess", text=("id",), numbers=("height", "width"))


@dataclass(frozen=True, kw_only=True)
class IndexedSplit:
    """One split of the data, with its images' own sizes.

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
    """Everything that the page shows. Dictionaries by run have the keys `RUNS`.

    Attributes:
        histories: Epochs of each training.
        best: The best epoch of each training, and its scores on the validation split.
        records: Where each model comes from.
        scores: Means over the test images, pooled scores, failure rates and calibration errors.
        comparison: Intervals, paired tests, and the spread over seeds if there are several.
        per_image: A row for each id, run and scope.
        attributes: Measures and groups of each test image, in the order of the test split.
        strata: Scores in each group.
        calibration: Probabilities against shares of lesion, in bins.
        thresholds: Scores on the validation split at each threshold.
        seeds: Mean scores of each training seed; the page is about the first one's model.
        variants: Mean scores of other ways to predict, beside those of the page (`single`).
        test_rows: Where image and mask of each test image are, by id.
        raw_dir: What those paths are relative to.
        evaluation: Where the predicted masks are.
        splits: The splits by name.
        leaks: Images in two splits.
        external: Both models on test sets from elsewhere.
    """

    histories: dict[str, pd.DataFrame]
    best: dict[str, BestEpoch]
    records: dict[str, TrainingRecord]
    scores: dict[str, ModelScores]
    comparison: Comparison
    per_image: pd.DataFrame
    attributes: pd.DataFrame
    strata: pd.DataFrame
    calibration: pd.DataFrame
    thresholds: pd.DataFrame
    seeds: pd.DataFrame
    variants: pd.DataFrame
    test_rows: dict[str, ManifestRow]
    raw_dir: Path
    evaluation: EvaluationFiles
    splits: dict[str, IndexedSplit]
    leaks: pd.DataFrame
    external: list[ExternalScores]


def read_inputs(results: Results, data_dir: Path) -> Inputs:
    """All inputs of the report, checked for agreement with each other.

    Args:
        results: Holds both trainings and their evaluation.
        data_dir: Holds `raw/`, `processed/` and `external/`.

    Raises:
        MissingFileError: An input is missing; the message names the stage to run.
        DataError: An input is damaged, or was made from other files than the rest.
    """
    evaluation, raw_dir, processed_dir = (
        results.evaluation,
        data_dir / "raw",
        data_dir / "processed",
    )
    comparison = Comparison.read(evaluation)
    trainings = {run: results.training(run) for run in RUNS}
    inputs = Inputs(
        histories={run: history_table(run).read(trainings[run].history) for run in RUNS},
        best={run: BestEpoch.read(trainings[run], run=run) for run in RUNS},
        records={run: TrainingRecord.read(trainings[run], run=run) for run in RUNS},
        scores={run: ModelScores.read(evaluation, run) for run in RUNS},
        comparison=comparison,
        **{name: table.read(evaluation.table(name)) for name, table in TABLES.items()},
        test_rows={row.id: row for row in read_manifest(raw_dir) if row.split == "test"},
        raw_dir=raw_dir,
        evaluation=evaluation,
        splits={name: _read_split(processed_dir, name) for name in SPLITS},
        leaks=_LEAKS.read(processed_dir / "leaks.csv"),
        external=read_external(evaluation, data_dir / "external", models=comparison.models),
    )
    _check_training(inputs, results)
    _check_models(inputs)
    _check_images(inputs)
    _check_means(inputs)
    _check_strata(inputs)
    _check_calibration(inputs)
    _check_seeds(inputs)
    _check_variants(inputs)
    return inputs


def scores_by_run(per_image: pd.DataFrame, *, scope: str, metric: str) -> pd.DataFrame:
    """A row for each id, in the order of the ids, and a column for each run."""
    rows = per_image[per_image["scope"] == scope]
    return rows.pivot(index="id", columns="run", values=metric)[list(RUNS)]


def _read_split(processed_dir: Path, name: str) -> IndexedSplit:
    arrays = load_split(processed_dir, name)
    index = _INDEX.read(processed_dir / name / "index.csv")
    return IndexedSplit(index=index, images=arrays.images, masks=arrays.masks)


def _check_training(inputs: Inputs, results: Results) -> None:
    hashes = [record.data_sha256 for record in inputs.records.values()]
    if len(set(hashes)) > 1:
        raise DataError(
            f"{results.root}/*/run.json: the models were trained on different data, data_sha256 is "
            f"{hashes[0]} and {hashes[1]}. Run: {repro(*RUNS)}"
        )


def _check_models(inputs: Inputs) -> None:
    """Refuse scores of models that have been retrained since."""
    for run in RUNS:
        evaluated, trained = inputs.comparison.models[run], inputs.records[run].model_sha256
        if evaluated != trained:
            raise DataError(
                f"{inputs.evaluation.comparison} is stale: it is about the model of {run} with "
                f"SHA-256 {evaluated:.12}..., the one trained last has {trained:.12}.... "
                f"Run: {repro('evaluate')}"
            )


def _check_images(inputs: Inputs) -> None:
    """Refuse an evaluation of other images than those of the test split."""
    ids = inputs.splits["test"].index["id"].tolist()
    num_compared = inputs.comparison.num_images
    if num_compared != len(ids):
        raise _stale(
            inputs.evaluation.comparison,
            f"it compares {num_compared} images, the test split has {len(ids)}",
        )
    table = inputs.per_image
    for run, scope in itertools.product(RUNS, SCOPES):
        rows = rows_of(table, run, scope)
        if sorted(rows["id"]) != sorted(ids):
            raise _stale(
                inputs.evaluation.table("per_image"),
                f"the ids of {run} in {scope} are not those of the test split",
            )
    if inputs.attributes["id"].tolist() != ids:
        raise _stale(
            inputs.evaluation.table("attributes"),
            "its ids are not those of the test split, in order",
        )
    if lost := [name for name in ids if name not in inputs.test_rows]:
        raise DataError(
            f"{inputs.raw_dir / 'manifest.csv'} has no test image {lost[0]}, which the test split "
            f"has. Run: {repro('preprocess')}"
        )


def _check_means(inputs: Inputs) -> None:
    """Refuse mixed files: all scores on the page must come from the same evaluation."""
    for run, scope in itertools.product(RUNS, SCOPES):
        means, path = inputs.scores[run].at(scope), inputs.evaluation.scores(run)
        for metric in METRICS:
            scores = scores_by_run(inputs.per_image, scope=scope, metric=metric)[run]
            others = (inputs.comparison.at(scope)[metric].mean(run), scores.mean())
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


def _check_strata(inputs: Inputs) -> None:
    """Refuse groups other than those of attributes.csv, or with other scores than per_image.csv."""
    path = inputs.evaluation.table("strata")
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


def _check_calibration(inputs: Inputs) -> None:
    expected = inputs.splits["test"].masks.size
    for run in RUNS:
        num_pixels = int(inputs.calibration[f"{run}_num_pixels"].sum())
        if num_pixels != expected:
            raise _stale(
                inputs.evaluation.table("calibration"),
                f"it counts {num_pixels} pixels for {run}, the test split has {expected}",
            )


def _check_seeds(inputs: Inputs) -> None:
    """Refuse a first seed whose scores are not those of the page."""
    path, table = inputs.evaluation.table("seeds"), inputs.seeds
    seeds = table["seed"].unique()
    for run, scope in itertools.product(RUNS, SCOPES):
        rows = rows_of(table, run, scope)
        if rows["seed"].tolist() != seeds.tolist():
            raise _stale(path, f"the seeds of {run} in {scope} are not those of the other rows")
        for metric in METRICS:
            first, mean = rows[metric].iloc[0], inputs.scores[run].at(scope)[metric]
            if not _agree(first, mean):
                raise _stale(
                    path,
                    f"{scope} {metric} of {run} is {first:.4f} in its first seed, but {mean:.4f} "
                    f"in {run}.json",
                )
    compared = inputs.comparison.seeds
    if (compared.num_seeds if compared else 1) != len(seeds):
        raise _stale(
            inputs.evaluation.comparison,
            f"it compares {compared.num_seeds if compared else 1} seeds, "
            f"seeds.csv has {len(seeds)}",
        )


def _check_variants(inputs: Inputs) -> None:
    """Refuse variants that differ between the rows, and a `single` other than the main scores."""
    path, table = inputs.evaluation.table("variants"), inputs.variants
    names = list(table["variant"].unique())
    if "single" not in names or not set(names) <= set(VARIANTS):
        raise _stale(path, f"its variants are {', '.join(names) or 'none'}")
    for run, scope in itertools.product(RUNS, SCOPES):
        rows = rows_of(table, run, scope)
        if rows["variant"].tolist() != names:
            raise _stale(path, f"the variants of {run} in {scope} are not those of the other rows")
        for metric in METRICS:
            single = rows[metric].iloc[names.index("single")]
            mean = inputs.scores[run].at(scope)[metric]
            if not _agree(single, mean):
                raise _stale(
                    path,
                    f"{scope} {metric} of {run} is {single:.4f} in single, but {mean:.4f} in "
                    f"{run}.json",
                )


def _agree(mean: float, *others: float) -> bool:
    return all(math.isclose(mean, other, abs_tol=_TOLERANCE) for other in others)


def _stale(path: Path, reason: str) -> DataError:
    return unreadable(f"{path} is stale: {reason}", stage="evaluate")
