"""torchvision's MobileNetV2, importable quickly, and with a CPU-only torch as well.

PyPI's Linux wheel of torchvision is linked against CUDA. With a CPU-only torch its C++ extension
cannot load, and `import torchvision` fails over two detection operators that nothing here uses.
One of them also imports torch's compiler, which takes as long as the rest of torch.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _declare_missing_operators() -> torch.library.Library:
    """Declare the operators' names, which exist as long as the returned library is alive."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + _SCHEMA)
    return library


def _forget_torchvision() -> None:
    """Drop what the failed import left behind."""
    for name in list(sys.modules):
        if name.partition(".")[0] == "torchvision":
            del sys.modules[name]


def _is_compile_supported(device_type: str) -> bool:
    """What torchvision asks torch's compiler when one of its detection operators is called."""
    from torch._dynamo.utils import is_compile_supported

    return bool(is_compile_supported(device_type))


@contextmanager
def _compiler_later() -> Iterator[None]:
    """A block in which torchvision's import of torch's compiler is deferred until it is used."""
    package, utils = ModuleType("torch._dynamo"), ModuleType("torch._dynamo.utils")
    utils.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    if package.__name__ in sys.modules:
        yield
        return
    sys.modules |= {module.__name__: module for module in (package, utils)}
    try:
        yield
    finally:
        for module in (package, utils):
            del sys.modules[module.__name__]


with _compiler_later():
    try:
        from torchvision.models import mobilenet_v2
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _LIBRARY = _declare_missing_operators()
        _forget_torchvision()
        from torchvision.models import mobilenet_v2

__all__ = ["mobilenet_v2"]
