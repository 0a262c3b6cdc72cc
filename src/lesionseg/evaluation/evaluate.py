"""Both models scored on the test split and compared: everything in `results/evaluate/`.

At the network's size (`test`) and at each image's own size (`test_own_size`). Only the curve of
thresholds is of the validation split: nothing is chosen on test.
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
from lesionseg.data.dataset import Split, load_split
from lesionseg.data.images import read_image, resize_image, resize_mask
from lesionseg.data.manifest import ManifestRow, read_manifest
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
from lesionseg.files import replacing, require, sha256
from lesionseg.hardware import choose_device
from lesionseg.inference.prediction import predict_split
from lesionseg.models.segmenter import load_model
from lesionseg.results.evaluation import TABLES, Compared, Comparison, ModelScores
from lesionseg.results.layout import RUNS, EvaluationFiles, Results
from lesionseg.results.tables import Row
from lesionseg.results.training import TrainingRecord


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """What the models are scored on.

    Attributes:
        test: The test split at the network's size.
        val: The validation split.
        image_paths: The test images at own size, in the split's order.
        mask_paths: Their masks.
    """

    test: Split
    val: Split
    image_paths: list[Path]
    mask_paths: list[Path]


@dataclass(frozen=True, kw_only=True)
class _Model:
    """What one model scores.

    Attributes:
        table: A row for each test image and scope.
        scores: The means over images.
        bins: Test pixels by their probability.
        thresholds: Scores on val at each threshold.
        variants: The model itself, those of further seeds, and other ways to predict.
    """

    table: pd.DataFrame
    scores: ModelScores
    bins: Sums
    thresholds: Sequence[Row]
    variants: list[Scored]


def check_trainings(config: Config, *, results: Results) -> None:
    """Return when `results` holds the models that params.yaml asks for.

    Raises:
        MissingFileError: A model or its record is not there.
        DataError: A model.pt is not that of its run.json, or was trained otherwise.
    """
    for run in RUNS:
        for seed, files in results.trainings(run, config.seeds()).items():
            require(files.model, stage=run)
            expected = config.training_params(run, seed=seed)
            # The data's own changes show in the data: DVC trains anew after them.
            own = {k: v for k, v in expected.items() if not k.startswith("download.")}
            TrainingRecord.read(files, run=run).check_params(files, own)


def load_data(processed_dir: Path, raw_dir: Path) -> EvaluationData:
    """The splits as `preprocess` has left them, and the test split's own files.

    Raises:
        MissingFileError: A file is not there.
        DataError: One is damaged, or the manifest does not have all test images.
    """
    test = load_split(processed_dir, "test")
    rows = _test_files(test, raw_dir)
    return EvaluationData(
        test=test,
        val=load_split(processed_dir, "val"),
        image_paths=[raw_dir / row.image_path for row in rows],
        mask_paths=[raw_dir / row.mask_path for row in rows],
    )


def _test_files(test: Split, raw_dir: Path) -> list[ManifestRow]:
    """The files of the test images, in the split's order."""
    rows = {row.id: row for row in read_manifest(raw_dir) if row.split == "test"}
    if lost := sorted(set(test.ids) - rows.keys()):
        raise DataError(
            f"{raw_dir / 'manifest.csv'} has no test image {lost[0]}, which the test split has. "
            f"Run: {repro('preprocess')}"
        )
    return [rows[image_id] for image_id in test.ids]


def evaluate(config: Config, data: EvaluationData, *, results: Results) -> dict[str, ModelScores]:
    """Score and compare both models, and write all files of `EvaluationFiles`; the scores by run.

    Raises:
        MissingFileError: A model is not there.
        DataError: It is damaged, or of another size than the data.
    """
    with replacing(results.evaluation.masks) as masks_dir:
        models = {
            run: _score_model(run, config, data, results=results, out_dir=masks_dir / run)
            for run in RUNS
        }
    options = config.evaluate
    interval = functools.partial(
        mean_interval,
        confidence=options.confidence,
        num_resamples=options.num_resamples,
        seed=options.seed,
    )
    files = results.evaluation
    for run, model in models.items():  # a file each, the same keys: side by side in `dvc metrics`
        model.scores.write(files, run)
    _write_tables(models, data, files, interval=interval)
    hashes = {run: sha256(results.training(run).model) for run in RUNS}
    _compare(models, data, options, hashes=hashes, interval=interval).write(files)
    return {run: model.scores for run, model in models.items()}


def _score_model(
    run: str, config: Config, data: EvaluationData, *, results: Results, out_dir: Path
) -> _Model:
    """Everything about one model; its masks at own size go to `out_dir`."""
    trainings = results.trainings(run, config.seeds())

    def predict(seed: int, num_views: int, split: Split = data.test) -> Probabilities:
        path = trainings[seed].model
        return _predict(path, split, config, label=run, num_views=num_views)

    def score(probabilities: Probabilities, masks_dir: Path | None = None) -> pd.DataFrame:
        return score_split(
            probabilities,
            data.test,
            mask_paths=data.mask_paths,
            threshold=config.evaluate.threshold,
            surface_tolerance=config.evaluate.surface_tolerance,
            out_dir=masks_dir,
        )

    first = config.train.seed
    probabilities = predict(first, 1)
    table = score(probabilities, out_dir)
    scores = summarise_scopes(table)
    bins = np.sum(list(map(sum_bins, probabilities, data.test.masks > 0)), axis=0)
    scores.test["ece"] = expected_calibration_error(bins)
    return _Model(
        table=table,
        scores=scores,
        bins=bins,
        thresholds=score_thresholds(predict(first, 1, data.val), data.val.masks > 0),
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
    path: Path, split: Split, config: Config, *, label: str, num_views: int
) -> Probabilities:
    """The lesion's probability in each image of a split, by the model in a file."""
    model, image_size = load_model(path, stage=label)
    if split.image_size != image_size:
        raise DataError(
            f"{path} was trained at {image_size} px, and data/processed is at "
            f"{split.image_size} px. Run: {repro(label)}"
        )
    return list(
        predict_split(
            model,
            split,
            batch_size=config.evaluate.batch_size,
            device=choose_device(config.train.device),
            label=f"{label} on {split.name}",
            num_views=num_views,
        )
    )


def _write_tables(
    models: Mapping[str, _Model],
    data: EvaluationData,
    files: EvaluationFiles,
    *,
    interval: Interval,
) -> None:
    """Write all of `TABLES`."""
    bins = {run: reliability(model.bins) for run, model in models.items()}
    thresholds = {run: model.thresholds for run, model in models.items()}
    variants = {run: model.variants for run, model in models.items()}
    jaccards = {run: at(model.table, "test")["jaccard"].to_numpy() for run, model in models.items()}
    attributes = _measure(data)
    rows: dict[str, Sequence[Row]] = {
        "per_image": per_image_rows({run: model.table for run, model in models.items()}),
        "calibration": side_by_side(bins, on=["probability_low", "probability_high"]),
        "thresholds": side_by_side(thresholds, on=["threshold"]),
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
    for name, table in TABLES.items():
        table.write(files.table(name), rows[name])


def _measure(data: EvaluationData) -> list[Row]:
    """What each test image is like, and the groups it falls into."""

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
        data.test.ids,
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
    data: EvaluationData,
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
        num_images=len(data.test.ids),
        confidence=options.confidence,
        num_resamples=options.num_resamples,
        threshold=options.threshold,
        surface_tolerance=options.surface_tolerance,
        limits=score_limits(data.test, mask_paths=data.mask_paths),
        models=hashes,
        test=compare_at("test"),
        test_own_size=compare_at("test_own_size"),
        seeds=compare_seeds(pd.DataFrame(seeds)),
    )
