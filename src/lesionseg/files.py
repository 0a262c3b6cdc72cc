"""Files that are either complete or absent: written under a temporary name, then renamed.

This holds even when the disk is full.
"""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lesionseg.errors import (
    DISK_FULL,
    DataError,
    DiskSpaceError,
    MissingFileError,
    repro,
    rerun,
)

NAME_BYTES = 255  # the longest name of a file on common file systems


def project_root() -> Path:
    """The repository's root; inside DVC's temporary workspaces, still the original one."""
    return Path(os.environ.get("DVC_ROOT", "")).resolve()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without error.

    The block makes it a file or a folder; after an error, what the block has written is removed.

    Raises:
        DiskSpaceError: The disk fills up in the block.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(_temporary_name(path.name))
    try:
        with full_disk_is_an_error(path):
            yield temporary
            if path.is_dir():  # only an empty folder can be replaced
                shutil.rmtree(path)
            temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def _temporary_name(name: str) -> str:
    """A hidden name, unique to this process, for what becomes `name`; never too long."""
    temporary = f".{name}.{os.getpid()}.part"
    if len(os.fsencode(temporary)) <= NAME_BYTES:
        return temporary
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest()}.{os.getpid()}.part"


def check_free_space(folder: Path, num_bytes: int) -> None:
    """Return if the disk of an existing folder has room for `num_bytes` more.

    Raises:
        DiskSpaceError: It does not.
    """
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise DiskSpaceError(
            f"{folder} needs {_megabytes(num_bytes)} more, {_megabytes(free)} are free. "
            "Make room on that disk and run the same command again"
        )


@contextmanager
def full_disk_is_an_error(path: Path) -> Iterator[None]:
    """A block in which a full disk raises DiskSpaceError.

    Raises:
        DiskSpaceError: The disk of `path`, a file or folder, is full, or its quota is used up.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise DiskSpaceError(
            f"the disk of {path} has run full. Make room there and run the same command again"
        ) from error


def is_full(error: OSError) -> bool:
    """Whether a disk has no room left, or its user's quota is used up."""
    return error.errno in DISK_FULL


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON in a stable layout; NaN and infinity are refused, as JSON lacks them."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, f"{text}\n".encode())


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows with the same keys as CSV, the keys as its first line.

    Raises:
        ValueError: There is no row to take the columns from.
    """
    rows = list(rows)
    if not rows:
        raise ValueError(f"{path}: no rows to write")
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@contextmanager
def made_by(stage: str) -> Iterator[None]:
    """Name `stage` as the one to rerun if a file is found damaged in the block.

    Raises:
        DataError: A file is damaged.
    """
    try:
        yield
    except DataError as error:
        raise DataError(error.problem, remedy=f"Run: {rerun(stage)}") from error


def require(path: Path, *, stage: str) -> Path:
    """`path`, which `stage` must have made.

    Raises:
        MissingFileError: It is missing.
    """
    if not path.exists():
        raise MissingFileError(f"{path} is missing", remedy=f"Run: {repro(stage)}")
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
