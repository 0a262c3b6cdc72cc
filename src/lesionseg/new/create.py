"""`lesionseg new`: a project for users who have the package but not the repository."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from lesionseg.errors import LesionsegError
from lesionseg.files import write_bytes
from lesionseg.new.archive import read_files
from lesionseg.project import REQUIREMENTS, installed_version

Values = Mapping[str, str | int | float | list[dict[str, str]]]
# A small budget and an encoder from scratch: minutes, and no network.
SYNTHETIC: Values = {
    "download.source": "phantom",
    "download.weights": "none",
    "download.phantom_num_train": 240,
    "download.phantom_num_test": 60,
    "download.phantom_size": 192,
    "external": [{"name": "another-clinic", "source": "phantom", "folder": ""}],
    "train.epochs": 8,
    "train.batch_size": 8,
    "train.reproducible": "anywhere",
    "train_finetuned.encoder_lr": 0.002,
    "report.title": "Demo: synthetic lesions, encoders from scratch",
}
_PIPELINE_HEAD = """\
# The pipeline, and everything that each stage's outputs depend on. The code is that of the
# installed package, in the version that requirements.txt names: another version remakes everything.
"""
_REQUIREMENTS = """\
# All stages depend on this file, and refuse another version.
lesionseg=={version}
"""


def create(folder: Path, *, values: Values) -> None:
    """Write a project into a folder, new or not, that lies in a git repository or becomes one.

    Existing files stay; only an existing README may differ from ours.

    Args:
        folder: Where.
        values: What differs from the usual params.yaml, as `{"train.lr": 0.001}`.

    Raises:
        LesionsegError: A different file is in the way, or git is not installed.
    """
    if not shutil.which("git"):
        raise LesionsegError("there is no git, which DVC needs. Install it: apt install git")
    files = read_files()
    files["dvc.yaml"] = depend_on_version(files["dvc.yaml"])
    files["params.yaml"] = with_values(files["params.yaml"], values)
    files[REQUIREMENTS] = _REQUIREMENTS.format(version=installed_version())
    missing = {name: text for name, text in files.items() if not _is_there(folder / name, text)}
    for name, text in missing.items():
        write_bytes(folder / name, text.encode())
    inside = ["git", "rev-parse", "--is-inside-work-tree"]
    if subprocess.run(inside, cwd=folder, capture_output=True).returncode:
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)


def _is_there(path: Path, text: str) -> bool:
    """Whether a file already exists, so that it need not be written.

    Raises:
        LesionsegError: Something else is in its place.
    """
    if not path.exists():
        return False
    if path.name == "README.md" or (path.is_file() and path.read_bytes() == text.encode()):
        return True
    raise LesionsegError(f"{path} already exists, and would be replaced. Name another folder")


def depend_on_version(pipeline: str) -> str:
    """dvc.yaml for an installed package.

    In the repository each stage depends on the modules that it imports. Installed modules change
    only with the package's version, so a stage depends on the file that names the version instead.

    Args:
        pipeline: The repository's dvc.yaml.
    """
    body = pipeline[pipeline.index("stages:\n") :]
    body = body.replace("- src/lesionseg/__init__.py\n", f"- {REQUIREMENTS}\n")
    return _PIPELINE_HEAD + re.sub(r"(?m)^ +- src/lesionseg/.*\n", "", body)


def with_values(params: str, values: Values) -> str:
    """The text of a params.yaml with some values replaced, and all its comments kept.

    Args:
        params: The text.
        values: Such as `{"train.lr": 0.001}`; a name without a dot is a whole section.
    """
    for name, value in values.items():
        section, _, key = name.partition(".")
        shown = str(value) if re.fullmatch(r"[\w.]+", str(value)) else json.dumps(value)
        place = rf"{section}:\n(?:(?: .*)?\n)*?  {key}" if key else section
        found = re.search(rf"(?m)^{place}: (.*)$", params)
        assert found, name
        params = params[: found.start(1)] + shown + params[found.end(1) :]
    return params
