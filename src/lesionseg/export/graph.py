"""A trained network as an ONNX graph: pixels in, probabilities out, with metadata inside.

ONNX itself is imported where it is used: it belongs to the extra `export`.
"""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lesionseg.errors import ExportError
from lesionseg.models.segmenter import Segmenter

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 20
INPUT, OUTPUT = "images", "probability"
# The possible inputs of a graph, and how its metadata describes them.
INPUTS = {
    "uint8": "(N, {size}, {size}, 3) uint8 RGB in [0, 255]",
    "float32": "(N, 3, {size}, {size}) float32 RGB in [0, 1]",
}


class _Exported(nn.Module):
    """The probabilities (N, S, S) float32 of images of one of `INPUTS`."""

    def __init__(self, model: Segmenter, *, input_kind: str) -> None:
        super().__init__()
        self.model = model
        self.takes_pixels = input_kind == "uint8"

    def forward(self, images: Tensor) -> Tensor:
        if self.takes_pixels:
            images = images.permute(0, 3, 1, 2).float() / 255
        logits: Tensor = self.model(images)
        return logits.sigmoid().squeeze(1)


def to_onnx(model: Segmenter, *, image_size: int, input_kind: str = "uint8") -> "ModelProto":
    """The network as a graph for any batch size, with its weights inside.

    It begins with normalisation and ends with the sigmoid.

    Args:
        model: As from `load_model`, never moved to another memory layout.
        image_size: Height and width in pixels of what the network sees.
        input_kind: A key of `INPUTS`.
    """
    exported = _Exported(model, input_kind=input_kind).eval()
    # Two images: with one, the batch size would become fixed. In contiguous order: the others keep
    # their strides.
    example = {
        "uint8": torch.zeros(2, image_size, image_size, 3, dtype=torch.uint8),
        "float32": torch.zeros(2, 3, image_size, image_size),
    }[input_kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch and onnxscript
        program = torch.onnx.export(
            exported,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={"images": {0: "batch"}},
            external_data=False,
            verbose=False,
        )
    assert program is not None  # None only with dynamo=False
    graph: ModelProto = program.model_proto
    _forget_sources(graph)
    return graph


def _forget_sources(graph: "ModelProto") -> None:
    """Drop where each node came from: it reveals paths on this machine."""
    for holder in (graph, graph.graph, *graph.graph.node, *graph.graph.value_info):
        del holder.metadata_props[:]
        holder.ClearField("doc_string")


def describe(graph: "ModelProto", metadata: Mapping[str, str]) -> None:
    """Write a model's metadata into its graph, where any program can find it.

    Args:
        graph: Changed in place.
        metadata: Names and texts, as from `model_metadata`.
    """
    import onnx

    onnx.helper.set_model_props(graph, dict(metadata))


def check(graph: "ModelProto") -> None:
    """Return if ONNX's own checker finds no fault, including in types and shapes.

    Raises:
        ExportError: It finds one.
    """
    import onnx

    try:
        onnx.checker.check_model(graph, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX ({error})") from error
