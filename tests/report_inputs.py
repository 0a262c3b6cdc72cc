"""Small, made-up inputs of the report stage: what preprocess, both trainings and evaluate write."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lesionseg.config import load_config
from lesionseg.data.external_sets import ExternalSet, write_sets
from lesionseg.results.evaluation import (
    TABLES,
    Compared,
    Comparison,
    DifferenceSpread,
    Limits,
    ModelScores,
    SeedComparison,
    SeedsCompared,
    Spread,
)
from lesionseg.results.layout import RUNS, EvaluationFiles, Results, TrainingFiles
from lesionseg.results.training import BestEpoch, TrainingRecord, history_table
from lesionseg.results.vocabulary import METRICS, POOLED, SCOPES

GROUPS = {
    "size": ("small", "medium", "large"),
    "border": ("free", "touching"),
    "contrast_level": ("low", "medium", "high"),
    "outline": ("smooth", "rough"),
    "hair": ("little", "some"),
    "skin_tone": ("light", "unknown"),
}
CONFIG = load_config(Path(__file__).parents[1] / "params.yaml")
MODELS = {"train_frozen": "12" * 32, "train_finetuned": "34" * 32}
LEAK_COLUMNS = ("id", "split", "other_id", "other_split", "kind", "distance", "action")


def write_report_inputs(
    root: Path,
    *,
    ids: Sequence[str] = tuple(f"ISIC_{number:07d}" for number in range(7)),
    images: NDArray[np.uint8] | None = None,
    masks: NDArray[np.uint8] | None = None,
    own_size: tuple[int, int] = (60, 80),
    leaks: Sequence[Mapping[str, Any]] = (),
    num_seeds: int = 3,
    num_views: int = 1,
    external: Sequence[str] = (),
) -> None:
    """Consistent `results/` and `data/` under `root`: scores of made-up masks."""
    if images is None or masks is None:
        images, masks = _phantoms(len(ids), size=64)
    for split in ("train", "val", "test"):
        _write_split(root / "data/processed" / split, ids, images, masks, own_size)
    _write_csv(root / "data/processed/leaks.csv", leaks, columns=LEAK_COLUMNS)
    _write_raw(root / "data/raw", ids, images, masks, own_size)
    facts = {"source": "folder", "num_images": len(ids), "num_dropped": 2}
    (root / "data/external").mkdir()
    write_sets(root / "data/external", [ExternalSet(name=name, **facts) for name in external])
    results = Results(root / "results")
    for run in RUNS:
        _write_training(results.training(run), run)
    rows = []
    for run in RUNS:
        for number, (name, mask) in enumerate(zip(ids, masks, strict=True)):
            shift = (2 + number % 4 if run == "train_frozen" else 1 + number % 3) * len(mask) // 64
            prediction = np.roll(mask, (shift, shift), axis=(0, 1))
            large = _resize(prediction, own_size)
            path = results.evaluation.mask(run, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(255 * large).save(path)
            base = {"id": name, "run": run, "height": own_size[0], "width": own_size[1]}
            rows.append({**base, "scope": "test", **_scores(prediction, mask)})
            truth = _resize(mask, own_size)
            rows.append({**base, "scope": "test_own_size", **_scores(large, truth)})
    _write_evaluation(results, rows, ids=ids, num_seeds=num_seeds)
    _write_variants(results, rows, num_seeds=num_seeds, num_views=num_views)
    _write_attributes(results, rows, ids, masks)
    _write_calibration(results, num_pixels=masks.size)
    for name in external:  # the same images once more
        files = EvaluationFiles(results.evaluation.external / name)
        files.folder.mkdir(parents=True)
        Comparison.read(results.evaluation).write(files)
        for run in RUNS:
            ModelScores.read(results.evaluation, run).write(files, run)


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
        "dice": 2 * tp / (2 * tp + fp + fn),
        "threshold_jaccard": jaccard if jaccard >= 0.65 else 0.0,
        "accuracy": (tp + tn) / truth.size,
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "hd95": 20 * (1 - jaccard),
        "nsd": jaccard**2,
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


def _write_raw(
    folder: Path,
    ids: Sequence[str],
    images: NDArray[np.uint8],
    masks: NDArray[np.uint8],
    own_size: tuple[int, int],
) -> None:
    """Test images as `download` leaves them; files are numbered, so that ids may be anything."""
    rows = []
    for kind in ("images", "masks"):
        (folder / "test" / kind).mkdir(parents=True)
    for number, (name, image, mask) in enumerate(zip(ids, images, masks, strict=True)):
        paths = {"image": f"test/images/{number}.png", "mask": f"test/masks/{number}.png"}
        Image.fromarray(image).resize(own_size[::-1]).save(folder / paths["image"])
        Image.fromarray(255 * _resize(mask, own_size)).save(folder / paths["mask"])
        row = {"id": name, "split": "test", "height": own_size[0], "width": own_size[1]}
        for kind, path in paths.items():
            row |= {f"{kind}_path": path, f"{kind}_sha256": "cd" * 32}
        rows.append(row)
    _write_csv(folder / "manifest.csv", rows, columns=tuple(rows[0]))


def _write_training(files: TrainingFiles, run: str) -> None:
    epochs = np.arange(1, 16)
    top, encoder_lr = (0.84, 0.0) if run == "train_frozen" else (0.86, 0.001)
    jaccard = top - 0.4 * np.exp(-epochs / 3) - 0.01 * (epochs % 4 == 0)
    history = [
        {
            "epoch": int(epoch),
            "train_loss": float(2.2 * (1 - score)),
            "val_loss": float(2.4 * (1 - score) + 0.02 * (epoch % 3)),
            "val_jaccard": float(score),
            "val_dice": float(2 * score / (1 + score)),
            "val_accuracy": 0.95,
            "val_sensitivity": 0.91,
            "val_specificity": 0.97,
            "lr": 0.002,
            "encoder_lr": encoder_lr,
        }
        for epoch, score in zip(epochs, jaccard, strict=True)
    ]
    history_table(run).write(files.history, history)
    best = max(history, key=lambda row: row["val_jaccard"])
    val = {name.removeprefix("val_"): best[name] for name in best if name.startswith("val_")}
    BestEpoch(best_epoch=best["epoch"], train={"loss": best["train_loss"]}, val=val).write(files)
    TrainingRecord(
        run=run,
        dvc_stage=run,
        training_key=f"{run}-0123456789abcdef",
        commit="0123456789abcdef0123456789abcdef01234567",
        dvc_experiment="shaky-clam",
        data_sha256="ab" * 32,
        model_sha256=MODELS[run],
        device="cpu",
        precision="bfloat16",
        seconds=71.5 if run == "train_frozen" else 141.2,
        images_per_second=168.3 if run == "train_frozen" else 101.7,
        num_images=100,
        num_parameters=3_128_001,
        num_trained_parameters=904_129 if run == "train_frozen" else 3_128_001,
        versions={"python": "3.11.13", "torch": "2.13.0", "torchvision": "0.28.0"},
        params=CONFIG.training_params(run, seed=0) | {"encoder_lr": encoder_lr},
    ).write(files)


def _write_evaluation(
    results: Results, rows: list[dict[str, Any]], *, ids: Sequence[str], num_seeds: int
) -> None:
    files = results.evaluation
    TABLES["per_image"].write(files.table("per_image"), rows)
    scores = {
        run: ModelScores(**{scope: _summarise(rows, run, scope) for scope in SCOPES})
        for run in RUNS
    }
    for run, own in scores.items():
        own.test["ece"] = 0.03 if run == "train_frozen" else 0.02
        own.write(files, run)
    seeds = [
        {"run": run, "seed": seed, "scope": scope}
        | {metric: scores[run].at(scope)[metric] + 0.002 * seed for metric in METRICS}
        for run in RUNS
        for seed in range(num_seeds)
        for scope in SCOPES
    ]
    TABLES["seeds"].write(files.table("seeds"), seeds)
    Comparison(
        num_images=len(ids),
        confidence=0.95,
        num_resamples=1000,
        threshold=0.5,
        surface_tolerance=1.0,
        limits=Limits(perfect_own_size=0.9812, pixel_larger=0.9342, pixel_smaller=0.9295),
        models=MODELS,
        **{
            scope: {metric: _compare(rows, scope, metric) for metric in METRICS} for scope in SCOPES
        },
        seeds=_compare_seeds(scores, num_seeds) if num_seeds > 1 else None,
    ).write(files)


def _summarise(rows: list[dict[str, Any]], run: str, scope: str) -> dict[str, float]:
    means = {metric: float(_values(rows, run, scope, metric).mean()) for metric in METRICS}
    failure_rate = float((_values(rows, run, scope, "jaccard") < 0.65).mean())
    return {**means, "failure_rate": failure_rate, **{f"pooled_{m}": means[m] for m in POOLED}}


def _compare(rows: list[dict[str, Any]], scope: str, metric: str) -> Compared:
    frozen, finetuned = (_values(rows, run, scope, metric) for run in RUNS)
    differences = finetuned - frozen
    gains = -differences if metric == "hd95" else differences
    return Compared(
        train_frozen=float(frozen.mean()),
        train_frozen_interval=_interval(frozen),
        train_finetuned=float(finetuned.mean()),
        train_finetuned_interval=_interval(finetuned),
        difference=float(differences.mean()),
        interval=_interval(differences),
        wilcoxon_p=0.0123,
        rank_biserial=0.45,
        wins=int((gains > 0).sum()),
        ties=int((gains == 0).sum()),
        losses=int((gains < 0).sum()),
    )


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    resamples = np.random.default_rng(0).choice(values, (1000, len(values))).mean(axis=1)
    low, high = np.quantile(resamples, [0.025, 0.975]).tolist()
    return low, high


def _compare_seeds(scores: Mapping[str, ModelScores], num_seeds: int) -> SeedComparison:
    """Summary of seeds that raise every score of both models by 0.002 each."""
    shift, sd = 0.001 * (num_seeds - 1), float(0.002 * np.std(range(num_seeds), ddof=1))

    def compare(scope: str, metric: str) -> SeedsCompared:
        frozen, finetuned = (scores[run].at(scope)[metric] for run in RUNS)
        is_better = finetuned < frozen if metric == "hd95" else finetuned > frozen
        return SeedsCompared(
            train_frozen=Spread(mean=frozen + shift, sd=sd),
            train_finetuned=Spread(mean=finetuned + shift, sd=sd),
            difference=DifferenceSpread(
                mean=finetuned - frozen, sd=0.0, num_better=num_seeds if is_better else 0
            ),
        )

    compared = {scope: {metric: compare(scope, metric) for metric in METRICS} for scope in SCOPES}
    return SeedComparison(num_seeds=num_seeds, **compared)


def _write_variants(
    results: Results, rows: list[dict[str, Any]], *, num_seeds: int, num_views: int
) -> None:
    """Variants that each raise every score by 0.01."""
    numbers = {"single": (1, 1)}
    numbers |= {"tta": (1, num_views)} if num_views > 1 else {}
    numbers |= {"ensemble": (num_seeds, 1)} if num_seeds > 1 else {}
    numbers |= {"ensemble+tta": (num_seeds, num_views)} if min(num_seeds, num_views) > 1 else {}
    variants = [
        {"run": run, "variant": name, "scope": scope, "num_models": num_models, "num_views": views}
        | {m: float(_values(rows, run, scope, m).mean()) + 0.01 * position for m in METRICS}
        for run in RUNS
        for position, (name, (num_models, views)) in enumerate(numbers.items())
        for scope in SCOPES
    ]
    _write_table(results, "variants", variants)


def _write_attributes(
    results: Results, rows: list[dict[str, Any]], ids: Sequence[str], masks: NDArray[np.uint8]
) -> None:
    """Images are dealt to the groups of each stratum in turn."""
    frozen, finetuned = (_values(rows, run, "test", "jaccard") for run in RUNS)
    attributes = [
        {"id": name, "lesion_fraction": float(masks[number].mean()), "border_fraction": 0.0}
        | {"contrast": 20.0 + number, "outline_roughness": 0.1, "hair_fraction": 0.01}
        | {"ita": None if number % 2 else 45.0}
        | {stratum: groups[number % len(groups)] for stratum, groups in GROUPS.items()}
        | {"train_frozen_jaccard": frozen[number], "train_finetuned_jaccard": finetuned[number]}
        for number, name in enumerate(ids)
    ]
    _write_table(results, "attributes", attributes)
    members = {("all", "all"): np.ones(len(ids), bool)} | {
        (stratum, group): np.arange(len(ids)) % len(groups) == number
        for stratum, groups in GROUPS.items()
        for number, group in enumerate(groups)
    }
    strata = [
        _summarise_group(stratum, group, frozen[inside], finetuned[inside])
        for (stratum, group), inside in members.items()
        if inside.any()
    ]
    _write_table(results, "strata", strata)


def _summarise_group(
    stratum: str, group: str, frozen: NDArray[np.float64], finetuned: NDArray[np.float64]
) -> dict[str, Any]:
    low, high = _interval(finetuned - frozen) if len(frozen) > 1 else (None, None)
    return {
        **{"stratum": stratum, "group": group, "num_images": len(frozen)},
        "train_frozen_jaccard": frozen.mean(),
        "train_frozen_failure_rate": (frozen < 0.65).mean(),
        "train_finetuned_jaccard": finetuned.mean(),
        "train_finetuned_failure_rate": (finetuned < 0.65).mean(),
        "difference": (finetuned - frozen).mean(),
        **{"difference_low": low, "difference_high": high},
    }


def _write_calibration(results: Results, *, num_pixels: int) -> None:
    """Two bins of 15 hold all pixels; the frozen model's best threshold is 0.4."""
    bins = []
    for number in range(15):
        num = {0: num_pixels // 2, 14: num_pixels - num_pixels // 2}.get(number, 0)
        edges = {"probability_low": number / 15, "probability_high": (number + 1) / 15}
        content = {"num_pixels": num, "probability": None, "lesion_fraction": None}
        if num:
            content |= {"probability": (number + 0.5) / 15, "lesion_fraction": number / 14}
        bins.append(edges | {f"{run}_{name}": content[name] for run in RUNS for name in content})
    _write_table(results, "calibration", bins)
    thresholds = [
        {"threshold": round(0.05 * number, 2)}
        | {
            f"{run}_jaccard": 0.8 - abs(number - best) / 50
            for run, best in zip(RUNS, (8, 10), strict=True)
        }
        | {
            f"{run}_dice": 0.9 - abs(number - best) / 50
            for run, best in zip(RUNS, (8, 10), strict=True)
        }
        for number in range(1, 20)
    ]
    _write_table(results, "thresholds", thresholds)


def _write_table(results: Results, name: str, rows: list[dict[str, Any]]) -> None:
    TABLES[name].write(results.evaluation.table(name), rows)


def _values(rows: list[dict[str, Any]], run: str, scope: str, metric: str) -> NDArray[np.float64]:
    return np.array([row[metric] for row in rows if (row["run"], row["scope"]) == (run, scope)])


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(columns))
        writer.writeheader()
        writer.writerows(rows)
