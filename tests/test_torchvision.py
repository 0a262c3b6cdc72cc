import runpy
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import lesionseg.mobilenet as ours
from lesionseg.mobilenet import mobilenet_v2

REPOSITORY = Path(__file__).resolve().parents[1]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in which every warning is an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=REPOSITORY / "src",
        capture_output=True,
        text=True,
        check=False,
    )


def test_torchvision_is_imported_without_a_word() -> None:
    result = run_python("import lesionseg.mobilenet, torchvision.transforms.v2")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_torch_s_compiler_is_loaded_only_where_it_is_used() -> None:
    result = run_python(
        "import sys, lesionseg.mobilenet, torch\n"
        "assert not [name for name in sys.modules if name.startswith('torch._dynamo')]\n"
        "ask = sys.modules['torchvision.ops.roi_align'].is_compile_supported\n"
        "answer = ask('cpu')\n"
        "assert torch._dynamo.utils.is_compile_supported('cpu') == answer\n"
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_predict_starts_without_what_only_few_calls_need() -> None:
    result = run_python(
        "import sys, lesionseg.inference.outputs, lesionseg.inference.pipeline\n"
        "from lesionseg.hardware import make_deterministic\n"
        "import torch\n"
        "make_deterministic()\n"
        "assert torch.are_deterministic_algorithms_enabled()\n"
        "assert not {'torch._dynamo', 'torch._inductor', 'scipy.signal'} & sys.modules.keys()\n"
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def run_again() -> dict[str, Any]:
    """What our module would hold if it were imported now."""
    assert ours.__file__ is not None
    return runpy.run_path(ours.__file__)


def test_nothing_is_declared_where_the_extension_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    package, models = types.ModuleType("torchvision"), types.ModuleType("torchvision.models")
    models.__dict__["mobilenet_v2"] = object()
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    found = run_again()
    assert found["mobilenet_v2"] is models.mobilenet_v2
    assert sys.modules["torchvision"] is package
    assert "_LIBRARY" not in found


def test_another_failure_to_import_torchvision_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "torchvision":
                raise RuntimeError("something else")

    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(RuntimeError, match="something else"):
        run_again()


def test_mobilenet_v2_computes() -> None:
    network = mobilenet_v2(weights=None).features.eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 1280, 2, 2)
