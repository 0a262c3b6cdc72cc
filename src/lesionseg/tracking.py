"""MLflow, the history of runs.

Tracking never kills or changes a training. At the first call that fails, one warning is logged and
the run's other calls do nothing. What is missing then comes from the files in results/ later: at
the training's end by `complete_training`, or at any time by `lesionseg replay`.
"""

import csv
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from lesionseg.errors import DataError, first_line
from lesionseg.files import project_root, read_json, require, write_bytes

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "lesionseg"
FILES = ("model.pt", "history.csv", "metrics.json", "run.json")  # of a training
_SAMPLING_SECONDS = 5  # between two samples of CPU, memory, disk and GPU
_log = logging.getLogger(__name__)


class Run:
    """One MLflow run, or nothing where its server is away."""

    def __init__(self, client: "MlflowClient | None", run_id: str) -> None:
        self._client = client
        self.run_id = run_id

    def _call(self, function: Callable[["MlflowClient"], Any]) -> None:
        if self._client is None:
            return
        try:
            function(self._client)
        except Exception as error:  # noqa: BLE001  (a server fails in its own ways)
            self._client = None
            _warn(error)

    @property
    def is_lost(self) -> bool:
        """Whether a call has failed, so that the run may not have all."""
        return self._client is None

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Add the parameters that the run does not have; each can be set once."""
        from mlflow.entities import Param

        def log(client: "MlflowClient") -> None:
            known = client.get_run(self.run_id).data.params
            new = [Param(key, str(value)) for key, value in params.items() if key not in known]
            client.log_batch(self.run_id, params=new)

        self._call(log)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Add one value of each metric."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entities = [Metric(key, value, now, step) for key, value in metrics.items()]
        self._call(lambda client: client.log_batch(self.run_id, metrics=entities))

    def log_summary(self, metrics: Mapping[str, float]) -> None:
        """Add the metrics of which the run has not this very value already, at step 0."""

        def log(client: "MlflowClient") -> None:
            known = client.get_run(self.run_id).data.metrics
            self.log_metrics({k: v for k, v in metrics.items() if known.get(k) != v})

        self._call(log)

    def logged_steps(self, metric: str) -> set[int]:
        """Steps at which the run already has a value of `metric`."""
        steps: set[int] = set()
        self._call(
            lambda client: steps.update(
                value.step for value in client.get_metric_history(self.run_id, metric)
            )
        )
        return steps

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Add or replace tags."""
        from mlflow.entities import RunTag

        entities = [RunTag(key, value) for key, value in tags.items()]
        self._call(lambda client: client.log_batch(self.run_id, tags=entities))

    def tag(self, name: str) -> str | None:
        """The value of a tag, or None."""
        values: list[str | None] = []
        self._call(lambda client: values.append(client.get_run(self.run_id).data.tags.get(name)))
        return values[0] if values else None

    def artifacts(self, folder: str | None = None) -> set[str]:
        """Names of the run's artifacts, of those in a folder with the folder's."""
        names: set[str] = set()
        self._call(
            lambda client: names.update(
                file.path for file in client.list_artifacts(self.run_id, folder)
            )
        )
        return names

    def log_file(self, path: Path) -> None:
        """Add a file as an artifact, in the place of one of its name."""
        self._call(lambda client: client.log_artifact(self.run_id, str(path)))

    def log_dataset(self, name: str, *, digest: str, source: str, context: str) -> None:
        """Say which data the run has used; any number of times."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=digest[:36],  # as many as MLflow keeps
            source_type="local",
            source=json.dumps({"uri": source}),
        )
        tag = InputTag("mlflow.data.context", context)
        self._call(lambda client: client.log_inputs(self.run_id, [DatasetInput(dataset, [tag])]))

    def log_figure(self, figure: Any, name: str) -> None:
        """Add a matplotlib figure as an artifact."""
        self._call(lambda client: client.log_figure(self.run_id, figure, name))

    def finish(self, status: str = "FINISHED") -> None:
        """End the run."""
        self._call(lambda client: client.set_terminated(self.run_id, status))


@contextmanager
def training_run(
    name: str, *, params: Mapping[str, Any], tags: Mapping[str, str], id_path: Path
) -> Iterator[Run]:
    """A run that ends with the block: FINISHED, FAILED after an error, KILLED when interrupted.

    A training that was killed is taken up again in its own run, whose id `id_path` keeps.
    """
    run = _start_run(name, params=params, tags=tags, id_path=id_path)
    try:
        with _system_metrics(run):
            yield run
    except BaseException as error:
        run.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    run.finish()


def _start_run(
    name: str, *, params: Mapping[str, Any], tags: Mapping[str, str], id_path: Path
) -> Run:
    try:
        client, experiment_id = connect()
        if id_path.exists():
            run_id = id_path.read_text().strip()
            client.update_run(run_id, status="RUNNING")
            return Run(client, run_id)
        started = client.create_run(experiment_id, run_name=name, tags=dict(tags))
    except Exception as error:  # noqa: BLE001  (a server fails in its own ways)
        _warn(error)
        return Run(None, "")
    write_bytes(id_path, started.info.run_id.encode())
    run = Run(client, started.info.run_id)
    run.log_params(params)
    return run


@contextmanager
def _system_metrics(run: Run) -> Iterator[None]:
    """MLflow's samples of CPU, memory, disk, network and GPU for as long as the block takes."""
    if run.is_lost:
        yield
        return
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)  # one warning is enough
    monitor = SystemMetricsMonitor(
        run.run_id,
        sampling_interval=_SAMPLING_SECONDS,
        resume_logging=True,
        tracking_uri=_tracking_uri(),
    )
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def complete_training(folder: Path, *, name: str) -> Run:
    """The MLflow run of the training whose files are in `folder`, with all that belongs to it.

    It is the latest run with the training's key, or a new one. What it has already is left alone,
    so that any number of calls gives the same run.

    Args:
        folder: Holds `FILES`.
        name: The training's stage.

    Raises:
        MissingFileError: One of the files is not there.
        DataError: One of them is damaged.
    """
    record = read_json(folder / "run.json", stage=name)
    metrics = read_json(folder / "metrics.json", stage=name)
    try:
        tags = run_tags(record)
        summary = {
            "best/epoch": metrics["best_epoch"],
            **{f"best/val_{key}": value for key, value in metrics["val"].items()},
            **{key: record[key] for key in ("seconds", "images_per_second")},
        }
        epochs = _read_epochs(folder / "history.csv", stage=name)
        params = dict(record["params"])
    except KeyError as error:
        raise DataError(
            f"{folder}/run.json has no {error}, or metrics.json. Run: dvc repro -f {name}"
        ) from None
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{folder}/run.json or metrics.json is damaged ({first_line(error)}). "
            f"Run: dvc repro -f {name}"
        ) from None
    run = _open_run(name, record)
    run.set_tags(tags)
    run.log_params(params)
    logged = run.logged_steps("val/jaccard")
    for epoch, values in epochs.items():
        if epoch not in logged:
            run.log_metrics(values, step=epoch)
    run.log_summary(summary)
    known = run.artifacts()
    for file_name in FILES:
        if file_name not in known:
            run.log_file(require(folder / file_name, stage=name))
    run.log_dataset(
        "train", digest=record["data_sha256"], source="data/processed/train", context="training"
    )
    run.finish()
    return run


def _read_epochs(path: Path, *, stage: str) -> dict[int, dict[str, float]]:
    """The metrics of each epoch in a history.csv.

    Raises:
        MissingFileError: It is not there.
        DataError: It is damaged.
    """
    require(path, stage=stage)
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = {int(row["epoch"]): epoch_metrics(row) for row in csv.DictReader(stream)}
    except (KeyError, TypeError, ValueError, AttributeError, csv.Error) as error:
        raise DataError(
            f"{path} is no table of epochs ({first_line(error)}). Run: dvc repro -f {stage}"
        ) from None
    if not rows:
        raise DataError(f"{path} has no epochs. Run: dvc repro -f {stage}")
    return rows


def epoch_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """A row of history.csv under MLflow's names: `val_jaccard` as `val/jaccard`."""
    return {
        key.replace("_", "/", 1) if key.startswith(("train_", "val_")) else key: float(value)
        for key, value in row.items()
        if key not in ("epoch", "seconds")
    }


def run_tags(record: Mapping[str, Any]) -> dict[str, str]:
    """What a run is found by, from the training's run.json."""
    names = ("commit", "dvc_stage", "dvc_experiment", "data_sha256", "device", "precision")
    params = json.dumps(record["params"], sort_keys=True)
    return {
        **{key: str(record[key]) for key in (*names, "training_key", "model_sha256")},
        **{key: str(record[key]) for key in ("teacher_sha256",) if key in record},
        "params_sha256": hashlib.sha256(params.encode()).hexdigest(),
        **{f"version.{package}": version for package, version in record["versions"].items()},
    }


def _open_run(name: str, record: Mapping[str, Any]) -> Run:
    """The latest run with the training's key, or a new one that began as long ago as it took."""
    try:
        client, experiment_id = connect()
        found = _latest(client, experiment_id, tag="training_key", value=record["training_key"])
        if found:
            return Run(client, found)
        start = int((time.time() - record["seconds"]) * 1000)
        started = client.create_run(experiment_id, run_name=name, start_time=start)
    except Exception as error:  # noqa: BLE001  (a server fails in its own ways)
        _warn(error)
        return Run(None, "")
    return Run(client, started.info.run_id)


def _latest(client: "MlflowClient", experiment_id: str, *, tag: str, value: str) -> str:
    """The id of the latest run with a tag, or nothing."""
    found = client.search_runs(
        [experiment_id],
        f"tags.{tag} = '{value}'",
        max_results=1,
        order_by=["attributes.start_time DESC"],
    )
    return str(found[0].info.run_id) if found else ""


def find_run(*, model_sha256: str, quiet: bool = False) -> Run:
    """The latest run that trained the model of this hash; a `Run` of nothing where there is none.

    A model that DVC restored from its cache may have been trained under another tracking store.
    """
    try:
        client, experiment_id = connect()
        found = _latest(client, experiment_id, tag="model_sha256", value=model_sha256)
    except Exception as error:  # noqa: BLE001  (a server fails in its own ways)
        _warn(error)
        return Run(None, "")
    if not found and not quiet:
        _log.warning(
            "no MLflow run has trained model %s; its test metrics stay in results/. "
            "To bring both into MLflow run: lesionseg replay",
            model_sha256[:12],
        )
    return Run(client if found else None, found)


def _tracking_uri() -> str:
    """Where the runs are: `MLFLOW_TRACKING_URI`, or the project's own database."""
    own = f"sqlite:///{project_root() / 'mlruns/mlflow.db'}"
    return os.environ.get("MLFLOW_TRACKING_URI") or own


def connect() -> "tuple[MlflowClient, str]":
    """A client of the project's store, or of `MLFLOW_TRACKING_URI`, and the experiment's id."""
    # A server that is away should cost seconds, not the minutes of the default.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    for chatty in ("alembic", "mlflow"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(
        logging.ERROR
    )  # of a server that is away we warn ourselves
    folder = project_root() / "mlruns"
    has_server = bool(os.environ.get("MLFLOW_TRACKING_URI"))
    artifacts = None if has_server else (folder / "artifacts").as_uri()
    folder.mkdir(exist_ok=True)
    # Two processes that create the database at once break each other's schema.
    with FileLock(folder / ".lock"):
        client = MlflowClient(_tracking_uri())
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            return client, str(experiment.experiment_id)
        try:
            return client, str(client.create_experiment(EXPERIMENT, artifact_location=artifacts))
        except MlflowException:  # the lock is this machine's; on a server another was faster
            experiment = client.get_experiment_by_name(EXPERIMENT)
            if experiment is None:
                raise
            return client, str(experiment.experiment_id)


def _warn(error: Exception) -> None:
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    _log.warning("MLflow is not available, this run goes on without it: %s", reason)
