"""The locks hold all that is needed, with hashes, and `make setup` takes what is there."""

import os
import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.lock", "requirements-cpu.lock", "requirements-cuda.lock")
PYTHONS = ("3.11.7", "3.12.1", "3.13.0")
SYSTEMS = {"linux": "Linux", "darwin": "Darwin"}


def read_lock(name):
    """The requirements of a lock, each with its hashes."""
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / name).read_text())
    blocks = [block.split() for block in re.split(r"\n(?=\S)", text.replace("\\\n", ""))]
    return [
        (
            Requirement(" ".join(word for word in block if not word.startswith("--"))),
            [word for word in block if word.startswith("--")],
        )
        for block in blocks
    ]


def environment(python, system):
    major_minor = ".".join(python.split(".")[:2])
    return {
        "python_version": major_minor,
        "python_full_version": python,
        "sys_platform": system,
        "platform_system": SYSTEMS[system],
        "platform_machine": "arm64" if system == "darwin" else "x86_64",
        "extra": "",
    }


def locked(build, where):
    """What is installed: names and versions."""
    entries = [*read_lock("requirements.lock"), *read_lock(f"requirements-{build}.lock")]
    fitting = [r for r, _ in entries if not r.marker or r.marker.evaluate(where)]
    names = [canonicalize_name(requirement.name) for requirement in fitting]
    assert len(names) == len(set(names))
    versions = [next(iter(requirement.specifier)).version for requirement in fitting]
    return dict(zip(names, versions, strict=True))


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_exact_versions_with_hashes_and_nothing_else(name):
    for requirement, hashes in read_lock(name):
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", text) for text in hashes)
        assert not requirement.url


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("build", ["cpu", "cuda"])
def test_the_locks_hold_what_pyproject_asks_for(build, python, system):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    where = environment(python, system)
    versions = locked(build, where)
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        if not requirement.marker or requirement.marker.evaluate(where):
            version = versions[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version, prereleases=True), text


def test_the_locks_hold_what_their_packages_ask_for():
    """`make setup` installs nothing else; of what is installed here we can tell."""
    names = {canonicalize_name(requirement.name) for n in LOCKS for requirement, _ in read_lock(n)}
    installed = {canonicalize_name(found.metadata["Name"]) for found in metadata.distributions()}
    assert len(names & installed) > 100
    for name in names & installed:
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            if not requirement.marker or requirement.marker.evaluate({"extra": ""}):
                assert canonicalize_name(requirement.name) in names, f"{name}: {text}"


def test_both_builds_of_torch_are_of_one_version():
    where = environment("3.11.7", "linux")
    cpu, cuda = locked("cpu", where), locked("cuda", where)
    assert cpu["torch"] == f"{cuda['torch']}+cpu"
    assert [name for name in cpu if name.startswith("nvidia-")] == []
    assert [name for name in cuda if name.startswith("nvidia-")] != []


@pytest.fixture
def make(tmp_path, monkeypatch):
    """The commands of `make setup` on a fresh clone, where only some programs are to be had."""
    if not shutil.which("make"):
        pytest.skip("no make")
    for name in ("Makefile", "pyproject.toml", *LOCKS):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("MAKEFLAGS", "TORCH", "PYTHON", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels /more")

    def make(*arguments, programs=()):
        folder = tmp_path / "programs"
        folder.mkdir()
        for name in ("make", "sh"):
            (folder / name).symlink_to(shutil.which(name))
        for name in programs:
            (folder / name).symlink_to(shutil.which("true"))
        done = subprocess.run(
            ["make", "--dry-run", "setup", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PATH": str(folder)},
            capture_output=True,
            text=True,
        )
        return done.stdout + done.stderr

    return make


def test_setup_takes_uv_where_there_is_one_with_the_settings_that_pip_has(make):
    commands = make(programs=["uv"])
    assert " -m pip " not in commands
    assert commands.count("uv pip install") == 4
    assert commands.count("--find-links /wheels --find-links /more") == 4


def test_setup_takes_pip_where_there_is_no_uv(make):
    commands = make()
    assert "uv pip" not in commands
    assert commands.count(".venv/bin/python -m pip install") == 4


def test_everything_but_the_project_itself_is_installed_by_its_hash(make):
    installs = re.findall(r"-m pip install .*?(?= \|\||\n)", make())
    assert ["--require-hashes" in command for command in installs] == [True, True, True, False]
    assert "--no-deps" in installs[-1]
    assert installs[-1].endswith("-e .")


@pytest.mark.parametrize(
    ("arguments", "programs", "build"),
    [
        ([], [], "cpu"),
        ([], ["nvidia-smi"], "cuda"),
        (["TORCH=cpu"], ["nvidia-smi"], "cpu"),
        (["TORCH=cuda"], [], "cuda"),
    ],
)
def test_the_build_of_torch_is_that_of_the_machine_unless_one_is_named(
    make, arguments, programs, build
):
    commands = make(*arguments, programs=programs)
    assert {name for name in LOCKS if name in commands} == {
        "requirements.lock",
        f"requirements-{build}.lock",
    }


def test_another_build_of_torch_is_refused(make):
    assert "TORCH must be auto, cpu or cuda, got gpu" in make("TORCH=gpu")
