"""`lesionseg export`: a model as a file for other programs, written only if its masks agree."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.data.dataset import load_split
from lesionseg.errors import DataError, MissingFileError, repro
from lesionseg.export import gate, graph, latency, precision
from lesionseg.export.origin import Origin, model_metadata
from lesionseg.export.page import render_page
from lesionseg.export.runtime import load_runtime
from lesionseg.files import write_bytes
from lesionseg.hardware import choose_device
from lesionseg.inference.decoding import decode
from lesionseg.inference.predictor import BATCH_SIZE, Predictor
from lesionseg.inference.sources import find_images
from lesionseg.inference.threshold import find_threshold
from lesionseg.models.segmenter import Segmenter
from lesionseg.results.layout import Results

if TYPE_CHECKING:
    from onnx import ModelProto

Pixels = NDArray[np.uint8]
PROCESSED_DIR = Path("data/processed")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to export.

    Attributes:
        precision: One of `PRECISIONS`.
        threshold: A pixel is lesion above this probability, in (0, 1).
        input_kind: A key of `INPUTS`.
        is_timed: Whether to measure latencies.
    """

    precision: str
    threshold: float
    input_kind: str = "uint8"
    is_timed: bool = False


@dataclass(frozen=True, kw_only=True)
class Material:
    """Images to try an exported model on.

    Attributes:
        images: (N, S, S, 3) uint8 RGB in [0, 255], at the network's size.
        names: The name of each image.
        calibration: Like `images`: those that set the scales of integers.
        place: Where they come from, for people to read.
    """

    images: Pixels
    names: Sequence[str]
    calibration: Pixels
    place: str


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported model whose masks have been compared.

    Attributes:
        onnx: The file's content.
        metadata: What the file says about itself.
        agreement: How well its masks agree with torch's.
        latencies: Of both; empty unless asked for.
    """

    onnx: bytes
    metadata: dict[str, str]
    agreement: gate.Agreement
    latencies: Sequence[latency.Latency]


def run(arguments: argparse.Namespace, network: tuple[Segmenter, int], origin: Origin) -> str:
    """What was written and how it compares, for the terminal.

    Args:
        arguments: As parsed with `add_export`.
        network: As from `load_model`, and never moved to another memory layout.
        origin: Where it comes from.

    Raises:
        ExportError: The masks differ by more than the precision's bound, or the runtime for the
            page cannot be fetched.
        MissingFileError: There are no images to compare the masks on.
        DataError: An image cannot be read, or the images have the wrong size.
    """
    is_page = arguments.kind == "html"
    engine = load_runtime() if is_page else None
    settings = Settings(
        precision=arguments.precision,
        threshold=arguments.threshold
        or find_threshold(Results(), model_sha256=origin.model_sha256),
        input_kind=arguments.input,
        is_timed=not is_page,
    )
    material = read_material(arguments.images, image_size=network[1])
    exported = export_model(network, origin, settings, material)
    content = render_page(exported.onnx, exported.metadata, engine) if engine else exported.onnx
    write_bytes(arguments.out, content)
    return show(exported, material, arguments.out, is_page=is_page)


def read_material(paths: Sequence[Path], *, image_size: int) -> Material:
    """The given images, or else the test split in `PROCESSED_DIR`.

    Args:
        paths: Files and folders; none for the test split.
        image_size: Height and width in pixels of what the network sees.

    Raises:
        MissingFileError: There are no images.
        DataError: An image cannot be read, or the images have the wrong size.
    """
    if paths:
        found = find_images(paths, out_dir=Path("predictions"))
        if found.unusable:
            raise DataError(found.unusable[0])
        images = [decode(source.path, image_size=image_size).pixels for source in found.sources]
        pixels = np.stack(images)
        return Material(
            images=pixels,
            names=[source.name for source in found.sources],
            calibration=_spread(pixels),
            place=", ".join(map(str, paths)),
        )
    test_dir = PROCESSED_DIR / "test"
    if not test_dir.exists():
        raise MissingFileError(
            f"{test_dir} is missing, and the exported masks are compared on images",
            remedy=f"Give some with --images, or run: {repro('preprocess')}",
        )
    test, val = (load_split(PROCESSED_DIR, name) for name in ("test", "val"))
    if test.image_size != image_size:
        raise DataError(
            f"{test_dir} has images of {test.image_size} pixels, and the model sees {image_size}",
            remedy="Give others with --images",
        )
    return Material(
        images=np.array(test.images),
        names=test.ids,
        calibration=_spread(val.images),
        place=str(test_dir),
    )


def _spread(images: Pixels) -> Pixels:
    """At most `NUM_CALIBRATION` images, evenly spread over all."""
    num = min(len(images), precision.NUM_CALIBRATION)
    return np.array(images[np.linspace(0, len(images) - 1, num).astype(int)])


def export_model(
    network: tuple[Segmenter, int], origin: Origin, settings: Settings, material: Material
) -> Exported:
    """The model as an ONNX file's content, verified by ONNX's checker and by its masks.

    Args:
        network: As for `run`; afterwards it has the memory layout of a `Predictor`.
        origin: Where it comes from.
        settings: What to export.
        material: What to compare the masks on.

    Raises:
        ExportError: The masks differ by more than the precision's bound.
    """
    model, image_size = network
    facts = model_metadata(
        origin,
        threshold=settings.threshold,
        image_size=image_size,
        precision=settings.precision,
        input_kind=settings.input_kind,
    )
    made = _make_graph(model, image_size, settings, material)
    graph.describe(made, facts)
    graph.check(made)
    content = made.SerializeToString()
    predictor = Predictor([model], image_size=image_size, device=choose_device("cpu"))
    ours, theirs = material.images, _as_input(material.images, settings.input_kind)
    agreement = gate.compare(
        _in_batches(predictor.forward, ours),
        _in_batches(_runner(content), theirs),
        threshold=settings.threshold,
    )
    gate.require_agreement(agreement, precision=settings.precision, names=material.names)
    latencies: Sequence[latency.Latency] = ()
    if settings.is_timed:
        latencies = latency.measure(
            by_torch=predictor.forward,
            make_session=lambda num_threads: _runner(content, num_threads=num_threads),
            images=(ours[: max(latency.BATCH_SIZES)], theirs[: max(latency.BATCH_SIZES)]),
            seconds=latency.SECONDS,
        )
    return Exported(onnx=content, metadata=facts, agreement=agreement, latencies=latencies)


def _make_graph(
    model: Segmenter, image_size: int, settings: Settings, material: Material
) -> "ModelProto":
    """The network's graph in its precision."""
    made = graph.to_onnx(model, image_size=image_size, input_kind=settings.input_kind)
    if settings.precision == "float16":
        return precision.halve_weights(made)
    if settings.precision == "int8":
        return precision.quantise(made, _as_input(material.calibration, settings.input_kind))
    return made


def _as_input(pixels: Pixels, input_kind: str) -> NDArray[Any]:
    """Images as an exported model takes them."""
    if input_kind == "uint8":
        return pixels
    return pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)


def _runner(content: bytes, *, num_threads: int = 0) -> latency.Engine:
    """A function that runs an exported model on a batch."""
    session = latency.open_session(content, num_threads=num_threads)

    def run(images: NDArray[Any]) -> NDArray[np.float32]:
        (probability,) = session.run([graph.OUTPUT], {graph.INPUT: images})
        result: NDArray[np.float32] = np.asarray(probability)
        return result

    return run


def _in_batches(engine: latency.Engine, images: NDArray[Any]) -> NDArray[np.float32]:
    """The probabilities of all images."""
    starts = range(0, len(images), BATCH_SIZE)
    return np.concatenate([np.asarray(engine(images[i : i + BATCH_SIZE])) for i in starts])


def show(exported: Exported, material: Material, out: Path, *, is_page: bool) -> str:
    """What was made, and how it compares, for the terminal."""
    facts = exported.metadata
    size = out.stat().st_size / 1e6
    use = "open it in any browser" if is_page else f"input {facts['input']}"
    lines = [
        f"{out}: {size:.1f} MB, {facts['precision']}, threshold {facts['threshold']}; {use}",
        f"masks of {len(material.names)} images ({material.place}) beside torch's: "
        f"{exported.agreement}",
        f"(bound: {gate.state_bound(facts['precision'])})",
    ]
    table = latency.show(exported.latencies) if exported.latencies else ""
    return "\n".join(lines) + f"\n{table}"
