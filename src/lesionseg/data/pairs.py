"""Pairs of an image and its mask, from wherever the user has them into the raw data."""

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from lesionseg.data.archives import File, copy, read, size_of
from lesionseg.data.groups import draw, gather
from lesionseg.data.images import read_image
from lesionseg.data.manifest import Known
from lesionseg.data.masks import understand_mask
from lesionseg.data.rasters import NamedBytes
from lesionseg.errors import DataError, rerun
from lesionseg.files import NAME_BYTES, check_free_space, write_bytes

COPIED = (".jpg", ".jpeg", ".png")  # byte for byte; other formats become PNG
SUFFIXES = (*COPIED, ".bmp", ".tif", ".tiff", ".webp")
NUM_NAMED = 3  # names in a message before it says how many more there are
LONGEST_ENDING = "_segmentation.png"  # of the files that later stages name after an image

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image and its mask, and where they belong.

    Attributes:
        id: Name of both in the raw data.
        image: The image's file, or the member of a zip file.
        mask: Likewise for the mask.
        split: `train`, `val` or `test`.
        group: Images of one patient or lesion share a group, and stay in one split; an image with
            "" belongs to no other.
        fold: The fold of a cross-validation that validates on it; "" for none.
        source: Where it comes from, if several sources are joined.
        mask_is_plain: Whether the mask is known to be a grey PNG of 0 and 255.
    """

    id: str
    image: File
    mask: File
    split: str
    group: str = ""
    fold: str = ""
    source: str = ""
    mask_is_plain: bool = False

    @property
    def folder(self) -> str:
        """Its folder of the raw data: `val` is in `train`; the manifest distinguishes the two."""
        return "test" if self.split == "test" else "train"


def to_know(pairs: Sequence[Pair]) -> Known:
    """Values of the manifest that the files of the raw data do not tell."""
    names = ("split", "group", "fold", "source")
    return {(pair.folder, pair.id): {n: getattr(pair, n) for n in names} for pair in pairs}


def check_file(path: Path) -> None:
    """Return if a file can be opened and its name is valid.

    Raises:
        DataError: Its name is not text, or it is not a readable regular file.
    """
    check_name(path)
    if not path.is_file():
        is_broken = path.is_symlink() and not path.exists()
        what = "a broken link" if is_broken else "a folder" if path.is_dir() else "no regular file"
        raise DataError(f"{path} must be an image file, it is {what}. Replace it, {again()}")
    try:
        path.open("rb").close()
    except OSError as error:
        raise DataError(
            f"{path} cannot be opened ({error.strerror}). Mend it, {again()}"
        ) from error


def check_name(path: Path) -> None:
    """Return if a name is valid Unicode (no surrogates) without characters that break a line.

    Raises:
        DataError: It is not.
    """
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in path.name):
        name = os.fsencode(path.name).decode("utf-8", "backslashreplace")
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
        raise DataError(
            f"{path.parent} has a file called {shown}: a name must be UTF-8 text without control "
            f"characters. Rename it, {again()}"
        )


def again() -> str:
    """The end of a remedy for the user's own files: all of them are read again."""
    return f"then run: {rerun('download')}"


def nfc(name: str) -> str:
    """A name in Unicode's form NFC: macOS may write an accent as a separate character."""
    return unicodedata.normalize("NFC", name)


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - NUM_NAMED
    return ", ".join(names[:NUM_NAMED]) + (f" and {more} more" if more > 0 else "")


def draw_test(pairs: Sequence[Pair], *, fraction: float, seed: int) -> list[Pair]:
    """The pairs, with a share of the groups moved to test if test has no images.

    Images of val are not drawn.

    Args:
        pairs: All pairs.
        fraction: Share of the groups of train; an image without a group counts as one.
        seed: Seed of the draw.

    Raises:
        DataError: That share is none of the groups, or all.
    """
    if any(pair.split == "test" for pair in pairs):
        return list(pairs)
    train = sorted((pair for pair in pairs if pair.split == "train"), key=lambda pair: pair.id)
    groups = [pair.group for pair in train]
    drawn = {train[position].id for position in draw(groups, fraction=fraction, seed=seed)}
    num_groups = len(gather(groups))
    if not 0 < len(drawn) < len(train):
        raise DataError(
            f"there are no test images, and {num_groups} images or groups of images with "
            f"download.test_fraction {fraction:g} leave {'all' if drawn else 'none'} for test. "
            "Change test_fraction in params.yaml, or add images"
        )
    logger.info(
        "No images are named as test: %d of %d became test, drawn by download.seed (%g of %s)",
        len(drawn),
        len(train),
        fraction,
        "the groups" if any(groups) else "them",
    )
    return [replace(pair, split="test") if pair.id in drawn else pair for pair in pairs]


def write_pairs(raw_dir: Path, pairs: Sequence[Pair]) -> None:
    """Write `raw_dir/{train,test}/images/<id>.<ext>` and `.../masks/<id>.png`.

    JPEG and PNG images are copied byte for byte, and so are masks that are plain grey PNGs of 0 and
    255; all others are converted to PNG. Nothing is copied before every name has been checked.

    Raises:
        DataError: A name is too long, or it is not clear what a mask means.
        DiskSpaceError: There is no room for the copies.
    """
    for pair in pairs:
        if (num_bytes := len(f"{pair.id}{LONGEST_ENDING}".encode())) > NAME_BYTES:
            raise DataError(
                f"{pair.image} has too long a name: with {LONGEST_ENDING} as its ending it must "
                f"have at most {NAME_BYTES} bytes, got {num_bytes}. Shorten it and its mask's, "
                f"{again()}"
            )
    raw_dir.mkdir(parents=True, exist_ok=True)
    sizes = [size_of(file) for pair in pairs for file in (pair.image, pair.mask)]
    check_free_space(raw_dir, sum(sizes))
    for folder in sorted({pair.folder for pair in pairs}, reverse=True):
        own = sorted((p for p in pairs if p.folder == folder), key=lambda pair: pair.id)
        _write_folder(raw_dir / folder, own)


def _write_folder(folder: Path, pairs: Sequence[Pair]) -> None:
    images_dir, masks_dir = folder / "images", folder / "masks"
    images_dir.mkdir(parents=True)
    masks_dir.mkdir()
    meanings: Counter[str] = Counter()
    for pair in tqdm(pairs, f"Copying {folder.name}", unit="image", disable=None):
        _write_image(pair.image, images_dir / pair.id)
        meanings[_write_mask(pair, masks_dir / f"{pair.id}.png")] += 1
    for meaning, num in meanings.items():
        if meaning:
            logger.info("%s: in %d of %d masks %s", folder.name, num, len(pairs), meaning)


def _write_image(source: File, target: Path) -> None:
    """Write an image under the target's name and the extension of its format."""
    suffix = source.suffix.lower()
    if suffix in COPIED:
        copy(source, target.with_name(target.name + suffix))
        return
    stream = BytesIO()
    Image.fromarray(read_image(to_read(source))).save(stream, "PNG", compress_level=1)
    write_bytes(target.with_name(f"{target.name}.png"), stream.getvalue())


def _write_mask(pair: Pair, target: Path) -> str:
    """Write a mask as grey PNG of 0 and 255; what was taken for lesion, "" if that is obvious."""
    understood = None if pair.mask_is_plain else understand_mask(to_read(pair.mask))
    if understood is None or understood.is_plain:  # it keeps its bytes
        copy(pair.mask, target)
        return ""
    stream = BytesIO()
    Image.fromarray(understood.mask * 255).save(stream, "PNG")
    write_bytes(target, stream.getvalue())
    return understood.meaning


def to_read(file: File) -> Path | NamedBytes:
    """What `read_image` and `understand_mask` take: a file, or the content of a member."""
    return file if isinstance(file, Path) else NamedBytes(read(file), name=str(file))
