"""An ablation: every configuration of a file as a trial, compared with its base."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd

from lesionseg.config import load_config, read_yaml
from lesionseg.errors import ConfigError, LesionsegError
from lesionseg.files import write_csv
from lesionseg.processes import stopped_like_ctrl_c
from lesionseg.results.evaluation import TABLES, rows_of
from lesionseg.results.layout import RUNS
from lesionseg.results.training import TrainingRecord, seed_scores_table
from lesionseg.sweep.configurations import Configuration, read_configurations
from lesionseg.sweep.executor import placement, run_missing
from lesionseg.sweep.finished import Experiment, Row, read_finished
from lesionseg.sweep.space import Settings, parse_settings
from lesionseg.sweep.tables import ablation_tables, failures, words
from lesionseg.sweep.trials import SECTIONS, Trial, make_trial
from lesionseg.sweep.workspaces import Repository, open_repository

COLUMNS = ["run", "seed", "val_jaccard", "test_jaccard", "test_dice", "seconds"]


def run(arguments: argparse.Namespace) -> None:
    """Plan the configurations, run those that are not finished, print the tables.

    Args:
        arguments: As declared by `arguments.add_ablation`.

    Raises:
        LesionsegError: A configuration has failed.
    """
    content = read_yaml(Path("params.yaml"))
    archives = load_config(Path("params.yaml")).download.archives
    configurations = read_configurations(arguments.file)
    fixed = parse_settings([*arguments.set, f"train.num_seeds={arguments.seeds}"])
    chosen = choose(configurations, arguments.only)
    try:
        trials = plan(configurations, fixed, content, chosen=chosen)
    except ConfigError as error:
        raise ConfigError(f"{arguments.file}: {error}") from None
    if arguments.dry_run:
        for name in chosen:
            sys.stdout.write(f"{trials[name].name}  {words(trials[name].settings)}\n")
        return
    repository = open_repository(Path.cwd())
    wanted = [trials[name] for name in chosen]
    with stopped_like_ctrl_c():
        failed = run_missing(
            repository, wanted, where=placement(arguments), archives=archives, read=score_rows
        )
    path = Path("results") / f"{arguments.file.stem}.csv"
    sys.stdout.write(collect(repository, trials, configurations, path=path))
    if failed:
        sys.stdout.write("\n".join(["", *failures(failed), ""]))
        raise LesionsegError(
            f"{len(failed)} of {len(chosen)} configurations failed, see above. "
            "The same command retries only these"
        )


def choose(configurations: Sequence[Configuration], only: Sequence[str] | None) -> list[str]:
    """Names of the configurations to run, in the file's order.

    Raises:
        ConfigError: One is unknown.
    """
    names = [one.name for one in configurations]
    for name in only or []:
        if name not in names:
            raise ConfigError(f"--only {name}: the file has {', '.join(names)}")
    return [name for name in names if not only or name in only]


def plan(
    configurations: Sequence[Configuration],
    fixed: Settings,
    content: dict[str, Any],
    *,
    chosen: Sequence[str],
) -> dict[str, Trial]:
    """The trial of each configuration by its name; the tables show all that are finished.

    Args:
        configurations: Those of the file.
        fixed: Settings that are the same in all.
        content: The content of params.yaml.
        chosen: Names of those to run. Invalid ones among the others are left out.

    Raises:
        ConfigError: A value of a chosen configuration is invalid, or given twice.
    """
    trials = {}
    for one in configurations:
        try:
            twice = sorted(fixed.keys() & one.settings.keys())
            if twice:
                raise ConfigError(f"{twice[0]} is set for all; choose others with --only")
            trials[one.name] = make_trial(
                content,
                {**fixed, **one.settings},
                prefix=f"ablation-{one.name}",
                sections=(*SECTIONS, "evaluate"),  # test scores depend on it
            )
        except ConfigError as error:
            if one.name in chosen:
                raise ConfigError(f"{one.name}: {error}") from None
    return trials


def collect(
    repository: Repository,
    trials: Mapping[str, Trial],
    configurations: Sequence[Configuration],
    *,
    path: Path,
) -> str:
    """The tables of everything finished; every seed's values are then in `path`."""
    rows = [
        {"name": name, **row}
        for name, trial in trials.items()
        for row in read_finished(repository, trial, score_rows) or []
    ]
    if not rows:
        return ""
    write_csv(path, rows)
    seeds = sorted({row["seed"] for row in rows})
    heading = f"\nCommit {repository.commit[:7]}, seeds {seeds}, each in {path}.\n\n"
    return heading + ablation_tables(pd.DataFrame(rows), configurations)


def score_rows(experiment: Experiment) -> list[Row]:
    """Rows of ablation.csv for an experiment, a row for each model and seed.

    Raises:
        FileNotFoundError: The experiment lacks a file.
        DataError: A file is damaged.
    """
    return [row for run in RUNS for row in _score_rows(experiment, run)]


def _score_rows(experiment: Experiment, run: str) -> list[Row]:
    results = experiment.results
    val = seed_scores_table(run).read(experiment.fetch(results.seed_scores(run)))
    on_test = TABLES["seeds"].read(experiment.fetch(results.evaluation.table("seeds")))
    test = rows_of(on_test, run, "test")
    scores = val.merge(test, on="seed", validate="one_to_one")
    scores = scores.rename(columns={"jaccard": "test_jaccard", "dice": "test_dice"})
    first = int(scores["seed"].min())
    trainings = results.trainings(run, range(first, first + len(scores))).values()
    for training in trainings:
        experiment.fetch(training.record)
    scores["seconds"] = [TrainingRecord.read(one, run=run).seconds for one in trainings]
    return cast("list[Row]", scores[COLUMNS].to_dict("records"))
