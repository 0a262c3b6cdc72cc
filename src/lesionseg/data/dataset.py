"""The processed splits as memory-mapped arrays."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lesionseg.errors import DataError
from lesionseg.files import require

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split, sorted by id; its arrays are read from disk when touched.

    `images` is (N, H, W, 3) uint8 RGB in [0, 255], `masks` is (N, H, W) uint8 in {0, 1}.
    """

    name: str
    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    ids: tuple[str, ...]


def load_split(processed_dir: Path, name: str) -> Split:
    """The split `name` of `SPLITS`, as `preprocess` has written it.

    Raises:
        MissingFileError: One of its files is not there.
        DataError: One of them is damaged, or they disagree on the number of images.
    """
    split_dir = processed_dir / name
    images = _load(split_dir / "images.npy")
    masks = _load(split_dir / "masks.npy")
    index_path = require(split_dir / "index.csv", stage="preprocess")
    with index_path.open(newline="", encoding="utf-8") as stream:
        ids = tuple(row["id"] for row in csv.DictReader(stream))
    if not len(images) == len(masks) == len(ids):
        raise DataError(
            f"{split_dir} has {len(images)} images, {len(masks)} masks and {len(ids)} ids. "
            "Run: dvc repro -f preprocess"
        )
    return Split(name=name, images=images, masks=masks, ids=ids)


def _load(path: Path) -> NDArray[np.uint8]:
    require(path, stage="preprocess")
    try:
        array: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise DataError(
            f"{path} is no NumPy array ({error}). Run: dvc repro -f preprocess"
        ) from error
    return array
