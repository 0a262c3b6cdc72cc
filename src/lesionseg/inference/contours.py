"""The regions of a mask as files for other programs: GeoJSON and CSV.

Coordinates are those of the rings: (x, y) in pixels from the image's upper left corner, y pointing
down.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from lesionseg.outlines import Region

CSV_COLUMNS = ("region", "ring", "x", "y")


def to_geojson(regions: Sequence[Region], *, name: str, size: tuple[int, int]) -> bytes:
    """A GeoJSON FeatureCollection (RFC 7946, except that coordinates are pixels, not degrees).

    Args:
        regions: Each becomes a feature with a polygon.
        name: Name of the image's file.
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
