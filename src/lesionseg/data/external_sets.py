"""The list of external test sets in `data/external`, and where each is stored."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from lesionseg.errors import DataError, rerun
from lesionseg.files import replacing, require

NAME = "sets.csv"


@dataclass(frozen=True, kw_only=True)
class ExternalSet:
    """A test set from elsewhere.

    Attributes:
        name: Name of its folder and of its scores.
        source: Where it comes from.
        num_images: Images that are scored.
        num_dropped: Images left out because a split has them too.
    """

    name: str
    source: str
    num_images: int
    num_dropped: int


def raw_dir(external_dir: Path, name: str) -> Path:
    """Holds a set's images and masks at their own size, and their manifest, all in `test`."""
    return external_dir / name / "raw"


def processed_dir(external_dir: Path, name: str) -> Path:
    """Holds a set's arrays at the network's size, as a split `test`, and `leaks.csv`."""
    return external_dir / name / "processed"


def write_sets(external_dir: Path, sets: Sequence[ExternalSet]) -> None:
    """Write the list, which may be empty."""
    with replacing(external_dir / NAME) as part, part.open("w", newline="", encoding="utf-8") as to:
        columns = [column.name for column in fields(ExternalSet)]
        writer = csv.DictWriter(to, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(one) for one in sets)


def read_sets(external_dir: Path) -> list[ExternalSet]:
    """The sets in the order of params.yaml.

    Raises:
        MissingFileError: The list is missing.
        DataError: It is damaged.
    """
    path = require(external_dir / NAME, stage="external")
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [
                ExternalSet(
                    name=row["name"],
                    source=row["source"],
                    num_images=int(row["num_images"]),
                    num_dropped=int(row["num_dropped"]),
                )
                for row in csv.DictReader(stream, strict=True)
            ]
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is no list of external test sets ({error})",
            remedy=f"Run: {rerun('external')}",
        ) from error
