"""Train one of the two models on data/processed; write results/<run>/.

The best epoch by val/jaccard is kept. If killed and restarted, it resumes after its last epoch.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from lesionseg.config import load_config
from lesionseg.results.layout import RUNS, Results
from lesionseg.training.distributed import in_processes
from lesionseg.training.run import train_model
from lesionseg.training.setup import Inputs
from stages import make_parser, run


def main(argv: Sequence[str] | None = None) -> None:
    """Train the model that the command line names, once with each seed."""
    parser = make_parser("train", __doc__, example="train_finetuned")
    parser.add_argument("run", choices=RUNS, help="which of the two models")
    name = parser.parse_args(argv).run
    config = load_config(Path("params.yaml"))
    in_processes(
        lambda group: train_model(config, name, results=Results(), inputs=Inputs(), group=group),
        command=[sys.executable, "-m", "stages.train", name],
        num_processes=config.train.num_processes,
        device=config.train.device_name,
    )


if __name__ == "__main__":
    run(main)
