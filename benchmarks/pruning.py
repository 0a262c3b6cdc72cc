"""What stopping trials early saves, and how often it costs the best one.

    python -m benchmarks.pruning --curves curves.json > measured.md

Run it where data/processed is. It trains both models with learning rates drawn from a wide range,
like `lesionseg sweep --search 'train.lr=1e-5..1e-1 log' --sampler random`, unless the file of
curves exists. Then each pruner judges these trainings in many orders, one trial at a time. Prints a
table in Markdown. Times are processor times, so that other work does not count.
"""

import argparse
import dataclasses
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from lesionseg.config import Config, load_config
from lesionseg.results.layout import FINETUNED, FROZEN, RUNS
from lesionseg.results.records import read_record, write_record
from lesionseg.sweep.arguments import PRUNERS
from lesionseg.sweep.pruning import Pruner
from lesionseg.sweep.space import Axis, RandomSampler
from lesionseg.sweep.trials import Outcome, Trial
from lesionseg.training.setup import Inputs, make_training

AXIS = Axis(name="train.lr", low=1e-5, high=1e-1, is_log=True)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Both trainings of a trial that is not stopped.

    Attributes:
        lr: Its learning rate.
        scores: Val jaccards of the fine-tuned model by epoch, rounded as in the log.
        seconds: Processor time of each of the fine-tuned model's epochs.
        frozen_seconds: Processor time of all epochs of the frozen model.
    """

    lr: float
    scores: list[float]
    seconds: list[float]
    frozen_seconds: float

    @property
    def total(self) -> float:
        """Processor time of both trainings, in seconds."""
        return sum(self.seconds) + self.frozen_seconds


@dataclass(frozen=True, kw_only=True)
class Trials:
    """The content of the file of curves."""

    trials: list[Trained]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The outcome of a sweep in one order: trials stopped, processor time, best val jaccard."""

    num_stopped: int
    seconds: float
    best: float


def main(argv: Sequence[str] | None = None) -> None:
    """Train the trials unless that was done before, judge them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--orders", type=int, default=100)
    parser.add_argument("--curves", type=Path, required=True, help="kept and reused")
    arguments = parser.parse_args(argv)
    if not arguments.curves.exists():
        write_record(arguments.curves, Trials(trials=train_all(arguments.trials)))
    trials = read_record(arguments.curves, Trials, stage=FINETUNED).trials
    sys.stdout.write(table(trials, num_orders=arguments.orders))


def train_all(num_trials: int) -> list[Trained]:
    """Both models with each learning rate."""
    config = load_config(Path("params.yaml"))
    sampler = RandomSampler([AXIS], whole={AXIS.name: False}, seed=0)
    return [train(config, float(sampler.ask()[AXIS.name])) for _ in range(num_trials)]


def train(config: Config, lr: float) -> Trained:
    """Both models with one learning rate."""
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, lr=lr))
    scores: dict[str, list[float]] = {run: [] for run in RUNS}
    seconds: dict[str, list[float]] = {run: [] for run in RUNS}
    for run in RUNS:
        start = time.process_time()
        for epoch in make_training(config, run, seed=config.train.seed, inputs=Inputs()):
            scores[run].append(round(epoch.val_jaccard, 3))
            seconds[run].append(time.process_time() - start)
            start = time.process_time()
    sys.stderr.write(f"train.lr {lr}: val jaccard {max(scores[FINETUNED])}\n")
    return Trained(
        lr=lr,
        scores=scores[FINETUNED],
        seconds=seconds[FINETUNED],
        frozen_seconds=sum(seconds[FROZEN]),
    )


def replay(kind: str, trials: Sequence[Trained], folder: Path) -> Replay:
    """A sweep with `--jobs 1` that meets the trials in this order."""
    pruner = Pruner(kind, num_epochs=len(trials[0].scores), folder=folder)
    num_stopped, seconds, best = 0, 0.0, 0.0
    for number, one in enumerate(trials):
        trial = Trial(name=str(number), settings={})
        curve = dict(enumerate(one.scores, start=1))
        if stop := pruner.hear(trial, curve):
            num_stopped += 1
            seconds += sum(one.seconds[: stop.epoch])
            pruner.end(Outcome(trial=trial, stop=stop), {})
        else:
            seconds += one.total
            best = max(best, *one.scores)
            pruner.end(Outcome(trial=trial, scores={FINETUNED: [max(one.scores)]}), {})
    return Replay(num_stopped=num_stopped, seconds=seconds, best=best)


def table(trials: Sequence[Trained], *, num_orders: int) -> str:
    """A row for each pruner, over `num_orders` orders of the trials."""
    lines = [
        "| `--pruner` | trials stopped | training time | the best trial is stopped | jaccard lost, "
        "at most |",
        "|---|---:|---:|---:|---:|",
    ]
    total = sum(one.total for one in trials)
    best = max(max(one.scores) for one in trials)
    for kind in PRUNERS[1:]:
        draw, found = random.Random(0), list[Replay]()
        with TemporaryDirectory() as folder:
            for _ in range(num_orders):
                order = draw.sample(trials, len(trials))
                found.append(replay(kind, order, Path(folder)))
        stopped = statistics.fmean(one.num_stopped for one in found)
        share = statistics.fmean(one.seconds for one in found) / total
        lost = [best - one.best for one in found]
        lines.append(
            f"| {kind} | {stopped:.1f} of {len(trials)} | {share:.0%} | "
            f"in {sum(one > 0 for one in lost)} of {num_orders} orders | {max(lost):.3f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
