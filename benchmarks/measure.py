"""One measurement in a process of its own: `python -m benchmarks.measure MODULE.FUNCTION JSON`.

Calls the function with the JSON object's values and prints what it returns as one line of JSON,
with the process's peak memory.
"""

import importlib
import json
import resource
import sys

from stages import run


def peak_mib() -> float:
    """The most memory this process ever had in RAM, in MiB; its child processes count apart.

    Pages of memory-mapped files count while they are in RAM.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS gives bytes, Linux KiB


def main() -> None:
    """Measure what the command line names."""
    name, arguments = sys.argv[1:]
    module, function = name.split(".")
    measurement = getattr(importlib.import_module(f"benchmarks.{module}"), function)
    measured = measurement(**json.loads(arguments))
    sys.stdout.write(json.dumps({"peak_mib": peak_mib(), **measured}) + "\n")


if __name__ == "__main__":
    run(main)
