"""Images, masks, their manifest and the encoder's first weights: `data/raw`, whole or not at all.

params.yaml, section download, says where they come from.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from lesionseg.config import DownloadConfig, load_config
from lesionseg.data.manifest import FOLDERS, ManifestRow, write_manifest
from lesionseg.data.manifest import NAME as MANIFEST
from lesionseg.data.pairs import Pair, to_know, write_pairs
from lesionseg.data.phantom import write_phantoms
from lesionseg.data.sources import Places, read_sources
from lesionseg.data.summary import SplitSummary, log_summaries, summarise
from lesionseg.data.weights import write_encoder
from lesionseg.files import full_disk_is_an_error, project_root
from stages import run

RAW_DIR = Path("data/raw")
STAGING_DIR = Path("data/.raw.part")
OUTS = ("train", "test", "encoder.pth", MANIFEST)


def main(argv: Sequence[str] | None = None) -> None:
    """Fill `data/raw`."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.download",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    config = load_config(Path("params.yaml")).download
    _remove(STAGING_DIR)
    STAGING_DIR.mkdir(parents=True)
    try:
        with full_disk_is_an_error(RAW_DIR):
            found = _fill(STAGING_DIR, config)
        _move_into_place()
    finally:
        _remove(STAGING_DIR)
    log_summaries(RAW_DIR, [_summary(folder, found) for folder in FOLDERS])


def _fill(raw_dir: Path, config: DownloadConfig) -> list[tuple[ManifestRow, float]]:
    """Write everything to a folder. Paths that the user gives start at the repository."""
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


def _move_into_place() -> None:
    """Take over the finished files; the manifest comes last."""
    RAW_DIR.mkdir(parents=True, exist_ok=True)
    for name in reversed(OUTS):
        _remove(RAW_DIR / name)
    for name in OUTS:
        (STAGING_DIR / name).replace(RAW_DIR / name)


def _remove(path: Path) -> None:
    """Delete a file or folder that may be there, a link without what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _summary(folder: str, found: Sequence[tuple[ManifestRow, float]]) -> SplitSummary:
    """What a folder of `data/raw` holds, of rows with their shares of lesion."""
    own = [
        (row, fraction) for row, fraction in found if (row.split == "test") == (folder == "test")
    ]
    return summarise(
        folder,
        sizes=[(row.height, row.width) for row, _ in own],
        lesion_fractions=[fraction for _, fraction in own],
    )


if __name__ == "__main__":
    run(main)
