"""The store of MLflow's runs: which one it is, and how it is opened.

It is the project's own database, `mlruns/mlflow.db` with its artefacts beside it, or the one in
`MLFLOW_TRACKING_URI`. Problems are detected before MLflow is asked, which would retry for minutes.
"""

import functools
import logging
import os
import re
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from lesionseg.errors import TrackingError
from lesionseg.files import project_root
from lesionseg.tracking import database, views
from lesionseg.tracking.availability import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "lesionseg"
_BUILD_SECONDS = 60  # sixty steps on a slow disk
_stores: dict[str, Store] = {}
_noted: set[str] = set()
_log = logging.getLogger(__name__)


def prepare() -> None:
    """Make the store before several processes need it; if it fails, log the usual warning."""
    try:
        connect()
    except TrackingError as error:
        current().warn(error)


@contextmanager
def patiently() -> Iterator[None]:
    """A block in which a slow store may take its time; failures are in `Run.error`, not logged."""
    current().is_patient = True
    try:
        yield
    finally:
        current().is_patient = False


@contextmanager
def alone() -> Iterator[None]:
    """A block that only one process on this machine runs at a time, if the store is a file.

    Raises:
        TrackingError: Another process holds the lock too long.
    """
    path = _database_path()
    with database.locked(path.parent, database.LOCKS[1]) if path else nullcontext():
        yield


def connect() -> "tuple[MlflowClient, str]":
    """A client of the project's store, or of `MLFLOW_TRACKING_URI`, and the experiment's id.

    Raises:
        TrackingError: The store cannot be used; the one line says why, and what to do.
    """
    _load_mlflow()
    path = _database_path()
    is_new = path is not None and not path.exists()
    return current().ask(_open, extra_seconds=_BUILD_SECONDS if is_new else 0)


def _load_mlflow() -> None:
    """Import MLflow, and silence it: we report errors ourselves, once, in one line."""
    # An unreachable server should cost seconds, not the minutes of the default.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow  # noqa: F401  (sets up its loggers)

    level = logging.WARNING if os.environ.get("LESIONSEG_DEBUG") else logging.CRITICAL
    for chatty in ("alembic", "mlflow", "urllib3"):
        logging.getLogger(chatty).setLevel(level)


def current() -> Store:
    """What this process knows about the store."""
    name = str(_database_path() or re.sub("//.*@", "//", uri()))  # without a password
    return _stores.setdefault(uri(), Store(name))


def uri() -> str:
    """Where the runs are: `MLFLOW_TRACKING_URI`, or the project's own database.

    A folder means a database in it: since 3.13 MLflow keeps no runs in plain folders.
    """
    address = os.environ.get("MLFLOW_TRACKING_URI")
    if not address:
        return _to_uri(_own_path())
    folder = _folder(address)
    return _to_uri(folder / "mlflow.db") if folder else address


def is_own() -> bool:
    """Whether the store is the project's own database."""
    return _database_path() == _own_path()


def _own_path() -> Path:
    return project_root() / "mlruns/mlflow.db"


def _database_path() -> Path | None:
    """The file of the store, if it is an SQLite database."""
    is_set = bool(os.environ.get("MLFLOW_TRACKING_URI"))
    return _to_path(uri()) if is_set else _own_path()


@functools.cache
def _to_uri(path: Path) -> str:
    """A database's address, in plain form unless that would be read as another path."""
    from sqlalchemy import URL, make_url

    plain, exact = f"sqlite:///{path}", URL.create("sqlite", database=str(path))
    if make_url(plain) == exact:
        return plain
    # With the driver's name, as MLflow makes the folder of a plain sqlite:/// address literally.
    return exact.set(drivername="sqlite+pysqlite").render_as_string(hide_password=False)


def _to_path(address: str) -> Path | None:
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    if not address.startswith("sqlite"):
        return None
    try:
        name = make_url(address).database
    except ArgumentError:  # MLflow will report it
        return None
    return Path(name).resolve() if name and not name.startswith((":memory:", "file:")) else None


def _open() -> "tuple[MlflowClient, str]":
    """Check the store, as MLflow would retry for minutes, then open it."""
    address, path = uri(), _database_path()
    scheme = address.partition(":")[0].partition("+")[0]
    if scheme in ("http", "https"):
        return _open_experiment(None)
    _note_folder()
    folder = path.parent if path else project_root() / "mlruns"
    with database.locked(folder):  # processes that make the tables at the same time break them
        if path:
            _prepare_database(path, address)
        elif scheme in ("postgresql", "mysql", "mssql"):
            _reach(address)
        return _open_experiment((folder / "artifacts").as_uri())


def _folder(address: str) -> Path | None:
    """The folder if an address is one, unless MLflow is allowed to use it as such."""
    parts = urlsplit(address)
    is_allowed = os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1")
    if parts.scheme not in ("", "file") or is_allowed or address.startswith(("databricks", "uc")):
        return None
    return Path(unquote(parts.path) if parts.scheme else address).resolve()


def _note_folder() -> None:
    """Log once where the runs go instead of into a folder, and the address to use for them."""
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if address and _folder(address) and address not in _noted:
        _noted.add(address)
        _log.warning(
            "MLFLOW_TRACKING_URI=%s is a folder, which MLflow no longer takes since 3.13. The runs "
            "go to a database in it; for other commands write MLFLOW_TRACKING_URI=%s",
            address,
            shlex.quote(uri()),
        )


def _reach(address: str) -> None:
    """Connect to a database once; MLflow would try ten times, and give the reason only in a log."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(address)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _prepare_database(path: Path, address: str) -> None:
    """Make the database if it is missing, and check it."""
    import mlflow
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(Path(mlflow.__file__).parent / "store/db_migrations"))
    database.make_whole(path, _build)
    database.check(
        path,
        address=address,
        newest=scripts.get_current_head() or "",
        known=lambda: {script.revision for script in scripts.walk_revisions()},
    )
    if is_own():
        database.follow_project(path, experiment=EXPERIMENT)


def _build(path: Path) -> None:
    """Make MLflow's tables in a new file, like `mlflow db upgrade`, but in a fifth of the time.

    The file is of no use until it is ready, so nothing needs to be safe on disk before that.
    """
    import sqlalchemy
    from mlflow.store.db import utils

    engine = utils.create_sqlalchemy_engine(_to_uri(path))
    sqlalchemy.event.listen(engine, "connect", _hurry)
    try:
        utils._initialize_tables(engine)
    finally:
        engine.dispose()


def _hurry(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA journal_mode = OFF")


def _open_experiment(artifacts: str | None) -> "tuple[MlflowClient, str]":
    """A client, and the id of the experiment, which is made if there is none.

    Args:
        artifacts: Where to keep the artefacts of a new experiment; None if the server decides.

    Raises:
        TrackingError: The experiment has been deleted.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(uri())
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        try:
            client.create_experiment(EXPERIMENT, artifact_location=artifacts)
        except MlflowException:  # the lock is local; on a server another machine was faster
            if client.get_experiment_by_name(EXPERIMENT) is None:
                raise
        experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment.lifecycle_stage == "deleted":
        raise _deleted(experiment.experiment_id)
    with suppress(MlflowException):  # a user without permission; another one will do it
        views.describe(client, experiment)
    return client, str(experiment.experiment_id)


def _deleted(experiment_id: str) -> TrackingError:
    is_set = bool(os.environ.get("MLFLOW_TRACKING_URI"))
    setting = "" if is_set else f"MLFLOW_TRACKING_URI={shlex.quote(uri())} "
    restore = f"{setting}mlflow experiments restore --experiment-id {experiment_id}"
    return TrackingError(
        f"the experiment {EXPERIMENT} was deleted in {current().name}",
        f"Restore it with: {restore}; then",
    )
