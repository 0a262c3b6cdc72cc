"""Speed, memory and scores, measured beside the nearest peer: `python -m benchmarks`."""
