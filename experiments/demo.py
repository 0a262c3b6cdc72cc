"""Run the whole pipeline on synthetic lesions, in the folder .demo/: `make demo`.

It uses the same dvc.yaml, stages and package, with a params.yaml of its own: the project's own
data, results, runs and lock file are not touched, and nothing is downloaded. A terminal shows which
stage is running, and about how long the rest will take.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from lesionseg.config import read_yaml
from lesionseg.errors import LesionsegError, exit_status
from lesionseg.files import sha256, write_bytes, write_json
from lesionseg.new.create import SYNTHETIC, with_values
from lesionseg.processes import child_environment, run_to_end, stopped_like_ctrl_c
from lesionseg.results.evaluation import Comparison
from lesionseg.results.layout import FINETUNED, RUNS, Results
from lesionseg.results.vocabulary import RUN_LABELS

ROOT = Path(__file__).resolve().parents[1]
DVC = (sys.executable, "-m", "dvc")
KNOWN = ROOT / "docs/results/demo.json"
COPIED = ("dvc.yaml", ".dvcignore", "stages", "src")
# Relative durations of the demo's stages, in seconds of one core; any other stage takes SHARE.
SHARES = {
    "download": 6,
    "preprocess": 2,
    "external": 3,
    "train_frozen": 22,
    "train_finetuned": 40,
    "evaluate": 11,
    "report": 7,
}
SHARE = 5


def main(argv: Sequence[str] | None = None) -> None:
    """Copy the pipeline, run it, print its comparison."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.demo",
        description=__doc__,
        epilog="Example: python -m experiments.demo --dir /tmp/demo",
    )
    parser.add_argument("--dir", type=Path, default=ROOT / ".demo", help="where the demo runs")
    parser.add_argument(
        "--record",
        action="store_true",
        help="record the models' SHA-256 in docs/results/demo.json, which the last lines compare",
    )
    arguments = parser.parse_args(argv)
    demo_dir = arguments.dir.resolve()
    copy_pipeline(demo_dir)
    environment = child_environment()  # the demo keeps its runs to itself
    if not (demo_dir / ".dvc").exists():
        command = [*DVC, "init", "--quiet", "--no-scm"]
        subprocess.run(command, cwd=demo_dir, env=environment, check=True)
    stages = {name: stage["desc"] for name, stage in read_yaml(ROOT / "dvc.yaml")["stages"].items()}
    progress = Progress(stages, is_shown=sys.stdout.isatty())
    with stopped_like_ctrl_c():
        status = run_to_end(
            [*DVC, "repro"],
            cwd=demo_dir,
            environment={**environment, "PYTHONUNBUFFERED": "1"},
            on_line=progress.hear,
        )
    if status:
        raise LesionsegError(
            f"the demo stopped; what it says is above, its files are in {demo_dir}"
        )
    results = Results(demo_dir / "results")
    if "report" not in progress.ran:  # that stage ends with the same table
        sys.stdout.write("\n".join(["", *Comparison.read(results.evaluation).lines(), ""]))
    if arguments.record:
        record(results)
    sys.stdout.write(ending(results) + compared_models(results))


class Progress:
    """Passes on DVC's output; on a terminal, announces each stage and about how long is left.

    Attributes:
        ran: The stages that have begun.
    """

    def __init__(self, stages: Mapping[str, str], *, is_shown: bool) -> None:
        """Start the clock.

        Args:
            stages: All stages in their order, each with its description.
            is_shown: Whether standard output is a terminal.
        """
        self._stages = stages
        self._is_shown = is_shown
        self._start = time.monotonic()
        self.ran: list[str] = []

    def hear(self, line: str) -> None:
        """Pass on a line of DVC's output."""
        begun = re.match(r"Running stage '(\w+)'", line)
        if begun:
            name = begun[1]
            if self._is_shown:
                sys.stdout.write(self.heading(name, seconds=time.monotonic() - self._start))
            self.ran.append(name)
        sys.stdout.write(line)
        sys.stdout.flush()

    def heading(self, name: str, *, seconds: float) -> str:
        """Which stage begins, and an estimate of how long it and the rest will take.

        Args:
            name: The stage's name.
            seconds: Time since the start, in which the earlier stages have run.
        """
        names = list(self._stages)
        number = names.index(name)
        done = sum(SHARES.get(one, SHARE) for one in self.ran)
        left = sum(SHARES.get(one, SHARE) for one in names[number:])
        rest = f" About {seconds * left / done / 60:.1f} minutes left." if done else ""
        return f"\nStage {number + 1} of {len(names)}: {self._stages[name]}{rest}\n"


def copy_pipeline(demo_dir: Path) -> None:
    """Update the demo's copy of the pipeline; its data and results stay."""
    demo_dir.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        source, target = ROOT / name, demo_dir / name
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(
                source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
            )
        else:
            shutil.copyfile(source, target)
    params = with_values((ROOT / "params.yaml").read_text(encoding="utf-8"), SYNTHETIC)
    write_bytes(demo_dir / "params.yaml", params.encode())


def ending(results: Results) -> str:
    """Where the report is, and what to do next."""
    model = results.training(FINETUNED).model
    return f"""
Open the report: {results.report}

These lesions were drawn by a program, and both encoders began with random weights. Next:
  1. the same on real images, ISIC 2016 (840 MB):  make repro
  2. masks of your own photographs:  source .venv/bin/activate
       lesionseg predict photos/ --overlay --model {shown(model)}
  3. the same on your own images and masks:  docs/data.md
"""


def compared_models(results: Results) -> str:
    """The models' SHA-256, and whether they are those that other machines have trained."""
    models, known = digests(results), json.loads(KNOWN.read_text())
    torch = version("torch").split("+")[0]
    if models == known["models"]:
        verdict = f"the same bytes as on {'; '.join(known['seen_on'])} (docs/results.md)"
    elif torch != known["torch"]:
        verdict = f"docs/results.md has those of torch {known['torch']}, and this is {torch}"
    else:
        verdict = "not those of docs/results.md, which says what they depend on"
    lines = [f"  {RUN_LABELS[run]:<10}  {digest}" for run, digest in models.items()]
    return "\n".join(["", f"SHA-256 of the models: {verdict}", *lines, ""])


def digests(results: Results) -> dict[str, str]:
    """The SHA-256 of each model."""
    return {run: sha256(results.training(run).model) for run in RUNS}


def record(results: Results) -> None:
    """Make these the models to compare with, or add this machine to their list."""
    from lesionseg.hardware import processor  # torch takes a while to load

    models, known = digests(results), json.loads(KNOWN.read_text())
    seen_on = set(known["seen_on"]) if models == known["models"] else set()
    content = {
        "torch": version("torch").split("+")[0],
        "models": models,
        "seen_on": sorted(seen_on | {processor()}),
    }
    write_json(KNOWN, content)


def shown(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


if __name__ == "__main__":
    sys.exit(exit_status(main))
