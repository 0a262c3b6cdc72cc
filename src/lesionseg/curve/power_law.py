"""How errors shrink with labels, as a power law, and what it predicts for more labels.

Figueroa et al. 2012 (doi:10.1186/1472-6947-12-8) fit such laws to learning curves of classifiers,
with more weight on later points, as here.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar, nnls
from scipy.stats import t

from lesionseg.curve.record import FEWEST_SIZES, Guess, Law, Prediction
from lesionseg.results.layout import FINETUNED, FROZEN, RUNS

Numbers = NDArray[np.float64]
EXPONENTS = (0.01, 2.0)  # below, b * n^-c is almost constant; no learning curve is steeper
NUM_RESAMPLES = 1000
_LOWEST = (0, -1, 0, -1, -1)  # lower bounds of `_values`


@dataclass(frozen=True)
class PowerLaw:
    """error = a + b * num_images ** -c, with a and b of at least 0."""

    a: float
    b: float
    c: float

    def error(self, num_images: float) -> float:
        """1 - jaccard at a number of training images."""
        return float(self.a + self.b * num_images**-self.c)


def fit_power_law(sizes: Numbers, errors: Numbers) -> PowerLaw:
    """The law with the least squared error, the i-th of m sizes having weight i / m.

    For each exponent, non-negative least squares gives the best a and b, so only the exponent is
    searched for: this finds what a search for all three finds, in a tenth of the time.

    Args:
        sizes: (m,) numbers of training images, ascending.
        errors: (m,) mean errors, 1 - jaccard.
    """
    weights = np.sqrt(np.arange(1, len(sizes) + 1) / len(sizes))
    shares = sizes / sizes[-1]  # so that both columns have the same magnitude

    def solve(exponent: float) -> tuple[Numbers, float]:
        columns = np.stack([np.ones_like(shares), shares**-exponent], axis=1)
        found, residual = nnls(columns * weights[:, None], errors * weights)
        return found, float(residual)

    c = float(minimize_scalar(lambda c: solve(c)[1], bounds=EXPONENTS, method="bounded").x)
    (a, b), _ = solve(c)
    return PowerLaw(a=float(a), b=float(b * sizes[-1] ** c), c=c)


def make_guess(
    sizes: Numbers, jaccards: Mapping[str, Numbers], *, confidence: float
) -> Guess | None:
    """What twice the largest number of images may bring; None for fewer than three sizes.

    Args:
        sizes: (m,) numbers of training images, ascending.
        jaccards: (S, m) for each run: the jaccard of each seed at each size.
        confidence: Coverage of the intervals, in (0, 1).
    """
    if len(sizes) < FEWEST_SIZES:
        return None
    laws = _fit(sizes, jaccards)
    values, margins = _values(laws, sizes), _margins(sizes, jaccards, confidence=confidence)
    predictions = [
        Prediction(
            value=value,
            interval=(max(value - margin, low), min(value + margin, 1.0)) if margins else None,
        )
        for value, margin, low in zip(values, margins or values, _LOWEST, strict=True)
    ]
    frozen, finetuned = (
        Law(
            **asdict(laws[run]),
            jaccard=predictions[2 * row],
            gain=predictions[2 * row + 1],
            checked=_check(sizes, jaccards[run]),
        )
        for row, run in enumerate((FROZEN, FINETUNED))
    )
    return Guess(
        num_images=2 * int(sizes[-1]),
        train_frozen=frozen,
        train_finetuned=finetuned,
        difference=predictions[-1],
    )


def _fit(sizes: Numbers, jaccards: Mapping[str, Numbers]) -> dict[str, PowerLaw]:
    """A law of each run, fitted to its means over the seeds."""
    return {run: fit_power_law(sizes, 1 - jaccards[run].mean(axis=0)) for run in RUNS}


def _values(laws: Mapping[str, PowerLaw], sizes: Numbers) -> list[float]:
    """Jaccard and gain of both models at twice the largest size, then their difference there."""
    last, twice = sizes[-1], 2 * sizes[-1]
    frozen, finetuned = (
        [1 - laws[run].error(twice), laws[run].error(last) - laws[run].error(twice)]
        for run in (FROZEN, FINETUNED)
    )
    return [*frozen, *finetuned, finetuned[0] - frozen[0]]


def _margins(
    sizes: Numbers, jaccards: Mapping[str, Numbers], *, confidence: float
) -> list[float] | None:
    """Half the width of an interval for each of `_values`; None with one seed.

    Seeds are resampled, each with its whole curve of both models, and the laws are fitted again:
    their spread times sqrt(S / (S - 1)) is the standard error, and Student's t gives the interval.
    Plain percentiles of the resamples are too narrow for few seeds: in a simulation with five seeds
    they contained the truth in 72 to 88 % of the cases, these intervals in 95 to 97 %. That the law
    holds beyond the largest size is an assumption that no interval accounts for.
    """
    num_seeds = len(jaccards[FROZEN])
    if num_seeds < 2:
        return None
    draws = np.random.default_rng(0).integers(num_seeds, size=(NUM_RESAMPLES, num_seeds))
    resampled = [
        _values(_fit(sizes, {run: jaccards[run][seeds] for run in RUNS}), sizes) for seeds in draws
    ]
    errors = np.std(resampled, axis=0) * np.sqrt(num_seeds / (num_seeds - 1))
    return [float(t.ppf((1 + confidence) / 2, num_seeds - 1) * error) for error in errors]


def _check(sizes: Numbers, jaccards: Numbers) -> float | None:
    """The jaccard at the largest size, guessed from the smaller ones; None if they are too few."""
    if len(sizes) <= FEWEST_SIZES:
        return None
    law = fit_power_law(sizes[:-1], 1 - jaccards[:, :-1].mean(axis=0))
    return 1 - law.error(float(sizes[-1]))
