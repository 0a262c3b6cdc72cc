"""Both models scored on the test split and compared: everything in `results/evaluate/`.

At the network's size (`test`) and at each image's own size (`test_own_size`). Only the curve of
thresholds uses the validation split: nothing is chosen on test. External test sets are scored in
the same way, each into a folder of its own.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.contrib.concurrent import thread_map

from lesionseg.config import Config, EvaluateConfig
from lesionseg.data import external_sets
from lesionseg.data.dataset import Split, load_split
from lesionseg.data.external_sets import read_sets
from lesionseg.data.images import read_image, resize_image, resize_mask
from lesionseg.data.manifest import read_manifest
from lesionseg.data.masks import read_mask
from lesionseg.errors import DataError, repro
from lesionseg.evaluation.calibration import (
    Sums,
    expected_calibration_error,
    reliability,
    score_thresholds,
    sum_bins,
)
from lesionseg.evaluation.limits import score_limits
from lesionseg.evaluation.scoring import (
    at,
    per_image_rows,
    score_split,
    scores_by_metric,
    side_by_side,
    summarise_scopes,
)
from lesionseg.evaluation.statistics import Interval, compare, compare_seeds, mean_interval
from lesionseg.evaluation.strata import MEASURED_SIZE, group_of, measure_image, summarise_strata
from lesionseg.evaluation.variants import (
    Probabilities,
    Scored,
    score_variants,
    seed_rows,
    variant_rows,
)
from lesionseg.files import made_by, replacing, require, sha256
from lesionseg.hardware import choose_device
from lesionseg.inference.prediction import predict_split
from lesionseg.models.segmenter import load_model
from lesionseg.results.evaluation import (
    EXTERNAL_TABLES,
    TABLES,
    Compared,
    Comparison,
    Headline,
    ModelScores,
)
from lesionseg.results.layout import FINETUNED, RUNS, EvaluationFiles, Results
from lesionseg.results.tables import Row
from lesionseg.results.training import TrainingRecord, history_table


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """Images that the models are scored on.

    Attributes:
        split: The images and masks at the network's size.
        image_paths: The images at their own size, in the split's order.
        mask_paths: Their masks.
    """

    split: Split
    image_paths: list[Path]
    mask_paths: list[Path]


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """Everything that the models are scored on.

    Attributes:
        test: The test split.
        val: The validation split.
        external: Test sets from elsewhere, by name.
    """

    test: EvaluationSet
    val: Split
    external: dict[str, EvaluationSet]


@dataclass(frozen=True, kw_only=True)
class _Model:
    """The scores of one model.

    Attributes:
        table: A row for each test image and scope.
        scores: The means over images.
        bins: Test pixels by their probability.
        variants: The model itself, those of further seeds, and other ways to predict.
    """

    table: pd.DataFrame
    scores: ModelScores
    bins: Sums
    variants: list[Scored]


def check_trainings(config: Config, *, results: Results) -> None:
    """Return if `results` holds the models that params.yaml asks for.

    Raises:
        MissingFileError: A model or its record is missing.
        DataError: A model.pt does not match its run.json, or was trained with other parameters.
    """
    for run in RUNS:
        for seed, files in results.trainings(run, config.seeds()).items():
            require(files.model, stage=run)
            expected = config.training_params(run, seed=seed)
            # Changes of the data need no check here: DVC retrains after them.
            own = {k: v for k, v in expected.items() if not k.startswith("download.")}
            TrainingRecord.read(files, run=run).check_params(files, own)


def load_data(processed_dir: Path, raw_dir: Path, external_dir: Path) -> EvaluationData:
    """The splits as written by `preprocess`, and the external test sets, with their own files.

    Raises:
        MissingFileError: A file is missing.
        DataError: A file is damaged, or a manifest lacks an image.
    """
    external = {}
    for one in read_sets(external_dir):
        with made_by("external"):
            external[one.name] = _load_test_set(
                external_sets.processed_dir(external_dir, one.name),
                external_sets.raw_dir(external_dir, one.name),
            )
    return EvaluationData(
        test=_load_test_set(processed_dir, raw_dir),
        val=load_split(processed_dir, "val"),
        external=external,
    )


def _load_test_set(processed_dir: Path, raw_dir: Path) -> EvaluationSet:
    """The images of the split `test`, and their own files in the split's order."""
    split = load_split(processed_dir, "test")
    rows = {row.id: row for row in read_manifest(raw_dir) if row.split == "test"}
    if lost := sorted(set(split.ids) - rows.keys()):
        raise DataError(
            f"{raw_dir / 'manifest.csv'} has no test image {lost[0]}, which the test split has",
            remedy=f"Run: {repro('preprocess')}",
        )
    return EvaluationSet(
        split=split,
        image_paths=[raw_dir / rows[image_id].image_path for image_id in split.ids],
        mask_paths=[raw_dir / rows[image_id].mask_path for image_id in split.ids],
    )


def evaluate(config: Config, data: EvaluationData, *, results: Results) -> dict[str, ModelScores]:
    """Score and compare both models; the scores by run.

    Writes all files of `EvaluationFiles`, and metrics.json.

    The scores returned are those of the test split.

    Raises:
        MissingFileError: A model is missing.
        DataError: It is damaged, or was trained at another image size than the data's.
    """
    files = results.evaluation
    thresholds = {
        run: score_thresholds(
            _predict(results.training(run).model, data.val, config, label=f"{run} on val"),
            data.val.masks > 0,
        )
        for run in RUNS
    }
    TABLES["thresholds"].write(
        files.table("thresholds"), side_by_side(thresholds, on=["threshold"])
    )
    scores = _evaluate_set(config, "test", data.test, files, results=results)
    epochs = history_table(FINETUNED).read(results.training(FINETUNED).history)
    Headline.of(scores, val=float(epochs["val_jaccard"].max())).write(results)
    with replacing(files.external) as folder:
        folder.mkdir()
        for name, test_set in data.external.items():
            _evaluate_set(config, name, test_set, EvaluationFiles(folder / name), results=results)
    return scores


def _evaluate_set(
    config: Config, name: str, data: EvaluationSet, files: EvaluationFiles, *, results: Results
) -> dict[str, ModelScores]:
    """Everything about one test set, written to `files`."""
    with replacing(files.masks) as masks_dir:
        models = {
            run: _score_model(run, config, data, results=results, out_dir=masks_dir / run, on=name)
            for run in RUNS
        }
    options = config.evaluate
    interval = functools.partial(
        mean_interval,
        confidence=options.confidence,
        num_resamples=options.num_resamples,
        seed=options.seed,
    )
    for run, model in models.items():
        model.scores.write(files, run)
    _write_tables(models, data, files, interval=interval)
    hashes = {run: sha256(results.training(run).model) for run in RUNS}
    _compare(models, data, options, hashes=hashes, interval=interval).write(files)
    return {run: model.scores for run, model in models.items()}


def _score_model(
    run: str, config: Config, data: EvaluationSet, *, results: Results, out_dir: Path, on: str
) -> _Model:
    """Everything about one model; its masks at own size go to `out_dir`."""
    trainings = results.trainings(run, config.seeds())

    def predict(seed: int, num_views: int) -> Probabilities:
        path, label = trainings[seed].model, f"{run} on {on}"
        return _predict(path, data.split, config, label=label, num_views=num_views)

    def score(probabilities: Probabilities, masks_dir: Path | None = None) -> pd.DataFrame:
        return score_split(
            probabilities,
            data.split,
            mask_paths=data.mask_paths,
            threshold=config.evaluate.threshold,
            surface_tolerance=config.evaluate.surface_tolerance,
            out_dir=masks_dir,
        )

    probabilities = predict(config.train.seed, 1)
    table = score(probabilities, out_dir)
    scores = summarise_scopes(table)
    bins = np.sum(list(map(sum_bins, probabilities, data.split.masks > 0)), axis=0)
    scores.test["ece"] = expected_calibration_error(bins)
    return _Model(
        table=table,
        scores=scores,
        bins=bins,
        variants=score_variants(
            probabilities,
            scores,
            seeds=list(trainings),
            num_views=config.evaluate.tta_views,
            predict=predict,
            score=lambda maps: summarise_scopes(score(maps)),
        ),
    )


def _predict(
    path: Path, split: Split, config: Config, *, label: str, num_views: int = 1
) -> Probabilities:
    """The lesion's probability in each image of a split, by the model in a file."""
    stage = label.partition(" ")[0]
    model, image_size = load_model(path, stage=stage)
    if split.image_size != image_size:
        raise DataError(
            f"{path} was trained at {image_size} px, and data/processed is at "
            f"{split.image_size} px. Run: {repro(stage)}"
        )
    return list(
        predict_split(
            model,
            split,
            batch_size=config.evaluate.batch_size,
            device=choose_device(config.train.device),
            label=label,
            num_views=num_views,
        )
    )


def _write_tables(
    models: Mapping[str, _Model],
    data: EvaluationSet,
    files: EvaluationFiles,
    *,
    interval: Interval,
) -> None:
    """Write all of `EXTERNAL_TABLES`."""
    bins = {run: reliability(model.bins) for run, model in models.items()}
    variants = {run: model.variants for run, model in models.items()}
    jaccards = {run: at(model.table, "test")["jaccard"].to_numpy() for run, model in models.items()}
    attributes = _measure(data)
    rows: dict[str, Sequence[Row]] = {
        "per_image": per_image_rows({run: model.table for run, model in models.items()}),
        "calibration": side_by_side(bins, on=["probability_low", "probability_high"]),
        "seeds": seed_rows(variants),
        "variants": variant_rows(variants),
        "attributes": [
            {
                **row,
                **{f"{run}_jaccard": float(values[i]) for run, values in jaccards.items()},
            }
            for i, row in enumerate(attributes)
        ],
        "strata": summarise_strata(pd.DataFrame(attributes), jaccards, interval=interval),
    }
    for name, table in EXTERNAL_TABLES.items():
        table.write(files.table(name), rows[name])


def _measure(data: EvaluationSet) -> list[Row]:
    """The measures of each test image, and the groups it falls into."""

    def measure(image_id: str, image_path: Path, mask_path: Path) -> Row:
        image = read_image(image_path, at_least=MEASURED_SIZE)
        measures = measure_image(
            resize_image(image, size=MEASURED_SIZE),
            resize_mask(read_mask(mask_path), size=MEASURED_SIZE) > 0,
        )
        known = {key: None if math.isnan(value) else value for key, value in measures.items()}
        return {"id": image_id, **known, **group_of(measures)}

    rows: list[Row] = thread_map(
        measure,
        data.split.ids,
        data.image_paths,
        data.mask_paths,
        desc="attributes",
        unit="image",
        disable=None,
        leave=False,
    )
    return rows


def _compare(
    models: Mapping[str, _Model],
    data: EvaluationSet,
    options: EvaluateConfig,
    *,
    hashes: dict[str, str],
    interval: Interval,
) -> Comparison:
    """Both models on the same images, at both sizes and over seeds."""

    def compare_at(scope: str) -> dict[str, Compared]:
        frozen, finetuned = (scores_by_metric(at(models[run].table, scope)) for run in RUNS)
        return compare(frozen, finetuned, interval=interval)

    seeds = seed_rows({run: model.variants for run, model in models.items()})
    return Comparison(
        num_images=len(data.split.ids),
        confidence=options.confidence,
        num_resamples=options.num_resamples,
        threshold=options.threshold,
        surface_tolerance=options.surface_tolerance,
        limits=score_limits(data.split, mask_paths=data.mask_paths),
        models=hashes,
        test=compare_at("test"),
        test_own_size=compare_at("test_own_size"),
        seeds=compare_seeds(pd.DataFrame(seeds)),
    )
