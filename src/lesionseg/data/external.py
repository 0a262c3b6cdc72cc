"""External test sets: images from elsewhere, prepared like test, in none of the splits.

`data/external` holds a list of the sets, and for each set `<name>/raw`, like the output of
`download`, and `<name>/processed`, like that of `preprocess`, both with the split `test` only.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lesionseg.config import Config, ExternalConfig
from lesionseg.data.external_sets import ExternalSet, processed_dir, raw_dir, write_sets
from lesionseg.data.manifest import write_manifest
from lesionseg.data.pairs import Pair, to_know, write_pairs
from lesionseg.data.phantom import ELSEWHERE, write_phantoms
from lesionseg.data.preprocessing import preprocess_external
from lesionseg.data.sources import SOURCES, Places
from lesionseg.data.summary import SplitSummary
from lesionseg.errors import LesionsegError, rerun
from lesionseg.files import full_disk_is_an_error, project_root, replacing

logger = logging.getLogger(__name__)


def fill_external(external_dir: Path, config: Config, *, split_dir: Path) -> list[SplitSummary]:
    """Write all sets that params.yaml names; a summary of each.

    An error leaves the folder as it was.

    Args:
        external_dir: Replaced as a whole.
        config: Which sets, and how they are prepared.
        split_dir: What `preprocess` wrote; its images are in no external set.

    Raises:
        LesionsegError: Something that the user can fix.
    """
    sets, summaries = [], []
    with replacing(external_dir) as part_dir, full_disk_is_an_error(external_dir):
        part_dir.mkdir()
        for number, external in enumerate(config.external, start=1):
            raw = raw_dir(part_dir, external.name)
            with _about(external):
                known = _write_raw(raw, external, config, number=number)
                write_manifest(raw, to_know(known), folders=["test"])
                summary, leaks = preprocess_external(
                    raw,
                    processed_dir(part_dir, external.name),
                    name=external.name,
                    source=external.source,
                    split_dir=split_dir,
                    split_source=config.download.source,
                    image_size=config.preprocess.image_size,
                    near_duplicate_distance=config.preprocess.near_duplicate_distance,
                )
            summaries.append(summary)
            sets.append(
                ExternalSet(
                    name=external.name,
                    source=external.source,
                    num_images=summary.num_images,
                    num_dropped=len({leak.id for leak in leaks}),
                )
            )
        write_sets(part_dir, sets)
    return summaries


@contextmanager
def _about(external: ExternalConfig) -> Iterator[None]:
    """In errors of code shared with `download` and `preprocess`, name the set and this stage."""
    try:
        yield
    except LesionsegError as error:
        text = f"external test set {external.name}: {error}"
        for stage in ("download", "preprocess"):
            text = text.replace(rerun(stage), rerun("external"))
        raise type(error)(text) from error


def _write_raw(to: Path, external: ExternalConfig, config: Config, *, number: int) -> list[Pair]:
    """Write images and masks of a set to `to/test`; its pairs, empty for phantoms."""
    if external.source == "phantom":  # a seed of its own: other lesions than those of the splits
        write_phantoms(
            to,
            num_train=0,
            num_test=config.download.phantom_num_test,
            size=config.download.phantom_size,
            seed=config.download.seed + number,
            clinic=ELSEWHERE,
        )
        return []
    folder = project_root() / external.folder if external.folder else None
    places = Places(folder=folder, archives_dir=project_root() / config.download.archives)
    pairs = SOURCES[external.source].read(places)
    chosen = [pair for pair in pairs if pair.split == "test"] or pairs
    logger.info(
        "external test set %s: %d images%s",
        external.name,
        len(chosen),
        f"; {len(pairs) - len(chosen)} that its source does not name as test are left out"
        if len(chosen) < len(pairs)
        else "",
    )
    chosen = [replace(pair, split="test", fold="") for pair in chosen]
    write_pairs(to, chosen)
    return chosen
