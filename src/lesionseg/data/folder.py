"""Any images and masks in the layout `{train,test}/{images,masks}`."""

import logging
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from lesionseg.data.images import read_image
from lesionseg.data.masks import understand_mask
from lesionseg.errors import DataError, MissingFileError, rerun
from lesionseg.files import NAME_BYTES, check_free_space, write_bytes

SPLITS = ("train", "test")
SUFFIXES = (".jpg", ".jpeg", ".png")
NUM_NAMED = 3  # ids that a message names before it says how many more there are
NUM_LOOKED_AT = 5  # images of a split that tell whether its two folders were exchanged
LONGEST_ENDING = "_segmentation.png"  # of the files that later stages call after an image
REMEDY = f"then run: {rerun('download')}"

logger = logging.getLogger(__name__)


def copy_folder(source_dir: Path, raw_dir: Path) -> None:
    """Write `raw_dir/{train,test}/images/<id>.<ext>` and `.../masks/<id>.png`.

    An image's id is its file name without the ending, in Unicode's form NFC: macOS may write an
    accent as a character of its own, which makes other bytes of the same name. Its mask is called
    `<id>` or `<id>_segmentation` in any case; both may be jpg, jpeg or png in any case. Images are
    copied byte for byte, and so are grey PNG masks that any program reads alike; others become such
    ones. Hidden files are left out. Nothing is copied before every name is known to be good and
    every file can be opened.

    Raises:
        MissingFileError: A folder of the layout is not there.
        DataError: A folder is empty or holds something else, a name is too long or no text, a file
            cannot be opened, an image or a mask stands alone, or it is not clear what a mask means.
        DiskSpaceError: There is no room for the copies.
    """
    pairs = {split: _pairs(source_dir / split) for split in SPLITS}
    for split, found in pairs.items():
        _warn_if_exchanged(source_dir / split / "images", [image for image, _ in found.values()])
    sources = [path for found in pairs.values() for pair in found.values() for path in pair]
    raw_dir.mkdir(parents=True, exist_ok=True)
    check_free_space(raw_dir, sum(path.stat().st_size for path in sources))
    for split, found in pairs.items():
        images_dir, masks_dir = raw_dir / split / "images", raw_dir / split / "masks"
        images_dir.mkdir(parents=True)
        masks_dir.mkdir()
        meanings: Counter[str] = Counter()
        for name, (image_path, mask_path) in tqdm(
            found.items(), f"Copying {split}", unit="image", disable=None
        ):
            shutil.copyfile(image_path, images_dir / (name + image_path.suffix.lower()))
            meanings[_copy_mask(mask_path, masks_dir / f"{name}.png")] += 1
        for meaning, num in meanings.items():
            if meaning:
                logger.info("%s: in %d of %d masks %s", split, num, len(found), meaning)


def _pairs(split_dir: Path) -> Mapping[str, tuple[Path, Path]]:
    """Id -> image and mask of a split."""
    images = _by_id(split_dir / "images")
    masks = _by_id(split_dir / "masks", image_ids=images.keys())
    _check_none_is_alone(split_dir, images, masks)
    for name, path in images.items():
        if (num_bytes := len(f"{name}{LONGEST_ENDING}".encode())) > NAME_BYTES:
            raise DataError(
                f"{path} has too long a name: with {LONGEST_ENDING} as its ending it must have at "
                f"most {NAME_BYTES} bytes, got {num_bytes}. Shorten it and its mask's, {REMEDY}"
            )
    return {name: (images[name], masks[name]) for name in sorted(images)}


def _check_none_is_alone(
    split_dir: Path, images: Mapping[str, Path], masks: Mapping[str, Path]
) -> None:
    no_mask, no_image = sorted(images.keys() - masks.keys()), sorted(masks.keys() - images.keys())
    if not no_mask and not no_image:
        return
    problems = []
    if no_mask:
        problems.append(f"no mask for {_listed(no_mask)}")
    if no_image:
        problems.append(f"no image for {_listed([masks[name].name for name in no_image])}")
    added = f"masks/{no_mask[0]}.png" if no_mask else f"images/{no_image[0]}.jpg"
    raise DataError(
        f"{split_dir} has {len(images)} images and {len(masks)} masks; {'; '.join(problems)}. A "
        "mask has its image's name, or that with _segmentation behind it; both end in "
        f"{', '.join(SUFFIXES)}. Add {added} or take out what is alone, {REMEDY}"
    )


def _by_id(folder: Path, *, image_ids: Collection[str] | None = None) -> Mapping[str, Path]:
    """Id -> file in a folder of images, or of masks where the images' ids are given."""
    found: dict[str, Path] = {}
    for path in _files(folder):
        name = unicodedata.normalize("NFC", path.stem)
        if image_ids is not None and name not in image_ids:
            name = re.sub("_segmentation$", "", name, flags=re.IGNORECASE)
        if name in found:
            names = (found[name].name, path.name)
            if len({unicodedata.normalize("NFC", text) for text in names}) == 1:
                names = (ascii(names[0]), ascii(names[1]))  # they look the same
            raise DataError(
                f"{folder} has two files for {name}: {names[0]} and {names[1]}. Keep one"
            )
        found[name] = path
    return found


def _files(folder: Path) -> Sequence[Path]:
    """The files of a folder but hidden ones, once each can be opened."""
    if not folder.is_dir():
        raise MissingFileError(
            f"{folder} is missing; download.folder in params.yaml must hold "
            "{train,test}/{images,masks}. Make it, or write another folder"
        )
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if not paths:
        raise DataError(f"{folder} is empty. Put jpg, jpeg or png files there")
    for path in paths:
        _check_name(path)
    if other := [path.name for path in paths if path.suffix.lower() not in SUFFIXES]:
        raise DataError(
            f"{folder} must hold jpg, jpeg and png files only, got {_listed(other)}. "
            "Convert or take out what is something else"
        )
    for path in paths:
        _check_file(path)
    return paths


def _check_name(path: Path) -> None:
    """Refuse names that are no text, as surrogates say, and those that would break a line."""
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in path.name):
        name = os.fsencode(path.name).decode("utf-8", "backslashreplace")
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
        raise DataError(
            f"{path.parent} has a file called {shown}: a name must be UTF-8 text without control "
            f"characters. Rename it, {REMEDY}"
        )


def _check_file(path: Path) -> None:
    """Refuse what cannot be opened, and what would be waited for."""
    if not path.is_file():
        is_broken = path.is_symlink() and not path.exists()
        what = "a broken link" if is_broken else "a folder" if path.is_dir() else "no regular file"
        raise DataError(f"{path} must be an image file, it is {what}. Replace it, {REMEDY}")
    try:
        path.open("rb").close()
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({error.strerror}). Mend it, {REMEDY}") from error


def _warn_if_exchanged(images_dir: Path, paths: Sequence[Path]) -> None:
    """Say so when images look like masks: a few tell. Photographs among masks are refused later."""
    some = paths[:: max(1, len(paths) // NUM_LOOKED_AT)][:NUM_LOOKED_AT]
    try:
        exchanged = all(_is_mask(read_image(path, at_least=64)) for path in some)
    except DataError:  # a damaged file is named when all are decoded
        return
    if exchanged:
        logger.warning(
            "WARNING: %s: the files look like masks, black and white. Were the folders images and "
            "masks exchanged?",
            images_dir,
        )


def _is_mask(image: NDArray[np.uint8]) -> bool:
    """Whether an image (H, W, 3) uint8 is black and white, but for what JPEG does to it."""
    is_extreme = (image < 32) | (image > 223)
    return bool(is_extreme.mean() > 0.95 and np.ptp(image, axis=2).mean() < 8)


def _copy_mask(source: Path, target: Path) -> str:
    """Write a mask as grey PNG of 0 and 255; what was taken for lesion, where that needs saying."""
    understood = understand_mask(source)
    if understood.is_plain:  # it keeps its bytes
        shutil.copyfile(source, target)
        return ""
    stream = BytesIO()
    Image.fromarray(understood.mask * 255).save(stream, "PNG")
    write_bytes(target, stream.getvalue())
    return understood.meaning


def _listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - NUM_NAMED
    return ", ".join(names[:NUM_NAMED]) + (f" and {more} more" if more > 0 else "")
