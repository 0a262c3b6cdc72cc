"""How far trials are: from a trial's log to lines on the terminal, if there is one."""

import math
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lesionseg.results.layout import FINETUNED

_MOST_ROWS = 20
_TAIL_BYTES = 8192
_EPOCH = re.compile(
    r"^(?P<run>train_\w+) epoch (?P<epoch>\d+/\d+):.* val jaccard (?P<jaccard>[\d.]+)"
    r".* about (?P<left>[\d.]+ min) left|^Running stage '(?P<stage>\w+)'"
)
_SEED = re.compile(rf"^{FINETUNED} with seed (?P<seed>\d+) of \[(?P<seeds>[\d, ]+)\]")


def read_curve(log: Path) -> dict[int, float]:
    """The fine-tuned model's val jaccards in a trial's log, by epoch as a `trials.Curve`."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    curve, num_before = {}, 0  # seeds that have finished
    for line in lines:
        if started := _SEED.match(line):
            num_before = started["seeds"].split(", ").index(started["seed"])
        elif (done := _EPOCH.match(line)) and done["run"] == FINETUNED:
            epoch, num_epochs = map(int, done["epoch"].split("/"))
            curve[num_before * num_epochs + epoch] = float(done["jaccard"])
    return curve


def last_progress(log: Path) -> str:
    """What a trial is doing, by its log: the stage, with epoch, val jaccard and time left."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    found = [match for line in text.splitlines() if (match := _EPOCH.match(line))]
    if not found:
        return ""
    last = found[-1]
    if last["stage"]:
        return last["stage"]
    return (
        f"{last['run']} epoch {last['epoch']}, val jaccard {last['jaccard']}, {last['left']} left"
    )


class View:
    """A line for all trials and one for each running trial, rewritten in place."""

    def __init__(self, num_trials: int) -> None:
        self._total = tqdm(total=num_trials, unit="trial", disable=None, leave=False)
        self._rows: list[Any] = []
        self._shown = -math.inf

    def is_due(self) -> bool:
        """Whether there is a terminal, and a second has passed since the last `show`."""
        return not self._total.disable and time.monotonic() - self._shown >= 1

    def show(self, rows: Mapping[str, str], *, num_done: int) -> None:
        """Bring the view up to date.

        Args:
            rows: For each running trial, by its name: where it is, and how far.
            num_done: Trials that have ended.
        """
        self._shown = time.monotonic()
        self._total.n = num_done
        self._total.refresh()
        texts = [f"{name}  {text}" for name, text in rows.items()][:_MOST_ROWS]
        while len(self._rows) < len(texts):
            position = len(self._rows) + 1
            self._rows.append(tqdm(total=0, bar_format="{desc}", position=position, leave=False))
        for index, row in enumerate(self._rows):
            row.set_description_str(texts[index] if index < len(texts) else "")

    def close(self) -> None:
        """Remove it from the terminal."""
        for row in reversed(self._rows):
            row.close()
        self._total.close()


@contextmanager
def open_view(num_trials: int) -> Iterator[View]:
    """A view of trials for as long as the block takes; log lines appear above it."""
    view = View(num_trials)
    try:
        if sys.stderr.isatty():
            with logging_redirect_tqdm():
                yield view
        else:
            yield view
    finally:
        view.close()
