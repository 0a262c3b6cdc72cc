"""Processes: children end with us, a stage ends with its DVC, and only one writes a result."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

import psutil
from filelock import FileLock, Timeout

from lesionseg.errors import LesionsegError
from lesionseg.project import REQUIREMENTS, installed_version, named_version

POLL_SECONDS = 1.0
LOCK_SECONDS = 20.0  # longer than the grace period
GRACE_SECONDS = 15.0  # to leave the files complete and to end the runs in MLflow
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SHELLS = ("sh", "bash", "dash", "zsh", "ksh", "fish")
Process = subprocess.Popen[bytes]
# Runs a command until standard input ends, a pipe from the process that started it: that process
# closes it however it is killed. A line in the pipe says that the command has ended by itself.
_GUARD = """
exec 3<&0 </dev/null
(trap "" INT TERM; read -r _ <&3 && exit; kill -INT 0; sleep "$0"; kill -KILL 0) &
exec "$@" 3<&-
"""
_log = logging.getLogger(__name__)


def child_environment(*, without: Sequence[str] = ("DVC_", "MLFLOW_")) -> dict[str, str]:
    """The environment for a process that we start: this Python first on PATH, no telemetry.

    Args:
        without: Prefixes of variables to leave out. By default the process knows of no tracking
            server, nor of any DVC that has started us.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(tuple(without))}
    folders = [str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)]
    return {
        **inherited,
        "PATH": os.pathsep.join(folders),
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def git_identity(folder: Path, *, stranger: str = "") -> dict[str, str]:
    """Who commits in `folder`, as variables for git and DVC: a clone does not inherit it.

    Args:
        folder: It need not be a repository.
        stranger: The name to use if git knows none.

    Raises:
        LesionsegError: Git knows none, and `stranger` is empty.
    """
    identity = {}
    for key, other in (("name", stranger), ("email", f"{stranger}@localhost" if stranger else "")):
        command = ["git", "config", f"user.{key}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        for role in ("AUTHOR", "COMMITTER"):
            name = f"GIT_{role}_{key.upper()}"
            identity[name] = os.environ.get(name) or done.stdout.strip() or other
            if not identity[name]:
                raise LesionsegError(
                    f"git does not know your {key}, and an experiment is a commit. Run: "
                    "git config user.name NAME && git config user.email ADDRESS"
                )
    return identity


def start(
    command: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    log: IO[bytes] | int | None = None,
    keep_open: Sequence[int] = (),
    guarded: bool = False,
) -> Process:
    """A process in a group of its own, so that `stop` also ends everything that it has started.

    Call it in a `deferred` block that lasts until somebody can stop the process.

    Args:
        command: The program and its arguments.
        cwd: Where it runs.
        environment: All of its variables.
        log: Where its output goes; None for ours. `subprocess.PIPE` takes standard output only.
        keep_open: File descriptors that it inherits.
        guarded: Whether it ends with us even if we are killed; `release` it when it has ended.
    """
    return subprocess.Popen(
        ["sh", "-c", _GUARD, f"{GRACE_SECONDS:.0f}", *command] if guarded else command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.PIPE if guarded else subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT if log and log != subprocess.PIPE else None,
        start_new_session=True,  # Ctrl-C is passed on by `stop`, once
        pass_fds=keep_open,
    )


def release(process: Process) -> None:
    """Let the guard of a process that has ended go."""
    if process.stdin and not process.stdin.closed:
        with suppress(OSError):  # the guard has ended as well
            process.stdin.write(b"\n")
            process.stdin.flush()
        with suppress(OSError):
            process.stdin.close()


def run_to_end(
    command: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    log: IO[bytes] | None = None,
    on_line: Callable[[str], object] | None = None,
    patience: float = 15,
) -> int:
    """The exit status of a process; whatever interrupts us ends it too.

    Args:
        command: The program and its arguments.
        cwd: Where it runs.
        environment: All of its variables.
        log: Where its output goes; None for ours.
        on_line: Called with each line of its standard output, which then goes nowhere else.
        patience: Seconds that it has to end by itself.
    """
    process = None
    try:
        with deferred():
            target = subprocess.PIPE if on_line else log
            process = start(command, cwd=cwd, environment=environment, log=target)
        if on_line and process.stdout:
            for line in process.stdout:
                on_line(line.decode(errors="replace"))
        return process.wait()
    finally:
        if process:
            stop([process], patience=patience)
            if process.stdout:
                process.stdout.close()


def stop(processes: Sequence[Process], *, patience: float = 15, go_on: bool = False) -> None:
    """Interrupt those that still run, and all that they have started; then end them by force.

    A second Ctrl-C or SIGTERM meanwhile is ignored: it would leave some of them behind.

    Args:
        processes: What `start` has returned.
        patience: Seconds that they have to end by themselves.
        go_on: Whether there is more to do afterwards. Ctrl-C meanwhile is then our first, and
            interrupts us at the end.
    """
    running = [process for process in processes if process.poll() is None]
    if not running:
        return
    with deferred() if go_on else _undisturbed():
        for number, seconds in ((signal.SIGINT, patience), (signal.SIGTERM, patience / 3)):
            _send(running, number)
            end = time.monotonic() + seconds
            for process in running:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, end - time.monotonic()))
        _send(running, signal.SIGKILL)
        for process in running:
            process.wait()
            release(process)


def _send(processes: Sequence[Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):  # the group has ended
            os.killpg(process.pid, number)


@contextmanager
def deferred() -> Iterator[None]:
    """Delay interrupts until the block ends, when the process that it starts is known."""
    caught = list[int]()
    before = {number: signal.getsignal(number) for number in _ENDING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # which a process inherits, unlike a handler
            signal.signal(number, lambda number, _frame: caught.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for one in caught:
        signal.raise_signal(one)


@contextmanager
def _undisturbed() -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stopped_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM, or closing the terminal, end us and our children as Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in _ENDING[1:]}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_dvc(*, parent: int) -> None:
    """Let this process end soon after the DVC that started it, however that ended.

    Otherwise a training whose `dvc repro` was killed on its own would go on, and overwrite the next
    one's model. Does nothing if DVC did not start the process, which may then outlive its terminal.
    Linux can signal a parent's death itself (PR_SET_PDEATHSIG), but does so as soon as the parent's
    thread ends, and not at all when there is a shell in between.

    Args:
        parent: The parent's process id when this process started.
    """
    if "DVC_STAGE" in os.environ:
        _end_after(parent, _starters(), "DVC has ended, and so does its stage")


def end_with_starter(*, parent: int) -> None:
    """Let this process end soon after the one that started it, however that ended.

    Args:
        parent: The id of the process that started it, which may have ended already.
    """
    _end_after(parent, [], "")


def _end_after(parent: int, watched: list[psutil.Process], words: str) -> None:
    """Interrupt us when the parent or a watched process is gone, logging `words` unless empty."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as for Ctrl-C
    threading.Thread(target=_watch, args=(parent, watched, words), daemon=True).start()


def _starters() -> list[psutil.Process]:
    """The parent, and its ancestors up to the first that is not a shell."""
    found = []
    for process in psutil.Process().parents():
        found.append(process)
        if process.name() not in _SHELLS:
            break
    return found


def _watch(parent: int, watched: list[psutil.Process], words: str) -> None:
    """Interrupt the main thread when one of the processes is gone."""
    while os.getppid() == parent and all(map(_is_alive, watched)):
        time.sleep(POLL_SECONDS)
    main = threading.main_thread()
    assert main.ident is not None
    if words:
        _log.warning(words)
    signal.pthread_kill(main.ident, signal.SIGTERM)  # wakes it if it waits
    time.sleep(GRACE_SECONDS)
    os._exit(128 + signal.SIGTERM)


def _is_alive(process: psutil.Process) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def require_named_version() -> None:
    """Return if the installed package is the version that the project requires.

    Raises:
        LesionsegError: It is another version.
    """
    named = named_version()
    if named and named != (installed := installed_version()):
        raise LesionsegError(
            f"{REQUIREMENTS} names lesionseg {named}, and {installed} is installed",
            f"Run: pip install -r {REQUIREMENTS}; or write lesionseg=={installed} there, which "
            "makes everything anew",
        )


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """A block in which no other process on this machine writes the results in `folder`.

    Raises:
        LesionsegError: One does, and goes on doing so for many seconds.
    """
    lock_path = folder.with_name(f".{folder.name}.lock")
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    # A process whose parent has died needs a moment to end.
    lock = FileLock(lock_path, timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise LesionsegError(
            f"another process is writing {folder}. Wait until it has finished, or end it, and run "
            "the same command again"
        ) from None
    try:
        yield
    finally:
        lock.release()
