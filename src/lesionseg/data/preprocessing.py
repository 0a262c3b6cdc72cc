"""From raw files to packed arrays: decoded once, resized, split, with no image in two splits."""

import csv
import logging
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from tqdm import tqdm

from lesionseg.data.dataset import SPLITS, load_split
from lesionseg.data.groups import draw, gather, in_order
from lesionseg.data.images import read_image, resize_image, resize_mask
from lesionseg.data.leaks import (
    SOURCES_WITH_UNIQUE_IDS,
    THUMBNAIL_VALUES,
    Fingerprints,
    Leak,
    find_duplicates,
    thumbnails,
)
from lesionseg.data.manifest import ManifestRow, read_manifest, used_columns
from lesionseg.data.masks import read_mask
from lesionseg.data.summary import SplitSummary, summarise
from lesionseg.errors import DataError, rerun
from lesionseg.files import check_free_space, is_full, replacing

logger = logging.getLogger(__name__)

INDEX_COLUMNS = ("id", "height", "width", "image_sha256", "mask_sha256")
LEAK_COLUMNS = tuple(column.name for column in fields(Leak))
# Of two copies in a pair of splits, the one in the first is dropped: test stays complete.
PRECEDENCE = (("val", "test"), ("train", "test"), ("train", "val"))
CHUNK = 64  # images copied at once


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What train, val and test hold, and which images were found twice."""

    splits: tuple[SplitSummary, ...]
    leaks: tuple[Leak, ...]


@dataclass(frozen=True, kw_only=True)
class _Decoded:
    """All images (N, H, W, 3), masks (N, H, W) and thumbnails (N, F), in the order of `rows`.

    `lesion_fractions` is the share of lesion in each mask.
    """

    rows: Sequence[ManifestRow]
    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    thumbnails: NDArray[np.float32]
    lesion_fractions: Sequence[float]


def preprocess(
    raw_dir: Path,
    out_dir: Path,
    *,
    source: str | Sequence[str],
    image_size: int,
    val_fraction: float,
    seed: int,
    near_duplicate_distance: float,
    num_threads: int | None = None,
) -> Summary:
    """A summary of what was written to `out_dir`, which is replaced as a whole.

    Per split, sorted by id: `images.npy` (N, H, W, 3) uint8 RGB in [0, 255], `masks.npy` (N, H, W)
    uint8 in {0, 1}, `index.csv`, with groups and folds if there are any. Also `leaks.csv`: training
    images that are in test or validation, and validation images that are in test; these copies are
    in no array. Of an image that joined sources share, only the copy in the first source is kept.

    Args:
        raw_dir: What the download stage wrote.
        out_dir: The folder to write.
        source: Where the raw data come from, as in download.source of params.yaml: one source, or
            several that are joined.
        image_size: Height and width in pixels, a multiple of 16.
        val_fraction: Share of the training images' groups that becomes the validation split,
            before copies are dropped. If the manifest names images of val, they are the split
            instead; if it names folds, the first fold is.
        seed: Seed of that split.
        near_duplicate_distance: See `find_duplicates`.
        num_threads: How many images are decoded at once, by default a few more than there are
            cores. The files do not depend on it.

    Raises:
        MissingFileError: There is no manifest.
        DiskSpaceError: The disk cannot hold the arrays, of which there are two sets for a while.
        DataError: A file is damaged, a mask differs in size from its image, or a split is empty.
    """
    rows = sorted(read_manifest(raw_dir), key=lambda row: (row.split, row.id))
    sources = (source,) if isinstance(source, str) else tuple(source)
    members = _assign(rows, val_fraction=val_fraction, seed=seed)
    with replacing(out_dir) as part_dir:
        decoded = _decode(
            raw_dir, part_dir / "all", rows, image_size=image_size, num_threads=num_threads
        )
        check = _LeakCheck(decoded, sources=sources, distance=near_duplicate_distance)
        leaks, shared = check.between_sources()
        if shared:  # val is a share of what remains
            members = _assign(rows, val_fraction=val_fraction, seed=seed, dropped=shared)
        leaks += check.between_splits(members)
        for name in SPLITS:
            _write_split(part_dir / name, decoded, members[name])
        _write_table(part_dir / "leaks.csv", LEAK_COLUMNS, leaks)
        summaries = tuple(_summary(name, decoded, members[name]) for name in SPLITS)
        shutil.rmtree(part_dir / "all")
    _report_val(rows)
    _report(leaks, out_dir)
    _report_same_names(rows, members)
    return Summary(splits=summaries, leaks=tuple(leaks))


def preprocess_external(
    raw_dir: Path,
    out_dir: Path,
    *,
    name: str,
    source: str,
    split_dir: Path,
    split_source: str | Sequence[str],
    image_size: int,
    near_duplicate_distance: float,
) -> tuple[SplitSummary, tuple[Leak, ...]]:
    """A summary of what was written to `out_dir`: `test/` and `leaks.csv`, as by `preprocess`.

    Images that are in any split, judged by id, file or pixels, are dropped: images used to train or
    choose are not external, and images in test are scored there.

    Args:
        raw_dir: Images and masks of `test`, and their manifest.
        out_dir: The folder to write; it is replaced as a whole.
        name: Name of the external test set.
        source: Where it comes from.
        split_dir: What `preprocess` wrote.
        split_source: The download.source that it was made from.
        image_size: Height and width in pixels, the same as of the splits.
        near_duplicate_distance: See `find_duplicates`.

    Raises:
        DataError: A file is damaged, or every image is in a split.
    """
    rows = sorted(read_manifest(raw_dir), key=lambda row: row.id)
    with replacing(out_dir) as part_dir:
        decoded = _decode(raw_dir, part_dir / "all", rows, image_size=image_size, num_threads=None)
        own = _LeakCheck(decoded, sources=(source,), distance=near_duplicate_distance)
        members = list(range(len(rows)))
        leaks: list[Leak] = []
        for split in reversed(SPLITS):
            known = _read_fingerprints(split_dir, split, source=split_source)
            found = own.with_others(name, members, known)
            copies = {leak.id for leak in found}
            members = [i for i in members if rows[i].id not in copies]
            leaks += found
        if not members:
            raise DataError(
                f"no image of the external test set {name} is left: all are also in train, val or "
                "test. Take it out of external in params.yaml, or lower "
                f"preprocess.near_duplicate_distance ({near_duplicate_distance:g}) if they are none"
            )
        _write_split(part_dir / "test", decoded, members)
        _write_table(part_dir / "leaks.csv", LEAK_COLUMNS, leaks)
        summary = _summary(name, decoded, members)
        shutil.rmtree(part_dir / "all")
    _report(leaks, out_dir)
    return summary, tuple(leaks)


def _read_fingerprints(
    processed_dir: Path, name: str, *, source: str | Sequence[str]
) -> Fingerprints:
    """The fingerprints of a split written by `preprocess`."""
    sources = (source,) if isinstance(source, str) else tuple(source)
    split = load_split(processed_dir, name)
    with (processed_dir / name / "index.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return Fingerprints(
        split=name,
        ids=split.ids,
        archive_ids=[archive_id(row["id"], row.get("source") or sources[0]) for row in rows],
        sha256=[row["image_sha256"] for row in rows],
        thumbnails=np.concatenate(
            [thumbnails(split.images[i : i + CHUNK]) for i in range(0, len(rows), CHUNK)]
        ),
        members=range(len(rows)),
    )


def archive_id(image_id: str, source: str) -> str:
    """The id that ISIC's archive gave to an image of a source, "" for other sources."""
    return image_id.removeprefix(f"{source}_") if source in SOURCES_WITH_UNIQUE_IDS else ""


def _assign(
    rows: Sequence[ManifestRow],
    *,
    val_fraction: float,
    seed: int,
    dropped: Collection[int] = (),
) -> dict[str, list[int]]:
    """The positions in `rows`, sorted by id, that make up each split; `dropped` are in none."""
    members = {
        name: [i for i, row in enumerate(rows) if row.split == name and i not in dropped]
        for name in SPLITS
    }
    folds = [rows[i].fold for i in members["train"]]
    groups = [rows[i].group for i in members["train"]]
    val = []
    if not members["val"] and any(folds):
        first = in_order(folds)[0]
        val = [i for i, fold in zip(members["train"], folds, strict=True) if fold == first]
    elif not members["val"]:
        val = [members["train"][n] for n in draw(groups, fraction=val_fraction, seed=seed)]
    held_out = {*val, *members["val"]}
    train = [i for i in members["train"] if i not in held_out]
    if not held_out or not train:
        what = "groups" if any(groups) else "images"
        raise DataError(
            f"{len(gather(groups))} training {what} with preprocess.val_fraction {val_fraction:g} "
            f"leave {len(held_out)} images for validation and {len(train)} for training; both need "
            "at least 1. Change val_fraction in params.yaml, or add images"
        )
    return {"train": train, "val": sorted(held_out), "test": members["test"]}


def _decode(
    raw_dir: Path,
    all_dir: Path,
    rows: Sequence[ManifestRow],
    *,
    image_size: int,
    num_threads: int | None,
) -> _Decoded:
    """Every image and mask, resized, and the thumbnails, in files in `all_dir`."""
    all_dir.mkdir(parents=True)
    # Two sets of the arrays, at four bytes per pixel, and the thumbnails.
    check_free_space(
        all_dir.parent.parent, (2 * 4 * image_size**2 + 4 * THUMBNAIL_VALUES) * len(rows)
    )
    images, masks = _create_arrays(all_dir, num=len(rows), image_size=image_size)
    shape = (len(rows), THUMBNAIL_VALUES)
    colours = _create_array(all_dir / "thumbnails.npy", np.float32, shape)

    def decode(i: int) -> float:  # Pillow decodes and resizes outside Python's global lock
        image = read_image(raw_dir / rows[i].image_path, at_least=image_size)
        images[i] = resize_image(image, size=image_size)
        colours[i] = thumbnails(images[i : i + 1])[0]
        masks[i] = resize_mask(_read_checked_mask(raw_dir, rows[i]), size=image_size)
        return float(masks[i].mean())

    with ThreadPoolExecutor(num_threads) as pool:
        done = pool.map(decode, range(len(rows)))
        fractions = list(tqdm(done, "Decoding", len(rows), unit="image", disable=None))
    return _Decoded(
        rows=rows, images=images, masks=masks, thumbnails=colours, lesion_fractions=fractions
    )


def _read_checked_mask(raw_dir: Path, row: ManifestRow) -> NDArray[np.uint8]:
    mask = read_mask(raw_dir / row.mask_path)
    if mask.shape != (row.height, row.width):
        raise DataError(
            f"{raw_dir / row.mask_path} must be {row.height} x {row.width} pixels as its image is "
            f"(height x width), got {mask.shape[0]} x {mask.shape[1]}",
            remedy=f"Run: {rerun('download')}",
        )
    return mask


class _LeakCheck:
    """Finds images that occur twice; the copies to drop are taken out."""

    def __init__(self, decoded: _Decoded, *, sources: Sequence[str], distance: float) -> None:
        self._decoded = decoded
        self._sources = sources
        self._distance = distance

    def between_sources(self) -> tuple[list[Leak], set[int]]:
        """What the train of each source shares with earlier sources, and the positions to drop."""
        leaks: list[Leak] = []
        kept: list[int] = []
        shared: set[int] = set()
        for name in self._sources if len(self._sources) > 1 else ():
            own = [
                i
                for i, row in enumerate(self._decoded.rows)
                if row.source == name and row.split == "train"
            ]
            found = self._find("train", own, "train", kept)
            copies = {leak.id for leak in found}
            shared |= {i for i in own if self._decoded.rows[i].id in copies}
            kept += [i for i in own if i not in shared]
            leaks += found
        return leaks, shared

    def between_splits(self, members: dict[str, list[int]]) -> list[Leak]:
        """What each split shares with those that take precedence over it."""
        leaks = []
        for name, other in PRECEDENCE:
            found = self._find(name, members[name], other, members[other])
            copies = {leak.id for leak in found}
            members[name] = [i for i in members[name] if self._decoded.rows[i].id not in copies]
            leaks += found
        for name in SPLITS:
            if not members[name]:
                raise DataError(
                    f"no {name} image is left: all are also in another split. Take the copies out "
                    "of the source of the data, or lower preprocess.near_duplicate_distance "
                    f"({self._distance:g}) in params.yaml if they are none"
                )
        return leaks

    def with_others(self, name: str, own: list[int], others: Fingerprints) -> list[Leak]:
        """What images of this data share with a split of other data."""
        return find_duplicates(
            self._fingerprints(name, own), others, near_duplicate_distance=self._distance
        )

    def _find(self, name: str, own: list[int], other: str, others: list[int]) -> list[Leak]:
        return self.with_others(name, own, self._fingerprints(other, others))

    def _fingerprints(self, name: str, members: list[int]) -> Fingerprints:
        rows = [self._decoded.rows[i] for i in members]
        return Fingerprints(
            split=name,
            ids=[row.id for row in rows],
            archive_ids=[archive_id(row.id, row.source or self._sources[0]) for row in rows],
            sha256=[row.image_sha256 for row in rows],
            thumbnails=self._decoded.thumbnails,
            members=members,
        )


def _write_split(split_dir: Path, decoded: _Decoded, members: list[int]) -> None:
    split_dir.mkdir()
    images, masks = _create_arrays(split_dir, num=len(members), image_size=decoded.images.shape[1])
    for start in range(0, len(members), CHUNK):
        chunk = members[start : start + CHUNK]
        images[start : start + CHUNK] = decoded.images[chunk]
        masks[start : start + CHUNK] = decoded.masks[chunk]
    columns = (*INDEX_COLUMNS, *used_columns(decoded.rows))
    _write_table(split_dir / "index.csv", columns, [decoded.rows[i] for i in members])


def _create_arrays(
    folder: Path, *, num: int, image_size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """`images.npy` (N, H, W, 3) and `masks.npy` (N, H, W) in a folder, uint8, on disk."""
    shape = (num, image_size, image_size)
    return (
        _create_array(folder / "images.npy", np.uint8, (*shape, 3)),
        _create_array(folder / "masks.npy", np.uint8, shape),
    )


def _create_array(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
    """A new array on disk, with its space reserved.

    Otherwise the file would be allocated block by block, and if the disk filled up meanwhile,
    writing to the memory map would kill the process with SIGBUS.
    """
    array: NDArray[Any] = open_memmap(path, "w+", dtype, shape)
    with path.open("r+b") as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
        except (AttributeError, OSError) as error:  # macOS, or a file system without this call
            if isinstance(error, OSError) and is_full(error):
                raise
    return array


def _write_table(path: Path, columns: Sequence[str], records: Iterable[ManifestRow | Leak]) -> None:
    """The records' `columns` as CSV; without records, the header alone."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(record) for record in records)


def _report_val(rows: Sequence[ManifestRow]) -> None:
    """Log in one line where val comes from, unless it was drawn."""
    folds = [row.fold for row in rows if row.split == "train" and row.fold]
    if any(row.split == "val" for row in rows):
        logger.info("val is what the data say; preprocess.val_fraction is not used")
    elif folds:
        fold = in_order(folds)[0]
        logger.info("val is fold %s of the data; preprocess.val_fraction is not used", fold)


def _report(leaks: Sequence[Leak], out_dir: Path) -> None:
    """Log in one line what was dropped between sources, and in one what between splits."""
    where = out_dir / "leaks.csv"
    if shared := {leak.id for leak in leaks if leak.split == leak.other_split}:
        logger.warning(
            "Dropped %d from train: an earlier source in the list has the same images. See %s",
            len(shared),
            where,
        )
    dropped = Counter(
        leak.split for leak in {k.id: k for k in leaks if k.split != k.other_split}.values()
    )
    if dropped:
        numbers = " and ".join(f"{num} from {name}" for name, num in sorted(dropped.items()))
        logger.warning("Dropped %s: the same images are in another split. See %s", numbers, where)


def _report_same_names(rows: Sequence[ManifestRow], members: Mapping[str, Sequence[int]]) -> None:
    """Log in one line that different images of two splits have the same name."""
    test = {rows[i].id for i in members["test"]}
    same = [rows[i].id for name in ("train", "val") for i in members[name] if rows[i].id in test]
    if same:
        logger.info(
            "%d images of train and val have the same name as one of test, such as %s. They are "
            "different pictures: all are used",
            len(same),
            min(same),
        )


def _summary(name: str, decoded: _Decoded, members: Sequence[int]) -> SplitSummary:
    """What a split holds, at the network's size."""
    size = decoded.masks.shape[1]
    return summarise(
        name,
        sizes=[(size, size)] * len(members),
        lesion_fractions=[decoded.lesion_fractions[i] for i in members],
    )
