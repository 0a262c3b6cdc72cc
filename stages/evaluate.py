"""Score both models on the test split and on external test sets; write results/evaluate/."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from lesionseg.config import load_config
from lesionseg.evaluation.evaluate import check_trainings, evaluate, load_data
from lesionseg.hardware import choose_device, describe, make_deterministic
from lesionseg.processes import only_writer
from lesionseg.results.layout import Results
from lesionseg.tracking.replay import complete_evaluation
from stages import make_parser, run

RAW, PROCESSED, EXTERNAL = (Path("data") / name for name in ("raw", "processed", "external"))
_log = logging.getLogger("lesionseg.evaluate")


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate both models and compare them."""
    make_parser("evaluate", __doc__).parse_args(argv)
    config, results = load_config(Path("params.yaml")), Results()
    make_deterministic()
    check_trainings(config, results=results)
    device = choose_device(config.train.device)
    _log.info("evaluate on %s", describe(device, torch.float32))
    with only_writer(results.evaluation.folder):
        scores = evaluate(config, load_data(PROCESSED, RAW, EXTERNAL), results=results)
        complete_evaluation(results, PROCESSED)
    for name, own in scores.items():
        _log.info(
            f"{name}: test jaccard {own.test['jaccard']:.3f}, dice {own.test['dice']:.3f}; at own "
            f"size {own.test_own_size['jaccard']:.3f}, {own.test_own_size['dice']:.3f}"
        )


if __name__ == "__main__":
    run(main)
