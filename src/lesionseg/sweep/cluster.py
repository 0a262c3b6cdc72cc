"""Trials on the nodes of a Ray cluster; Ray only places them, and `driver` follows them."""

import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lesionseg.errors import LesionsegError
from lesionseg.sweep import node
from lesionseg.sweep.driver import Driver, Lost, Said, make_project
from lesionseg.sweep.executor import Placement
from lesionseg.sweep.trials import Curve, Trial
from lesionseg.sweep.workspaces import DVC, Pool, Repository, only_one, output
from lesionseg.tracking import store

ORIGIN = "origin"
EXTRA = "Run: pip install -e '.[cluster]'"
_log = logging.getLogger(__name__)


@contextmanager
def open_cluster(repository: Repository, where: Placement, *, archives: str) -> Iterator[Driver]:
    """The executor of a cluster, alone in its repository.

    Args:
        repository: The repository whose trials they are.
        where: With the cluster's address: `ray://HOST:PORT`; `auto` for the cluster that this
            machine is a node of; `local` for one on this machine only, which ends with the block.
        archives: `download.archives`.

    Raises:
        LesionsegError: The cluster, a node or a remote is not set up as needed.
    """
    assert where.cluster
    is_guarded = os.environ.get("RAY_AUTH_MODE", "token") == "token"
    url = "" if where.cluster == "local" else _git_remote(repository)
    project = make_project(repository, where, url=url, is_guarded=is_guarded)
    with only_one(repository.root) as keep_open, _connected(where.cluster) as ray:
        store.prepare()
        with Pool(repository, jobs=1, archives=archives, keep_open=keep_open) as pool:
            cluster = Cluster(ray, where)
            room = cluster.check_nodes(project)
            yield Driver(cluster, repository, project, pool, jobs=min(where.jobs or room, room))


def _git_remote(repository: Repository) -> str:
    """The address of the remote `origin`; DVC's default remote must exist as well.

    Raises:
        LesionsegError: One of them does not exist.
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
        LesionsegError: It is not installed, or no cluster that knows our token answers.
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
    except BrokenPipeError:  # from our own output
        raise
    except ConnectionError as error:
        raise LesionsegError(
            f"the cluster is gone ({_last_line(error).rstrip('.')})",
            "Start it again (docs/team.md), then run the same command to go on",
        ) from None
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    """Connect; try again if a busy head was not ready for its client in time."""
    options = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        ray.init(address, **options)
    except ConnectionAbortedError as error:
        _log.warning("the cluster did not answer in time (%s), trying again", _last_line(error))
        ray.init(address, **options)


class Cluster:
    """The scheduler of a cluster."""

    def __init__(self, ray: Any, where: Placement) -> None:
        self._ray, self._num_cpus, self._num_gpus = ray, where.num_cpus, where.num_gpus
        options = {"num_cpus": where.num_cpus, "num_gpus": where.num_gpus, "max_retries": 0}
        self._work = ray.remote(**options)(_work)
        head = {"node:__internal_head__": 0.001}  # which lasts as long as the cluster
        self._board = ray.remote(num_cpus=0, resources=head)(_Board).remote()

    def check_nodes(self, project: node.Project) -> int:
        """Ask each node whether it may work; the number of trials that there is room for.

        Raises:
            LesionsegError: A node must not work, or there is no room for a single trial.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        alive = [one for one in self._ray.nodes() if one["Alive"]]
        nodes = {one["NodeID"]: one for one in alive if self._room(one["Resources"])}
        if not nodes:
            raise LesionsegError(
                f"no node has {self._num_cpus} cores and {self._num_gpus} GPUs for a "
                "trial. Ask for fewer with --num-cpus and --num-gpus"
            )
        check = self._ray.remote(num_cpus=0, max_retries=0)(node.refusal)
        asked = {
            name: check.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(name, soft=False)
            ).remote(project)
            for name in nodes
        }
        for name, answer in asked.items():
            try:
                reason = self._ray.get(answer)
            except self._ray.exceptions.RayError as error:
                reason = f"it cannot run lesionseg ({_last_line(error)})"
            if reason:
                raise LesionsegError(f"node {nodes[name]['NodeManagerAddress']}: {reason}")
        return sum(self._room(one["Resources"]) for one in nodes.values())

    def _room(self, resources: dict[str, float]) -> int:
        """How many trials fit on a node at once."""
        room = int(resources.get("CPU", 0)) // self._num_cpus
        return min(room, int(resources.get("GPU", 0)) // self._num_gpus) if self._num_gpus else room

    def start(
        self, project: node.Project, trial: Trial, attempt: str, known: str, is_judged: bool
    ) -> Any:
        """The task of a new attempt."""
        return self._work.remote(project, trial, attempt, known, self._board, is_judged)

    def ended(self, tasks: Sequence[Any]) -> Sequence[Any]:
        """The tasks that have ended, waiting a second at most."""
        done: Sequence[Any] = self._ray.wait(tasks, timeout=1)[0]
        return done

    def report(self, task: Any) -> node.Report:
        """The outcome of a task that has ended.

        Raises:
            Lost: Its node was lost.
        """
        try:
            report: node.Report | None = self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            return node.Report(error=_last_line(error), log=str(error), seconds=0)
        except self._ray.exceptions.RayError as error:
            raise Lost(f"its node was lost ({type(error).__name__})") from None
        if report is None:
            raise Lost("its node was lost (ended)")
        return report

    def progress(self) -> Mapping[str, Said]:
        """What each running trial has said last, by its name."""
        said: Mapping[str, Said] = self._ray.get(self._board.read.remote())
        return said

    def stop(self, trial: Trial) -> None:
        """Have a running trial told to stop."""
        self._board.stop.remote(trial.name)


class _Board:
    """An actor to which nodes report how far they are, and from which they read what to stop."""

    def __init__(self) -> None:
        self._said: dict[str, Said] = {}
        self._stopped: set[str] = set()

    def tell(self, name: str, said: Said) -> bool:
        self._said[name] = said
        return name in self._stopped

    def read(self) -> dict[str, Said]:
        return self._said

    def stop(self, name: str) -> None:
        self._stopped.add(name)


def _work(
    project: node.Project, trial: Trial, attempt: str, known: str, board: Any, is_judged: bool
) -> Any:
    """The report of a trial, called on a node; None if the node has ended.

    Ray lets a task go on then, and may even deliver its report; this task stops instead.
    """
    import ray

    address, parent = ray.util.get_node_ip_address(), os.getppid()
    answer: Any = None

    def tell(text: str, curve: Curve) -> bool:
        nonlocal answer
        if os.getppid() != parent:
            raise KeyboardInterrupt
        if answer and not answer.done():
            return False  # the head has been asked; waiting would give our cores to others
        is_stopped = bool(answer and not answer.exception() and answer.result())
        answer = board.tell.remote(trial.name, Said(f"{address}  {text}", curve)).future()
        return is_stopped

    try:
        return node.run_trial(
            project, trial, attempt=attempt, known=known, tell=tell, is_judged=is_judged
        )
    except KeyboardInterrupt:
        return None


def _last_line(error: BaseException) -> str:
    """The last line of a task's error, at the end of its traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
