"""Command-line options that several commands share; importing this module takes no time."""

import argparse
import math
import re
from collections.abc import Callable

DEFAULT_MODEL = "results/train_finetuned/model.pt"


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the option that names one model."""
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="MODEL",
        help="a model.pt, or models:/NAME@ALIAS of the MLflow registry (default: %(default)s)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses the device."""
    parser.add_argument(
        "--device",
        type=_device,
        default="auto",
        help="auto takes CUDA if available; or cpu, cuda, cuda:1 (default: %(default)s)",
    )


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda or cuda:1, got '{text}'")
    return text


def threshold(text: str) -> float:
    """A probability above which a pixel is lesion."""
    value = _number(float, text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and below 1, got '{text}'")
    return value


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers in [low, high]."""

    def read(text: str) -> int:
        value = _number(int, text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"must be a whole number in [{low}, {high}], got '{text}'"
            )
        return int(value)

    return read


def _number(kind: Callable[[str], float], text: str) -> float:
    """The number written in a text, NaN if it is not one."""
    try:
        return kind(text)
    except ValueError:
        return math.nan
