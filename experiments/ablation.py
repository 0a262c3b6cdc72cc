"""Train and score every configuration of experiments/ablation.yaml: what does each part contribute?

    python -m experiments.ablation --jobs 2
    python -m experiments.ablation --only plain --only lovasz --seeds 5

Each is a DVC experiment of the whole pipeline. Ends with a table for each model, and every seed's
values in results/ablation.csv, of all configurations that are finished. Test scores are reported;
to choose a configuration look at val. Interrupted and started again, it goes on.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd

from experiments.sweep import open_pool, positive, report
from lesionseg.children import stopped_like_ctrl_c
from lesionseg.config import load_config, read_yaml
from lesionseg.errors import ConfigError, LesionsegError
from lesionseg.files import write_csv
from lesionseg.results.layout import RUNS
from lesionseg.sweep.ablation import Configuration, read_configurations, tables
from lesionseg.sweep.space import Settings, parse_settings
from lesionseg.sweep.table import failures, words
from lesionseg.sweep.trials import SECTIONS, Outcome, Trial, make_trial
from lesionseg.sweep.workspaces import Repository, open_experiment, open_repository
from stages import result_dirs, run

CONFIGURATIONS, OUT = Path("experiments/ablation.yaml"), Path("results/ablation.csv")
COLUMNS = ["run", "seed", "val_jaccard", "test_jaccard", "test_dice", "seconds"]
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Plan the configurations, run those that are not finished, print the tables."""
    arguments = parse(argv)
    content = read_yaml(Path("params.yaml"))
    archives = load_config(Path("params.yaml")).download.archives
    configurations = read_configurations(CONFIGURATIONS)
    fixed = parse_settings([*arguments.set, f"train.num_seeds={arguments.seeds}"])
    chosen = choose(configurations, arguments.only)
    trials = plan(configurations, fixed, content, chosen=chosen)
    if arguments.dry_run:
        for name in chosen:
            sys.stdout.write(f"{trials[name].name}  {words(trials[name].settings)}\n")
        return
    repository = open_repository(Path.cwd())
    wanted = [trials[name] for name in chosen]
    with stopped_like_ctrl_c():
        failed = run_missing(repository, wanted, jobs=arguments.jobs, archives=archives)
    rows = [
        {"name": name, **row}
        for name, trial in trials.items()
        for row in read_rows(repository, trial)
    ]
    if rows:
        write_csv(OUT, rows)
        seeds = sorted({row["seed"] for row in rows})
        sys.stdout.write(f"\nCommit {repository.commit[:7]}, seeds {seeds}, each in {OUT}.\n\n")
        sys.stdout.write(tables(pd.DataFrame(rows), configurations))
    if failed:
        sys.stdout.write("\n".join(["", *failures(failed), ""]))
        raise LesionsegError(
            f"{len(failed)} of {len(chosen)} configurations failed, see above. "
            "The same command tries just these again"
        )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", action="append", metavar="NAME", help="run just this one (repeatable)")
    add("--seeds", type=positive, default=3, help="trainings of each model (default: %(default)s)")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="the same in all")
    add("--jobs", type=positive, default=1, help="side by side (default: %(default)s)")
    add("--dry-run", action="store_true", help="only print what would run")
    return parser.parse_args(argv)


def choose(configurations: Sequence[Configuration], only: Sequence[str] | None) -> list[str]:
    """Names of the configurations to run, in the file's order.

    Raises:
        ConfigError: One is unknown.
    """
    names = [one.name for one in configurations]
    for name in only or []:
        if name not in names:
            raise ConfigError(f"--only {name}: {CONFIGURATIONS} has {', '.join(names)}")
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
        fixed: What is the same in all.
        content: Of params.yaml.
        chosen: Names of those to run. Of the others, those that cannot be are left out.

    Raises:
        ConfigError: A value of a chosen one cannot be, or is given twice.
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
                raise ConfigError(f"{CONFIGURATIONS}: {one.name}: {error}") from None
    return trials


def run_missing(
    repository: Repository, trials: Sequence[Trial], *, jobs: int, archives: str
) -> list[Outcome]:
    """Run the trials that are not finished; those that failed are returned."""
    failed = []
    with open_pool(repository, jobs=jobs, archives=archives) as pool:
        missing = [trial for trial in trials if not read_rows(repository, trial)]
        for outcome in pool.run(missing):
            report(outcome)
            if not outcome.scores:
                failed.append(outcome)
            elif not read_rows(repository, outcome.trial):
                error = "its results are not in DVC's cache"
                failed.append(Outcome(trial=outcome.trial, error=error, log=outcome.log))
    return failed


def read_rows(repository: Repository, trial: Trial) -> list[Row]:
    """Scores of each model and seed of a finished trial; none where it is not there, or not whole.

    `dvc exp remove` and `dvc gc` may have taken it away, and files of the cache may be damaged.
    """
    files = open_experiment(repository, trial.name)
    if files is None:
        return []
    try:
        return [row for name in RUNS for row in score_rows(files, name)]
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return []


def score_rows(files: Any, name: str) -> list[Row]:
    """Rows of ablation.csv for one model of an experiment, whose files are a DVCFileSystem."""
    with (
        files.open(f"results/{name}/seeds/scores.csv") as on_val,
        files.open("results/evaluate/seeds.csv") as on_test,
    ):
        val, test = pd.read_csv(on_val), pd.read_csv(on_test)
    test = test[(test["run"] == name) & (test["scope"] == "test")]
    scores = val.merge(test, on="seed", validate="one_to_one")
    scores = scores.rename(columns={"jaccard": "test_jaccard", "dice": "test_dice"})
    first = int(scores["seed"].min())
    folders = result_dirs(name, range(first, first + len(scores))).values()
    runs = [json.loads(files.read_text(f"{folder}/run.json")) for folder in folders]
    scores["seconds"] = [details["seconds"] for details in runs]
    return cast("list[Row]", scores[COLUMNS].to_dict("records"))


if __name__ == "__main__":
    run(main)
