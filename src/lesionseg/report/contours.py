"""Outlines of masks as polygons: pure geometry, no drawing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import find_contours

Points = NDArray[np.float64]


def find_outlines(mask: NDArray[Any], *, tolerance: float) -> list[Points]:
    """The outlines of a mask and of its holes; an empty mask has none.

    Coordinates are those of an SVG: pixel (0, 0) covers [0, 1) x [0, 1), so the outline of a mask
    that fills the image runs along the image's edge.

    Args:
        mask: (H, W) in [0, 1]; the outline is where it crosses 0.5.
        tolerance: How far in pixels the polygon may be from the outline.

    Returns:
        For each outline (N, 2) float64: row and column of its corners in pixels, the first one
        again at the end.
    """
    padded = np.pad(mask.astype(float), 1)  # closes the outline of a lesion at the border
    return [simplify(contour, tolerance=tolerance) - 0.5 for contour in find_contours(padded, 0.5)]


def simplify(points: Points, *, tolerance: float) -> Points:
    """The corners of a line without those that hardly bend it (Douglas & Peucker 1973).

    Between two corners that are kept, the point farthest from their connection is kept too if it is
    farther than the tolerance. All connections are looked at in one go, which takes a tenth of the
    time of `skimage.measure.approximate_polygon`: a bad model's masks have thousands of corners.

    Args:
        points: (N, 2) float64, N at least 2.
        tolerance: In the units of the points.

    Returns:
        (M, 2) float64, the first and the last point among them.
    """
    is_kept = np.zeros(len(points), np.bool_)
    is_kept[[0, -1]] = True
    while True:
        ends = np.flatnonzero(is_kept)
        part = np.searchsorted(ends[1:-1], np.arange(len(points)), side="right")
        distances = _distances(points, points[ends[part]], points[ends[part + 1]])
        largest = np.maximum.reduceat(distances, ends[:-1])[part]
        farthest = np.flatnonzero((distances == largest) & (largest > tolerance))
        if len(farthest) == 0:
            return points[is_kept]
        _, first = np.unique(part[farthest], return_index=True)
        is_kept[farthest[first]] = True


def _distances(points: Points, starts: Points, stops: Points) -> NDArray[np.float64]:
    """Distance (N,) of each point from the straight line between its start and its stop."""
    along, offset = stops - starts, points - starts
    squared = (along**2).sum(axis=1)
    share = (along * offset).sum(axis=1) / np.where(squared > 0, squared, 1)
    nearest = np.clip(share, 0, 1)[:, None] * along
    distances: NDArray[np.float64] = np.hypot(*(offset - nearest).T)
    return distances


def svg_path(outlines: Sequence[Points]) -> str:
    """The outlines as the `d` of an SVG path, in tenths of a pixel; empty without outlines."""
    return "".join(
        "M" + "L".join(f"{column:.1f} {row:.1f}" for row, column in outline[:-1]) + "Z"
        for outline in outlines
    ).replace(".0", "")
