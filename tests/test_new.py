"""`lesionseg new` writes a project of the repository's own files, and nothing over a user's."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from lesionseg.cli import main
from lesionseg.config import load_config, read_yaml
from lesionseg.errors import LesionsegError
from lesionseg.new import archive, create
from lesionseg.new.create import SYNTHETIC, depend_on_version, with_values
from lesionseg.processes import require_named_version

ROOT = Path(__file__).parents[1]
WRITTEN = {
    ".dvc/.gitignore",
    ".dvc/config",
    ".dvcignore",
    ".gitignore",
    "README.md",
    "dvc.yaml",
    "params.yaml",
    "requirements.txt",
}

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="no git")


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """The working directory, in no git repository."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files_below(folder):
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {path.as_posix() for path in paths if path.parts[0] != ".git"}


def test_a_project_has_the_repository_s_files(empty, capsys):
    assert main(["new", "moles"]) == 0
    stages = {f"stages/{path.name}" for path in (ROOT / "stages").glob("*.py")}
    assert files_below(empty / "moles") == WRITTEN | stages
    for name in (WRITTEN | stages) - {"README.md", "dvc.yaml", "requirements.txt"}:
        assert (empty / "moles" / name).read_bytes() == (ROOT / name).read_bytes(), name
    assert (empty / "moles/.git").is_dir()
    assert capsys.readouterr().out.endswith(". Run: cd moles && dvc repro\n")


def test_the_folder_may_be_the_working_directory_and_hold_other_things(empty, capsys):
    for name in ("photos/a.jpg", ".venv/pyvenv.cfg", "README.md"):
        (empty / name).parent.mkdir(exist_ok=True)
        (empty / name).write_text("mine")
    assert main(["new", "."]) == 0
    assert capsys.readouterr().out.endswith(". Run: dvc repro\n")
    assert (empty / "README.md").read_text() == "mine"
    assert load_config(Path("params.yaml"))


def test_a_file_of_somebody_else_s_is_kept_and_nothing_is_written(empty, capsys):
    (empty / "moles").mkdir()
    (empty / "moles/params.yaml").write_text("mine")
    assert main(["new", "moles"]) == 1
    assert re.fullmatch(
        r"error: moles/params\.yaml already exists, .*\. Name another folder\n",
        capsys.readouterr().err,
    )
    assert files_below(empty) == {"moles/params.yaml"}


def test_what_was_interrupted_goes_on(empty):
    assert main(["new", "moles", "--synthetic"]) == 0
    (empty / "moles/dvc.yaml").unlink()
    assert main(["new", "moles", "--synthetic"]) == 0
    assert (empty / "moles/dvc.yaml").exists()


def test_a_folder_in_a_git_repository_gets_none_of_its_own(empty):
    subprocess.run(["git", "init", "--quiet"], check=True)
    assert main(["new", "moles"]) == 0
    assert not (empty / "moles/.git").exists()


def test_without_git_the_next_step_is_said(empty, monkeypatch, capsys):
    monkeypatch.setattr(create.shutil, "which", lambda name: None)
    assert main(["new", "moles"]) == 1
    assert capsys.readouterr().err.startswith("error: there is no git, which DVC needs. Install")
    assert not list(empty.iterdir())


def test_the_pipeline_depends_on_the_version_instead_of_the_modules():
    ours, text = read_yaml(ROOT / "dvc.yaml"), depend_on_version((ROOT / "dvc.yaml").read_text())
    installed = yaml.safe_load(text)
    assert "src/" not in text
    for stage in ours["stages"].values():
        others = [name for name in stage["deps"] if not name.startswith("src/")]
        assert len(others) < len(stage["deps"])
        stage["deps"] = {*others, "requirements.txt"}
    for stage in installed["stages"].values():
        assert len(stage["deps"]) == len(set(stage["deps"]))
        stage["deps"] = set(stage["deps"])
    assert installed == ours


def test_other_values_keep_the_comments_and_all_else():
    text = (ROOT / "params.yaml").read_text()
    changed = with_values(text, SYNTHETIC)
    assert with_values(changed, {name: get(text, name) for name in SYNTHETIC}) == text
    assert {name: get(changed, name) for name in SYNTHETIC} == SYNTHETIC
    assert re.findall("#.*", changed) == re.findall("#.*", text)


def get(text, name):
    section, _, key = name.partition(".")
    found = yaml.safe_load(text)[section]
    return found[key] if key else found


def test_the_synthetic_project_needs_no_network(empty):
    main(["new", ".", "--synthetic"])
    download = load_config(Path("params.yaml")).download
    assert (download.sources, download.weights) == (("phantom",), "none")


def test_the_same_files_give_the_same_archive(tmp_path):
    assert archive.pack(ROOT) == archive.pack(ROOT)


@pytest.mark.parametrize(
    "text", [None, "numpy==1\n", "lesionseg==HERE\n", "lesionseg @ file:///a.whl\n"]
)
def test_the_installed_version_may_run_what_names_it_or_none(empty, text):
    if text is not None:
        named = text.replace("HERE", create.installed_version())
        (empty / "requirements.txt").write_text(named)
    require_named_version()


def test_another_version_than_the_named_one_may_not_run(empty):
    (empty / "requirements.txt").write_text("torch\nlesionseg == 9.9  # mine\n")
    with pytest.raises(LesionsegError, match=r"names lesionseg 9\.9, and \S+ is installed\. Run"):
        require_named_version()
