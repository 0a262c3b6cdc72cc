"""`git add --all`, as docs/sweeps.md says it, takes what belongs to git and nothing else."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from benchmarks.__main__ import _parser
from lesionseg.cli import _make_parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# How the pages' commands name what they write, or a folder of images to read.
WRITTEN = (
    r"(?m)^[^|\n]* > (\S+\.\w+)$",
    r'open\("([^"]+)", "wb"\)',
    r"--format custom --file (\S+)",
    r"(?m)^mkdir (\S+)",
    r"lesionseg predict (\S+)/",
)
MADE = (
    ".venv",
    "site/index.html",
    ".demo/dvc.yaml",
    ".sweep/dvc.yaml",
    ".checkpoints/train_frozen-0/run_id",
    "mlruns/mlflow.db",
    "mlruns/downloads/lesionseg-1/model.pt",
    "dvc_plots/index.html",
    ".dvc/tmp/sweep/logs/a.log",
    ".dvc/cache/files/md5/00",
    ".dvc/config.local",
    "data/archives/a.zip",
    "results/curve/curve.html",
    "src/lesionseg.egg-info/PKG-INFO",
    "build/lib/lesionseg/new/project.zip",
    "dist/lesionseg.whl",
    "src/lesionseg/__pycache__/a.pyc",
    ".pytest_cache/a",
    ".mypy_cache/a",
    ".ruff_cache/a",
)
KEPT = (
    "results/ablation.csv",
    "results/curve/curve.csv",
    "results/curve/curve.json",
    "dvc.lock",
    "params.yaml",
    "data/.gitkeep",
    "docs/demo.png",
)

in_git = pytest.mark.skipif(
    not shutil.which("git") or not (ROOT / ".git").exists(), reason="no git repository"
)


def is_ignored(name):
    command = ["git", "check-ignore", "--quiet", "--no-index", name]
    return subprocess.run(command, cwd=ROOT).returncode == 0


def outs(*, cached):
    """What the stages write, DVC's own or git's."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    entries = [out for stage in stages for key in ("outs", "metrics") for out in stage.get(key, [])]
    named = [entry if isinstance(entry, dict) else {entry: {}} for entry in entries]
    return [
        name for entry in named for name, how in entry.items() if how.get("cache", True) == cached
    ]


def named_in_the_pages():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    return {name.rstrip("/") for pattern in WRITTEN for name in re.findall(pattern, text)}


def test_the_pages_are_read_as_a_user_reads_them():
    expected = {"answer.json", "mask.png", "mlflow.dump", "mlflow_auth.dump", "photos"}
    assert named_in_the_pages() == expected


@in_git
@pytest.mark.parametrize("name", sorted({*MADE, *outs(cached=True)}))
def test_what_a_command_makes_is_not_git_s(name):
    assert is_ignored(name)


@in_git
def test_what_the_pages_and_the_defaults_of_commands_name_is_not_git_s():
    predictions = _make_parser().parse_args(["predict", "a"]).out
    folders = [name for name in named_in_the_pages() if "." not in name]
    names = [*named_in_the_pages() - {*folders}, *(f"{folder}/a.jpg" for folder in folders)]
    names += [str(predictions / "a_overlay.jpg"), str(_parser().parse_args([]).out)]
    assert [name for name in names if not is_ignored(name)] == []


@in_git
def test_metrics_and_the_project_s_own_files_are_git_s():
    assert [name for name in (*KEPT, *outs(cached=False)) if is_ignored(name)] == []
