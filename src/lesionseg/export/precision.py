"""Smaller files: weights of half precision, or convolutions in 8-bit integers."""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lesionseg.export.graph import INPUT

if TYPE_CHECKING:
    from onnx import ModelProto

PRECISIONS = ("float32", "float16", "int8")
# Number of weights from which a tensor is stored in half precision, or computed in integers. The
# smaller tensors, depthwise and early ones, hold 2 % of all weights, and change masks most: with
# all tensors halved, 7 to 15 pixels of a 128x128 mask differ on average; with the large ones, 0.1
# to 0.7.
LARGE_HALF = 25_000
LARGE_INT8 = 20_000
NUM_CALIBRATION = 64  # images whose activations set the scales of the integers
_BATCH_SIZE = 16


def halve_weights(graph: "ModelProto") -> "ModelProto":
    """The graph with its large weights in float16, each converted back to float32 before its use.

    Everything is computed in float32, as on any processor; runtimes convert the weights back once,
    when they load the file. The only change is that these weights are rounded to 11 bits.

    Args:
        graph: Not changed.
    """
    from onnx import ModelProto, TensorProto, helper, numpy_helper

    halved = ModelProto()
    halved.CopyFrom(graph)
    casts = []
    for tensor in halved.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < LARGE_HALF:
            continue
        name = tensor.name
        values = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(values, f"{name}_half"))
        casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *halved.graph.node]
    del halved.graph.node[:]
    halved.graph.node.extend(nodes)
    return halved


def quantise(graph: "ModelProto", calibration: NDArray[np.generic]) -> "ModelProto":
    """The graph with its large 1x1 convolutions in 8-bit integers, per channel.

    They hold most of its multiplications, and the others do not tolerate such rounding.

    Args:
        graph: Not changed.
        calibration: (N, ...) images as the graph takes them, whose activations set the scales.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, _quiet():
        given, prepared, written = (Path(folder) / f"{name}.onnx" for name in "abc")
        onnx.save(graph, str(given))
        quant_pre_process(str(given), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(written),
            _Batches(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=_large_pointwise(onnx.load(str(prepared))),
        )
        quantised: ModelProto = onnx.load(str(written))
    del quantised.metadata_props[:]
    return quantised


def _large_pointwise(graph: "ModelProto") -> list[str]:
    """Names of the 1x1 convolutions with many weights."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
    return [
        node.name
        for node in graph.graph.node
        if node.op_type == "Conv"
        and shapes[node.input[1]][2:] == (1, 1)
        and np.prod(shapes[node.input[1]]) >= LARGE_INT8
    ]


class _Batches:
    """Images in batches, as the calibration asks for them."""

    def __init__(self, images: NDArray[np.generic]) -> None:
        self._batches = iter(np.split(images, range(_BATCH_SIZE, len(images), _BATCH_SIZE)))

    def get_next(self) -> Mapping[str, NDArray[np.generic]] | None:
        """The next batch, None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


@contextmanager
def _quiet() -> Iterator[None]:
    """A block in which onnxruntime's messages about its own steps are hidden."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
