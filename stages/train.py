"""Train one of the two models on data/processed; write results/<run>/.

The best epoch by val/jaccard is kept. Killed and started again, it goes on from its last epoch.
"""

import argparse
import dataclasses
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from lesionseg import provenance
from lesionseg.config import RUNS, Config, load_config
from lesionseg.data.dataset import Fold, Split, load_split, split_fold
from lesionseg.files import (
    project_root,
    read_json,
    require,
    sha256,
    write_csv,
    write_json,
)
from lesionseg.hardware import (
    choose_device,
    choose_precision,
    describe,
    make_deterministic,
)
from lesionseg.models.segmenter import build_segmenter, load_encoder_state, save_model
from lesionseg.processes import only_writer
from lesionseg.tracking import runs
from lesionseg.training.checkpoints import (
    checkpoint_dir,
    claimed,
    delete_committed,
    load_checkpoint,
    mark_finished,
    save_checkpoint,
    stage_code,
)
from lesionseg.training.loop import VAL_METRICS, Epoch, Recipe, Training
from stages import result_dirs, run

PROCESSED, ENCODER = Path("data/processed"), Path("data/raw/encoder.pth")
INPUTS = [PROCESSED / s / f for s in ("train", "val") for f in ("images.npy", "masks.npy")]
_log = logging.getLogger("lesionseg.train")


def main(argv: Sequence[str] | None = None) -> None:
    """Train the model that the command line names, once with each seed."""
    parser = argparse.ArgumentParser(prog="python -m stages.train", description=__doc__)
    parser.add_argument("run", choices=RUNS, help="which of the two models")
    name = parser.parse_args(argv).run
    config = load_config(Path("params.yaml"))
    make_deterministic()
    delete_committed(project_root() / ".checkpoints")
    with ExitStack() as claims:
        claims.enter_context(only_writer(Path("results") / name))
        checkpoints = [
            train_seed(config, name, seed=seed, folder=folder, claims=claims)
            for seed, folder in result_dirs(name, config.seeds()).items()
        ]
        write_csv(Path("results") / name / "seeds/scores.csv", seed_rows(name, config.seeds()))
        for folder in checkpoints:  # not before: a killed stage starts at its first seed again
            mark_finished(folder, Path("results") / name / "model.pt")


def train_seed(config: Config, name: str, *, seed: int, folder: Path, claims: ExitStack) -> Path:
    """Train with one seed, write its results to `folder`; its checkpoints are returned."""
    if config.train.num_seeds > 1:
        _log.info("%s with seed %d of %s", name, seed, list(config.seeds()))
    device = choose_device(config.train.device)
    precision = choose_precision(config.train.precision, device)
    training = make_training(config, name, seed=seed, device=device, precision=precision)
    _log.info("%s on %s", name, describe(device, precision))
    params = config.training_params(name, seed=seed)
    facts = training_facts(device=device, precision=precision)
    unclaimed = checkpoint_dir(
        project_root() / ".checkpoints",
        run=name,
        settings={
            **params,
            **facts,
            "torch": torch.__version__,
            "num_threads": torch.get_num_threads(),
            "cpu": torch.backends.cpu.get_cpu_capability(),
        },
        inputs=[*INPUTS, ENCODER],
        code=stage_code(name),
    )
    checkpoints = claims.enter_context(claimed(unclaimed))
    tags = {**provenance.tags(stage=name), **facts, "training_key": checkpoints.name}
    id_path = checkpoints / "run_id"
    with runs.training_run(name, params=params, tags=tags, id_path=id_path) as logged:
        train(training, checkpoints, logged)
        write_results(folder, config, training, tags=tags, params=params)
    runs.complete_training(folder, name=name)
    return checkpoints


def training_facts(*, device: torch.device, precision: torch.dtype) -> dict[str, str]:
    """What a training depends on beside its parameters, for its checkpoints, tags and run.json."""
    return {
        "data_sha256": sha256(require(PROCESSED / "train/index.csv", stage="preprocess")),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": str(precision).removeprefix("torch."),
    }


def make_training(
    config: Config, name: str, *, seed: int, device: torch.device, precision: torch.dtype
) -> Training:
    """The training of one model, at its first epoch."""
    model = build_segmenter(
        encoder_state=load_encoder_state(ENCODER),
        decoder=config.model.decoder,
        dropout=config.model.dropout,
        frozen=config.encoder_lr(name) == 0,
        seed=seed,
    )
    recipe = make_recipe(config, name, seed=seed, precision=precision)
    train, val = choose_images(config, seed=seed)
    return Training(model=model, train=train, val=val, recipe=recipe, device=device)


def choose_images(config: Config, *, seed: int) -> tuple[Split | Fold, Split | Fold]:
    """What the training with one seed learns from, and what it validates on."""
    train, val = load_split(PROCESSED, "train"), load_split(PROCESSED, "val")
    if not config.train.cross_validate:
        return train, val
    return split_fold(
        train,
        val,
        fold=config.seeds().index(seed),
        num_folds=config.train.num_seeds,
        seed=config.train.seed,
    )


def make_recipe(config: Config, name: str, *, seed: int, precision: torch.dtype) -> Recipe:
    """How params.yaml says that one model is to be trained."""
    return Recipe(
        run=name,
        epochs=config.train.epochs,
        batch_size=config.train.batch_size,
        lr=config.train.lr,
        encoder_lr=config.encoder_lr(name),
        weight_decay=config.train.weight_decay,
        warmup_fraction=config.train.warmup_fraction,
        first_image_size=config.train.first_image_size,
        seed=seed,
        precision=precision,
        loss=dataclasses.asdict(config.loss),
        augment=dataclasses.asdict(config.augment),
    )


def log_epoch(epoch: Epoch, logged: runs.Run) -> None:
    """Add one epoch's metrics to the MLflow run."""
    logged.log_metrics(runs.epoch_metrics(dataclasses.asdict(epoch)), step=epoch.epoch)


def train(training: Training, folder: Path, logged: runs.Run) -> None:
    """Run the epochs still to come, each saved before it is reported."""
    checkpoint = load_checkpoint(folder)
    if checkpoint:
        training.load_state_dict(checkpoint)
        done, epochs = len(training.history), training.recipe.epochs
        how = "is trained already" if done == epochs else "goes on"
        _log.info("%s %s after epoch %d", training.recipe.run, how, done)
        logged_epochs = logged.logged_steps("val/jaccard")
        for epoch in training.history:
            if epoch.epoch not in logged_epochs:
                log_epoch(epoch, logged)
    start, num_before = time.perf_counter(), len(training.history)
    for epoch in training:
        save_checkpoint(folder, training.state_dict())
        log_epoch(epoch, logged)
        pace = (time.perf_counter() - start) / (epoch.epoch - num_before)
        _log.info(
            "%s epoch %d/%d: loss %.3f, val loss %.3f, val jaccard %.3f, val dice %.3f; %.0f s, "
            "about %.1f min left",
            *(training.recipe.run, epoch.epoch, training.recipe.epochs, epoch.train_loss),
            *(epoch.val_loss, epoch.val_jaccard, epoch.val_dice, epoch.seconds),
            pace * (training.recipe.epochs - epoch.epoch) / 60,
        )


def write_results(
    folder: Path,
    config: Config,
    training: Training,
    *,
    tags: dict[str, str],
    params: dict[str, Any],
) -> None:
    """Write model.pt, history.csv, metrics.json and run.json."""
    rows = [dataclasses.asdict(epoch) for epoch in training.history]
    seconds = sum(row.pop("seconds") for row in rows)
    best = training.history[training.best["epoch"] - 1]
    parameters = list(training.model.parameters())
    num_seen = len(training.train.ids) * training.recipe.epochs
    save_model(
        folder / "model.pt",
        state=training.best["state"],
        decoder=config.model.decoder,
        image_size=config.preprocess.image_size,
        frozen=training.recipe.encoder_lr == 0,
    )
    write_csv(folder / "history.csv", rows)
    write_json(folder / "metrics.json", best_metrics(best))
    details = {
        "run": training.recipe.run,
        "model_sha256": sha256(folder / "model.pt"),
        **tags,
        "seconds": seconds,
        "images_per_second": num_seen / seconds,
        "num_images": len(training.train.ids),
        "num_parameters": sum(p.numel() for p in parameters),
        "num_trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "versions": provenance.versions(),
        "params": params,
    }
    write_json(folder / "run.json", details)


def best_metrics(best: Epoch) -> dict[str, Any]:
    """The best epoch's numbers as metrics.json has them."""
    val = {name: getattr(best, f"val_{name}") for name in VAL_METRICS}
    return {
        "best_epoch": best.epoch,
        "train": {"loss": best.train_loss},
        "val": {"loss": best.val_loss, **val},
    }


def seed_rows(name: str, seeds: range) -> list[dict[str, Any]]:
    """The best epoch of each seed's training, as rows of seeds/scores.csv."""
    rows = []
    for seed, folder in result_dirs(name, seeds).items():
        metrics = read_json(folder / "metrics.json", stage=name)
        val = {f"val_{metric}": value for metric, value in metrics["val"].items()}
        rows.append({"seed": seed, "best_epoch": metrics["best_epoch"], **val})
    return rows


if __name__ == "__main__":
    run(main)
