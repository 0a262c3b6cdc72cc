"""Pixel counts of each image, then scores of each image, then their mean: the challenge's way.

Never the other way round: pooling pixels over images, or averaging over image columns or batches,
gives different and mostly flattering numbers; pooled scores are called `pooled_*`. A score whose
denominator is 0 (nothing to find, or nothing predicted, and rightly so) is 1.0, as in the official
scorer.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

COUNTS = ("tp", "fp", "fn", "tn")
# The 2018 challenge scores a jaccard below this as 0 (Codella et al. 2019, arXiv:1902.03368).
JACCARD_THRESHOLD = 0.65

Counts = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]


def count_pixels(predictions: npt.NDArray[np.bool_], truths: npt.NDArray[np.bool_]) -> Counts:
    """Pixels of each image that are true or false positives or negatives.

    Args:
        predictions: (N, ...) bool, True where lesion is predicted.
        truths: The same shape, True in the lesion.

    Returns:
        (N, 4) int64: tp, fp, fn, tn.
    """
    axes = tuple(range(1, predictions.ndim))
    tp = np.count_nonzero(predictions & truths, axis=axes)
    num_predicted = np.count_nonzero(predictions, axis=axes)
    num_lesion = np.count_nonzero(truths, axis=axes)
    num_pixels = np.full_like(tp, predictions[0].size if len(predictions) else 0)
    fp, fn = num_predicted - tp, num_lesion - tp
    return np.stack([tp, fp, fn, num_pixels - tp - fp - fn], axis=-1).astype(np.int64)


def score_images(counts: Counts) -> dict[str, Scores]:
    """Scores of each image, (N,) float64 in [0, 1] by name.

    Args:
        counts: (N, 4): tp, fp, fn, tn.
    """
    tp, fp, fn, tn = counts.T
    jaccard = _ratio(tp, tp + fp + fn)
    return {
        "jaccard": jaccard,
        "dice": _ratio(2 * tp, 2 * tp + fp + fn),
        "threshold_jaccard": np.where(jaccard >= JACCARD_THRESHOLD, jaccard, 0.0),
        "accuracy": _ratio(tp + tn, tp + fp + fn + tn),
        "sensitivity": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
    }


def mean_scores(scores: Mapping[str, Scores]) -> dict[str, float]:
    """The mean over images of each score."""
    return {name: float(values.mean()) for name, values in scores.items()}


def pool_scores(counts: Counts) -> dict[str, float]:
    """Scores of the pixel counts added up over all images: `pooled_jaccard` and so on.

    A large lesion, or a large image, weighs more than a small one: not the challenge's numbers.
    """
    scores = score_images(counts.sum(axis=0, keepdims=True))
    del scores["threshold_jaccard"]  # a rule for single images
    return {f"pooled_{name}": float(values[0]) for name, values in scores.items()}


def failure_rate(jaccard: Scores) -> float:
    """The share of images whose jaccard is below 0.65, which the challenge counts as failed."""
    return float(np.mean(jaccard < JACCARD_THRESHOLD))


def _ratio(numerator: Counts, denominator: Counts) -> Scores:
    ones = np.ones(numerator.shape, dtype=np.float64)
    return np.divide(numerator, denominator, out=ones, where=denominator > 0)
