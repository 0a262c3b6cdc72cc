"""How far an exported model's masks must agree with torch's for its file to be written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lesionseg.errors import ExportError

# Different orders of summation change float32 probabilities by up to 2e-5: measured in torch with
# one model in two memory layouts, over 305 images. For a pixel nearer to the threshold than this,
# rounding decides.
ROUNDING = 1e-4


@dataclass(frozen=True, kw_only=True)
class Bound:
    """How far masks may differ: mean and minimum of the jaccard of each image's two masks."""

    mean: float
    least: float


# float32 has no bound: there, only pixels within `ROUNDING` of the threshold may differ.
BOUNDS: Mapping[str, Bound] = {
    "float16": Bound(mean=0.999, least=0.98),
    "int8": Bound(mean=0.98, least=0.8),
}
_REMEDIES = {
    "float32": "Another version of onnxruntime or onnxscript may be at fault",
    "float16": "Take --precision float32",
    "int8": "Take --precision float16",
}


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well two models' masks of the same images agree.

    Attributes:
        num_pixels: Pixels of all masks together.
        differing: (N,) number of pixels that differ in each image.
        beyond_rounding: (N,) number of those that are further than `ROUNDING` from the threshold.
        jaccard: (N,) jaccard of each image's two masks; 1.0 where both are empty.
        largest_difference: Largest difference between two probabilities.
    """

    num_pixels: int
    differing: NDArray[np.int64]
    beyond_rounding: NDArray[np.int64]
    jaccard: NDArray[np.float64]
    largest_difference: float

    def __str__(self) -> str:
        return (
            f"{self.differing.sum():,} of {self.num_pixels:,} pixels differ "
            f"(at most {self.differing.max():,} in an image), jaccard of the masks "
            f"{self.jaccard.mean():.5f} on average and {self.jaccard.min():.5f} at least, "
            f"probabilities by up to {self.largest_difference:.1g}"
        )


def compare(
    ours: NDArray[np.float32], theirs: NDArray[np.float32], *, threshold: float
) -> Agreement:
    """How well two models' masks agree.

    Args:
        ours: (N, H, W) probabilities in [0, 1] from torch.
        theirs: The same from the exported model.
        threshold: A pixel is lesion above this probability, in (0, 1).
    """
    ours, theirs = (array.reshape(len(array), -1) for array in (ours, theirs))
    our_masks, their_masks = ours > threshold, theirs > threshold
    differs = our_masks != their_masks
    union = (our_masks | their_masks).sum(axis=1)
    shared = (our_masks & their_masks).sum(axis=1)
    return Agreement(
        num_pixels=ours.size,
        differing=differs.sum(axis=1),
        beyond_rounding=(differs & (np.abs(ours - threshold) > ROUNDING)).sum(axis=1),
        jaccard=np.where(union == 0, 1.0, shared / np.maximum(union, 1)),
        largest_difference=float(np.abs(ours - theirs).max()),
    )


def state_bound(precision: str) -> str:
    """The bound of a precision in words."""
    if precision not in BOUNDS:
        return f"no pixel may differ unless it is within {ROUNDING:g} of the threshold"
    bound = BOUNDS[precision]
    return f"jaccard at least {bound.mean} on average and {bound.least} in each image"


def require_agreement(agreement: Agreement, *, precision: str, names: Sequence[str]) -> None:
    """Return if the masks agree as well as the precision requires.

    Args:
        agreement: Of the exported model with torch.
        precision: One of `PRECISIONS`.
        names: The images' names.

    Raises:
        ExportError: They do not.
    """
    if precision not in BOUNDS:
        fails = bool(agreement.beyond_rounding.any())
        worst = int(agreement.beyond_rounding.argmax())
    else:
        bound = BOUNDS[precision]
        mean, least = agreement.jaccard.mean(), agreement.jaccard.min()
        fails = not (mean >= bound.mean and least >= bound.least)
        worst = int(agreement.jaccard.argmin())
    if fails:
        raise ExportError(
            f"not written: in {precision} the exported model does not give the model's masks. "
            f"Expected: {state_bound(precision)}. Got: {agreement}, worst in {names[worst]}",
            remedy=_REMEDIES[precision],
        )
