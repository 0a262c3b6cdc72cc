"""Packed arrays of one size, split into training, validation and test: `data/processed`.

params.yaml, section preprocess, says how.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lesionseg.config import load_config
from lesionseg.data.preprocessing import preprocess
from lesionseg.data.summary import log_summaries
from stages import make_parser, run

RAW_DIR, PROCESSED_DIR = Path("data/raw"), Path("data/processed")


def main(argv: Sequence[str] | None = None) -> None:
    """Fill `data/processed`."""
    make_parser("preprocess", __doc__).parse_args(argv)
    config = load_config(Path("params.yaml"))
    summary = preprocess(
        RAW_DIR, PROCESSED_DIR, source=config.download.source, **asdict(config.preprocess)
    )
    log_summaries(PROCESSED_DIR, summary.splits)


if __name__ == "__main__":
    run(main)
