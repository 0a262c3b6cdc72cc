"""Which files to predict on, and the names of their outputs."""

import errno
import os
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lesionseg.errors import DataError, MissingFileError

# What counts as an image in a folder. Pillow reads HEIC only with a plugin; such a file is still a
# photograph, and is reported as unreadable rather than skipped.
SUFFIXES = (
    ".avif",
    ".bmp",
    ".gif",
    ".heic",
    ".heif",
    ".jfif",
    ".jp2",
    ".jpeg",
    ".jpg",
    ".png",
    ".tif",
    ".tiff",
    ".webp",
)
SUMMARY = "summary.csv"
# Its first line, by which a folder of outputs is recognised.
SUMMARY_COLUMNS = (
    "file",
    "height",
    "width",
    "lesion_pixels",
    "lesion_fraction",
    "num_regions",
    "mean_probability",
    "touches_border",
)
# What the file name of each output ends in.
ENDINGS = {
    "mask": "_segmentation.png",
    "overlay": "_overlay.jpg",
    "probability": "_probability.png",
    "geojson": "_contours.geojson",
    "csv": "_contours.csv",
}
_KINDS = {stat.S_IFIFO: "a fifo", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """An image file to predict on.

    Attributes:
        id: What its outputs' names start with: folders below the output folder, with slashes, and
            the file's name without its extension.
        name: The file relative to the folder that holds all files, with slashes, for display.
        path: The file as it was given.
    """

    id: str
    name: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Found:
    """The images below the given paths, and what else there is.

    Attributes:
        sources: The images.
        unusable: For each path that cannot be read or searched, where it is and why, in one line.
        num_left_out: Files that are not images by their names.
        links: Links to folders, which are not followed.
    """

    sources: tuple[Source, ...]
    unusable: tuple[str, ...] = ()
    num_left_out: int = 0
    links: tuple[Path, ...] = ()


@dataclass
class _Search:
    """What has been found so far; `files` is absolute path -> path as it was given, in order."""

    out_dir: Path
    files: dict[Path, Path] = field(default_factory=dict)
    unusable: dict[Path, str] = field(default_factory=dict)
    links: list[Path] = field(default_factory=list)
    searched: set[Path] = field(default_factory=set)
    num_left_out: int = 0

    def add_file(self, path: Path) -> None:
        if reason := _why_unusable(path):
            self.unusable[_absolute(path)] = f"{path} cannot be read as an image ({reason})."
        else:
            self.files.setdefault(_absolute(path), path)

    def add_folder(self, folder: Path) -> None:
        """Search through all levels, folder by folder, in the order of the names."""
        waiting = [(folder, False)]
        while waiting:
            parent, is_below_outputs = waiting.pop()
            if _absolute(parent) in self.searched:
                continue
            self.searched.add(_absolute(parent))
            num_files = len(self.files)
            try:
                names = sorted(entry.name for entry in os.scandir(parent))
            except OSError as error:
                self.unusable[_absolute(parent)] = (
                    f"{parent} cannot be searched ({error.strerror})."
                )
                continue
            is_ours = is_below_outputs or self._holds_outputs(parent)
            folders = [
                (parent / name, is_ours)
                for name in names
                if not name.startswith(".") and self._takes(parent / name, is_ours)
            ]
            if _is_image(parent) and not folders and len(self.files) == num_files:
                self.unusable[_absolute(parent)] = (
                    f"{parent} cannot be read as an image (it is a folder, and holds none)."
                )
            waiting += reversed(folders)

    def _takes(self, path: Path, is_ours: bool) -> bool:
        """Take a file; True for a folder, which is still to be searched."""
        if os.path.isdir(path):  # noqa: PTH112  (Path.is_dir raises where nothing may be read)
            if path.is_symlink():
                self.links.append(path)
                return False
            return True
        if is_ours and is_output(path.name):
            return False
        if _is_image(path):
            self.add_file(path)
        else:
            self.num_left_out += 1
        return False

    def _holds_outputs(self, folder: Path) -> bool:
        return _is_same(folder, self.out_dir) or has_summary(folder)


def find_images(paths: Sequence[Path], *, out_dir: Path) -> Found:
    """All images among files and in folders, each once; folders are searched at all levels.

    A file is taken whatever its name; in a folder the suffix decides. Hidden files and folders are
    left out, and so are outputs: below `out_dir`, and below a folder with a summary.csv as we write
    it, a file named like an output is one. Links to folders are not followed. Ids are relative to
    the deepest folder that holds all `paths`, a folder holding itself; if two differ in nothing but
    the suffix, they keep it.

    Args:
        paths: Files and folders.
        out_dir: Where the outputs will go.

    Raises:
        MissingFileError: A path does not exist.
        DataError: There is no image, or the outputs would lie among the images of a folder.
    """
    search = _Search(out_dir=Path(os.path.realpath(out_dir)))
    folders = {path for path in paths if os.path.isdir(path)}  # noqa: PTH112  (as above)
    for path in paths:
        _require(path)
        if path in folders and _is_same(path, search.out_dir):
            raise DataError(
                f"--out {out_dir} is a folder of images, and the next call would find masks among "
                "them. Choose another folder"
            )
    for path in paths:
        search.add_folder(path) if path in folders else search.add_file(path)
    if not search.files and not search.unusable:
        raise DataError(
            f"{', '.join(map(str, paths))}: no images among {search.num_left_out} files; "
            f"looked for {' '.join(SUFFIXES)}. Give another folder, or the files themselves"
        )
    holders = [_absolute(path if path in folders else path.parent) for path in paths]
    return Found(
        sources=_name(search.files, root=Path(os.path.commonpath(holders))),
        unusable=tuple(search.unusable.values()),
        num_left_out=search.num_left_out,
        links=tuple(search.links),
    )


def _is_same(folder: Path, other: Path) -> bool:
    try:
        return folder.samefile(other)
    except OSError:
        return False


def has_summary(folder: Path) -> bool:
    """Whether a folder has a summary.csv as we write it: it is, or was, a folder of outputs."""
    path, first_line = folder / SUMMARY, ",".join(SUMMARY_COLUMNS).encode()
    if not os.path.isfile(path):  # noqa: PTH113  (opening a fifo would wait for ever)
        return False
    try:
        with path.open("rb") as stream:
            return stream.read(len(first_line)) == first_line
    except OSError:
        return False


def is_output(name: str) -> bool:
    """Whether a file in a folder of outputs is an output, by its name."""
    return name == SUMMARY or name.endswith(tuple(ENDINGS.values()))


def _require(path: Path) -> None:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(
            f"{path} is not there. Give the path of an image or a folder"
        ) from None
    except OSError:
        return  # it exists but cannot be read: that is reported at the end


def _why_unusable(path: Path) -> str | None:
    """Why a path is not a readable file, or None; not opened, as a fifo would block for ever."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ENOENT:
            return "it is a broken link" if path.is_symlink() else "file not found"
        return error.strerror
    if stat.S_ISREG(mode):
        return None
    return f"it is {_KINDS.get(stat.S_IFMT(mode), 'a device')}, no file"


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _absolute(path: Path) -> Path:
    """Without `..`, but links kept: a file that DVC links into a folder belongs to that folder."""
    return Path(os.path.abspath(path))  # noqa: PTH100  (resolve would follow the links)


def _name(files: Mapping[Path, Path], *, root: Path) -> tuple[Source, ...]:
    """The sources of files, given as absolute path -> path to read."""
    names = [path.relative_to(root) for path in files]
    ids = [name.with_suffix("") for name in names]
    # Until no two are the same: a.jpg.png without its extension is a.jpg, which may exist as well.
    while twice := {image_id for image_id, uses in Counter(ids).items() if uses > 1}:
        ids = [
            name if image_id in twice else image_id
            for name, image_id in zip(names, ids, strict=True)
        ]
    return tuple(
        Source(id=image_id.as_posix(), name=_text(name), path=path)
        for image_id, name, path in zip(ids, names, files.values(), strict=True)
    )


def _text(path: Path) -> str:
    """A path as valid text, whatever bytes its name consists of."""
    return os.fsencode(path.as_posix()).decode(errors="replace")
