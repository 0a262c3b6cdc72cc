"""Images, masks, their manifest and the encoder's initial weights: `data/raw`, all or nothing.

params.yaml, section download, says where they come from.
"""

from collections.abc import Sequence
from pathlib import Path

from lesionseg.config import load_config
from lesionseg.data.raw import fill_raw
from lesionseg.data.summary import log_summaries
from stages import make_parser, run

RAW_DIR = Path("data/raw")


def main(argv: Sequence[str] | None = None) -> None:
    """Fill `data/raw`."""
    make_parser("download", __doc__).parse_args(argv)
    config = load_config(Path("params.yaml")).download
    log_summaries(RAW_DIR, fill_raw(RAW_DIR, config))


if __name__ == "__main__":
    run(main)
