"""A handle for one MLflow run, which does nothing if the store fails."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lesionseg.errors import TrackingError
from lesionseg.tracking import store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

MAX_TAG = 5000  # characters of a value
_MAX_PARAM = 6000
_SAMPLING_SECONDS = 5  # between two samples of CPU, memory, disk and GPU
_UPLOAD_BYTES = 1_000_000  # per second, over the slowest connection we wait for
_Result = TypeVar("_Result")


class Run:
    """One MLflow run; every call does nothing once the store has failed.

    Attributes:
        run_id: MLflow's id of the run, or "".
        error: Why the run may be incomplete: what has failed, in one line; or "".
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
        """Whether there is no run, or a call has failed, so that the run may be incomplete."""
        return self._client is None

    @property
    def experiment_id(self) -> str:
        """MLflow's id of its experiment; "" if the store fails."""
        return self._call(
            lambda client: str(client.get_run(self.run_id).info.experiment_id), default=""
        )

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Add the parameters that the run does not have yet; each can be set only once."""
        from mlflow.entities import Param

        known = self._facts("params")
        new = [
            Param(key, shorten(str(value), _MAX_PARAM))
            for key, value in params.items()
            if key not in known
        ]
        if new:
            self._call(lambda client: client.log_batch(self.run_id, params=new), default=None)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Add one value of each metric, unless the run had this step when it was resumed."""
        from mlflow.entities import Metric

        if self.is_lost or not metrics or step in self._logged_steps:
            return
        now = int(time.time() * 1000)
        entities = [Metric(key, value, now, step) for key, value in metrics.items()]
        self._call(lambda client: client.log_batch(self.run_id, metrics=entities), default=None)

    def log_summary(self, metrics: Mapping[str, float]) -> None:
        """Add, at step 0, the metrics whose latest value in the run differs."""
        known = self._facts("metrics")
        self.log_metrics({k: v for k, v in metrics.items() if known.get(k) != v})

    def logged_steps(self, metric: str) -> set[int]:
        """Steps at which the run already has a value of `metric`."""
        return self._call(lambda client: steps_of(client, self.run_id, metric), default=set())

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Add or replace tags."""
        from mlflow.entities import RunTag

        entities = [RunTag(key, shorten(value, MAX_TAG)) for key, value in tags.items()]
        self._call(lambda client: client.log_batch(self.run_id, tags=entities), default=None)

    def tag(self, name: str) -> str | None:
        """The value of a tag, or None."""
        return self._facts("tags").get(name)

    def rename(self, name: str, *, to: str) -> None:
        """Rename it if it has a given name, that of earlier versions of this program."""

        def rename(client: "MlflowClient") -> None:
            if client.get_run(self.run_id).info.run_name == name:
                client.update_run(self.run_id, name=to)

        self._call(rename, default=None)

    def artifacts(self, folder: str | None = None) -> dict[str, int | None]:
        """The artifacts of the run or a folder: size in bytes by name, None for folders."""
        return self._call(
            lambda client: {
                file.path: file.file_size for file in client.list_artifacts(self.run_id, folder)
            },
            default={},
        )

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Add a file as an artifact, optionally in a folder, replacing one with the same name."""
        self._call(
            lambda client: client.log_artifact(self.run_id, str(path), folder),
            default=None,
            extra_seconds=path.stat().st_size / _UPLOAD_BYTES,
        )

    def log_dataset(self, name: str, *, digest: str, source: str, context: str) -> None:
        """Record which data the run has used; may be called any number of times."""
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
        """End the run; one that has already ended with this status keeps its end time."""

        def end(client: "MlflowClient") -> None:
            if client.get_run(self.run_id).info.status != status:
                client.set_terminated(self.run_id, status)

        self._call(end, default=None)

    @contextmanager
    def system_metrics(self) -> Iterator[None]:
        """Samples of CPU, memory, disk, network and GPU for as long as the block takes."""
        monitor = self._call(lambda _: _start_monitor(self.run_id), default=None)
        try:
            yield
        finally:
            if monitor is not None and self.is_lost:  # let it stop without waiting
                threading.Thread(target=monitor.finish, daemon=True).start()
            elif monitor is not None:
                self._call(lambda _: monitor.finish(), default=None)


def lost_run(error: TrackingError) -> Run:
    """A `Run` that does nothing, after a warning."""
    store.current().warn(error)
    return Run(None, "", error=str(error))


def shorten(value: str, limit: int) -> str:
    """A value short enough for MLflow; run.json, an artifact of the run, has the whole value."""
    return value if len(value) <= limit else f"{value[: limit - 1]}…"


def steps_of(client: "MlflowClient", run_id: str, metric: str) -> set[int]:
    """Steps at which a run has a value of a metric."""
    return {value.step for value in client.get_metric_history(run_id, metric)}


def _start_monitor(run_id: str) -> "SystemMetricsMonitor | None":
    """MLflow's sampling of the machine, or None: a run goes on without samples."""
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
