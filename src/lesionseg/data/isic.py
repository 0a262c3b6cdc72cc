"""The ISIC challenges with lesion segmentation: their official archives and what must be in them.

| | training | validation | test | licence |
|---|---|---|---|---|
| isic2016, part 1 | 900 | | 379 | CC-0 |
| isic2017, part 1 | 2000 | 150 | 600 | CC-0 |
| isic2018, task 1 | 2594 | 100 | 1000 | CC BY-NC 4.0 |

Images are JPEG (in 2016, 576 to 4288 pixels wide and 540 to 2848 high); masks are PNG of one 8-bit
channel, 0 or 255, of the same size as their image. 2016 is about 840 MB, the others are several GB
each.

Gutman et al. 2016, arXiv:1605.01397; Codella et al. 2017, arXiv:1710.05006; Codella et al. 2019,
arXiv:1902.03368.
"""

import logging
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lesionseg.data.archives import File, members
from lesionseg.data.fetch import fetch
from lesionseg.data.isic2016_test import IDS as ISIC2016_TEST
from lesionseg.data.pairs import Pair
from lesionseg.errors import DataError, rerun

HOSTS = (
    "https://isic-archive.s3.amazonaws.com/challenges/",
    "https://isic-challenge-data.s3.amazonaws.com/",  # older, the same files
)


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A zip file of all images or all masks of a split, with its MD5 or its SHA-256."""

    name: str
    md5: str = ""
    sha256: str = ""
    split: str
    kind: str
    num_files: int


@dataclass(frozen=True, kw_only=True)
class Challenge:
    """The archives of one year, and what they may contain besides images and masks."""

    year: int
    archives: tuple[Archive, ...]
    extras: str = r"(?!)"  # a pattern that nothing matches

    @property
    def urls(self) -> tuple[str, ...]:
        """The folders that have the archives."""
        return tuple(f"{host}{self.year}/" for host in HOSTS)


CHALLENGES = {
    "isic2016": Challenge(
        year=2016,
        archives=(
            Archive(
                name="ISBI2016_ISIC_Part1_Training_Data.zip",
                md5="2029f387e62dcc062b1370b1efc1f7fb",
                split="train",
                kind="images",
                num_files=900,
            ),
            Archive(
                name="ISBI2016_ISIC_Part1_Training_GroundTruth.zip",
                md5="fbd77134298f3511479a37bac93109c7",
                split="train",
                kind="masks",
                num_files=900,
            ),
            Archive(
                name="ISBI2016_ISIC_Part1_Test_Data.zip",
                md5="efebcaeaae751007401a40a60d391f93",
                split="test",
                kind="images",
                num_files=379,
            ),
            Archive(
                name="ISBI2016_ISIC_Part1_Test_GroundTruth.zip",
                md5="492a7711a2e19b96114cab6c96bd1ad5",
                split="test",
                kind="masks",
                num_files=379,
            ),
        ),
    ),
    "isic2017": Challenge(
        year=2017,
        extras=r"ISIC_\d{7}_superpixels\.png|ISIC-2017_\w+_metadata\.csv",
        archives=(
            Archive(
                name="ISIC-2017_Training_Data.zip",
                md5="a14a7e622c67a358797ae59abb8a0b0c",
                split="train",
                kind="images",
                num_files=2000,
            ),
            Archive(
                name="ISIC-2017_Training_Part1_GroundTruth.zip",
                md5="77fdbeb6fbec4139937224416b250f4c",
                split="train",
                kind="masks",
                num_files=2000,
            ),
            Archive(
                name="ISIC-2017_Validation_Data.zip",
                md5="8d6419d942112f709894c0d82f6c9038",
                split="val",
                kind="images",
                num_files=150,
            ),
            Archive(
                name="ISIC-2017_Validation_Part1_GroundTruth.zip",
                md5="64d3e68fa2deeb8a5e89aa8dec2efd44",
                split="val",
                kind="masks",
                num_files=150,
            ),
            Archive(
                name="ISIC-2017_Test_v2_Data.zip",
                md5="5f6a0b5e1f2972bd1f5ea02680489f09",
                split="test",
                kind="images",
                num_files=600,
            ),
            Archive(
                name="ISIC-2017_Test_v2_Part1_GroundTruth.zip",
                md5="b1742de6bd257faca3b2b21a4aa3b781",
                split="test",
                kind="masks",
                num_files=600,
            ),
        ),
    ),
    "isic2018": Challenge(
        year=2018,
        extras=r"LICENSE\.txt|ATTRIBUTION\.txt",
        archives=(
            Archive(
                name="ISIC2018_Task1-2_Training_Input.zip",
                sha256="80f98572347a2d7a376227fa9eb2e4f7459d317cb619865b8b9910c81446675f",
                split="train",
                kind="images",
                num_files=2594,
            ),
            Archive(
                name="ISIC2018_Task1_Training_GroundTruth.zip",
                sha256="99f8b2bb3c4d6af483362010715f7e7d5d122d9f6c02cac0e0d15bef77c7604c",
                split="train",
                kind="masks",
                num_files=2594,
            ),
            Archive(
                name="ISIC2018_Task1-2_Validation_Input.zip",
                sha256="0ea920fcfe512d12a6e620b50b50233c059f67b10146e1479c82be58ff15a797",
                split="val",
                kind="images",
                num_files=100,
            ),
            Archive(
                name="ISIC2018_Task1_Validation_GroundTruth.zip",
                sha256="f6911e9c0a64e6d687dd3ca466ca927dd5e82145cb2163b7a1e5b37d7a716285",
                split="val",
                kind="masks",
                num_files=100,
            ),
            Archive(
                name="ISIC2018_Task1-2_Test_Input.zip",
                sha256="e59ae1f69f4ed16f09db2cb1d76c2a828487b63d28f6ab85997f5616869b127d",
                split="test",
                kind="images",
                num_files=1000,
            ),
            Archive(
                name="ISIC2018_Task1_Test_GroundTruth.zip",
                sha256="2e8f6edce454a5bdee52485e39f92bd6eddf357e81f39018d05512175238ef82",
                split="test",
                kind="masks",
                num_files=1000,
            ),
        ),
    ),
}

# At most one folder deep; the id is its group.
_FOLDER = r"(?:[\w-]+/)?"
_MEMBER = {
    "images": re.compile(rf"{_FOLDER}(ISIC_\d{{7}})\.jpg", re.ASCII),
    "masks": re.compile(rf"{_FOLDER}(ISIC_\d{{7}})_[Ss]egmentation\.png", re.ASCII),
}

logger = logging.getLogger(__name__)


def list_challenge(name: str, *, archives_dir: Path) -> list[Pair]:
    """The pairs of one of `CHALLENGES`, in its official splits.

    Archives that are already in `archives_dir` are used. All are checked, by checksum and member
    by member. Training and validation images of later years that are in ISIC 2016's test are left
    out, and their number is logged.

    Raises:
        DownloadError: An archive could not be downloaded, or an existing one has a wrong checksum.
        DataError: An archive is damaged, or does not have the expected contents.
        DiskSpaceError: There is no room for the archives.
    """
    challenge = CHALLENGES[name]
    for archive in challenge.archives:
        urls = [url + archive.name for url in challenge.urls]
        path = archives_dir / archive.name
        fetch(urls, path, md5=archive.md5, sha256_prefix=archive.sha256)
    found = {
        (archive.split, archive.kind): _members(archives_dir / archive.name, archive, challenge)
        for archive in challenge.archives
    }
    pairs = [
        Pair(id=id_, image=image, mask=mask, split=split, mask_is_plain=True)
        for split, kind in found
        if kind == "images"
        for id_, image, mask in _match(split, found[split, "images"], found[split, "masks"])
    ]
    if challenge.year == 2016:
        return pairs
    kept = [pair for pair in pairs if pair.split == "test" or pair.id not in ISIC2016_TEST]
    logger.info(
        "%s: %d images to learn from are in ISIC 2016's test, and left out",
        name,
        len(pairs) - len(kept),
    )
    return kept


def _members(path: Path, archive: Archive, challenge: Challenge) -> Mapping[str, zipfile.Path]:
    """Id -> member, after checking that every member is an expected one."""
    extras = re.compile(rf"{_FOLDER}(?:{challenge.extras})", re.ASCII)
    found: dict[str, zipfile.Path] = {}
    for member in members(path):
        name = member.at
        if extras.fullmatch(name):
            continue
        match = _MEMBER[archive.kind].fullmatch(name)
        is_link = stat.S_ISLNK(member.root.getinfo(name).external_attr >> 16)
        if not match or is_link or match[1] in found:
            what = "the link" if is_link else "the unexpected or repeated member"
            raise _unfit(path, f"holds {what} {name!r}")
        found[match[1]] = member
    if len(found) != archive.num_files:
        raise _unfit(path, f"must hold {archive.num_files} {archive.kind}, got {len(found)}")
    return found


def _match(
    split: str, images: Mapping[str, File], masks: Mapping[str, File]
) -> Iterator[tuple[str, File, File]]:
    """Id, image and mask of a split, sorted by id."""
    if lonely := sorted(images.keys() ^ masks.keys()):
        missing = "mask" if lonely[0] in images else "image"
        raise DataError(
            f"{split} has {len(images)} images and {len(masks)} masks; {lonely[0]} has no "
            f"{missing}. Delete the archives of {split} and run: {rerun('download')}"
        )
    return ((id_, images[id_], masks[id_]) for id_ in sorted(images))


def _unfit(path: Path, problem: str) -> DataError:
    return DataError(f"{path} {problem}. Delete it and run: {rerun('download')}")
