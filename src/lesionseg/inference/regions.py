"""The regions of a mask as polygons along the edges of its pixels.

Coordinates are (x, y) in pixels from the image's upper left corner, y pointing down: pixel (0, 0)
covers [0, 1) x [0, 1). A polygon's area is its region's number of pixels, exactly.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import find_contours, label

Ring = NDArray[np.int64]
CSV_COLUMNS = ("region", "ring", "x", "y")


@dataclass(frozen=True, kw_only=True)
class Region:
    """A piece of a mask whose pixels hang together by their sides.

    Attributes:
        area: Its pixels.
        rings: (N, 2) int64 each, x and y of its corners, the first one again at the end. The first
            ring is its outline, with a positive area by the shoelace formula; the others are its
            holes, with a negative one.
    """

    area: int
    rings: tuple[Ring, ...]


def count_regions(mask: NDArray[np.bool_]) -> int:
    """The number of regions of a mask (H, W) bool."""
    if not mask.any():
        return 0
    return int(label(_crop(mask)[0], connectivity=1).max())


def find_regions(mask: NDArray[np.bool_]) -> list[Region]:
    """The regions of a mask (H, W) bool, the largest first; an empty mask has none."""
    if not mask.any():
        return []
    cropped, corner = _crop(mask)
    padded = np.pad(cropped, 1)  # closes the outline of a region at the border
    labels = label(padded, connectivity=1)
    rings: dict[int, list[Ring]] = {}
    for contour in find_contours(padded.astype(np.float32), 0.5):
        # A contour's point lies between a pixel of its region and one of none.
        between = contour[0]
        sides = (tuple(np.floor(between).astype(int)), tuple(np.ceil(between).astype(int)))
        number = max(int(labels[side]) for side in sides)
        ring = _corners(contour)[:, ::-1] + corner - 1
        rings.setdefault(number, []).extend(_split(ring))
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


def to_geojson(regions: Sequence[Region], *, name: str, size: tuple[int, int]) -> bytes:
    """A GeoJSON FeatureCollection (RFC 7946, but for coordinates in pixels, not in degrees).

    Args:
        regions: Each becomes a feature with a polygon.
        name: Of the image's file.
        size: (H, W) of the image in pixels.
    """
    height, width = size
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [ring.tolist() for ring in region.rings],
            },
            "properties": {
                "file": name,
                "height": height,
                "width": width,
                "region": number,
                "area": region.area,
            },
        }
        for number, region in enumerate(regions, 1)
    ]
    collection: dict[str, Any] = {"type": "FeatureCollection", "features": features}
    return (json.dumps(collection, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


def to_csv(regions: Iterable[Region]) -> bytes:
    """A row for each corner: number of the region, of its ring (0 is the outline), x and y."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for number, region in enumerate(regions, 1):
        for index, ring in enumerate(region.rings):
            writer.writerows((number, index, x, y) for x, y in ring.tolist())
    return stream.getvalue().encode()


def _crop(mask: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """The part of a mask that holds all its pixels, and (x, y) of that part's corner."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    cropped = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return cropped, np.array([columns[0], rows[0]])


def _corners(contour: NDArray[np.float64]) -> NDArray[np.int64]:
    """The corners (N, 2) of the pixel edges whose middles are the points of a closed contour.

    Args:
        contour: (M, 2) row and column; one of the two is whole, the other is between two pixels,
            where the edge runs. Pixel (0, 0) is around (0, 0); in the result it starts there.
    """
    this, following = contour[:-1], contour[1:]
    # Two edges in a line meet halfway between their middles. Of two at a right angle, each tells
    # the coordinate that does not change along it.
    corners = (this + following) / 2
    for points in (this, following):
        fixed = points % 1 != 0
        corners[fixed] = points[fixed]
    steps = np.diff(corners, axis=0, append=corners[:1])
    turns = (steps != np.roll(steps, 1, axis=0)).any(axis=1)
    whole: NDArray[np.int64] = (corners[turns] + 0.5).astype(np.int64)
    return whole


def _split(ring: Ring) -> list[Ring]:
    """A ring as closed rings that pass no corner twice, where pixels touch by their corners."""
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
