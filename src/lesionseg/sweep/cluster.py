"""Trials on the nodes of a Ray cluster: placed, followed, and run again where a node is lost.

The driver, where the command is given, makes the data that all trials share and pushes it to DVC's
remote; all else goes through `node.run_trial`. Ray only places the work: an attempt that is lost
with its node is started anew here, so that its runs in MLflow can be ended.
"""

import logging
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lesionseg.errors import LesionsegError
from lesionseg.sweep import node
from lesionseg.sweep.finished import read_finished, val_scores
from lesionseg.sweep.progress import View, open_view
from lesionseg.sweep.pruning import Pruner
from lesionseg.sweep.tables import outcome_line
from lesionseg.sweep.trials import Curve, Outcome, Stop, Trial
from lesionseg.sweep.workspaces import DVC, HOME, Pool, Repository, only_one, output
from lesionseg.tracking import attempts, store

MOST_ATTEMPTS = 3  # at a trial whose nodes are lost
ORIGIN = "origin"
EXTRA = "Run: pip install -e '.[cluster]'"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a trial is given.

    Attributes:
        num_cpus: Cores, and threads.
        num_gpus: Whole GPUs.
    """

    num_cpus: int
    num_gpus: int

    def room(self, resources: dict[str, float]) -> int:
        """How many trials there is room for at once."""
        room = int(resources.get("CPU", 0)) // self.num_cpus
        return min(room, int(resources.get("GPU", 0)) // self.num_gpus) if self.num_gpus else room


@contextmanager
def open_cluster(
    repository: Repository,
    address: str,
    *,
    demand: Demand,
    jobs: int | None,
    archives: str,
    checkpoints: Path | None,
) -> Iterator["Cluster"]:
    """The executor of a cluster, alone in its repository.

    Args:
        repository: Whose trials they are.
        address: `ray://HOST:PORT`; `auto` for the cluster that this machine is a node of; `local`
            for one of this machine alone, which ends with the block.
        demand: What each trial is given.
        jobs: Trials at once; None for as many as there is room for.
        archives: `download.archives`.
        checkpoints: A folder that all nodes share, or None.

    Raises:
        LesionsegError: The cluster, a node or a remote is not as it must be.
    """
    project = _make_project(repository, demand, checkpoints, is_local=address == "local")
    with only_one(repository.root) as keep_open, _connected(address) as ray:
        store.prepare()
        with Pool(repository, jobs=1, archives=archives, keep_open=keep_open) as pool:
            cluster = Cluster(ray, repository, project, demand, pool)
            cluster.check_nodes(jobs)
            yield cluster


def _make_project(
    repository: Repository, demand: Demand, checkpoints: Path | None, *, is_local: bool
) -> node.Project:
    """What nodes must know; on this machine alone they share its repository and its cache."""
    names = ("GIT_AUTHOR_", "GIT_COMMITTER_", "MLFLOW_TRACKING_URI")
    environment = {k: v for k, v in repository.environment.items() if k.startswith(names)}
    environment["OMP_NUM_THREADS"] = str(demand.num_cpus)
    if not demand.num_gpus:  # Ray hides those of others, but not from who has asked for none
        environment["CUDA_VISIBLE_DEVICES"] = ""
    if not is_local and "MLFLOW_TRACKING_URI" not in os.environ:
        raise LesionsegError(
            "MLFLOW_TRACKING_URI is not set, and nodes cannot reach this machine's mlruns/mlflow.db"
            ". Set it to the address of an MLflow server (docs/team.md)"
        )
    return node.Project(
        url=str(repository.root) if is_local else _git_remote(repository),
        commit=repository.commit,
        params=(repository.root / "params.yaml").read_text(encoding="utf-8"),
        lock="",
        versions=node.versions(),
        environment=environment,
        cache=repository.cache_dir if is_local else "",
        checkpoints=str(checkpoints.resolve()) if checkpoints else "",
        is_guarded=os.environ.get("RAY_AUTH_MODE", "token") == "token",
    )


def _git_remote(repository: Repository) -> str:
    """The address of the remote `origin`; DVC's default remote must be there as well.

    Raises:
        LesionsegError: There is none.
    """
    if ORIGIN not in repository.git("remote").split():
        raise LesionsegError(
            "a cluster's nodes fetch the commit from the git remote origin, which is not there. "
            "Run: git remote add origin URL && git push --set-upstream origin HEAD"
        )
    if repository.git("status", "--porcelain", "--", ".dvc/config"):
        raise LesionsegError(".dvc/config is not as in the last commit. Run: git commit -a")
    try:
        output([*DVC, "config", "core.remote"], repository.root, repository.environment)
    except LesionsegError:
        raise LesionsegError(
            "a cluster's nodes fetch the data from DVC's default remote, and there is none. Run: "
            "dvc remote add --default team URL && git commit -a -m remote && git push"
        ) from None
    return repository.git("remote", "get-url", ORIGIN)


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster, asking for a token unless `RAY_AUTH_MODE` says otherwise.

    Raises:
        LesionsegError: It is not installed, or no cluster answers that knows our token.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # before it is loaded
    if address == "local":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
    except ImportError:
        raise LesionsegError("--cluster needs Ray, which is not installed", EXTRA) from None
    try:
        _connect(ray, address)
    except ray.exceptions.AuthenticationError:
        raise LesionsegError(
            "there is no token for the cluster. Copy the one of its head to ~/.ray/auth_token, or "
            "name its file in RAY_AUTH_TOKEN_PATH (docs/team.md)"
        ) from None
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise LesionsegError(
            f"no cluster answers at {address}, or it has another token ({_last_line(error)}). "
            "Start one as docs/team.md says, and see there what each machine needs"
        ) from None
    try:
        yield ray
    except BrokenPipeError:  # of our own output
        raise
    except ConnectionError as error:
        raise LesionsegError(
            f"the cluster is gone ({_last_line(error).rstrip('.')})",
            "Start it again (docs/team.md), then run the same command to go on",
        ) from None
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    """Connect, once more where a busy head has not been ready in time for its client."""
    options = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        ray.init(address, **options)
    except ConnectionAbortedError as error:
        _log.warning("the cluster did not answer in time (%s), trying again", _last_line(error))
        ray.init(address, **options)


class Cluster:
    """The executor of a cluster."""

    def __init__(
        self, ray: Any, repository: Repository, project: node.Project, demand: Demand, pool: Pool
    ) -> None:
        self._ray, self._repository, self._project = ray, repository, project
        self._demand, self._pool = demand, pool
        self.jobs = 1
        options = {"num_cpus": demand.num_cpus, "num_gpus": demand.num_gpus, "max_retries": 0}
        self._work = ray.remote(**options)(_work)
        head = {"node:__internal_head__": 0.001}  # without it there is no cluster either
        self._board = ray.remote(num_cpus=0, resources=head)(_Board).remote()
        self._home = repository.root / HOME / "attempts"
        self._stops: dict[str, Stop] = {}

    def check_nodes(self, jobs: int | None) -> None:
        """Ask each node whether it may work, and find out how many trials there is room for.

        Raises:
            LesionsegError: One must not, or there is no room for a single trial.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        alive = [one for one in self._ray.nodes() if one["Alive"]]
        nodes = {one["NodeID"]: one for one in alive if self._demand.room(one["Resources"])}
        if not nodes:
            raise LesionsegError(
                f"no node has {self._demand.num_cpus} cores and {self._demand.num_gpus} GPUs for a "
                "trial. Ask for fewer with --num-cpus and --num-gpus"
            )
        check = self._ray.remote(num_cpus=0, max_retries=0)(node.refusal)
        asked = {
            name: check.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(name, soft=False)
            ).remote(self._project)
            for name in nodes
        }
        for name, answer in asked.items():
            try:
                reason = self._ray.get(answer)
            except self._ray.exceptions.RayError as error:
                reason = f"it cannot run lesionseg ({_last_line(error)})"
            if reason:
                raise LesionsegError(f"node {nodes[name]['NodeManagerAddress']}: {reason}")
        room = sum(self._demand.room(one["Resources"]) for one in nodes.values())
        self.jobs = min(jobs or room, room)

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
        """Make the data that all trials share, and bring it to where nodes fetch it from."""
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
        project = self._ray.put(self._project)
        while waiting or running:
            while waiting and len(running) < self.jobs:
                trial = waiting.pop(0)
                known = published.get(trial.name, "")
                attempt = self._note_attempt(trial)
                is_judged = pruner is not None
                task = self._work.remote(project, trial, attempt, known, self._board, is_judged)
                running[task] = trial
            done, _ = self._ray.wait(list(running), timeout=1)
            for task in done:
                trial = running.pop(task)
                if outcome := self._collect(trial, task):
                    yield outcome
                else:
                    waiting.insert(0, trial)
            said = {}
            if pruner or view.is_due():
                said = self._ray.get(self._board.read.remote())
            if pruner:
                self._stop_early(running.values(), said, pruner)
            if view.is_due():
                rows = {
                    one.name: said.get(one.name, _Said("waits")).text for one in running.values()
                }
                view.show(rows, num_done=len(trials) - len(waiting) - len(running))

    def _stop_early(
        self, trials: Iterable[Trial], said: Mapping[str, "_Said"], pruner: Pruner
    ) -> None:
        """Have the nodes told which of the trials that run are to be stopped."""
        for trial in trials:
            if trial.name in self._stops or trial.name not in said:
                continue
            if stop := pruner.hear(trial, said[trial.name].curve):
                self._stops[trial.name] = stop
                self._board.stop.remote(trial.name)

    def _collect(self, trial: Trial, task: Any) -> Outcome | None:
        """What came of an attempt; None where it is lost and the trial is to be tried again."""
        log = self._repository.root / HOME / f"logs/{trial.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        names = self._attempts(trial)
        try:
            report: node.Report = self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            log.write_text(str(error))
            return Outcome(trial=trial, error=_last_line(error), log=log)
        except self._ray.exceptions.RayError as error:
            attempts.end_lost(names)
            if trial.name in self._stops:
                self._forget(trial)
                return Outcome(trial=trial, stop=self._stops[trial.name], log=log)
            reason = f"its node was lost ({type(error).__name__})"
            _log.warning("%s: %s, attempt %d", trial.name, reason, len(names))
            if len(names) < MOST_ATTEMPTS:
                return None
            self._forget(trial)
            return Outcome(trial=trial, error=f"{reason} {len(names)} times", log=log)
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
        lost = "" if scores else "its scores cannot be read from DVC's remote"
        return Outcome(trial=trial, scores=scores, error=lost, log=log, seconds=report.seconds)

    def _published(self) -> dict[str, str]:
        """The experiments of this commit that the git remote has, by name."""
        pattern = self._repository.ref("*")
        lines = self._repository.git("ls-remote", self._project.url, pattern).splitlines()
        return {line.rpartition("/")[2]: line.split()[0] for line in lines}

    def _fetch(self, trial: Trial) -> dict[str, list[float]]:
        """Bring a trial's experiment here; its scores, none where they cannot be read."""
        reference = self._repository.ref(trial.name)
        if not self._project.cache:
            fetch = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", self._project.url]
            self._repository.git(*fetch, f"+{reference}:{reference}")
        return read_finished(self._repository, trial, val_scores) or {}

    def _note_attempt(self, trial: Trial) -> str:
        """The name of a new attempt, kept in a file for whoever comes after a killed driver."""
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
        """End the runs in MLflow of attempts that a killed driver has left behind."""
        left = sorted(self._home.glob("*")) if self._home.is_dir() else []
        attempts.end_lost([name for path in left for name in path.read_text().split()])


@dataclass(frozen=True)
class _Said:
    """How far a trial is: a line, and its epochs."""

    text: str
    curve: Curve = field(default_factory=dict)


class _Board:
    """An actor on which nodes write how far they are, and read what is to be stopped."""

    def __init__(self) -> None:
        self._said: dict[str, _Said] = {}
        self._stopped: set[str] = set()

    def tell(self, name: str, text: str, curve: Curve) -> bool:
        self._said[name] = _Said(text, curve)
        return name in self._stopped

    def read(self) -> dict[str, _Said]:
        return self._said

    def stop(self, name: str) -> None:
        self._stopped.add(name)


def _work(
    project: node.Project, trial: Trial, attempt: str, known: str, board: Any, is_judged: bool
) -> node.Report:
    """A trial, as a node calls it. Ray lets a task go on whose node has ended: not this one."""
    import ray

    address, parent = ray.util.get_node_ip_address(), os.getppid()
    answer: Any = None

    def tell(text: str, curve: Curve) -> bool:
        nonlocal answer
        if os.getppid() != parent:
            raise LesionsegError("its node has ended")
        if answer and not answer.done():
            return False  # asked is the head already; to wait would give our cores to others
        is_stopped = bool(answer and not answer.exception() and answer.result())
        answer = board.tell.remote(trial.name, f"{address}  {text}", curve).future()
        return is_stopped

    return node.run_trial(
        project, trial, attempt=attempt, known=known, tell=tell, is_judged=is_judged
    )


def _last_line(error: BaseException) -> str:
    """What a task's error says at the end of its traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
