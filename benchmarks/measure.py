"""One measurement in a process of its own: `python -m benchmarks.measure MODULE.FUNCTION JSON`.

Calls the function with the JSON object's values and prints what it returns as one line of JSON,
together with the process's peak memory.
"""

import importlib
import json
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lesionseg.errors import exit_status
from lesionseg.memory import keep_freed_memory

STATUS = Path("/proc/self/status")  # Linux only
SAMPLING_SECONDS = 0.02


def peak_mib(who: int = resource.RUSAGE_SELF) -> float:
    """The most memory that this process ever had in RAM, in MiB, without its child processes.

    Pages of memory-mapped files count while they are in RAM. With RUSAGE_CHILDREN it is the peak of
    the largest child.
    """
    peak = resource.getrusage(who).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS gives bytes, Linux KiB


def own_mib() -> float:
    """Memory of this process in RAM without pages of files, in MiB; except on Linux, its peak."""
    if not STATUS.exists():
        return peak_mib()
    lines = STATUS.read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("RssAnon:"))) / 2**10


@contextmanager
def sampled_own_mib() -> Iterator[list[float]]:
    """Samples of `own_mib`, every 20 ms while the block runs."""
    samples, done = [own_mib()], threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLING_SECONDS):
            samples.append(own_mib())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def main() -> None:
    """Measure what the command line names."""
    name, arguments = sys.argv[1:]
    module, function = name.split(".")
    measurement = getattr(importlib.import_module(f"benchmarks.{module}"), function)
    measured = measurement(**json.loads(arguments))
    sys.stdout.write(json.dumps({"peak_mib": peak_mib(), **measured}) + "\n")


if __name__ == "__main__":
    keep_freed_memory()  # as the stages do
    sys.exit(exit_status(main))
