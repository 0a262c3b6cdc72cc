"""What the size of the network's masks leaves within reach: scores of masks made from the truth."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_erosion
from tqdm.contrib.concurrent import thread_map

from lesionseg.data.dataset import Split
from lesionseg.data.masks import read_mask
from lesionseg.evaluation.metrics import count_pixels, score_images
from lesionseg.inference.prediction import resize_probabilities


def score_limits(split: Split, *, mask_paths: Sequence[Path]) -> dict[str, float]:
    """Mean jaccard of three masks that know the truth, in [0, 1].

    Args:
        split: Truth at the network's size.
        mask_paths: The masks at own size, in the split's order.

    Returns:
        perfect_own_size: The truth at the network's size, brought to the image's own size as
            predictions are: no model of this size can be expected to score more there.
        pixel_larger: The truth with one pixel more all around, at the network's size.
        pixel_smaller: The same with one pixel less.
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
        *(score, split.masks, mask_paths),
        total=len(split.ids),
        desc="limits",
        unit="image",
        disable=None,
        leave=False,
    )
    names = ("perfect_own_size", "pixel_larger", "pixel_smaller")
    return dict(zip(names, np.mean(scores, axis=0).tolist(), strict=True))


def _jaccard(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    scores = score_images(count_pixels(prediction[None], truth[None]))
    return float(scores["jaccard"][0])
