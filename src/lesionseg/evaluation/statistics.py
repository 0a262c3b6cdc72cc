"""What the test images say about two models, and what the training seeds say: two questions.

Intervals and tests are over images, for one training of each model: would other images of the same
kind give the same answer? The spread over seeds is about the training itself: would another random
start give the same answer? The two are never combined.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, rankdata, wilcoxon

from lesionseg.metrics import Scores
from lesionseg.results.evaluation import (
    Compared,
    DifferenceSpread,
    SeedComparison,
    SeedsCompared,
    Spread,
)
from lesionseg.results.layout import FINETUNED, FROZEN
from lesionseg.results.vocabulary import METRICS

Interval = Callable[[Scores], tuple[float, float]]


def mean_interval(
    values: Scores, *, confidence: float, num_resamples: int, seed: int
) -> tuple[float, float]:
    """Lower and upper end of the bootstrap interval of the mean over images.

    Bias-corrected and accelerated (Efron 1987, doi:10.1080/01621459.1987.10478410), not the plain
    percentiles of the resamples: scores pile up below 1 with a long tail of failures, and BCa
    accounts for that skew. The interval of a difference comes from paired values: images are drawn
    with replacement, each with the scores of both models. Equal values have an interval of width 0.

    Args:
        values: (N,), one for each image.
        confidence: Coverage, in (0, 1).
        num_resamples: Number of bootstrap samples.
        seed: Seed of the draws.
    """
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    interval = bootstrap(
        (values,),
        np.mean,
        confidence_level=confidence,
        n_resamples=num_resamples,
        batch=1000,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def compare(
    frozen: Mapping[str, Scores], finetuned: Mapping[str, Scores], *, interval: Interval
) -> dict[str, Compared]:
    """For each metric the means of both models, their difference, and how sure it is.

    Args:
        frozen: Scores (N,) of model 1 by metric, one for each image.
        finetuned: Scores of model 2 on the same images in the same order.
        interval: `mean_interval` with its settings.
    """
    return {
        metric: _compare_metric(
            frozen[metric], finetuned[metric], interval=interval, sign=_sign(metric)
        )
        for metric in frozen
    }


def _sign(metric: str) -> int:
    """1 if a higher value is better, else -1."""
    return -1 if METRICS[metric].lower_is_better else 1


def _compare_metric(
    frozen: Scores, finetuned: Scores, *, interval: Interval, sign: int
) -> Compared:
    differences = finetuned - frozen
    return Compared(
        train_frozen=float(frozen.mean()),
        train_frozen_interval=interval(frozen),
        train_finetuned=float(finetuned.mean()),
        train_finetuned_interval=interval(finetuned),
        difference=float(differences.mean()),
        interval=interval(differences),
        **signed_ranks(sign * differences),
        wins=int((sign * differences > 0).sum()),
        ties=int((differences == 0).sum()),
        losses=int((sign * differences < 0).sum()),
    )


def signed_ranks(differences: Scores) -> dict[str, float]:
    """Wilcoxon's signed-rank test of paired differences, two-sided, and its effect size.

    Images without a difference are left out, as Wilcoxon did (1945, doi:10.2307/3001968). The
    effect size is the matched-pairs rank-biserial correlation (Kerby 2014,
    doi:10.2466/11.IT.3.1): the share of the rank sum that is positive minus the share that is
    negative, 1 if every difference is positive.

    Args:
        differences: (N,), one for each image.

    Returns:
        `wilcoxon_p` in [0, 1] and `rank_biserial` in [-1, 1]; 1 and 0 if all differences are 0.
    """
    changed = differences[differences != 0]
    if not len(changed):
        return {"wilcoxon_p": 1.0, "rank_biserial": 0.0}
    ranks = rankdata(np.abs(changed))
    return {
        "wilcoxon_p": float(wilcoxon(changed).pvalue),
        "rank_biserial": float((ranks * np.sign(changed)).sum() / ranks.sum()),
    }


def compare_seeds(seeds: pd.DataFrame) -> SeedComparison | None:
    """Mean and standard deviation over the training seeds, or None if there is only one seed.

    Args:
        seeds: Columns `run`, `seed`, `scope` and the metrics, each already a mean over images.
    """
    num_seeds = seeds["seed"].nunique()
    if num_seeds < 2:
        return None
    metrics = [str(name) for name in seeds if name not in ("run", "seed", "scope")]
    by_scope = {
        str(scope): {
            metric: _compare_seeds(
                rows.pivot(index="seed", columns="run", values=metric), sign=_sign(metric)
            )
            for metric in metrics
        }
        for scope, rows in seeds.groupby("scope", sort=False)
    }
    return SeedComparison(num_seeds=num_seeds, **by_scope)


def _compare_seeds(means: pd.DataFrame, *, sign: int) -> SeedsCompared:
    """One metric's `means`: a row for each seed, a column for each run."""
    difference = means[FINETUNED] - means[FROZEN]
    return SeedsCompared(
        train_frozen=Spread(**_spread(means[FROZEN])),
        train_finetuned=Spread(**_spread(means[FINETUNED])),
        difference=DifferenceSpread(
            **_spread(difference), num_better=int((sign * difference > 0).sum())
        ),
    )


def _spread(values: "pd.Series[float]") -> dict[str, float]:
    return {"mean": float(values.mean()), "sd": float(values.std(ddof=1))}
