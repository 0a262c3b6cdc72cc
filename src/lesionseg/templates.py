"""Templates of pages and texts, filled by jinja; a name without a value is an error."""

import base64
import hashlib
from collections.abc import Callable

import jinja2

# The head of a page that is opened from disk, up to its style: nothing is loaded from elsewhere,
# and `policy` says what the page itself may contain.
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; {{ policy }}; base-uri 'none'; form-action 'none'">
<title>{{ title }}</title>

"""  # noqa: E501


def load_template(package: str, name: str, **filters: Callable[..., str]) -> jinja2.Template:
    """A template of a package, which may include `head.html`.

    If its name ends in .html, the values filled in are escaped.

    Args:
        package: Such as `lesionseg.report`.
        name: Its path in the package, with `/` between folders.
        filters: Filters by name, in addition to jinja's own and `policy_hash`.
    """
    templates = jinja2.PackageLoader(package, ".")
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([templates, jinja2.DictLoader({"head.html": _HEAD})]),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"policy_hash": policy_hash, **filters}
    return environment.get_template(name)


def policy_hash(text: str) -> str:
    """The hash by which a Content-Security-Policy identifies a script or a style sheet."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
