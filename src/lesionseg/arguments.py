"""What several commands take on the command line; importing it takes no time."""

import argparse
import math
from collections.abc import Callable

DEFAULT_MODEL = "results/train_finetuned/model.pt"


def threshold(text: str) -> float:
    """A probability above which a pixel is lesion."""
    value = number(float, text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be a number above 0 and below 1, got '{text}'")
    return value


def number(kind: Callable[[str], float], text: str) -> float:
    """The number a text says, NaN if none."""
    try:
        return kind(text)
    except ValueError:
        return math.nan
