"""Outlines of masks, traced in the same way for every picture and file that shows them.

Coordinates are pixels from the image's upper left corner; pixel (0, 0) covers [0, 1) x [0, 1), so
that the outline of a mask that fills the image runs along the image's edge.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label
from skimage.measure import find_contours

COLOR = "#56b4e9"  # of a predicted outline, bright on skin; Okabe and Ito (2008)
CASING = "#000000"  # of the rim around an outline, visible on any skin

Points = NDArray[np.float64]
Ring = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Region:
    """A 4-connected piece of a mask, along the edges of its pixels.

    Attributes:
        area: Its number of pixels.
        rings: (N, 2) int64 each, x and y of its corners, the first one repeated at the end. The
            first ring is its outline, with a positive area by the shoelace formula; the others are
            its holes, with a negative one.
    """

    area: int
    rings: tuple[Ring, ...]


def find_outlines(mask: NDArray[Any], *, tolerance: float) -> list[Points]:
    """The smooth outlines of a mask and of its holes; an empty mask has none.

    Args:
        mask: (H, W) in [0, 1]; the outline is where it crosses 0.5.
        tolerance: How far in pixels the polygon may be from the outline.

    Returns:
        For each outline (N, 2) float64: row and column of its corners in pixels, the first one
        repeated at the end.
    """
    return [simplify(line, tolerance=tolerance) + 0.5 for line in _trace(mask)]


def count_regions(mask: NDArray[np.bool_]) -> int:
    """The number of regions of a mask (H, W) bool."""
    if not mask.any():
        return 0
    return int(label(_crop(mask)[0])[1])


def find_regions(mask: NDArray[np.bool_]) -> list[Region]:
    """The regions of a mask (H, W) bool, the largest first; an empty mask has none.

    A region's polygon has exactly the area of its pixels.
    """
    if not mask.any():
        return []
    cropped, corner = _crop(mask)
    labels = np.pad(label(cropped)[0], 1)
    rings: dict[int, list[Ring]] = {}
    for line in _trace(cropped):
        # A point of the line lies between a pixel of its region and one outside every region.
        between = line[0] + 1
        sides = (tuple(np.floor(between).astype(int)), tuple(np.ceil(between).astype(int)))
        number = max(int(labels[side]) for side in sides)
        rings.setdefault(number, []).extend(_split(_corners(line)[:, ::-1] + corner))
    areas = np.bincount(labels.ravel())
    regions = [
        Region(area=int(areas[number]), rings=tuple(sorted(found, key=signed_area, reverse=True)))
        for number, found in sorted(rings.items())
    ]
    return sorted(regions, key=lambda region: -region.area)


def signed_area(ring: Ring) -> float:
    """The area inside a closed ring in pixels by the shoelace formula, negative for a hole."""
    x, y = ring.T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def simplify(points: Points, *, tolerance: float) -> Points:
    """The corners of a line without those that hardly bend it (Douglas & Peucker 1973).

    Between two kept corners, the point farthest from the segment that joins them is kept too if it
    is farther than the tolerance. All segments are processed at once, in a tenth of the time of
    `skimage.measure.approximate_polygon`: a bad model's masks have thousands of corners.

    Args:
        points: (N, 2) float64, N at least 2.
        tolerance: In the units of the points.

    Returns:
        (M, 2) float64, including the first and the last point.
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
    """Distance (N,) of each point from the segment between its start and its stop."""
    along, offset = stops - starts, points - starts
    squared = (along**2).sum(axis=1)
    share = (along * offset).sum(axis=1) / np.where(squared > 0, squared, 1)
    nearest = np.clip(share, 0, 1)[:, None] * along
    distances: NDArray[np.float64] = np.hypot(*(offset - nearest).T)
    return distances


def _trace(mask: NDArray[Any]) -> list[Points]:
    """The closed lines on which a mask (H, W) crosses 0.5, along the image's border as well.

    Returns:
        (N, 2) float64 each, row and column, where (0, 0) is the centre of pixel (0, 0).
    """
    padded = np.pad(mask, 1)  # closes the outline of a lesion at the border
    return [contour - 1 for contour in find_contours(padded, 0.5)]


def _crop(mask: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """The bounding box of a mask's pixels, cropped, and the (x, y) of its upper left corner."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    cropped = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return cropped, np.array([columns[0], rows[0]])


def _corners(line: NDArray[np.float64]) -> NDArray[np.int64]:
    """The corners (N, 2) of the pixel edges whose midpoints are the points of a closed line.

    Args:
        line: (M, 2) row and column; one of the two is a whole number, the other lies between two
            pixels, where the edge runs. Pixel (0, 0) is centred on (0, 0); in the result it starts
            there.
    """
    this, following = line[:-1], line[1:]
    # Two collinear edges meet halfway between their midpoints. Two edges at a right angle meet
    # where each gives the coordinate that is constant along it.
    corners = (this + following) / 2
    for points in (this, following):
        fixed = points % 1 != 0
        corners[fixed] = points[fixed]
    steps = np.diff(corners, axis=0, append=corners[:1])
    turns = (steps != np.roll(steps, 1, axis=0)).any(axis=1)
    whole: NDArray[np.int64] = (corners[turns] + 0.5).astype(np.int64)
    return whole


def _split(ring: Ring) -> list[Ring]:
    """A ring split into closed rings that pass no corner twice, where pixels touch diagonally."""
    loops = []
    path: list[tuple[int, int]] = []
    position: dict[tuple[int, int], int] = {}
    for x, y in ring.tolist():
        if (x, y) in position:
            start = position[x, y]
            loops.append(path[start:])
            for passed in path[start + 1 :]:
                del position[passed]
            del path[start + 1 :]
        else:
            position[x, y] = len(path)
            path.append((x, y))
    return [np.array([*loop, loop[0]]) for loop in (path, *loops)]
