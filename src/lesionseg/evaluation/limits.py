"""Upper limits due to the size of the network's masks: scores of masks made from the truth."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_erosion
from tqdm.contrib.concurrent import thread_map

from lesionseg.data.dataset import Split
from lesionseg.data.masks import read_mask
from lesionseg.inference.prediction import resize_probabilities
from lesionseg.metrics import count_pixels, score_images
from lesionseg.results.evaluation import Limits


def score_limits(split: Split, *, mask_paths: Sequence[Path]) -> Limits:
    """Mean jaccard of three masks made from the truth, in [0, 1].

    Args:
        split: The truth at the network's size.
        mask_paths: The masks at their own size, in the split's order.
    """

    def score(truth: NDArray[np.uint8], mask_path: Path) -> list[float]:
        lesion, own_truth = truth > 0, read_mask(mask_path) > 0
        enlarged = resize_probabilities(lesion.astype(np.float32), own_truth.shape) > 0.5
        return [
            _jaccard(enlarged, own_truth),
            _jaccard(binary_dilation(lesion), lesion),
            _jaccard(binary_erosion(lesion, border_value=1), lesion),
        ]

    scores = thread_map(
        score,
        split.masks,
        mask_paths,
        total=len(split.ids),
        desc="limits",
        unit="image",
        disable=None,
        leave=False,
    )
    own_size, larger, smaller = np.mean(scores, axis=0).tolist()
    return Limits(perfect_own_size=own_size, pixel_larger=larger, pixel_smaller=smaller)


def _jaccard(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    scores = score_images(count_pixels(prediction[None], truth[None]))
    return float(scores["jaccard"][0])
