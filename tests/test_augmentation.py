"""Random views: the same for image and mask, drawn from the seed alone."""

import pytest
import torch
import torch.nn.functional as F

from lesionseg.config import AugmentConfig
from lesionseg.data.augmentation import LUMA, augment

NAMES = (
    "horizontal_flip",
    "vertical_flip",
    "rotation_degrees",
    "scale",
    "shift",
    "brightness",
    "contrast",
    "saturation",
)
OFF = dict.fromkeys(NAMES, 0.0) | {"padding": "reflection"}
GEOMETRY = {
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "rotation_degrees": 180.0,
    "scale": 0.3,
    "shift": 0.2,
}
COLOUR = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}


def view(images, masks, *, seed=0, **parameters):
    generator = torch.Generator().manual_seed(seed)
    return augment(images, masks, AugmentConfig(**OFF | parameters), generator=generator)


@pytest.fixture
def batch():
    """Smooth random images (6, 3, 32, 32) in [0, 1], and blobs without symmetry as masks."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(6, 4, 5, 5, generator=generator)
    smooth = F.interpolate(coarse, size=32, mode="bilinear")
    return smooth[:, :3], (smooth[:, 3:] > 0.5).float()


@pytest.fixture
def draw_largest(monkeypatch):
    """Each random number the largest there is: every change is its limit, and nothing flips."""
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.ones(shape))


def test_nothing_changes_where_all_parameters_are_0(batch):
    images, masks = view(*batch)
    torch.testing.assert_close(images, batch[0], atol=1e-5, rtol=0)
    assert torch.equal(masks, batch[1])


def test_a_view_has_the_shape_and_type_of_its_image(batch):
    for before, after in zip(batch, view(*batch, **GEOMETRY, **COLOUR), strict=True):
        assert (after.shape, after.dtype) == (before.shape, before.dtype)


def test_the_inputs_stay_as_they_are(batch):
    copies = [tensor.clone() for tensor in batch]
    view(*batch, **GEOMETRY, **COLOUR)
    assert all(torch.equal(a, b) for a, b in zip(copies, batch, strict=True))


def test_masks_stay_exactly_0_and_1(batch):
    for seed in range(10):
        masks = view(*batch, seed=seed, **GEOMETRY, **COLOUR)[1]
        assert masks.unique().tolist() == [0, 1]


def test_image_and_mask_get_the_same_transform(batch):
    masks = batch[1]
    for seed in range(10):
        images, masks_viewed = view(masks.repeat(1, 3, 1, 1), masks, seed=seed, **GEOMETRY)
        differs = ((images > 0.5) != masks_viewed.bool()).any(1, keepdim=True)
        highest = F.max_pool2d(masks_viewed, 3, stride=1, padding=1)
        lowest = -F.max_pool2d(-masks_viewed, 3, stride=1, padding=1)
        assert not (differs & (highest == lowest)).any()
        assert not torch.equal(masks_viewed, masks)


@pytest.mark.parametrize(("parameter", "axes"), [("horizontal_flip", [3]), ("vertical_flip", [2])])
def test_a_flip_of_probability_1_is_that_flip(batch, parameter, axes):
    images, masks = view(*batch, **{parameter: 1.0})
    torch.testing.assert_close(images, batch[0].flip(axes), atol=1e-5, rtol=0)
    assert torch.equal(masks, batch[1].flip(axes))


def test_a_flip_of_probability_one_quarter_happens_to_one_image_of_four():
    masks = torch.zeros(2000, 1, 4, 4)
    masks[..., 0] = 1
    flipped = view(masks.repeat(1, 3, 1, 1), masks, horizontal_flip=0.25)[1][:, 0, 0, 3]
    assert flipped.mean().item() == pytest.approx(0.25, abs=0.03)


def test_rotations_by_the_limit_are_the_exact_ones(batch, draw_largest):
    turned = view(*batch, rotation_degrees=90.0)[1]
    assert torch.equal(turned, batch[1].rot90(1, [2, 3]))
    around = view(*batch, rotation_degrees=180.0)[0]
    torch.testing.assert_close(around, batch[0].flip([2, 3]), atol=1e-4, rtol=0)


def test_a_shift_by_the_limit_moves_by_that_share_of_the_side(batch, draw_largest):
    images, masks = view(*batch, shift=0.25)
    torch.testing.assert_close(images[..., :24, :24], batch[0][..., 8:, 8:], atol=1e-5, rtol=0)
    assert torch.equal(masks[..., :24, :24], batch[1][..., 8:, 8:])


def test_a_zoom_by_the_limit_enlarges_by_that_factor(draw_largest):
    masks = torch.zeros(1, 1, 40, 40)
    masks[..., 10:30, 10:30] = 1
    viewed = view(masks.repeat(1, 3, 1, 1), masks, scale=0.5)[1]
    assert viewed.sum().item() == (20 * 1.5) ** 2
    assert viewed[..., 5:35, 5:35].all()


def test_outside_the_image_lies_what_padding_says(batch, draw_largest):
    mirrored, stretched, black = (
        view(*batch, shift=0.25, padding=padding) for padding in ("reflection", "border", "zeros")
    )
    for views in zip(mirrored, stretched, black, strict=True):
        inside, outside = zip(*(v.split([24, 8], dim=3) for v in views), strict=True)
        for other in inside[1:]:
            torch.testing.assert_close(other[:, :, :24], inside[0][:, :, :24], atol=1e-5, rtol=0)
        expected = (inside[0][..., 16:].flip(3), inside[1][..., -1:].expand(-1, -1, -1, 8))
        for seen, meant in zip(outside, (*expected, torch.zeros(1)), strict=True):
            torch.testing.assert_close(seen, meant.expand_as(seen), atol=1e-5, rtol=0)


def test_a_centred_disk_looks_the_same_from_every_side():
    # Small enough that no reflection of it comes into view.
    axis = torch.arange(48) - 23.5
    distance = (axis[:, None] ** 2 + axis**2).sqrt()
    images = torch.sigmoid(10 - distance).expand(20, 3, 48, 48)
    turned = view(images, images[:, :1].round(), rotation_degrees=180.0)[0]
    torch.testing.assert_close(turned, images, atol=0.03, rtol=0)


def test_a_white_image_stays_white_under_every_rotation_shift_and_zoom():
    white = torch.ones(50, 3, 24, 24)
    images, masks = view(
        white, white[:, :1], rotation_degrees=180.0, shift=0.5, scale=0.5, horizontal_flip=0.5
    )
    torch.testing.assert_close(images, white, atol=1e-5, rtol=0)
    assert (masks == 1).all()


def test_rotations_fill_the_range_to_both_sides_and_stay_within():
    axis = torch.arange(32) - 15.5
    y, x = axis[:, None], axis[None, :]
    blob = torch.exp(-((x - 8) ** 2 + y**2) / 4).expand(400, 3, 32, 32)
    viewed = view(blob, blob[:, :1].round(), rotation_degrees=60.0)[0][:, 0]
    angles = torch.rad2deg(torch.atan2((viewed * y).sum((1, 2)), (viewed * x).sum((1, 2))))
    assert angles.abs().max() < 61
    assert angles.min() < -55
    assert angles.max() > 55
    assert angles.mean().abs() < 6


def test_the_same_seed_gives_the_same_views_and_other_seeds_others(batch):
    first, again = (view(*batch, seed=3, **GEOMETRY, **COLOUR) for _ in range(2))
    other = view(*batch, seed=4, **GEOMETRY, **COLOUR)
    for one, same, different in zip(first, again, other, strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, different)


def test_each_image_of_a_batch_gets_a_view_of_its_own(batch):
    images = batch[0][:1].expand(6, -1, -1, -1)
    viewed = view(images, batch[1], rotation_degrees=180.0)[0]
    assert len({one.numpy().tobytes() for one in viewed}) == 6


def test_nothing_is_drawn_from_the_global_random_state(batch):
    before = torch.get_rng_state()
    view(*batch, **GEOMETRY, **COLOUR)
    assert torch.equal(torch.get_rng_state(), before)


def test_each_image_takes_nine_draws(batch):
    states = []
    for parameters in ({}, GEOMETRY, COLOUR, GEOMETRY | COLOUR):
        generator = torch.Generator().manual_seed(0)
        augment(*batch, AugmentConfig(**OFF | parameters), generator=generator)
        states.append(generator.get_state())
    # Two flips, an angle, a zoom, two shifts and three colours.
    generator = torch.Generator().manual_seed(0)
    for _ in range(9):
        torch.rand(len(batch[0]), generator=generator)
    assert all(torch.equal(state, generator.get_state()) for state in states)


def test_colour_leaves_the_geometry_and_the_masks_alone(batch):
    plain_images, plain_masks = view(*batch, **GEOMETRY)
    images, masks = view(*batch, **GEOMETRY, **COLOUR)
    assert torch.equal(masks, plain_masks)
    assert not torch.equal(images, plain_images)


@pytest.mark.parametrize("parameter", COLOUR)
def test_colours_change_and_stay_between_0_and_1(batch, parameter):
    images = view(*batch, **{parameter: 0.9})[0]
    assert images.min() >= 0
    assert images.max() <= 1
    assert not torch.allclose(images, batch[0], atol=1e-2)


def test_brightness_multiplies(batch, draw_largest):
    images = view(0.5 * batch[0], batch[1], brightness=0.4)[0]
    torch.testing.assert_close(images, 0.7 * batch[0], atol=1e-5, rtol=0)


def test_contrast_stretches_about_the_mean_grey(draw_largest):
    images = torch.full((1, 3, 2, 2), 0.4)
    images[..., 0] = 0.6
    viewed = view(images, torch.zeros(1, 1, 2, 2), contrast=0.5)[0]
    torch.testing.assert_close(viewed, 0.5 + 1.5 * (images - 0.5), atol=1e-5, rtol=0)


def test_saturation_leaves_grey_alone_and_keeps_the_luma_of_colours(draw_largest):
    images = torch.full((1, 3, 2, 2), 0.4)
    images[:, :, 0] = torch.tensor([0.6, 0.5, 0.4]).view(1, 3, 1)
    viewed = view(images, torch.zeros(1, 1, 2, 2), saturation=0.5)[0]
    torch.testing.assert_close(viewed[:, :, 1], images[:, :, 1], atol=1e-5, rtol=0)
    luma = torch.tensor(LUMA).view(1, 3, 1, 1)
    torch.testing.assert_close((viewed * luma).sum(1), (images * luma).sum(1), atol=1e-5, rtol=0)
    spread, before = (t[0, 0, 0, 0] - t[0, 2, 0, 0] for t in (viewed, images))
    assert spread.item() == pytest.approx(1.5 * before.item(), abs=1e-5)
