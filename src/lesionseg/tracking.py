"""MLflow, the history of runs: the only importer of mlflow.

Tracking never kills or changes a training. At the first call that fails, one warning is logged and
the run's other calls do nothing.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from lesionseg.files import project_root

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "lesionseg"
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

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Add parameters; each can be set once."""
        from mlflow.entities import Param

        entities = [Param(key, str(value)) for key, value in params.items()]
        self._call(lambda client: client.log_batch(self.run_id, params=entities))

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Add one value of each metric."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entities = [Metric(key, value, now, step) for key, value in metrics.items()]
        self._call(lambda client: client.log_batch(self.run_id, metrics=entities))

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

    def log_file(self, path: Path, *, folder: str | None = None) -> None:
        """Add a file as an artifact."""
        self._call(lambda client: client.log_artifact(self.run_id, str(path), folder))

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
        yield run
    except BaseException as error:
        run.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    run.finish()


def _start_run(
    name: str, *, params: Mapping[str, Any], tags: Mapping[str, str], id_path: Path
) -> Run:
    try:
        client, experiment_id = _connect()
        if id_path.exists():
            run_id = id_path.read_text().strip()
            client.update_run(run_id, status="RUNNING")
            return Run(client, run_id)
        started = client.create_run(experiment_id, run_name=name, tags=dict(tags))
    except Exception as error:  # noqa: BLE001  (a server fails in its own ways)
        _warn(error)
        return Run(None, "")
    id_path.parent.mkdir(parents=True, exist_ok=True)
    id_path.write_text(started.info.run_id)
    run = Run(client, started.info.run_id)
    run.log_params(params)
    return run


def find_run(*, model_sha256: str) -> Run:
    """The latest run that trained the model of this hash; a `Run` of nothing where there is none.

    A model that DVC restored from its cache may have been trained under another tracking store.
    """
    try:
        client, experiment_id = _connect()
        found = client.search_runs(
            [experiment_id],
            f"tags.model_sha256 = '{model_sha256}'",
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
    except Exception as error:  # noqa: BLE001  (a server fails in its own ways)
        _warn(error)
        return Run(None, "")
    if not found:
        _log.warning(
            "no MLflow run has trained model %s; its test metrics stay in results/",
            model_sha256[:12],
        )
        return Run(None, "")
    return Run(client, found[0].info.run_id)


def _connect() -> "tuple[MlflowClient, str]":
    """A client of the project's store, or of `MLFLOW_TRACKING_URI`, and the experiment's id."""
    # A server that is away should cost seconds, not the minutes of the default.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient

    for chatty in ("alembic", "mlflow"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    folder = project_root() / "mlruns"
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    artifacts = None if uri else (folder / "artifacts").as_uri()
    folder.mkdir(exist_ok=True)
    # Two processes that create the database at once break each other's schema.
    with FileLock(folder / ".lock"):
        client = MlflowClient(uri or f"sqlite:///{folder / 'mlflow.db'}")
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            return client, str(experiment.experiment_id)
        return client, str(client.create_experiment(EXPERIMENT, artifact_location=artifacts))


def _warn(error: Exception) -> None:
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    _log.warning("MLflow is not available, this run goes on without it: %s", reason)
