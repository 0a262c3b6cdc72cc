"""A model trained once with each seed: resumed, logged, and written to `results/<run>/`."""

import dataclasses
import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch

from lesionseg import provenance
from lesionseg.config import Config
from lesionseg.files import project_root, require, sha256
from lesionseg.hardware import compute_as_anywhere, describe, make_deterministic
from lesionseg.models.segmenter import save_model
from lesionseg.processes import only_writer
from lesionseg.results.layout import RUNS, Results, TrainingFiles
from lesionseg.results.tables import Row
from lesionseg.results.training import (
    VAL_SCORES,
    BestEpoch,
    TrainingRecord,
    Value,
    history_table,
    seed_scores_table,
)
from lesionseg.tracking import runs
from lesionseg.tracking.handle import Run
from lesionseg.tracking.parents import Pipeline
from lesionseg.training.checkpoints import (
    checkpoint_dir,
    claimed,
    delete_committed,
    load_checkpoint,
    mark_finished,
    save_checkpoint,
    stage_code,
)
from lesionseg.training.distributed import ALONE, Group
from lesionseg.training.loop import Epoch, Training
from lesionseg.training.setup import Inputs, make_training

_log = logging.getLogger("lesionseg.train")


def train_model(
    config: Config, run: str, *, results: Results, inputs: Inputs, group: Group = ALONE
) -> None:
    """Train a model with each seed; that of the first seed is the one evaluated image by image.

    If killed and restarted, it resumes after the last finished epoch. Of several processes, only
    the first keeps checkpoints, logs to MLflow and writes results.

    Raises:
        LesionsegError: Something that the user can fix.
    """
    make_deterministic()
    if config.train.is_the_same_anywhere:
        compute_as_anywhere()
    if group.rank:
        _assist(config, run, inputs=inputs, group=group)
        return
    delete_committed(project_root() / ".checkpoints")
    trainings = results.trainings(run, config.seeds())
    with ExitStack() as claims:
        claims.enter_context(only_writer(results.training(run).folder))
        checkpoints = []
        for seed, files in trainings.items():
            if len(trainings) > 1:
                _log.info("%s with seed %d of %s", run, seed, list(trainings))
            training = make_training(config, run, seed=seed, inputs=inputs, group=group)
            device = describe(training.device, training.recipe.precision)
            shared = f" in each of {group.size} processes" if group.size > 1 else ""
            _log.info("%s on %s%s", run, device, shared)
            facts = _facts(training, inputs)
            folder = claims.enter_context(claimed(_checkpoints(config, training, inputs, facts)))
            _train_seed(config, training, files, checkpoints=folder, facts=facts)
            checkpoints.append(folder)
        seed_scores_table(run).write(results.seed_scores(run), _seed_rows(run, trainings))
        for folder in checkpoints:  # not before: a killed stage restarts at its first seed
            mark_finished(folder, results.training(run).model)


def _assist(config: Config, run: str, *, inputs: Inputs, group: Group) -> None:
    """Compute this process's part of the training that the first process runs."""
    for seed in config.seeds():
        training = make_training(config, run, seed=seed, inputs=inputs, group=group)
        if checkpoint := group.share(None):
            training.load_state_dict(checkpoint)
        for _ in training:
            pass


def _facts(training: Training, inputs: Inputs) -> dict[str, str]:
    """What a training depends on besides parameters, for its checkpoints, tags and run.json."""
    index = require(inputs.processed / "train/index.csv", stage="preprocess")
    device = training.device
    return {
        "data_sha256": sha256(index),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": str(training.recipe.precision).removeprefix("torch."),
    }


def _checkpoints(
    config: Config, training: Training, inputs: Inputs, facts: Mapping[str, str]
) -> Path:
    """The folder of checkpoints of a training, unique to it."""
    run = training.recipe.run
    return checkpoint_dir(
        project_root() / ".checkpoints",
        run=run,
        settings={
            **config.training_params(run, seed=training.recipe.seed),
            **facts,
            "torch": torch.__version__,
            "num_threads": torch.get_num_threads(),
            "cpu": torch.backends.cpu.get_cpu_capability(),
        },
        inputs=inputs.files(),
        code=stage_code(run),
    )


def _train_seed(
    config: Config,
    training: Training,
    files: TrainingFiles,
    *,
    checkpoints: Path,
    facts: Mapping[str, str],
) -> None:
    """Train with one seed and write its results, in an MLflow run of its own."""
    run = training.recipe.run
    params = config.training_params(run, seed=training.recipe.seed)
    tags = {**provenance.tags(stage=run), **facts, "training_key": checkpoints.name}
    id_path, pipeline = checkpoints / "run_id", _pipeline(config)
    with runs.training_run(
        run, params=params, tags=tags, id_path=id_path, pipeline=pipeline
    ) as logged:
        train(training, checkpoints, logged)
        write_results(files, config, training, tags=tags, params=params)
    runs.complete_training(files, run=run)


def _pipeline(config: Config) -> Pipeline:
    """What the MLflow runs of both trainings have in common."""
    seeds = config.seeds()
    trainings = {run: config.training_params(run, seed=seeds[0]) for run in RUNS}
    return Pipeline(trainings=trainings, num_seeds=len(seeds))


def train(training: Training, folder: Path, logged: Run) -> None:
    """Run the remaining epochs, each saved in `folder` before it is reported."""
    run, num_epochs = training.recipe.run, training.recipe.train.epochs
    if checkpoint := training.group.share(load_checkpoint(folder)):
        training.load_state_dict(checkpoint)
        done = len(training.history)
        how = "is trained already" if done == num_epochs else "goes on"
        _log.info("%s %s after epoch %d", run, how, done)
        logged_epochs = logged.logged_steps("val/jaccard")
        for epoch in training.history:
            if epoch.epoch not in logged_epochs:
                _log_epoch(epoch, logged)
    start, num_before = time.perf_counter(), len(training.history)
    for epoch in training:
        save_checkpoint(folder, training.state_dict())
        _log_epoch(epoch, logged)
        pace = (time.perf_counter() - start) / (epoch.epoch - num_before)
        _log.info(
            f"{run} epoch {epoch.epoch}/{num_epochs}: loss {epoch.train_loss:.3f}, "
            f"val loss {epoch.val_loss:.3f}, val jaccard {epoch.val_jaccard:.3f}, "
            f"val dice {epoch.val_dice:.3f}; {epoch.seconds:.0f} s, "
            f"about {pace * (num_epochs - epoch.epoch) / 60:.1f} min left"
        )


def _log_epoch(epoch: Epoch, logged: Run) -> None:
    """Add one epoch's metrics to the MLflow run."""
    logged.log_metrics(runs.epoch_metrics(dataclasses.asdict(epoch)), step=epoch.epoch)


def write_results(
    files: TrainingFiles,
    config: Config,
    training: Training,
    *,
    tags: Mapping[str, str],
    params: Mapping[str, Value],
) -> None:
    """Write model.pt, history.csv, metrics.json and run.json.

    Args:
        files: Where they go.
        config: All of params.yaml.
        training: A finished training.
        tags: `provenance.tags`, data_sha256, device, precision and training_key.
        params: All parameters of the training, flat.
    """
    rows = [dataclasses.asdict(epoch) for epoch in training.history]
    seconds = sum(row.pop("seconds") for row in rows)
    recipe, weights = training.recipe, list(training.model.parameters())
    num_images = training.train.images_per_epoch * recipe.train.epochs
    save_model(
        files.model,
        state=training.best["state"],
        decoder=config.model.decoder,
        image_size=config.preprocess.image_size,
        frozen=recipe.encoder_lr == 0,
    )
    history_table(recipe.run).write(files.history, rows)
    _best_epoch(training).write(files)
    TrainingRecord(
        run=recipe.run,
        model_sha256=sha256(files.model),
        commit=tags["commit"],
        dvc_stage=tags["dvc_stage"],
        dvc_experiment=tags["dvc_experiment"],
        data_sha256=tags["data_sha256"],
        device=tags["device"],
        precision=tags["precision"],
        training_key=tags["training_key"],
        seconds=seconds,
        images_per_second=num_images / seconds,
        num_images=len(training.train.ids),
        num_parameters=sum(weight.numel() for weight in weights),
        num_trained_parameters=sum(w.numel() for w in weights if w.requires_grad),
        versions=provenance.versions(),
        params=dict(params),
    ).write(files)


def _best_epoch(training: Training) -> BestEpoch:
    best = training.history[training.best["epoch"] - 1]
    val = {name: getattr(best, f"val_{name}") for name in VAL_SCORES}
    return BestEpoch(
        best_epoch=best.epoch,
        train={"loss": best.train_loss},
        val={"loss": best.val_loss, **val},
    )


def _seed_rows(run: str, trainings: Mapping[int, TrainingFiles]) -> list[Row]:
    """The best epoch of each seed's training, as rows of seeds/scores.csv."""
    rows: list[Row] = []
    for seed, files in trainings.items():
        best = BestEpoch.read(files, run=run)
        scores = {f"val_{name}": value for name, value in best.val.items()}
        rows.append({"seed": seed, "best_epoch": best.best_epoch, **scores})
    return rows
