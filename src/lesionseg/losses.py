"""Losses on logits: one value per image, then the mean over images.

Sums run over the pixels of one image, never over the batch, so that a small lesion weighs as much
as a large one. `SMOOTH` defines the value for empty masks: an empty prediction costs 0 and the
loss grows with every pixel predicted.
"""

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

SMOOTH = 1.0  # pixels


def bce(logits: Tensor, masks: Tensor) -> Tensor:
    """Binary cross-entropy, the mean over pixels: (N,) from two of (N, 1, H, W)."""
    loss = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    return loss.flatten(1).mean(1)


def _overlap(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Soft intersection, and the sum of both areas: (N,) each, in pixels."""
    probabilities, masks = logits.sigmoid().flatten(1), masks.flatten(1)
    return (probabilities * masks).sum(1), probabilities.sum(1) + masks.sum(1)


def dice(logits: Tensor, masks: Tensor) -> Tensor:
    """One minus the soft Dice coefficient (Milletari et al. 2016, arXiv:1606.04797), (N,)."""
    intersection, areas = _overlap(logits, masks)
    return 1 - (2 * intersection + SMOOTH) / (areas + SMOOTH)


def iou(logits: Tensor, masks: Tensor) -> Tensor:
    """One minus the soft Jaccard index (Rahman and Wang 2016, doi:10.1007/978-3-319-50835-1_22)."""
    intersection, areas = _overlap(logits, masks)
    return 1 - (intersection + SMOOTH) / (areas - intersection + SMOOTH)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"bce": bce, "dice": dice, "iou": iou}


def weighted_sum(logits: Tensor, masks: Tensor, *, weights: Mapping[str, float]) -> Tensor:
    """The weighted sum of `LOSSES`, one value per image: (N,) float32.

    Args:
        logits: (N, 1, H, W), any floating type.
        masks: (N, 1, H, W) in {0, 1}.
        weights: Weight by name; what has weight 0 is not computed.
    """
    logits, masks = logits.float(), masks.float()
    terms = [w * LOSSES[name](logits, masks) for name, w in weights.items() if w]
    total: Tensor = sum(terms[1:], start=terms[0])
    return total
