"""Measure the project beside its peers; print tables in markdown and write the raw values.

Run it from the repository's root on an otherwise idle machine. Parameters come from params.yaml.
The peers need the extra `bench`: pip install -e '.[bench]'
"""

import argparse
import dataclasses
import difflib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.rounds import measure
from benchmarks.suites import (
    DEFAULT,
    NUM_PREDICTED,
    NUM_PREPROCESSED,
    NUM_TRAINED,
    SUITES,
    Options,
    left_out,
)
from lesionseg.config import load_config
from lesionseg.errors import ConfigError, MissingFileError, exit_status
from lesionseg.files import write_json

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmarks that the command line names."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = _parser().parse_args(argv)
    names, options = arguments.names or list(DEFAULT), _options(arguments)
    _check_names(names)
    load_config(Path("params.yaml"))  # reports a mistake there before any work
    machine = measure("machine.describe")
    options = dataclasses.replace(options, has_bfloat16=machine["has_bfloat16"])
    if "training" in names or "quality" in names:
        for line in left_out():
            logger.warning(line)
    sys.stdout.write(heading(machine))
    raw: dict[str, Any] = {}
    pages: dict[str, list[str]] = {}
    for name in names:
        with TemporaryDirectory(prefix="lesionseg-") as folder:
            pages[name], raw[name] = SUITES[name](options, folder)
        sys.stdout.write("\n\n".join([f"\n## {name}", *pages[name]]) + "\n")
        sys.stdout.flush()
        content = {"machine": machine, "heading": heading(machine), "pages": pages, "raw": raw}
        write_json(arguments.out, content)
    sys.stdout.write(f"\nRaw values: {arguments.out}\n")


def heading(machine: dict[str, Any]) -> str:
    """What the tables were measured on, in one paragraph."""
    rates = machine["matrix_gflops"]
    return (
        f"{machine['kind']} ({machine['cpu']}; torch uses {machine['capability']}), "
        f"{machine['precision']} by default, {machine['num_cores']} cores, "
        f"{machine['num_threads']} threads, on {machine['device']}; torch "
        f"{machine['versions']['torch']}; commit {machine['commit']}; {machine['date']}; "
        f"load average before {machine['load_average']:.1f}; matrix products "
        f"{rates['float32']:.1f} GFLOP/s in float32, {rates['bfloat16']:.1f} in bfloat16\n"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="Example: python -m benchmarks training startup --rounds 5 --skip-dvc",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known, default = ", ".join(SUITES), " ".join(DEFAULT)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{known}; default: {default}")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="{train,test}/{images,masks} instead of phantoms; quality needs it",
    )
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="mobilenet_v2 state dict; default: random"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help=f"images of a measurement; default: {NUM_TRAINED} for training, {NUM_PREPROCESSED} "
        f"for preprocessing, {NUM_PREDICTED} for prediction",
    )
    parser.add_argument("--skip-dvc", action="store_true", help="startup without dvc repro")
    parser.add_argument(
        "--out", type=Path, default=Path("results/benchmarks.json"), metavar="FILE.json"
    )
    return parser


def _options(arguments: argparse.Namespace) -> Options:
    for name in ("rounds", "images"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} must be at least 1, got {value}")
    for path in (arguments.data, arguments.weights):
        if path and not path.exists():
            raise MissingFileError(f"{path} is missing. Give the path of what is there")
    return Options(
        data=str(arguments.data.resolve()) if arguments.data else None,
        weights=str(arguments.weights.resolve()) if arguments.weights else "none",
        num_rounds=arguments.rounds,
        num_images=arguments.images,
        has_dvc=not arguments.skip_dvc,
    )


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if name not in SUITES:
            close = difflib.get_close_matches(name, SUITES, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(SUITES)}"
            raise ConfigError(f"no benchmark is called {name!r}; {hint}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
