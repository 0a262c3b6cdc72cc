"""The page at `/`: how to use the server, from its OpenAPI description, and a form to try it."""

from pathlib import Path
from typing import Any

from lesionseg.serving.limits import Limits
from lesionseg.serving.service import Served
from lesionseg.templates import load_template, policy_hash

_FOLDER = Path(__file__).parent


def write_page(
    schema: dict[str, Any], served: Served, limits: Limits, *, origin: str
) -> tuple[str, str]:
    """The page, which loads nothing from elsewhere, and the policy that keeps it from doing so.

    Args:
        schema: The OpenAPI schema.
        served: The model.
        limits: What the server accepts.
        origin: The server's address as the browser knows it, with a slash at its end.
    """
    style, script = (
        (_FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    template = load_template("lesionseg.serving", "page.html")
    text = template.render(
        schema=schema,
        served=served,
        limits=limits,
        origin=origin,
        style=style,
        script=script,
    )
    policy = (
        f"default-src 'none'; style-src '{policy_hash(style)}'; "
        f"script-src '{policy_hash(script)}'; connect-src 'self'; img-src blob: data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy
