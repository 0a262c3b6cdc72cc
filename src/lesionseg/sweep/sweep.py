"""A sweep: a grid of trials or a search; unfinished trials are run, then all are compared."""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lesionseg.config import load_config, read_yaml
from lesionseg.errors import ConfigError, LesionsegError
from lesionseg.processes import stopped_like_ctrl_c
from lesionseg.results.layout import FINETUNED
from lesionseg.sweep.executor import Executor, open_executor, placement
from lesionseg.sweep.finished import read_finished, val_curve, val_scores
from lesionseg.sweep.pruning import Pruner, check_comparable
from lesionseg.sweep.space import (
    Sampler,
    Settings,
    grid,
    grid_axis,
    make_sampler,
    parse_axis,
    parse_settings,
)
from lesionseg.sweep.tables import summary, words
from lesionseg.sweep.trials import Outcome, Trial, check_axes, confirm, make_trial, whole_numbers
from lesionseg.sweep.workspaces import HOME, Repository, open_repository


def run(arguments: argparse.Namespace) -> None:
    """Plan the trials, run those that are not finished, print the table.

    Args:
        arguments: As declared by `arguments.add_sweep`.

    Raises:
        LesionsegError: A trial has failed.
    """
    sweep = Sweep(arguments)
    if arguments.dry_run:
        sys.stdout.write(sweep.plan())
        return
    with stopped_like_ctrl_c():
        sweep.run()
    is_remote = arguments.cluster not in (None, "local", "slurm")
    sys.stdout.write(summary(sweep.outcomes(), sweep.left_out, is_remote=is_remote))
    failed = [outcome for outcome in sweep.outcomes() if outcome.has_failed]
    if failed:
        raise LesionsegError(
            f"{len(failed)} of {len(sweep.outcomes())} trials failed, see above. "
            "The same command retries only these"
        )


class Sweep:
    """The trials of a command line, checked, and their outcomes."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self.left_out: list[str] = []
        self._outcomes: dict[str, Outcome] = {}
        path = Path("params.yaml")
        config = load_config(path)
        self._content, self._whole = read_yaml(path), whole_numbers(config)
        self._config = config
        self._archives = config.download.archives
        self._fixed = parse_settings(arguments.set)
        if not arguments.name.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(f"--name {arguments.name!r} must be letters, digits, - and _")
        if arguments.grid:
            self._axes = [grid_axis(text, whole=self._whole) for text in arguments.grid]
        else:
            self._axes = [parse_axis(text)[0] for text in arguments.search]
        check_axes(self._content, self._axes, self._fixed)
        self._pruner: Pruner | None = None
        if arguments.pruner != "none":
            check_comparable(self._axes)

    def outcomes(self) -> list[Outcome]:
        """The outcome of each trial, in the order in which they were planned."""
        return list(self._outcomes.values())

    def plan(self) -> str:
        """The trials as they would run; for a search that learns, these are only a preview."""
        lines = []
        for trial in self._grid() if self._arguments.grid else self._proposals(self._sampler()):
            if trial:
                lines.append(f"{trial.name}  {words(trial.settings)}")
        lines = [*dict.fromkeys(lines), *(f"LEFT OUT {reason}" for reason in self.left_out)]
        if self._arguments.search and self._arguments.sampler == "tpe":
            lines.append("(drawn as if nothing were learnt; the real ones follow the scores)")
        return "\n".join([*lines, ""])

    def run(self) -> None:
        """Run what is not finished; `outcomes` is then complete."""
        repository = open_repository(Path.cwd())
        self._pruner = self._make_pruner(repository)
        where, archives = placement(self._arguments), self._archives
        with open_executor(repository, where, archives=archives) as executor:
            for batch in self._batches(executor.jobs):
                self._run_batch(executor, batch, repository)
            self._outcomes = {
                name: confirm(outcome, read_finished(repository, outcome.trial, val_scores))
                for name, outcome in self._outcomes.items()
            }

    def _run_batch(
        self, executor: Executor, batch: Sequence[Trial], repository: Repository
    ) -> None:
        new = []
        for trial in dict.fromkeys(batch):
            if trial.name in self._outcomes:
                continue
            if scores := read_finished(repository, trial, val_scores):
                self._note(repository, Outcome(trial=trial, scores=scores))
            elif self._pruner and (stop := self._pruner.recall(trial)):
                self._note(repository, Outcome(trial=trial, stop=stop))
            else:
                self._outcomes[trial.name] = Outcome(trial=trial, error="it was never started")
                new.append(trial)
        for outcome in executor.run(new, pruner=self._pruner):
            self._note(repository, outcome)

    def _note(self, repository: Repository, outcome: Outcome) -> None:
        """Keep an outcome, by which later trials are judged."""
        self._outcomes[outcome.trial.name] = outcome
        if self._pruner:
            curve = read_finished(repository, outcome.trial, val_curve) if outcome.scores else None
            self._pruner.end(outcome, curve or {})

    def _batches(self, jobs: int) -> Iterator[list[Trial]]:
        """Trials to run side by side.

        A search proposes as many trials as there are jobs and is told their scores in that order,
        so that the same command makes the same proposals, whichever trial ends first.
        """
        if self._arguments.grid:
            yield [trial for trial in self._grid() if trial]
            return
        sampler = self._sampler()
        proposals = self._proposals(sampler)
        while batch := list(itertools.islice(proposals, jobs)):
            yield [trial for trial in batch if trial]
            for trial in batch:
                outcome = self._outcomes[trial.name] if trial else None
                if outcome and outcome.stop:
                    sampler.tell(outcome.stop.score, epoch=outcome.stop.epoch)
                else:
                    sampler.tell(outcome.mean(FINETUNED) if outcome and outcome.scores else None)

    def _grid(self) -> Iterator[Trial | None]:
        return (self._trial(settings) for settings in grid(self._axes))

    def _sampler(self) -> Sampler:
        seed = self._arguments.seed
        return make_sampler(self._arguments.sampler, self._axes, whole=self._whole, seed=seed)

    def _make_pruner(self, repository: Repository) -> Pruner | None:
        """The pruner of this commit's trials; None if all are to finish."""
        if self._arguments.pruner == "none":
            return None
        values = {**self._config.flat("train"), **self._fixed}
        return Pruner(
            self._arguments.pruner,
            num_epochs=int(values["train.epochs"]) * int(values["train.num_seeds"]),
            folder=repository.root / HOME / "unfinished" / repository.commit,
        )

    def _proposals(self, sampler: Sampler) -> Iterator[Trial | None]:
        return (self._trial(sampler.ask()) for _ in range(self._arguments.trials))

    def _trial(self, settings: Settings) -> Trial | None:
        """A trial, or None for an invalid combination of values, added to `left_out`."""
        try:
            return make_trial(
                self._content, {**self._fixed, **settings}, prefix=self._arguments.name
            )
        except ConfigError as error:
            self.left_out.append(f"{words(settings)}: {error}")
            return None
