"""Other ways to predict with the trained models: means over views, over training seeds, over both.

They are rows of their own. The main number remains that of one model and one view.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lesionseg.results.evaluation import ModelScores
from lesionseg.results.tables import Row
from lesionseg.results.vocabulary import METRICS, SCOPES

Probabilities = Sequence[NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The scores of one way to predict.

    Attributes:
        seed: The training seed of its model, or None for the mean over the models of all seeds.
        num_models: Models whose probabilities are averaged.
        num_views: Views of each image whose probabilities are averaged.
        scores: Means over images.
    """

    seed: int | None
    num_models: int
    num_views: int
    scores: ModelScores

    @property
    def variant(self) -> str:
        """`single`, `tta` (several views), `ensemble` (several models) or `ensemble+tta`."""
        parts = {"ensemble": self.num_models > 1, "tta": self.num_views > 1}
        return "+".join(name for name, is_used in parts.items() if is_used) or "single"


def score_variants(
    probabilities: Probabilities,
    scores: ModelScores,
    *,
    seeds: Sequence[int],
    num_views: int,
    predict: Callable[[int, int], Probabilities],
    score: Callable[[Probabilities], ModelScores],
) -> list[Scored]:
    """Scores of each seed's model from one view, and of the variants that seeds and views allow.

    Each model predicts once for each number of views. Only sums are kept, so memory does not grow
    with the number of seeds. An ensemble is the mean of its models' probabilities, as in
    Lakshminarayanan et al. 2017, arXiv:1612.01474.

    Args:
        probabilities: What the first seed's model predicts from one view, N maps (H, W) float32
            in [0, 1].
        scores: Its scores, means over images.
        seeds: Training seeds of the models, the main one first.
        num_views: Views of test-time augmentation; 1 is none.
        predict: The probabilities by a seed's model from a number of views.
        score: Means over images.

    Returns:
        The scores, those of the main model first.
    """
    main = seeds[0]
    scored = [Scored(seed=main, num_models=1, num_views=1, scores=scores)]
    for views in sorted({1, num_views}):
        total = np.zeros_like(probabilities)
        for seed in seeds:
            is_known = seed == main and views == 1
            maps = probabilities if is_known else predict(seed, views)
            total += maps
            # Several views are scored for the main model only; those of the others are averaged.
            if not is_known and (seed == main or views == 1):
                scored.append(Scored(seed=seed, num_models=1, num_views=views, scores=score(maps)))
        if len(seeds) > 1:
            mean = score(list(total / len(seeds)))
            scored.append(Scored(seed=None, num_models=len(seeds), num_views=views, scores=mean))
    return scored


def seed_rows(runs: Mapping[str, Sequence[Scored]]) -> list[Row]:
    """Rows of seeds.csv: each seed's model of each run, from one view."""
    return [
        {"run": run, "seed": one.seed, "scope": scope, **_means(one, scope)}
        for run, scored in runs.items()
        for one in scored
        if one.variant == "single"
        for scope in SCOPES
    ]


def variant_rows(runs: Mapping[str, Sequence[Scored]]) -> list[Row]:
    """Rows of variants.csv: the main model of each run, then the variants that average more."""
    return [
        {"run": run, "variant": one.variant, "scope": scope}
        | {"num_models": one.num_models, "num_views": one.num_views, **_means(one, scope)}
        for run, scored in runs.items()
        for one in sorted(scored, key=lambda one: (one.num_models, one.num_views))
        if one.seed in (scored[0].seed, None)
        for scope in SCOPES
    ]


def _means(one: Scored, scope: str) -> dict[str, float]:
    return {metric: one.scores.at(scope)[metric] for metric in METRICS}
