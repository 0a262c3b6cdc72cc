"""Small, made-up inputs of the report stage: what preprocess, both trainings and evaluate write."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

RUNS = ("train_frozen", "train_finetuned")
SCOPES = ("test", "test_own_size")
METRICS = ("jaccard", "threshold_jaccard", "dice", "accuracy", "sensitivity", "specificity")
LEAK_COLUMNS = ("id", "split", "other_id", "other_split", "kind", "distance", "action")


def write_report_inputs(
    root: Path,
    *,
    ids: Sequence[str] = tuple(f"ISIC_{number:07d}" for number in range(7)),
    images: NDArray[np.uint8] | None = None,
    masks: NDArray[np.uint8] | None = None,
    own_size: tuple[int, int] = (48, 64),
    leaks: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Consistent `results/` and `data/processed/` under `root`: scores of made-up masks."""
    if images is None or masks is None:
        images, masks = _phantoms(len(ids), size=32)
    for split in ("train", "val", "test"):
        _write_split(root / "data/processed" / split, ids, images, masks, own_size)
    _write_csv(root / "data/processed/leaks.csv", leaks, columns=LEAK_COLUMNS)
    for run in RUNS:
        _write_training(root / "results" / run, run)
    rows = []
    for run in RUNS:
        for number, (name, mask) in enumerate(zip(ids, masks, strict=True)):
            shift = (3 + number % 4 if run == "train_frozen" else 1 + number % 3) * len(mask) // 64
            prediction = np.roll(mask, (shift, shift), axis=(0, 1))
            large = _resize(prediction, own_size)
            path = root / "results/evaluate/masks" / run / f"{name}_segmentation.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(255 * large).save(path)
            base = {"id": name, "run": run, "height": own_size[0], "width": own_size[1]}
            rows.append({**base, "scope": "test", **_scores(prediction, mask)})
            truth = _resize(mask, own_size)
            rows.append({**base, "scope": "test_own_size", **_scores(large, truth)})
    _write_evaluation(root / "results/evaluate", rows, num_images=len(ids))


def _phantoms(num_images: int, *, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    rows, columns = np.mgrid[:size, :size] - size / 2
    radii = np.linspace(size / 6, size / 3, num_images)
    masks = np.stack([np.hypot(rows, 1.2 * columns) < radius for radius in radii]).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 40, (num_images, size, size, 3), dtype=np.uint8)
    return (noise + 180 - 90 * masks[..., None]).astype(np.uint8), masks


def _resize(mask: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))


def _scores(prediction: NDArray[np.uint8], truth: NDArray[np.uint8]) -> dict[str, Any]:
    tp = int((prediction & truth).sum())
    fp, fn = int(prediction.sum()) - tp, int(truth.sum()) - tp
    tn = truth.size - tp - fp - fn
    jaccard = tp / (tp + fp + fn)
    return {
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "tn": tn,
        "jaccard": jaccard,
        "threshold_jaccard": jaccard if jaccard >= 0.65 else 0.0,
        "dice": 2 * tp / (2 * tp + fp + fn),
        "accuracy": (tp + tn) / truth.size,
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
    }


def _write_split(
    folder: Path,
    ids: Sequence[str],
    images: NDArray[np.uint8],
    masks: NDArray[np.uint8],
    own_size: tuple[int, int],
) -> None:
    folder.mkdir(parents=True)
    np.save(folder / "images.npy", images)
    np.save(folder / "masks.npy", masks)
    index = [{"id": name, "height": own_size[0], "width": own_size[1]} for name in ids]
    _write_csv(folder / "index.csv", index, columns=("id", "height", "width"))


def _write_training(folder: Path, run: str) -> None:
    folder.mkdir(parents=True)
    epochs = np.arange(1, 16)
    top, encoder_lr = (0.84, 0.0) if run == "train_frozen" else (0.86, 0.001)
    jaccard = top - 0.4 * np.exp(-epochs / 3) - 0.01 * (epochs % 4 == 0)
    history = [
        {
            "epoch": int(epoch),
            "train_loss": 2.2 * (1 - score),
            "val_loss": 2.4 * (1 - score) + 0.02 * (epoch % 3),
            "val_jaccard": score,
            "val_dice": 2 * score / (1 + score),
            "val_accuracy": 0.95,
            "val_sensitivity": 0.91,
            "val_specificity": 0.97,
            "lr": 0.002,
            "encoder_lr": encoder_lr,
        }
        for epoch, score in zip(epochs, jaccard, strict=True)
    ]
    _write_csv(folder / "history.csv", history, columns=tuple(history[0]))
    best = max(history, key=lambda row: row["val_jaccard"])
    val = {name.removeprefix("val_"): best[name] for name in best if name.startswith("val_")}
    metrics = {"best_epoch": best["epoch"], "train": {"loss": best["train_loss"]}, "val": val}
    _write_json(folder / "metrics.json", metrics)
    provenance = {
        "run": run,
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "dvc_experiment": "shaky-clam",
        "data_sha256": "ab" * 32,
        "device": "cpu",
        "precision": "bfloat16",
        "seconds": 71.5 if run == "train_frozen" else 141.2,
        "images_per_second": 168.3 if run == "train_frozen" else 101.7,
        "num_parameters": 3_128_001,
        "num_trained_parameters": 904_129 if run == "train_frozen" else 3_128_001,
        "versions": {"python": "3.11.13", "torch": "2.13.0", "torchvision": "0.28.0"},
        "params": {"train.lr": 0.002, "model.decoder": "transposed", "encoder_lr": encoder_lr},
    }
    _write_json(folder / "run.json", provenance)


def _write_evaluation(folder: Path, rows: list[dict[str, Any]], *, num_images: int) -> None:
    _write_csv(folder / "per_image.csv", rows, columns=tuple(rows[0]))
    metrics = {
        run: {
            scope: {metric: float(_values(rows, run, scope, metric).mean()) for metric in METRICS}
            for scope in SCOPES
        }
        for run in RUNS
    }
    for run in RUNS:
        _write_json(folder / f"{run}.json", metrics[run])
    comparison: dict[str, Any] = {
        "num_images": num_images,
        "confidence": 0.95,
        "num_resamples": 1000,
    }
    for scope in SCOPES:
        comparison[scope] = {metric: _compare(rows, scope, metric) for metric in METRICS}
    _write_json(folder / "comparison.json", comparison)


def _compare(rows: list[dict[str, Any]], scope: str, metric: str) -> dict[str, Any]:
    frozen, finetuned = (_values(rows, run, scope, metric) for run in RUNS)
    differences = finetuned - frozen
    resamples = np.random.default_rng(0).choice(differences, (1000, len(differences))).mean(axis=1)
    return {
        "train_frozen": float(frozen.mean()),
        "train_finetuned": float(finetuned.mean()),
        "difference": float(differences.mean()),
        "interval": np.quantile(resamples, [0.025, 0.975]).tolist(),
    }


def _values(rows: list[dict[str, Any]], run: str, scope: str, metric: str) -> NDArray[np.float64]:
    return np.array([row[metric] for row in rows if (row["run"], row["scope"]) == (run, scope)])


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(columns))
        writer.writeheader()
        writer.writerows(rows)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
