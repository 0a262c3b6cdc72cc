"""The project in the working directory, and the version of lesionseg that it requires."""

import re
from pathlib import Path

FILES = ("dvc.yaml", "params.yaml")
REQUIREMENTS = "requirements.txt"  # of a project written by `lesionseg new`


def find_project() -> Path | None:
    """The working directory if it is the root of a project, else None."""
    here = Path.cwd()
    return here if all((here / name).is_file() for name in FILES) else None


def installed_version() -> str:
    """The version of the package that is installed."""
    from importlib import metadata  # takes a tenth of a second

    return metadata.version("lesionseg")


def named_version() -> str | None:
    """The version that the project requires; None if the project contains the package."""
    path = Path(REQUIREMENTS)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = re.search(r"(?m)^lesionseg *== *([^\s;#]+)", text)
    return found[1] if found else None
