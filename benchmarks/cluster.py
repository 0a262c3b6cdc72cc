"""What a trial costs on top of its stages: in the local pool, on one and on two Ray nodes.

    python -m benchmarks.cluster --trials 12 > measured.md
    python -m benchmarks.cluster --pipeline phantoms > measured.md

Prints a table in Markdown. The stages take a second each and no processor time, or are the
pipeline's own on a few phantoms. Nodes are processes on this machine in a network namespace, as Ray
listens on all interfaces; each offers one core.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from experiments import recipes, sweep_demo
from experiments.demo import ROOT
from lesionseg.errors import LesionsegError, exit_status
from lesionseg.files import write_bytes
from lesionseg.processes import child_environment, git_identity
from lesionseg.results.layout import RUNS

STAGE_SECONDS = 1.0
ADDRESS, CLIENT = "127.0.0.2:6379", "ray://127.0.0.2:10001"
PIPELINE = """
stages:
  external:
    cmd: mkdir -p data/external && touch data/external/none
    outs: [data/external]
""" + "".join(
    f"""
  {run}:
    cmd: python stage.py {run}
    params: [model]
    deps: [data/external]
    outs: [results/{run}/seeds]
"""
    for run in RUNS
)
STAGE = f"""
import sys, time
from lesionseg.results.layout import Results
from lesionseg.results.training import seed_scores_table
run = sys.argv[1]
table = seed_scores_table(run)
table.write(Results().seed_scores(run), [dict.fromkeys(table.columns, 0.5) | {{"seed": 0}}])
time.sleep({STAGE_SECONDS})
"""
PIPELINES = ("sleep", "phantoms")
EXECUTORS = ("pool", "cluster")
RAY = ("-c", "from ray.scripts.scripts import main; main()")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure each executor with the same number of trials, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--pipeline", choices=PIPELINES, default="sleep")
    parser.add_argument("--nodes", type=int, nargs="+", choices=(1, 2), default=[1, 2])
    parser.add_argument("--executors", nargs="+", choices=EXECUTORS, default=EXECUTORS)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if not arguments.inside:
        own = [sys.executable, "-m", "benchmarks.cluster", "--inside", *(argv or sys.argv[1:])]
        command = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "sh", "-c"]
        done = subprocess.run([*command, f"ip link set lo up && exec {shlex.join(own)}"])
        sys.exit(done.returncode)
    with TemporaryDirectory(prefix="ls-") as folder:
        project = Path(folder) / "project"
        environment = _environment(Path(folder))
        is_own = arguments.pipeline == "phantoms"
        _make_project(project, environment, is_own=is_own)
        stages = None if is_own else STAGE_SECONDS * len(RUNS)
        lines = _measure(project, environment, arguments, stages)
        columns = ["executor", "trials at once", "seconds of all", "seconds a trial"]
        columns += [] if is_own else ["overhead a trial, s"]
        rule = "|".join(["---", *["---:"] * (len(columns) - 1)])
        sys.stdout.write("\n".join([f"| {' | '.join(columns)} |", f"|{rule}|", *lines, ""]))


def _environment(folder: Path) -> dict[str, str]:
    """The variables of all processes, in a network of their own."""
    return {
        **child_environment(without=("DVC_", "MLFLOW_", "RAY_")),
        **git_identity(ROOT, stranger="benchmark"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "b" * 64,
        "RAY_raylet_start_wait_time_s": "600",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
    }


def _measure(
    project: Path,
    environment: Mapping[str, str],
    arguments: argparse.Namespace,
    stage_seconds: float | None,
) -> list[str]:
    """The rows of the local pool and of the cluster, for each number of nodes."""
    folder = project.parent
    store = ["--object-store-memory=80000000", "--num-cpus=1"]
    lines: list[str] = []
    for number, name in ((1, "one Ray node"), (2, "two Ray nodes")):
        env = {**environment, "XDG_CACHE_HOME": str(folder / f"node-{number}")}
        if number == 1:
            place = ["--head", "--port=6379", "--ray-client-server-port=10001"]
            place += ["--include-dashboard=false", f"--temp-dir={folder / 'r'}"]
        else:
            place = [f"--address={ADDRESS}"]
        own = f"--node-ip-address=127.0.0.{number + 1}"
        _call(sys.executable, *RAY, "start", own, *place, *store, cwd=project, env=env)
        if number not in arguments.nodes:
            continue
        # In direct succession, since the machine's other load changes within minutes.
        pool = f"local pool, `--jobs {number}`"
        both = ((pool, ["--jobs", str(number)]), (name, ["--cluster", CLIENT]))
        for kind, (label, options) in zip(EXECUTORS, both, strict=True):
            if kind not in arguments.executors:
                continue
            # Unique values: equal trainings would come from the run cache, whoever ran them.
            values = [0.2 * len(lines) + index / 1000 for index in range(arguments.trials)]
            row = _measured(
                project, label, number, options, values=values, env=env, stages=stage_seconds
            )
            lines.append(row)
    return lines


def _make_project(project: Path, environment: Mapping[str, str], *, is_own: bool) -> None:
    """A repository with stages that sleep, or with the pipeline; both remotes are folders."""
    project.mkdir()
    if is_own:
        sweep_demo.make_repository(project, recipes.SMALL)
    else:
        write_bytes(project / "params.yaml", (ROOT / "params.yaml").read_bytes())
        write_bytes(project / "dvc.yaml", PIPELINE.encode())
        write_bytes(project / "stage.py", STAGE.encode())
        write_bytes(project / ".gitignore", b"/.checkpoints/\n")
        _call("git", "init", "--quiet", cwd=project, env=environment)
        _call("dvc", "init", "--quiet", cwd=project, env=environment)
    remote, data = str(project.parent / "remote.git"), str(project.parent / "data")
    for command in (
        ("dvc", "remote", "add", "--quiet", "--default", "team", data),
        ("git", "init", "--quiet", "--bare", remote),
        ("git", "remote", "add", "origin", remote),
        ("git", "add", "--all"),
        ("git", "commit", "--quiet", "--message", "start"),
        ("git", "push", "--quiet", "origin", "HEAD:main"),
    ):
        _call(*command, cwd=project, env=environment)


def _measured(
    project: Path,
    name: str,
    jobs: int,
    options: Sequence[str],
    *,
    values: Sequence[float],
    env: Mapping[str, str],
    stages: float | None,
) -> str:
    """The row of an executor: trials of its own, from the first one's start to the last one's end.

    The overhead is the time of a trial minus that of its stages, if the latter is known.

    What comes before, such as the data and Ray's connection, happens once and is left out.
    """
    label = re.sub(r"\W+", "-", name).strip("-")
    command = [sys.executable, "-m", "lesionseg", "sweep", "--name", label, *options]
    command += ["--grid", "model.dropout=" + ",".join(f"{value:.3f}" for value in values)]
    process = subprocess.Popen(
        command, cwd=project, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    ends, started, said = list[float](), time.monotonic(), ""
    for line in process.stderr:
        said = line
        if line.startswith(("preparing", "pushing")):
            started = time.monotonic()
        if line.startswith(f"{label}-"):
            ends.append(time.monotonic())
    process.stderr.close()
    if process.wait():
        raise LesionsegError(f"{name}: {said.strip()}")
    # From the end of the first round, when each slot has finished one trial, to the last end.
    seconds = ends[-1] - ends[jobs - 1]
    rounds = (len(values) - jobs) / jobs
    each = seconds / rounds
    overhead = "" if stages is None else f" {each - stages:.1f} |"
    whole = ends[-1] - started
    sys.stderr.write(f"{name}: {whole:.0f} s, {each:.1f} s a trial\n")
    return f"| {name} | {jobs} | {whole:.0f} | {each:.1f} |{overhead}"


def _call(*command: str, cwd: Path, env: Mapping[str, str]) -> None:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        raise LesionsegError(f"{' '.join(command[:3])}: {done.stderr.strip().splitlines()[-1]}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
