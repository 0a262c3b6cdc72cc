"""The options of `lesionseg export`; importing this module takes no time."""

import argparse
from pathlib import Path

from lesionseg.arguments import add_model, threshold
from lesionseg.results.layout import Results

PAGE = """A page that segments images in a browser, opened from disk and without a network: it has
everything it needs inside. The first call fetches onnxruntime-web with npm. """
EXPORT = """Write a trained model as one file that runs without this program. It is compared with
torch on the test images, or those given, and not written if the masks differ by more than a stated
bound."""


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the kinds of files, and the options of each, to the parser."""
    parser.description = EXPORT
    parser.epilog = "Example: lesionseg export onnx"
    kinds = parser.add_subparsers(title="kinds", metavar="KIND", dest="kind", required=True)
    onnx = kinds.add_parser(
        "onnx",
        help="an ONNX file, for any program that runs such files",
        description="Uint8 or float images of any batch in, probabilities out. " + EXPORT,
        epilog="Example: lesionseg export onnx --out lesion.onnx",
    )
    onnx.add_argument(
        "--input",
        choices=["uint8", "float32"],
        default="uint8",
        help="input of the graph: (N, S, S, 3) uint8 RGB, or (N, 3, S, S) float32 in [0, 1] "
        "(default: %(default)s)",
    )
    _add_common(onnx, out=Path("lesionseg.onnx"), precision="float32")
    html = kinds.add_parser(
        "html",
        help="a page for any browser, which segments images and sends them nowhere",
        description=PAGE + EXPORT,
        epilog="Example: lesionseg export html --out segment.html",
    )
    html.set_defaults(input="uint8")
    _add_common(html, out=Results().segment_page, precision="float16")


def _add_common(parser: argparse.ArgumentParser, *, out: Path, precision: str) -> None:
    add_model(parser)
    parser.add_argument(
        "--out", type=Path, default=out, metavar="FILE", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "float16", "int8"],
        default=precision,
        help="float32: the unchanged model; float16: large weights stored in half precision, "
        "computed in float32; int8: large convolutions in integers (default: %(default)s)",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        type=Path,
        default=[],
        metavar="PATH",
        help="images or folders to compare the masks on (default: data/processed/test)",
    )
    parser.add_argument(
        "--threshold",
        type=threshold,
        metavar="P",
        help="a pixel is lesion above this probability, in (0, 1) (default: the threshold that the "
        "model was evaluated with in results/, or else 0.5)",
    )
