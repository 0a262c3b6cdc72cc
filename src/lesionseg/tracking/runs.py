"""MLflow, the history of runs.

Tracking never kills, delays or changes a training. If its store fails, one warning is logged and
nothing more is tried for some minutes. What is missing is added later from the files in results/:
at the training's end by `complete_training`, or at any time by `lesionseg replay`.
"""

import hashlib
import json
import logging
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lesionseg.errors import TrackingError
from lesionseg.files import project_root, require, write_bytes
from lesionseg.results.layout import TrainingFiles
from lesionseg.results.training import BestEpoch, TrainingRecord, history_table
from lesionseg.tracking import attempts, parents, store
from lesionseg.tracking.handle import MAX_TAG, Run, lost_run, shorten, steps_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

# Of each epoch; history.csv, an artefact of the run, has all columns.
EPOCH_METRICS = ("train_loss", "val_loss", "val_jaccard", "val_dice", "lr")
_log = logging.getLogger(__name__)
_started: dict[tuple[str, str], str] = {}  # runs of this process, by store and training_key


@contextmanager
def training_run(
    name: str,
    *,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    id_path: Path,
    pipeline: parents.Pipeline | None = None,
) -> Iterator[Run]:
    """A run that ends with the block: FINISHED, FAILED after an error, KILLED when interrupted.

    A training that was killed is resumed in its own run, whose id is kept in `id_path`. Without the
    file, the run is recognised by its tag `training_key`, its status RUNNING, and where it ran.

    Args:
        name: One of `RUNS`.
        params: All parameters of the training, flat.
        tags: Tags by which to find it.
        id_path: The file of the run's id.
        pipeline: The pipeline run that is its parent, if there is one.
    """
    with parents.joined(pipeline, tags=tags) as parent:
        own = {**_facts(tags, params), **_place(), **attempts.attempt_tag()}
        own |= {parents.PARENT: parent} if parent else {}
        run = _start_run(name, params=params, tags={**tags, **own}, id_path=id_path)
        try:
            with run.system_metrics():
                yield run
        except BaseException as error:
            run.finish("FAILED" if isinstance(error, Exception) else "KILLED")
            raise
        run.finish()


def _facts(tags: Mapping[str, str], params: Mapping[str, Any]) -> dict[str, str]:
    """Further tags of a training, for finding it."""
    sweep = parents.sweep_of(tags.get("dvc_experiment", ""))
    return {"kind": "training", **parents.facts_of(params), **({"sweep": sweep} if sweep else {})}


def _origin(tags: Mapping[str, str]) -> dict[str, str]:
    return parents.origin(source="stages/train.py", commit=tags.get("commit", ""))


def _place() -> dict[str, str]:
    """Where a training runs: only there can one tell whether a process still works on it."""
    return {"host": socket.gethostname(), "folder": str(project_root())}


def _again(tags: Mapping[str, str]) -> dict[str, str]:
    """Those of a training's tags that change when it is resumed."""
    return {name: tags[name] for name in (parents.PARENT, attempts.ATTEMPT) if name in tags}


def _start_run(
    name: str, *, params: Mapping[str, Any], tags: Mapping[str, str], id_path: Path
) -> Run:
    def start() -> tuple[str, frozenset[int]]:
        run_id = _take_up(client, experiment_id, tags=tags, id_path=id_path)
        if run_id:
            for key, value in _again(tags).items():
                client.set_tag(run_id, key, value)
            return run_id, frozenset(steps_of(client, run_id, "val/jaccard"))
        own = {**tags, **_origin(tags)}
        created = client.create_run(
            experiment_id,
            run_name=parents.training_name(name, params),
            tags={key: shorten(value, MAX_TAG) for key, value in own.items()},
        )
        return str(created.info.run_id), frozenset()

    try:
        client, experiment_id = store.connect()
        run_id, logged_steps = store.current().ask(start)
    except TrackingError as error:
        return lost_run(error)
    with suppress(OSError):  # without the file the run is found by its tags
        write_bytes(id_path, run_id.encode())
    if "training_key" in tags:
        _started[store.uri(), tags["training_key"]] = run_id
    run = Run(client, run_id, logged_steps=logged_steps)
    run.log_params(params)
    return run


def _take_up(
    client: "MlflowClient", experiment_id: str, *, tags: Mapping[str, str], id_path: Path
) -> str:
    """The id of the run of this training that a dead process left, or "".

    Other runs that were left RUNNING are ended: only one process holds the lock on the checkpoints.
    """
    left = []
    if "training_key" in tags:
        query = f"tags.training_key = '{tags['training_key']}' and attributes.status = 'RUNNING'"
        found = client.search_runs([experiment_id], query)
        left = [run.info.run_id for run in found if _is_of_this_place(run)]
    run_id = _read_id(client, experiment_id, id_path) or (left[0] if left else "")
    if run_id:
        client.update_run(run_id, status="RUNNING")
    for other in left:
        if other != run_id:
            client.set_terminated(other, "KILLED")
    return run_id


def _read_id(client: "MlflowClient", experiment_id: str, id_path: Path) -> str:
    """The id in a file, if it is that of an undeleted run in this store; else ""."""
    from mlflow.exceptions import MlflowException

    if not id_path.exists():
        return ""
    try:
        info = client.get_run(id_path.read_text(errors="replace").strip()).info
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return ""
        raise
    is_here = info.lifecycle_stage == "active" and info.experiment_id == experiment_id
    return str(info.run_id) if is_here else ""


def _is_of_this_place(run: "MlflowRun") -> bool:
    """Whether a run belongs to this project on this machine, as all in its own database do."""
    tags = run.data.tags
    return store.is_own() or all(tags.get(k) == v for k, v in _place().items())


def complete_training(files: TrainingFiles, *, run: str) -> Run:
    """The MLflow run of a training, completed from its files.

    It is the latest run with the training's key, or a new one. What it already has is left alone,
    so that any number of calls gives the same run.

    Args:
        files: The training's results.
        run: Its name in `RUNS`.

    Raises:
        MissingFileError: One of the files is missing.
        DataError: One of them is damaged.
    """
    for path in files.all():
        require(path, stage=run)
    record, best = TrainingRecord.read(files, run=run), BestEpoch.read(files, run=run)
    history = history_table(run).read(files.history)
    logged = _open_run(record)
    logged.rename(record.run, to=parents.training_name(record.run, record.params))
    logged.set_tags(run_tags(record))
    logged.log_params(record.params)
    known_epochs = logged.logged_steps("val/jaccard")
    for row in history.to_dict("records"):
        if row["epoch"] not in known_epochs:
            logged.log_metrics(epoch_metrics(row), step=int(row["epoch"]))
    logged.log_summary(
        {
            "best/epoch": best.best_epoch,
            "best/val_jaccard": best.val["jaccard"],
            "seconds": record.seconds,
            "images_per_second": record.images_per_second,
        }
    )
    known = logged.artifacts()
    for path in files.all():
        if known.get(path.name) != path.stat().st_size:  # missing, or cut short by a kill
            logged.log_file(path)
    logged.log_dataset(
        "train", digest=record.data_sha256, source="data/processed/train", context="training"
    )
    logged.finish()
    return logged


def epoch_metrics(row: Mapping[Any, float]) -> dict[str, float]:
    """A row of history.csv under MLflow's names: `val_jaccard` as `val/jaccard`."""
    return {re.sub("^(train|val)_", r"\1/", key): float(row[key]) for key in EPOCH_METRICS}


def run_tags(record: TrainingRecord) -> dict[str, str]:
    """Tags by which a run is found."""
    params = json.dumps(record.params, sort_keys=True)
    tags = {name: str(getattr(record, name)) for name in parents.SHARED}
    return {
        **tags,
        **_facts(tags, record.params),
        "dvc_stage": record.dvc_stage,
        "training_key": record.training_key,
        "model_sha256": record.model_sha256,
        "params_sha256": hashlib.sha256(params.encode()).hexdigest(),
        **{f"version.{package}": version for package, version in record.versions.items()},
    }


def _open_run(record: TrainingRecord) -> Run:
    """The run of this process's training, the latest with its key, or a new one.

    The start of a new one is set back by the duration of the training.
    """

    def find() -> str:
        key = record.training_key
        found = _started.get((store.uri(), key)) or _latest(
            client, experiment_id, tag="training_key", value=key
        )
        if found:
            return found
        start = int((time.time() - record.seconds) * 1000)
        created = client.create_run(
            experiment_id,
            run_name=parents.training_name(record.run, record.params),
            start_time=start,
            tags=_origin({"commit": record.commit}),
        )
        return str(created.info.run_id)

    try:
        client, experiment_id = store.connect()
        return Run(client, store.current().ask(find))
    except TrackingError as error:
        return lost_run(error)


def _latest(client: "MlflowClient", experiment_id: str, *, tag: str, value: str) -> str:
    """The id of the latest run with a tag, or ""; never one that is still running elsewhere."""
    found = client.search_runs(
        [experiment_id],
        f"tags.{tag} = '{value}'",
        max_results=100,
        order_by=["attributes.start_time DESC"],
    )
    ours = [run for run in found if run.info.status != "RUNNING" or _is_of_this_place(run)]
    return str(ours[0].info.run_id) if ours else ""


def find_run(*, model_sha256: str, quiet: bool = False) -> Run:
    """The latest run that trained the model with this hash; a `Run` without id if there is none.

    A model that DVC restored from its cache may have been trained with another tracking store.
    """
    try:
        client, experiment_id = store.connect()
        found = store.current().ask(
            lambda: _latest(client, experiment_id, tag="model_sha256", value=model_sha256)
        )
    except TrackingError as error:
        return lost_run(error)
    if not found and not quiet:
        _log.warning(
            "no MLflow run has trained model %s; its test metrics stay in results/. "
            "To bring both into MLflow run: lesionseg replay",
            model_sha256[:12],
        )
    return Run(client if found else None, found)
