"""Results as CSV files: the columns that a table must have, checked when it is read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lesionseg.errors import first_line
from lesionseg.files import require, write_csv
from lesionseg.results.records import unreadable

Row = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a CSV file must hold; it may hold more.

    Attributes:
        stage: The stage that writes it.
        text: Columns with text in each row; ids stay text, whatever they look like.
        numbers: Columns with a number in each row.
        blank: Columns of numbers that may be empty in a row.
        may_be_empty: Whether a table without rows is valid.
    """

    stage: str
    text: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    blank: tuple[str, ...] = ()
    may_be_empty: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """All required columns."""
        return (*self.text, *self.numbers, *self.blank)

    def write(self, path: Path, rows: Iterable[Row]) -> None:
        """Write rows, each of which has at least these columns.

        Raises:
            ValueError: There is no row, or the first one lacks a column.
        """
        rows = list(rows)
        if lacking := set(self.columns) - rows[0].keys() if rows else set():
            raise ValueError(f"{path}: the rows have no {', '.join(sorted(lacking))}")
        write_csv(path, rows)

    def read(self, path: Path) -> pd.DataFrame:
        """The rows of a file.

        Raises:
            MissingFileError: It is missing.
            DataError: It is not such a table, or has no rows.
        """
        require(path, stage=self.stage)
        try:
            table = pd.read_csv(
                path,
                dtype=dict.fromkeys(self.text, "str"),
                keep_default_na=False,
                na_values=[""],
            )
        except ValueError as error:  # an empty file, other bytes than text, ragged lines
            problem = f"{path} is not CSV ({first_line(error)})"
            raise unreadable(problem, stage=self.stage) from None
        for column in self.columns:
            if column not in table:
                raise unreadable(f"{path} has no column {column}", stage=self.stage)
            self._check(path, table, column)
        if table.empty and not self.may_be_empty:
            raise unreadable(f"{path} has no rows", stage=self.stage)
        return table

    def _check(self, path: Path, table: pd.DataFrame, column: str) -> None:
        """Convert a column to its type, or raise DataError with its first wrong line."""
        given = table[column]
        if column not in self.text:
            table[column] = pd.to_numeric(given, errors="coerce")
        is_wrong = table[column].isna() & (given.notna() if column in self.blank else True)
        if is_wrong.any():
            row = int(np.flatnonzero(is_wrong)[0])
            expected = "text" if column in self.text else "a number"
            got = "nothing" if pd.isna(given.iloc[row]) else repr(given.iloc[row])
            problem = f"{path}: {column} in line {row + 2} must be {expected}, got {got}"
            raise unreadable(problem, stage=self.stage)
