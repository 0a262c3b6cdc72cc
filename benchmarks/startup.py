"""How long commands with nothing to do take."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from experiments.demo import ROOT, copy_pipeline
from lesionseg.config import override, read_yaml
from lesionseg.errors import LesionsegError
from lesionseg.files import write_bytes

# The smallest project whose six stages all run.
PARAMS = {
    "download.phantom_num_train": 16,
    "download.phantom_num_test": 4,
    "download.phantom_size": 64,
    "preprocess.image_size": 64,
    "train.epochs": 1,
    "train.device": "cpu",
    "evaluate.num_resamples": 100,
}


def prepare_project(*, folder: str) -> dict[str, Any]:
    """Run a copy of the pipeline in `folder`, with phantoms; DVC's output."""
    project_dir = Path(folder)
    copy_pipeline(project_dir)
    params_path = project_dir / "params.yaml"
    write_bytes(params_path, override(read_yaml(params_path), PARAMS).encode())
    call("dvc", "init", "--quiet", "--no-scm", folder=folder)
    return {"output": call("dvc", "repro", folder=folder)}


def seconds(*, command: list[str], folder: str, expected: str = "") -> dict[str, Any]:
    """The wall time of `python -m COMMAND`, run in `folder`.

    Raises:
        LesionsegError: It failed, or did not print `expected`.
    """
    start = time.perf_counter()
    output = call(*command, folder=folder)
    elapsed = time.perf_counter() - start
    if expected not in output:
        raise LesionsegError(f"{' '.join(command)} was to print {expected!r}, got {output!r}")
    return {"seconds": elapsed}


def call(*command: str, folder: str) -> str:
    """What a command printed, without the project's own tracking server or DVC root."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_"))}
    environment = {
        **inherited,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), inherited["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), inherited.get("PYTHONPATH", "")]),
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise LesionsegError(f"{' '.join(command)} in {folder} failed: {''.join(last)}")
    return done.stdout
