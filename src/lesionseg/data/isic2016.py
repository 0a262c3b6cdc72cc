"""ISIC 2016 challenge, part 1, lesion segmentation: 900 training and 379 test images, CC-0.

Four archives, about 840 MB. Images are JPEG, 576 to 4288 wide and 540 to 2848 high; masks are PNG
of one 8-bit channel, 0 or 255, of their image's size. There is no official validation split.

Gutman et al. 2016, "Skin Lesion Analysis toward Melanoma Detection: A Challenge at the
International Symposium on Biomedical Imaging (ISBI) 2016", arXiv:1605.01397.
"""

import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from lesionseg.data.fetch import fetch
from lesionseg.errors import DataError, rerun
from lesionseg.files import check_free_space

BASE_URLS = (
    "https://isic-archive.s3.amazonaws.com/challenges/2016/",
    "https://isic-challenge-data.s3.amazonaws.com/2016/",  # older, the same files
)


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One zip file: all images or all masks of a split."""

    name: str
    md5: str
    split: str
    kind: str
    num_files: int


ARCHIVES = (
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
)

# At most one folder deep, and what a member is called after unpacking.
_MEMBER = {
    "images": re.compile(r"(?:[\w-]+/)?(ISIC_\d{7})\.jpg", re.ASCII),
    "masks": re.compile(r"(?:[\w-]+/)?(ISIC_\d{7})_Segmentation\.png", re.ASCII),
}
_SUFFIX = {"images": ".jpg", "masks": ".png"}
_FOLDER = re.compile(r"[\w-]+/", re.ASCII)
# What macOS adds when it makes an archive; never unpacked.
_CLUTTER = re.compile(r"__MACOSX/.*|(?:[\w-]+/)?\.DS_Store", re.ASCII)


def unpack_isic2016(
    raw_dir: Path,
    *,
    archives_dir: Path,
    archives: Sequence[Archive] = ARCHIVES,
    base_urls: Sequence[str] = BASE_URLS,
) -> None:
    """Write `raw_dir/{train,test}/images/<id>.jpg` and `.../masks/<id>.png`.

    Archives that are in `archives_dir` already are used. All of them are checked, by checksum and
    member by member, before the first file is unpacked.

    Raises:
        DownloadError: An archive could not be had, or the one that is there has a wrong checksum.
        DataError: An archive is damaged, or does not hold what it must.
        DiskSpaceError: There is no room for the archives or their files.
    """
    for archive in archives:
        urls = [base_url + archive.name for base_url in base_urls]
        fetch(urls, archives_dir / archive.name, md5=archive.md5)
    members = {archive: _members(archives_dir / archive.name, archive) for archive in archives}
    num_bytes = sum(info.file_size for found in members.values() for info in found.values())
    raw_dir.mkdir(parents=True, exist_ok=True)
    check_free_space(raw_dir, num_bytes)
    for archive, found in members.items():
        target_dir = raw_dir / archive.split / archive.kind
        _unpack(archives_dir / archive.name, found, target_dir)


def _members(path: Path, archive: Archive) -> Mapping[str, zipfile.ZipInfo]:
    """File name after unpacking -> member, once every member is known to be one that we expect."""
    try:
        with zipfile.ZipFile(path) as opened:
            infos = opened.infolist()
    except zipfile.BadZipFile as error:
        raise _damaged(path, error) from error
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename
        if _CLUTTER.fullmatch(name) or _FOLDER.fullmatch(name):
            continue
        match = _MEMBER[archive.kind].fullmatch(name)
        is_link = stat.S_ISLNK(info.external_attr >> 16)
        target_name = match[1] + _SUFFIX[archive.kind] if match else ""
        if not target_name or is_link or target_name in members:
            what = "the link" if is_link else "the unexpected or repeated member"
            raise _unfit(path, f"holds {what} {name!r}")
        members[target_name] = info
    if len(members) != archive.num_files:
        raise _unfit(path, f"must hold {archive.num_files} {archive.kind}, got {len(members)}")
    return members


def _unpack(path: Path, members: Mapping[str, zipfile.ZipInfo], target_dir: Path) -> None:
    """Write members under their new names; zipfile compares each one's CRC."""
    target_dir.mkdir(parents=True)
    progress = tqdm(members.items(), f"Unpacking {path.stem}", unit="file", disable=None)
    try:
        with zipfile.ZipFile(path) as opened:
            for name, info in progress:
                with opened.open(info) as member, (target_dir / name).open("wb") as target:
                    shutil.copyfileobj(member, target)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return _unfit(path, f"is damaged ({error})")


def _unfit(path: Path, problem: str) -> DataError:
    return DataError(f"{path} {problem}", remedy=f"Delete it and run: {rerun('download')}")
