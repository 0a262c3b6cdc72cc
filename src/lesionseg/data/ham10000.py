"""HAM10000: 10,015 dermoscopic images of 7,470 lesions, with masks; no splits.

The images are those of ISIC 2018's task 3. From https://doi.org/10.7910/DVN/DBW86T:
HAM10000_images_part_1.zip, HAM10000_images_part_2.zip, HAM10000_segmentations_lesion_tschandl.zip
and HAM10000_metadata. Images are JPEG of 600 x 450 pixels, masks PNG.

Tschandl et al. 2018, "The HAM10000 dataset", arXiv:1803.10417; masks: Tschandl et al. 2020,
doi:10.1038/s41591-020-0942-0. CC BY-NC 4.0.
"""

import csv
import logging
import re
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path

from lesionseg.data.archives import File, read, walk
from lesionseg.data.pairs import Pair, again, listed
from lesionseg.errors import DataError, MissingFileError

NEEDED = (
    "ISIC_0024306.jpg and so on, ISIC_0024306_segmentation.png and so on, and HAM10000_metadata "
    "(or ISIC2018_Task3_Training_LesionGroupings.csv) with the lesion of each image"
)
_ARCHIVES = r"(?:HAM10000|ISIC2018_Task(?:1|3)_Training).*\.zip"
_IMAGE = re.compile(r"(ISIC_\d{7})\.jpg", re.IGNORECASE)
_MASK = re.compile(r"(ISIC_\d{7})_segmentation\.png", re.IGNORECASE)
_METADATA = re.compile(
    r"HAM10000_metadata(?:\.\w+)?|ISIC2018_Task3_Training_LesionGroupings.*\.csv", re.IGNORECASE
)

logger = logging.getLogger(__name__)


def list_ham10000(roots: Sequence[Path]) -> list[Pair]:
    """The pairs of HAM10000, sorted by id, each with its lesion as its group.

    Images without a mask (if the masks are those of ISIC 2018's task 1, some have none) and masks
    without an image are left out, and their number is logged.

    Args:
        roots: Folders that hold its files, unpacked at any depth or as the zip files that they came
            in; or such a zip file. The first with the metadata must have everything else.

    Raises:
        MissingFileError: No place has the metadata, or there is no image with a mask.
        DataError: A zip file or the metadata are damaged.
    """
    for root in roots:
        files = walk(root, archives=_ARCHIVES)
        if tables := [file for file in files if _METADATA.fullmatch(file.name)]:
            break
    else:
        raise MissingFileError(
            f"the metadata of HAM10000 are in none of {', '.join(map(str, roots))}: there must be "
            f"{NEEDED}, unpacked or in the zip files that they came in. Put them there, {again()}"
        )
    lesions = _read_lesions(tables[0])
    images = {id_: file for id_, file in _by_id(_IMAGE, files).items() if id_ in lesions}
    masks = {id_: file for id_, file in _by_id(_MASK, files).items() if id_ in lesions}
    paired = sorted(images.keys() & masks.keys())
    if not paired:
        raise MissingFileError(
            f"{root} has {len(images)} images and {len(masks)} masks of HAM10000, and no image has "
            f"a mask. There must be {NEEDED}. Put them there, {again()}"
        )
    for what, missing in (("image", lesions.keys() - images), ("mask", lesions.keys() - masks)):
        if missing:
            logger.warning(
                "WARNING: %s: %d of the %d images in %s have no %s and are left out: %s",
                root,
                len(missing),
                len(lesions),
                tables[0].name,
                what,
                listed(sorted(missing)),
            )
    return [
        Pair(id=id_, image=images[id_], mask=masks[id_], split="train", group=lesions[id_])
        for id_ in paired
    ]


def _by_id(pattern: re.Pattern[str], files: Sequence[File]) -> dict[str, File]:
    """Id -> the first file whose name matches a pattern."""
    found: dict[str, File] = {}
    for file in files:
        if match := pattern.fullmatch(file.name):
            found.setdefault(match[1].upper(), file)
    return found


def _read_lesions(table: File) -> Mapping[str, str]:
    """Id of an image -> id of its lesion."""
    try:
        text = read(table).decode("utf-8-sig")
        delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
        rows = list(csv.DictReader(StringIO(text, newline=""), delimiter=delimiter, strict=True))
        id_column = "image_id" if rows and "image_id" in rows[0] else "image"
        lesions = {row[id_column]: row["lesion_id"] for row in rows}
    except (ValueError, KeyError, csv.Error) as error:
        raise DataError(
            f"{table} must be a table with the columns lesion_id and image_id, or image ({error}). "
            f"Get it anew, {again()}"
        ) from error
    if not all([lesions, *lesions.keys(), *lesions.values()]):
        raise DataError(f"{table}: an image or its lesion has no id. Get it anew, {again()}")
    return lesions
