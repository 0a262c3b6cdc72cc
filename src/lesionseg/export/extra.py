"""The packages of the extra `export`, which everything else works without."""

import importlib.util

from lesionseg.errors import ExportError

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_packages() -> None:
    """Return if they are installed.

    Raises:
        ExportError: One is not installed.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"lesionseg export needs {', '.join(missing)}",
            remedy="Run: pip install 'lesionseg[export]', or in the repository: pip install -e "
            "'.[export]'",
        )
