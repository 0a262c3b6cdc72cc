"""Filling the folder `data/raw` from a source: completely or not at all."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from lesionseg.config import DownloadConfig
from lesionseg.data.manifest import FOLDERS, ManifestRow, write_manifest
from lesionseg.data.manifest import NAME as MANIFEST
from lesionseg.data.pairs import Pair, to_know, write_pairs
from lesionseg.data.phantom import write_phantoms
from lesionseg.data.sources import Places, read_sources
from lesionseg.data.summary import SplitSummary, summarise
from lesionseg.data.weights import write_encoder
from lesionseg.files import full_disk_is_an_error, project_root

OUTS = ("train", "test", "encoder.pth", MANIFEST)


def fill_raw(raw_dir: Path, config: DownloadConfig) -> list[SplitSummary]:
    """Write images, masks, encoder weights and the manifest; a summary of each folder of images.

    An error leaves the folder as it was.

    Args:
        raw_dir: Where they go; other files there stay.
        config: Where they come from.

    Raises:
        LesionsegError: Something that the user can fix.
    """
    staging_dir = raw_dir.with_name(f".{raw_dir.name}.part")
    _remove(staging_dir)
    staging_dir.mkdir(parents=True)
    try:
        with full_disk_is_an_error(raw_dir):
            found = _fill(staging_dir, config)
        _move_into_place(staging_dir, raw_dir)
    finally:
        _remove(staging_dir)
    return [_summary(folder, found) for folder in FOLDERS]


def _fill(raw_dir: Path, config: DownloadConfig) -> list[tuple[ManifestRow, float]]:
    """Write everything to a folder. The user's paths are relative to the repository."""
    archives_dir = project_root() / config.archives
    pairs: list[Pair] = []
    if config.sources == ("phantom",):
        write_phantoms(
            raw_dir,
            num_train=config.phantom_num_train,
            num_test=config.phantom_num_test,
            size=config.phantom_size,
            seed=config.seed,
        )
    else:
        folder = project_root() / config.folder if config.folder else None
        places = Places(folder=folder, archives_dir=archives_dir)
        pairs = read_sources(
            config.sources, places, test_fraction=config.test_fraction, seed=config.seed
        )
        write_pairs(raw_dir, pairs)
    write_encoder(
        raw_dir / "encoder.pth",
        weights=config.weights,
        seed=config.seed,
        archives_dir=archives_dir,
    )
    return write_manifest(raw_dir, to_know(pairs))


def _move_into_place(staging_dir: Path, raw_dir: Path) -> None:
    """Move the finished files into `raw_dir`, the manifest last."""
    raw_dir.mkdir(parents=True, exist_ok=True)
    for name in reversed(OUTS):
        _remove(raw_dir / name)
    for name in OUTS:
        (staging_dir / name).replace(raw_dir / name)


def _remove(path: Path) -> None:
    """Delete a file or folder if it exists; of a link, not what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _summary(folder: str, found: Sequence[tuple[ManifestRow, float]]) -> SplitSummary:
    """A summary of a folder of `data/raw`, from rows with their shares of lesion."""
    own = [
        (row, fraction) for row, fraction in found if (row.split == "test") == (folder == "test")
    ]
    return summarise(
        folder,
        sizes=[(row.height, row.width) for row, _ in own],
        lesion_fractions=[fraction for _, fraction in own],
    )
