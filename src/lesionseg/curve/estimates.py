"""Summaries of the scores of all trainings: means over seeds, and where the models' curves cross.

Intervals are over seeds, that is over the images drawn for a training and over its random numbers;
the test images are always the same. How the answer varies with these is answered by `evaluate`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t

from lesionseg.curve.power_law import make_guess
from lesionseg.curve.record import Crossing, Estimate, Interval, Point, SetCurve
from lesionseg.results.layout import FINETUNED, FROZEN, RUNS

Numbers = NDArray[np.float64]


def estimate_sets(
    scores: pd.DataFrame, *, num_images: Mapping[str, int], confidence: float
) -> list[SetCurve]:
    """The curve on each set of test images, in their order.

    Args:
        scores: Columns `set`, `run`, `num_images`, `seed` and `jaccard`; both models have the same
            sizes and seeds.
        num_images: Number of test images of each set.
        confidence: Coverage of the intervals, in (0, 1).
    """
    return [
        _estimate_set(name, rows, num_images=num_images[name], confidence=confidence)
        for name, rows in ((str(name), rows) for name, rows in scores.groupby("set", sort=False))
    ]


def _estimate_set(
    name: str, scores: pd.DataFrame, *, num_images: int, confidence: float
) -> SetCurve:
    table = scores.pivot(index="seed", columns=["run", "num_images"], values="jaccard")
    sizes = sorted(scores["num_images"].unique().tolist())
    jaccards = {run: table[run][sizes].to_numpy(dtype=float) for run in RUNS}
    points = [
        _estimate_point(
            size, jaccards[FROZEN][:, row], jaccards[FINETUNED][:, row], confidence=confidence
        )
        for row, size in enumerate(sizes)
    ]
    return SetCurve(
        name=name,
        num_images=num_images,
        points=points,
        crossings=find_crossings(points),
        guess=make_guess(np.array(sizes, dtype=float), jaccards, confidence=confidence),
    )


def _estimate_point(
    num_images: int, frozen: Numbers, finetuned: Numbers, *, confidence: float
) -> Point:
    difference = finetuned - frozen
    return Point(
        num_images=num_images,
        train_frozen=estimate(frozen, confidence=confidence),
        train_finetuned=estimate(finetuned, confidence=confidence),
        difference=estimate(difference, confidence=confidence, lowest=-1),
        num_better=int((difference > 0).sum()),
    )


def estimate(values: Numbers, *, confidence: float, lowest: float = 0) -> Estimate:
    """The mean over seeds with its interval by Student's t.

    Args:
        values: (S,), one for each seed, in [lowest, 1]; the interval lies there too.
        confidence: Coverage, in (0, 1).
        lowest: 0 for jaccards, -1 for differences of them.
    """
    mean = float(values.mean())
    interval: Interval | None = None
    if len(values) > 1:
        error = values.std(ddof=1) / np.sqrt(len(values))
        margin = float(t.ppf((1 + confidence) / 2, len(values) - 1) * error)
        interval = (max(mean - margin, lowest), min(mean + margin, 1.0))
    return Estimate(mean=mean, interval=interval, values=values.tolist())


def find_crossings(points: Sequence[Point]) -> list[Crossing]:
    """Where the mean difference changes its sign from one size to the next.

    A difference of exactly 0 has no sign, and is skipped.

    Args:
        points: By number of training images, ascending.
    """
    signed = [point for point in points if point.difference.mean]
    ends = [
        row
        for row in range(1, len(signed))
        if _sign(signed[row].difference.mean) != _sign(signed[row - 1].difference.mean)
    ]
    stretches = zip([0, *ends], ends, [*ends[1:], len(signed)], strict=False)
    return [_cross(signed[start:end], signed[end:stop]) for start, end, stop in stretches]


def _cross(before: Sequence[Point], after: Sequence[Point]) -> Crossing:
    """The crossing between two stretches of sizes; a different model is better in each."""
    low, high = before[-1], after[0]
    share = low.difference.mean / (low.difference.mean - high.difference.mean)
    sign = _sign(high.difference.mean)
    values = zip(low.difference.values, high.difference.values, strict=True)
    surely = [
        next((p.num_images for p in stretch if _is_sure(p)), None)
        for stretch in (before[::-1], after)
    ]
    return Crossing(
        between=(low.num_images, high.num_images),
        num_images=float(low.num_images * (high.num_images / low.num_images) ** share),
        better_after=FINETUNED if sign > 0 else FROZEN,
        num_seeds=sum(_sign(one) == -sign and _sign(other) == sign for one, other in values),
        surely_between=(surely[0], surely[1]) if surely[0] and surely[1] else None,
    )


def _is_sure(point: Point) -> bool:
    """Whether the interval of the difference excludes 0."""
    interval = point.difference.interval
    return interval is not None and (interval[0] > 0 or interval[1] < 0)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
