"""Probability maps of a whole split, and masks at the size an image has itself."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tqdm import tqdm

from lesionseg.data.batches import load_batch
from lesionseg.data.dataset import Split
from lesionseg.models.segmenter import Segmenter


@torch.inference_mode()
def predict_split(
    model: Segmenter, split: Split, *, batch_size: int, device: torch.device, label: str
) -> Iterator[NDArray[np.float32]]:
    """The lesion's probability of each image in turn, (H, W) float32 in [0, 1].

    Computed in float32, so that a score does not depend on the hardware's fast types.
    """
    model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    batches = torch.arange(len(split.ids)).split(batch_size)
    for batch in tqdm(batches, desc=label, unit="batch", disable=None, leave=False):
        images, _ = load_batch(split, batch.numpy(), device)
        logits = model(images.contiguous(memory_format=torch.channels_last))
        yield from logits.sigmoid()[:, 0].cpu().numpy()


def resize_probabilities(
    probabilities: NDArray[np.float32], size: tuple[int, int]
) -> NDArray[np.float32]:
    """Probabilities at another size (H, W) in pixels, interpolated bilinearly."""
    tensor = torch.from_numpy(probabilities)[None, None]
    resized: NDArray[np.float32] = F.interpolate(tensor, size=size, mode="bilinear")[0, 0].numpy()
    return resized
