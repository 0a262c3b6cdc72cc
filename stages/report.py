"""One HTML page that answers which model is better, from the files of the other stages.

As the last stage, it ends by printing the comparison as a table.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from lesionseg.config import load_config
from lesionseg.report.page import write_report
from lesionseg.results.evaluation import Comparison
from lesionseg.results.layout import Results
from lesionseg.tracking.replay import attach_report
from stages import make_parser, run

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Write results/report/ from results/ and data/."""
    make_parser("report", __doc__).parse_args(argv)
    config = load_config(Path("params.yaml")).report
    results = Results()
    path = write_report(
        results,
        Path("data"),
        report_dir=Path("results/report"),
        title=config.title,
        num_examples=config.num_examples,
    )
    attach_report(results)
    logger.info("\n%s\n", "\n".join(Comparison.read(results.evaluation).lines()))
    logger.info("wrote %s", path)


if __name__ == "__main__":
    run(main)
