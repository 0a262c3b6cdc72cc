"""A small sweep on synthetic lesions, in the folder .sweep/: `make sweep`.

It uses the same pipeline, committed to a separate git repository with a params.yaml of its own: the
project's own data, results, runs and experiments are not touched, and nothing is downloaded. It
compares two decoders, with and without the Dice loss: four trials, two at a time.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.demo import ROOT, copy_pipeline
from lesionseg.config import override, read_yaml
from lesionseg.errors import LesionsegError, exit_status
from lesionseg.files import write_bytes
from lesionseg.processes import (
    child_environment,
    git_identity,
    run_to_end,
    stopped_like_ctrl_c,
)

# A small budget, and an encoder from scratch: no network.
PARAMS = {
    "download.source": "phantom",
    "download.weights": "none",
    "download.phantom_num_train": 80,
    "download.phantom_num_test": 10,
    "download.phantom_size": 96,
    "preprocess.image_size": 64,
    "train.epochs": 4,
    "train.batch_size": 8,
    "train_finetuned.encoder_lr": 0.002,
    "evaluate.num_resamples": 1000,
    "report.title": "A sweep's trial on synthetic lesions",
}
COMMAND = (sys.executable, "-m", "lesionseg", "sweep")
SWEEP = ("--grid", "model.decoder=bilinear,transposed", "--grid", "loss.dice=0,1", "--jobs", "2")
# DVC and MLflow keep the stages' outputs, as in the project's own .gitignore.
IGNORED = (".checkpoints/", "__pycache__/", "/data/", "/mlruns/", "/results/*/*", "!*.json")


def main(argv: Sequence[str] | None = None) -> None:
    """Copy the pipeline, commit it, sweep there."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.sweep_demo",
        description=__doc__,
        epilog="Example: python -m experiments.sweep_demo --dir /tmp/sweep",
    )
    parser.add_argument("--dir", type=Path, default=ROOT / ".sweep", help="where the sweep runs")
    sweep_dir = parser.parse_args(argv).dir.resolve()
    make_repository(sweep_dir, PARAMS)
    sys.stdout.write(f"In {sweep_dir}: lesionseg sweep {' '.join(SWEEP)}\n")
    sys.stdout.flush()
    with stopped_like_ctrl_c():
        status = run_to_end(
            [*COMMAND, *SWEEP],
            cwd=sweep_dir,
            environment=environment(sweep_dir),
            patience=60,  # it stops its trials first
        )
    if status:
        raise LesionsegError(f"the sweep stopped; what it says is above, its files: {sweep_dir}")
    sys.stdout.write(f"(there: cd {sweep_dir})\n")


def environment(folder: Path) -> dict[str, str]:
    """Variables without the project's tracking server, with an identity if git knows none."""
    return {**child_environment(), **git_identity(folder, stranger="lesionseg")}


def make_repository(folder: Path, params: dict[str, object]) -> None:
    """Make a git and DVC repository of the pipeline in its current state, all committed."""
    copy_pipeline(folder)
    path = folder / "params.yaml"
    write_bytes(path, override(read_yaml(ROOT / "params.yaml"), params).encode())
    write_bytes(folder / ".gitignore", ("\n".join(IGNORED) + "\n").encode())
    if not (folder / ".git").exists():
        call(folder, "git", "init", "--quiet")
        call(folder, sys.executable, "-m", "dvc", "init", "--quiet")
    call(folder, "git", "add", "--all")
    # The same files keep the same commit, so that earlier trials still belong to it.
    changed = subprocess.run(["git", "diff", "--cached", "--quiet"], cwd=folder).returncode
    if changed:
        call(folder, "git", "commit", "--quiet", "--message", "the pipeline as it is now")


def call(folder: Path, *command: str) -> str:
    """Standard output of a command that runs in a folder.

    Raises:
        LesionsegError: It failed; what it said is the message.
    """
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True
    )
    if done.returncode:
        raise LesionsegError(f"{' '.join(command[:3])} failed in {folder}: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(exit_status(main))
