"""Processes that we start, and that never outlive us."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Process = subprocess.Popen[bytes]


def start(
    command: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    log: IO[bytes] | None = None,
    keep_open: Sequence[int] = (),
) -> Process:
    """A process in a group of its own, which `stop` ends with all that it has started.

    To be called in a block of `deferred`, until somebody can stop it.

    Args:
        command: The program and its arguments.
        cwd: Where it runs.
        environment: All of its variables.
        log: Where its output goes; None for ours.
        keep_open: Descriptors that it inherits.
    """
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT if log else None,
        start_new_session=True,  # Ctrl-C is passed on by `stop`, once
        pass_fds=keep_open,
    )


def run_to_end(
    command: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    log: IO[bytes] | None = None,
    patience: float = 15,
) -> int:
    """The exit status of a process; whatever interrupts us ends it too.

    Args:
        command: The program and its arguments.
        cwd: Where it runs.
        environment: All of its variables.
        log: Where its output goes; None for ours.
        patience: Seconds in which it may end by itself.
    """
    process = None
    try:
        with deferred():
            process = start(command, cwd=cwd, environment=environment, log=log)
        return process.wait()
    finally:
        if process:
            stop([process], patience=patience)


def stop(processes: Sequence[Process], *, patience: float = 15) -> None:
    """Interrupt those that still run, with all that they have started; then end them by force.

    A second Ctrl-C or SIGTERM meanwhile changes nothing: it would leave some of them behind.
    """
    running = [process for process in processes if process.poll() is None]
    if not running:
        return
    with _undisturbed():
        for number, seconds in ((signal.SIGINT, patience), (signal.SIGTERM, patience / 3)):
            _send(running, number)
            end = time.monotonic() + seconds
            for process in running:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, end - time.monotonic()))
        _send(running, signal.SIGKILL)
        for process in running:
            process.wait()


def _send(processes: Sequence[Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):  # the group has ended
            os.killpg(process.pid, number)


@contextmanager
def deferred() -> Iterator[None]:
    """Let what interrupts the block do so at its end: the process it starts is known by then."""
    caught = list[int]()
    before = {number: signal.getsignal(number) for number in _ENDING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # which a process inherits, other than a handler
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
    """Let SIGTERM, or the terminal's end, end us as Ctrl-C does: with what we have started."""

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in _ENDING[1:]}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
