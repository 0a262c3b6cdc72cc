"""The processed splits as memory-mapped arrays, and the parts of them that trainings use."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from lesionseg.data.groups import gather, in_order
from lesionseg.errors import ConfigError, DataError, rerun
from lesionseg.files import require

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split, sorted by id; its arrays are read from disk when accessed.

    `images` is (N, H, W, 3) uint8 RGB in [0, 255], `masks` is (N, H, W) uint8 in {0, 1}. `groups`
    and `folds` are the user's own, one for each image, "" meaning none; or they are empty tuples.
    """

    name: str
    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    ids: tuple[str, ...]
    groups: tuple[str, ...] = ()
    folds: tuple[str, ...] = ()

    @property
    def image_size(self) -> int:
        """Height and width of each image in pixels."""
        return int(self.masks.shape[1])

    @property
    def images_per_epoch(self) -> int:
        """How many an epoch shows: each once."""
        return len(self.ids)

    def load(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Images and masks at some rows, in that order, in memory."""
        return self.images[rows], self.masks[rows]

    def first(self, num: int) -> "Split":
        """The first `num` images, memory-mapped where the split is."""
        columns = {name: getattr(self, name)[:num] for name in ("ids", "groups", "folds")}
        return replace(self, images=self.images[:num], masks=self.masks[:num], **columns)


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Images of one or more splits, sorted by id; read from these splits when they are loaded.

    `members` has the split of each image and the row in it. Nothing is copied, so folds take no
    memory or disk space of their own. An epoch shows `images_per_epoch` images; if there are fewer,
    some or all of them are shown several times.
    """

    name: str
    members: tuple[tuple[Split, int], ...]
    images_per_epoch: int

    @property
    def ids(self) -> tuple[str, ...]:
        """The id of each image."""
        return tuple(split.ids[row] for split, row in self.members)

    @property
    def image_size(self) -> int:
        """Height and width of each image in pixels."""
        return self.members[0][0].image_size

    def load(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Images and masks at some rows, in that order, in memory."""
        chosen = [self.members[row] for row in rows]
        return (
            np.stack([split.images[row] for split, row in chosen]),
            np.stack([split.masks[row] for split, row in chosen]),
        )


def load_split(processed_dir: Path, name: str) -> Split:
    """The split `name`, one of `SPLITS`, as written by `preprocess`.

    Raises:
        MissingFileError: One of its files is missing.
        DataError: One of them is damaged, or they do not belong together.
    """
    split_dir = processed_dir / name
    images = _load(split_dir / "images.npy", num_axes=4)
    masks = _load(split_dir / "masks.npy", num_axes=3)
    index = _read_index(split_dir / "index.csv")
    ids = index["ids"]
    if not len(images) == len(masks) == len(ids) > 0:
        raise _unfit(
            split_dir,
            f"has {len(images)} images, {len(masks)} masks and {len(ids)} ids in index.csv",
        )
    num, size, _ = masks.shape
    if images.shape != (num, size, size, 3) or masks.shape != (num, size, size):
        raise _unfit(
            split_dir,
            "must have images (N, H, H, 3) and masks (N, H, H) of one size, got "
            f"{images.shape} and {masks.shape}",
        )
    if (highest := masks.max()) > 1:
        raise _unfit(split_dir / "masks.npy", f"must hold 0 and 1 only, got {highest}")
    return Split(name=name, images=images, masks=masks, **index)


def split_fold(
    train: Split, val: Split, *, fold: int, num_folds: int, seed: int
) -> tuple[Split | Fold, Split | Fold]:
    """What one fold of a k-fold cross-validation trains on, and what it validates on.

    Fold 0 has the two splits as they are. If images of `train` have folds of their own, fold n
    validates on the n-th of these. Else the groups of `train` are shuffled and collected, each one
    whole, into chunks of at least as many images as `val`; fold n validates on the n-th chunk.
    What is left over at the end is a smaller chunk if it has at least half as many images, so that
    rounding costs no fold; if it has fewer, no fold validates on it. A fold trains on all other
    images, including `val`.

    Args:
        train: The split whose images the further folds validate on.
        val: The split that fold 0 validates on.
        fold: Index of the fold, in [0, num_folds).
        num_folds: Number of folds, at least 1.
        seed: Seed of the shuffling; the same for all folds.

    Raises:
        ConfigError: There are fewer chunks than `num_folds` needs.
    """
    num_train, num_val = len(train.ids), len(val.ids)
    chunks = _cut_chunks(train, num_images=num_val, seed=seed)
    if num_folds > len(chunks) + 1:
        own = any(train.folds)
        parts = "have" if own else "make"
        size = "folds beside val's" if own else f"parts as large as val ({num_val} images)"
        remedy = "" if own else ", or a smaller preprocess.val_fraction"
        raise ConfigError(
            f"params.yaml: train: num_seeds is {num_folds}, and cross_validate is true: the "
            f"{num_train} images of train {parts} {len(chunks)} {size}. "
            f"Write num_seeds of at most {len(chunks) + 1}{remedy}"
        )
    if fold == 0:
        return train, val
    held_out = set(chunks[fold - 1])
    rest = [(train, row) for row in range(num_train) if row not in held_out]
    return (
        _gather("train", [*rest, *((val, row) for row in range(num_val))]),
        _gather("val", ((train, row) for row in held_out)),
    )


def draw_subset(train: Split, *, num_images: int, seed: int) -> Fold:
    """Some images of a split: the first ones of a random order, then sorted by id.

    So with one seed, fewer images are a subset of more. Images are drawn singly: part of a group
    may be drawn. An epoch shows as many images as one of the whole split, and so has as many steps.

    Args:
        train: The split to draw from.
        num_images: How many, at least 1.
        seed: Seed of the order.

    Raises:
        ConfigError: The split has fewer.
    """
    num_train = len(train.ids)
    if num_images > num_train:
        raise ConfigError(
            f"params.yaml: train: num_images is {num_images}, and the training split has "
            f"{num_train} images. Write at most {num_train}, or 0 for all"
        )
    order = np.random.default_rng(seed).permutation(num_train)
    subset = _gather("train", ((train, row) for row in order[:num_images].tolist()))
    return replace(subset, images_per_epoch=num_train)


def _cut_chunks(train: Split, *, num_images: int, seed: int) -> list[list[int]]:
    """The rows of `train` that further folds validate on."""
    if any(train.folds):
        return [
            [row for row, fold in enumerate(train.folds) if fold == name]
            for name in in_order(train.folds)
        ]
    groups = gather(train.groups or [""] * len(train.ids))
    chunks: list[list[int]] = [[]]
    for number in np.random.default_rng(seed).permutation(len(groups)).tolist():
        if len(chunks[-1]) >= num_images:
            chunks.append([])
        chunks[-1] += groups[number]
    return [chunk for chunk in chunks if 2 * len(chunk) >= num_images]


def _gather(name: str, members: Iterable[tuple[Split, int]]) -> Fold:
    """A fold of these images, sorted by id."""
    ordered = sorted(members, key=lambda member: member[0].ids[member[1]])
    return Fold(name=name, members=tuple(ordered), images_per_epoch=len(ordered))


def _load(path: Path, *, num_axes: int) -> NDArray[np.uint8]:
    """A memory-mapped array."""
    require(path, stage="preprocess")
    try:
        array: NDArray[np.uint8] = open_memmap(path, mode="r")
    except Exception as error:  # a damaged header leads NumPy's reader into errors of any kind
        reason = " ".join(str(error).split())
        raise _unfit(path, f"is no NumPy array ({reason})") from error
    if array.dtype != np.uint8 or array.ndim != num_axes:
        got = f"{array.dtype} with {array.ndim}"
        raise _unfit(path, f"must be an array of uint8 with {num_axes} axes, got {got}")
    return array


def _read_index(path: Path) -> dict[str, tuple[str, ...]]:
    """The ids in a table of images, unique and sorted, and its groups and folds if it has them."""
    require(path, stage="preprocess")
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream, strict=True))
            ids = tuple(row["id"] or "" for row in rows)
    except (KeyError, ValueError, OSError, csv.Error) as error:
        raise _unfit(path, f"is no table of images ({error})") from error
    if list(ids) != sorted(set(ids)):
        raise _unfit(path, "must name each image once, in the order of the ids")
    own = {"groups": "group", "folds": "fold"}
    columns = {
        name: tuple(row[column] or "" for row in rows)
        for name, column in own.items()
        if rows and column in rows[0]
    }
    return {"ids": ids, **columns}


def _unfit(path: Path, problem: str) -> DataError:
    return DataError(f"{path} {problem}", remedy=f"Run: {rerun('preprocess')}")
