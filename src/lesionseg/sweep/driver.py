"""Trials on other machines: placed by a scheduler, followed, and run again if they are lost.

The driver runs where the command is given. It makes the data that all trials share and, unless the
machines share DVC's cache, pushes it to DVC's remote; everything else goes through
`node.run_trial`. A scheduler only places the work: a lost attempt is restarted here, so that its
runs in MLflow can be ended.
"""

import logging
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from lesionseg.errors import LesionsegError
from lesionseg.sweep import node
from lesionseg.sweep.executor import Placement
from lesionseg.sweep.finished import read_finished, val_scores
from lesionseg.sweep.progress import View, open_view
from lesionseg.sweep.pruning import Pruner
from lesionseg.sweep.tables import outcome_line
from lesionseg.sweep.trials import Curve, Outcome, Stop, Trial
from lesionseg.sweep.workspaces import DVC, HOME, Pool, Repository, output
from lesionseg.tracking import attempts

MOST_ATTEMPTS = 3  # at a trial that gets lost
_log = logging.getLogger(__name__)


class Lost(Exception):  # noqa: N818  (an event, which is handled)
    """An attempt has ended without a report.

    Attributes:
        log: What else is known about it besides the reason.
    """

    def __init__(self, reason: str, log: str = "") -> None:
        super().__init__(reason)
        self.log = log


@dataclass(frozen=True)
class Said:
    """How far a trial is: a line, and its epochs."""

    text: str
    curve: Curve = field(default_factory=dict)


class Scheduler(Protocol):
    """Places attempts at trials on machines; it identifies an attempt by a task."""

    def start(
        self, project: node.Project, trial: Trial, attempt: str, known: str, is_judged: bool
    ) -> Any:
        """The task of a new attempt, which calls `node.run_trial` with the same arguments."""
        ...

    def ended(self, tasks: Sequence[Any]) -> Sequence[Any]:
        """The tasks that have ended; the call takes about a second."""
        ...

    def report(self, task: Any) -> node.Report:
        """The outcome of a task that has ended.

        Raises:
            Lost: It has left no report.
        """
        ...

    def progress(self) -> Mapping[str, Said]:
        """What each running trial has said last, by its name."""
        ...

    def stop(self, trial: Trial) -> None:
        """Have a running trial told to stop."""
        ...


def make_project(
    repository: Repository, where: Placement, *, url: str = "", is_guarded: bool = False
) -> node.Project:
    """What nodes must know.

    Args:
        repository: The repository whose trials they are.
        where: The resources of each trial.
        url: Address of the git remote; "" if nodes share the repository's own folder, its
            checkpoints and DVC's cache.
        is_guarded: Whether nodes must ask for a token.

    Raises:
        LesionsegError: Not all nodes can reach MLflow's store.
    """
    names = ("GIT_AUTHOR_", "GIT_COMMITTER_", "MLFLOW_TRACKING_URI")
    environment = {k: v for k, v in repository.environment.items() if k.startswith(names)}
    environment["OMP_NUM_THREADS"] = str(where.num_cpus)
    if not where.num_gpus:  # a scheduler may hide the GPUs of other trials, but not all
        environment["CUDA_VISIBLE_DEVICES"] = ""
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if where.cluster != "local":
        is_file = address.startswith("sqlite")
        remedy = "Set it to the address of an MLflow server (docs/team.md)"
        if not address or (is_file and not url):
            raise LesionsegError(
                "MLFLOW_TRACKING_URI is not set or names an SQLite file, which nodes must not "
                "share",
                remedy,
            )
        if is_file:
            _log.warning(
                "MLFLOW_TRACKING_URI names an SQLite file: runs of other machines end in a file "
                "there. %s",
                remedy,
            )
    checkpoints = where.checkpoints or (None if url else repository.root / ".checkpoints")
    return node.Project(
        url=url or str(repository.root),
        commit=repository.commit,
        params=(repository.root / "params.yaml").read_text(encoding="utf-8"),
        lock="",
        versions=node.versions(),
        environment=environment,
        cache="" if url else repository.cache_dir,
        checkpoints=str(checkpoints.resolve()) if checkpoints else "",
        is_guarded=is_guarded,
    )


class Driver:
    """The executor of other machines."""

    def __init__(
        self,
        scheduler: Scheduler,
        repository: Repository,
        project: node.Project,
        pool: Pool,
        *,
        jobs: int,
    ) -> None:
        self._scheduler, self._repository, self._project = scheduler, repository, project
        self._pool, self.jobs = pool, jobs
        self._home = repository.root / HOME / "attempts"
        self._stops: dict[str, Stop] = {}

    def run(self, trials: Sequence[Trial], *, pruner: Pruner | None = None) -> Iterator[Outcome]:
        """Outcomes of trials in the order in which they end; `pruner` may stop some early."""
        self._end_left_over()
        published = self._published() if trials else {}
        waiting = []
        for trial in trials:
            if trial.name in published and (scores := self._fetch(trial)):
                yield Outcome(trial=trial, scores=scores)
            else:
                waiting.append(trial)
        if waiting and not self._project.lock:
            self._prepare()
        with open_view(len(waiting)) as view:
            for outcome in self._run(waiting, published, view, pruner):
                _log.info("%s", outcome_line(outcome))
                yield outcome

    def _prepare(self) -> None:
        """Make the data that all trials share, and put it where nodes fetch it from."""
        workspace = self._pool.prepare()
        if not self._project.cache:
            _log.info("pushing the data that all trials share")
            command = [*DVC, "push", "--quiet", "--run-cache", "--with-deps", "external"]
            output(command, workspace.path, self._repository.environment)
        self._project = replace(self._project, lock=self._pool.lock.read_text(encoding="utf-8"))

    def _run(
        self,
        trials: Sequence[Trial],
        published: Mapping[str, str],
        view: View,
        pruner: Pruner | None,
    ) -> Iterator[Outcome]:
        waiting, running = list(trials), dict[Any, Trial]()
        while waiting or running:
            while waiting and len(running) < self.jobs:
                trial = waiting.pop(0)
                known = published.get(trial.name, "")
                attempt = self._note_attempt(trial)
                task = self._scheduler.start(
                    self._project, trial, attempt, known, pruner is not None
                )
                running[task] = trial
            for task in self._scheduler.ended(list(running)):
                trial = running.pop(task)
                if outcome := self._collect(trial, task):
                    yield outcome
                else:
                    waiting.insert(0, trial)
            said: Mapping[str, Said] = {}
            if pruner or view.is_due():
                said = self._scheduler.progress()
            if pruner:
                self._stop_early(running.values(), said, pruner)
            if view.is_due():
                rows = {
                    one.name: said.get(one.name, Said("waits")).text for one in running.values()
                }
                view.show(rows, num_done=len(trials) - len(waiting) - len(running))

    def _stop_early(
        self, trials: Iterable[Trial], said: Mapping[str, Said], pruner: Pruner
    ) -> None:
        """Have the nodes told which of the running trials to stop."""
        for trial in trials:
            if trial.name in self._stops or trial.name not in said:
                continue
            if stop := pruner.hear(trial, said[trial.name].curve):
                self._stops[trial.name] = stop
                self._scheduler.stop(trial)

    def _collect(self, trial: Trial, task: Any) -> Outcome | None:
        """The outcome of an attempt; None if it is lost and the trial is to be tried again."""
        log = self._repository.root / HOME / f"logs/{trial.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        names = self._attempts(trial)
        try:
            report = self._scheduler.report(task)
        except Lost as lost:
            attempts.end_lost(names)
            log.write_text(lost.log)
            if trial.name in self._stops:
                self._forget(trial)
                return Outcome(trial=trial, stop=self._stops[trial.name], log=log)
            _log.warning("%s: %s, attempt %d", trial.name, lost, len(names))
            if len(names) < MOST_ATTEMPTS:
                return None
            self._forget(trial)
            return Outcome(trial=trial, error=f"{lost} {len(names)} times", log=log)
        log.write_text(report.log)
        if len(names) > 1:
            attempts.keep_last(names)
        self._forget(trial)
        if report.is_stopped:
            attempts.end_lost(names)
            return Outcome(trial=trial, stop=self._stops[trial.name], log=log)
        if report.error:
            return Outcome(trial=trial, error=report.error, log=log)
        scores = self._fetch(trial)
        error = "" if scores else "its scores cannot be read from DVC"
        return Outcome(trial=trial, scores=scores, error=error, log=log, seconds=report.seconds)

    def _published(self) -> dict[str, str]:
        """The experiments of this commit that the git remote has, by name."""
        pattern = self._repository.ref("*")
        lines = self._repository.git("ls-remote", self._project.url, pattern).splitlines()
        return {line.rpartition("/")[2]: line.split()[0] for line in lines}

    def _fetch(self, trial: Trial) -> dict[str, list[float]]:
        """Fetch a trial's experiment; its scores, empty if they cannot be read."""
        reference = self._repository.ref(trial.name)
        if not self._project.cache:
            fetch = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", self._project.url]
            self._repository.git(*fetch, f"+{reference}:{reference}")
        return read_finished(self._repository, trial, val_scores) or {}

    def _note_attempt(self, trial: Trial) -> str:
        """The name of a new attempt, kept in a file for the driver that follows a killed one."""
        self._home.mkdir(parents=True, exist_ok=True)
        name = secrets.token_hex(8)
        with (self._home / trial.name).open("a") as stream:
            stream.write(f"{name}\n")
        return name

    def _attempts(self, trial: Trial) -> list[str]:
        return (self._home / trial.name).read_text().split()

    def _forget(self, trial: Trial) -> None:
        (self._home / trial.name).unlink()

    def _end_left_over(self) -> None:
        """End the MLflow runs of attempts that a killed driver left behind."""
        left = sorted(self._home.glob("*")) if self._home.is_dir() else []
        attempts.end_lost([name for path in left for name in path.read_text().split()])
