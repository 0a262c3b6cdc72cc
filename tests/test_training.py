"""The training loop: the same bytes every time, also after an interruption."""

import copy
import dataclasses
import logging
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from lesionseg.data.augmentation import augment
from lesionseg.data.batches import load_batch
from lesionseg.data.dataset import Split
from lesionseg.data.phantom import draw_phantom
from lesionseg.errors import ConfigError, TrainingError
from lesionseg.evaluation.metrics import count_pixels, mean_scores, score_images
from lesionseg.losses import weighted_sum
from lesionseg.models.segmenter import build_segmenter, save_model
from lesionseg.training import loop
from lesionseg.training.averaging import WeightAverage
from lesionseg.training.checkpoints import (
    checkpoint_dir,
    delete_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from lesionseg.training.distillation import Teacher
from lesionseg.training.hardware import choose_device, choose_precision
from lesionseg.training.loop import Recipe, Training, resize

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
AUGMENT = {
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "rotation_degrees": 60.0,
    "scale": 0.1,
    "shift": 0.1,
    "padding": "border",
    "brightness": 0.1,
    "contrast": 0.1,
    "saturation": 0.1,
    "colour_cast": 0.1,
    "hair": 0.5,
}
NO_VIEWS = dict.fromkeys(AUGMENT, 0.0) | {"padding": "border"}
RECIPE = Recipe(
    run="train_frozen",
    epochs=3,
    batch_size=4,
    lr=0.002,
    encoder_lr=0.0,
    layer_decay=1.0,
    weight_decay=0.01,
    warmup_fraction=0.2,
    first_image_size=64,
    ema_decay=0.0,
    deep_supervision=0.0,
    distillation=0.0,
    seed=0,
    precision=torch.float32,
    loss={"bce": 1.0, "dice": 1.0, "iou": 1.0},
    augment=AUGMENT,
)
# All that is off by default, switched on.
CRAFT = {"decoder": "pyramid", "ema_decay": 0.9, "layer_decay": 0.7, "deep_supervision": 0.4}


def make_split(name: str, num_images: int, size: int) -> Split:
    first = 1000 if name == "val" else 0
    drawn = [draw_phantom(size=size, seed=first + i) for i in range(num_images)]
    images, masks = (np.stack(arrays) for arrays in zip(*drawn, strict=True))
    return Split(
        name=name, images=images, masks=masks // 255, ids=tuple(map(str, range(num_images)))
    )


@pytest.fixture(scope="module")
def splits():
    return {"train": make_split("train", 10, 64), "val": make_split("val", 5, 64)}


@pytest.fixture
def make_training(splits, encoder_state):
    """A training of the real network, at its first epoch."""

    def make_training(
        *, encoder_lr: float = 0.0, decoder: str = "transposed", **changes
    ) -> Training:
        model = build_segmenter(
            encoder_state=encoder_state,
            decoder=decoder,
            dropout=0.1,
            frozen=encoder_lr == 0,
            seed=0,
        )
        recipe = dataclasses.replace(RECIPE, encoder_lr=encoder_lr, **changes)
        return Training(model=model, **splits, recipe=recipe, device=CPU)

    return make_training


class TinySegmenter(torch.nn.Module):
    """The same parts as a Segmenter, of three small layers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Conv2d(3, 4, 1)
        self.decoder = torch.nn.Sequential(torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(images))


@pytest.fixture
def make_tiny(splits):
    """A training of a network too small to matter, for what the loop alone decides."""

    def make_tiny(*, teacher: Teacher | None = None, **changes) -> Training:
        recipe = dataclasses.replace(RECIPE, **changes)
        return Training(
            model=draw_tiny(seed=0), **splits, recipe=recipe, device=CPU, teacher=teacher
        )

    return make_tiny


def draw_tiny(*, seed: int) -> TinySegmenter:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinySegmenter()


def assert_same(first, second, name="state"):
    """The same bits, through dicts, lists and tensors; seconds may differ."""
    assert type(first) is type(second), name
    if isinstance(first, dict):
        assert list(first) == list(second), name
        for key in first.keys() - {"seconds", "pretraining_seconds"}:
            assert_same(first[key], second[key], f"{name}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), name
        for i, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{name}[{i}]")
    elif isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype, name
        assert torch.equal(first, second), name
    else:
        assert first == second, name


def record_batches(training: Training) -> list[torch.Tensor]:
    """The training images the model will have seen, step by step."""
    batches = []

    def keep(model, inputs):
        if model.training:
            batches.append(inputs[0].clone())

    training.model.register_forward_pre_hook(keep)
    return batches


@pytest.mark.parametrize(
    ("first", "own", "epochs", "expected"),
    [
        (64, 128, 15, [64] * 5 + [96] * 5 + [128] * 5),
        (64, 128, 4, [64, 64, 96, 128]),
        (64, 128, 2, [64, 96]),
        (96, 128, 4, [96, 96, 128, 128]),
        (128, 128, 3, [128] * 3),
        (512, 128, 3, [128] * 3),
    ],
)
def test_image_sizes_grow_by_32_each_for_an_equal_share_of_the_epochs(
    make_tiny, first, own, epochs, expected
):
    training = make_tiny(first_image_size=first, epochs=epochs)
    training.train = make_split("train", 1, own)
    assert [training.image_size(epoch) for epoch in range(1, epochs + 1)] == expected


def test_the_model_sees_the_image_size_of_the_epoch_and_val_always_its_own(make_tiny, splits):
    training = make_tiny(epochs=2)
    training.train = training.val = make_split("train", 4, 96)
    seen = []
    training.model.register_forward_pre_hook(
        lambda model, inputs: seen.append((model.training, inputs[0].shape[-1]))
    )
    list(training)
    assert seen == [(True, 64), (False, 96), (True, 96), (False, 96)]


def test_a_resized_mask_is_lesion_where_most_of_the_pixel_was():
    masks = torch.zeros(1, 1, 4, 4)
    masks[0, 0, 0, :2] = masks[0, 0, 1, 0] = 1  # three quarters of the first pixel
    masks[0, 0, 2:, 2] = 1  # half of the last
    images, resized = resize(masks.expand(1, 3, 4, 4), masks, image_size=2)
    assert resized.tolist() == [[[[1, 0], [0, 0]]]]
    assert images.shape == (1, 3, 2, 2)
    assert images[0, 0, 0, 0] > images[0, 0, 1, 1] > images[0, 0, 0, 1] > 0


def test_images_of_their_own_size_are_not_touched():
    images, masks = torch.rand(2, 3, 64, 64), torch.rand(2, 1, 64, 64)
    assert resize(images, masks, image_size=64) == (images, masks)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_two_equal_trainings_end_in_the_same_bits(make_training, precision):
    # A CPU may emulate bfloat16, slowly: one epoch of it is enough.
    epochs = 2 if precision == torch.float32 else 1
    states = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        training = make_training(encoder_lr=0.001, epochs=epochs, precision=precision)
        assert len(list(training)) == epochs
        states.append(training.state_dict())
    assert_same(*states)


def test_another_seed_ends_in_other_weights(make_tiny):
    weights = []
    for seed in (0, 1):
        training = make_tiny(seed=seed)
        list(training)
        weights.append(training.model.decoder[1].weight.detach().clone())
    assert not torch.equal(*weights)


@pytest.mark.parametrize(
    "changes", [{"encoder_lr": 0.0}, {"encoder_lr": 0.001}, {"encoder_lr": 0.001, **CRAFT}]
)
def test_a_training_taken_up_again_ends_in_the_bits_of_an_uninterrupted_one(
    tmp_path, make_training, changes
):
    whole = make_training(**changes)
    assert len(list(whole)) == 3

    killed = make_training(**changes)
    next(iter(killed))
    save_checkpoint(tmp_path / "folder", killed.state_dict())
    torch.manual_seed(99)
    resumed = make_training(**changes)
    resumed.load_state_dict(load_checkpoint(tmp_path / "folder"))
    assert [epoch.epoch for epoch in resumed] == [2, 3]
    assert_same(resumed.state_dict(), whole.state_dict())
    files = []
    for name, training in (("whole.pt", whole), ("resumed.pt", resumed)):
        best = training.best["state"]
        settings = {"decoder": "any", "image_size": 64, "frozen": changes["encoder_lr"] == 0}
        save_model(tmp_path / name, state=best, **settings)
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]


def test_a_finished_training_has_no_epochs_to_come(make_tiny):
    training = make_tiny()
    assert [epoch.epoch for epoch in training] == [1, 2, 3]
    again = make_tiny()
    again.load_state_dict(training.state_dict())
    assert list(again) == []


def test_frozen_and_fine_tuned_see_identical_batches(make_training):
    seen = []
    for encoder_lr in (0.0, 0.001):
        training = make_training(encoder_lr=encoder_lr, epochs=2)
        batches = record_batches(training)
        list(training)
        seen.append(batches)
    assert [len(batch) for batch in seen[0]] == [4, 4, 2] * 2
    assert_same(*seen)


def test_a_frozen_encoder_keeps_every_bit_through_a_training(make_training):
    training = make_training(encoder_lr=0.0, epochs=1, lr=0.1)
    before = {name: t.clone() for name, t in training.model.encoder.state_dict().items()}
    decoder = [p.clone() for p in training.model.decoder.parameters()]
    list(training)
    assert_same(dict(training.model.encoder.state_dict()), before)
    assert not any(
        torch.equal(a, b) for a, b in zip(decoder, training.model.decoder.parameters(), strict=True)
    )


def test_each_epoch_shows_every_image_once_in_another_order(make_tiny):
    training = make_tiny(augment=NO_VIEWS, epochs=2)
    batches = record_batches(training)
    list(training)
    images = load_batch(training.train, np.arange(10), CPU)[0]
    order = [
        int((images - one).abs().mean((1, 2, 3)).argmin()) for batch in batches for one in batch
    ]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]


def test_views_differ_from_epoch_to_epoch(make_tiny):
    training = make_tiny(epochs=2, batch_size=10, augment=NO_VIEWS | {"shift": 0.5})
    batches = record_batches(training)
    list(training)
    first, second = ({one.numpy().tobytes() for one in batch} for batch in batches)
    assert not first & second


def test_a_batch_is_images_between_0_and_1_and_masks_of_0_and_1(splits):
    images, masks = load_batch(splits["train"], np.array([3, 1]), CPU)
    expected = splits["train"].images[3] / 255
    assert images.dtype == masks.dtype == torch.float32
    np.testing.assert_allclose(images[0].permute(1, 2, 0), expected, atol=1e-7)
    np.testing.assert_array_equal(masks[1, 0], splits["train"].masks[1])
    assert masks.unique().tolist() == [0, 1]


def test_the_training_loss_is_the_mean_over_images_not_batches(make_tiny, monkeypatch):
    losses = iter([1.0, 2.0, 6.0])
    monkeypatch.setattr(Training, "_step", lambda *_, **__: next(losses))
    epoch = next(iter(make_tiny(epochs=1)))
    assert epoch.train_loss == pytest.approx((4 * 1 + 4 * 2 + 2 * 6) / 10)


def test_an_epoch_s_scores_are_those_of_the_model_it_leaves_behind(make_training):
    training = make_training(encoder_lr=0.001, epochs=1, batch_size=2)  # val in batches of 4 and 1
    epoch = next(iter(training))
    images, masks = load_batch(training.val, np.arange(5), CPU)
    with torch.inference_mode():
        logits = training.model.eval()(images)
    counts = count_pixels((logits.sigmoid() > 0.5).numpy(), masks.bool().numpy())
    for name, score in mean_scores(score_images(counts)).items():
        if name != "threshold_jaccard":
            assert getattr(epoch, f"val_{name}") == pytest.approx(score, abs=1e-3)
    loss = weighted_sum(logits, masks, weights=RECIPE.loss).mean().item()
    assert epoch.val_loss == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize(
    ("jaccards", "best"), [([0.3, 0.5, 0.4], 2), ([0.5, 0.5, 0.2], 1), ([0.0, 0.0, 0.1], 3)]
)
def test_the_best_state_is_that_of_the_first_epoch_with_the_highest_val_jaccard(
    make_tiny, monkeypatch, jaccards, best
):
    coming = iter(jaccards)
    names = ("loss", "dice", "accuracy", "sensitivity", "specificity")
    others = {f"val_{name}": 0.9 for name in names}
    monkeypatch.setattr(Training, "_validate", lambda _: {"val_jaccard": next(coming), **others})
    training, states = make_tiny(lr=0.05), []
    for _ in training:
        states.append({name: t.clone() for name, t in training.model.state_dict().items()})
    assert training.best["epoch"] == best
    assert training.best["jaccard"] == jaccards[best - 1]
    assert_same(dict(training.best["state"]), states[best - 1])
    assert not torch.equal(states[0]["decoder.1.weight"], states[1]["decoder.1.weight"])


def learning_rates(training: Training) -> list[list[float]]:
    """The rates of every step: the decoder's two groups, then the encoder's if it has some."""
    rates = []
    training.optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.append([group["lr"] for group in optimizer.param_groups])
    )
    list(training)
    return rates


def test_learning_rates_rise_once_to_their_own_peak_and_fall_to_nearly_0(make_tiny):
    # 10 steps an epoch, 30 in all, of which 6 warm up.
    rates = learning_rates(make_tiny(batch_size=1, lr=0.002, encoder_lr=0.0005))
    decoder, encoder = [r[0] for r in rates], [r[2] for r in rates]
    assert [r[1] for r in rates] == decoder
    assert [r[3] for r in rates] == encoder
    assert len(decoder) == 30
    assert decoder[0] == pytest.approx(0.01 * 0.002)
    assert decoder[3] == pytest.approx(0.5 * 0.002)
    assert decoder.index(max(decoder)) == 6
    assert decoder[6] == pytest.approx(0.002)
    assert decoder[18] == pytest.approx(0.5 * 0.002)
    assert 0 < decoder[-1] < 0.01 * 0.002
    assert all(a < b for a, b in pairwise(decoder[:7]))
    assert all(a > b for a, b in pairwise(decoder[6:]))
    assert encoder == pytest.approx([rate / 4 for rate in decoder])


def test_without_warm_up_the_first_step_has_the_peak(make_tiny):
    rates = learning_rates(make_tiny(warmup_fraction=0.0, epochs=1))
    assert rates[0] == [0.002, 0.002]
    assert rates[-1][0] < 0.002


def test_an_epoch_s_record_names_both_rates(make_tiny):
    epoch = next(iter(make_tiny(lr=0.002, encoder_lr=0.001)))
    assert epoch.encoder_lr == pytest.approx(epoch.lr / 2)
    assert next(iter(make_tiny(encoder_lr=0.0))).encoder_lr == 0.0


@pytest.mark.parametrize("changes", [{}, CRAFT])
@pytest.mark.parametrize("encoder_lr", [0.0, 0.001])
def test_only_convolution_weights_decay_and_each_trained_parameter_is_there_once(
    make_training, encoder_lr, changes
):
    training = make_training(encoder_lr=encoder_lr, **changes)
    groups = training.optimizer.param_groups
    for group in groups:
        decays = {p.ndim > 1 for p in group["params"]}
        assert decays == {group["weight_decay"] > 0}
        assert group["weight_decay"] in (0.0, 0.01)
    optimised = [id(p) for group in groups for p in group["params"]]
    model = training.model
    trained = list(model.parameters() if encoder_lr else model.decoder.parameters())
    trained += training.heads.parameters() if training.heads else []
    assert sorted(optimised) == sorted(id(p) for p in trained)
    assert all(p.requires_grad for group in groups for p in group["params"])


@pytest.mark.parametrize("encoder_lr", [0.0, 0.001])
def test_with_all_craft_off_an_epoch_is_this_plain_loop(make_tiny, encoder_lr):
    plain, training = (make_tiny(encoder_lr=encoder_lr, warmup_fraction=0.0) for _ in range(2))
    peaks = [0.002, 0.002] + [encoder_lr] * 2 * (encoder_lr > 0)
    parts = [plain.model.decoder, plain.model.encoder]
    groups = [
        {
            "params": [p for p in parts[i // 2].parameters() if (p.ndim > 1) == (i % 2 == 0)],
            "lr": peak,
            "weight_decay": 0.0 if i % 2 else 0.01,
        }
        for i, peak in enumerate(peaks)
    ]
    optimizer = torch.optim.AdamW(groups, fused=True)
    seed = int(np.random.SeedSequence([0, 1]).generate_state(1)[0])
    generator = torch.Generator().manual_seed(seed)
    for step, batch in enumerate(torch.randperm(10, generator=generator).split(4)):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * ((1 + math.cos(math.pi * (step / 9))) / 2)
        images, masks = load_batch(plain.train, batch.numpy(), CPU)
        images, masks = augment(images, masks, generator=generator, **AUGMENT)
        images = images.contiguous(memory_format=torch.channels_last)
        loss = weighted_sum(plain.model(images), masks, weights=RECIPE.loss).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    next(iter(training))
    assert_same(dict(training.model.state_dict()), dict(plain.model.state_dict()))
    assert_same(training.optimizer.state_dict(), optimizer.state_dict())
    assert_same(training.best["state"], dict(plain.model.state_dict()))


def test_each_craft_starts_from_the_same_model_and_ends_in_another_of_its_form(make_training):
    settings = {"encoder_lr": 0.001, "decoder": "pyramid", "epochs": 1, "batch_size": 5}
    off, *on = (
        make_training(**settings, **change)
        for change in ({}, {"ema_decay": 0.5}, {"layer_decay": 0.5}, {"deep_supervision": 0.4})
    )
    for training in on:
        assert_same(dict(training.model.state_dict()), dict(off.model.state_dict()))
    for training in (off, *on):
        list(training)
    for training in on:
        assert list(training.best["state"]) == list(off.best["state"])
        for name in ("encoder.features.0.0.weight", "decoder.smooths.0.1.1.running_mean"):
            assert not torch.equal(training.best["state"][name], off.best["state"][name])


@pytest.mark.parametrize(
    ("decay", "expected"),
    [(0.9, [11.0, 20.0, 8.0]), (0.25, [11.0, 20.0, 8.0]), (0.1, [11.0, 20.9, 5.69])],
)
def test_an_average_keeps_its_decay_or_at_first_less(decay, expected):
    # 11, then 2/11 of that and 9/11 of 22, then 1/4 of that and 3/4 of 4; or a tenth each time.
    model = torch.nn.ModuleDict(
        {"encoder": torch.nn.Identity(), "decoder": torch.nn.BatchNorm2d(1)}
    )
    average = WeightAverage(model=model, learning=["decoder"], decay=decay)
    learning, averaged = model["decoder"], average.model["decoder"]
    for value, mean in zip((11.0, 22.0, 4.0), expected, strict=True):
        for tensor in (learning.weight.data, learning.running_mean, learning.running_var):
            tensor.fill_(value)
        learning.num_batches_tracked += 1
        average.update()
        for tensor in (averaged.weight, averaged.running_mean, averaged.running_var):
            assert tensor.item() == pytest.approx(mean)
        assert torch.equal(averaged.num_batches_tracked, learning.num_batches_tracked)
        assert learning.weight.item() == value


def test_the_average_takes_in_every_step_and_is_what_is_validated_and_kept(make_tiny):
    training = make_tiny(encoder_lr=0.01, lr=0.01, epochs=1, batch_size=1, ema_decay=0.4)
    steps = []
    training.optimizer.register_step_post_hook(
        lambda *_: steps.append({k: v.double() for k, v in training.model.state_dict().items()})
    )
    epoch = next(iter(training))
    assert len(steps) == 10
    for name, kept in training.best["state"].items():
        expected = steps[0][name]
        for n, step in enumerate(steps[1:], 1):
            decay = min(0.4, (1 + n) / (10 + n)) if kept.is_floating_point() else 0.0
            expected = decay * expected + (1 - decay) * step[name]
        torch.testing.assert_close(kept.double(), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(kept, training.model.state_dict()[name]) == (kept.dtype == torch.int64)
    averaged = make_tiny().model
    averaged.load_state_dict(training.best["state"])
    images, masks = load_batch(training.val, np.arange(5), CPU)
    with torch.inference_mode():
        of_average, of_last = (
            weighted_sum(model.eval()(images), masks, weights=RECIPE.loss).mean().item()
            for model in (averaged, training.model)
        )
    assert epoch.val_loss == pytest.approx(of_average, abs=1e-6)
    assert epoch.val_loss != pytest.approx(of_last, abs=1e-5)


def test_averaging_leaves_the_bytes_of_a_frozen_encoder(make_training):
    training = make_training(epochs=1, lr=0.1, batch_size=1, **CRAFT)
    weight = training.model.encoder.features[0][0].weight
    weight[0, 0, 0, 0] = -0.0  # a + w (b - a), as after 10 steps, makes it 0.0
    before = {name: t.numpy().tobytes() for name, t in training.model.encoder.state_dict().items()}
    list(training)
    for state in (training.best["state"], training.model.state_dict()):
        for name, content in before.items():
            assert state[f"encoder.{name}"].numpy().tobytes() == content, name


def test_a_block_learns_at_a_share_of_the_rate_of_the_block_above_it(make_training):
    training = make_training(encoder_lr=0.001, layer_decay=0.5)
    rate_of = {id(p): g["lr"] for g in training.optimizer.param_groups for p in g["params"]}
    features = training.model.encoder.features
    assert len(features) == 19
    known = {18: 0.001, 17: 0.0005, 16: 0.00025, 8: 0.001 / 1024, 0: 0.001 / 262144}
    for index, rate in known.items():
        for parameter in features[index].parameters():
            assert rate_of[id(parameter)] == pytest.approx(rate)
    assert {rate_of[id(p)] for p in training.model.decoder.parameters()} == {0.002}


def test_an_epoch_s_record_names_the_rate_of_the_encoder_s_top_block(make_training):
    training = make_training(encoder_lr=0.001, **CRAFT, batch_size=10)
    groups = training.optimizer.param_groups
    top = {id(p) for p in training.model.encoder.features[-1].parameters()}
    assert {id(p) for g in groups[-2:] for p in g["params"]} == top
    epoch = next(iter(training))
    assert epoch.encoder_lr == pytest.approx(epoch.lr / 2)


def test_a_layer_decay_of_1_makes_two_groups_of_each_part(make_training):
    training = make_training(encoder_lr=0.001, layer_decay=1.0)
    model = training.model
    expected = [
        [id(p) for p in part.parameters() if (p.ndim > 1) == decays]
        for part in (model.decoder, model.encoder)
        for decays in (True, False)
    ]
    groups = training.optimizer.param_groups
    assert [[id(p) for p in group["params"]] for group in groups] == expected
    assert [group["lr"] for group in groups] == [0.002, 0.002, 0.001, 0.001]


def test_coarser_levels_cost_the_mean_of_their_losses_times_the_weight(make_training, splits):
    training = make_training(**CRAFT, loss={"bce": 1.0})
    images, masks = load_batch(splits["train"], np.arange(4), CPU)
    with torch.no_grad():
        for head, bias in zip(training.heads.heads, (-1.0, 0.5, 2.0), strict=True):
            head.weight.zero_()
            head.bias.fill_(bias)
        torch.manual_seed(0)  # dropout
        loss = training._loss(images, masks).item()
        torch.manual_seed(0)
        fine = weighted_sum(training.model(images), masks, weights={"bce": 1.0}).mean().item()
    # Cross-entropy of one logit b against a share s of lesion: log(1 + exp(b)) - s b.
    coarser = []
    for stride, bias in ((8, -1.0), (16, 0.5), (32, 2.0)):
        cells = masks.reshape(4, 64 // stride, stride, 64 // stride, stride).mean((2, 4)) > 0.5
        coarser.append(math.log1p(math.exp(bias)) - cells.float().mean().item() * bias)
    assert loss == pytest.approx(fine + 0.4 * sum(coarser) / 3, rel=1e-5)


def test_levels_are_those_at_strides_32_16_and_8_and_the_network_gives_plain_logits(make_training):
    training = make_training(**CRAFT)
    with training.heads.watch() as levels:
        logits = training.model(torch.rand(2, 3, 64, 64))
    assert [level.shape for level in levels] == [(2, 1, 2, 2), (2, 1, 4, 4), (2, 1, 8, 8)]
    assert logits.shape == (2, 1, 64, 64)
    assert not any(module._forward_hooks for module in training.model.modules())


def test_heads_are_drawn_from_the_seed_alone_and_learn(make_training):
    torch.manual_seed(1)
    next_numbers = torch.rand(3)
    torch.manual_seed(1)
    training = make_training(**CRAFT, epochs=1, batch_size=10)
    assert torch.equal(torch.rand(3), next_numbers)
    other = make_training(**CRAFT)
    assert_same(dict(training.heads.state_dict()), dict(other.heads.state_dict()))
    list(training)
    for before, learnt in zip(other.heads.parameters(), training.heads.parameters(), strict=True):
        assert not torch.equal(before, learnt)


def draw_teacher() -> Teacher:
    return Teacher([draw_tiny(seed=1), draw_tiny(seed=2)])


def first_batch(training: Training) -> tuple[torch.Tensor, torch.Tensor]:
    return load_batch(training.train, np.arange(4), CPU)


def test_a_teacher_with_no_share_leaves_every_bit_of_a_training(make_tiny):
    states = []
    for teacher in (None, draw_teacher()):
        training = make_tiny(encoder_lr=0.001, teacher=teacher, distillation=0.0)
        list(training)
        states.append(training.state_dict())
    assert_same(*states)


@pytest.mark.parametrize(("share", "learns"), [(1.0, False), (0.5, True)])
def test_a_student_that_agrees_with_its_teacher_has_nothing_to_learn_from_it(
    make_tiny, share, learns
):
    training = make_tiny(encoder_lr=0.001, distillation=share)
    training.model.eval()  # or its batch norm would not agree
    training.teacher = Teacher([copy.deepcopy(training.model)])
    training._loss(*first_batch(training)).backward()
    largest = max(p.grad.abs().max().item() for p in training.model.parameters())
    assert (largest > 1e-3) == learns
    assert largest < 1e-6 or learns


def test_the_loss_is_the_share_s_mean_of_that_on_masks_and_that_on_the_teacher(make_tiny):
    training = make_tiny(teacher=draw_teacher(), distillation=0.25)
    images, masks = first_batch(training)
    loss = training._loss(images, masks).item()
    with torch.no_grad():
        logits = training.model(images)
        p = logits.sigmoid()
        q = sum(model(images).sigmoid() for model in training.teacher.models) / 2
    on_masks = weighted_sum(logits, masks, weights=RECIPE.loss).mean().item()
    on_teacher = -(q * p.log() + (1 - q) * (1 - p).log()).mean().item()
    assert loss == pytest.approx(0.75 * on_masks + 0.25 * on_teacher, rel=1e-5)
    assert abs(on_masks - on_teacher) > 0.1


def test_the_loss_on_coarser_levels_stays_that_on_masks(make_training):
    training = make_training(**CRAFT, distillation=0.7, loss={"bce": 1.0})
    training.teacher = Teacher([draw_tiny(seed=1)])
    images, masks = first_batch(training)
    with torch.no_grad():
        losses = []
        for teacher, compute in (
            (training.teacher, training._loss),
            (None, training._loss),
            (training.teacher, training._fine_loss),
            (None, training._fine_loss),
        ):
            training.teacher = teacher
            torch.manual_seed(0)  # dropout
            losses.append(compute(images, masks).item())
    assert losses[0] - losses[1] == pytest.approx(losses[2] - losses[3], rel=1e-4)
    assert losses[0] != pytest.approx(losses[2], rel=0.01)


def test_the_teacher_sees_the_student_s_views_and_comes_out_as_it_went_in(make_tiny):
    teacher = draw_teacher()
    before = copy.deepcopy(dict(teacher.state_dict()))
    training = make_tiny(encoder_lr=0.01, epochs=2, teacher=teacher, distillation=0.5)
    training.train = make_split("train", 6, 96)
    taught = []
    teacher.models[1].register_forward_pre_hook(
        lambda model, inputs: taught.append((model.training, inputs[0].clone()))
    )
    learnt = record_batches(training)
    list(training)
    assert [view.shape[-1] for view in learnt] == [64, 64, 96, 96]
    assert_same([view for _, view in taught], learnt)
    assert not any(was_training for was_training, _ in taught)
    assert all(v.is_contiguous(memory_format=torch.channels_last) for _, v in taught)
    assert_same(dict(teacher.state_dict()), before)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_teacher_is_part_of_neither_checkpoint_model_nor_optimizer(make_tiny):
    plain = make_tiny(encoder_lr=0.01, epochs=1)
    taught = make_tiny(encoder_lr=0.01, epochs=1, teacher=draw_teacher(), distillation=0.5)
    states = []
    for training in (plain, taught):
        list(training)
        states.append(training.state_dict())
    first, second = states
    assert list(first) == list(second)
    assert list(first["best"]["state"]) == list(second["best"]["state"])
    assert not torch.equal(*(state["model"]["decoder.1.weight"] for state in states))
    optimised = {id(p) for group in taught.optimizer.param_groups for p in group["params"]}
    assert optimised == {id(parameter) for parameter in taught.model.parameters()}


def test_a_teacher_has_no_say_on_val(make_tiny):
    plain, taught = make_tiny(), make_tiny(teacher=draw_teacher(), distillation=0.5)
    assert plain._validate() == taught._validate()


def test_a_taught_training_taken_up_again_ends_in_the_bits_of_an_uninterrupted_one(
    tmp_path, make_tiny
):
    def start() -> Training:
        return make_tiny(encoder_lr=0.01, teacher=draw_teacher(), distillation=0.5)

    whole, killed, resumed = start(), start(), start()
    list(whole)
    next(iter(killed))
    save_checkpoint(tmp_path, killed.state_dict())
    resumed.load_state_dict(load_checkpoint(tmp_path))
    assert [epoch.epoch for epoch in resumed] == [2, 3]
    assert_same(resumed.state_dict(), whole.state_dict())


def test_a_teacher_computes_in_the_recipe_s_precision_and_answers_in_float32(make_tiny):
    training = make_tiny(teacher=draw_teacher(), distillation=1.0, precision=torch.bfloat16)
    kinds = []
    training.teacher.models[0].register_forward_hook(
        lambda _model, _inputs, logits: kinds.append(logits.dtype)
    )
    images, masks = first_batch(training)
    probabilities = training._forward(training.teacher, images)
    assert kinds == [torch.bfloat16]
    assert probabilities.dtype == training._loss(images, masks).dtype == torch.float32


def test_eight_phantoms_are_learnt(encoder_state):
    split = make_split("train", 8, 64)
    model = build_segmenter(
        encoder_state=encoder_state, decoder="transposed", dropout=0.0, frozen=False, seed=0
    )
    recipe = dataclasses.replace(
        RECIPE,
        epochs=15,
        batch_size=4,
        lr=0.01,
        encoder_lr=0.005,
        augment=NO_VIEWS,
    )
    epochs = list(Training(model=model, train=split, val=split, recipe=recipe, device=CPU))
    assert epochs[-1].train_loss < 0.7 * epochs[0].train_loss
    assert epochs[-1].seconds > 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_run_epoch_step_and_the_next_step(
    make_tiny, monkeypatch, value
):
    calls = []

    def fail_at_the_sixth(logits, masks, *, weights):
        calls.append(1)
        loss = weighted_sum(logits, masks, weights=weights)
        return loss * value if len(calls) == 6 else loss

    # 3 steps and 1 batch of val make an epoch: the sixth call is step 2 of epoch 2.
    monkeypatch.setattr(loop, "weighted_sum", fail_at_the_sixth)
    training = make_tiny(batch_size=4)
    with pytest.raises(TrainingError) as caught:
        list(training)
    assert str(caught.value) == (
        f"train_frozen: the loss is {value} in epoch 2, step 2. "
        "Write a smaller train.lr than 0.002 in params.yaml "
        "(others that may be too large: loss.bce 1, loss.dice 1, loss.iou 1)"
    )
    assert len(training.history) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 1e30, "encoder_lr": 1e-3}, "Write a smaller train.lr than 1e+30"),
        ({"encoder_lr": 1e30}, "Write a smaller train_finetuned.encoder_lr than 1e+30"),
        ({"loss": {"bce": 0.0, "dice": 1e30}}, "Write a smaller loss.dice than 1e+30"),
        ({"lr": 0.01, "encoder_lr": 0.04}, "smaller train_finetuned.encoder_lr than 0.04"),
        ({"lr": 0.01, "encoder_lr": 0.004}, "Write a smaller train.lr than 0.01"),
    ],
)
def test_what_is_largest_beside_its_usual_value_is_to_blame(
    make_tiny, monkeypatch, changes, message
):
    training = make_tiny(run="train_finetuned", **changes)
    losses = iter([1.0, 1.0])
    monkeypatch.setattr(training, "_step", lambda *_, **__: next(losses, math.nan))
    with pytest.raises(TrainingError) as caught:
        next(iter(training))
    assert message in str(caught.value)
    in_play = {"train.lr": training.recipe.lr, "encoder_lr": training.recipe.encoder_lr}
    assert all((f"{name} " in str(caught.value)) == bool(value) for name, value in in_play.items())


@pytest.mark.parametrize(
    ("weight", "message"),
    [(1e38, "Write a smaller loss.bce than 1e+38 in"), (1.0, "Write another download.weights in")],
)
def test_before_the_first_step_no_rate_is_to_blame(make_tiny, weight, message):
    training = make_tiny(lr=1e9, encoder_lr=1e9, loss={"bce": weight, "dice": 0.0})
    with torch.no_grad():
        training.model.decoder[1].weight.fill_(1e38)  # finite, and too large
    with pytest.raises(TrainingError, match=r"epoch 1, step 1\.") as caught:
        next(iter(training))
    assert message in str(caught.value)
    assert "lr" not in str(caught.value).split()


def test_weights_that_the_last_step_destroyed_end_in_an_error_and_are_not_kept(make_tiny):
    training = make_tiny(epochs=1, batch_size=10, warmup_fraction=0.0, lr=math.inf)
    with pytest.raises(TrainingError, match=r"^train_frozen: .* epoch 1\b.* train\.lr"):
        list(training)
    assert training.best["state"] == {}


def test_a_checkpoint_comes_back_as_it_went(tmp_path, make_tiny):
    training = make_tiny(encoder_lr=0.001)
    next(iter(training))
    assert load_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, training.state_dict())
    state = load_checkpoint(tmp_path)
    assert_same(state["optimizer"], training.optimizer.state_dict())
    assert_same(dict(state["model"]), dict(training.model.state_dict()))
    assert state["history"] == training.state_dict()["history"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("num_bytes", [0, 10, 500])
def test_a_damaged_checkpoint_is_warned_about_and_the_training_starts_afresh(
    tmp_path, make_tiny, caplog, num_bytes
):
    save_checkpoint(tmp_path, make_tiny().state_dict())
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:num_bytes])
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(tmp_path) is None
    [record] = caplog.records
    assert str(path) in record.getMessage()


def test_checkpoints_are_deleted_and_deleting_none_is_no_error(tmp_path):
    save_checkpoint(tmp_path / "folder", {"a": 1})
    delete_checkpoints(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []
    delete_checkpoints(tmp_path / "folder")


def test_the_checkpoint_s_folder_is_another_for_every_other_training(tmp_path):
    data, other = tmp_path / "images.npy", tmp_path / "masks.npy"
    data.write_bytes(b"1")
    other.write_bytes(b"2")

    def folder(run="train_frozen", inputs=(data, other), **settings):
        settings = {"train.lr": 0.002, "loss.bce": 1.0, "torch": "2.13"} | settings
        return checkpoint_dir(tmp_path, run=run, settings=settings, inputs=inputs)

    first = folder()
    assert first.parent == tmp_path
    assert first.name.startswith("train_frozen-")
    changed = [
        folder("train_finetuned"),
        folder(**{"train.lr": 0.001}),
        folder(**{"loss.bce": 0.0}),
        folder(torch="2.14"),
        folder(new=1),
        folder(inputs=(other, data)),
        folder(inputs=(data,)),
    ]
    data.write_bytes(b"3")
    changed.append(folder())
    data.write_bytes(b"1")
    assert folder() == first
    assert len({first, *changed}) == len(changed) + 1


def test_the_checkpoint_s_folder_is_another_for_other_code(tmp_path, monkeypatch):
    from lesionseg.training import checkpoints

    (tmp_path / "a.py").write_text("1")
    monkeypatch.setattr(checkpoints, "PACKAGE", tmp_path)
    first = checkpoint_dir(tmp_path, run="r", settings={}, inputs=[])
    (tmp_path / "a.py").write_text("2")
    assert checkpoint_dir(tmp_path, run="r", settings={}, inputs=[]) != first


def test_the_checkpoint_s_folder_does_not_depend_on_where_the_inputs_lie(tmp_path):
    folders = set()
    for name in ("a", "b"):
        path = tmp_path / name / "images.npy"
        path.parent.mkdir()
        path.write_bytes(b"1")
        folders.add(checkpoint_dir(tmp_path, run="r", settings={}, inputs=[path]))
    assert len(folders) == 1


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "expected"),
    [
        (False, False, torch.float32),
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
    ],
)
def test_auto_takes_bfloat16_only_where_the_cpu_multiplies_in_it(
    monkeypatch, avx512_bf16, amx, expected
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert choose_precision("auto", CPU) == expected
    assert choose_precision("float32", CPU) == torch.float32
    assert choose_precision("bfloat16", CPU) == torch.bfloat16


@pytest.mark.parametrize("expected", [torch.float32, torch.bfloat16])
def test_auto_takes_bfloat16_only_where_the_gpu_multiplies_in_it(monkeypatch, expected):
    def is_supported(including_emulation=True):
        return including_emulation or expected == torch.bfloat16

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert choose_precision("auto", torch.device("cuda")) == expected


@pytest.mark.parametrize("num_devices", [0, 2])
def test_auto_takes_cuda_where_there_is_one(monkeypatch, num_devices):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_devices > 0)
    assert choose_device("auto").type == ("cuda" if num_devices else "cpu")
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize(("name", "num_devices"), [("cuda", 0), ("cuda:99", 0), ("cuda:2", 2)])
def test_a_device_that_is_not_there_is_answered_in_one_line(monkeypatch, name, num_devices):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_devices)
    with pytest.raises(ConfigError) as caught:
        choose_device(name)
    assert str(caught.value) == (
        f"params.yaml: train: device is {name}, and torch sees {num_devices} CUDA devices; "
        "write auto or cpu"
    )


def test_a_device_that_is_there_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
