"""Errors that a user can fix. Commands print such an error as one line and exit with status 1.

    LesionsegError
    ├── ConfigError        (ValueError)         a value in params.yaml is invalid
    ├── DataError          (ValueError)         an image, mask or table is invalid
    ├── MissingFileError   (FileNotFoundError)  an input is missing
    ├── DownloadError      (RuntimeError)       a server, a connection or a checksum failed
    ├── DiskSpaceError     (RuntimeError)       the disk is too full for the next step
    ├── TrackingError      (RuntimeError)       MLflow's store cannot be used
    ├── TrainingError      (RuntimeError)       the loss is no longer finite
    └── ExportError        (RuntimeError)       a model cannot be exported, or its masks differ

A message says where, expected, got, and the next step. Code that catches an error and knows a
better next step reuses its `problem` alone; a message's text is never parsed.
"""

import errno
import os
import sys
import unicodedata
from collections.abc import Callable

from lesionseg.project import find_project

OK, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130  # exit statuses
GOES_ON = "Run the same command again to go on"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class LesionsegError(Exception):
    """The base of all errors that a user can fix.

    Attributes:
        problem: Where, what was expected and what was got, without a full stop.
        remedy: The next step; "" if there is none, or if the problem says it already.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}. {remedy}" if remedy else problem)
        self.problem = problem
        self.remedy = remedy


class ConfigError(LesionsegError, ValueError):
    """A value in params.yaml is invalid."""


class DataError(LesionsegError, ValueError):
    """An image, mask, archive or table is invalid."""


class MissingFileError(LesionsegError, FileNotFoundError):
    """An input is missing."""


class DownloadError(LesionsegError, RuntimeError):
    """A server, a connection or a checksum failed."""


class DiskSpaceError(LesionsegError, RuntimeError):
    """The disk is too full for the next step."""


class TrackingError(LesionsegError, RuntimeError):
    """MLflow's store cannot be used.

    Attributes:
        mend: The remedy without the command at its end: what to do about the store, and `then`.
            The command depends on the caller.
    """

    def __init__(self, problem: str, mend: str = "") -> None:
        super().__init__(problem, f"{mend} run: lesionseg replay" if mend else "")
        self.mend = mend


class TrainingError(LesionsegError, RuntimeError):
    """The loss is no longer finite."""


class ExportError(LesionsegError, RuntimeError):
    """An exported file cannot be made, or does not reproduce the model's masks."""


def repro(*stages: str) -> str:
    """What to run, after `Run:`, where outputs of stages are missing or out of date.

    DVC can run something only in a project; someone with just the package and a model's file is
    told where the file comes from.
    """
    return _in_project(f"dvc repro {' '.join(stages)}", *stages)


def rerun(stage: str) -> str:
    """What to run, after `Run:`, to remake a stage's outputs and everything that depends on them.

    `dvc repro -f` would also rerun all stages before it, including the trainings.
    """
    return _in_project(f"dvc repro -sf {stage} && dvc repro", stage)


def _in_project(command: str, *stages: str) -> str:
    if find_project():
        return command
    return f"the stage {' and the stage '.join(stages)}, in the project that the file comes from"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def explain(error: LesionsegError | OSError) -> str:
    """An error as one line with its next step, if it has one; most system errors do not."""
    if isinstance(error, LesionsegError) or not error.strerror:
        return first_line(error)
    where = f"{error.filename}: " if error.filename is not None else ""
    remedy = ". Make room and run the same command again" if error.errno in DISK_FULL else ""
    return f"{where}{error.strerror}{remedy}"


def printable(text: str) -> str:
    """A line that stays one line, whatever characters file names contain."""
    return "".join("\ufffd" if unicodedata.category(c) == "Cc" else c for c in text)


def exit_status(main: Callable[[], int | None], *, interrupted: str = GOES_ON) -> int:
    """The exit status of a command; an error that the user can fix is one line on standard error.

    `LESIONSEG_DEBUG=1` shows tracebacks.

    Args:
        main: Does the command's work; it may return a status of its own.
        interrupted: The message after Ctrl-C.
    """
    try:
        return main() or OK
    except (LesionsegError, OSError) as error:
        if os.environ.get("LESIONSEG_DEBUG"):
            raise
        sys.stderr.write(f"error: {printable(explain(error))}\n")
        return FAILED
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted. {interrupted}\n")
        return INTERRUPTED
