"""Any images and masks in the layout `{train,test}/{images,masks}`."""

import logging
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from lesionseg.data.fetch import check_free_space
from lesionseg.data.masks import understand_mask
from lesionseg.errors import DataError, MissingFileError
from lesionseg.files import write_bytes

SPLITS = ("train", "test")
SUFFIXES = (".jpg", ".jpeg", ".png")
NUM_NAMED = 3  # ids that a message names before it says how many more there are

logger = logging.getLogger(__name__)


def copy_folder(source_dir: Path, raw_dir: Path) -> None:
    """Write `raw_dir/{train,test}/images/<id>.<ext>` and `.../masks/<id>.png`.

    An image's id is its file name without the ending. Its mask is called `<id>` or
    `<id>_segmentation` in any case; both may be jpg, jpeg or png in any case. Images are copied
    byte for byte, and so are grey PNG masks that any program reads alike; others become such ones.
    Hidden files are left out.

    Raises:
        MissingFileError: A folder of the layout is not there.
        DataError: A folder is empty or holds something else, an image or a mask stands alone, or it
            is not clear what a mask means.
        DiskSpaceError: There is no room for the copies.
    """
    pairs = {split: _pairs(source_dir / split) for split in SPLITS}
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
    images = _by_id(split_dir / "images", ending="")
    masks = _by_id(split_dir / "masks", ending="_segmentation")
    if lonely := sorted(images.keys() - masks.keys()):
        raise DataError(
            f"{split_dir} has {len(images)} images and {len(masks)} masks; no mask for "
            f"{_listed(lonely)}. Add masks/{lonely[0]}.png or take the image out, "
            "then run: dvc repro -f download"
        )
    if lonely := sorted(masks.keys() - images.keys()):
        raise DataError(
            f"{split_dir} has {len(images)} images and {len(masks)} masks; no image for "
            f"{_listed([masks[name].name for name in lonely])}. Add images/{lonely[0]}.jpg or "
            "take the mask out, then run: dvc repro -f download"
        )
    return {name: (images[name], masks[name]) for name in sorted(images)}


def _by_id(folder: Path, *, ending: str) -> Mapping[str, Path]:
    """Id -> file in a folder, where `ending` may follow the id."""
    if not folder.is_dir():
        raise MissingFileError(
            f"{folder} is missing; download.folder in params.yaml must hold "
            "{train,test}/{images,masks}. Make it, or write another folder"
        )
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if not paths:
        raise DataError(f"{folder} is empty. Put jpg, jpeg or png files there")
    if other := [path.name for path in paths if path.suffix.lower() not in SUFFIXES]:
        raise DataError(
            f"{folder} must hold jpg, jpeg and png files only, got {_listed(other)}. "
            "Convert or take out what is something else"
        )
    found: dict[str, Path] = {}
    for path in paths:
        name = re.sub(f"{ending}$", "", path.stem, flags=re.IGNORECASE)
        if name in found:
            raise DataError(
                f"{folder} has two files for {name}: {found[name].name} and {path.name}. Keep one"
            )
        found[name] = path
    return found


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
