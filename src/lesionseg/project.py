"""The project that the working directory is the root of, if it is one."""

from pathlib import Path

FILES = ("dvc.yaml", "params.yaml")


def find_project() -> Path | None:
    """The working directory if it is the root of a project, else None."""
    here = Path.cwd()
    return here if all((here / name).is_file() for name in FILES) else None
