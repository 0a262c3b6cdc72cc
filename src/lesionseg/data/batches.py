"""Images and masks of a packed split as tensors on a device."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lesionseg.data.dataset import Fold, Split

SHARE = 0.1  # of a GPU's memory, that the images of a training may take


class Resident:
    """The images and masks of a split, copied to a device once; what is known of it stays.

    A batch is then gathered where it is needed, and the GPU waits for no disk and no copy.
    """

    def __init__(self, split: Split | Fold, device: torch.device) -> None:
        self.ids, self.image_size = split.ids, split.image_size
        self.images_per_epoch = split.images_per_epoch
        arrays = split.load(np.arange(len(split.ids)))
        self.images, self.masks = (torch.from_numpy(array).to(device) for array in arrays)


def keep_on(device: torch.device, *splits: Split | Fold) -> tuple[Split | Fold | Resident, ...]:
    """The splits, copied to a GPU if all together fill at most a tenth of its memory."""
    if device.type != "cuda":
        return splits
    pixels = sum(len(split.ids) * split.image_size**2 for split in splits)
    num_bytes = 4 * pixels  # three for a pixel's colour, one for its mask
    memory = torch.cuda.get_device_properties(device).total_memory
    if num_bytes > SHARE * memory:
        return splits
    return tuple(Resident(split, device) for split in splits)


def load_batch(
    split: Split | Fold | Resident,
    indices: "np.ndarray[Any, np.dtype[np.int64]]",
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W) float32 in [0, 1] and masks (N, 1, H, W) float32 in {0, 1}."""
    if isinstance(split, Resident):
        rows = torch.from_numpy(indices).to(split.images.device, non_blocking=True)
        images, masks = split.images[rows], split.masks[rows]
    else:
        images, masks = map(torch.from_numpy, split.load(indices))
        if device.type == "cuda":
            images, masks = images.pin_memory(), masks.pin_memory()
    images, masks = images.to(device, non_blocking=True), masks.to(device, non_blocking=True)
    return images.permute(0, 3, 1, 2).float() / 255, masks[:, None].float()
