"""Speed, memory and scores beside the nearest peer, measured: `python -m benchmarks`."""
