"""Images that two splits or sources share: the same file, nearly the same pixels, or their id."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

THUMBNAIL_SIZE = 16
THUMBNAIL_VALUES = 3 * THUMBNAIL_SIZE**2
# ISIC's archive gave each image its id.
SOURCES_WITH_UNIQUE_IDS = ("isic2016", "isic2017", "isic2018", "ham10000")
CHUNK = 256  # images of one split that are compared at once with as many of the other


@dataclass(frozen=True, kw_only=True)
class Fingerprints:
    """What identifies the images of a split, in the order of `ids`.

    `archive_ids` are ids that an archive such as ISIC's gave the images: the same id is the same
    image everywhere. It is "" where an id proves nothing, as cameras and exports each count from 1.
    `sha256` is of the files; `thumbnails` is (M, F) float32 in [0, 255] with a row for every image
    of the data, and may be memory-mapped; `members` are the rows of this split.
    """

    split: str
    ids: Sequence[str]
    archive_ids: Sequence[str]
    sha256: Sequence[str]
    thumbnails: NDArray[np.float32]
    members: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Leak:
    """An image that is in two splits or sources, and what was done about it.

    `kind` is the first that applies: `id` (same id in an archive), `sha256` (same file) or `near`
    (nearly the same pixels). `distance` is the mean absolute difference of the thumbnails in grey
    levels.
    """

    id: str
    split: str
    other_id: str
    other_split: str
    kind: str
    distance: float
    action: str


def thumbnails(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Each image's mean colours in 16 x 16 equal cells, in grey levels.

    Args:
        images: (N, H, W, 3) uint8 in [0, 255], H and W multiples of 16.

    Returns:
        (N, 16 * 16 * 3) float32 in [0, 255].
    """
    num, height, width, _ = images.shape
    cell = (height // THUMBNAIL_SIZE, width // THUMBNAIL_SIZE)
    cells = images.reshape(num, THUMBNAIL_SIZE, cell[0], THUMBNAIL_SIZE, cell[1], 3)
    colours: NDArray[np.float32] = cells.mean(axis=(2, 4), dtype=np.float32)
    return colours.reshape(num, THUMBNAIL_VALUES)


def find_duplicates(
    dropped: Fingerprints, kept: Fingerprints, *, near_duplicate_distance: float
) -> list[Leak]:
    """Every pair of an image of `dropped` and the same image in `kept`, in the order of their ids.

    Two images are nearly the same if their distance is below `near_duplicate_distance`. On ISIC
    2016 the closest two different images are 5.1 apart. Saving an image again as JPEG moves it by
    0.1 (quality 90) to 2.2 (quality 20), halving its size by 0.2, a 1 % crop by 1. Crops above 2 %
    and flips are farther apart than some different images: no distance finds those.

    Subtracting each image's mean colour first would also find brighter and darker copies (5 % is a
    distance of 7, then of 1), but brings different images down to 3.4, below that of such copies.
    """
    sha256, ids = np.array(kept.sha256, np.str_), np.array(kept.archive_ids, np.str_)
    leaks = []
    for row, distances in enumerate(_distances(dropped, kept)):
        same_id = (ids == dropped.archive_ids[row]) & (ids != "")
        same_file = sha256 == dropped.sha256[row]
        is_near = distances < near_duplicate_distance
        for other in np.flatnonzero(same_id | same_file | is_near).tolist():
            kind = "id" if same_id[other] else "sha256" if same_file[other] else "near"
            leaks.append(
                Leak(
                    id=dropped.ids[row],
                    split=dropped.split,
                    other_id=kept.ids[other],
                    other_split=kept.split,
                    kind=kind,
                    distance=float(distances[other]),
                    action=f"dropped from {dropped.split}",
                )
            )
    return leaks


def _distances(first: Fingerprints, second: Fingerprints) -> Iterator[NDArray[np.float64]]:
    """For each image of `first`, its mean absolute differences to those of `second`, (N,)."""
    for some in _chunks(first.members):
        blocks = [
            cdist(first.thumbnails[some], second.thumbnails[others], "cityblock")
            for others in _chunks(second.members)
        ]
        yield from np.hstack(blocks) / first.thumbnails.shape[1]


def _chunks(members: Sequence[int]) -> list[Sequence[int]]:
    """The members in their order, CHUNK at a time; one empty chunk if there are none."""
    return [members[start : start + CHUNK] for start in range(0, len(members) or 1, CHUNK)]
