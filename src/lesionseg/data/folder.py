"""A user's own images and masks in a folder: in a few usual layouts, or listed in `images.csv`."""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lesionseg.data.archives import File
from lesionseg.data.images import read_image
from lesionseg.data.images_csv import NAME as TABLE
from lesionseg.data.images_csv import read_table
from lesionseg.data.pairs import (
    SUFFIXES,
    Pair,
    again,
    check_file,
    check_name,
    listed,
    nfc,
    to_read,
)
from lesionseg.errors import DataError, MissingFileError

SPLITS = ("train", "val", "test")
LAYOUTS = "{train,test}/{images,masks} or {images,masks} or images and masks in one folder"
# What distinguishes a mask's name from its image's, ignoring case.
_MASK_NAME = re.compile(r"mask_(.+)|(.+)_(?:segmentation|mask)", re.IGNORECASE)
_NAMING = (
    "A mask has its image's name, or that with _segmentation or _mask behind it or mask_ before "
    f"it, in any case; both end in {', '.join(SUFFIXES)}"
)
NUM_LOOKED_AT = 5  # images of a folder that are checked for being masks, exchanged by mistake

logger = logging.getLogger(__name__)


def list_folder(source_dir: Path) -> list[Pair]:
    """The pairs in a folder, sorted by split and id, after checking that each file can be opened.

    If there is an `images.csv`, it lists them (`images_csv.read_table`). Else there are folders
    `train`, `test` and `val`, the last two being optional, or the folder itself is `train`. Each
    holds folders `images` and `masks`, or both kinds of files together. Names of folders may be in
    any case, and hidden files are left out.

    An image's id is its file name without the extension, in Unicode's form NFC: macOS may write an
    accent as a separate character, which gives the same name different bytes. Its mask is called
    `<id>`, `<id>_segmentation`, `<id>_mask` or `mask_<id>`. If both are in one folder under the
    same name, the mask is the one that is not a JPEG.

    Raises:
        MissingFileError: A folder of the layout is missing.
        DataError: A folder is empty or holds something else, a name is not text, a file cannot be
            opened, or an image has no mask or a mask no image.
    """
    if (source_dir / TABLE).is_file():
        pairs = read_table(source_dir)
        _warn_if_exchanged(source_dir / TABLE, [pair.image for pair in pairs])
        return pairs
    pairs = []
    for split, folder in _find_splits(source_dir).items():
        taken = {pair.id for pair in pairs if split == "val"}  # by train: both share a folder
        found = [replace(pair, split=split) for pair in _list_split(folder)]
        _warn_if_exchanged(Path(found[0].image.parent), [pair.image for pair in found])
        pairs += [replace(p, id=f"val_{p.id}") if p.id in taken else p for p in found]
    return pairs


def _find_splits(source_dir: Path) -> Mapping[str, Path]:
    """Split -> its folder."""
    if not source_dir.is_dir():
        raise _missing(source_dir)
    subfolders = [path for path in _visible(source_dir) if path.is_dir()]
    splits = {path.name.lower(): path for path in subfolders if path.name.lower() in SPLITS}
    if not splits:
        return {"train": source_dir}
    if unused := [path.name for path in subfolders if path not in splits.values()]:
        known = ", ".join(SPLITS)
        logger.info("%s: not used, as it is none of %s: %s", source_dir, known, listed(unused))
    return {"train": source_dir / "train"} | {s: splits[s] for s in SPLITS if s in splits}


def _list_split(folder: Path) -> list[Pair]:
    """The pairs of a folder with `images` and `masks`, or with both kinds of files."""
    subfolders = {path.name.lower(): path for path in _visible(folder) if path.is_dir()}
    if "images" in subfolders or "masks" in subfolders or not any(_visible(folder)):
        image_paths = _files(subfolders.get("images", folder / "images"))
        mask_paths = _files(subfolders.get("masks", folder / "masks"))
        new_mask = "masks/{}.png"
    else:
        image_paths, mask_paths = _divide(_files(folder))
        new_mask = "{}_mask.png"
    images = _by_id(image_paths)
    masks = _by_id(mask_paths, image_ids=images.keys())
    _check_none_is_alone(folder, images, masks, new_mask=new_mask)
    return [
        Pair(id=name, image=images[name], mask=masks[name], split="train")
        for name in sorted(images)
    ]


def _divide(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The images and the masks among the files of one folder."""
    named = {path for path in paths if _MASK_NAME.fullmatch(path.stem)}
    same: dict[str, list[Path]] = {}
    for path in paths:
        same.setdefault(nfc(path.stem), []).append(path)
    for group in same.values():
        others = [path for path in group if path.suffix.lower() not in (".jpg", ".jpeg")]
        if len(group) == 2 and len(others) == 1:
            named |= set(others)
    return [p for p in paths if p not in named], [p for p in paths if p in named]


def _check_none_is_alone(
    folder: Path, images: Mapping[str, Path], masks: Mapping[str, Path], *, new_mask: str
) -> None:
    no_mask, no_image = sorted(images.keys() - masks.keys()), sorted(masks.keys() - images.keys())
    if not no_mask and not no_image:
        return
    problems = []
    if no_mask:
        problems.append(f"no mask for {listed(no_mask)}")
    if no_image:
        problems.append(f"no image for {listed([masks[name].name for name in no_image])}")
    added = new_mask.format(no_mask[0]) if no_mask else "its image"
    raise DataError(
        f"{folder} has {len(images)} images and {len(masks)} masks; {'; '.join(problems)}. "
        f"{_NAMING}. Add {added} or take out what is alone, or name the pairs in {TABLE}, {again()}"
    )


def _by_id(paths: Sequence[Path], *, image_ids: Collection[str] | None = None) -> dict[str, Path]:
    """Id -> file of images, or of masks if the images' ids are given."""
    found: dict[str, Path] = {}
    for path in paths:
        name = nfc(path.stem)
        match = _MASK_NAME.fullmatch(name)
        if image_ids is not None and name not in image_ids and match:
            name = match[1] or match[2]
        if name in found:
            names = (found[name].name, path.name)
            if len({nfc(text) for text in names}) == 1:
                names = (ascii(names[0]), ascii(names[1]))  # they would look the same
            raise DataError(
                f"{path.parent} has two files for {name}: {names[0]} and {names[1]}. Keep one"
            )
        found[name] = path
    return found


def _visible(folder: Path) -> list[Path]:
    """The contents of a folder without hidden files, sorted; empty if there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _files(folder: Path) -> Sequence[Path]:
    """The files of a folder without hidden ones, after checking that each can be opened."""
    if not folder.is_dir():
        raise _missing(folder)
    paths = _visible(folder)
    if not paths:
        raise DataError(f"{folder} is empty. Put {' or '.join(SUFFIXES)} files there")
    for path in paths:
        check_name(path)
    if other := [path.name for path in paths if path.suffix.lower() not in SUFFIXES]:
        raise DataError(
            f"{folder} must hold images only ({', '.join(SUFFIXES)}), got {listed(other)}. "
            "Convert or take out what is something else"
        )
    for path in paths:
        check_file(path)
    return paths


def _missing(folder: Path) -> MissingFileError:
    return MissingFileError(
        f"{folder} is missing; download.folder in params.yaml must hold {LAYOUTS}, or {TABLE}. "
        "Make it, or write another folder"
    )


def _warn_if_exchanged(where: Path, paths: Sequence[File]) -> None:
    """Warn if a few sampled images look like masks. Photographs among masks are refused later."""
    some = paths[:: max(1, len(paths) // NUM_LOOKED_AT)][:NUM_LOOKED_AT]
    try:
        exchanged = all(_is_mask(read_image(to_read(path), at_least=64)) for path in some)
    except DataError:  # a damaged file is named when all are decoded
        return
    if exchanged:
        logger.warning(
            "WARNING: %s: the files look like masks, black and white. Were images and masks "
            "exchanged?",
            where,
        )


def _is_mask(image: NDArray[np.uint8]) -> bool:
    """Whether an image (H, W, 3) uint8 is black and white, apart from what JPEG does to it."""
    is_extreme = (image < 32) | (image > 223)
    return bool(is_extreme.mean() > 0.95 and np.ptp(image, axis=2).mean() < 8)
