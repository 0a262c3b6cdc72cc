"""Checkpoints that outlive a killed training, one folder for each distinct training.

They lie outside DVC's outputs, which DVC deletes before a stage runs, and are named after a hash
of all that determines the result: a changed parameter, file, program or machine starts afresh.
"""

import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from lesionseg.files import sha256, write_bytes

PACKAGE = Path(__file__).resolve().parents[1]
_log = logging.getLogger(__name__)


def checkpoint_dir(
    root: Path, *, run: str, settings: Mapping[str, Any], inputs: Iterable[Path]
) -> Path:
    """The folder of checkpoints of one training.

    Args:
        root: Folder of all checkpoints.
        run: Name of the training.
        settings: Everything else the result depends on, as JSON knows it.
        inputs: Files the training reads.
    """
    code = sorted(PACKAGE.rglob("*.py"))
    facts = {
        **settings,
        "run": run,
        "inputs": [sha256(path) for path in inputs],
        "code": [(path.relative_to(PACKAGE).as_posix(), sha256(path)) for path in code],
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return root / f"{run}-{key[:16]}"


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """The folder, or one of its own while another process trains the very same.

    Experiments that differ in model 2 only train an equal model 1, perhaps at once: each is a
    training, and an MLflow run, of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield folder.with_name(f"{folder.name}-{os.getpid()}")
        return
    try:
        yield folder
    finally:
        lock.release()


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Replace the folder's checkpoint; whoever is killed here leaves the one before."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(folder / "checkpoint.pt", buffer.getvalue())


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The folder's checkpoint, or None where there is none that can be read."""
    path = folder / "checkpoint.pt"
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001  (a damaged file raises whatever it likes)
        _log.warning("%s cannot be read; training starts from the first epoch", path)
        return None
    return state


def delete_checkpoints(folder: Path) -> None:
    """Remove a finished training's folder."""
    shutil.rmtree(folder, ignore_errors=True)
