"""Measurements in rounds, each in a process of its own, contestants taking turns: A B C A B C.

This process imports nothing large: Linux includes the memory of a process in the peak of those that
it starts.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from benchmarks.tables import Raw
from lesionseg.errors import LesionsegError


def measure(function: str, **arguments: Any) -> dict[str, Any]:
    """What `module.function` returned in a new process, and that process's `peak_mib`.

    Raises:
        LesionsegError: It failed; `LESIONSEG_DEBUG=1` shows its whole output.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.measure", function, json.dumps(arguments)],
        stdout=subprocess.PIPE,
        stderr=None if os.environ.get("LESIONSEG_DEBUG") else subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr or "").strip().splitlines()[-1:] or ["see above"]
        raise LesionsegError(f"{function}: {reason[0].removeprefix('error: ')}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def alternate(
    function: str, contestants: Mapping[str, Mapping[str, Any]], *, num_rounds: int
) -> Raw:
    """The raw values of all contestants, given with their arguments, measured in turns.

    Whatever slows the machine for a while slows neighbours equally, so ratios within a round hold.
    """
    turns = [name for _ in range(num_rounds) for name in contestants]
    raw: Raw = {name: [] for name in contestants}
    for name in tqdm(turns, function, unit="measurement", disable=None, leave=False):
        raw[name].append(measure(function, **contestants[name]))
    return raw
