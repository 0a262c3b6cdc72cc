"""The numbers of training images at which a curve is measured."""

import csv
from pathlib import Path

from lesionseg.errors import ConfigError
from lesionseg.files import require

ALL = "all"
MOST_SIZES, FEWEST_IMAGES = 5, 10  # of the default sizes


def count_images(processed_dir: Path, split: str) -> int:
    """How many images a split has.

    Raises:
        MissingFileError: `preprocess` has not made it.
    """
    path = require(processed_dir / split / "index.csv", stage="preprocess")
    with path.open(newline="", encoding="utf-8") as stream:
        return sum(1 for _ in csv.DictReader(stream))


def choose_sizes(text: str, *, num_train: int) -> list[int]:
    """Numbers of training images, ascending.

    Args:
        text: Such as `40,80,all`; if empty, halvings of `num_train`, down to a few images.
        num_train: Images of the training split, called `all`.

    Raises:
        ConfigError: One is not a number of images, is too large, or occurs twice.
    """
    if not text:
        halvings = [round(num_train / 2**power) for power in range(MOST_SIZES)]
        few = [size for size in halvings[1:] if size >= FEWEST_IMAGES]
        return sorted([num_train, *few])
    sizes = [_read_size(word.strip(), num_train=num_train) for word in text.split(",")]
    for size in sizes:
        if sizes.count(size) > 1:
            raise ConfigError(f"--sizes {text}: {size} images are listed twice; keep one")
    return sorted(sizes)


def _read_size(word: str, *, num_train: int) -> int:
    if word == ALL:
        return num_train
    size = int(word) if word.isdecimal() and len(word) < 10 else 0
    if not 1 <= size <= num_train:
        raise ConfigError(
            f"--sizes: {word!r} must be a whole number in [1, {num_train}], the images of the "
            f"training split, or {ALL}"
        )
    return size
