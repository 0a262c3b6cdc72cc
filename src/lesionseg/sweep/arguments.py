"""The options of `lesionseg sweep`, `ablation` and `curve`; importing this module takes no time."""

import argparse
import re
from pathlib import Path

from lesionseg.arguments import whole_number

MOST_TRIALS = 10_000  # a week, at a minute each
MOST_GPUS = 64  # of a machine
_COUNT = whole_number(1, MOST_TRIALS)  # of trials, trainings or jobs
SAMPLERS = ("tpe", "random")
PRUNERS = ("none", "median", "asha")
SWEEP = """Try parameters: a grid, or a search. Each trial is a DVC experiment of the pipeline.

  lesionseg sweep --grid model.decoder=bilinear,transposed --grid loss.bce=0,1
  lesionseg sweep --search 'train.lr=1e-4..1e-2 log' --trials 20
  lesionseg sweep --search 'train.lr=1e-4..1e-2 log' --trials 40 --pruner median

Ends with a table, best first. The best is chosen by jaccard on val; test plays no part in it. A
trial that failed is listed with its error and its log. After an interruption, the same command
goes on."""
ABLATION = """Train and score each configuration of a file: what does each part contribute?

  lesionseg ablation --jobs 2
  lesionseg ablation --only plain --only lovasz --seeds 5

Each is a DVC experiment of the pipeline. Ends with a table for each model, and each seed's values,
for all finished configurations, in results/ablation.csv, named after the file. Test scores are
reported; to choose a configuration, look at val. After an interruption, the same command goes
on."""
CURVE = """How good are both models with fewer labelled images, and what would more bring?

  lesionseg curve --jobs 2
  lesionseg curve --sizes 40,80,160,320,all --seeds 5

Each number of training images is a DVC experiment of the pipeline, with the same steps for both
models and all numbers. Each seed draws its own images, fewer ones as a subset of more. Ends with a
table for each test set; results/curve/ has a page of it, curve.html, its parts as curve.svg and
curve.md, every seed's scores in curve.csv, and all numbers in curve.json. After an interruption,
the same command goes on."""
STATUS = "Exit status: 0; 1 if anything failed; 2 for wrong arguments; 130 after Ctrl-C."


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """Add the options of a sweep to the parser."""
    parser.description, parser.epilog = SWEEP, STATUS
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    group = parser.add_argument_group("what to vary, one of the two (repeatable)")
    varied = group.add_mutually_exclusive_group(required=True)
    varied.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="every combination; VALUES is A,B or LOW..HIGH [log] COUNT",
    )
    varied.add_argument(
        "--search",
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="values as a sampler proposes them; VALUES is A,B or LOW..HIGH [log]",
    )
    add = parser.add_argument
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="the same in all trials")
    add("--trials", type=_COUNT, default=20, metavar="N", help="in a search (default: %(default)s)")
    add("--sampler", choices=SAMPLERS, default="tpe", help="of a search (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of a search (default: %(default)s)")
    add(
        "--pruner",
        choices=PRUNERS,
        default="none",
        help="stop trials early if they are behind the others on val: below the median of five or "
        "more, or not in the best third (default: %(default)s)",
    )
    add("--name", default="sweep", help="first part of the trials' names (default: %(default)s)")
    _add_common(parser)


def add_ablation(parser: argparse.ArgumentParser) -> None:
    """Add the options of an ablation to the parser."""
    parser.description, parser.epilog = ABLATION, STATUS
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        "--file",
        type=Path,
        default=Path("experiments/ablation.yaml"),
        help="the configurations (default: %(default)s)",
    )
    add("--only", action="append", metavar="NAME", help="run just this one (repeatable)")
    add(
        "--seeds",
        type=_COUNT,
        default=3,
        metavar="N",
        help="trainings of each model (default: %(default)s)",
    )
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="the same in all")
    _add_common(parser)


def add_curve(parser: argparse.ArgumentParser) -> None:
    """Add the options of a learning curve to the parser."""
    parser.description, parser.epilog = CURVE, STATUS
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        "--sizes",
        default="",
        metavar="N,N,...",
        help="numbers of training images, or all (default: all, a half, a quarter and so on: at "
        "most five sizes, of at least 10 images)",
    )
    add(
        "--seeds",
        type=_COUNT,
        default=5,
        metavar="N",
        help="trainings of each model at each size (default: %(default)s)",
    )
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="the same in all")
    add(
        "--from",
        type=Path,
        dest="file",
        metavar="FILE",
        help="only rewrite page, figure and text, beside this curve.json",
    )
    _add_common(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs",
        type=_COUNT,
        metavar="N",
        help="trials to run in parallel (default: 1; on a Ray cluster, as many as fit)",
    )
    group = parser.add_argument_group("on several machines (docs/team.md)")
    add = group.add_argument
    add(
        "--cluster",
        type=_address,
        metavar="ADDRESS",
        help="a Ray cluster to run trials on: ray://HOST:PORT, auto for the one that this machine "
        "is a node of, local for one on this machine only; or slurm, for a job each (with --jobs)",
    )
    add(
        "--num-cpus",
        type=_COUNT,
        default=1,
        metavar="N",
        help="cores, and threads, of a trial there (default: %(default)s)",
    )
    add(
        "--num-gpus",
        type=whole_number(0, MOST_GPUS),
        default=0,
        metavar="N",
        help="GPUs of a trial there (default: %(default)s)",
    )
    add(
        "--checkpoints",
        type=Path,
        metavar="DIR",
        help="a folder that all nodes share: a trial whose node is lost resumes at its last epoch "
        "(default on SLURM: the repository's own)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only print what would run")


def _address(text: str) -> str:
    """The address of a cluster."""
    if text not in ("auto", "local", "slurm") and not re.fullmatch(r"ray://\S+:\d+", text):
        raise argparse.ArgumentTypeError(
            f"must be ray://HOST:PORT, auto, local or slurm, got '{text}'"
        )
    return text
