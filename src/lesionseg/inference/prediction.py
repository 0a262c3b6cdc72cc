"""Probability maps of a whole split, and probabilities resized to an image's own size."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from lesionseg.data.batches import load_batch
from lesionseg.data.dataset import Split
from lesionseg.models.segmenter import Segmenter

# The symmetries of the square, as an optional left-right flip followed by quarter turns. The first
# is the image itself, the first 2 add the left-right flip, the first 4 are those of both flips.
_VIEWS = (
    (False, 0),
    (True, 0),
    (False, 2),
    (True, 2),
    (False, 1),
    (True, 1),
    (False, 3),
    (True, 3),
)
NUM_VIEWS = (1, 2, 4, 8)


def predict_batch(model: nn.Module, images: Tensor, *, num_views: int = 1) -> Tensor:
    """The lesion's probability in each pixel, (N, H, W) float32 in [0, 1].

    With several views it is the mean of their probabilities (not of their logits), each turned
    back onto the image: test-time augmentation without interpolation. The views go through the
    model one after the other, so memory does not grow with their number.

    Args:
        model: Gives logits (N, 1, H, W) of images (N, 3, H, W).
        images: (N, 3, H, W) float32 in [0, 1].
        num_views: 1, the images themselves; 2, with the left-right flip; 4, with both flips and
            the half turn; 8, the symmetries of the square.
    """
    assert num_views in NUM_VIEWS
    probabilities = []
    for flip, quarter_turns in _VIEWS[:num_views]:
        view = images.flip(-1) if flip else images
        view = view.rot90(quarter_turns, dims=(-2, -1)) if quarter_turns else view
        logits = model(view.contiguous(memory_format=torch.channels_last))
        turned_back = logits.sigmoid()[:, 0].rot90(-quarter_turns, dims=(-2, -1))
        probabilities.append(turned_back.flip(-1) if flip else turned_back)
    return torch.stack(probabilities).mean(dim=0)


@torch.inference_mode()
def predict_split(
    model: Segmenter,
    split: Split,
    *,
    batch_size: int,
    device: torch.device,
    label: str,
    num_views: int = 1,
) -> Iterator[NDArray[np.float32]]:
    """The lesion's probability in the pixels of each image in turn, (H, W) float32 in [0, 1].

    Computed in float32, so that a score does not depend on the hardware's fast types. The views
    are those of `predict_batch`.
    """
    model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    batches = torch.arange(len(split.ids)).split(batch_size)
    for batch in tqdm(batches, desc=label, unit="batch", disable=None, leave=False):
        images, _ = load_batch(split, batch.numpy(), device)
        yield from predict_batch(model, images, num_views=num_views).cpu().numpy()


def resize_probabilities(
    probabilities: NDArray[np.float32], size: tuple[int, int]
) -> NDArray[np.float32]:
    """Probabilities at another size (H, W) in pixels, interpolated bilinearly."""
    tensor = torch.from_numpy(probabilities)[None, None]
    resized: NDArray[np.float32] = F.interpolate(tensor, size=size, mode="bilinear")[0, 0].numpy()
    return resized
