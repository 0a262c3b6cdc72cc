"""Random views of whole batches, on the batch's device: one transform for image and mask."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lesionseg.config import AugmentConfig

# ITU-R BT.601 luma, as torchvision's rgb_to_grayscale.
LUMA = (0.299, 0.587, 0.114)


def augment(
    images: Tensor,
    masks: Tensor,
    views: AugmentConfig,
    *,
    generator: torch.Generator,
    batch_size: int | None = None,
    rows: slice = slice(None),
) -> tuple[Tensor, Tensor]:
    """A random view of each image, and the same view of its mask.

    Images are sampled bilinearly, masks from the nearest pixel. Colours change the image only.

    Args:
        images: (N, 3, H, W) float32 in [0, 1], H = W.
        masks: (N, 1, H, W) float32 in {0, 1}.
        views: Which views are drawn, as in params.yaml. `padding` is named as in torch's
            `grid_sample`. When images are turned by up to 60 degrees, mirrored corners
            (`reflection`) are lesion 27 times as often as the corners of ISIC 2016's own images,
            and the network then finds lesions there; stretched corners (`border`) 4 times.
        generator: On the CPU, so that every device draws the same views.
        batch_size: Size of the whole batch if these images are a part of it. Views are drawn for
            the whole batch, so that an image's view does not depend on where the others are.
        rows: Which rows of the whole batch these images are.
    """
    num_images = batch_size or len(images)

    def symmetric(limit: float) -> Tensor:
        return (torch.rand(num_images, generator=generator) * 2 - 1) * limit

    def sign(probability: float) -> Tensor:
        return 1 - 2 * (torch.rand(num_images, generator=generator) < probability).float()

    transforms = _affine(
        flip_x=sign(views.horizontal_flip),
        flip_y=sign(views.vertical_flip),
        angles=symmetric(math.radians(views.rotation_degrees)),
        zooms=1 + symmetric(views.scale),
        # The grid's coordinates run from -1 to 1: a side is 2.
        shifts=torch.stack([symmetric(2 * views.shift), symmetric(2 * views.shift)], dim=1),
    )[rows]
    colours = (views.brightness, views.contrast, views.saturation)
    factors = [(1 + symmetric(limit))[rows] for limit in colours]
    grid = F.affine_grid(
        transforms.to(images.device, non_blocking=True), list(images.shape), align_corners=False
    )
    images = F.grid_sample(images, grid, padding_mode=views.padding, align_corners=False)
    masks = F.grid_sample(
        masks, grid, mode="nearest", padding_mode=views.padding, align_corners=False
    )
    if any(colours):
        images = _change_colour(
            images, *[f.to(images.device, non_blocking=True).view(-1, 1, 1, 1) for f in factors]
        )
    return images, masks


def _affine(
    *, flip_x: Tensor, flip_y: Tensor, angles: Tensor, zooms: Tensor, shifts: Tensor
) -> Tensor:
    """Matrices (N, 2, 3) from a pixel of the view to its place in the image."""
    cos, sin = torch.cos(angles) / zooms, torch.sin(angles) / zooms
    rows = [cos * flip_x, -sin * flip_y, shifts[:, 0], sin * flip_x, cos * flip_y, shifts[:, 1]]
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def _change_colour(
    images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor
) -> Tensor:
    """Images with each colour property scaled by a factor per image, (N, 1, 1, 1)."""
    images = images * brightness
    luma = images.new_tensor(LUMA).view(1, 3, 1, 1)
    grey = (images * luma).sum(1, keepdim=True)
    images = torch.lerp(grey.mean((2, 3), keepdim=True), images, contrast)
    grey = (images * luma).sum(1, keepdim=True)
    return torch.lerp(grey, images, saturation).clamp(0, 1)
