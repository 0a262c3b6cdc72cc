"""`lesionseg doctor` tells what would stop a run, with its remedy, and what would not."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
import torch

from lesionseg import doctor
from lesionseg.cli import main
from lesionseg.config import override, read_yaml
from lesionseg.doctor import Finding, examine
from lesionseg.tracking import store

ROOT = Path(__file__).parents[1]
GB = 10**9


@pytest.fixture
def machine(monkeypatch):
    """One on which all is well: programs, an identity, room on the disk, a network."""
    programs = {"git": "/usr/bin/git", "python": sys.executable}
    monkeypatch.setattr(doctor.shutil, "which", programs.get)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=9 * GB))
    monkeypatch.setattr(doctor, "_identity", {"name": "Ada", "email": "ada@x.org"}.get)
    answer = SimpleNamespace(raise_for_status=lambda: None)
    monkeypatch.setattr(requests, "head", lambda *_, **__: answer)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return SimpleNamespace(programs=programs)


@pytest.fixture
def project(tmp_path, machine, monkeypatch):
    """A project's root whose params.yaml a test can change; DVC is not asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "_dvc", lambda: Finding("ok", ""))
    for name in ("dvc.yaml", "Makefile"):
        (tmp_path / name).touch()

    def write_params(**values):
        named = {name.replace("__", "."): value for name, value in values.items()}
        text = override(read_yaml(ROOT / "params.yaml"), named)
        (tmp_path / "params.yaml").write_text(text)
        return tmp_path

    write_params()
    return write_params


def found(name):
    return dict(examine())[name]


def test_where_all_is_well_nothing_is_to_be_done(machine, monkeypatch, capsys):
    if not (ROOT / ".git").exists():
        pytest.skip("no git repository")
    monkeypatch.chdir(ROOT)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    names = [line.split()[1] for line in out.splitlines()]
    assert names == [
        "python",
        "packages",
        "git",
        "dvc",
        "params.yaml",
        "device",
        "disk",
        "data",
        "encoder",
        "mlflow",
        "errors",
    ]
    assert "7 stages" in out
    assert out.endswith("\nno errors\n")


def test_an_error_is_one_line_with_its_remedy_and_exit_status_1(project, capsys):
    project(download__source="folder", download__folder="photos")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("error")]
    assert line == (
        f"error data        {Path.cwd() / 'photos'} is missing. "
        "Correct folder in params.yaml, section download"
    )
    assert out.endswith("\n1 error\n")


def test_a_note_alone_is_no_failure(project, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_identity", lambda key: "")
    assert main(["doctor"]) == 0
    assert "note  git         no user.name and user.email" in capsys.readouterr().out


def test_outside_a_project_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == 1
    assert "Run from the project's root" in capsys.readouterr().err


def test_a_mistake_in_the_parameters_is_said_and_what_hangs_on_them_is_not_looked_at(project):
    project(train__lr=-1)
    all_found = dict(examine())
    assert all_found["params.yaml"].level == "error"
    assert "lr must be a number above 0" in all_found["params.yaml"].text
    assert "disk" not in all_found


def test_another_python_first_on_the_path_would_run_the_stages(project, machine):
    for other in ("/usr/bin/python", None):
        machine.programs["python"] = other
        assert found("python").level == "error"
        assert found("python").remedy == f"Run: source {sys.prefix}/bin/activate"


def test_versions_other_than_the_locked_ones_are_named(project):
    folder = project()
    locked = f"torch=={torch.__version__.partition('+')[0]}\nnumpy==1.0 ; python_version > '3'\n"
    (folder / "requirements.lock").write_text(f"# made\n{locked}absent==1.0 \\\n    --hash=x\n")
    assert found("packages").level == "note"
    assert "not as locked: numpy " in found("packages").text
    assert "absent" not in found("packages").text
    assert found("packages").remedy == "Run: make -B setup"


def test_a_torch_that_cannot_be_loaded_is_an_error(project, monkeypatch):
    monkeypatch.setitem(sys.modules, "lesionseg.mobilenet", None)
    assert doctor._packages().level == "error"
    assert "make setup" in doctor._packages().remedy


def test_without_the_repository_no_remedy_is_a_make(project, machine, monkeypatch):
    (project() / "Makefile").unlink()
    monkeypatch.setattr(doctor, "NEWEST_TRIED", (3, 1))
    monkeypatch.setattr(requests, "head", lambda *_, **__: refuse())
    machine.programs["nvidia-smi"] = "/usr/bin/nvidia-smi"
    monkeypatch.setattr(torch.version, "cuda", None)
    remedies = [found(name).remedy for name in ("python", "device", "data")]
    monkeypatch.setitem(sys.modules, "lesionseg.mobilenet", None)
    remedies.append(doctor._packages().remedy)
    assert all(remedies)
    assert [remedy for remedy in remedies if "make " in remedy] == []


def refuse():
    raise requests.ConnectionError


def test_git_is_needed_and_an_identity_for_experiments(project, machine, monkeypatch):
    monkeypatch.setattr(doctor, "_identity", {"name": "Ada", "email": ""}.get)
    assert found("git").level == "note"
    assert found("git").remedy == "Run: git config user.email YOUR_EMAIL"
    del machine.programs["git"]
    assert found("git").level == "error"


def test_an_identity_may_stand_in_the_environment(monkeypatch, tmp_path):
    for name in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"):
        monkeypatch.setenv(name, "Ada")
    assert doctor._identity("name") == "Ada"


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("ERROR: /x is not a git repository\n", "Run: git init"),
        ("\nERROR: 'dvc.yaml' is invalid.\n", "Restore what you have changed"),
        ("", "Restore what you have changed"),
    ],
)
def test_a_pipeline_that_dvc_cannot_read_is_an_error(monkeypatch, said, remedy):
    failed = SimpleNamespace(returncode=255, stdout="", stderr=said)
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: failed)
    assert doctor._dvc().level == "error"
    assert doctor._dvc().remedy.startswith(remedy)
    assert "\n" not in doctor._dvc().text


def test_a_device_that_is_not_there_is_an_error(project, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    project(train__device="cuda")
    assert found("device").level == "error"
    assert "write auto or cpu" in found("device").text


def test_fewer_gpus_than_processes_are_an_error(project, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    project(train__device="cuda", train__num_processes=3)
    assert found("device").level == "error"
    assert "Write at most 2" in found("device").text


def test_a_device_that_does_not_compute_is_an_error(project, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("CUDA driver version is insufficient")

    project(train__device="cpu")
    monkeypatch.setattr(torch, "ones", fail)
    assert found("device").level == "error"
    assert "driver version is insufficient" in found("device").text
    assert found("device").remedy.startswith("Update the driver")


@pytest.mark.parametrize(("can", "level"), [({}, "note"), ({"avx512_bf16": True}, "ok")])
def test_bfloat16_on_a_cpu_that_has_none_is_noted(project, monkeypatch, can, level):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    project(train__device="cpu", train__precision="bfloat16")
    assert found("device").level == level


def test_a_gpu_that_torch_cannot_use_is_noted(project, machine, monkeypatch):
    machine.programs["nvidia-smi"] = "/usr/bin/nvidia-smi"
    monkeypatch.setattr(torch.version, "cuda", None)
    project(train__device="cpu")
    assert found("device").level == "note"
    assert found("device").remedy == "Run: rm -r .venv && make setup TORCH=cuda"


def test_how_much_room_is_needed_depends_on_what_is_still_to_come(project, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=GB))
    assert found("disk").level == "error"
    project(download__source="phantom")
    assert found("disk").level == "ok"
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=GB / 10))
    assert found("disk").level == "error"


def test_what_is_to_be_downloaded_needs_a_server_that_answers(project, monkeypatch):
    def refuse(*_, **__):
        raise requests.ConnectionError

    assert {found("data").level, found("encoder").level} == {"ok"}
    monkeypatch.setattr(requests, "head", refuse)
    assert {found("data").level, found("encoder").level} == {"error"}
    assert "make demo works without" in found("data").remedy
    project(download__source="phantom", download__weights="none")
    assert {found("data").level, found("encoder").level} == {"ok"}


def test_each_of_several_sources_is_looked_at(project):
    archives_dir = project() / "data/archives"
    project(download__source="ph2")
    assert found("data").text == f"ph2: will be read from {archives_dir}"
    project(download__source=["isic2016", "ph2"])
    assert found("data").text.startswith("isic2016, ph2: 0 of 4 archives are there")
    project(download__source="ham10000", download__folder="absent")
    assert found("data").level == "error"


def test_what_is_there_already_needs_no_server(project, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError

    monkeypatch.setattr(requests, "head", refuse)
    raw_dir = project() / "data/raw"
    raw_dir.mkdir(parents=True)
    (raw_dir / "encoder.pth").touch()
    (raw_dir / "manifest.csv").write_text("id,split\na,train\nb,test\n")
    assert found("data").text.startswith("2 images")
    assert found("encoder").level == "ok"


def test_a_file_of_weights_must_be_there(project):
    folder = project(download__weights="my.pth")
    assert found("encoder").level == "error"
    (folder / "my.pth").touch()
    assert found("encoder").level == "ok"


def test_a_store_that_cannot_be_used_is_noted_as_trainings_go_on(project):
    assert found("mlflow") == Finding("ok", "no runs yet; mlruns/mlflow.db is made by the first")
    path = project() / "mlruns/mlflow.db"
    path.parent.mkdir()
    path.write_bytes(b"no database" * 99)
    store._stores.clear()
    assert found("mlflow").level == "note"
    assert "Move it away" in found("mlflow").text


def test_the_runs_of_a_store_are_counted(project, empty_store):
    path = project() / "mlruns/mlflow.db"
    path.parent.mkdir()
    shutil.copy(empty_store, path)
    store._stores.clear()
    assert found("mlflow").text == f"0 runs in {path}"
