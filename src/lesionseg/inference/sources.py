"""Which files to predict on, and what each one's outputs are called."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lesionseg.errors import DataError, MissingFileError

# What counts as an image in a folder. Pillow reads HEIC only with a plugin; such a file is a
# photograph nevertheless, and is named as unreadable rather than passed over.
SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpeg", ".jpg", ".png"),
    *(".tif", ".tiff", ".webp"),
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """An image file to predict on.

    Attributes:
        id: What its outputs' names start with: folders below the output folder, with slashes, and
            the file's name without its ending.
        name: The file relative to the folder that holds all files, with slashes, for reading.
        path: The file as it was given.
    """

    id: str
    name: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Found:
    """The images below the given paths, and how many other files lie beside them."""

    sources: tuple[Source, ...]
    num_left_out: int


def find_images(paths: Sequence[Path], *, out_dir: Path) -> Found:
    """All images that files and folders name, each once, folders searched through all levels.

    A file is taken whatever it is called; in a folder the suffix decides. Hidden files and folders
    are left out, and so is `out_dir`. Ids are relative to the deepest folder that holds all
    `paths`, a folder holding itself; where two differ in nothing but the suffix, it stays.

    Args:
        paths: Files and folders.
        out_dir: Where the outputs will go.

    Raises:
        MissingFileError: A path is not there.
        DataError: There is no image, or the outputs would lie among the images of a folder.
    """
    for path in paths:
        if not path.exists():
            raise MissingFileError(f"{path} is not there. Give the path of an image or a folder")
    files: dict[Path, Path] = {}  # absolute path -> path as it was given, in order
    num_left_out = 0
    for path in paths:
        if not path.is_dir():
            files.setdefault(_absolute(path), path)
            continue
        if out_dir.resolve() == path.resolve():
            raise DataError(
                f"--out {out_dir} is a folder of images, and the next call would find masks among "
                "them. Choose another folder"
            )
        for file in _walk(path, out_dir.resolve()):
            if file.suffix.lower() in SUFFIXES:
                files.setdefault(_absolute(file), file)
            else:
                num_left_out += 1
    if not files:
        raise DataError(
            f"{', '.join(map(str, paths))}: no images among {num_left_out} files; "
            f"looked for {' '.join(SUFFIXES)}. Give another folder, or the files themselves"
        )
    holders = [_absolute(path if path.is_dir() else path.parent) for path in paths]
    return Found(
        sources=_name(files, root=Path(os.path.commonpath(holders))),
        num_left_out=num_left_out,
    )


def _absolute(path: Path) -> Path:
    """Without `..`, but with its links: what DVC links into a folder belongs to the folder."""
    return Path(os.path.abspath(path))  # noqa: PTH100  (resolve would follow the links)


def _walk(folder: Path, out_dir: Path) -> Iterator[Path]:
    """All files below a folder, in the order of their names."""

    def fail(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and Path(parent, name).resolve() != out_dir
        )
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def _name(files: Mapping[Path, Path], *, root: Path) -> tuple[Source, ...]:
    """The sources of files, given as absolute path -> path to read."""
    names = [path.relative_to(root) for path in files]
    uses = Counter(name.with_suffix("") for name in names)
    ids = [name if uses[name.with_suffix("")] > 1 else name.with_suffix("") for name in names]
    first: dict[Path, Path] = {}
    for image_id, name in zip(ids, names, strict=True):
        if first.setdefault(image_id, name) != name:
            raise DataError(
                f"{first[image_id]} and {name} would both be written as {image_id}. "
                "Rename one of them, or give them in two calls with two --out"
            )
    return tuple(
        Source(id=image_id.as_posix(), name=_text(name), path=path)
        for image_id, name, path in zip(ids, names, files.values(), strict=True)
    )


def _text(path: Path) -> str:
    """A path as text that any file can hold, whatever bytes its name is made of."""
    return os.fsencode(path.as_posix()).decode(errors="replace")
