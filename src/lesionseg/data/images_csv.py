"""`images.csv`: a user's own table of images, masks, splits, groups and folds."""

import csv
import difflib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import StringIO
from pathlib import Path, PurePosixPath

from lesionseg.data.pairs import SUFFIXES, Pair, again, check_file, listed, nfc
from lesionseg.errors import DataError, MissingFileError

NAME = "images.csv"
NEEDED = ("image", "mask")
COLUMNS = (*NEEDED, "split", "group", "fold")
_SPLITS = {
    **dict.fromkeys(["", "train", "training"], "train"),
    **dict.fromkeys(["val", "valid", "validation"], "val"),
    **dict.fromkeys(["test", "testing"], "test"),
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A line of the table: its number in the file, and its values of `COLUMNS`."""

    number: int
    values: Mapping[str, str]

    @cached_property
    def image(self) -> PurePosixPath:
        """The image's path as in the table, with slashes."""
        return PurePosixPath(self.values["image"].replace("\\", "/"))

    @cached_property
    def mask(self) -> PurePosixPath:
        """The mask's path likewise."""
        return PurePosixPath(self.values["mask"].replace("\\", "/"))

    @property
    def folder(self) -> str:
        """The folder of the raw data in which ids are unique."""
        return "test" if _SPLITS[self.values["split"].lower()] == "test" else "train"


def read_table(source_dir: Path) -> list[Pair]:
    """The pairs that `source_dir/images.csv` names, after checking that each file can be opened.

    Columns, in any order and case: `image` and `mask`, paths relative to `source_dir`, and
    optionally `split` (train, val or test; empty is train), `group` (images of one patient or
    lesion) and `fold`, separated by commas or semicolons. An image's id is its file name without
    the extension, preceded by its folders if two images have the same name.

    Raises:
        MissingFileError: A file that it names is missing.
        DataError: It is not such a table, an image or mask occurs twice or cannot be opened, or a
            group is in two splits or folds.
    """
    path = source_dir / NAME
    lines = list(_read_lines(path))
    if not lines:
        raise DataError(f"{path} names no images. Write a line for each, {again()}")
    _check_each_once(path, lines)
    ids = _make_ids(path, lines)
    found = _Found(source_dir)
    if absent := [str(p) for line in lines for p in (line.image, line.mask) if not found.has(p)]:
        raise MissingFileError(
            f"{path} names {len(absent)} files that are not there: {listed(absent)}. Paths start "
            f"at {source_dir}. Add the files or correct the lines, {again()}"
        )
    pairs = [
        Pair(
            id=id_,
            image=found.path(line.image),
            mask=found.path(line.mask),
            split=_SPLITS[line.values["split"].lower()],
            group=line.values["group"],
            fold=line.values["fold"],
        )
        for line, id_ in zip(lines, ids, strict=True)
    ]
    pairs = [replace(pair, fold="") if pair.split == "test" else pair for pair in pairs]
    for line in lines:
        check_file(found.path(line.image))
        check_file(found.path(line.mask))
    _check_groups(path, pairs)
    return sorted(pairs, key=lambda pair: (pair.split, pair.id))


def _read_lines(path: Path) -> Iterator[_Line]:
    """The lines with their values stripped, after checking the columns and each value."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except ValueError as error:
        raise DataError(f"{path} must be UTF-8 text. Save it again as such, {again()}") from error
    heading = text.partition("\n")[0]
    delimiter = ";" if heading.count(";") > heading.count(",") else ","
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names = [name.strip().lower() for name in next(reader, [])]
    _check_columns(path, names)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield _parse(path, reader.line_num, names, row)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}. Mend it, {again()}") from error


def _check_columns(path: Path, names: Sequence[str]) -> None:
    repeated = [name for name, num in Counter(names).items() if num > 1 and name in COLUMNS]
    absent = [name for name in NEEDED if name not in names]
    if repeated or absent:
        what = f"two columns {repeated[0]}" if repeated else f"no column {absent[0]}"
        raise DataError(
            f"{path} must have the columns {' and '.join(NEEDED)} once, and may have "
            f"{', '.join(COLUMNS[2:])}; it has {what}. Mend its first line, {again()}"
        )
    unused = [name for name in names if name and name not in COLUMNS]
    for name in unused:
        if close := difflib.get_close_matches(name, set(COLUMNS) - set(names), n=1):
            raise DataError(
                f"{path}: unknown column {name!r}; did you mean {close[0]}? Rename it, {again()}"
            )
    if unused:
        logger.info("%s: columns not used: %s", path, listed(unused))


def _parse(path: Path, number: int, names: Sequence[str], row: Sequence[str]) -> _Line:
    where = f"{path}, line {number}"
    if len(row) > len(names):
        raise DataError(f"{where}: {len(row)} values for {len(names)} columns. Mend it, {again()}")
    cells = dict(zip(names, (cell.strip() for cell in row), strict=False))
    line = _Line(number=number, values={name: cells.get(name, "") for name in COLUMNS})
    for name in NEEDED:
        if not line.values[name]:
            raise DataError(f"{where}: no {name}. Name its file or remove the line, {again()}")
    for file in (line.image, line.mask):
        if file.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{where}: {file} must end in {', '.join(SUFFIXES)}. Convert the file, {again()}"
            )
    if line.values["split"].lower() not in _SPLITS:
        raise DataError(
            f"{where}: split must be train, val, test or empty, got {line.values['split']!r}. "
            f"Mend it, {again()}"
        )
    return line


def _check_each_once(path: Path, lines: Sequence[_Line]) -> None:
    first: dict[PurePosixPath, int] = {}
    for line in lines:
        for file in (line.image, line.mask):
            if file in first:
                raise DataError(
                    f"{path}: {file} is in line {first[file]} and in line {line.number}. A "
                    f"file is one image, or the mask of one. Keep one line, {again()}"
                )
            first[file] = line.number


def _make_ids(path: Path, lines: Sequence[_Line]) -> list[str]:
    """File names without extensions, preceded by their folders' names where not unique."""
    short = [(line.folder, nfc(line.image.stem)) for line in lines]
    num = Counter(short)
    ids = [
        (folder, id_ if num[folder, id_] == 1 else _long_id(line.image))
        for (folder, id_), line in zip(short, lines, strict=True)
    ]
    first: dict[tuple[str, str], _Line] = {}
    for key, line in zip(ids, lines, strict=True):
        if key in first:
            raise DataError(
                f"{path}: {first[key].image} and {line.image} cannot be told apart by their names "
                f"({key[1]}). Rename one, {again()}"
            )
        first[key] = line
    return [id_ for _, id_ in ids]


def _long_id(file: PurePosixPath) -> str:
    return nfc("_".join(part for part in file.with_suffix("").parts if part not in ("/", "..")))


def _check_groups(path: Path, pairs: Sequence[Pair]) -> None:
    """Refuse a group in two splits, or in two folds, and a fold in two splits."""
    for whole, part in (("group", "split"), ("group", "fold"), ("fold", "split")):
        first: dict[str, Pair] = {}
        for pair in pairs:
            name, place = getattr(pair, whole), getattr(pair, part)
            other = first.setdefault(name, pair)
            if name and getattr(other, part) != place:
                raise DataError(
                    f"{path}: {whole} {name} is in {part} {getattr(other, part) or 'none'} "
                    f"({other.id}) and in {part} {place or 'none'} ({pair.id}). A {whole} has one "
                    f"{part}. Mend the lines, {again()}"
                )


class _Found:
    """Files by their name on disk, which may be in another form of Unicode."""

    def __init__(self, source_dir: Path) -> None:
        self._source_dir = source_dir
        self._names: dict[Path, dict[str, Path]] = {}

    def path(self, file: PurePosixPath) -> Path:
        """The file on disk, or the path where it should be."""
        path = self._source_dir / file
        if path.exists() or path.is_symlink():
            return path
        if path.parent not in self._names:
            there = path.parent.iterdir() if path.parent.is_dir() else ()
            self._names[path.parent] = {nfc(one.name): one for one in there}
        return self._names[path.parent].get(nfc(path.name), path)

    def has(self, file: PurePosixPath) -> bool:
        """Whether it exists, even as a broken link."""
        path = self.path(file)
        return path.exists() or path.is_symlink()
