"""A trial on a node of a cluster, whose only channels are a git remote, a DVC remote and MLflow.

Files that a node needs again are in `~/.cache/lesionseg` (or `XDG_CACHE_HOME`): a clone of the
repository, DVC's cache, workspaces. All of it can be deleted while no trial is running.
"""

import fcntl
import hashlib
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lesionseg
from lesionseg import provenance
from lesionseg.errors import LesionsegError, explain
from lesionseg.processes import child_environment, stop
from lesionseg.sweep.progress import last_progress, read_curve
from lesionseg.sweep.trials import Curve, Trial
from lesionseg.sweep.workspaces import DVC, Repository, Workspace, output
from lesionseg.tracking.attempts import VARIABLE, end_lost


@dataclass(frozen=True, kw_only=True)
class Project:
    """What a node must know about the project whose trials it runs.

    Attributes:
        url: Address of the git remote.
        commit: The commit that the trials run.
        params: The content of params.yaml.
        lock: The content of dvc.lock, with the data that all trials share.
        versions: As from `versions`, where the command was given.
        environment: Variables that DVC and the stages have on all nodes.
        cache: DVC's cache; "" for the node's own, which is filled from DVC's remote.
        checkpoints: The folder of all checkpoints; "" for the node's own.
        is_guarded: Whether nodes must ask for a token.
    """

    url: str
    commit: str
    params: str
    lock: str
    versions: Mapping[str, str]
    environment: Mapping[str, str]
    cache: str = ""
    checkpoints: str = ""
    is_guarded: bool = True


@dataclass(frozen=True, kw_only=True)
class Report:
    """The outcome of an attempt at a trial, as reported by the node.

    Attributes:
        error: The last error line if it failed.
        log: Its whole output.
        seconds: How long it took.
        is_stopped: Whether it was stopped early, as it was told to.
    """

    error: str
    log: str
    seconds: float
    is_stopped: bool = False


class _StoppedEarlyError(Exception):
    """A trial was told to stop."""


def versions() -> dict[str, str]:
    """What must be equal on all machines: packages, Python and our own code, as a hash."""
    found = {name: text.partition("+")[0] for name, text in provenance.versions().items()}
    package = Path(lesionseg.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return {
        **found,
        "python": ".".join(found["python"].split(".")[:2]),
        "lesionseg's code": digest.hexdigest()[:12],
    }


def refusal(project: Project) -> str:
    """Why this node must not work, with the next step; "" if it may."""
    own = versions()
    for name, wanted in project.versions.items():
        if own.get(name) != wanted:
            return (
                f"it has {name} {own.get(name)}, and {wanted} is wanted. There, check out the "
                "same commit and run: make setup"
            )
    if project.is_guarded and os.environ.get("RAY_AUTH_MODE") != "token":
        return (
            "it was started without RAY_AUTH_MODE=token: whoever reaches it can run anything "
            "there. Start it as docs/team.md says"
        )
    if not shutil.which("git"):
        return "it has no git. Install it there"
    try:
        _repository(project, attempt="")
    except (LesionsegError, OSError) as error:
        return f"{explain(error)}. Push the commit, or let that node reach the git remote"
    return ""


def run_trial(
    project: Project,
    trial: Trial,
    *,
    attempt: str,
    known: str,
    tell: Callable[[str, Curve], bool],
    is_judged: bool = False,
) -> Report:
    """Run a trial and publish its experiment: data to DVC's remote, then the reference to git's.

    Args:
        project: The project whose trial it is.
        trial: The trial to run.
        attempt: The tag of its runs in MLflow.
        known: The experiment that the git remote already has and that is to be replaced, or "".
        tell: Called with a line about how far it is, and its epochs; returns whether to stop it.
        is_judged: Whether it may be stopped early.
    """
    started, log = time.monotonic(), _home(project) / f"logs/{attempt}.log"
    error, is_stopped = "", False
    try:
        error = _run(
            project,
            trial,
            log=log,
            attempt=attempt,
            known=known,
            tell=tell,
            is_judged=is_judged,
        )
    except _StoppedEarlyError:
        is_stopped = True
    except (LesionsegError, OSError) as trouble:  # must not affect other trials
        error = explain(trouble)
    text = log.read_text(errors="replace") if log.exists() else ""
    log.unlink(missing_ok=True)
    seconds = time.monotonic() - started
    return Report(error=error, log=text, seconds=seconds, is_stopped=is_stopped)


def _run(
    project: Project,
    trial: Trial,
    *,
    log: Path,
    attempt: str,
    known: str,
    tell: Callable[[str, Curve], bool],
    is_judged: bool,
) -> str:
    """The error of a trial, or "".

    Raises:
        _StoppedEarlyError: It was stopped early.
    """
    if reason := refusal(project):
        return reason
    repository = _repository(project, attempt=attempt)
    if _published(repository, project, trial) != known:
        return ""  # an attempt believed to be lost has finished after all
    with _free_workspace(repository, project) as (workspace, keep_open):
        try:
            lock = workspace.path.with_suffix(".lock.yaml")
            workspace.start(trial, lock=lock, log=log, keep_open=keep_open, is_judged=is_judged)
            while not workspace.has_ended():
                if tell(last_progress(log), read_curve(log)):
                    raise _StoppedEarlyError
                time.sleep(0.5)
        finally:
            stop([workspace.process] if workspace.process else [])
        outcome = workspace.collect(log)
        if outcome.error:
            return outcome.error
        tell("publishing", {})
        if not project.cache:
            output([*DVC, "push", "--quiet", "--run-cache"], workspace.path, repository.environment)
        _publish(repository, project, trial, attempt=attempt, known=known)
    return ""


def _home(project: Project) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    # Machines that share a home get a folder each: not all file systems lock across machines.
    words = (project.url, project.cache, project.checkpoints, socket.gethostname())
    name = hashlib.sha256(" ".join(words).encode()).hexdigest()[:12]
    return base / "lesionseg" / name


def _repository(project: Project, *, attempt: str) -> Repository:
    """The node's own clone, at the commit.

    Raises:
        LesionsegError: The remote cannot be reached, or does not have the commit.
    """
    root = _home(project) / "repository"
    environment = {
        **child_environment(without=["DVC_EXP", "DVC_ROOT", "RAY_"]),
        **project.environment,
        VARIABLE: attempt,
    }
    repository = Repository(root, project.commit, environment)
    with _locked(root.with_name("lock")):
        if not (root / ".git").is_dir():
            root.mkdir(parents=True, exist_ok=True)
            repository.git("init", "--quiet")
        (root / ".git/index.lock").unlink(missing_ok=True)  # left by a killed process
        head = root / ".git/HEAD"
        if head.read_text().strip() != project.commit:
            repository.git("fetch", "--quiet", "--no-tags", project.url, project.commit)
            repository.git("checkout", "--quiet", "--force", "--detach", project.commit)
        cache = project.cache or str(root.with_name("cache"))
        if project.checkpoints and not (root / ".checkpoints").is_symlink():
            Path(project.checkpoints).mkdir(parents=True, exist_ok=True)
            (root / ".checkpoints").symlink_to(project.checkpoints)
    repository.cache_dir = cache
    return repository


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def _free_workspace(repository: Repository, project: Project) -> Iterator[tuple[Workspace, int]]:
    """A workspace that nobody uses, and the descriptor of its lock, which a trial inherits.

    A workspace whose trial was killed is remade: DVC and git leave locks of their own behind.
    """
    folder = repository.root.with_name("workspaces")
    folder.mkdir(exist_ok=True)
    number = 1
    while True:
        with (folder / f"{number}.lock").open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                number += 1
                continue
            options = () if project.cache else ("--pull", "--allow-missing")
            path = folder / str(number)
            params, lock = path.with_suffix(".params.yaml"), path.with_suffix(".lock.yaml")
            params.write_text(project.params)
            lock.write_text(project.lock)
            workspace = Workspace(repository, path, "/", options=options, params=params)
            unclean = path.with_suffix(".unclean")
            if unclean.exists() or not (path / ".dvc").is_dir():
                workspace.create()
            unclean.touch()
            yield workspace, stream.fileno()
            unclean.unlink()
            return


def _published(repository: Repository, project: Project, trial: Trial) -> str:
    """The experiment of a trial in the git remote, or ""."""
    return repository.git("ls-remote", project.url, repository.ref(trial.name)).partition("\t")[0]


def _publish(
    repository: Repository, project: Project, trial: Trial, *, attempt: str, known: str
) -> None:
    """Push the reference, unless another attempt was faster: its result is just as good."""
    reference = repository.ref(trial.name)
    lease = f"--force-with-lease={reference}:{known}"
    try:
        repository.git("push", "--quiet", lease, project.url, f"{reference}:{reference}")
    except LesionsegError:
        if _published(repository, project, trial) in ("", known):
            raise
        end_lost([attempt], finished=True)
