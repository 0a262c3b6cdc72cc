"""MLflow's SQLite database: complete or absent, and checked before MLflow tries to open it.

MLflow makes its tables in some sixty steps, and a process killed meanwhile leaves a file that never
opens again. MLflow retries a database that it cannot open for minutes, with a traceback each time.
"""

import logging
import os
import re
import shlex
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote
from urllib.request import url2pathname

from filelock import FileLock, Timeout

from lesionseg.errors import TrackingError
from lesionseg.files import replacing

LOCKS = (".lock", ".parents.lock")  # for the whole store, and for finding a parent
_LOCK_SECONDS = 16
# All columns of MLflow 3.17 that hold the location of artefacts.
_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_log = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path, name: str = LOCKS[0]) -> Iterator[None]:
    """The folder, created if necessary, locked for one process at a time.

    Args:
        folder: The folder of a store.
        name: The lock's name; locks are independent of each other.

    Raises:
        TrackingError: It cannot be written, or another process holds the lock too long.
    """
    folder.mkdir(parents=True, exist_ok=True)
    require_access(folder)
    lock = FileLock(folder / name, timeout=_LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise TrackingError(
            f"{lock.lock_file} is held by another process for more than {_LOCK_SECONDS} s",
            f"Find and end it (fuser {lock.lock_file}), then",
        ) from None
    try:
        yield
    finally:
        lock.release()


def require_access(folder: Path) -> None:
    """Check that this user may read and write the existing files of a store.

    Raises:
        TrackingError: One of them belongs to another user.
    """
    for path in (folder, *(folder / name for name in (*LOCKS, "mlflow.db", "artifacts"))):
        mode = os.R_OK | os.W_OK | (os.X_OK if path.is_dir() else 0)
        if path.exists() and not os.access(path, mode):
            raise TrackingError(
                f"{path} cannot be read and written by this user, it belongs to {_owner(path)}",
                f"Run: sudo chown -R $(id -u) {shlex.quote(str(folder))}, then",
            )


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except KeyError:  # a user of another machine or a container
        return f"user {path.stat().st_uid}"


def make_whole(path: Path, build: Callable[[Path], None]) -> None:
    """Make the database if there is none, under a temporary name until it is ready.

    Call it only under the folder's lock: files of other builds are then left by dead processes.
    """
    for left in path.parent.glob(f".{path.name}.*.part*"):
        left.unlink()
    if path.exists() and path.stat().st_size:
        return
    with replacing(path) as temporary:
        build(temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())


def check(path: Path, *, address: str, newest: str, known: Callable[[], set[str]]) -> None:
    """Check that a database is one of MLflow's, and that no process blocks writing to it.

    Args:
        path: The existing database.
        address: Its address for MLflow.
        newest: The version of the tables that the installed MLflow requires.
        known: Returns this version and all earlier ones.

    Raises:
        TrackingError: One of these does not hold.
    """
    name = shlex.quote(str(path))
    move = f"Move it away (mv {name} {name}.broken), then"
    try:
        with closing(_connect(path)) as connection:
            version, num_runs = _read_version(connection)
    except sqlite3.Error as error:
        raise _explain(path, error, move=move) from error
    if version == newest:
        return
    if version is None or (version in known() and not num_runs):
        raise TrackingError(f"{path} is no database of MLflow's, or half of one", move)
    if version in known():
        raise TrackingError(
            f"{path} is of an older MLflow (tables {version}, expected {newest})",
            f"Keep a copy, run: mlflow db upgrade {shlex.quote(address)}, then",
        )
    raise TrackingError(
        f"{path} is of a newer MLflow (tables {version}, expected {newest})",
        f"Install that one, or move the file away (mv {name} {name}.newer), then",
    )


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw", uri=True, timeout=_LOCK_SECONDS, isolation_level=None
    )


def _read_version(connection: sqlite3.Connection) -> tuple[str | None, int]:
    """The version of MLflow's tables, or None, and the number of runs."""
    connection.execute("BEGIN IMMEDIATE")  # fails if another process is writing
    connection.execute("ROLLBACK")
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if not {"alembic_version", "experiments", "runs"} <= tables:
        return None, 0
    (num_runs,) = connection.execute("SELECT count(*) FROM runs").fetchone()
    (version,) = connection.execute("SELECT max(version_num) FROM alembic_version").fetchone()
    return version, num_runs


def _explain(path: Path, error: sqlite3.Error, *, move: str) -> TrackingError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return TrackingError(
            f"{path} is being written by another process for more than {_LOCK_SECONDS} s",
            f"Find and end it (fuser {path}), then",
        )
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return TrackingError(f"{path} is no SQLite database, or a damaged one ({error})", move)
    return TrackingError(f"{path} cannot be used ({error})", move)


def follow_project(path: Path, *, experiment: str) -> None:
    """Point to artefacts beside the database again, after the project was moved or copied.

    MLflow keeps absolute addresses. Addresses of artefacts that exist only at the old place are
    kept: after a move, an earlier version of this program went on writing there. A copy never
    refers to the original.

    Args:
        path: The project's own database, of the installed MLflow's version.
        experiment: The name of the experiment whose address tells where the project was.
    """
    new = path.parent.as_uri()
    with closing(_connect(path)) as connection:
        found = connection.execute(
            "SELECT artifact_location FROM experiments WHERE name = ?", (experiment,)
        ).fetchone()
        address = re.fullmatch(r"(file:///.*/mlruns)/artifacts", found[0] if found else "")
        if not address or address[1] == new:
            return
        old = address[1]
        connection.create_function("moved", 2, _mover(old, new))
        connection.execute("BEGIN IMMEDIATE")
        for table, column in _LOCATIONS:
            connection.execute(
                f"UPDATE {table} SET {column} = moved({column}, ?)",
                (table == "experiments",),
            )
        connection.execute("COMMIT")
    _log.info("mlruns/ was moved from %s: its artefacts' addresses follow", _to_path(old))


def _mover(old: str, new: str) -> Callable[[str | None, int], str | None]:
    """A function that returns an artefact's new address; its second argument forces the change."""
    is_copy = (_to_path(old) / "mlflow.db").exists()
    places = ((f"{old}/", f"{new}/"), (f"{_to_path(old)}/", f"{_to_path(new)}/"))

    def moved(address: str | None, must: int) -> str | None:
        for before, now in places:
            if address is not None and address.startswith(before):
                target = now + address.removeprefix(before)
                stays = _to_path(address).exists() and not _to_path(target).exists()
                return address if stays and not must and not is_copy else target
        return address

    return moved


def _to_path(address: str) -> Path:
    """The path of an address, which may already be a path."""
    return (
        Path(url2pathname(address.removeprefix("file://"))) if "://" in address else Path(address)
    )
