"""A stage's process: it ends with the one that started it, and no two write the same results."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from lesionseg.errors import LesionsegError

POLL_SECONDS = 1.0
LOCK_SECONDS = 20.0  # more than the grace
GRACE_SECONDS = 15.0  # to leave the files whole and to say good-bye to MLflow
_SHELLS = ("sh", "bash", "dash", "zsh", "ksh", "fish")
_log = logging.getLogger(__name__)


def end_with_dvc(*, parent: int) -> None:
    """Let this process end soon after the DVC that started it, however that ended.

    A training whose `dvc repro` was ended alone would go on, and write its model over that of the
    next one. Does nothing where DVC did not start it: then it may outlive its terminal. Linux could
    signal a parent's death itself (PR_SET_PDEATHSIG), but does so already when the parent's thread
    ends, and not when there is a shell between.

    Args:
        parent: The parent's process id when this process started.
    """
    if "DVC_STAGE" not in os.environ:
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as by Ctrl-C
    threading.Thread(target=_watch, args=(parent, _starters()), daemon=True).start()


def _starters() -> list[psutil.Process]:
    """The parent, and where that is a shell also the parent's."""
    found = []
    for process in psutil.Process().parents():
        found.append(process)
        if process.name() not in _SHELLS:
            break
    return found


def _watch(parent: int, watched: list[psutil.Process]) -> None:
    """Interrupt the main thread when one of the processes is gone."""
    while os.getppid() == parent and all(map(_is_alive, watched)):
        time.sleep(POLL_SECONDS)
    main = threading.main_thread()
    assert main.ident is not None
    _log.warning("DVC has ended, and so does its stage")
    signal.pthread_kill(main.ident, signal.SIGTERM)  # wakes it where it waits
    time.sleep(GRACE_SECONDS)
    os._exit(128 + signal.SIGTERM)


def _is_alive(process: psutil.Process) -> bool:
    """Whether it runs; one that has ended and waits for its parent does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """A block in which no other process of this machine writes the results in `folder`.

    Raises:
        LesionsegError: One does, and goes on for more than some seconds.
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
