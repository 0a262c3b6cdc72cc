"""Losses per image: values by hand, empty masks, extreme logits, gradients."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from lesionseg import losses
from lesionseg.losses import LOSSES, bce, dice, iou, weighted_sum

ALL = {"bce": 1.0, "dice": 1.0, "iou": 1.0}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
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


def test_the_values_at_logit_0_are_those_by_hand():
    logits, masks = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 0], [0, 0]]]])
    # Every probability is 1/2: intersection 1/2, areas 2 + 1.
    assert bce(logits, masks).tolist() == pytest.approx([math.log(2)])
    assert dice(logits, masks).tolist() == pytest.approx([1 - (1 + 1) / (3 + 1)])
    assert iou(logits, masks).tolist() == pytest.approx([1 - (0.5 + 1) / (2.5 + 1)])


def test_the_values_at_probability_3_in_4_are_those_by_hand():
    logits = torch.full((1, 1, 1, 2), math.log(3))
    masks = torch.tensor([[[[1.0, 0.0]]]])
    assert bce(logits, masks).item() == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)
    assert dice(logits, masks).item() == pytest.approx(1 - 2.5 / 3.5)
    assert iou(logits, masks).item() == pytest.approx(1 - 1.75 / 2.75)


@each_loss
def test_perfect_logits_cost_nothing(loss, batch):
    masks = batch[1]
    assert loss(100 * (2 * masks - 1), masks).tolist() == pytest.approx([0] * 4, abs=1e-6)


@each_loss
def test_good_logits_cost_less_than_poor_and_poor_less_than_wrong(loss, batch):
    masks = batch[1][:3]
    right = 2 * masks - 1
    costs = [loss(factor * right, masks) for factor in (5, 1, 0, -1, -5)]
    for better, worse in pairwise(costs):
        assert (better < worse).all()


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


@each_overlap
def test_an_empty_mask_still_has_a_gradient_that_shrinks_the_prediction(loss):
    logits = torch.zeros(1, 1, 4, 4, requires_grad=True)
    loss(logits, torch.zeros(1, 1, 4, 4)).sum().backward()
    assert (logits.grad > 0).all()


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_loss_and_gradient_are_finite_at_extreme_logits(batch, dtype, size):
    logits = torch.full((4, 1, 8, 8), size, dtype=dtype, requires_grad=True)
    loss = weighted_sum(logits, batch[1], weights=ALL)
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
