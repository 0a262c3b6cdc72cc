"""`train.reproducible: anywhere` trains the same bytes, whatever the process was told to use."""

import os
import subprocess
import sys

import pytest
import torch

from experiments.demo import copy_pipeline
from lesionseg.config import load_config, override, read_yaml
from lesionseg.errors import ConfigError
from lesionseg.files import sha256
from lesionseg.hardware import compute_as_anywhere
from lesionseg.processes import child_environment
from lesionseg.results.layout import RUNS, Results
from stages import download, preprocess
from tests.pages import ROOT
from tests.raw_data import phantoms

PARAMS = {
    **phantoms(num_train=14, num_test=2, image_size=96),
    "train.epochs": 2,
    "train.batch_size": 4,
    "train.reproducible": "anywhere",
}
# Of torch 2.13.0. After a change that is meant to change the models take those that the failure
# shows, and run `python -m experiments.demo --record` for those of the demo.
KNOWN = {
    "train_frozen": "e6d9c9c524f0a18be0572a043b1d591b6895214e4ecff93d9caa967365b36b38",
    "train_finetuned": "dbdd371bf6ced51b209adaefc1919466ee1cea73afd1b2430a052df451444831",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with data to train on."""
    folder = tmp_path_factory.mktemp("anywhere")
    copy_pipeline(folder)
    params = override(read_yaml(ROOT / "params.yaml"), PARAMS)
    (folder / "params.yaml").write_text(params)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("DVC_ROOT", str(folder))
        download.main([])
        preprocess.main([])
    return folder


@pytest.mark.skipif(
    not torch.cpu.get_capabilities().get("avx2"), reason="needs an x86-64 CPU with AVX2"
)
@pytest.mark.skipif(torch.__version__.split("+")[0] != "2.13.0", reason="of torch 2.13.0")
def test_the_models_are_those_of_other_machines(project):
    told = {"OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "AVX2"}
    environment = child_environment() | {"DVC_ROOT": str(project)}
    for run in RUNS:
        done = subprocess.run(
            [sys.executable, "-m", "stages.train", run],
            cwd=project,
            env=environment | told,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "cpu (AVX2), float32, 1 threads" in done.stderr
    models = {run: sha256(Results(project / "results").training(run).model) for run in RUNS}
    assert models == KNOWN


def test_a_cpu_of_another_kind_computes_in_its_own_way_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    told = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.delenv("MKL_CBWR", raising=False)
    compute_as_anywhere()
    assert told == [1]
    assert "MKL_CBWR" not in os.environ
    assert "this CPU is not an x86-64 one with AVX2" in caplog.text


def test_it_is_too_late_once_torch_has_computed(monkeypatch):
    for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR"):
        monkeypatch.setenv(name, "")  # as it was afterwards
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    with pytest.raises(RuntimeError, match="has already computed"):
        compute_as_anywhere()


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("device", "cuda", "Write device auto or cpu, or reproducible machine"),
        ("precision", "bfloat16", "Write precision auto or float32, or reproducible machine"),
    ],
)
def test_what_differs_from_machine_to_machine_is_refused(tmp_path, name, value, remedy):
    path = tmp_path / "params.yaml"
    values = {"train.reproducible": "anywhere", f"train.{name}": value}
    path.write_text(override(read_yaml(ROOT / "params.yaml"), values))
    with pytest.raises(ConfigError, match=remedy):
        load_config(path)
