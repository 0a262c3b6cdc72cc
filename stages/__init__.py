"""The pipeline's stages, each run from the repository's root as `python -m stages.NAME`."""

import argparse
import gc
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

# A DVC workspace runs its own copy of the package, not the one installed from elsewhere.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

if lacking := [name for name in ("lesionseg", "torch") if importlib.util.find_spec(name) is None]:
    sys.exit(
        f"error: {sys.executable} has no {lacking[0]}. Activate the environment that has it; in "
        "the repository run: make setup && source .venv/bin/activate (or let make run the command)"
    )

from lesionseg.errors import exit_status
from lesionseg.memory import keep_freed_memory
from lesionseg.processes import end_with_dvc, require_named_version

_PARENT = os.getppid()  # before torch is loaded, which takes seconds


def make_parser(name: str, about: str | None, *, example: str = "") -> argparse.ArgumentParser:
    """A parser for a stage's command line, without arguments until some are added.

    Args:
        name: The name of the stage's module.
        about: The module's docstring.
        example: A stage in dvc.yaml that runs it, if it has another name.
    """
    return argparse.ArgumentParser(
        prog=f"python -m stages.{name}",
        description=about,
        epilog=f"Example: dvc repro {example or name}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run(main: Callable[[], None]) -> None:
    """Call a stage's `main`; a user's error gives one line and a non-zero exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # Warnings about damaged EXIF and large photographs name no file; real losses are errors.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    keep_freed_memory()
    gc.freeze()  # imported objects last; examining them at the end takes up to half a second
    end_with_dvc(parent=_PARENT)

    def checked() -> None:
        require_named_version()
        main()

    if status := exit_status(checked):
        sys.exit(status)
