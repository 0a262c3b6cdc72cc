"""What the test images say about two models, and what the training seeds say: two questions.

Intervals and tests are over images, for one training of each model: would other images of the same
kind give the same answer? The spread over seeds is about the training itself: would another random
start? They are never added up.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, rankdata, wilcoxon

from lesionseg.evaluation.metrics import Scores

LOWER_IS_BETTER = frozenset({"hd95"})
Interval = Callable[[Scores], list[float]]


def mean_interval(
    values: Scores, *, confidence: float, num_resamples: int, seed: int
) -> list[float]:
    """Lower and upper end of the bootstrap interval of the mean over images.

    Bias-corrected and accelerated (Efron 1987, doi:10.1080/01621459.1987.10478410), not the plain
    percentiles of the resamples: scores pile up below 1 with a long tail of failures, and BCa
    follows that skew. The interval of a difference comes from paired values: images are drawn with
    replacement, each with the scores of both models. Equal values have an interval of width 0.

    Args:
        values: (N,), one for each image.
        confidence: Coverage, in (0, 1).
        num_resamples: Number of bootstrap samples.
        seed: Seed of the draws.
    """
    if np.ptp(values) == 0:
        return [float(values[0])] * 2
    interval = bootstrap(
        (values,),
        np.mean,
        confidence_level=confidence,
        n_resamples=num_resamples,
        batch=1000,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return [float(interval.low), float(interval.high)]


def compare(
    frozen: Mapping[str, Scores], finetuned: Mapping[str, Scores], *, interval: Interval
) -> dict[str, dict[str, Any]]:
    """For each metric the means of both models, their difference, and how sure it is.

    Args:
        frozen: Scores (N,) of model 1 by metric, one for each image.
        finetuned: Scores of model 2 on the same images in the same order.
        interval: `mean_interval` with its settings.

    Returns:
        By metric: `train_frozen` and `train_finetuned` (means), the intervals of both,
        `difference` (fine-tuned minus frozen) and its `interval`; `wilcoxon_p` and
        `rank_biserial` of `signed_ranks`; `wins`, `ties` and `losses` of the fine-tuned model
        in images. Wins and `rank_biserial` say which model is better, also where lower is better.
    """
    return {
        metric: _compare_metric(
            frozen[metric],
            finetuned[metric],
            interval=interval,
            sign=-1 if metric in LOWER_IS_BETTER else 1,
        )
        for metric in frozen
    }


def _compare_metric(
    frozen: Scores, finetuned: Scores, *, interval: Interval, sign: int
) -> dict[str, Any]:
    differences = finetuned - frozen
    return {
        "train_frozen": float(frozen.mean()),
        "train_frozen_interval": interval(frozen),
        "train_finetuned": float(finetuned.mean()),
        "train_finetuned_interval": interval(finetuned),
        "difference": float(differences.mean()),
        "interval": interval(differences),
        **signed_ranks(sign * differences),
        "wins": int((sign * differences > 0).sum()),
        "ties": int((differences == 0).sum()),
        "losses": int((sign * differences < 0).sum()),
    }


def signed_ranks(differences: Scores) -> dict[str, float]:
    """Wilcoxon's signed-rank test of paired differences, two-sided, and its effect size.

    Images without a difference are left out, as Wilcoxon did (1945, doi:10.2307/3001968). The
    effect size is the matched-pairs rank-biserial correlation (Kerby 2014,
    doi:10.2466/11.IT.3.1): the share of the rank sum that is positive minus the share that is
    negative, 1 where every difference is positive.

    Args:
        differences: (N,), one for each image.

    Returns:
        `wilcoxon_p` in [0, 1] and `rank_biserial` in [-1, 1]; 1 and 0 without any difference.
    """
    changed = differences[differences != 0]
    if not len(changed):
        return {"wilcoxon_p": 1.0, "rank_biserial": 0.0}
    ranks = rankdata(np.abs(changed))
    return {
        "wilcoxon_p": float(wilcoxon(changed).pvalue),
        "rank_biserial": float((ranks * np.sign(changed)).sum() / ranks.sum()),
    }


def compare_seeds(seeds: pd.DataFrame) -> dict[str, Any] | None:
    """Mean and standard deviation over the training seeds, or None where there is only one seed.

    Args:
        seeds: Columns `run`, `seed`, `scope` and the metrics, each already a mean over images.

    Returns:
        `num_seeds`, and by scope and metric the `mean` and `sd` (of the sample, N - 1) of each
        model and of `difference`, seed by seed; `num_better` seeds have the fine-tuned one better.
    """
    num_seeds = seeds["seed"].nunique()
    if num_seeds < 2:
        return None
    metrics = [name for name in seeds if name not in ("run", "seed", "scope")]
    return {"num_seeds": num_seeds} | {
        str(scope): {
            metric: _compare_seeds(
                rows.pivot(index="seed", columns="run", values=metric),
                sign=-1 if metric in LOWER_IS_BETTER else 1,
            )
            for metric in metrics
        }
        for scope, rows in seeds.groupby("scope", sort=False)
    }


def _compare_seeds(means: pd.DataFrame, *, sign: int) -> dict[str, Any]:
    """One metric's `means`: a row for each seed, a column for each run."""
    difference = means["train_finetuned"] - means["train_frozen"]
    columns = {**{str(run): means[run] for run in means}, "difference": difference}
    summary: dict[str, Any] = {
        name: {"mean": float(values.mean()), "sd": float(values.std(ddof=1))}
        for name, values in columns.items()
    }
    summary["difference"]["num_better"] = int((sign * difference > 0).sum())
    return summary
