"""Stopping trials early if their fine-tuned model is behind that of others at the same epoch.

One of Optuna's pruners judges every epoch once, in order, by jaccard on val, as soon as it is seen:
the same scores give the same stops. A small file keeps how far a stopped trial has come.
"""

import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lesionseg.errors import ConfigError, DataError
from lesionseg.results.layout import FINETUNED
from lesionseg.results.records import read_record, write_record
from lesionseg.sweep.space import Axis, load_optuna
from lesionseg.sweep.trials import SEED, Curve, Outcome, Stop, Trial

MIN_FINISHED = 5  # trials before any is stopped by the median
REDUCTION = 3  # of ASHA: at each rung, one third goes on
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is remembered about a trial that has not finished.

    Attributes:
        curve: Its epochs and val jaccards so far.
        stop: Why it was stopped, if it was.
    """

    curve: dict[int, float]
    stop: Stop | None = None


def check_comparable(axes: Sequence[Axis]) -> None:
    """Return if all trials of a sweep have the same epochs, and each is a row of its own.

    Raises:
        ConfigError: They have not. Learning rates depend on the number of epochs. Of trials that
            differ only in their seed, the worse ones would be missing from their mean.
    """
    for axis in axes:
        if axis.name in ("train.epochs", "train.num_seeds", SEED):
            raise ConfigError(
                f"--pruner compares trials epoch by epoch: {axis.name} must be the same in all. "
                "Leave --pruner away, or give one value with --set (and train.num_seeds for seeds)"
            )


class Pruner:
    """Is told of all trials of a sweep, and decides which of them to stop.

    What counts is the best epoch so far. `median` stops a trial that is below the median of the
    finished ones at the same epoch, once five have finished and a third of the epochs is over.
    `asha` has two rungs, after a ninth and after a third of the epochs: a trial goes on only if it
    is in the best third of all that have come this far by then (Li et al. 2018, arXiv:1810.05934).
    """

    def __init__(self, kind: str, *, num_epochs: int, folder: Path) -> None:
        """A pruner that knows no trials yet.

        Args:
            kind: `median` or `asha`.
            num_epochs: Epochs of the fine-tuned model's trainings, over all seeds.
            folder: Where the small files of trials that have not finished are kept.

        Raises:
            ConfigError: Optuna is missing.
        """
        optuna = load_optuna("--pruner", otherwise="leave --pruner away")
        self._kind, self._num_epochs, self._folder = kind, num_epochs, folder
        self._states = optuna.trial.TrialState
        pruners = {
            "median": lambda: optuna.pruners.MedianPruner(
                n_startup_trials=MIN_FINISHED, n_warmup_steps=math.ceil(num_epochs / 3)
            ),
            "asha": lambda: optuna.pruners.SuccessiveHalvingPruner(
                min_resource=math.ceil(num_epochs / REDUCTION**2), reduction_factor=REDUCTION
            ),
        }
        self._study = optuna.create_study(
            direction="maximize",
            pruner=pruners[kind](),
            sampler=optuna.samplers.RandomSampler(seed=0),
        )
        self._asked: dict[str, Any] = {}
        self._curves: dict[str, dict[int, float]] = {}

    def recall(self, trial: Trial) -> Stop | None:
        """Why an earlier command stopped a trial, or would have, by the file that it left."""
        path = self._path(trial)
        if not path.exists():
            return None
        try:
            kept = read_record(path, Kept, stage=FINETUNED)
        except DataError as error:
            _log.warning("%s; the trial is judged again", error.problem)
            return None
        if kept.stop and kept.stop.pruner == self._kind:
            self._replay(trial, kept.curve)
            return kept.stop
        return self.hear(trial, kept.curve)

    def hear(self, trial: Trial, curve: Curve) -> Stop | None:
        """Why a trial is to be stopped, or None.

        Args:
            trial: A running trial.
            curve: Its epochs so far; epochs that were judged before are not judged again.
        """
        known = self._curves.setdefault(trial.name, {})
        new = {epoch: curve[epoch] for epoch in sorted(curve.keys() - known.keys())}
        stop = None
        for epoch, score in new.items():
            if self._report(trial, epoch, score) and epoch < self._num_epochs:
                stop = self._explain(trial, epoch)
                break
        if new:
            write_record(self._path(trial), Kept(curve=known, stop=stop))
        return stop

    def end(self, outcome: Outcome, curve: Curve) -> None:
        """Take in a trial that has finished or was stopped.

        Args:
            outcome: The trial's outcome.
            curve: All epochs of a finished trial, as far as they are known.
        """
        trial = outcome.trial
        self._replay(trial, curve)
        if outcome.stop:
            self._study.tell(self._own(trial), state=self._states.PRUNED)
        elif outcome.scores:
            self._study.tell(self._own(trial), outcome.mean(FINETUNED))
            self._path(trial).unlink(missing_ok=True)

    def _replay(self, trial: Trial, curve: Curve) -> None:
        """Take in epochs without stopping their trial."""
        known = self._curves.setdefault(trial.name, {})
        for epoch in sorted(curve.keys() - known.keys()):
            self._report(trial, epoch, curve[epoch])

    def _report(self, trial: Trial, epoch: int, score: float) -> bool:
        """Whether the pruner would stop a trial after this epoch, by the best one so far.

        A trial is ranked by its best epoch; a single one is noisy while the learning rate is high.
        """
        own, curve = self._own(trial), self._curves[trial.name]
        curve[epoch] = score
        own.report(max(curve.values()), epoch)
        return bool(own.should_prune())

    def _own(self, trial: Trial) -> Any:
        if trial.name not in self._asked:
            self._asked[trial.name] = self._study.ask()
        return self._asked[trial.name]

    def _explain(self, trial: Trial, epoch: int) -> Stop:
        """What a trial was compared with, by the same rule as its pruner's."""
        own = self._own(trial)
        others = [
            one.intermediate_values[epoch]
            for one in self._study.get_trials(deepcopy=False)
            if epoch in one.intermediate_values
            and one.number != own.number
            and (self._kind == "asha" or one.state == self._states.COMPLETE)
        ]
        score = max(self._curves[trial.name].values())
        if self._kind == "median":
            bound = statistics.median(others)
            reason = f"the median of {len(others)} finished trials is {bound:.3f}"
        else:
            ranked = sorted([*others, score], reverse=True)
            num_best = max(1, len(ranked) // REDUCTION)
            bound = ranked[num_best - 1]
            reason = f"the best {num_best} of {len(ranked)} trials have at least {bound:.3f}"
        where = f"after {epoch} of {self._num_epochs} epochs"
        return Stop(
            pruner=self._kind,
            epoch=epoch,
            score=score,
            reason=f"{where}: best val jaccard {score:.3f}; {reason}",
        )

    def _path(self, trial: Trial) -> Path:
        return self._folder / f"{trial.name}.json"
