"""Files that are either whole or not there: written under a temporary name, then renamed."""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lesionseg.errors import DISK_FULL, DataError, MissingFileError, first_line


def project_root() -> Path:
    """The repository's root, the original one also inside DVC's temporary workspaces."""
    return Path(os.environ.get("DVC_ROOT", "")).resolve()


def find_project() -> Path | None:
    """The working directory if it is the root of a project, else None."""
    here = Path.cwd()
    is_root = all((here / name).is_file() for name in ("dvc.yaml", "params.yaml"))
    return here if is_root else None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without error.

    The block makes it a file or a folder; what the block leaves after an error is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        if path.is_dir():  # a folder is not replaced while it holds anything
            shutil.rmtree(path)
        temporary.replace(path)
    except OSError as error:
        if error.errno in DISK_FULL and error.filename is None:  # a write does not know its file
            error.filename = str(path.parent)
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with stable layout; NaN and infinity are refused, they are no JSON."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, f"{text}\n".encode())


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of equal keys as CSV, the keys as its first line.

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


def read_json(path: Path, *, stage: str) -> dict[str, Any]:
    """The object in a JSON file that `stage` has written.

    Raises:
        MissingFileError: The file is not there.
        DataError: It is no JSON object.
    """
    require(path, stage=stage)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not JSON ({first_line(error)}). Run: dvc repro -f {stage}"
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object. Run: dvc repro -f {stage}")
    return content


@contextmanager
def made_by(stage: str) -> Iterator[None]:
    """Name `stage` as what makes the file anew that is found damaged in the block.

    Raises:
        DataError: A file is damaged.
    """
    try:
        yield
    except DataError as error:
        problem = str(error).partition(" Replace the file")[0].rstrip(".")
        raise DataError(f"{problem}. Run: dvc repro -f {stage}") from error


def require(path: Path, *, stage: str) -> Path:
    """`path`, which `stage` must have made.

    Raises:
        MissingFileError: It is not there.
    """
    if not path.exists():
        raise MissingFileError(f"{path} is missing. Run: dvc repro {stage}")
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
