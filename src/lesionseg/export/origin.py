"""What is known about a model.pt, and written into every file exported from it."""

import json
import logging
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from lesionseg.errors import DataError, first_line
from lesionseg.export.graph import INPUTS
from lesionseg.files import sha256
from lesionseg.results.layout import TrainingFiles
from lesionseg.results.training import TrainingRecord

CLASSES = ("background", "lesion")
USE = "Research use, not for diagnosis."
LICENCE = "MIT (program and file); the training images may have terms of their own"
UNKNOWN = "unknown"
_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a model comes from; `unknown` if it is not recorded.

    Attributes:
        model_sha256: SHA-256 of its model.pt.
        commit: Commit of the code that trained it.
        data_sha256: SHA-256 of the index of its training images.
    """

    model_sha256: str
    commit: str = UNKNOWN
    data_sha256: str = UNKNOWN


def read_origin(model_path: Path) -> Origin:
    """What the run.json beside a model records, if it belongs to this model.

    Args:
        model_path: Path of a model.pt, perhaps with a run.json beside it.
    """
    model_sha256 = sha256(model_path)
    files = TrainingFiles(model_path.parent)
    if not files.record.exists():
        return Origin(model_sha256=model_sha256)
    try:
        record = TrainingRecord.read(files, run=model_path.parent.name)
    except DataError as error:
        _log.warning("the file will not say where its model comes from: %s", first_line(error))
        return Origin(model_sha256=model_sha256)
    if record.model_sha256 != model_sha256:  # a copy under another name
        return Origin(model_sha256=model_sha256)
    return Origin(model_sha256=model_sha256, commit=record.commit, data_sha256=record.data_sha256)


def model_metadata(
    origin: Origin, *, threshold: float, image_size: int, precision: str, input_kind: str
) -> dict[str, str]:
    """What an exported file says about itself, as names and texts.

    Args:
        origin: Where the model comes from.
        threshold: A pixel is lesion above this probability, in (0, 1).
        image_size: Height and width in pixels of what the network sees.
        precision: One of `PRECISIONS`.
        input_kind: A key of `INPUTS`.
    """
    return {
        "name": "lesionseg",
        "use": USE,
        "classes": json.dumps(CLASSES),
        "threshold": repr(threshold),
        "image_size": str(image_size),
        "input": INPUTS[input_kind].format(size=image_size),
        "output": f"(N, {image_size}, {image_size}) float32, probability of lesion in [0, 1]",
        "precision": precision,
        "model_sha256": origin.model_sha256,
        "data_sha256": origin.data_sha256,
        "commit": origin.commit,
        "exporter": f"lesionseg {metadata.version('lesionseg')}",
        "packages": json.dumps({name: metadata.version(name) for name in _PACKAGES}),
        "licence": LICENCE,
    }
