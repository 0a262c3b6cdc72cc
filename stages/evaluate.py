"""Score both models on the test split; write results/evaluate/.

At the network's size (`test`) and at each image's own size (`test_own_size`). Only the curve of
thresholds is of the validation split: nothing is chosen on test.
"""

import argparse
import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm.contrib.concurrent import thread_map

from lesionseg.config import RUNS, Config, load_config
from lesionseg.data.dataset import Split, load_split
from lesionseg.data.images import read_image, resize_image, resize_mask
from lesionseg.data.manifest import ManifestRow, read_manifest
from lesionseg.data.masks import read_mask
from lesionseg.errors import DataError
from lesionseg.evaluation.calibration import (
    expected_calibration_error,
    reliability,
    score_thresholds,
    sum_bins,
)
from lesionseg.evaluation.limits import score_limits
from lesionseg.evaluation.scoring import (
    SCOPES,
    Row,
    at,
    per_image_rows,
    score_split,
    scores_by_metric,
    side_by_side,
    summarise_scopes,
)
from lesionseg.evaluation.statistics import compare, compare_seeds, mean_interval
from lesionseg.evaluation.strata import MEASURED_SIZE, group_of, measure_image, summarise_strata
from lesionseg.evaluation.variants import (
    Probabilities,
    Scored,
    Summary,
    score_variants,
    seed_rows,
    variant_rows,
)
from lesionseg.files import (
    read_json,
    replacing,
    require,
    sha256,
    write_csv,
    write_json,
)
from lesionseg.hardware import choose_device, describe, make_deterministic
from lesionseg.inference.prediction import predict_split
from lesionseg.models.segmenter import load_model
from lesionseg.processes import only_writer
from lesionseg.tracking.replay import complete_evaluation
from stages import result_dirs, run

RAW, PROCESSED, RESULTS = Path("data/raw"), Path("data/processed"), Path("results")
OUT = RESULTS / "evaluate"
_log = logging.getLogger("lesionseg.evaluate")


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate both models and compare them."""
    argparse.ArgumentParser(prog="python -m stages.evaluate", description=__doc__).parse_args(argv)
    config = load_config(Path("params.yaml"))
    make_deterministic()
    for name in RUNS:
        for seed, folder in result_dirs(name, config.seeds()).items():
            check_training(folder, config, name, seed=seed)
    device = choose_device(config.train.device)
    _log.info("evaluate on %s", describe(device, torch.float32))
    with only_writer(OUT):
        evaluate(config)


def check_training(folder: Path, config: Config, name: str, *, seed: int) -> None:
    """Return when `folder` holds the model that params.yaml asks for.

    Raises:
        DataError: Its model.pt is not that of its run.json, or was trained otherwise.
    """
    record = read_json(folder / "run.json", stage=name)
    remedy = f"Run: dvc repro -f {name}"
    if record.get("model_sha256") != sha256(require(folder / "model.pt", stage=name)):
        raise DataError(f"{folder}/model.pt is not the model that run.json is about. {remedy}")
    known = record.get("params", {})
    for key, value in config.training_params(name, seed=seed).items():
        # The data's own changes show in the data: DVC trains anew after them.
        if not key.startswith("download.") and known.get(key) != value:
            raise DataError(
                f"{folder}/model.pt was trained with {key} {known.get(key)!r}, and params.yaml "
                f"says {value!r}. {remedy}"
            )


def evaluate(config: Config) -> None:
    """Score, compare, and write results/evaluate/."""
    test, val = load_split(PROCESSED, "test"), load_split(PROCESSED, "val")
    tables, bins, thresholds, metrics, scored = {}, {}, {}, {}, {}
    with replacing(OUT / "masks") as masks_dir:
        for name in RUNS:
            probabilities = predict(RESULTS / name, test, config, stage=name)
            tables[name] = score(probabilities, test, config, out_dir=masks_dir / name)
            bins[name] = np.sum(list(map(sum_bins, probabilities, test.masks > 0)), axis=0)
            on_val = predict(RESULTS / name, val, config, stage=name)
            thresholds[name] = score_thresholds(on_val, val.masks > 0)
            metrics[name] = summarise_scopes(tables[name])
            scored[name] = score_others(name, probabilities, metrics[name], test, config)
    for name in RUNS:  # a file each, the same keys: side by side in `dvc metrics show`
        metrics[name]["test"]["ece"] = expected_calibration_error(bins[name])
        write_json(OUT / f"{name}.json", metrics[name])
    write_csv(OUT / "per_image.csv", per_image_rows(tables))
    reliabilities = {name: reliability(sums) for name, sums in bins.items()}
    write_csv(
        OUT / "calibration.csv",
        side_by_side(reliabilities, on=["probability_low", "probability_high"]),
    )
    write_csv(OUT / "thresholds.csv", side_by_side(thresholds, on=["threshold"]))
    seeds = seed_rows(scored)
    write_csv(OUT / "seeds.csv", seeds)
    write_csv(OUT / "variants.csv", variant_rows(scored))
    interval = functools.partial(
        mean_interval,
        confidence=config.evaluate.confidence,
        num_resamples=config.evaluate.num_resamples,
        seed=config.evaluate.seed,
    )
    limits = score_limits(test, mask_paths=mask_paths(test))
    content = comparison(tables, seeds, limits, config, interval=interval)
    write_json(OUT / "comparison.json", content)
    attributes = measure(test)
    jaccards = {name: at(table, "test")["jaccard"].to_numpy() for name, table in tables.items()}
    write_csv(
        OUT / "attributes.csv",
        [
            row | {f"{name}_jaccard": float(values[number]) for name, values in jaccards.items()}
            for number, row in enumerate(attributes)
        ],
    )
    write_csv(
        OUT / "strata.csv",
        summarise_strata(pd.DataFrame(attributes), jaccards, interval=interval),
    )
    complete_evaluation(RESULTS, PROCESSED, redraw=True)
    for name in RUNS:
        _log.info(
            "%s: test jaccard %.3f, dice %.3f; at own size %.3f, %.3f",
            *(name, metrics[name]["test"]["jaccard"], metrics[name]["test"]["dice"]),
            *(metrics[name]["test_own_size"][key] for key in ("jaccard", "dice")),
        )


def predict(
    folder: Path, split: Split, config: Config, *, stage: str, num_views: int = 1
) -> Probabilities:
    """The lesion's probability in each image of a split, by the model in `folder`."""
    model, image_size = load_model(folder / "model.pt", stage=stage)
    if split.images.shape[1] != image_size:
        raise DataError(
            f"{folder}/model.pt was trained at {image_size} px, and data/processed is at "
            f"{split.images.shape[1]} px. Run: dvc repro {stage}"
        )
    return list(
        predict_split(
            model,
            split,
            batch_size=config.evaluate.batch_size,
            device=choose_device(config.train.device),
            label=f"{stage} on {split.name}",
            num_views=num_views,
        )
    )


def score(
    probabilities: Probabilities, test: Split, config: Config, *, out_dir: Path | None = None
) -> pd.DataFrame:
    """Scores of each test image, a row at each of `SCOPES`; masks at own size go to `out_dir`."""
    return score_split(
        probabilities,
        test,
        mask_paths=mask_paths(test),
        threshold=config.evaluate.threshold,
        surface_tolerance=config.evaluate.surface_tolerance,
        out_dir=out_dir,
    )


def score_others(
    name: str, probabilities: Probabilities, summary: Summary, test: Split, config: Config
) -> list[Scored]:
    """Scores of the further seeds' models and of other ways to predict, the main one first."""
    folders = result_dirs(name, config.seeds())
    return score_variants(
        probabilities,
        summary,
        seeds=list(folders),
        num_views=config.evaluate.tta_views,
        predict=lambda seed, num_views: predict(
            folders[seed], test, config, stage=name, num_views=num_views
        ),
        score=lambda maps: summarise_scopes(score(maps, test, config)),
    )


def measure(test: Split) -> list[Row]:
    """What each test image is like, and the groups it falls into."""

    def measure_one(files: ManifestRow) -> Row:
        image = read_image(RAW / files.image_path, at_least=MEASURED_SIZE)
        mask = read_mask(RAW / files.mask_path)
        measures = measure_image(
            resize_image(image, size=MEASURED_SIZE), resize_mask(mask, size=MEASURED_SIZE) > 0
        )
        known = {key: None if math.isnan(value) else value for key, value in measures.items()}
        return {"id": files.id, **known, **group_of(measures)}

    rows: list[Row] = thread_map(
        *(measure_one, test_files(test)), desc="attributes", unit="image", disable=None, leave=False
    )
    return rows


def test_files(test: Split) -> list[ManifestRow]:
    """The files of the test images, in the split's order.

    Raises:
        DataError: The manifest does not have them all.
    """
    rows = {row.id: row for row in read_manifest(RAW) if row.split == "test"}
    if lost := sorted(set(test.ids) - rows.keys()):
        raise DataError(
            f"{RAW / 'manifest.csv'} has no test image {lost[0]}, which the test split has. "
            "Run: dvc repro preprocess"
        )
    return [rows[image_id] for image_id in test.ids]


def mask_paths(test: Split) -> list[Path]:
    """The masks of the test images at own size, in the split's order."""
    return [RAW / row.mask_path for row in test_files(test)]


def comparison(
    tables: Mapping[str, pd.DataFrame],
    seeds: Sequence[Row],
    limits: Mapping[str, float],
    config: Config,
    *,
    interval: Callable[[NDArray[np.float64]], list[float]],
) -> dict[str, Any]:
    """The content of comparison.json."""
    options = config.evaluate
    return {
        "num_images": len(at(tables[RUNS[0]], "test")),
        "confidence": options.confidence,
        "num_resamples": options.num_resamples,
        "threshold": options.threshold,
        "surface_tolerance": options.surface_tolerance,
        "limits": limits,
        "models": {name: sha256(RESULTS / name / "model.pt") for name in RUNS},
        **{
            scope: compare(
                *(scores_by_metric(at(tables[name], scope)) for name in RUNS), interval=interval
            )
            for scope in SCOPES
        },
        "seeds": compare_seeds(pd.DataFrame(seeds)),
    }


if __name__ == "__main__":
    run(main)
