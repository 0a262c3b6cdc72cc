"""A learning curve: both models at each number of training images, each a DVC experiment."""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lesionseg.config import Config, load_config, read_yaml
from lesionseg.curve.estimates import estimate_sets
from lesionseg.curve.page import write_page
from lesionseg.curve.record import Curve, read_curve, write_curve
from lesionseg.curve.scores import Measured, read_measured
from lesionseg.curve.sizes import choose_sizes, count_images
from lesionseg.curve.text import curve_text
from lesionseg.errors import ConfigError, DataError, LesionsegError, repro
from lesionseg.files import write_bytes, write_csv
from lesionseg.processes import stopped_like_ctrl_c
from lesionseg.sweep.executor import placement, run_missing
from lesionseg.sweep.finished import read_finished
from lesionseg.sweep.space import Settings, parse_settings
from lesionseg.sweep.tables import failures, words
from lesionseg.sweep.trials import Trial, make_trial
from lesionseg.sweep.workspaces import open_repository

FOLDER = Path("results/curve")
SIZE, SEEDS = "train.num_images", "train.num_seeds"


def run(arguments: argparse.Namespace) -> None:
    """Plan the sizes, run those that are not finished, write and print the curve.

    Args:
        arguments: As declared by `arguments.add_curve`.

    Raises:
        LesionsegError: A size has failed.
    """
    if arguments.file:
        show(arguments.file.parent, read_curve(arguments.file))
        return
    content, config = read_yaml(Path("params.yaml")), load_config(Path("params.yaml"))
    num_train = count_images(Path("data/processed"), "train")
    sizes = choose_sizes(arguments.sizes, num_train=num_train)
    fixed = parse_settings([*arguments.set, f"{SEEDS}={arguments.seeds}"])
    trials = plan(content, fixed, sizes, num_train=num_train)
    if arguments.dry_run:
        for trial in trials:
            sys.stdout.write(f"{trial.name}  {words(trial.settings)}\n")
        return
    repository = open_repository(Path.cwd())
    with stopped_like_ctrl_c():
        failed = run_missing(
            repository,
            trials,
            where=placement(arguments),
            archives=config.download.archives,
            read=read_measured,
        )
    found = [one for trial in trials if (one := read_finished(repository, trial, read_measured))]
    if found:
        check_split(found, num_train=num_train)
        del fixed[SEEDS]
        curve = write_results(found, commit=repository.commit, changed=fixed, folder=FOLDER)
        show(FOLDER, curve)
    if failed:
        sys.stdout.write("\n".join(["", *failures(failed), ""]))
        raise LesionsegError(
            f"{len(failed)} of {len(trials)} sizes failed, see above. "
            "The same command retries only these"
        )


def check_split(found: Sequence[Measured], *, num_train: int) -> None:
    """Return if the experiments have drawn from as many images as the sizes were planned for.

    Raises:
        DataError: They have not, so two sizes may be the same.
    """
    for measured in found:
        if (actual := measured.setting.num_train) != num_train:
            raise DataError(
                f"data/processed/train has {num_train} images, and with params.yaml as it is now "
                f"it has {actual}. Run: {repro('preprocess')}, then the same command again"
            )


def plan(
    content: dict[str, Any], fixed: Settings, sizes: Sequence[int], *, num_train: int
) -> list[Trial]:
    """The trial of each size, the fewest images first.

    Args:
        content: The content of params.yaml.
        fixed: Settings that are the same in all trials.
        sizes: Numbers of training images.
        num_train: The size of the training split, which is written as 0.

    Raises:
        ConfigError: A value is invalid, or given twice.
    """
    if SIZE in fixed:
        raise ConfigError(f"{SIZE} is what varies. Give the numbers of images with --sizes")
    sections = [section.name for section in dataclasses.fields(Config) if section.name != "report"]
    return [
        make_trial(
            content,
            {**fixed, SIZE: 0 if size == num_train else size},
            prefix=f"curve-{'all' if size == num_train else size}",
            sections=sections,  # everything that a score on a test set depends on
        )
        for size in sizes
    ]


def write_results(
    found: Sequence[Measured], *, commit: str, changed: Mapping[str, Any], folder: Path
) -> Curve:
    """Write curve.csv and curve.json; the curve.

    Args:
        found: What was measured at each size, the fewest images first.
        commit: The commit of the code.
        changed: Settings of all sizes that differ from params.yaml.
        folder: Where they go.
    """
    rows = [row for one in found for row in one.rows]
    scores, largest = pd.DataFrame(rows), found[-1]
    curve = Curve(
        commit=commit,
        seeds=sorted(scores["seed"].unique().tolist()),
        confidence=largest.confidence,
        setting=largest.setting,
        changed=dict(changed),
        sets=estimate_sets(scores, num_images=largest.num_images, confidence=largest.confidence),
    )
    write_csv(folder / "curve.csv", rows)
    write_curve(folder / "curve.json", curve)
    return curve


def show(folder: Path, curve: Curve) -> None:
    """Write the page, its figure and its text, and print the text."""
    text = curve_text(curve)
    write_bytes(folder / "curve.md", text.encode())
    write_page(folder, curve)
    sys.stdout.write(f"{text}\nOpen the page: {folder / 'curve.html'}\n")
