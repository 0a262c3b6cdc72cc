"""Work for several processes, as `python -m tests.spread CASE FOLDER NUM_PROCESSES`.

tests/test_distributed.py starts it, as DVC starts a stage, and reads what each process leaves.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from lesionseg.errors import DataError, exit_status
from lesionseg.mobilenet import mobilenet_v2
from lesionseg.models.segmenter import build_segmenter
from lesionseg.training.distributed import ALONE, Group, in_processes
from lesionseg.training.loop import Training
from tests.test_training import (
    CPU,
    NO_VIEWS,
    RECIPE,
    TinySegmenter,
    change,
    make_split,
    record_batches,
)


class Steady(TinySegmenter):
    """A network whose batch norms stay as they are, so that no image touches another."""

    def train(self, mode: bool = True) -> "Steady":
        super().train(mode)
        self.decoder[0].eval()
        return self


def steady(group: Group = ALONE) -> dict[str, object]:
    """A training without batch statistics and dropout, and the batches that it saw."""
    torch.manual_seed(0)
    training = Training(
        model=Steady(),
        train=make_split("train", 10, 64),
        val=make_split("val", 9, 64),
        recipe=change(RECIPE, batch_size=3, encoder_lr=0.001, lr=0.05),
        device=CPU,
        group=group,
    )
    batches = record_batches(training)
    list(training)
    return {**_left_by(training), "batches": batches, "dropout": torch.initial_seed()}


def real(group: Group = ALONE) -> dict[str, object]:
    """The real network on eight phantoms that it also validates on."""
    split = make_split("train", 8, 64)
    torch.manual_seed(0)
    model = build_segmenter(
        encoder_state=mobilenet_v2(weights=None).features.state_dict(),
        decoder="transposed",
        dropout=0.1,
        frozen=False,
        seed=0,
    )
    recipe = change(RECIPE, epochs=15, lr=0.01, encoder_lr=0.005, augment=NO_VIEWS)
    training = Training(model=model, train=split, val=split, recipe=recipe, device=CPU, group=group)
    list(training)
    return _left_by(training)


def _left_by(training: Training) -> dict[str, object]:
    history = [asdict(replace(epoch, seconds=0.0)) for epoch in training.history]
    return {"model": training.model.state_dict(), "history": history}


def fails(group: Group, folder: Path) -> None:
    """The last process finds an image that is damaged; the others wait for it."""
    if group.rank == group.size - 1:
        (folder / "failed").touch()
        raise DataError("train/ISIC_7.jpg is damaged", "Write another")
    group.share(None)
    group.collect([0])


def is_killed(group: Group, folder: Path) -> None:
    """The last process is killed in the middle; the others wait for it."""
    if group.rank == group.size - 1:
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    group.collect([0])


def lasts(_group: Group, _folder: Path) -> None:
    """All compute for long, and meet nobody."""
    sys.stdout.write(f"{os.getpid()}\n")
    sys.stdout.flush()
    time.sleep(60)


def trains(group: Group, folder: Path) -> None:
    """Two trainings, and what each process has of them in the end."""
    torch.save({"steady": steady(group), "real": real(group)}, folder / f"{group.rank}.pt")


CASES: dict[str, Callable[[Group, Path], None]] = {
    one.__name__: one for one in (trains, fails, is_killed, lasts)
}


def main(case: str, folder: str, num_processes: str) -> None:
    """Do a case in some processes."""
    in_processes(
        lambda group: CASES[case](group, Path(folder)),
        command=[sys.executable, "-m", "tests.spread", case, folder, num_processes],
        num_processes=int(num_processes),
        device="cpu",
    )


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(*sys.argv[1:])))
