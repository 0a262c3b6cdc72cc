"""Speed, memory and scores beside the nearest peer, measured: `python -m benchmarks`."""

import stages  # noqa: F401  (what is measured runs with the threads and the paths of a stage)
