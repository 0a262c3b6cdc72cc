"""External test sets, prepared like test and checked for leaks against all splits: `data/external`.

params.yaml, section external, names them.
"""

from collections.abc import Sequence
from pathlib import Path

from lesionseg.config import load_config
from lesionseg.data.external import fill_external
from lesionseg.data.summary import log_summaries
from stages import make_parser, run

EXTERNAL_DIR, PROCESSED_DIR = Path("data/external"), Path("data/processed")


def main(argv: Sequence[str] | None = None) -> None:
    """Fill `data/external`."""
    make_parser("external", __doc__).parse_args(argv)
    config = load_config(Path("params.yaml"))
    summaries = fill_external(EXTERNAL_DIR, config, split_dir=PROCESSED_DIR)
    log_summaries(EXTERNAL_DIR, summaries)


if __name__ == "__main__":
    run(main)
