"""Tables that a stage has written, checked column by column when they are read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lesionseg.errors import DataError, first_line
from lesionseg.files import require


def read_table(
    path: Path,
    numbers: Sequence[str] = (),
    *,
    text: Sequence[str] = (),
    blank: Sequence[str] = (),
    stage: str,
) -> pd.DataFrame:
    """A CSV file's rows.

    Args:
        path: The file.
        numbers: Columns with a number in each row.
        text: Columns with text in each row; ids stay text, whatever they look like.
        blank: Columns of numbers where a row may hold none.
        stage: What wrote the file.

    Raises:
        MissingFileError: It is not there.
        DataError: It is no table, or a column is not as it must be.
    """
    require(path, stage=stage)
    remedy = f"Run: dvc repro -f {stage}"
    try:
        table = pd.read_csv(
            path, dtype=dict.fromkeys(text, "str"), keep_default_na=False, na_values=[""]
        )
    except ValueError as error:
        raise DataError(f"{path} is not CSV ({first_line(error)}). {remedy}") from None
    for column in (*text, *numbers, *blank):
        if column not in table:
            raise DataError(f"{path} has no column {column}. {remedy}")
        given = table[column]
        if column not in text:
            table[column] = pd.to_numeric(given, errors="coerce")
        is_wrong = table[column].isna() & (given.notna() if column in blank else True)
        if is_wrong.any():
            row = int(np.flatnonzero(is_wrong)[0])
            expected = "text" if column in text else "a number"
            got = "nothing" if pd.isna(given.iloc[row]) else repr(given.iloc[row])
            raise DataError(
                f"{path}: {column} in line {row + 2} must be {expected}, got {got}. {remedy}"
            )
    return table
