"""Random views of whole batches, on the batch's device: one transform for image and mask."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# ITU-R BT.601 luma, as torchvision's rgb_to_grayscale.
LUMA = (0.299, 0.587, 0.114)
MIN_HAIRS, MAX_HAIRS = 3, 15
# Hair under a dermoscope, RGB in [0, 1]: black and brown.
HAIR_COLOURS = ((0.06, 0.05, 0.05), (0.30, 0.21, 0.16))


def augment(
    images: Tensor,
    masks: Tensor,
    *,
    generator: torch.Generator,
    horizontal_flip: float,
    vertical_flip: float,
    rotation_degrees: float,
    scale: float,
    shift: float,
    padding: str,
    brightness: float,
    contrast: float,
    saturation: float,
    colour_cast: float,
    hair: float,
) -> tuple[Tensor, Tensor]:
    """A random view of each image and the same of its mask.

    Images are sampled bilinearly, masks from the nearest pixel. Hairs and colours change the image
    only.

    Args:
        images: (N, 3, H, W) float32 in [0, 1], H = W.
        masks: (N, 1, H, W) float32 in {0, 1}.
        generator: On the CPU, so that every device draws the same views.
        horizontal_flip: Probability of a left-right flip.
        vertical_flip: Probability of a top-bottom flip.
        rotation_degrees: Largest rotation to either side.
        scale: Largest relative zoom in or out.
        shift: Largest shift as a share of the image's side.
        padding: What lies outside the image, as torch's `grid_sample` names it: `zeros` (black, and
            no lesion), `border` (the nearest pixel) or `reflection`. Turned by up to 60 degrees,
            mirrored corners are 27 times as often lesion as those of ISIC 2016's own images, and
            the network then finds lesions there; stretched ones 4 times.
        brightness: Largest relative change; likewise `contrast` and `saturation`.
        contrast: See `brightness`.
        saturation: See `brightness`.
        colour_cast: Largest relative gain or loss of each colour channel by itself: another lamp
            (the model of von Kries 1902). The opposite of colour constancy (Barata et al. 2015,
            Improving dermoscopy image classification using color constancy, IEEE JBHI 19(3)),
            which takes the lamp's colour out of images; here the network learns to do without.
        hair: Probability that an image is given drawn hairs.
    """
    num_images = len(images)

    def symmetric(limit: float) -> Tensor:
        return (torch.rand(num_images, generator=generator) * 2 - 1) * limit

    def sign(probability: float) -> Tensor:
        return 1 - 2 * (torch.rand(num_images, generator=generator) < probability).float()

    transforms = _affine(
        flip_x=sign(horizontal_flip),
        flip_y=sign(vertical_flip),
        angles=symmetric(math.radians(rotation_degrees)),
        zooms=1 + symmetric(scale),
        # The grid's coordinates run from -1 to 1: a side is 2.
        shifts=torch.stack([symmetric(2 * shift), symmetric(2 * shift)], dim=1),
    )
    factors = [1 + symmetric(limit) for limit in (brightness, contrast, saturation)]
    grid = F.affine_grid(transforms.to(images.device), list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode=padding, align_corners=False)
    masks = F.grid_sample(masks, grid, mode="nearest", padding_mode=padding, align_corners=False)
    # Both draw their random numbers only where they are on: other views stay what they were.
    if hair:
        images = _add_hairs(images, hair, generator)
    if colour_cast:
        gains = 1 + torch.stack([symmetric(colour_cast) for _ in range(3)], dim=1)
        images = (images * gains.to(images.device).view(-1, 3, 1, 1)).clamp(0, 1)
    if brightness or contrast or saturation:
        images = _change_colour(images, *[f.to(images.device).view(-1, 1, 1, 1) for f in factors])
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


def _add_hairs(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Images of which some, by their probability, carry 3 to 15 hairs of one colour each."""
    num_images, size = len(images), images.shape[-1]
    chosen, amount, direction, shade = torch.rand(4, num_images, generator=generator)
    traits = torch.rand(num_images, MAX_HAIRS, 7, generator=generator)
    num_hairs = MIN_HAIRS + (amount * (MAX_HAIRS - MIN_HAIRS + 1)).long()
    drawn = (torch.arange(MAX_HAIRS) < num_hairs[:, None]) & (chosen < probability)[:, None]
    owners = drawn.nonzero()[:, 0]
    points = _trace_hairs(traits[drawn], direction[owners], owners, size=size)
    cover = _draw_points(points.to(images.device), num_images=num_images, size=size)
    black, brown = images.new_tensor(HAIR_COLOURS).view(2, 1, 3, 1, 1)
    colours = torch.lerp(black, brown, shade.to(images.device).view(-1, 1, 1, 1))
    return torch.lerp(images, colours, cover)


def _trace_hairs(traits: Tensor, direction: Tensor, owners: Tensor, *, size: int) -> Tensor:
    """Points about a pixel apart along hairs, as (6, P): x, y, angle, half width, opacity, image.

    A hair is a parabola, that is a quadratic Bezier curve, and gets thinner towards its tip. The
    hairs of an image run roughly one way. Points out of sight are left out.

    Args:
        traits: (M, 7) in [0, 1), random: what each hair is like.
        direction: (M,) in [0, 1), random: where the hairs of its image point.
        owners: (M,) int64, the number of its image.
        size: Height and width of the images in pixels; lengths and widths grow with it.
    """
    turn, length, bend, width, opacity, x, y = traits.T[:, :, None]
    angle = 2 * math.pi * direction[:, None] + 2 * turn - 1
    arm = size * (0.15 + 0.45 * length)  # half the length
    bend = 0.6 * bend - 0.3
    along = torch.arange(-math.ceil(0.6 * size), math.ceil(0.6 * size) + 1)
    place = along / arm  # -1 at the root, 1 at the tip
    across = arm * bend * (1 - place**2)
    taper = 1 - ((1 + place) / 2) ** 4
    points = torch.stack(
        torch.broadcast_tensors(
            size * x + torch.cos(angle) * along - torch.sin(angle) * across,
            size * y + torch.sin(angle) * along + torch.cos(angle) * across,
            angle - torch.atan(2 * bend * place),
            size / 256 * (1 + width) * taper,
            0.5 + 0.45 * opacity,
            owners[:, None].float(),
        )
    ).flatten(1)
    reach = _reach(size)
    seen = ((points[:2] >= -reach) & (points[:2] < size + reach)).all(0)
    return points[:, seen & (place.abs() <= 1).flatten()]


def _draw_points(points: Tensor, *, num_images: int, size: int) -> Tensor:
    """How much hair covers each pixel, (N, 1, size, size) in [0, 1].

    Around each point the share of a pixel that a straight line of that width and angle covers;
    where lines cross, the larger one, so that the order does not matter.

    Args:
        points: (6, P), see `_trace_hairs`.
        num_images: N.
        size: Height and width in pixels.
    """
    x, y, angle, half_width, opacity, owner = points
    reach = _reach(size)
    # The points' axis comes last: loops along it are long, and fast.
    window = torch.arange(-reach, reach + 1, device=points.device)[:, None]
    columns, rows = x.floor().long() + window, y.floor().long() + window
    off_x, off_y = (columns + 0.5 - x) * torch.sin(angle), (rows + 0.5 - y) * torch.cos(angle)
    distance = (off_x - off_y[:, None]).abs()
    cover = (half_width + 0.5 - distance).clamp(min=0).minimum((2 * half_width).clamp(max=1))
    margin = 2 * reach  # a canvas with room for what a window reaches beyond the edge
    side = size + 2 * margin
    starts = (owner.long() * side + rows + margin) * side + margin
    pixels = starts[:, None] + columns
    canvas = points.new_zeros(num_images * side * side)
    canvas.scatter_reduce_(0, pixels.flatten(), (opacity * cover).flatten(), "amax")
    return canvas.view(num_images, 1, side, side)[..., margin:-margin, margin:-margin]


def _reach(size: int) -> int:
    """How many pixels a hair of the largest half width reaches from its middle pixel."""
    return math.ceil(size / 128)
