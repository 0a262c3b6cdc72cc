"""What the test images say about the difference of two models."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from lesionseg.evaluation.metrics import Scores


def paired_interval(
    differences: Scores, *, confidence: float, num_resamples: int, seed: int
) -> list[float]:
    """Lower and upper end of the bootstrap interval of the mean difference.

    Images are drawn with replacement, each with both its scores; bias-corrected and accelerated
    (Efron 1987, doi:10.1080/01621459.1987.10478410). Equal differences have an interval of width 0.

    Args:
        differences: (N,), one for each image.
        confidence: Coverage, in (0, 1).
        num_resamples: Number of bootstrap samples.
        seed: Seed of the draws.
    """
    if np.ptp(differences) == 0:
        return [float(differences[0])] * 2
    interval = bootstrap(
        (differences,),
        np.mean,
        confidence_level=confidence,
        n_resamples=num_resamples,
        batch=1000,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return [float(interval.low), float(interval.high)]


def compare(
    frozen: Mapping[str, Scores],
    finetuned: Mapping[str, Scores],
    *,
    confidence: float,
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Means of both models for each metric, and the interval of fine-tuned minus frozen.

    Args:
        frozen: Scores (N,) of model 1 by metric, one for each image.
        finetuned: Scores of model 2 on the same images in the same order.
        confidence: As for `paired_interval`; likewise `num_resamples` and `seed`.
        num_resamples: See `confidence`.
        seed: See `confidence`.
    """
    return {
        metric: {
            "train_frozen": float(frozen[metric].mean()),
            "train_finetuned": float(finetuned[metric].mean()),
            "difference": float((finetuned[metric] - frozen[metric]).mean()),
            "interval": paired_interval(
                finetuned[metric] - frozen[metric],
                confidence=confidence,
                num_resamples=num_resamples,
                seed=seed,
            ),
        }
        for metric in frozen
    }
