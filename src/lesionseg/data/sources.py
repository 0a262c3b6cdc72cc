"""The sources of images and masks, by their names in params.yaml."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lesionseg.data.folder import list_folder
from lesionseg.data.ham10000 import list_ham10000
from lesionseg.data.isic import list_challenge
from lesionseg.data.pairs import Pair, draw_test
from lesionseg.data.ph2 import list_ph2

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where sources look for the user's files.

    Attributes:
        folder: The user's own folder or zip file; None if there is none.
        archives_dir: Where downloaded archives are kept.
    """

    folder: Path | None
    archives_dir: Path

    @property
    def roots(self) -> list[Path]:
        """Both places, the user's own first."""
        return [place for place in (self.folder, self.archives_dir) if place]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source of pairs.

    Attributes:
        read: Returns its pairs, each with its split.
        splits: The splits that it comes with; if empty, everything is `train`. None if the user's
            files decide.
    """

    read: Callable[[Places], list[Pair]]
    splits: tuple[str, ...] | None


def _challenge(name: str) -> Callable[[Places], list[Pair]]:
    return lambda places: list_challenge(name, archives_dir=places.archives_dir)


def _folder(places: Places) -> list[Pair]:
    assert places.folder is not None
    return list_folder(places.folder)


SOURCES = {
    "isic2016": Source(read=_challenge("isic2016"), splits=("train", "test")),
    "isic2017": Source(read=_challenge("isic2017"), splits=("train", "val", "test")),
    "isic2018": Source(read=_challenge("isic2018"), splits=("train", "val", "test")),
    "ph2": Source(read=lambda places: list_ph2(places.roots), splits=()),
    "ham10000": Source(read=lambda places: list_ham10000(places.roots), splits=()),
    "folder": Source(read=_folder, splits=None),
}


def read_sources(
    names: Sequence[str], places: Places, *, test_fraction: float, seed: int
) -> list[Pair]:
    """The pairs of a source, or of several joined for training.

    The first source provides test, val and folds, as if it were alone. Of the others, all images
    except those of test become `train`. A group belongs to its source, and an id that an earlier
    source has in the same folder is prefixed with its source's name; the leak check decides whether
    the two are the same image.

    Args:
        names: Names from `SOURCES`.
        places: Where they look.
        test_fraction: See `draw_test`.
        seed: Seed of the draw; see `draw_test`.
    """
    pairs = draw_test(SOURCES[names[0]].read(places), fraction=test_fraction, seed=seed)
    if len(names) == 1:
        return pairs
    joined = [_of_source(pair, names[0]) for pair in pairs]
    for name in names[1:]:
        found = SOURCES[name].read(places)
        own = [
            replace(_of_source(pair, name), split="train", fold="")
            for pair in found
            if pair.split != "test"
        ]
        logger.info(
            "%s: %d images join those of %s for training; its %d test images are left out",
            name,
            len(own),
            names[0],
            len(found) - len(own),
        )
        taken = {pair.id for pair in joined if pair.folder == "train"}
        joined += [replace(p, id=f"{name}_{p.id}") if p.id in taken else p for p in own]
    return joined


def _of_source(pair: Pair, name: str) -> Pair:
    return replace(pair, source=name, group=f"{name}: {pair.group}" if pair.group else "")
