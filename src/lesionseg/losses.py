"""Losses on logits: one value per image, then the mean over images.

Sums run over the pixels of one image, never over the batch, so that a small lesion weighs as much
as a large one. Each takes logits and masks, (N, 1, H, W), masks in {0, 1}, and gives (N,).
`SMOOTH` defines the value of the overlap losses for empty masks: an empty prediction costs 0 and
the loss grows with every pixel predicted. `lovasz` and `boundary` document their own behaviour.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt
from torch import Tensor

SMOOTH = 1.0  # pixels
FOCAL_GAMMA = 2.0  # the best value that Lin et al. 2017 tried
FALSE_POSITIVE_WEIGHT, FALSE_NEGATIVE_WEIGHT = 0.3, 0.7  # the best that Salehi et al. 2017 tried
FOCAL_TVERSKY_EXPONENT = 0.75  # 1 / gamma with the gamma of Abraham and Khan 2019, 4/3


def bce(logits: Tensor, masks: Tensor) -> Tensor:
    """Binary cross-entropy, the mean over pixels: (N,) from two of (N, 1, H, W).

    The masks may be probabilities in [0, 1]; the loss is smallest where the logits match them.
    """
    loss = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    return loss.flatten(1).mean(1)


def _overlap(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Soft intersection and the sum of both areas: (N,) each, in pixels."""
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


def _agreement(logits: Tensor, masks: Tensor) -> Tensor:
    """Logits of the correct class, above 0 where the decision is correct: (N, H * W)."""
    return ((2 * masks - 1) * logits).flatten(1)


def focal(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy that counts less where it is already small (Lin et al. 2017, arXiv:1708.02002).

    The mean over pixels of -(1 - p)^gamma log p, where p is the probability of the correct class.
    Their factor alpha (0.25 on the foreground) is left out: it was tuned for detection, with
    thousands of background boxes per object, and here would weigh lesions a third as much as skin.
    """
    agreement = _agreement(logits, masks)
    return -((-agreement).sigmoid() ** FOCAL_GAMMA * F.logsigmoid(agreement)).mean(1)


def tversky(logits: Tensor, masks: Tensor) -> Tensor:
    """One minus the soft Tversky index (Salehi et al. 2017, arXiv:1706.05721), in [0, 1).

    A missed pixel costs more than a false positive. With both weights 1 it is `iou`.
    """
    probabilities, masks = logits.sigmoid().flatten(1), masks.flatten(1)
    false_positives = (probabilities * (1 - masks)).sum(1)
    false_negatives = ((1 - probabilities) * masks).sum(1)
    wrong = FALSE_POSITIVE_WEIGHT * false_positives + FALSE_NEGATIVE_WEIGHT * false_negatives
    # Not written as 1 - index: rounding can take that below 0, where `focal_tversky` is undefined.
    return wrong / ((probabilities * masks).sum(1) + wrong + SMOOTH)


def focal_tversky(logits: Tensor, masks: Tensor) -> Tensor:
    """`tversky` to the power 3/4, steep near 0 (Abraham and Khan 2019, arXiv:1810.07842)."""
    # At 0 the power's slope is infinite, and infinity times the 0 of a saturated sigmoid is NaN.
    smallest = torch.finfo(torch.float32).tiny
    return tversky(logits, masks).clamp_min(smallest) ** FOCAL_TVERSKY_EXPONENT


def lovasz(logits: Tensor, masks: Tensor) -> Tensor:
    """Lovász hinge of the Jaccard loss (Berman et al. 2018, arXiv:1705.08790, Algorithm 1).

    Convex in the logits and unbounded; 0 if all are correct by a margin of 1, and twice the
    Jaccard loss if all logits are -1 or 1. For an empty mask it is the hinge of the worst pixel,
    for a full one the mean hinge.
    """
    hinges = (1 - _agreement(logits, masks)).relu()
    hinges, order = hinges.sort(dim=1, descending=True, stable=True)
    lesion = masks.flatten(1).gather(1, order).bool()
    area = lesion.sum(1, keepdim=True)
    # The Jaccard loss if just the first pixel were wrong, the first two, and so on. In float64, as
    # the differences in large images are below the resolution of float32.
    intersection, union = area - lesion.cumsum(1), area + (~lesion).cumsum(1)
    jaccard_loss = 1 - intersection.double() / union
    weights: Tensor = jaccard_loss.diff(dim=1, prepend=torch.zeros_like(jaccard_loss[:, :1]))
    return (hinges * weights.to(hinges)).sum(1)


def boundary(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean of probability times `signed_distances` (Kervadec et al. 2019, arXiv:1812.07032).

    In (-1, 1], and negative for good predictions: its minimum depends on the mask. Errors far from
    the boundary cost most. Meant to be combined with an overlap loss.
    """
    return (logits.sigmoid() * signed_distances(masks)).flatten(1).mean(1)


def signed_distances(masks: Tensor) -> Tensor:
    """Distance of each pixel to the mask's boundary, negative inside: (N, 1, H, W) as `masks`.

    The unit is the image's diagonal. The boundary runs between pixels, half a pixel from those on
    either side; in the paper's code the mask's outermost pixels lie at 0, and missing them is free.
    Without a boundary the distance is a whole diagonal: 1 in empty masks, -1 in full ones (the
    paper's code: 0 in empty ones). Always computed on the CPU.
    """
    maps = [_signed_distance(mask) for mask in masks[:, 0].bool().cpu().numpy()]
    return torch.from_numpy(np.stack(maps)[:, None]).to(masks)


def _signed_distance(mask: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """`signed_distances` of one mask: (H, W) float64 from (H, W) bool."""
    if mask.all() or not mask.any():
        return np.where(mask, -1.0, 1.0)
    inside, outside = distance_transform_edt(mask), distance_transform_edt(~mask)
    pixels: np.ndarray[Any, Any] = np.where(mask, 0.5 - inside, outside - 0.5)
    return pixels / math.hypot(*mask.shape)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bce": bce,
    "dice": dice,
    "iou": iou,
    "focal": focal,
    "tversky": tversky,
    "focal_tversky": focal_tversky,
    "lovasz": lovasz,
    "boundary": boundary,
}


def weighted_sum(logits: Tensor, masks: Tensor, *, weights: Mapping[str, float]) -> Tensor:
    """The weighted sum of `LOSSES`, one value per image: (N,) float32.

    Args:
        logits: (N, 1, H, W), any floating type.
        masks: (N, 1, H, W) in {0, 1}.
        weights: Weight by name; losses of weight 0 are not computed.
    """
    logits, masks = logits.float(), masks.float()
    terms = [w * LOSSES[name](logits, masks) for name, w in weights.items() if w]
    total: Tensor = sum(terms[1:], start=terms[0])
    return total
