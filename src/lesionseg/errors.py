"""What a user can mend. A stage prints such an error as one line and exits with status 1.

    LesionsegError
    ├── ConfigError        (ValueError)         params.yaml says something that cannot be
    ├── DataError          (ValueError)         an image, mask or table is not as it must be
    ├── MissingFileError   (FileNotFoundError)  an input is not there
    ├── DownloadError      (RuntimeError)       a server, a connection or a checksum failed
    ├── DiskSpaceError     (RuntimeError)       the disk is too full for what comes next
    ├── TrackingError      (RuntimeError)       MLflow's store cannot be used
    └── TrainingError      (RuntimeError)       the loss is not finite any more

A message says where, expected, got, and the next step.
"""


class LesionsegError(Exception):
    """The base of all errors that are the user's to mend."""


class ConfigError(LesionsegError, ValueError):
    """params.yaml says something that cannot be."""


class DataError(LesionsegError, ValueError):
    """An image, mask, archive or table is not as it must be."""


class MissingFileError(LesionsegError, FileNotFoundError):
    """An input is not there."""


class DownloadError(LesionsegError, RuntimeError):
    """A server, a connection or a checksum failed."""


class DiskSpaceError(LesionsegError, RuntimeError):
    """The disk is too full for what comes next."""


class TrackingError(LesionsegError, RuntimeError):
    """MLflow's store cannot be used."""


class TrainingError(LesionsegError, RuntimeError):
    """The loss is not finite any more."""
