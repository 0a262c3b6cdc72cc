"""The page's facts about the trainings: data, start, parameters, provenance, how to repeat them."""

import shlex
from collections.abc import Mapping

from lesionseg.data.leaks import SOURCES_WITH_UNIQUE_IDS
from lesionseg.report.inputs import Inputs
from lesionseg.results.layout import FINETUNED, FROZEN
from lesionseg.results.training import TrainingRecord

_OF_ENCODER = {"imagenet": "with ImageNet weights", "none": "with random weights"}
# Parameters that have another name in params.yaml, or follow from others.
_NOT_SET = ("encoder", "encoder_lr", "fold")


def say_facts(inputs: Inputs) -> str:
    """One line: which data, how many images, how the encoder starts, how long it trains."""
    record = inputs.records[FINETUNED]
    source = str(record.param("download.source"))
    if source == "folder":
        source = f"the folder {record.param('download.folder')}"
    weights = str(record.param("download.weights"))
    counts = {name: f"{len(split.index):,}" for name, split in inputs.splits.items()}
    if record.params.get("train.num_images"):
        counts["train"] = f"{record.num_images:,} of {counts['train']}"
    images = ", ".join(f"{count} {name}" for name, count in counts.items())
    return (
        f"Data: {source}, {images} images. The encoder starts "
        f"{_OF_ENCODER.get(weights, f'with the weights of {weights}')}; decoder "
        f"{record.param('model.decoder')}, {record.param('train.epochs')} epochs."
    )


def has_archive_ids(record: TrainingRecord) -> bool:
    """Whether images have ids from ISIC's archive, by which copies are found."""
    sources = str(record.param("download.source")).split(", ")
    return any(source in SOURCES_WITH_UNIQUE_IDS for source in sources)


def list_settings(inputs: Inputs) -> list[tuple[str, str]]:
    """Name and value of each parameter behind the numbers, as `dvc exp run -S` takes them."""
    records, comparison = inputs.records, inputs.comparison
    params = {k: v for k, v in records[FINETUNED].params.items() if k not in _NOT_SET}
    params["train.num_seeds"] = comparison.seeds.num_seeds if comparison.seeds else 1
    for run in (FROZEN, FINETUNED):
        params[f"{run}.encoder_lr"] = records[run].param("encoder_lr")
    for name in ("threshold", "surface_tolerance", "confidence", "num_resamples"):
        params[f"evaluate.{name}"] = getattr(comparison, name)
    params["evaluate.tta_views"] = int(inputs.variants["num_views"].max())
    return [(name, _quote(value)) for name, value in params.items()]


def _quote(value: object) -> str:
    """A value quoted for the shell and, if it has special characters, for DVC."""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    if ", " in text:  # sources that are joined
        return shlex.quote(f"[{text}]")
    if isinstance(value, str) and not text.isalnum():
        return shlex.quote(f"'{text}'")
    return text


def parameter_rows(records: Mapping[str, TrainingRecord]) -> list[tuple[str, list[str]]]:
    """Name and a value for each run."""
    names = dict.fromkeys(name for record in records.values() for name in record.params)
    return [
        (name, [_text(record.params.get(name)) for record in records.values()]) for name in names
    ]


def provenance_rows(records: Mapping[str, TrainingRecord]) -> list[tuple[str, list[str]]]:
    """Label and a value for each run."""
    labels = {
        "commit": "Commit",
        "dvc_experiment": "DVC experiment",
        "data_sha256": "SHA-256 of the data",
        "model_sha256": "SHA-256 of the model",
        "training_key": "MLflow run, by its tag training_key",
        "device": "Device",
        "precision": "Precision",
    }
    rows = [
        (label, [_text(getattr(record, key)) for record in records.values()])
        for key, label in labels.items()
    ]
    names = dict.fromkeys(name for record in records.values() for name in record.versions)
    return rows + [
        (name, [_text(record.versions.get(name)) for record in records.values()]) for name in names
    ]


def _text(value: object) -> str:
    return "–" if value in (None, "") else str(value)
