"""Checkpoints that outlive a killed training, one folder for each distinct training.

They are kept outside DVC's outputs, which DVC deletes before a stage runs, and are named after a
hash of everything that determines the result: a changed parameter, file, program or machine starts
afresh.

A finished training's checkpoint stays until DVC has committed the results: if the commit fails, the
next start writes the same files again without training.
"""

import configparser
import hashlib
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from lesionseg.config import read_yaml
from lesionseg.files import sha256, write_bytes

FINISHED = "finished"  # a file in the folder of a finished training
_log = logging.getLogger(__name__)


def checkpoint_dir(
    root: Path,
    *,
    run: str,
    settings: Mapping[str, Any],
    inputs: Iterable[Path],
    code: Iterable[Path],
) -> Path:
    """The folder of checkpoints of one training.

    Args:
        root: Folder of all checkpoints.
        run: Name of the training.
        settings: Everything else that the result depends on, as JSON values.
        inputs: Files that the training reads.
        code: Files of the program, as from `stage_code`.
    """
    facts = {
        **settings,
        "run": run,
        "inputs": [sha256(path) for path in inputs],
        "code": [(path.as_posix(), sha256(path)) for path in code],
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return root / f"{run}-{key[:16]}"


def stage_code(stage: str, pipeline: Path = Path("dvc.yaml")) -> list[Path]:
    """The files of the program that a stage's outputs depend on, as listed in `pipeline`."""
    deps = read_yaml(pipeline)["stages"][stage]["deps"]
    paths = [Path(dep) for dep in deps if dep.startswith(("src/", "stages/"))]
    files = [file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])]
    return sorted(files)


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """The folder, or a separate one while another process does exactly the same training.

    Experiments that differ only in model 2 train an equal model 1, perhaps at the same time: each
    is a training, and an MLflow run, of its own.
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
    """Replace the folder's checkpoint; a process killed here leaves the previous one."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(folder / "checkpoint.pt", buffer.getvalue())


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The folder's checkpoint, or None if missing or unreadable."""
    path = folder / "checkpoint.pt"
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001  (a damaged file may raise anything)
        _log.warning("%s cannot be read; training starts from the first epoch", path)
        return None
    return state


def mark_finished(folder: Path, model_path: Path) -> None:
    """Record in a folder of checkpoints which model its training's stage ended with."""
    write_bytes(folder / FINISHED, _md5(model_path).encode())


def delete_committed(root: Path) -> None:
    """Remove the folders of finished trainings whose results DVC has committed.

    Args:
        root: Folder of all checkpoints, in the repository's root.
    """
    finished = {path.parent: _read(path) for path in root.glob(f"*/{FINISHED}")}
    if not finished:
        return
    committed = _committed(root.parent)
    for folder, md5 in finished.items():
        if md5 in committed:
            shutil.rmtree(folder, ignore_errors=True)


def _committed(repository: Path) -> set[str]:
    """MD5s of outputs in a dvc.lock, or in a run-cache entry whose outputs are all in the cache.

    DVC writes an entry of its run cache before it copies the outputs, and dvc.lock afterwards. The
    lock file of an experiment in its own workspace is not available later; its entry is.
    """
    locks = {Path("dvc.lock").resolve(), repository / "dvc.lock"}
    found = {md5 for path in locks if path.exists() for md5 in _outputs(path)}
    cache = _cache_dir(repository)
    for entry in (cache / "runs").glob("*/*/*"):
        outputs = _outputs(entry)
        if all((cache / "files/md5" / md5[:2] / md5[2:]).exists() for md5 in outputs):
            found |= outputs
    return found


def _outputs(lock_path: Path) -> set[str]:
    """MD5s of all outputs in a lock file or an entry of the run cache."""
    text = _read(lock_path)
    sections = re.findall(r"^( *)outs:\n((?:\1[ -].*\n?)*)", text, flags=re.MULTILINE)
    return {md5 for _, lines in sections for md5 in re.findall(r"\bmd5: ([0-9a-f]{32}\S*)", lines)}


def _read(path: Path) -> str:
    """A file's text, "" if another training or DVC removes it at this moment."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def _cache_dir(repository: Path) -> Path:
    """DVC's cache, from the repository's configuration; relative paths start at `.dvc`."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(repository / ".dvc" / name for name in ("config", "config.local"))
    return repository / ".dvc" / parser.get("cache", "dir", fallback="cache")


def _md5(path: Path) -> str:
    """A file's MD5, as in DVC."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
