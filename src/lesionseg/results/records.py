"""Results as JSON files: written and read as typed records, refused in one line if invalid."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import TypeAdapter, ValidationError

from lesionseg.errors import DataError, rerun
from lesionseg.files import require, write_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pydantic_core import ErrorDetails

Record = TypeVar("Record", bound="DataclassInstance")

# Of the records below `results/`. Raised when the previous version could not read a new file.
FORMAT = 2

_EXPECTED = {
    "float_type": "a number",
    "finite_number": "a number",
    "int_type": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
    "dict_type": "an object",
    "dataclass_type": "an object",
    "tuple_type": "two numbers [low, high]",
    "too_long": "two numbers [low, high]",
}
_MOST_SHOWN = 60  # characters of a value in a message


def write_record(path: Path, record: "DataclassInstance") -> None:
    """Write a record as JSON, its fields in their order."""
    write_json(path, dataclasses.asdict(record))


def read_record(path: Path, kind: type[Record], *, stage: str) -> Record:
    """The record of type `kind` in a JSON file written by `stage`.

    Raises:
        MissingFileError: The file is missing.
        DataError: It is damaged, from another version of this program, or something else.
    """
    content = require(path, stage=stage).read_bytes()
    try:
        record = TypeAdapter(kind).validate_json(content, strict=True)
    except ValidationError as error:
        raise unreadable(_explain(path, kind, content, error), stage=stage) from None
    if (written := getattr(record, "format", FORMAT)) != FORMAT:
        raise unreadable(_foreign(path, written), stage=stage)
    return record


def unreadable(problem: str, *, stage: str) -> DataError:
    """The error about a file that `stage` has to write again."""
    return DataError(problem, remedy=f"Run: {rerun(stage)}")


def _explain(path: Path, kind: type[Record], content: bytes, error: ValidationError) -> str:
    """The first thing that is wrong, and where; or that the file has another format."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return f"{path} is not JSON ({first['ctx']['error']})"
    found = json.loads(content)
    has_format = any(field.name == "format" for field in dataclasses.fields(kind))
    if has_format and isinstance(found, dict) and found.get("format", 1) != FORMAT:
        return _foreign(path, found.get("format", 1))
    # A union of types names the type that it tried last.
    where = ".".join(str(part) for part in first["loc"] if part not in ("str", "int", "bool"))
    if first["type"] == "missing":
        return f"{path} has no {where}"
    return f"{path}: {where or 'it'} must be {_expected(first)}, got {_short(first['input'])}"


def _foreign(path: Path, written: object) -> str:
    return (
        f"{path} was written by another version of this program (format {written}, this one "
        f"reads {FORMAT})"
    )


def _expected(error: "ErrorDetails") -> str:
    return _EXPECTED.get(error["type"], error["msg"])


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."
