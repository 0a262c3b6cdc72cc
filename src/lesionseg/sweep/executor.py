"""Running trials, in the same way for sweeps, searches, ablations and curves."""

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from lesionseg.sweep.finished import Experiment, read_finished, why_unread
from lesionseg.sweep.pruning import Pruner
from lesionseg.sweep.trials import Outcome, Trial
from lesionseg.sweep.workspaces import Repository, open_pool


class Executor(Protocol):
    """Runs trials side by side.

    Attributes:
        jobs: How many at once.
    """

    jobs: int

    def run(self, trials: Sequence[Trial], *, pruner: Pruner | None = None) -> Iterator[Outcome]:
        """Outcomes of trials in the order in which they end.

        Args:
            trials: What to run.
            pruner: Decides which of them to stop early; None to let all finish.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where trials run, and how many at once.

    Attributes:
        jobs: None means one here, and as many as fit on a Ray cluster.
        cluster: Its address, or `slurm`; None for this machine.
        num_cpus: Cores of a trial on a cluster.
        num_gpus: GPUs of a trial on a cluster.
        checkpoints: A folder that all nodes share, or None.
    """

    jobs: int | None = None
    cluster: str | None = None
    num_cpus: int = 1
    num_gpus: int = 0
    checkpoints: Path | None = None


def placement(arguments: argparse.Namespace) -> Placement:
    """The placement in a command line, as declared by `arguments`."""
    names = [field.name for field in dataclasses.fields(Placement)]
    return Placement(**{name: getattr(arguments, name) for name in names})


@contextmanager
def open_executor(repository: Repository, where: Placement, *, archives: str) -> Iterator[Executor]:
    """The executor of a repository's trials, the only one in it.

    Raises:
        LesionsegError: It cannot run; the one line says why, and what to do.
    """
    if not where.cluster:
        with open_pool(repository, jobs=where.jobs or 1, archives=archives) as pool:
            yield pool
        return
    if where.cluster == "slurm":
        from lesionseg.sweep.slurm import open_slurm as open_driver  # needs submitit
    else:
        from lesionseg.sweep.cluster import open_cluster as open_driver  # needs Ray

    with open_driver(repository, where, archives=archives) as driver:
        yield driver


def run_missing(
    repository: Repository,
    trials: Sequence[Trial],
    *,
    where: Placement,
    archives: str,
    read: Callable[[Experiment], object],
) -> list[Outcome]:
    """Run the trials in which `read` finds nothing; returns those that failed."""
    failed = []
    with open_executor(repository, where, archives=archives) as executor:
        missing = [trial for trial in trials if read_finished(repository, trial, read) is None]
        for outcome in executor.run(missing):
            error = why_unread(repository, outcome.trial, read) if outcome.scores else outcome.error
            if error or not outcome.scores:
                failed.append(replace(outcome, error=error))
    return failed
