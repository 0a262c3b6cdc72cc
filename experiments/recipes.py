"""Rerun the commands in the docs, in small projects, for their output: `make docs-recipes`.

Each recipe runs in a project of synthetic lesions. Its commands, their output and duration, the
machine and the commit go to docs/results/recipes.json; docs/fill_numbers.py writes them into the
pages. The recipes of `serving` start servers on the ports 8000 and 5001.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from experiments import demo, sweep_demo
from lesionseg.errors import LesionsegError, exit_status
from lesionseg.files import write_json
from lesionseg.processes import run_to_end, start, stop, stopped_like_ctrl_c

ROOT = demo.ROOT
STORE = ROOT / "docs/results/recipes.json"
# Enough to show the tool, but says nothing about the models.
SMALL = {**sweep_demo.PARAMS, "download.phantom_num_train": 20, "train.epochs": 2}
DEMO = ROOT / ".demo"
LESION = "data/raw/test/images/PHANTOM_0000240.jpg"
PATIENCE = 180.0  # seconds for a server to answer
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Session:
    """Recipes that run one after the other in one project.

    Attributes:
        make: Makes the project in a new folder.
        recipes: The commands of each recipe by its name: the page, a dot, and its topic. None means
            the code fence just before the output on the page.
        servers: For recipes that start a server, which then runs to the session's end, the address
            at which it answers.
        failing: Names of the recipes that end with an error.
        forgets: Whether each recipe begins without the experiments of earlier ones.
    """

    make: Callable[[Path], None]
    recipes: Mapping[str, Sequence[str] | None]
    servers: Mapping[str, str] = field(default_factory=dict)
    failing: Sequence[str] = ()
    forgets: bool = False

    @property
    def page(self) -> str:
        """The name of the page that shows them."""
        return next(iter(self.recipes)).partition(".")[0]


def make_sweep(folder: Path) -> None:
    """The project of `make sweep`."""
    sweep_demo.make_repository(folder, sweep_demo.PARAMS)


def make_small(folder: Path) -> None:
    """The same with fewer images and epochs."""
    sweep_demo.make_repository(folder, SMALL)


def make_demo(folder: Path) -> None:
    """A copy of the demo, which is run first if necessary, without its runs and its registry."""
    demo.main(["--dir", str(DEMO)])
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("mlruns"))
    shutil.copy(folder / LESION, folder / "lesion.jpg")


GRID = f"lesionseg sweep {shlex.join(sweep_demo.SWEEP)}"
MLFLOW = """\
export MLFLOW_TRACKING_URI=sqlite:///mlruns/mlflow.db   # or the address of your MLflow server
mlflow models serve -m models:/lesionseg@champion --env-manager local --port 5001
"""
SESSIONS = (
    Session(
        make=make_sweep,
        recipes={
            "sweeps.grid": [GRID],
            "sweeps.again": [f"{GRID} | head -n 2"],
            "sweeps.show": [
                "dvc exp show --no-pager --drop '.*' "
                "--keep 'Experiment|tuned.val|model.decoder|loss.dice' \\\n"
                "      --sort-by tuned.val --sort-order desc"
            ],
        },
    ),
    Session(
        make=make_small,
        recipes={
            "sweeps.rates": ["lesionseg sweep --grid 'train.lr=3e-4..3e-2 log 3' --jobs 2"],
            "sweeps.seeds": [
                "lesionseg sweep --grid model.decoder=bilinear --grid train.seed=0,1 --jobs 2"
            ],
            "sweeps.num_seeds": [
                "lesionseg sweep --grid model.decoder=bilinear --set train.num_seeds=2"
            ],
            "sweeps.search": [
                "lesionseg sweep --search 'train.lr=1e-4..1e-1 log' "
                "--search model.decoder=bilinear,transposed --trials 4 --jobs 2"
            ],
            "sweeps.failure": [
                "lesionseg sweep --grid model.decoder=bilinear --grid train.device=cpu,cuda:99 "
                "--jobs 2"
            ],
        },
        failing=["sweeps.failure"],
        forgets=True,
    ),
    Session(
        make=make_demo,
        recipes={
            "serving.serve": ["lesionseg serve"],
            "serving.curl": [
                "curl -sS --fail-with-body -F image=@lesion.jpg http://127.0.0.1:8000/mask "
                "> mask.png",
                "curl -sS -F image=@lesion.jpg http://127.0.0.1:8000/predict | cut -c 1-80",
                "curl -sS http://127.0.0.1:8000/health",
            ],
            "serving.python": None,
            "serving.refused": ["curl -sS -F image=@params.yaml http://127.0.0.1:8000/mask"],
            "serving.register": ["lesionseg register", "lesionseg register", "lesionseg champion"],
            "serving.mlflow": [MLFLOW],
            "serving.mlflow_curl": None,
            "serving.mlflow_python": None,
        },
        servers={
            "serving.serve": "http://127.0.0.1:8000/health",
            "serving.mlflow": "http://127.0.0.1:5001/ping",
        },
    ),
    Session(
        make=Path.mkdir,
        recipes={"package.new": ["lesionseg new moles --synthetic"]},
    ),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipes of the pages that the command line names, and record them."""
    pages = list(dict.fromkeys(session.page for session in SESSIONS))
    parser = argparse.ArgumentParser(
        prog="python -m experiments.recipes",
        description=__doc__,
        epilog="Example: python -m experiments.recipes sweeps && python docs/fill_numbers.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"{', '.join(pages)}; or all")
    wanted = parser.parse_args(argv).pages or pages
    if unknown := [name for name in wanted if name not in pages]:
        raise LesionsegError(f"no recipes for {unknown[0]}; there are some for {', '.join(pages)}")
    from lesionseg.hardware import processor  # torch takes a while to load

    about = {
        "date": date.today().isoformat(),
        "commit": code_commit(),
        "machine": f"{os.cpu_count()} cores of an {processor()}",
    }
    with stopped_like_ctrl_c():
        for session in SESSIONS:
            if session.page in wanted:
                found = run(session, about)
                known = json.loads(STORE.read_text()) if STORE.exists() else {}
                write_json(STORE, known | found)


def run(session: Session, about: Mapping[str, str]) -> dict[str, Record]:
    """The record of each recipe of a session.

    Args:
        session: The session; its project is made here, and removed at the end.
        about: What is recorded with each recipe: date, commit and machine.

    Raises:
        LesionsegError: A recipe failed unexpectedly, or did not fail as expected.
    """
    records = {}
    with TemporaryDirectory(prefix="lesionseg-") as home, ExitStack() as servers:
        folder = Path(home).resolve() / "project"
        session.make(folder)
        for name, commands in session.recipes.items():
            if session.forgets:
                remove = [sys.executable, "-m", "dvc", "exp", "remove", "--all-commits", "--quiet"]
                sweep_demo.call(folder, *remove)
            began, load = time.monotonic(), os.getloadavg()[0]
            shown = []
            for command in commands or [fence_before(name)]:
                if name in session.servers:
                    printed = servers.enter_context(
                        answering(command, folder, session.servers[name])
                    )
                else:
                    printed = printed_by(command, folder, fails=name in session.failing)
                shown.append({"command": command, "output": tidy(printed, folder)})
            seconds = time.monotonic() - began
            sys.stdout.write(f"{name}: {seconds:.0f} s\n")
            sys.stdout.flush()
            records[name] = {
                **about,
                "load_average": [round(load, 1), round(os.getloadavg()[0], 1)],
                "seconds": round(seconds, 1),
                "commands": shown,
            }
    return records


def code_commit() -> str:
    """The commit of the pipeline that runs, with `-dirty` if its files differ.

    New recipes and pages may be recorded before they are committed.
    """
    code = ("src", "stages", "dvc.yaml", "params.yaml")
    commit = sweep_demo.call(ROOT, "git", "rev-parse", "HEAD").strip()
    differs = sweep_demo.call(ROOT, "git", "status", "--porcelain", "--", *code)
    return f"{commit}-dirty" if differs else commit


def fence_before(name: str) -> str:
    """The code on a page just before the output of a recipe.

    Raises:
        LesionsegError: The page does not show the output.
    """
    page = ROOT / f"docs/{name.partition('.')[0]}.md"
    text = page.read_text(encoding="utf-8")
    before, found, _ = text.partition(f"<!-- numbers: output:{name} -->")
    if not found:
        raise LesionsegError(f"{page} has no output of {name}, which is what would be run")
    code: str = re.findall(r"(?ms)^```(?:bash|python)\n(.*?)^```$", before)[-1]
    return code


def process_of(command: str, folder: Path) -> list[str]:
    """A command for the shell, or Python, as a process that writes its errors to a file."""
    is_python = re.search(r"(?m)^import ", command)
    arguments = [sys.executable if is_python else "bash", "-c", command]
    return ["bash", "-c", 'exec "$@" 2>> "$0"', str(errors_of(folder)), *arguments]


def errors_of(folder: Path) -> Path:
    """The file for the commands' errors, outside the project so that git does not see it."""
    return folder.with_name("errors.log")


def printed_by(command: str, folder: Path, *, fails: bool = False) -> str:
    """What a command writes to standard output and, if it is to fail, its error line.

    Args:
        command: For the shell, or Python.
        folder: Where it runs.
        fails: Whether it is expected to fail.

    Raises:
        LesionsegError: It does not end as expected.
    """
    lines: list[str] = []
    errors = errors_of(folder)
    errors.write_text("")
    status = run_to_end(
        process_of(command, folder),
        cwd=folder,
        environment=sweep_demo.environment(folder),
        on_line=lines.append,
        patience=60,
    )
    said = errors.read_text(encoding="utf-8", errors="replace")
    sys.stderr.write(said)
    if bool(status) != fails:
        raise LesionsegError(f"exit status {status} of {command!r}; what it said is above")
    last = re.findall(r"(?m)^error: .*$", said) if fails else []
    return "".join([*lines, *last])


@contextmanager
def answering(command: str, folder: Path, address: str) -> Iterator[str]:
    """What a server has printed by the time it answers; it runs as long as the block.

    Raises:
        LesionsegError: It ends, does not answer in time, or another server is already there.
    """
    if is_there(address):
        raise LesionsegError(f"another server answers at {address}", "Stop it")
    log = folder.with_name("server.log")
    with log.open("wb") as stream:
        process = start(
            process_of(command, folder),
            cwd=folder,
            environment=sweep_demo.environment(folder),
            log=stream,
        )
    try:
        end = time.monotonic() + PATIENCE
        while not is_there(address):
            if process.poll() is not None or time.monotonic() > end:
                said = errors_of(folder).read_text(encoding="utf-8", errors="replace")
                raise LesionsegError(f"{command!r} does not answer: {said[-500:]}")
            time.sleep(0.2)
        yield log.read_text()
    finally:
        stop([process])


def is_there(address: str) -> bool:
    """Whether a server answers."""
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except OSError:
        return False


def tidy(text: str, folder: Path) -> str:
    """What was printed, without this machine's paths and without trailing spaces."""
    lines = text.replace(str(folder), "...").splitlines()
    return "\n".join(line.rstrip() for line in lines).rstrip()


if __name__ == "__main__":
    sys.exit(exit_status(main))
