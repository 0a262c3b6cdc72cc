"""Score both models on the test split; write results/evaluate/.

At the network's size (`test`) and at each image's own size (`test_own_size`).
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from lesionseg import tracking
from lesionseg.config import RUNS, load_config
from lesionseg.data.dataset import load_split
from lesionseg.data.images import read_mask, resize_mask
from lesionseg.data.manifest import read_manifest
from lesionseg.errors import DataError
from lesionseg.evaluation.metrics import COUNTS, count_pixels, mean_scores, score_images
from lesionseg.evaluation.prediction import predict_split, resize_probabilities
from lesionseg.evaluation.statistics import compare
from lesionseg.files import replacing, sha256, write_csv, write_json
from lesionseg.models.segmenter import load_model
from lesionseg.report.figures import draw_curves, draw_overlay
from lesionseg.training.hardware import choose_device, make_deterministic
from stages import run

RAW, PROCESSED, RESULTS = Path("data/raw"), Path("data/processed"), Path("results")
SCOPES = ("test", "test_own_size")
_log = logging.getLogger("lesionseg.evaluate")

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate both models and compare them."""
    argparse.ArgumentParser(prog="python -m stages.evaluate", description=__doc__).parse_args(argv)
    config = load_config(Path("params.yaml"))
    options = config.evaluate
    make_deterministic()
    rows: list[Row] = []
    with replacing(RESULTS / "evaluate/masks") as masks_dir:
        for name in RUNS:
            rows += evaluate(
                name,
                masks_dir=masks_dir / name,
                threshold=options.threshold,
                batch_size=options.batch_size,
                device=config.train.device,
            )
    scores = {name: {scope: _scores(rows, name, scope) for scope in SCOPES} for name in RUNS}
    metrics = {
        name: {scope: mean_scores(by_metric) for scope, by_metric in by_scope.items()}
        for name, by_scope in scores.items()
    }
    comparison: dict[str, Any] = {
        "num_images": len(rows) // len(RUNS) // len(SCOPES),
        "confidence": options.confidence,
        "num_resamples": options.num_resamples,
    }
    for scope in SCOPES:
        comparison[scope] = compare(
            *(scores[name][scope] for name in RUNS),
            confidence=options.confidence,
            num_resamples=options.num_resamples,
            seed=options.seed,
        )
    write_csv(RESULTS / "evaluate/per_image.csv", rows)
    for name in RUNS:  # a file each, the same keys: side by side in `dvc metrics show`
        write_json(RESULTS / f"evaluate/{name}.json", metrics[name])
    write_json(RESULTS / "evaluate/comparison.json", comparison)
    examples = choose_examples(scores["train_finetuned"]["test"]["jaccard"])
    for name in RUNS:
        log_results(name, metrics[name], examples)


def evaluate(
    name: str, *, masks_dir: Path, threshold: float, batch_size: int, device: str
) -> list[Row]:
    """Rows of per_image.csv for one model; its masks at own size are written to `masks_dir`."""
    model, image_size = load_model(RESULTS / name / "model.pt", stage=name)
    split = load_split(PROCESSED, "test")
    if split.images.shape[1] != image_size:
        raise DataError(
            f"results/{name}/model.pt was trained at {image_size} px, and data/processed is at "
            f"{split.images.shape[1]} px. Run: dvc repro {name}"
        )
    masks = {row.id: RAW / row.mask_path for row in read_manifest(RAW) if row.split == "test"}
    masks_dir.mkdir(parents=True)
    predictions = predict_split(
        model, split, batch_size=batch_size, device=choose_device(device), label=name
    )
    rows = []
    for image_id, truth, probabilities in zip(split.ids, split.masks, predictions, strict=True):
        own_truth = read_mask(masks[image_id]) > 0
        own_prediction = resize_probabilities(probabilities, own_truth.shape) > threshold
        rows.append(_row(image_id, name, "test", probabilities > threshold, truth > 0))
        rows.append(_row(image_id, name, "test_own_size", own_prediction, own_truth))
        mask = Image.fromarray(own_prediction.astype(np.uint8) * 255)
        mask.save(masks_dir / f"{image_id}_segmentation.png")
    return rows


def _row(
    image_id: str,
    name: str,
    scope: str,
    prediction: NDArray[np.bool_],
    truth: NDArray[np.bool_],
) -> Row:
    counts = count_pixels(prediction[None], truth[None])
    height, width = truth.shape
    return {
        "id": image_id,
        "run": name,
        "scope": scope,
        "height": height,
        "width": width,
        **dict(zip(COUNTS, counts[0].tolist(), strict=True)),
        **{metric: float(values[0]) for metric, values in score_images(counts).items()},
    }


def _scores(rows: Sequence[Row], name: str, scope: str) -> dict[str, NDArray[np.float64]]:
    """Scores (N,) by metric from the rows of one model at one size."""
    chosen = [row for row in rows if row["run"] == name and row["scope"] == scope]
    return score_images(np.array([[row[count] for count in COUNTS] for row in chosen]))


def choose_examples(jaccard: NDArray[np.float64]) -> dict[str, int]:
    """Positions in the test split of the best, the median and the worst image."""
    order = np.argsort(-jaccard, kind="stable")
    return {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}


def log_results(name: str, metrics: dict[str, dict[str, float]], examples: dict[str, int]) -> None:
    """Tell the log, and the model's MLflow run, what the test split says."""
    _log.info(
        "%s: test jaccard %.3f, dice %.3f; at own size %.3f, %.3f",
        *(name, metrics["test"]["jaccard"], metrics["test"]["dice"]),
        *(metrics["test_own_size"]["jaccard"], metrics["test_own_size"]["dice"]),
    )
    logged = tracking.find_run(model_sha256=sha256(RESULTS / name / "model.pt"))
    logged.log_metrics(
        {f"{scope}/{key}": value for scope in SCOPES for key, value in metrics[scope].items()}
    )
    history = pd.read_csv(RESULTS / name / "history.csv")
    logged.log_figure(draw_curves({name: history}), "curves.png")
    split = load_split(PROCESSED, "test")
    for example, position in examples.items():
        image, truth = split.images[position], split.masks[position]
        path = RESULTS / f"evaluate/masks/{name}/{split.ids[position]}_segmentation.png"
        prediction = resize_mask(read_mask(path), size=len(image))
        figure = draw_overlay(image, truth, {name: prediction})
        logged.log_figure(figure, f"overlays/{example}_{split.ids[position]}.png")


if __name__ == "__main__":
    run(main)
