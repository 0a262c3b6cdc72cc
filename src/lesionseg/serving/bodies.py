"""The image in the body of a request, in each form in which it may be sent."""

import json

from fastapi import HTTPException
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder

from lesionseg.errors import DataError, first_line
from lesionseg.inference.payloads import read_base64

FIELD = "image"
FILES = ("image/jpeg", "image/png")
_MOST_PARTS = 10
_WAYS = f"multipart/form-data, application/json, {' or '.join(FILES)}"
_BINARY = {"type": "string", "format": "binary"}
# The body's description for OpenAPI, as FastAPI does not read the body itself.
SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {FIELD: {**_BINARY, "description": "A JPEG or PNG file."}},
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {
                        FIELD: {
                            "type": "string",
                            "contentEncoding": "base64",
                            "description": "Base64 of a JPEG or PNG file, or a data URL of it.",
                        }
                    },
                }
            },
            **{kind: {"schema": _BINARY} for kind in FILES},
        },
    }
}


def find_image(body: bytes, content_type: str) -> bytes:
    """The file that a request sends.

    Args:
        body: The request's body.
        content_type: The request's Content-Type header.

    Raises:
        HTTPException: 415 for another content type.
        DataError: There is no image in it.
    """
    kind, options = parse_options_header(content_type)
    if kind == "multipart/form-data":
        return _from_form(body, options.get("boundary", ""))
    if kind == "application/json":
        return _from_json(body)
    if kind in FILES:
        return body
    raise HTTPException(415, f"send {_WAYS}, got {kind or 'no content type'}")


def _from_form(body: bytes, boundary: str) -> bytes:
    decoder = MultipartDecoder(boundary.encode(), max_parts=_MOST_PARTS)
    found: list[bytearray] = []
    is_image = False
    try:
        decoder.receive_data(body)
        decoder.receive_data(None)
        while not isinstance(event := decoder.next_event(), Epilogue):
            if isinstance(event, Field | File):
                is_image = event.name == FIELD
                found += [bytearray()] if is_image else []
            elif isinstance(event, Data) and is_image:
                found[-1] += event.data
    except (ValueError, RequestEntityTooLarge) as error:
        raise DataError(f"the form cannot be read ({first_line(error)})") from None
    if len(found) != 1:
        raise DataError(f"send one file in the field {FIELD}, got {len(found)}")
    return bytes(found[0])


def _from_json(body: bytes) -> bytes:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the body is not JSON ({first_line(error)})") from None
    text = content.get(FIELD) if isinstance(content, dict) else None
    if not isinstance(text, str):
        raise DataError(f'send {{"{FIELD}": "BASE64"}}')
    return read_base64(text)
