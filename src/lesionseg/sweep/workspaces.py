"""Where trials run: clones of the repository, one for each job, driven through `dvc` and `git`.

`dvc queue start -j N` can lose an experiment without a log (DVC issue 10673), and parallel
`dvc exp run --temp` processes take each other's locks and stashes. A clone has its own locks and
stashes, and shares the cache, so that nothing is computed twice. Each trial is a `dvc exp run`
there, whose experiment is then fetched into the repository.
"""

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lesionseg.config import read_yaml
from lesionseg.errors import LesionsegError
from lesionseg.processes import (
    Process,
    child_environment,
    deferred,
    git_identity,
    release,
    run_to_end,
    start,
    stop,
)
from lesionseg.results.layout import FINETUNED, FROZEN, RUNS, Results
from lesionseg.results.training import seed_scores_table
from lesionseg.sweep.progress import last_progress, open_view, read_curve
from lesionseg.sweep.pruning import Pruner
from lesionseg.sweep.space import Value
from lesionseg.sweep.tables import outcome_line
from lesionseg.sweep.trials import Outcome, Stop, Trial
from lesionseg.tracking import store

HOME = Path(".dvc/tmp/sweep")  # git and DVC ignore it
CODE = ("src", "stages", "dvc.yaml", ".dvcignore")
DVC = (sys.executable, "-m", "dvc")
_log = logging.getLogger(__name__)


@dataclass
class Repository:
    """The repository that the sweep is for, at one commit."""

    root: Path
    commit: str
    environment: dict[str, str]

    def git(self, *arguments: str, cwd: Path | None = None) -> str:
        """Standard output of a git command.

        Raises:
            LesionsegError: It failed.
        """
        return output(["git", *arguments], cwd or self.root, self.environment)

    @cached_property
    def cache_dir(self) -> str:
        """The absolute path of DVC's cache."""
        return output([*DVC, "cache", "dir"], self.root, self.environment)

    def ref(self, name: str) -> str:
        """Where DVC keeps an experiment of this commit."""
        return f"refs/exps/{self.commit[:2]}/{self.commit[2:]}/{name}"


def open_repository(root: Path) -> Repository:
    """The repository at `root`, ready for experiments.

    Raises:
        LesionsegError: It is not a Git repository, or has no commit, DVC or identity, or has
            uncommitted code.
    """
    if not (root / ".git").exists():
        raise LesionsegError(
            f"{root} is no git repository, and DVC's experiments need one. "
            "Run: git init && git add --all && git commit -m start"
        )
    environment = _environment(root)
    try:
        commit = output(["git", "rev-parse", "--verify", "HEAD^{commit}"], root, environment)
    except LesionsegError:
        raise LesionsegError(
            f"{root} has no commit. Run: git add --all && git commit -m start"
        ) from None
    if not (root / ".dvc").is_dir():
        raise LesionsegError(f"{root} has no .dvc. Run: dvc init && git commit -m dvc")
    repository = Repository(root, commit, environment)
    changed = repository.git("status", "--porcelain", "--", *CODE).splitlines()
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise LesionsegError(
            f"{changed[0].split(maxsplit=1)[1]}{more} is not as in the last commit, which the "
            "trials run. Run: git add --all && git commit, or git stash -u"
        )
    return repository


def _environment(root: Path) -> dict[str, str]:
    """The environment of git, DVC and the stages: an identity, and one tracking store for all."""
    environment = child_environment(without=["DVC_EXP", "DVC_ROOT"])
    environment.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlruns/mlflow.db'}")
    return {**environment, **git_identity(root)}


def output(command: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> str:
    """Standard output of a command.

    Raises:
        LesionsegError: It failed.
    """
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        words = [Path(command[0]).name, *command[1:3]]
        raise LesionsegError(f"{' '.join(words)} failed in {cwd}: {last_error(done.stderr)}")
    return done.stdout.strip()


def last_error(output: str) -> str:
    """The line that says what went wrong: a stage's error, else DVC's, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for mark in ("error:", "ERROR:"):
        found = [line for line in lines if line.startswith(mark)]
        if found:
            return found[-1].removeprefix(mark).strip()
    return lines[-1] if lines else "it said nothing"


@contextmanager
def only_one(root: Path) -> Iterator[int]:
    """Hold the sweep's lock, as a descriptor that trials inherit: they hold it until they end.

    Raises:
        LesionsegError: Another sweep, or a trial left over from a killed one, holds it.
    """
    import fcntl

    (root / HOME).mkdir(parents=True, exist_ok=True)
    with (root / HOME / "lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LesionsegError(
                "another sweep runs in this repository, or a trial of one that was killed. "
                "Wait until it ends, then run the same command again"
            ) from None
        yield stream.fileno()


@dataclass
class Workspace:
    """A clone in which one trial runs at a time.

    Attributes:
        repository: The repository that it is a clone of.
        path: Where it is.
        archives: The folder of downloaded archives; a relative one is linked to the repository's.
        options: Options of `dvc exp run`.
        params: The params.yaml of all trials; None for the repository's.
    """

    repository: Repository
    path: Path
    archives: str
    options: Sequence[str] = ()
    params: Path | None = None
    trial: Trial | None = None
    process: Process | None = None
    started: float = 0.0

    def create(self) -> None:
        """Make a fresh clone of the repository, with its cache and its own DVC settings."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        root = self.repository.root
        self._git("clone", "--quiet", "--shared", "--no-checkout", str(root), str(self.path))
        exclude = self.path / ".git/info/exclude"
        exclude.parent.mkdir(exist_ok=True)
        exclude.write_text(".checkpoints\n")  # a link, which .gitignore's pattern does not cover
        self._git("checkout", "--quiet", "--detach", self.repository.commit, cwd=self.path)
        local = root / ".dvc/config.local"
        if local.exists():
            shutil.copyfile(local, self.path / ".dvc/config.local")
        command = [*DVC, "config", "--local", "cache.dir", self.repository.cache_dir]
        output(command, self.path, self.repository.environment)
        # So that a trial that was killed can go on in any workspace.
        self._link(".checkpoints")

    def _git(self, *arguments: str, cwd: Path | None = None) -> None:
        self.repository.git(*arguments, cwd=cwd)

    def _link(self, name: str) -> None:
        target, link = self.repository.root / name, self.path / name
        target.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)

    def reset(self, lock: Path) -> None:
        """Go back to the commit and the trials' params.yaml; ignored files such as data stay."""
        self._git("reset", "--quiet", "--hard", self.repository.commit, cwd=self.path)
        self._git("clean", "--quiet", "--force", "-d", cwd=self.path)
        params = self.params or self.repository.root / "params.yaml"
        shutil.copyfile(params, self.path / "params.yaml")
        if lock.exists():
            shutil.copyfile(lock, self.path / "dvc.lock")
        is_ours = not Path(self.archives).is_absolute()
        if is_ours and (self.repository.root / self.archives).is_dir():
            self._link(self.archives)

    def start(
        self, trial: Trial, *, lock: Path, log: Path, keep_open: int, is_judged: bool = False
    ) -> None:
        """Run a trial in the background.

        Args:
            trial: The trial to run.
            lock: The dvc.lock to start from.
            log: Where its output goes.
            keep_open: A file descriptor that it inherits.
            is_judged: Whether it may be stopped early; the model that is judged is trained first.
        """
        self.reset(lock)
        reference = self.repository.ref(trial.name)
        self._git("update-ref", "-d", reference, cwd=self.path)
        settings = [f"-S{name}={dvc_value(value)}" for name, value in trial.settings.items()]
        command = [*DVC, "exp", "run", "--name", trial.name, *self.options, *settings]
        command += ["--single-item", *judged_first(self.path)] if is_judged else []
        self.trial, self.started = trial, time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stream, deferred():
            self.process = start(
                command,
                cwd=self.path,
                environment=self.repository.environment,
                log=stream,
                keep_open=[keep_open],
                guarded=True,
            )

    def has_ended(self) -> bool:
        """Whether its trial has ended."""
        return self.process is not None and self.process.poll() is not None

    def collect(self, log: Path, *, stop: Stop | None = None) -> Outcome:
        """The outcome of the trial that has ended; its experiment is then in the repository.

        Args:
            log: Its output.
            stop: Why it was stopped, if it was; it may have finished all the same.
        """
        assert self.trial
        assert self.process
        release(self.process)
        try:
            outcome = self._collect(self.trial, log)
        except (LesionsegError, OSError) as error:  # must not affect other trials
            outcome = Outcome(trial=self.trial, error=str(error), log=log)
        if stop and outcome.has_failed:
            return Outcome(trial=self.trial, stop=stop, log=log)
        return outcome

    def _collect(self, trial: Trial, log: Path) -> Outcome:
        assert self.process
        reference = self.repository.ref(trial.name)
        there = self.repository.git("for-each-ref", reference, cwd=self.path)
        if self.process.returncode or not there:
            text = log.read_text(errors="replace")
            reason = last_error(text) if self.process.returncode else "DVC left no experiment"
            return Outcome(trial=trial, error=reason, log=log)
        fetch = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head"]
        self._git(*fetch, str(self.path), f"+{reference}:{reference}")
        seconds = time.monotonic() - self.started
        results = Results(self.path / "results")
        scores = {run: read_scores(results, run) for run in RUNS}
        return Outcome(trial=trial, scores=scores, log=log, seconds=seconds)


def judged_first(root: Path) -> list[str]:
    """The stages in the order of dvc.yaml, where none needs a later one; model 2 before model 1.

    DVC's own order would train the frozen model before the one by which trials are judged.
    """
    stages = [name for name in read_yaml(root / "dvc.yaml")["stages"] if name != FINETUNED]
    stages.insert(stages.index(FROZEN), FINETUNED)
    return stages


def read_scores(results: Results, run: str) -> list[float]:
    """Best val jaccards of one model, one for each of its training seeds.

    Raises:
        MissingFileError: They are missing.
        DataError: They cannot be read.
    """
    scores = seed_scores_table(run).read(results.seed_scores(run))
    return [float(score) for score in scores["val_jaccard"]]


def dvc_value(value: Value) -> str:
    """A value in the syntax of `dvc exp run -S`; text is quoted, so that it stays text."""
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    return repr(value)


class Pool:
    """The executor of this machine: workspaces side by side that clean up after themselves."""

    def __init__(self, repository: Repository, *, jobs: int, archives: str, keep_open: int) -> None:
        self._repository, self._keep_open, self.jobs = repository, keep_open, jobs
        self._home = repository.root / HOME
        self.lock = self._home / "dvc.lock"
        self._all = [
            Workspace(repository, self._home / f"workspaces/{number}", archives)
            for number in range(1, jobs + 1)
        ]
        self._ready: list[Workspace] = []

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        # An interrupted trial keeps its finished epochs.
        stop([workspace.process for workspace in self._all if workspace.process])
        shutil.rmtree(self._home / "workspaces", ignore_errors=True)

    def prepare(self) -> Workspace:
        """The first workspace, with the data that all trials share; `lock` is then their dvc.lock.

        Raises:
            LesionsegError: The data cannot be made.
        """
        lock = self._repository.root / "dvc.lock"
        first, log = self._all[0], self._home / "logs/prepare.log"
        first.create()
        first.reset(lock)
        log.parent.mkdir(parents=True, exist_ok=True)
        _log.info("preparing the data that all trials share")
        # Paths in params.yaml start at the repository, not at its clone.
        environment = {**self._repository.environment, "DVC_ROOT": str(self._repository.root)}
        with log.open("wb") as stream:
            command = [*DVC, "repro", "external"]  # this stage needs the splits
            status = run_to_end(command, cwd=first.path, environment=environment, log=stream)
        if status:
            raise LesionsegError(
                f"the data cannot be made: {last_error(log.read_text(errors='replace'))} "
                f"(all of it: {log})"
            )
        shutil.copyfile(first.path / "dvc.lock", self.lock)
        self._ready = [first]
        return first

    def run(self, trials: Sequence[Trial], *, pruner: Pruner | None = None) -> Iterator[Outcome]:
        """Outcomes of trials in the order in which they end; `pruner` may stop some early."""
        waiting, running = list(trials), list[Workspace]()
        if waiting and not self._ready:
            self.prepare()
        with open_view(len(trials)) as view:
            while waiting or running:
                while waiting and len(running) < len(self._all):
                    workspace = self._free(running)
                    self._start(workspace, waiting.pop(0), is_judged=pruner is not None)
                    running.append(workspace)
                time.sleep(0.1)
                for workspace in list(running):
                    reason = self._stop_early(workspace, pruner) if pruner else None
                    if not (reason or workspace.has_ended()):
                        continue
                    running.remove(workspace)
                    assert workspace.trial
                    outcome = workspace.collect(self._log_path(workspace.trial), stop=reason)
                    _log.info("%s", outcome_line(outcome))
                    yield outcome
                if view.is_due():
                    own = [one.trial for one in running if one.trial]
                    rows = {trial.name: last_progress(self._log_path(trial)) for trial in own}
                    view.show(rows, num_done=len(trials) - len(waiting) - len(running))

    def _stop_early(self, workspace: Workspace, pruner: Pruner) -> Stop | None:
        """Why a trial was stopped just now, or None; its workspace must then be remade."""
        assert workspace.trial
        assert workspace.process
        if workspace.has_ended():
            return None
        reason = pruner.hear(workspace.trial, read_curve(self._log_path(workspace.trial)))
        if reason:
            stop([workspace.process], patience=30, go_on=True)  # time to end its run in MLflow
            self._ready.remove(workspace)  # DVC and git may have left their locks there
        return reason

    def _free(self, running: Sequence[Workspace]) -> Workspace:
        idle = [one for one in self._ready if one not in running]
        if idle:
            return idle[0]
        workspace = next(one for one in self._all if one not in self._ready)
        workspace.create()
        self._ready.append(workspace)
        return workspace

    def _start(self, workspace: Workspace, trial: Trial, *, is_judged: bool) -> None:
        log = self._log_path(trial)
        workspace.start(
            trial, lock=self.lock, log=log, keep_open=self._keep_open, is_judged=is_judged
        )

    def _log_path(self, trial: Trial) -> Path:
        return self._home / f"logs/{trial.name}.log"


@contextmanager
def open_pool(repository: Repository, *, jobs: int, archives: str) -> Iterator[Pool]:
    """A pool of workspaces, alone in its repository; each trial gets a share of the cores."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    repository.environment.setdefault("OMP_NUM_THREADS", str(threads))
    with only_one(repository.root) as keep_open:
        if "MLFLOW_TRACKING_URI" not in os.environ:
            store.prepare()  # make database and experiment before several trials need them
        with Pool(repository, jobs=jobs, archives=archives, keep_open=keep_open) as pool:
            yield pool
