"""Try parameters: a grid, or a search; every trial is a DVC experiment.

    python -m experiments.sweep --grid model.decoder=bilinear,transposed --grid loss.bce=0,1
    python -m experiments.sweep --search 'train.lr=1e-4..1e-2 log' --trials 20

Ends with a table, best first. The best is chosen by jaccard on val; test has no say in it. A trial
that failed is named with its error and its log. Interrupted and started again, it goes on.
"""

import argparse
import itertools
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lesionseg.children import stopped_like_ctrl_c
from lesionseg.config import load_config, read_yaml
from lesionseg.errors import ConfigError, LesionsegError
from lesionseg.sweep.space import (
    MOST_TRIALS,
    SAMPLERS,
    Sampler,
    Settings,
    grid,
    grid_axis,
    parse_axis,
    parse_settings,
)
from lesionseg.sweep.table import FINETUNED, FROZEN, score_text, summary, words
from lesionseg.sweep.trials import Outcome, Trial, check_axes, confirm, make_trial, whole_numbers
from lesionseg.sweep.workspaces import (
    Pool,
    Repository,
    finished_before,
    only_one,
    open_repository,
)
from lesionseg.tracking import store
from stages import run

_log = logging.getLogger("lesionseg.sweep")


def main(argv: Sequence[str] | None = None) -> None:
    """Plan the trials, run those that are not finished, print the table."""
    arguments = parse(argv)
    sweep = Sweep(arguments)
    if arguments.dry_run:
        sys.stdout.write(sweep.plan())
        return
    with stopped_like_ctrl_c():
        sweep.run()
    sys.stdout.write(summary(sweep.outcomes(), sweep.left_out))
    failed = [outcome for outcome in sweep.outcomes() if not outcome.scores]
    if failed:
        raise LesionsegError(
            f"{len(failed)} of {len(sweep.outcomes())} trials failed, see above. "
            "The same command tries just these again"
        )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kind = parser.add_argument_group("what to vary (one of both kinds, repeatable)")
    add = kind.add_argument
    add("--grid", action="append", default=[], metavar="NAME=A,B | 'NAME=LOW..HIGH [log] COUNT'")
    add("--search", action="append", default=[], metavar="NAME=A,B | 'NAME=LOW..HIGH [log]'")
    add = parser.add_argument
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="the same in all trials")
    add("--trials", type=positive, default=20, help="of a search (default: %(default)s)")
    add("--sampler", choices=SAMPLERS, default="tpe", help="of a search (default: %(default)s)")
    add("--seed", type=int, default=0, help="of a search (default: %(default)s)")
    add("--jobs", type=positive, default=1, help="trials side by side (default: %(default)s)")
    add("--name", default="sweep", help="first part of the trials' names (default: %(default)s)")
    add("--dry-run", action="store_true", help="only print the trials")
    arguments = parser.parse_args(argv)
    if bool(arguments.grid) == bool(arguments.search):
        parser.error("give --grid or --search, and not both")
    return arguments


def positive(text: str) -> int:
    """A whole number that trials, or jobs, can be."""
    value = int(text)
    if not 1 <= value <= MOST_TRIALS:
        raise argparse.ArgumentTypeError(f"must be in [1, {MOST_TRIALS}], got {text}")
    return value


class Sweep:
    """The trials of a command line, checked, and what came of them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self.left_out: list[str] = []
        self._outcomes: dict[str, Outcome] = {}
        path = Path("params.yaml")
        config = load_config(path)
        self._content, self._whole = read_yaml(path), whole_numbers(config)
        self._archives = config.download.archives
        self._fixed = parse_settings(arguments.set)
        if not arguments.name.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(f"--name {arguments.name!r} must be letters, digits, - and _")
        if arguments.grid:
            self._axes = [grid_axis(text, whole=self._whole) for text in arguments.grid]
        else:
            self._axes = [parse_axis(text)[0] for text in arguments.search]
        check_axes(self._content, self._axes, self._fixed)

    def outcomes(self) -> list[Outcome]:
        """One for each trial, in the order in which they were planned."""
        return list(self._outcomes.values())

    def plan(self) -> str:
        """The trials as they would run; a search that learns knows only its first."""
        lines = []
        for trial in self._grid() if self._arguments.grid else self._proposals(self._sampler()):
            if trial:
                lines.append(f"{trial.name}  {words(trial.settings)}")
        lines = [*dict.fromkeys(lines), *(f"LEFT OUT {reason}" for reason in self.left_out)]
        if self._arguments.search and self._arguments.sampler == "tpe":
            lines.append("(drawn as if nothing were learnt; the real ones follow the scores)")
        return "\n".join([*lines, ""])

    def run(self) -> None:
        """Run what is not finished; `outcomes` then has all."""
        repository = open_repository(Path.cwd())
        options = {"jobs": self._arguments.jobs, "archives": self._archives}
        with open_pool(repository, **options) as pool:
            known = finished_before(repository)
            for batch in self._batches():
                self._run_batch(pool, batch, known)
            shown = finished_before(repository)
            self._outcomes = {
                name: confirm(outcome, shown) for name, outcome in self._outcomes.items()
            }

    def _run_batch(
        self, pool: Pool, batch: Sequence[Trial], known: dict[str, dict[str, list[float]]]
    ) -> None:
        new = []
        for trial in dict.fromkeys(batch):
            # Of several seeds, `dvc exp show` has only the first: the rest comes from the cache.
            if trial.name in known and trial.num_seeds == 1:
                self._outcomes[trial.name] = Outcome(trial=trial, scores=known[trial.name])
            elif trial.name not in self._outcomes:
                self._outcomes[trial.name] = Outcome(trial=trial, error="it was never started")
                new.append(trial)
        for outcome in pool.run(new):
            self._outcomes[outcome.trial.name] = outcome
            report(outcome)

    def _batches(self) -> Iterator[list[Trial]]:
        """Trials to run side by side.

        A search proposes as many as there are jobs and hears of them in its own order, so that the
        same command proposes the same again, whichever trial ends first.
        """
        if self._arguments.grid:
            yield [trial for trial in self._grid() if trial]
            return
        sampler = self._sampler()
        proposals = self._proposals(sampler)
        while batch := list(itertools.islice(proposals, self._arguments.jobs)):
            yield [trial for trial in batch if trial]
            for trial in batch:
                outcome = self._outcomes[trial.name] if trial else None
                sampler.tell(outcome.mean(FINETUNED) if outcome and outcome.scores else None)

    def _grid(self) -> Iterator[Trial | None]:
        return (self._trial(settings) for settings in grid(self._axes))

    def _sampler(self) -> Sampler:
        kind = SAMPLERS[self._arguments.sampler]
        sampler: Sampler = kind(self._axes, whole=self._whole, seed=self._arguments.seed)
        return sampler

    def _proposals(self, sampler: Sampler) -> Iterator[Trial | None]:
        return (self._trial(sampler.ask()) for _ in range(self._arguments.trials))

    def _trial(self, settings: Settings) -> Trial | None:
        """A trial, or None for values that cannot be together, which `left_out` then names."""
        try:
            return make_trial(
                self._content, {**self._fixed, **settings}, prefix=self._arguments.name
            )
        except ConfigError as error:
            self.left_out.append(f"{words(settings)}: {error}")
            return None


@contextmanager
def open_pool(repository: Repository, *, jobs: int, archives: str) -> Iterator[Pool]:
    """A pool of workspaces, alone in its repository; each trial has its share of the cores."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    repository.environment.setdefault("OMP_NUM_THREADS", str(threads))
    with only_one(repository.root) as keep_open:
        if "MLFLOW_TRACKING_URI" not in os.environ:
            store.prepare()  # its database and experiment, before trials meet there
        with Pool(repository, jobs=jobs, archives=archives, keep_open=keep_open) as pool:
            yield pool


def report(outcome: Outcome) -> None:
    """Log what came of a trial."""
    trial = outcome.trial
    if not outcome.scores:
        _log.info("%s failed: %s (%s)", trial.name, outcome.error, words(trial.settings))
        return
    fine, frozen = (score_text(outcome.scores[name]) for name in (FINETUNED, FROZEN))
    _log.info(
        "%s: val jaccard %s fine-tuned, %s frozen; %.0f s (%s)",
        trial.name,
        fine,
        frozen,
        outcome.seconds,
        words(trial.settings),
    )


if __name__ == "__main__":
    run(main)
