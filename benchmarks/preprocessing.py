"""Preprocessing of images as they come from a dermatoscope's camera."""

import math
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from benchmarks.measure import sampled_own_mib
from lesionseg.config import load_config
from lesionseg.data.folder import list_folder
from lesionseg.data.manifest import NAME, read_manifest, write_manifest
from lesionseg.data.pairs import write_pairs
from lesionseg.data.phantom import draw_phantom
from lesionseg.data.preprocessing import preprocess
from lesionseg.files import write_csv
from lesionseg.memory import keep_freed_memory

WIDTH = 3000
NUM_DRAWN = 4  # different phantoms; the other files are copies that differ in their last bytes
TEST_FRACTION = 0.25


def prepare(
    *, folder: str, data: str | None = None, num_images: int, width: int = WIDTH
) -> dict[str, Any]:
    """Fill `folder`/raw with the images of `data`, or with phantoms of 2/3 `width` x `width`."""
    raw_dir = Path(folder) / "raw"
    if data is None:
        _write_phantoms(raw_dir, num_images, width=width)
    else:
        write_pairs(raw_dir, list_folder(Path(data)))
    return {"num_images": len(write_manifest(raw_dir))}


def preprocess_some(*, folder: str, num_images: int) -> dict[str, Any]:
    """Images per second of `preprocess` for some of the prepared images, and its `own_peak_mib`,
    without pages of files.

    Their files have just been written or read: the disk is not measured. Similar images are not
    searched for, as all phantoms here are similar.
    """
    raw_dir, some_dir = Path(folder) / "raw", Path(folder) / f"raw-{num_images}"
    rows = read_manifest(raw_dir)
    num_test = math.ceil(TEST_FRACTION * num_images)
    chosen = [row for row in rows if row.split == "test"][:num_test]
    chosen += [row for row in rows if row.split == "train"][: num_images - len(chosen)]
    write_csv(some_dir / NAME, [asdict(row) for row in chosen])
    for split in ("train", "test"):
        if not (some_dir / split).exists():
            (some_dir / split).symlink_to(raw_dir / split)
    settings = asdict(load_config(Path("params.yaml")).preprocess)
    settings["near_duplicate_distance"] = 0
    keep_freed_memory()  # as every stage does
    with TemporaryDirectory(dir=folder) as out_dir:
        start = time.perf_counter()
        with sampled_own_mib() as samples:
            preprocess(some_dir, Path(out_dir) / "processed", source="folder", **settings)
        seconds = time.perf_counter() - start
    return {
        "num_images": len(chosen),
        "seconds": seconds,
        "images_per_second": len(chosen) / seconds,
        "own_peak_mib": max(samples),
    }


def _write_phantoms(raw_dir: Path, num_images: int, *, width: int) -> None:
    """Write JPEG images of quality 95 and PNG masks, a quarter of them for test."""
    drawn = raw_dir / "drawn"
    drawn.mkdir(parents=True)
    height = 2 * width // 3
    top = (width - height) // 2
    for number in range(min(NUM_DRAWN, num_images)):
        image, mask = draw_phantom(size=width, seed=number)
        Image.fromarray(image[top : top + height]).save(drawn / f"{number}.jpg", quality=95)
        Image.fromarray(mask[top : top + height]).save(drawn / f"{number}.png")
    num_test = math.ceil(TEST_FRACTION * num_images)
    for number in range(num_images):
        split_dir = raw_dir / ("test" if number < num_test else "train")
        for kind, suffix in (("images", "jpg"), ("masks", "png")):
            target = split_dir / kind / f"PHANTOM_{number:07d}.{suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            source = drawn / f"{number % NUM_DRAWN}.{suffix}"
            # Bytes after the end of an image are not part of it, but count in the checksum.
            target.write_bytes(source.read_bytes() + os.fsencode(f"{number:07d}"))
    shutil.rmtree(drawn)
