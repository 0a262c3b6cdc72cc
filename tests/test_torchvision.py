import subprocess
import sys
from pathlib import Path

import torch

from lesionseg.models.torchvision import mobilenet_v2

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
    result = run_python("import lesionseg.models.torchvision, torchvision.transforms.v2")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_nothing_is_declared_where_the_extension_loads() -> None:
    stand_in = """
import sys, types
package, models = types.ModuleType("torchvision"), types.ModuleType("torchvision.models")
models.mobilenet_v2 = object()
sys.modules.update({"torchvision": package, "torchvision.models": models})
import lesionseg.models.torchvision as ours
assert ours.mobilenet_v2 is models.mobilenet_v2
assert sys.modules["torchvision"] is package
assert not hasattr(ours, "_LIBRARY")
"""
    result = run_python(stand_in)
    assert (result.returncode, result.stderr) == (0, "")


def test_another_failure_to_import_torchvision_is_not_hidden() -> None:
    stand_in = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            raise RuntimeError("something else")
sys.meta_path.insert(0, Broken())
import lesionseg.models.torchvision
"""
    assert "RuntimeError: something else" in run_python(stand_in).stderr


def test_mobilenet_v2_computes() -> None:
    network = mobilenet_v2(weights=None).features.eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 1280, 2, 2)
