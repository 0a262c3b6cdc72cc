"""Images, masks, their manifest and the encoder's first weights: `data/raw`, whole or not at all.

params.yaml, section download, says where they come from.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lesionseg.config import load_config
from lesionseg.data.raw import fill_raw
from lesionseg.data.summary import log_summaries
from stages import run

RAW_DIR = Path("data/raw")


def main(argv: Sequence[str] | None = None) -> None:
    """Fill `data/raw`."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.download",
        description=__doc__,
        epilog="Example: dvc repro download",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    config = load_config(Path("params.yaml")).download
    log_summaries(RAW_DIR, fill_raw(RAW_DIR, config))


if __name__ == "__main__":
    run(main)
