"""Packed arrays of one size, split into training, validation and test: `data/processed`.

params.yaml, section preprocess, says how.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lesionseg.config import load_config
from lesionseg.data.preprocessing import preprocess
from lesionseg.data.summary import log_summaries
from stages import run

RAW_DIR, PROCESSED_DIR = Path("data/raw"), Path("data/processed")


def main(argv: Sequence[str] | None = None) -> None:
    """Fill `data/processed`."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.preprocess",
        description=__doc__,
        epilog="Example: dvc repro preprocess",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    config = load_config(Path("params.yaml"))
    summary = preprocess(
        RAW_DIR, PROCESSED_DIR, source=config.download.source, **asdict(config.preprocess)
    )
    log_summaries(PROCESSED_DIR, summary.splits)


if __name__ == "__main__":
    run(main)
