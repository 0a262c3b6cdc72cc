"""What the splits hold, one line each, and what about it is implausible."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """The images and masks of a split in numbers.

    `heights` and `widths` are the smallest and the largest in pixels. `lesion_fraction` is the
    mean over images of the share of lesion: 0 in an empty mask, 1 in a full one.
    """

    name: str
    num_images: int
    heights: tuple[int, int]
    widths: tuple[int, int]
    lesion_fraction: float
    num_empty: int
    num_full: int

    def __str__(self) -> str:
        return (
            f"{self.num_images} images of {_range(self.heights)} x {_range(self.widths)} pixels "
            f"(height x width); masks: {100 * self.lesion_fraction:.1f} % lesion on average, "
            f"{self.num_empty} empty, {self.num_full} full"
        )


def summarise(
    name: str, *, sizes: Sequence[tuple[int, int]], lesion_fractions: Sequence[float]
) -> SplitSummary:
    """The summary of a split with at least one image.

    Args:
        name: The split.
        sizes: (H, W) of each image in pixels.
        lesion_fractions: Share of lesion in each mask, in [0, 1].
    """
    heights, widths = zip(*sizes, strict=True)
    return SplitSummary(
        name=name,
        num_images=len(sizes),
        heights=(min(heights), max(heights)),
        widths=(min(widths), max(widths)),
        lesion_fraction=float(np.mean(lesion_fractions)),
        num_empty=sum(fraction == 0 for fraction in lesion_fractions),
        num_full=sum(fraction == 1 for fraction in lesion_fractions),
    )


def log_summaries(folder: Path, summaries: Sequence[SplitSummary]) -> None:
    """Log a line for each split of `folder`, and a warning for everything implausible."""
    for summary in summaries:
        logger.info("%s: %s", folder / summary.name, summary)
    doubts = {summary.name: _doubt(summary) for summary in summaries}
    for doubt in sorted({text for text in doubts.values() if text}):
        names = ", ".join(name for name, text in doubts.items() if text == doubt)
        logger.warning("WARNING: %s: %s", folder, doubt.format(names=names))


def _doubt(summary: SplitSummary) -> str:
    """What is implausible about a split's masks, with {names} for the split; "" if nothing."""
    if summary.num_empty == summary.num_images:
        return (
            "all masks of {names} are empty. If there are lesions, a mask must be 255 inside and "
            "0 outside"
        )
    if summary.num_full == summary.num_images:
        return (
            "all masks of {names} are full, no image has any skin. A mask must be 255 inside the "
            "lesion and 0 outside"
        )
    if summary.lesion_fraction > 0.5:
        return (
            "lesion is more than half of an image of {names} on average. Are the masks inverted? "
            "A mask must be 255 inside the lesion and 0 outside"
        )
    return ""


def _range(bounds: tuple[int, int]) -> str:
    low, high = bounds
    return f"{low}" if low == high else f"{low}-{high}"
