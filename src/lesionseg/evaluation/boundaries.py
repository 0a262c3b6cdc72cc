"""How far apart the outlines of two masks are, in percent of the image's diagonal.

Overlap scores are insensitive to the outline of a large lesion; distances between outlines are not
(Metrics Reloaded, Maier-Hein et al. 2024, doi:10.1038/s41592-023-02151-z). In percent of the
diagonal they mean the same for images of any size. Each image is scored on its own, at the size
given.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy.spatial import KDTree

Mask = npt.NDArray[np.bool_]
Distances = npt.NDArray[np.float64]


def boundary_pixels(mask: Mask) -> npt.NDArray[np.int64]:
    """Row and column of each mask pixel with a 4-neighbour outside the mask or the image.

    Args:
        mask: (H, W) bool.

    Returns:
        (N, 2) int64 in pixels, row by row.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if len(rows) == 0:
        return np.empty((0, 2), dtype=np.int64)
    top, bottom = rows[0], rows[-1] + 1
    columns = np.flatnonzero(mask[top:bottom].any(axis=0))
    left, right = columns[0], columns[-1] + 1
    cropped = mask[top:bottom, left:right]
    # Whatever touches the crop's edge is boundary: there is no mask, or no image, beyond it.
    boundary = cropped.copy()
    boundary[1:-1, 1:-1] &= ~(
        cropped[:-2, 1:-1] & cropped[2:, 1:-1] & cropped[1:-1, :-2] & cropped[1:-1, 2:]
    )
    pixels: npt.NDArray[np.int64] = np.argwhere(boundary) + np.array([top, left])
    return pixels


def boundary_scores(prediction: Mask, truth: Mask, *, tolerance: float) -> dict[str, float]:
    """How well the boundaries of two masks agree; symmetric in the two masks.

    `hd95` is the larger of the two directed 95th percentiles of the distances from one boundary's
    pixels to the nearest pixel of the other, interpolated between ranks (the ranked Hausdorff
    distance of Huttenlocher et al. 1993, doi:10.1109/34.232073). It lies in [0, 100], in percent of
    the diagonal; lower is better. Both masks empty: 0. One of them empty: 100.

    `nsd`, the normalised surface distance (Nikolov et al. 2018, arXiv:1809.04430), is the share of
    both boundaries' pixels no farther than the tolerance from the other boundary, in [0, 1]. Both
    masks empty: 1. One of them empty: 0. Each pixel counts equally, whether its edge is straight or
    slanted.

    Args:
        prediction: (H, W) bool, True where lesion is predicted.
        truth: (H, W) bool, True in the lesion.
        tolerance: In percent of the image's diagonal, at least 0.

    Returns:
        `hd95` and `nsd`. Distances are between pixel centres; the diagonal is hypot(H, W) pixels.
    """
    predicted, true = boundary_pixels(prediction), boundary_pixels(truth)
    if len(predicted) == 0 or len(true) == 0:
        agree = len(predicted) == len(true)
        return {"hd95": 0.0 if agree else 100.0, "nsd": 1.0 if agree else 0.0}
    diagonal = math.hypot(*truth.shape)
    # Scaled before they are compared with the tolerance, so that 3 of 300 pixels are exactly 1.
    directed = [100 * pixels / diagonal for pixels in _directed_distances(predicted, true)]
    within = np.concatenate(directed) <= tolerance
    return {
        "hd95": float(max(np.percentile(distances, 95) for distances in directed)),
        "nsd": float(within.mean()),
    }


def _directed_distances(
    first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]
) -> tuple[Distances, Distances]:
    """From each point to the nearest of the other set, in pixels, for both sets of points."""
    # A distance transform of the image takes 10 times as long: few of its pixels are boundary.
    to_second, _ = _grow_tree(second).query(first)
    to_first, _ = _grow_tree(first).query(second)
    return to_second, to_first


def _grow_tree(points: npt.NDArray[np.int64]) -> KDTree:
    # Large leaves and no balancing: for ragged outlines on a grid, a third of the time.
    return KDTree(points, leafsize=64, compact_nodes=False, balanced_tree=False)
