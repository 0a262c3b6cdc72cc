"""MLflow, the history of runs.

Tracking never kills, delays or changes a training. Where its store fails, one warning is logged and
nothing more is tried for some minutes. What is missing then comes from the files in results/ later:
at the training's end by `complete_training`, or at any time by `lesionseg replay`.
"""

import hashlib
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lesionseg.errors import TrackingError
from lesionseg.files import project_root, require, write_bytes
from lesionseg.results.layout import TrainingFiles
from lesionseg.results.training import BestEpoch, TrainingRecord, history_table
from lesionseg.tracking import store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

_SAMPLING_SECONDS = 5  # between two samples of CPU, memory, disk and GPU
_UPLOAD_BYTES = 1_000_000  # a second, of the slowest connection that counts as one
_MAX_PARAM, _MAX_TAG = 6000, 5000  # characters of a value
_log = logging.getLogger(__name__)
_started: dict[tuple[str, str], str] = {}  # runs of this process, by store and training_key
_Result = TypeVar("_Result")


class Run:
    """One MLflow run, or nothing where its store fails.

    Attributes:
        run_id: MLflow's, or nothing.
        error: Why the run may not have all: what has failed, in one line; or nothing.
    """

    def __init__(
        self,
        client: "MlflowClient | None",
        run_id: str,
        *,
        error: str = "",
        logged_steps: frozenset[int] = frozenset(),
    ) -> None:
        self._client = client
        self.run_id = run_id
        self.error = error
        self._logged_steps = logged_steps

    def _call(
        self,
        function: Callable[["MlflowClient"], _Result],
        *,
        default: _Result,
        extra_seconds: float = 0,
    ) -> _Result:
        client = self._client
        if client is None:
            return default
        try:
            return store.current().ask(lambda: function(client), extra_seconds=extra_seconds)
        except TrackingError as error:
            self._client, self.error = None, str(error)
            store.current().warn(error)
            return default

    def _facts(self, kind: str) -> dict[str, Any]:
        """The run's `params`, `tags`, or latest `metrics`."""
        return self._call(
            lambda client: dict(getattr(client.get_run(self.run_id).data, kind)), default={}
        )

    @property
    def is_lost(self) -> bool:
        """Whether a call has failed, so that the run may not have all, or there is no run."""
        return self._client is None

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Add the parameters that the run does not have; each can be set once."""
        from mlflow.entities import Param

        known = self._facts("params")
        new = [
            Param(key, _shorten(str(value), _MAX_PARAM))
            for key, value in params.items()
            if key not in known
        ]
        if new:
            self._call(lambda client: client.log_batch(self.run_id, params=new), default=None)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Add one value of each metric, but for a step that the run had when it was taken up."""
        from mlflow.entities import Metric

        if self.is_lost or not metrics or step in self._logged_steps:
            return
        now = int(time.time() * 1000)
        entities = [Metric(key, value, now, step) for key, value in metrics.items()]
        self._call(lambda client: client.log_batch(self.run_id, metrics=entities), default=None)

    def log_summary(self, metrics: Mapping[str, float]) -> None:
        """Add the metrics of which the run has not this very value already, at step 0."""
        known = self._facts("metrics")
        self.log_metrics({k: v for k, v in metrics.items() if known.get(k) != v})

    def logged_steps(self, metric: str) -> set[int]:
        """Steps at which the run already has a value of `metric`."""
        return self._call(lambda client: _steps(client, self.run_id, metric), default=set())

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Add or replace tags."""
        from mlflow.entities import RunTag

        entities = [RunTag(key, _shorten(value, _MAX_TAG)) for key, value in tags.items()]
        self._call(lambda client: client.log_batch(self.run_id, tags=entities), default=None)

    def tag(self, name: str) -> str | None:
        """The value of a tag, or None."""
        return self._facts("tags").get(name)

    def artifacts(self, folder: str | None = None) -> dict[str, int | None]:
        """The run's artifacts, or a folder's: sizes in bytes under their names, None of folders."""
        return self._call(
            lambda client: {
                file.path: file.file_size for file in client.list_artifacts(self.run_id, folder)
            },
            default={},
        )

    def log_file(self, path: Path) -> None:
        """Add a file as an artifact, in the place of one of its name."""
        self._call(
            lambda client: client.log_artifact(self.run_id, str(path)),
            default=None,
            extra_seconds=path.stat().st_size / _UPLOAD_BYTES,
        )

    def log_dataset(self, name: str, *, digest: str, source: str, context: str) -> None:
        """Say which data the run has used; any number of times."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=digest[:36],  # as many as MLflow keeps
            source_type="local",
            source=json.dumps({"uri": source}),
        )
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])]
        self._call(lambda client: client.log_inputs(self.run_id, inputs), default=None)

    def log_figure(self, figure: Any, name: str) -> None:
        """Add a matplotlib figure as an artifact."""
        self._call(lambda client: client.log_figure(self.run_id, figure, name), default=None)

    def finish(self, status: str = "FINISHED") -> None:
        """End the run."""
        self._call(lambda client: client.set_terminated(self.run_id, status), default=None)

    @contextmanager
    def system_metrics(self) -> Iterator[None]:
        """Samples of CPU, memory, disk, network and GPU for as long as the block takes."""
        monitor = self._call(lambda _: _start_monitor(self.run_id), default=None)
        try:
            yield
        finally:
            if monitor is not None and self.is_lost:  # it stops, and nobody waits for it
                threading.Thread(target=monitor.finish, daemon=True).start()
            elif monitor is not None:
                self._call(lambda _: monitor.finish(), default=None)


def _shorten(value: str, limit: int) -> str:
    """A value that MLflow takes; run.json, an artifact of the run, has it whole."""
    return value if len(value) <= limit else f"{value[: limit - 1]}…"


def _steps(client: "MlflowClient", run_id: str, metric: str) -> set[int]:
    return {value.step for value in client.get_metric_history(run_id, metric)}


def _start_monitor(run_id: str) -> "SystemMetricsMonitor | None":
    """MLflow's sampling of the machine, or None: for want of samples no run is given up."""
    with suppress(Exception):
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(
            run_id,
            sampling_interval=_SAMPLING_SECONDS,
            resume_logging=True,
            tracking_uri=store.uri(),
        )
        monitor.start()
        return monitor
    return None


@contextmanager
def training_run(
    name: str, *, params: Mapping[str, Any], tags: Mapping[str, str], id_path: Path
) -> Iterator[Run]:
    """A run that ends with the block: FINISHED, FAILED after an error, KILLED when interrupted.

    A training that was killed is taken up again in its own run, whose id `id_path` keeps. Without
    it that run is known by its tag `training_key`, its status RUNNING, and where it ran.
    """
    run = _start_run(name, params=params, tags={**tags, **_place()}, id_path=id_path)
    try:
        with run.system_metrics():
            yield run
    except BaseException as error:
        run.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    run.finish()


def _place() -> dict[str, str]:
    """Where a training runs: only there is known whether a process still works on a run."""
    return {"host": socket.gethostname(), "folder": str(project_root())}


def _start_run(
    name: str, *, params: Mapping[str, Any], tags: Mapping[str, str], id_path: Path
) -> Run:
    def start() -> tuple[str, frozenset[int]]:
        run_id = _take_up(client, experiment_id, tags=tags, id_path=id_path)
        if run_id:
            return run_id, frozenset(_steps(client, run_id, "val/jaccard"))
        short = {key: _shorten(value, _MAX_TAG) for key, value in tags.items()}
        created = client.create_run(experiment_id, run_name=name, tags=short)
        return str(created.info.run_id), frozenset()

    try:
        client, experiment_id = store.connect()
        run_id, logged_steps = store.current().ask(start)
    except TrackingError as error:
        store.current().warn(error)
        return Run(None, "", error=str(error))
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
    """The id of the run that a process which is dead has left of this training, or nothing.

    Others that were left RUNNING are ended: whoever trains holds the lock on its checkpoints.
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
    """The id in a file, if it is that of a run in this store that nobody has deleted."""
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
    """Whether a run belongs to this project on this machine, as all of its own database do."""
    tags = run.data.tags
    return store.is_own() or all(tags.get(k) == v for k, v in _place().items())


def complete_training(files: TrainingFiles, *, run: str) -> Run:
    """The MLflow run of a training, with all that belongs to it.

    It is the latest run with the training's key, or a new one. What it has already is left alone,
    so that any number of calls gives the same run.

    Args:
        files: The training's results.
        run: Its name in `RUNS`.

    Raises:
        MissingFileError: One of the files is not there.
        DataError: One of them is damaged.
    """
    for path in files.all():
        require(path, stage=run)
    record, best = TrainingRecord.read(files, run=run), BestEpoch.read(files, run=run)
    history = history_table(run).read(files.history)
    logged = _open_run(record)
    logged.set_tags(run_tags(record))
    logged.log_params(record.params)
    known_epochs = logged.logged_steps("val/jaccard")
    for row in history.to_dict("records"):
        if row["epoch"] not in known_epochs:
            logged.log_metrics(epoch_metrics(row), step=int(row["epoch"]))
    logged.log_summary(
        {
            "best/epoch": best.best_epoch,
            **{f"best/val_{key}": value for key, value in best.val.items()},
            "seconds": record.seconds,
            "images_per_second": record.images_per_second,
        }
    )
    known = logged.artifacts()
    for path in files.all():
        if known.get(path.name) != path.stat().st_size:  # not there, or cut short by a kill
            logged.log_file(path)
    logged.log_dataset(
        "train", digest=record.data_sha256, source="data/processed/train", context="training"
    )
    logged.finish()
    return logged


def epoch_metrics(row: Mapping[Any, float]) -> dict[str, float]:
    """A row of history.csv under MLflow's names: `val_jaccard` as `val/jaccard`."""
    return {
        re.sub("^(train|val)_", r"\1/", str(key)): float(value)
        for key, value in row.items()
        if key not in ("epoch", "seconds")
    }


def run_tags(record: TrainingRecord) -> dict[str, str]:
    """What a run is found by."""
    params = json.dumps(record.params, sort_keys=True)
    return {
        "commit": record.commit,
        "dvc_stage": record.dvc_stage,
        "dvc_experiment": record.dvc_experiment,
        "data_sha256": record.data_sha256,
        "device": record.device,
        "precision": record.precision,
        "training_key": record.training_key,
        "model_sha256": record.model_sha256,
        "params_sha256": hashlib.sha256(params.encode()).hexdigest(),
        **{f"version.{package}": version for package, version in record.versions.items()},
    }


def _open_run(record: TrainingRecord) -> Run:
    """The run of this process's training, the latest with its key, or a new one.

    A new one began as long ago as the training took.
    """

    def find() -> str:
        key = record.training_key
        found = _started.get((store.uri(), key)) or _latest(
            client, experiment_id, tag="training_key", value=key
        )
        if found:
            return found
        start = int((time.time() - record.seconds) * 1000)
        created = client.create_run(experiment_id, run_name=record.run, start_time=start)
        return str(created.info.run_id)

    try:
        client, experiment_id = store.connect()
        return Run(client, store.current().ask(find))
    except TrackingError as error:
        store.current().warn(error)
        return Run(None, "", error=str(error))


def _latest(client: "MlflowClient", experiment_id: str, *, tag: str, value: str) -> str:
    """The id of the latest run with a tag, or nothing; never one that is under way elsewhere."""
    found = client.search_runs(
        [experiment_id],
        f"tags.{tag} = '{value}'",
        max_results=100,
        order_by=["attributes.start_time DESC"],
    )
    ours = [run for run in found if run.info.status != "RUNNING" or _is_of_this_place(run)]
    return str(ours[0].info.run_id) if ours else ""


def find_run(*, model_sha256: str, quiet: bool = False) -> Run:
    """The latest run that trained the model of this hash; a `Run` of nothing where there is none.

    A model that DVC restored from its cache may have been trained under another tracking store.
    """
    try:
        client, experiment_id = store.connect()
        found = store.current().ask(
            lambda: _latest(client, experiment_id, tag="model_sha256", value=model_sha256)
        )
    except TrackingError as error:
        store.current().warn(error)
        return Run(None, "", error=str(error))
    if not found and not quiet:
        _log.warning(
            "no MLflow run has trained model %s; its test metrics stay in results/. "
            "To bring both into MLflow run: lesionseg replay",
            model_sha256[:12],
        )
    return Run(client if found else None, found)
