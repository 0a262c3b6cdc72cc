"""The built wheel in an environment and a folder of its own: all commands, and the pipeline."""

import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import requests
import torch
import yaml
from PIL import Image

from lesionseg.errors import ExportError
from lesionseg.export import runtime
from lesionseg.export.page import SCRIPTS, read_asset
from lesionseg.new import create
from lesionseg.new.archive import pack
from tests.trained_results import save_random_model

ROOT = Path(__file__).parents[1]
# The fewest images and epochs.
TINY = {
    "download.phantom_num_train": 12,
    "download.phantom_num_test": 4,
    "download.phantom_size": 64,
    "preprocess.image_size": 64,
    "train.epochs": 1,
    "train.batch_size": 4,
    "train.device": "cpu",
    "evaluate.num_resamples": 100,
    "report.num_examples": 1,
}
needs_onnx = pytest.mark.skipif(
    not importlib.util.find_spec("onnx"), reason="needs: pip install -e '.[export]'"
)
BUILD = "from setuptools import build_meta; import sys; build_meta.build_sdist(sys.argv[1])"


def tracked():
    """The files of the repository, those of a clone and new ones."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("no git repository")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted(name for name in done.stdout.splitlines() if (ROOT / name).exists())


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source distribution, unpacked; built from a copy, since a build leaves files behind."""
    folder = tmp_path_factory.mktemp("sdist")
    for name in tracked():
        (folder / "repository" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "repository" / name)
    run(sys.executable, "-c", BUILD, folder, cwd=folder / "repository")
    (path,) = folder.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        # Python 3.11.2, which is Debian 12's, knows no filters.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        archive.extractall(folder)
    return folder / path.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(sdist):
    pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", sdist.parent, sdist)
    (path,) = sdist.parent.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The Python of an environment with the wheel, and without the repository.

    All else is that of this environment: torch alone would take minutes.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    pip(folder / "bin/python", "install", "--no-deps", wheel)
    (packages,) = folder.glob("lib/*/site-packages")
    # Read after the environment's own, and what is installed there as editable is not followed.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin/python"


def pip(python, *arguments):
    command = [sys.executable, "-m", "pip", "--python", python, *arguments]
    run(*command, "--quiet", "--no-index", "--disable-pip-version-check", *_isolation(arguments))


def _isolation(arguments):
    return ["--no-build-isolation"] if arguments[0] == "wheel" else []


def run(*command, cwd=None, status=0, python=None):
    """What a command prints; nothing of this process's project or sources is known to it."""
    words = [str(word) for word in command]
    env = environment(python)
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def environment(python):
    """The variables of a process: the environment's programs first."""
    folders = [str(python.parent)] if python else []
    return {
        **{name: os.environ[name] for name in ("HOME", "TMPDIR") if name in os.environ},
        "PATH": os.pathsep.join([*folders, os.environ["PATH"]]),
        "OMP_NUM_THREADS": "1",
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


@pytest.fixture
def lesionseg(python, tmp_path):
    """Runs the command in an empty folder: what it prints."""

    def lesionseg(*arguments, cwd=tmp_path, status=0):
        return run(python.with_name("lesionseg"), *arguments, cwd=cwd, status=status, python=python)

    return lesionseg


@pytest.fixture(scope="module")
def model_path(tmp_path_factory, encoder_state):
    path = tmp_path_factory.mktemp("model") / "model.pt"
    return save_random_model(path, encoder_state, decoder="pyramid")


@pytest.fixture
def image_path(tmp_path):
    noise = torch.randint(256, (48, 64, 3), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(tmp_path / "lesion.png")
    return tmp_path / "lesion.png"


def test_the_source_distribution_is_the_repository(sdist):
    found = {p.relative_to(sdist).as_posix() for p in sdist.rglob("*") if p.is_file()}
    made = {"PKG-INFO", "setup.cfg", *(name for name in found if ".egg-info/" in name)}
    assert sorted(found - made) == tracked()


def test_the_wheel_holds_the_package_and_the_files_of_a_project_once(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        packed = archive.read("lesionseg/new/project.zip")
    ours = [name.removeprefix("src/") for name in tracked() if name.startswith("src/")]
    assert sorted(names) == sorted([*ours, "lesionseg/new/project.zip"])
    assert packed == pack(ROOT)


def test_the_command_runs_in_an_empty_folder(lesionseg, python, tmp_path):
    place = run(python, "-c", "import lesionseg; print(lesionseg.__file__)", cwd=tmp_path)
    assert Path(place.strip()).is_relative_to(python.parents[1])
    assert re.fullmatch(r"lesionseg \d+\.\d+\.\d+\n", lesionseg("--version"))
    assert not list(tmp_path.iterdir())


def test_without_a_project_no_message_is_about_one_s_stages(lesionseg, image_path):
    for arguments in (["predict", "lesion.png"], ["export", "onnx"], ["doctor"], ["register"]):
        said = lesionseg(*arguments, status=1)
        assert len(said.splitlines()) == 1
        assert "dvc repro" not in said


def test_it_predicts(lesionseg, image_path, model_path, tmp_path):
    said = lesionseg("predict", "lesion.png", "--model", model_path, "--overlay")
    assert "1 masks and summary.csv are in predictions" in said
    with Image.open(tmp_path / "predictions/lesion_segmentation.png") as mask:
        assert mask.size == (64, 48)


@needs_onnx
def test_it_exports(lesionseg, image_path, model_path, tmp_path):
    lesionseg("export", "onnx", "--model", model_path, "--images", "lesion.png")
    assert (tmp_path / "lesionseg.onnx").stat().st_size > 1_000_000


@needs_onnx
def test_it_exports_a_page(lesionseg, image_path, model_path, tmp_path):
    try:
        runtime.load_runtime()  # into the cache that the command finds it in
    except ExportError as error:
        pytest.skip(str(error))
    said = lesionseg("export", "html", "--model", model_path, "--images", "lesion.png")
    assert said.startswith("results/segment.html: ")
    page = (tmp_path / "results/segment.html").read_text()
    assert page.startswith("<!doctype html>")
    assert all(asset in page for asset in map(read_asset, SCRIPTS))


def test_it_serves(python, image_path, model_path, tmp_path):
    command = [python.with_name("lesionseg"), "serve", "--model", model_path, "--port", "0"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(python), stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            address = re.search(r"http://\S+/", process.stdout.readline())[0]
            with image_path.open("rb") as file:
                answer = requests.post(f"{address}mask", files={"image": file}, timeout=60)
        finally:
            process.terminate()
    assert Image.open(io.BytesIO(answer.content)).size == (64, 48)
    assert {path.name for path in tmp_path.iterdir()} == {"lesion.png"}


@pytest.fixture(scope="module")
def project(python, tmp_path_factory):
    """A project that `lesionseg new` has written, and DVC has run."""
    folder = tmp_path_factory.mktemp("new") / "moles"
    run(python.with_name("lesionseg"), "new", folder, "--synthetic")
    params = folder / "params.yaml"
    params.write_text(create.with_values(params.read_text(), TINY))
    run(python, "-m", "dvc", "repro", cwd=folder, python=python)
    return folder


def test_a_new_project_runs_to_its_report(project):
    assert (project / "results/report/report.html").stat().st_size > 100_000
    assert not (project / "src").exists()
    versions = yaml.safe_load((project / "results/train_finetuned/run.json").read_text())
    assert (
        f"lesionseg=={versions['versions']['lesionseg']}"
        in (project / "requirements.txt").read_text()
    )


def test_a_finished_project_runs_nothing_again(project, python):
    assert "up to date" in run(python, "-m", "dvc", "status", cwd=project, python=python)


def test_git_is_offered_the_project_and_not_its_data(project):
    offered = run("git", "add", "--all", "--dry-run", ".", cwd=project)
    names = {line.split("'")[1] for line in offered.splitlines()}
    assert {"dvc.yaml", "params.yaml", "requirements.txt", "stages/train.py", "dvc.lock"} <= names
    assert {name for name in names if name.endswith((".pt", ".jpg", ".db"))} == set()


def test_another_version_makes_everything_anew_and_the_wrong_one_is_refused(
    project, python, tmp_path
):
    copy = shutil.copytree(project, tmp_path / "copy")
    path = copy / "requirements.txt"
    path.write_text(re.sub("==.*", "==99.0", path.read_text()))
    status = run(python, "-m", "dvc", "status", cwd=copy, python=python)
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert re.findall(r"(?m)^(\w+):$", status) == list(stages)
    said = run(python, "-m", "stages.report", cwd=copy, python=python, status=1)
    assert re.fullmatch(r"error: requirements\.txt names lesionseg 99\.0, and .* is inst.*\n", said)
