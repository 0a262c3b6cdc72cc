"""`segment.html`: the model, its runtime and its controls in one page that loads nothing else."""

import base64
import gzip
import json
import re
from collections.abc import Mapping
from importlib import resources

from markupsafe import Markup

from lesionseg.export import runtime
from lesionseg.export.runtime import Runtime
from lesionseg.templates import load_template

# Joined in this order to make one script.
SCRIPTS = ("resize.js", "regions.js", "files.js", "photographs.js", "network.js", "page.js")
# Runs before the others, which wait until the whole page is loaded.
_BEGIN = 'document.documentElement.classList.add("has-scripts")'
_LABELS = {
    "use": "Use",
    "model_sha256": "SHA-256 of the model",
    "commit": "Trained at commit",
    "data_sha256": "SHA-256 of its data",
    "image_size": "Pixels a side that it sees",
    "threshold": "Lesion above a probability of",
    "precision": "Precision of its weights",
    "exporter": "Made by",
    "licence": "Licence",
}


def render_page(onnx: bytes, facts: Mapping[str, str], engine: Runtime) -> bytes:
    """The page as a file's content.

    Args:
        onnx: A graph that takes pixels.
        facts: What it says about itself, as from `model_metadata`.
        engine: The runtime for it.
    """
    own = "\n".join(map(read_asset, SCRIPTS))
    settings = {
        "imageSize": int(facts["image_size"]),
        "threshold": float(facts["threshold"]),
        "unpackedBytes": len(onnx) + len(engine.wasm),
    }
    template = load_template("lesionseg.export", "segment/page.html")
    page = template.render(
        facts=facts,
        about={
            **{label: facts[name] for name, label in _LABELS.items()},
            "Runs by": f"{runtime.NAME} {runtime.VERSION} (MIT)",
        },
        style=Markup(read_asset("page.css")),
        scripts=[Markup(_BEGIN), Markup(_as_global(engine.script)), Markup(own)],
        settings=Markup(json.dumps(settings)),
        runtime=Markup(_pack(engine.wasm)),
        model=Markup(_pack(onnx)),
    )
    return page.encode()


def read_asset(name: str) -> str:
    """A file of the page."""
    return (resources.files("lesionseg.export") / "segment" / name).read_text(encoding="utf-8")


def _as_global(module: str) -> str:
    """A module turned into a script with a global object `ort`, as a page could not import it.

    So the page needs no scripts other than those whose hashes its policy names. The module must not
    know that it comes from a file: it would make a URL out of the page's origin, and in Firefox
    such a page has none.
    """
    module = module.replace("import.meta.url", '"page:///"')
    found = re.fullmatch(r"(.*)export\{(.*?)\};\s*(?://#.*)?\s*", module, re.DOTALL)
    assert found is not None
    assert not re.search(r"</script|<!--", found[1], re.IGNORECASE)  # would end or hide the script
    pairs = [pair.split(" as ") for pair in found[2].split(",")]
    members = ",".join(f"{outside}:{inside}" for inside, outside in pairs)
    return f"{found[1]}globalThis.ort={{{members}}};"


def _pack(content: bytes) -> str:
    """Bytes as text for the page: gzip, then base64. The same bytes give the same text."""
    return base64.b64encode(gzip.compress(content, compresslevel=9, mtime=0)).decode()
