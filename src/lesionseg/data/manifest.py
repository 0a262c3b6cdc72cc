"""`manifest.csv`: every image of the raw data with its mask, their size and checksums."""

import csv
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image
from tqdm import tqdm

from lesionseg.data.masks import read_mask
from lesionseg.data.rasters import DAMAGE, describe, upright_size
from lesionseg.errors import DataError, rerun
from lesionseg.files import require, sha256, write_csv

NAME = "manifest.csv"
SPLITS = ("train", "val", "test")
FOLDERS = ("train", "test")  # of the raw data; images of val are in train


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """An image and its mask; paths are relative to the raw data's folder, with slashes.

    `height` and `width` are pixels as a viewer shows the image, EXIF orientation applied; the mask
    has the same. `split` is `train`, `val` or `test`; images of `val` are in the folder `train`.
    Images of one patient or lesion have the same `group`, and `fold` is the fold of a
    cross-validation that validates on the image. `source` is where it came from, if several sources
    were joined. The table has each of these three columns only if some image has a value for it.
    """

    id: str
    split: str
    height: int
    width: int
    image_path: str
    image_sha256: str
    mask_path: str
    mask_sha256: str
    group: str = ""
    fold: str = ""
    source: str = ""


OPTIONAL = ("group", "fold", "source")
COLUMNS = tuple(c.name for c in fields(ManifestRow) if c.name not in OPTIONAL)
# Folder and id of an image -> values of its row that its files do not tell.
Known = Mapping[tuple[str, str], Mapping[str, str]]


def write_manifest(
    raw_dir: Path, known: Known = MappingProxyType({}), *, folders: Sequence[str] = FOLDERS
) -> list[tuple[ManifestRow, float]]:
    """The rows of the new `raw_dir/manifest.csv`, each with the share of lesion in its mask.

    They are sorted by folder and id. All `raw_dir/{train,test}/{images,masks}/<id>.*` are hashed.
    Masks are decoded, but of images only the headers are read: the next stage decodes their pixels,
    and names any image that is damaged there.

    Args:
        raw_dir: The raw data's folder.
        known: Values of images that their files do not tell; without them, the folder is the split.
        folders: The folders of `raw_dir`; each must hold images.

    Raises:
        DataError: A split is empty, an image and its mask differ in size, one of them is missing or
            is not an image at all, or a mask is not one.
    """
    files = [(folder, *paths) for folder in sorted(folders) for paths in _pairs(raw_dir, folder)]

    def check(file: tuple[str, Path, Path]) -> tuple[ManifestRow, float]:
        row = _row(raw_dir, *file)
        row = replace(row, **known.get((row.split, row.id), {}))  # type: ignore[arg-type]
        mask = read_mask(raw_dir / row.mask_path)
        return row, float(np.count_nonzero(mask) / mask.size)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(
            tqdm(pool.map(check, files), "Checking", len(files), unit="image", disable=None)
        )
    rows = [row for row, _ in found]
    columns = (*COLUMNS, *used_columns(rows))
    write_csv(raw_dir / NAME, [{name: getattr(row, name) for name in columns} for row in rows])
    return found


def used_columns(rows: Sequence[ManifestRow]) -> list[str]:
    """Those of `OPTIONAL` in which any row has a value."""
    return [name for name in OPTIONAL if any(getattr(row, name) for row in rows)]


def read_manifest(raw_dir: Path) -> list[ManifestRow]:
    """The rows of `raw_dir/manifest.csv`, in its order.

    Raises:
        MissingFileError: It is missing.
        DataError: It was not written by `write_manifest`.
    """
    path = require(raw_dir / NAME, stage="download")
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream, strict=True)
            rows = [_parse(values) for values in reader]
    except (csv.Error, ValueError) as error:
        raise DataError(
            f"{path} must be a table of {', '.join(COLUMNS)} ({error})",
            remedy=f"Run: {rerun('download')}",
        ) from error
    if not rows:
        raise DataError(f"{path} has no rows", remedy=f"Run: {rerun('download')}")
    return rows


def _parse(values: Mapping[str, str]) -> ManifestRow:
    is_known = set(COLUMNS) <= set(values) <= {*COLUMNS, *OPTIONAL}
    if not is_known or None in values.values():
        raise ValueError("a line has other columns or too few values")
    if values["split"] not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {values['split']!r}")
    sizes = {name: int(values[name]) for name in ("height", "width")}
    return ManifestRow(**{**values, **sizes})  # type: ignore[arg-type]


def _pairs(raw_dir: Path, split: str) -> Sequence[tuple[Path, Path]]:
    """Images of a split with their masks, sorted by id."""
    images = {path.stem: path for path in (raw_dir / split / "images").glob("*")}
    masks = {path.stem: path for path in (raw_dir / split / "masks").glob("*")}
    if lonely := sorted(images.keys() ^ masks.keys()):
        missing = "mask" if lonely[0] in images else "image"
        raise DataError(
            f"{split} has {len(images)} images and {len(masks)} masks; "
            f"{lonely[0]} has no {missing}. {_remedy()}"
        )
    if not images:
        raise DataError(f"{split} has no images. {_remedy()}")
    return [(images[name], masks[name]) for name in sorted(images)]


def _row(raw_dir: Path, split: str, image_path: Path, mask_path: Path) -> ManifestRow:
    height, width = _size(raw_dir, image_path)
    mask_height, mask_width = _size(raw_dir, mask_path)
    if (height, width) != (mask_height, mask_width):
        raise DataError(
            f"{split}: the mask of {image_path.stem} must be {height} x {width} pixels as its "
            f"image is (height x width), got {mask_height} x {mask_width}. {_remedy()}"
        )
    return ManifestRow(
        id=image_path.stem,
        split=split,
        height=height,
        width=width,
        image_path=image_path.relative_to(raw_dir).as_posix(),
        image_sha256=sha256(image_path),
        mask_path=mask_path.relative_to(raw_dir).as_posix(),
        mask_sha256=sha256(mask_path),
    )


def _size(raw_dir: Path, path: Path) -> tuple[int, int]:
    """(H, W) of an image in pixels, EXIF orientation applied."""
    name = path.relative_to(raw_dir).as_posix()
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            return upright_size(image)
    except Image.DecompressionBombError as error:
        raise DataError(f"{name} is {describe(error)}. {_remedy()}") from error
    except DAMAGE as error:
        raise DataError(f"{name} is not a readable JPEG or PNG image. {_remedy()}") from error


def _remedy() -> str:
    return f"Mend the source of the data and run: {rerun('download')}"
