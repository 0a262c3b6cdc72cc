"""Losses per image: values by hand, empty masks, extreme logits, gradients."""

import math
from itertools import pairwise, permutations, product

import pytest
import torch
import torch.nn.functional as F

from lesionseg import losses
from lesionseg.losses import (
    LOSSES,
    bce,
    boundary,
    dice,
    focal,
    focal_tversky,
    iou,
    lovasz,
    signed_distances,
    tversky,
    weighted_sum,
)


def each(*names):
    return pytest.mark.parametrize("loss", [LOSSES[name] for name in names], ids=names)


each_loss = each(*LOSSES)
each_loss_of_at_least_0 = each(*[name for name in LOSSES if name != "boundary"])
each_overlap = pytest.mark.parametrize("loss", [dice, iou])


@pytest.fixture
def batch():
    """Logits and masks, (4, 1, 8, 8): a small lesion, larger ones, none."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4, 1, 8, 8, generator=generator)
    masks = torch.zeros(4, 1, 8, 8)
    masks[0, 0, 3, 3:5] = 1
    masks[1, 0, 1:7, 1:7] = 1
    masks[2, 0, :, :4] = 1
    return logits, masks


def shaped(*rows):
    """A mask, (1, 1, H, W), of rows of 0 and 1."""
    return torch.tensor([[rows]], dtype=torch.float32)


def test_the_values_at_logit_0_are_those_by_hand():
    logits, masks = torch.zeros(1, 1, 2, 2), shaped([1, 0], [0, 0])
    # Every probability is 1/2: intersection 1/2, areas 2 + 1.
    assert bce(logits, masks).tolist() == pytest.approx([math.log(2)])
    assert dice(logits, masks).tolist() == pytest.approx([1 - (1 + 1) / (3 + 1)])
    assert iou(logits, masks).tolist() == pytest.approx([1 - (0.5 + 1) / (2.5 + 1)])
    assert focal(logits, masks).tolist() == pytest.approx([math.log(2) / 4])
    # 3/2 false positives and 1/2 false negative: 0.45 + 0.35.
    assert tversky(logits, masks).tolist() == pytest.approx([0.8 / (0.5 + 0.8 + 1)])
    assert focal_tversky(logits, masks).tolist() == pytest.approx([(0.8 / 2.3) ** 0.75])
    # All four errors are 1, and the Jaccard loss of all wrong is 1.
    assert lovasz(logits, masks).tolist() == pytest.approx([1])
    # -1/2, twice 1/2, and sqrt(2) - 1/2 pixels, on a diagonal of sqrt(8).
    mean = (-0.5 + 0.5 + 0.5 + math.sqrt(2) - 0.5) / 4
    assert boundary(logits, masks).tolist() == pytest.approx([mean / 2 / math.sqrt(8)])


def test_the_values_at_probability_3_in_4_are_those_by_hand():
    logits = torch.full((1, 1, 1, 2), math.log(3))
    masks = torch.tensor([[[[1.0, 0.0]]]])
    assert bce(logits, masks).item() == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)
    assert dice(logits, masks).item() == pytest.approx(1 - 2.5 / 3.5)
    assert iou(logits, masks).item() == pytest.approx(1 - 1.75 / 2.75)
    by_hand = -(math.log(0.75) / 16 + math.log(0.25) * 9 / 16) / 2
    assert focal(logits, masks).item() == pytest.approx(by_hand)
    assert tversky(logits, masks).item() == pytest.approx(0.4 / (0.75 + 0.4 + 1))  # 0.225 + 0.175
    # Errors 1 + log 3 (the false one) and max(0, 1 - log 3) = 0; the Jaccard loss of one: 1/2.
    assert lovasz(logits, masks).item() == pytest.approx((1 + math.log(3)) / 2)
    assert boundary(logits, masks).item() == pytest.approx(0, abs=1e-7)


@each_loss_of_at_least_0
def test_perfect_logits_cost_nothing(loss, batch):
    masks = batch[1]
    assert loss(100 * (2 * masks - 1), masks).tolist() == pytest.approx([0] * 4, abs=1e-6)


@each(*[name for name in LOSSES if name != "lovasz"])  # 0 from a margin of 1 on
def test_good_logits_cost_less_than_poor_and_poor_less_than_wrong(loss, batch):
    masks = batch[1][:3]
    right = 2 * masks - 1
    costs = [loss(factor * right, masks) for factor in (5, 1, 0, -1, -5)]
    for better, worse in pairwise(costs):
        assert (better < worse).all()


@each_loss
@pytest.mark.parametrize("size", [0.5, 5, 100])
def test_the_mask_costs_less_than_the_mask_shifted_and_that_less_than_its_inverse(loss, size):
    masks = torch.zeros(1, 1, 12, 12)
    masks[..., 3:8, 3:8] = 1
    right = size * (2 * masks - 1)
    costs = [loss(x, masks).item() for x in (right, *(right.roll(i, 3) for i in (1, 2, 3)), -right)]
    assert costs == sorted(set(costs))


@each_overlap
def test_all_wrong_costs_nearly_1(loss, batch):
    masks = batch[1][1:2]
    assert 0.9 < loss(-100 * (2 * masks - 1), masks).item() < 1


@each_loss
def test_an_image_costs_the_same_alone_and_in_a_batch(loss, batch):
    logits, masks = batch
    together = loss(logits, masks)
    assert together.shape == (4,)
    alone = torch.cat([loss(logits[i : i + 1], masks[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone)
    assert together.unique().numel() == 4


@each_loss
def test_flips_of_both_change_nothing(loss, batch):
    logits, masks = batch
    torch.testing.assert_close(loss(logits.flip(3), masks.flip(3)), loss(logits, masks))


@each_overlap
def test_an_empty_mask_costs_nothing_where_nothing_is_predicted_and_more_with_each_pixel(loss):
    masks = torch.zeros(6, 1, 4, 4)
    logits = torch.full_like(masks, -100)
    for i in range(6):
        logits[i].view(-1)[:i] = 100
    costs = loss(logits, masks)
    # 1 - 1 / (number of predicted pixels + 1)
    assert costs.tolist() == pytest.approx([i / (i + 1) for i in range(6)])


@each(*[name for name in LOSSES if name != "lovasz"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_gradient_shrinks_the_prediction_on_an_empty_mask_and_grows_it_on_a_full_one(
    loss, value
):
    logits = torch.zeros(1, 1, 4, 4, requires_grad=True)
    loss(logits, torch.full((1, 1, 4, 4), value)).sum().backward()
    assert (logits.grad.sign() == 1 - 2 * value).all()


def test_lovasz_is_the_worst_hinge_on_an_empty_mask_and_the_mean_hinge_on_a_full_one():
    logits = torch.tensor([[[[-3.0, 0.5], [2.0, -0.5]]]])
    assert lovasz(logits, torch.zeros_like(logits)).item() == pytest.approx(1 + 2)
    # 1 + 3, 1 - 0.5, nothing, 1 + 0.5
    assert lovasz(logits, torch.ones_like(logits)).item() == pytest.approx(6 / 4)


@pytest.mark.parametrize("scale", [1, 0.5])
def test_lovasz_of_equal_margins_is_the_hinges_mixed_by_the_jaccard_loss_of_each_binary_decision(
    scale,
):
    # Errors are 1 + scale on the wrong pixels and 1 - scale on the others, where all wrong cost 1.
    pixels = list(product([0.0, 1.0], repeat=4))
    pairs = [(p, m) for p in pixels for m in pixels if any(m)]
    predictions, masks = (torch.tensor(x).view(-1, 1, 2, 2) for x in zip(*pairs, strict=True))
    intersection = (predictions * masks).sum((1, 2, 3))
    jaccard_loss = 1 - intersection / torch.maximum(predictions, masks).sum((1, 2, 3))
    expected = (1 + scale) * jaccard_loss + (1 - scale) * (1 - jaccard_loss)
    torch.testing.assert_close(lovasz(scale * (2 * predictions - 1), masks), expected)


def test_lovasz_is_the_greatest_of_all_orders_as_a_convex_extension_must_be():
    # Of a submodular set function, the extension is the maximum over orders of the weighted sum.
    logits, masks = torch.tensor([[[[0.3, -0.8, 0.1, 0.9]]]]), shaped([1, 0, 0, 1])
    hinges = (1 - (2 * masks - 1) * logits).relu().flatten().tolist()
    truth = {0, 3}

    def jaccard_loss(wrong):
        return 1 - len(truth - wrong) / len(truth | wrong)

    def weigh(order):
        sets = [set(order[:i]) for i in range(5)]
        steps = [jaccard_loss(after) - jaccard_loss(before) for before, after in pairwise(sets)]
        return sum(step * hinges[i] for step, i in zip(steps, order, strict=True))

    expected = max(weigh(order) for order in permutations(range(4)))
    assert lovasz(logits, masks).item() == pytest.approx(expected)


def test_the_weights_of_lovasz_keep_their_precision_in_large_images():
    logits = torch.zeros(1, 1, 1024, 1024, requires_grad=True)
    masks = torch.zeros_like(logits)
    masks[..., :512] = 1
    lovasz(logits, masks).sum().backward()
    # Ties keep their order: the row's first 512 pixels are lesion, each worth 1 / (area + those
    # skin pixels before it).
    weights = 1 / (512 * 1024 + 512 * torch.arange(1024, dtype=torch.float64))
    expected = -weights.float()[:, None].expand(1024, 512)
    torch.testing.assert_close(logits.grad[0, 0, :, :512], expected, rtol=1e-5, atol=0)


def test_focal_without_gamma_is_bce_and_with_gamma_less_on_each_pixel(batch, monkeypatch):
    assert (focal(*batch) < bce(*batch)).all()
    monkeypatch.setattr(losses, "FOCAL_GAMMA", 0.0)
    torch.testing.assert_close(focal(*batch), bce(*batch))


def test_tversky_with_weights_1_is_iou_and_with_halves_dice_of_twice_the_smoothing(
    batch, monkeypatch
):
    monkeypatch.setattr(losses, "FALSE_POSITIVE_WEIGHT", 1.0)
    monkeypatch.setattr(losses, "FALSE_NEGATIVE_WEIGHT", 1.0)
    torch.testing.assert_close(tversky(*batch), iou(*batch))
    monkeypatch.setattr(losses, "FALSE_POSITIVE_WEIGHT", 0.5)
    monkeypatch.setattr(losses, "FALSE_NEGATIVE_WEIGHT", 0.5)
    halves = tversky(*batch)
    monkeypatch.setattr(losses, "SMOOTH", 2 * losses.SMOOTH)
    torch.testing.assert_close(halves, dice(*batch))


def test_tversky_charges_a_missed_pixel_more_than_one_too_many():
    masks = shaped([1, 1, 1, 0, 0, 0])
    missed, extra = shaped([1, 1, 0, 0, 0, 0]), shaped([1, 1, 1, 1, 0, 0])
    costs = [tversky(100 * (2 * prediction - 1), masks).item() for prediction in (missed, extra)]
    assert costs == pytest.approx([0.7 / (2 + 0.7 + 1), 0.3 / (3 + 0.3 + 1)])


def test_focal_tversky_is_tversky_to_the_power_3_in_4(batch):
    torch.testing.assert_close(focal_tversky(*batch), tversky(*batch) ** 0.75)


@each_loss
def test_the_gradient_of_saturated_right_logits_is_0_and_not_undefined(loss, batch):
    masks = batch[1]
    logits = (1e4 * (2 * masks - 1)).requires_grad_()
    loss(logits, masks).sum().backward()
    assert (logits.grad == 0).all()


def test_the_gradient_of_focal_tversky_fades_as_logits_get_right(batch):
    masks = batch[1]
    sizes = []
    for size in (5, 10, 20, 40, 80, 100, 200):
        logits = (size * (2 * masks - 1)).requires_grad_()
        focal_tversky(logits, masks).sum().backward()
        sizes.append(logits.grad.norm().item())
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] < 1


def signed_distances_by_brute_force(mask):
    """For each pixel of (H, W) the distance to the nearest pixel of the other kind, less 1/2."""
    pixels = torch.cartesian_prod(*map(torch.arange, mask.shape)).double()
    distances = torch.cdist(pixels, pixels)
    other = mask.flatten()[:, None] != mask.flatten()[None]
    nearest = distances.where(other, torch.inf).amin(1) - 0.5
    return (nearest * (1 - 2 * mask.flatten())).view(mask.shape) / math.hypot(*mask.shape)


def test_signed_distances_agree_with_brute_force():
    generator = torch.Generator().manual_seed(2)
    shares = torch.tensor([0.02, 0.1, 0.5, 0.9, 0.98]).view(-1, 1, 1, 1)
    masks = (torch.rand(5, 1, 9, 13, generator=generator) < shares).double()
    assert all(0 < mask.mean() < 1 for mask in masks)
    expected = torch.stack([signed_distances_by_brute_force(mask) for mask in masks[:, 0]])
    torch.testing.assert_close(signed_distances(masks), expected[:, None])


def test_signed_distances_are_a_whole_diagonal_where_there_is_no_boundary():
    empty, full = torch.zeros(1, 1, 3, 4), torch.ones(1, 1, 3, 4)
    assert (signed_distances(torch.cat([empty, full]))[0] == 1).all()
    assert (signed_distances(torch.cat([empty, full]))[1] == -1).all()


def test_signed_distances_of_the_inverse_are_the_negative(batch):
    torch.testing.assert_close(signed_distances(1 - batch[1]), -signed_distances(batch[1]))


def test_boundary_is_least_at_the_mask_and_grows_with_the_distance_of_one_wrong_pixel():
    masks = shaped([0, 0, 1, 1, 0, 0, 0, 0])
    least = boundary(100 * (2 * masks - 1), masks).item()
    assert least == pytest.approx(-2 * 0.5 / 8 / math.hypot(1, 8))
    costs = []
    for column in (4, 5, 6, 7):
        prediction = masks.clone()
        prediction[..., column] = 1
        costs.append(boundary(100 * (2 * prediction - 1), masks).item() - least)
    steps = [(i + 0.5) / 8 / math.hypot(1, 8) for i in range(4)]
    assert costs == pytest.approx(steps)


def test_boundary_hardly_depends_on_the_size_of_the_image(batch):
    logits, masks = batch[0][1:3], batch[1][1:3]
    fine = [x.repeat_interleave(8, 2).repeat_interleave(8, 3) for x in (logits, masks)]
    torch.testing.assert_close(boundary(*fine), boundary(logits, masks), rtol=0.05, atol=0.002)


def test_bce_agrees_with_torch_s_on_probabilities(batch):
    logits, masks = batch
    theirs = F.binary_cross_entropy(logits.sigmoid(), masks, reduction="none").mean((1, 2, 3))
    torch.testing.assert_close(bce(logits, masks), theirs)


def test_iou_is_d_over_2_minus_d_of_dice(batch, monkeypatch):
    # (2I + s) / (A + s) = d gives d / (2 - d) = (I + s/2) / (A - I + s/2): half the smoothing.
    d = 1 - dice(*batch)
    monkeypatch.setattr(losses, "SMOOTH", losses.SMOOTH / 2)
    torch.testing.assert_close(1 - iou(*batch), d / (2 - d))


def test_dice_of_certain_logits_tends_to_the_metric_as_images_grow():
    masks, predictions = torch.zeros(1, 1, 300, 300), torch.zeros(1, 1, 300, 300)
    masks[..., :200], predictions[..., 100:] = 1, 1
    logits = 100 * (2 * predictions - 1)
    assert 1 - dice(logits, masks).item() == pytest.approx(0.5, abs=1e-4)
    assert 1 - iou(logits, masks).item() == pytest.approx(1 / 3, abs=1e-4)


def test_the_weighted_sum_is_the_sum_of_weighted_losses(batch):
    total = weighted_sum(*batch, weights={"bce": 0.5, "dice": 2.0, "iou": 3.0})
    expected = 0.5 * bce(*batch) + 2 * dice(*batch) + 3 * iou(*batch)
    assert total.shape == (4,)
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("name", LOSSES)
def test_a_single_weight_gives_that_loss_alone_and_computes_no_other(batch, monkeypatch, name):
    expected = 2 * LOSSES[name](*batch)

    def refuse(*_):
        raise AssertionError

    for other in set(LOSSES) - {name}:
        monkeypatch.setitem(LOSSES, other, refuse)
    weights = dict.fromkeys(LOSSES, 0.0) | {name: 2.0}
    torch.testing.assert_close(weighted_sum(*batch, weights=weights), expected)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [0, 1e-30, 90, 104, 1e4, 1e30, -1e-30, -90, -104, -1e4, -1e30])
def test_loss_and_gradient_are_finite_at_extreme_logits(batch, name, dtype, size):
    masks = torch.cat([batch[1], torch.ones(1, 1, 8, 8)])
    logits = torch.full((5, 1, 8, 8), size, dtype=dtype)
    logits[..., 4:] *= -1
    logits.requires_grad_()
    loss = weighted_sum(logits, masks, weights={name: 1.0})
    loss.mean().backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()
    assert logits.grad.dtype == dtype


def test_half_precision_logits_are_summed_in_full_precision():
    # 256 + 1 is 256 in bfloat16: a sum of many pixels would stand still.
    logits = torch.full((1, 1, 128, 128), 100, dtype=torch.bfloat16)
    masks = torch.zeros(1, 1, 128, 128, dtype=torch.bool)
    masks[..., :64] = True
    total = weighted_sum(logits, masks, weights={"iou": 1.0})
    assert total.item() == pytest.approx(1 - (8192 + 1) / (16384 + 1), abs=1e-6)


@each_loss
def test_gradients_agree_with_differences(loss):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 1, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    masks = (torch.rand(2, 1, 3, 3, generator=generator) < 0.5).double()
    assert torch.autograd.gradcheck(lambda x: loss(x, masks), logits)
