"""Files in folders and members of zip files, both read where they are."""

import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lesionseg.errors import DataError, rerun

File = Path | zipfile.Path
# What macOS adds when it creates an archive.
_CLUTTER = re.compile(r"(?:.*/)?(?:__MACOSX/.*|\.[^/]*)")
# An encrypted member raises RuntimeError, an unknown compression NotImplementedError.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)


def walk(root: Path, *, archives: str) -> list[File]:
    """All files under a folder, sorted, followed by the members of the archives among them.

    Hidden files and what macOS adds are left out.

    Args:
        root: A folder, or a zip file, for which only its members are returned.
        archives: A pattern, ignoring case, for the names of zip files to look into.

    Raises:
        DataError: A zip file is damaged.
    """
    if root.is_file():
        return [*members(root)] if root.suffix.lower() == ".zip" else []
    paths = sorted(p for p in root.rglob("*") if not p.name.startswith(".") and p.is_file())
    pattern = re.compile(archives, re.IGNORECASE)
    found: list[File] = [*paths]
    for path in paths:
        if pattern.fullmatch(path.name):
            found += members(path)
    return found


def members(path: Path) -> list[zipfile.Path]:
    """The members of a zip file that are files, in the archive's order.

    Raises:
        DataError: It is damaged or not a zip file.
    """
    with _damage_is_an_error(path):
        archive = zipfile.ZipFile(path)  # stays open as long as a member of it is in use
    names = [info.filename for info in archive.infolist() if not info.is_dir()]
    return [zipfile.Path(archive, name) for name in names if not _CLUTTER.fullmatch(name)]


def size_of(file: File) -> int:
    """Size of a file in bytes, for a member when unpacked."""
    return file.stat().st_size if isinstance(file, Path) else file.root.getinfo(file.at).file_size


def copy(file: File, target: Path) -> None:
    """Write a copy of a file; zipfile compares a member's CRC.

    Raises:
        DataError: Its archive is damaged.
    """
    if isinstance(file, Path):
        shutil.copyfile(file, target)
        return
    with (
        _damage_is_an_error(archive_of(file)),
        file.root.open(file.at) as source,
        target.open("wb") as stream,
    ):
        shutil.copyfileobj(source, stream)


def read(file: File) -> bytes:
    """The content of a file.

    Raises:
        DataError: Its archive is damaged.
    """
    if isinstance(file, Path):
        return file.read_bytes()
    with _damage_is_an_error(archive_of(file)):
        return file.root.read(file.at)


def archive_of(member: zipfile.Path) -> Path:
    """The zip file that a member is in."""
    return Path(str(member.root.filename))


@contextmanager
def _damage_is_an_error(archive: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise DataError(
            f"{archive} is damaged ({error}). Delete it or put a good one in its place, then run: "
            f"{rerun('download')}"
        ) from error
