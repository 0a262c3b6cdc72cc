"""Where a result comes from: commit, experiment, versions."""

import os
import platform
import subprocess
from importlib import metadata

PACKAGES = (
    *("lesionseg", "torch", "torchvision", "numpy", "scipy", "scikit-image", "pandas"),
    *("dvc", "mlflow"),
)


def git_commit() -> str:
    """The commit the code was at, with `-dirty` if files differ; `unknown` without git.

    In a DVC experiment it is the commit that the experiment started from.
    """
    baseline = os.environ.get("DVC_EXP_BASELINE_REV")
    if baseline:
        return baseline
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result depends on."""
    return {"python": platform.python_version(), **{p: metadata.version(p) for p in PACKAGES}}


def tags(*, stage: str) -> dict[str, str]:
    """Tags by which to find a run: git commit, DVC stage and DVC experiment."""
    return {
        "commit": git_commit(),
        "dvc_stage": stage,
        "dvc_experiment": os.environ.get("DVC_EXP_NAME", ""),
    }
