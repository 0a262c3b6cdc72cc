"""Whether probabilities are calibrated, and how scores depend on the threshold on them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lesionseg.metrics import count_pixels, score_images
from lesionseg.results.tables import Row

NUM_BINS = 15  # the usual number since Guo et al. 2017, arXiv:1706.04599
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))

Sums = NDArray[np.float64]


def sum_bins(probabilities: NDArray[np.float32], truth: NDArray[np.bool_]) -> Sums:
    """Pixels of one image by their probability, in `NUM_BINS` bins of equal width.

    Args:
        probabilities: (H, W) float32 in [0, 1].
        truth: (H, W) bool, True in the lesion.

    Returns:
        (NUM_BINS, 3) float64: pixels, sum of their probabilities, pixels that are lesion. The
        arrays of several images can be added.
    """
    bins = np.minimum((probabilities * NUM_BINS).astype(np.int64), NUM_BINS - 1).ravel()
    return np.stack(
        [
            np.bincount(bins, weights, minlength=NUM_BINS)
            for weights in (None, probabilities.ravel(), truth.ravel())
        ],
        axis=1,
    ).astype(np.float64)


def reliability(sums: Sums) -> list[Row]:
    """For each bin its pixels, their mean probability, and the share of them that is lesion.

    Returns:
        `probability_low`, `probability_high` (the bin), `num_pixels`, and `probability` and
        `lesion_fraction`, which are None if the bin is empty.
    """
    return [
        {
            "probability_low": number / NUM_BINS,
            "probability_high": (number + 1) / NUM_BINS,
            "num_pixels": int(num_pixels),
            "probability": total / num_pixels if num_pixels else None,
            "lesion_fraction": num_lesion / num_pixels if num_pixels else None,
        }
        for number, (num_pixels, total, num_lesion) in enumerate(sums.tolist())
    ]


def expected_calibration_error(sums: Sums) -> float:
    """Mean difference between the probability in a bin and the share of lesion there.

    In [0, 1]; 0 is perfect. Over the pixels of all images together, weighted by each bin's pixels
    (Naeini et al. 2015, doi:10.1609/aaai.v29i1.9602), for the probability of lesion.
    """
    num_pixels, total, num_lesion = sums.T
    return float(np.abs(total - num_lesion).sum() / num_pixels.sum())


def score_thresholds(
    probabilities: Sequence[NDArray[np.float32]], truths: NDArray[np.bool_]
) -> list[Row]:
    """The mean jaccard and dice over images at each of `THRESHOLDS`.

    Args:
        probabilities: N arrays (H, W) float32 in [0, 1].
        truths: (N, H, W) bool.
    """
    rows: list[Row] = []
    for threshold in THRESHOLDS:
        predictions = np.stack([image > threshold for image in probabilities])
        scores = score_images(count_pixels(predictions, truths))
        means = {metric: float(scores[metric].mean()) for metric in ("jaccard", "dice")}
        rows.append({"threshold": threshold, **means})
    return rows
