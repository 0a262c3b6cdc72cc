"""The page at `/`: how to ask the server, from its OpenAPI description, and a form to try it."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lesionseg.serving.limits import Limits
from lesionseg.serving.service import Served

_FOLDER = Path(__file__).parent


def write_page(
    schema: dict[str, Any], served: Served, limits: Limits, *, origin: str
) -> tuple[str, str]:
    """The page, which loads nothing from elsewhere, and the policy that keeps it from doing so.

    Args:
        schema: OpenAPI's.
        served: The model.
        limits: What the server takes.
        origin: The server's address as the browser knows it, with a slash at its end.
    """
    style, script = (
        (_FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("page.html").render(
        schema=schema,
        served=served,
        limits=limits,
        origin=origin,
        style=style,
        script=script,
    )
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "connect-src 'self'; img-src blob: data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return text, policy


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
