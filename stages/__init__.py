"""The pipeline's stages, each run from the repository's root as `python -m stages.NAME`."""

import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

# A DVC workspace runs its own copy of the package, not the one installed from elsewhere.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

if importlib.util.find_spec("torch") is None:
    sys.exit(
        f"error: {sys.executable} has no torch. "
        "Run: make setup && source .venv/bin/activate (or let make run the command)"
    )

from lesionseg.errors import exit_status
from lesionseg.memory import keep_freed_memory
from lesionseg.processes import end_with_dvc

_PARENT = os.getppid()  # before torch is loaded, which takes seconds


def run(main: Callable[[], None]) -> None:
    """Call a stage's `main`; what the user can mend ends in one line and another exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # Of damaged EXIF and large photographs; they name no file, and what is lost is an error.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    keep_freed_memory()
    end_with_dvc(parent=_PARENT)
    if status := exit_status(main):
        sys.exit(status)
