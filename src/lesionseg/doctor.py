"""`lesionseg doctor`: whether this machine and project are ready, with a line for each check.

Whatever would stop `dvc repro` is an error, whatever only costs time or a feature is a note; both
come with a remedy. Nothing is created or changed except what the MLflow store needs to open.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from lesionseg.config import Config, DownloadConfig, load_config
from lesionseg.errors import LesionsegError, explain, first_line
from lesionseg.files import project_root

LOCKS = ("requirements.lock", "requirements-cpu.lock", "requirements-cuda.lock")
NEWEST_TRIED = (3, 13)
SHOWN = ("torch", "torchvision", "dvc", "mlflow")
# Free bytes: what a run of the pipeline needs, and in addition what the archives of a source take,
# packed and unpacked, as far as their sizes are known.
LEAST_FREE = 0.3e9
UNPACKED = {"isic2016": 2.2e9, "isic2018": 21e9}
NUM_NAMED = 3
SECONDS = 10.0  # for a server's answer


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        level: `ok`, `note`, or `error` if it stops the demo or the pipeline.
        text: What was found.
        remedy: How to fix it, empty if nothing needs fixing.
    """

    level: Literal["ok", "note", "error"]
    text: str
    remedy: str = ""


def examine() -> Iterator[tuple[str, Finding]]:
    """The name and outcome of each check, as soon as it is known.

    Run in the project's root.
    """
    yield "python", _guarded(_python)
    yield "packages", _guarded(_packages)
    yield "git", _guarded(_git)
    yield "dvc", _guarded(_dvc)
    try:
        config = load_config(Path("params.yaml"))
    except LesionsegError as error:
        yield "params.yaml", Finding("error", explain(error), "Correct it, and run this again")
        return
    yield "params.yaml", Finding("ok", "all values are valid")
    yield "device", _guarded(lambda: _device(config))
    yield "disk", _guarded(lambda: _disk(config.download))
    yield "data", _guarded(lambda: _data(config.download))
    yield "encoder", _guarded(lambda: _encoder(config.download))
    yield "mlflow", _guarded(_mlflow)


def _in_repository() -> bool:
    """Whether the project is the repository itself, not one written by `lesionseg new`."""
    return Path("Makefile").is_file()


def _guarded(look: Callable[[], Finding]) -> Finding:
    """What `look` finds; its own failure is an error like any other."""
    try:
        return look()
    except (LesionsegError, OSError) as error:
        return Finding("error", explain(error))


def _python() -> Finding:
    text = f"{platform.python_version()} in {sys.prefix}"
    if sys.version_info[:2] > NEWEST_TRIED:
        remedy = "Run: make PYTHON=python3.13" if _in_repository() else "Take Python 3.13"
        return Finding("note", f"{text}, newer than any version tried", remedy)
    # The stages run the first python on PATH, as written in dvc.yaml.
    found = shutil.which("python")
    if found is None or Path(found).parent.resolve() != Path(sys.executable).parent.resolve():
        return Finding(
            "error",
            f"{text}, but the stages would run {found or 'no python at all'}",
            f"Run: source {sys.prefix}/bin/activate",
        )
    return Finding("ok", text)


def _packages() -> Finding:
    """Whether the installed versions are the locked ones."""
    try:
        import torch  # noqa: F401

        from lesionseg.mobilenet import mobilenet_v2  # noqa: F401
    except Exception as error:  # noqa: BLE001  (incompatible libraries may raise anything)
        text = f"torch and torchvision cannot be loaded ({first_line(error)})"
        again = "pip install --force-reinstall -r requirements.txt"
        anew = "rm -r .venv && make setup" if _in_repository() else again
        return Finding("error", text, f"Run: {anew}")
    locked = _locked_versions()
    installed = {name: _installed_version(name) for name in locked}
    # +cpu and the like name a build of the same version.
    others = [n for n, v in installed.items() if v and v.partition("+")[0] != locked[n]]
    shown = ", ".join(f"{name} {_installed_version(name)}" for name in SHOWN)
    if not others:
        return Finding("ok", shown)
    more = f" and {len(others) - NUM_NAMED} more" if len(others) > NUM_NAMED else ""
    named = ", ".join(f"{name} {installed[name]}" for name in others[:NUM_NAMED])
    return Finding("note", f"{shown}; not as locked: {named}{more}", "Run: make -B setup")


def _locked_versions() -> dict[str, str]:
    texts = [Path(name).read_text() for name in LOCKS if Path(name).is_file()]
    return dict(re.findall(r"(?m)^([a-z][\w.-]*)==([^\s;+]+)", "\n".join(texts)))


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # for another Python or system, or only in the other lock
        return None


def _git() -> Finding:
    if not shutil.which("git"):
        return Finding("error", "git is not installed", "Install it, for example: apt install git")
    missing = [key for key in ("name", "email") if not _identity(key)]
    if not missing:
        return Finding("ok", f"{_identity('name')} <{_identity('email')}>")
    remedy = " and ".join(f"git config user.{key} YOUR_{key.upper()}" for key in missing)
    text = f"no user.{' and user.'.join(missing)}: dvc repro works, dvc exp run does not"
    return Finding("note", text, f"Run: {remedy}")


def _identity(key: str) -> str:
    """The name or e-mail address under which git would commit."""
    names = (f"GIT_AUTHOR_{key.upper()}", f"GIT_COMMITTER_{key.upper()}")
    if all(os.environ.get(name) for name in names):
        return os.environ[names[0]]
    return _output("git", "config", f"user.{key}")


def _output(*command: str) -> str:
    """The first line that a command prints, empty if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.partition("\n")[0] if done.returncode == 0 else ""


def _dvc() -> Finding:
    """Whether DVC can read the pipeline."""
    command = [sys.executable, "-m", "dvc", "stage", "list", "--name-only"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return Finding("ok", f"{len(done.stdout.split())} stages in dvc.yaml")
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    text = lines[0].removeprefix("ERROR: ") if lines else f"exit status {done.returncode}"
    if "not a git repository" in text:
        return Finding("error", "DVC needs this folder to be a git repository", "Run: git init")
    return Finding("error", text, "Restore what you have changed: git status shows it")


def _device(config: Config) -> Finding:
    """What the trainings run on."""
    import torch

    from lesionseg.hardware import (
        check_devices,
        choose_device,
        choose_precision,
        describe,
        multiplies_in_bfloat16,
        processor,
    )

    device = choose_device(config.train.device_name)
    if config.train.num_processes > 1:
        check_devices(config.train.device_name, num_processes=config.train.num_processes)
    precision = choose_precision(config.train.precision, device)
    text = f"{describe(device, precision)} on {os.cpu_count()} CPUs, {processor()}"
    try:
        torch.ones(8, 8, device=device, dtype=precision).sum().item()
    except RuntimeError as error:
        remedy = "Update the driver, or write device: cpu in params.yaml, section train"
        return Finding("error", f"{text}: does not compute ({first_line(error)})", remedy)
    emulated = precision == torch.bfloat16 and not multiplies_in_bfloat16(device)
    if device.type == "cpu" and emulated:
        remedy = "Write precision: auto in params.yaml, section train"
        return Finding("note", f"{text}: this CPU only emulates bfloat16, slowly", remedy)
    if device.type == "cpu" and shutil.which("nvidia-smi"):
        anew = "Run: rm -r .venv && make setup TORCH=cuda"
        other = anew if _in_repository() else "Install its build for CUDA: see pytorch.org"
        remedy = "" if torch.version.cuda else other
        reason = "torch sees no CUDA" if torch.version.cuda else "torch's build is for CPUs"
        return Finding("note", f"{text}; NVIDIA's driver is there, and {reason}", remedy)
    return Finding("ok", text)


def _disk(config: DownloadConfig) -> Finding:
    free = shutil.disk_usage(project_root()).free
    text = f"{free / 1e9:,.1f} GB are free"
    if not os.access(project_root(), os.W_OK):
        remedy = "Work in a copy of your own: git clone"
        return Finding("error", f"{project_root()} cannot be written", remedy)
    is_there = Path("data/raw/manifest.csv").exists()
    needed = LEAST_FREE + (0 if is_there else sum(UNPACKED.get(name, 0) for name in config.sources))
    if free < needed:
        return Finding(
            "error", f"{text}, {needed / 1e9:.1f} GB are needed", "Make room on that disk"
        )
    return Finding("ok", text)


def _data(config: DownloadConfig) -> Finding:
    """Where the images come from, and whether they are available."""
    sources = ", ".join(config.sources)
    manifest = Path("data/raw/manifest.csv")
    if manifest.exists():
        num_images = len(manifest.read_bytes().splitlines()) - 1
        return Finding("ok", f"{num_images} images are in data/raw; source: {sources}")
    folder = project_root() / config.folder
    if config.folder and not folder.exists():
        remedy = "Correct folder in params.yaml, section download"
        return Finding("error", f"{folder} is missing", remedy)
    archives_dir = project_root() / config.archives
    archives = _archives(config)
    missing = {name: urls for name, urls in archives.items() if not (archives_dir / name).exists()}
    if archives:
        num_there = len(archives) - len(missing)
        return _to_fetch(
            f"{sources}: {num_there} of {len(archives)} archives are there",
            next(iter(missing.values()), []),
            remedy=f"Bring the archives into {archives_dir}, or write source: phantom",
        )
    if config.sources == ("phantom",):
        return Finding("ok", "will be made (source: phantom)")
    return Finding(
        "ok", f"{sources}: will be read from {folder if config.folder else archives_dir}"
    )


def _archives(config: DownloadConfig) -> dict[str, list[str]]:
    """The URLs of each archive that the sources need, by its name."""
    from lesionseg.data.isic import CHALLENGES

    wanted = [CHALLENGES[name] for name in config.sources if name in CHALLENGES]
    return {
        archive.name: [url + archive.name for url in challenge.urls]
        for challenge in wanted
        for archive in challenge.archives
    }


def _encoder(config: DownloadConfig) -> Finding:
    """The encoder's initial weights."""
    if Path("data/raw/encoder.pth").exists():
        return Finding("ok", f"data/raw/encoder.pth; weights: {config.weights}")
    if config.weights == "none":
        return Finding("ok", "starts from random weights (weights: none)")
    if config.weights == "imagenet":
        from lesionseg.data.weights import IMAGENET_URL

        path = project_root() / config.archives / IMAGENET_URL.rpartition("/")[2]
        return _to_fetch(
            "ImageNet's weights are there" if path.exists() else "ImageNet's weights",
            [] if path.exists() else [IMAGENET_URL],
            remedy=f"Bring the file to {path}, or write weights: PATH in params.yaml",
        )
    path = project_root() / config.weights
    if path.is_file():
        return Finding("ok", f"will be read from {path}")
    return Finding("error", f"{path} is missing", "Correct weights in params.yaml: download")


def _to_fetch(text: str, urls: list[str], *, remedy: str) -> Finding:
    """Whether a server answers, if anything still has to be fetched."""
    import requests

    if not urls:
        return Finding("ok", text)
    for url in urls:
        try:
            requests.head(url, timeout=SECONDS).raise_for_status()
        except requests.RequestException as error:
            problem = type(error).__name__
        else:
            return Finding("ok", f"{text}, the rest will be downloaded; the server answers")
    text = f"{text}, and {urls[0]} cannot be reached ({problem})"
    other = "make demo" if _in_repository() else "A project of lesionseg new DIR --synthetic"
    return Finding("error", text, f"{remedy}. {other} works without")


def _mlflow() -> Finding:
    """The store of runs; trainings go on without it."""
    from lesionseg.tracking import store

    if store.is_own() and not (project_root() / "mlruns/mlflow.db").exists():
        return Finding("ok", "no runs yet; mlruns/mlflow.db is made by the first")
    try:
        client, experiment_id = store.connect()
        runs = store.current().ask(lambda: client.search_runs([experiment_id], max_results=1000))
    except LesionsegError as error:
        return Finding("note", explain(error))
    more = "or more " if runs.token else ""
    return Finding("ok", f"{len(runs)} {more}runs in {store.current().name}")
