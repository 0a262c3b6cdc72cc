"""Packed arrays of one size, split into training, validation and test: `data/processed`.

params.yaml, section preprocess, says how.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lesionseg.config import load_config
from lesionseg.data.preprocessing import preprocess
from stages import run

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Fill `data/processed`."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.preprocess",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    config = load_config(Path("params.yaml")).preprocess
    summary = preprocess(Path("data/raw"), Path("data/processed"), **asdict(config))
    logger.info(
        "%d training, %d validation and %d test images of %d x %d pixels in data/processed",
        summary.num_train,
        summary.num_val,
        summary.num_test,
        config.image_size,
        config.image_size,
    )


if __name__ == "__main__":
    run(main)
