"""Where images and masks come from, by the name that params.yaml has for it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lesionseg.data.folder import list_folder
from lesionseg.data.ham10000 import list_ham10000
from lesionseg.data.isic import list_challenge
from lesionseg.data.pairs import Pair
from lesionseg.data.ph2 import list_ph2


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where sources look for what the user has.

    Attributes:
        folder: The user's own folder, or zip file; None if there is none.
        archives_dir: Where downloaded archives are kept.
    """

    folder: Path | None
    archives_dir: Path

    @property
    def roots(self) -> list[Path]:
        """Both, the user's own first."""
        return [place for place in (self.folder, self.archives_dir) if place]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source of pairs.

    Attributes:
        read: Its pairs, each with its split.
        splits: The splits that it comes with; what comes with none is all `train`. None where the
            user's files decide.
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
