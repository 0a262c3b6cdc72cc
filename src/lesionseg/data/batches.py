"""Images and masks of a packed split as tensors on a device."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lesionseg.data.dataset import Fold, Split


def load_batch(
    split: Split | Fold, indices: "np.ndarray[Any, np.dtype[np.int64]]", device: torch.device
) -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W) float32 in [0, 1] and masks (N, 1, H, W) float32 in {0, 1}."""
    images, masks = map(torch.from_numpy, split.load(indices))
    if device.type == "cuda":
        images, masks = images.pin_memory(), masks.pin_memory()
    images, masks = images.to(device, non_blocking=True), masks.to(device, non_blocking=True)
    return images.permute(0, 3, 1, 2).float() / 255, masks[:, None].float()
