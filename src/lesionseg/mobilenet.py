"""torchvision's MobileNetV2, importable beside a CPU-only torch as well.

PyPI's Linux wheel of torchvision is linked against CUDA. Beside a CPU-only torch its C++ extension
cannot load, and `import torchvision` fails over two detection operators that nothing here uses.
"""

import sys

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _declare_missing_operators() -> torch.library.Library:
    """The operators' names, which last as long as the returned library is alive."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + _SCHEMA)
    return library


def _forget_torchvision() -> None:
    """Drop what the failed import has left behind."""
    for name in list(sys.modules):
        if name.partition(".")[0] == "torchvision":
            del sys.modules[name]


try:
    from torchvision.models import mobilenet_v2
except RuntimeError as error:
    if "torchvision::nms" not in str(error):
        raise
    _LIBRARY = _declare_missing_operators()
    _forget_torchvision()
    from torchvision.models import mobilenet_v2

__all__ = ["mobilenet_v2"]
