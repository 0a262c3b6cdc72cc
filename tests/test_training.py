"""The training loop: the same bytes every time, also after an interruption."""

import hashlib
import json
import logging
import math
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lesionseg.config import AugmentConfig, LossConfig, load_config
from lesionseg.data import batches
from lesionseg.data.augmentation import augment
from lesionseg.data.batches import Resident, keep_on, load_batch
from lesionseg.data.dataset import Fold, Split
from lesionseg.data.phantom import draw_phantom
from lesionseg.errors import ConfigError, TrainingError
from lesionseg.hardware import choose_device, choose_precision, describe
from lesionseg.losses import weighted_sum
from lesionseg.metrics import count_pixels, mean_scores, score_images
from lesionseg.models.segmenter import build_segmenter, save_model
from lesionseg.results.layout import TrainingFiles
from lesionseg.training import loop
from lesionseg.training.checkpoints import (
    checkpoint_dir,
    delete_committed,
    load_checkpoint,
    mark_finished,
    save_checkpoint,
    stage_code,
)
from lesionseg.training.loop import Recipe, Training, resize
from lesionseg.training.run import write_results

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
PARAMS = Path(__file__).parents[1] / "params.yaml"
AUGMENT = AugmentConfig(
    horizontal_flip=0.5,
    vertical_flip=0.5,
    rotation_degrees=60.0,
    scale=0.1,
    shift=0.1,
    padding="border",
    brightness=0.1,
    contrast=0.1,
    saturation=0.1,
)
NO_VIEWS = AugmentConfig(**dict.fromkeys(asdict(AUGMENT), 0.0) | {"padding": "border"})
CONFIG = load_config(PARAMS)
TRAIN = replace(CONFIG.train, epochs=3, batch_size=4, lr=0.002, weight_decay=0.01)
RECIPE = Recipe(
    run="train_frozen",
    train=replace(TRAIN, warmup_fraction=0.2, first_image_size=64),
    encoder_lr=0.0,
    seed=0,
    precision=torch.float32,
    loss=CONFIG.loss,
    augment=AUGMENT,
)
NO_LOSS = LossConfig(**dict.fromkeys(asdict(CONFIG.loss), 0.0) | {"bce": 1.0})
ORIGIN = dict.fromkeys(
    ["commit", "dvc_stage", "dvc_experiment", "data_sha256", "device", "precision"], "-"
)


def change(recipe: Recipe, **changes) -> Recipe:
    """The recipe with other values, those of `train` among them by their own names."""
    names = asdict(recipe.train).keys() & changes.keys() - {"seed", "precision"}
    shared = {name: changes.pop(name) for name in names}
    return replace(recipe, train=replace(recipe.train, **shared), **changes)


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
        recipe = change(RECIPE, encoder_lr=encoder_lr, **changes)
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

    def make_tiny(**changes) -> Training:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = TinySegmenter()
        recipe = change(RECIPE, **changes)
        return Training(model=model, **splits, recipe=recipe, device=CPU)

    return make_tiny


def assert_same(first, second, name="state"):
    """The same bits, through dicts, lists and tensors; seconds may differ."""
    assert type(first) is type(second), name
    if isinstance(first, dict):
        assert list(first) == list(second), name
        for key in first.keys() - {"seconds"}:
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


@pytest.mark.parametrize("encoder_lr", [0.0, 0.001])
def test_a_training_taken_up_again_ends_in_the_bits_of_an_uninterrupted_one(
    tmp_path, make_training, encoder_lr
):
    whole = make_training(encoder_lr=encoder_lr)
    assert len(list(whole)) == 3

    killed = make_training(encoder_lr=encoder_lr)
    next(iter(killed))
    save_checkpoint(tmp_path / "folder", killed.state_dict())
    torch.manual_seed(99)
    resumed = make_training(encoder_lr=encoder_lr)
    resumed.load_state_dict(load_checkpoint(tmp_path / "folder"))
    assert [epoch.epoch for epoch in resumed] == [2, 3]
    assert_same(resumed.state_dict(), whole.state_dict())
    files = []
    for name, training in (("whole.pt", whole), ("resumed.pt", resumed)):
        best = training.best["state"]
        settings = {"decoder": "any", "image_size": 64, "frozen": encoder_lr == 0}
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
    training = make_tiny(epochs=2, batch_size=10, augment=replace(NO_VIEWS, shift=0.5))
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


@pytest.mark.parametrize("part", [slice(None), slice(2, 7)], ids=["split", "fold"])
def test_a_split_kept_on_a_device_gives_the_same_batches(splits, part):
    whole = splits["train"]
    members = tuple((whole, row) for row in range(len(whole.ids))[part])
    split = whole if part == slice(None) else Fold(name="f", members=members, images_per_epoch=9)
    kept, rows = Resident(split, CPU), np.array([3, 1, 3])
    for found, expected in zip(
        load_batch(kept, rows, CPU), load_batch(split, rows, CPU), strict=True
    ):
        assert torch.equal(found, expected)
    for name in ("ids", "image_size", "images_per_epoch"):
        assert getattr(kept, name) == getattr(split, name)


@pytest.mark.parametrize(("spare", "are_kept"), [(0, True), (-1, False)])
def test_splits_are_kept_on_a_gpu_that_has_room_for_all_of_them(
    splits, monkeypatch, spare, are_kept
):
    both = splits["train"], splits["val"]
    num_bytes = sum(split.images.nbytes + split.masks.nbytes for split in both)
    memory = 10 * num_bytes + spare
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=memory)
    )
    monkeypatch.setattr(batches, "Resident", lambda split, device: (split, device))
    gpu = torch.device("cuda")
    assert keep_on(gpu, *both) == (tuple((split, gpu) for split in both) if are_kept else both)
    assert keep_on(CPU, *both) == both


def test_the_training_loss_is_the_mean_over_images_not_batches(make_tiny, monkeypatch):
    losses = iter(torch.tensor([1.0, 2.0, 6.0]))
    monkeypatch.setattr(Training, "step", lambda *_, **__: next(losses))
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
    loss = weighted_sum(logits, masks, weights=asdict(RECIPE.loss)).mean().item()
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


@pytest.mark.parametrize("encoder_lr", [0.0, 0.001])
def test_only_convolution_weights_decay_and_each_trained_parameter_is_there_once(
    make_training, encoder_lr
):
    training = make_training(encoder_lr=encoder_lr)
    groups = training.optimizer.param_groups
    for group in groups:
        decays = {p.ndim > 1 for p in group["params"]}
        assert decays == {group["weight_decay"] > 0}
        assert group["weight_decay"] in (0.0, 0.01)
    optimised = [id(p) for group in groups for p in group["params"]]
    model = training.model
    trained = list(model.parameters() if encoder_lr else model.decoder.parameters())
    assert sorted(optimised) == sorted(id(p) for p in trained)
    assert all(p.requires_grad for group in groups for p in group["params"])


@pytest.mark.parametrize("encoder_lr", [0.0, 0.001])
def test_an_epoch_is_this_plain_loop(make_tiny, encoder_lr):
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
        images, masks = augment(images, masks, AUGMENT, generator=generator)
        images = images.contiguous(memory_format=torch.channels_last)
        loss = weighted_sum(plain.model(images), masks, weights=asdict(RECIPE.loss)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    next(iter(training))
    assert_same(dict(training.model.state_dict()), dict(plain.model.state_dict()))
    assert_same(training.optimizer.state_dict(), optimizer.state_dict())
    assert_same(training.best["state"], dict(plain.model.state_dict()))


def test_decoder_and_encoder_have_two_groups_each_in_that_order(make_training):
    training = make_training(encoder_lr=0.001)
    model = training.model
    expected = [
        [id(p) for p in part.parameters() if (p.ndim > 1) == decays]
        for part in (model.decoder, model.encoder)
        for decays in (True, False)
    ]
    groups = training.optimizer.param_groups
    assert [[id(p) for p in group["params"]] for group in groups] == expected
    assert [group["lr"] for group in groups] == [0.002, 0.002, 0.001, 0.001]


def test_eight_phantoms_are_learnt(encoder_state):
    split = make_split("train", 8, 64)
    model = build_segmenter(
        encoder_state=encoder_state, decoder="transposed", dropout=0.0, frozen=False, seed=0
    )
    recipe = change(
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


def test_losses_are_read_some_steps_at_a_time(make_tiny, monkeypatch):
    read = []
    monkeypatch.setattr(loop, "STEPS_UNREAD", 2)
    monkeypatch.setattr(
        Training, "_check", lambda _, losses, *, epoch: read.append((epoch, len(losses)))
    )
    epochs = list(make_tiny(epochs=2, batch_size=4))  # 3 steps an epoch
    assert read == [(1, 2), (1, 3), (2, 2), (2, 3)]
    monkeypatch.setattr(loop, "STEPS_UNREAD", 1)
    again = list(make_tiny(epochs=2, batch_size=4))
    assert [e.train_loss for e in epochs] == [e.train_loss for e in again]


@pytest.fixture
def on_no_device(make_training, monkeypatch):
    """A training of the real network on torch's meta device, which stands for a GPU.

    Its tensors have shapes and no values: to read one is an error, as is an operation on one of
    them and one of the CPU's. What it cannot show is autocast, which it does not know, and time.
    """

    def on_no_device(**changes) -> Training:
        training = make_training(**changes)
        training.device = torch.device("meta")
        training.train = Resident(training.train, training.device)
        training.model.to(training.device)
        monkeypatch.setattr(training, "_forward", training.model)
        return training

    return on_no_device


@pytest.mark.parametrize("decoder", ["bilinear", "transposed", "pyramid"])
@pytest.mark.parametrize("encoder_lr", [0.0, 0.001])
def test_a_step_reads_nothing_from_the_device(on_no_device, encoder_lr, decoder):
    loss = asdict(CONFIG.loss) | dict.fromkeys(["focal", "tversky", "focal_tversky", "lovasz"], 1.0)
    training = on_no_device(encoder_lr=encoder_lr, decoder=decoder, loss=LossConfig(**loss))
    read = training.step(torch.arange(4), torch.Generator().manual_seed(0), image_size=64)
    assert read.device.type == "meta"


def test_a_step_that_reads_its_loss_is_found(on_no_device, monkeypatch):
    def read(logits, masks, *, weights):
        loss = weighted_sum(logits, masks, weights=weights)
        loss.mean().item()
        return loss

    monkeypatch.setattr(loop, "weighted_sum", read)
    with pytest.raises(RuntimeError, match="meta"):
        on_no_device().step(torch.arange(4), torch.Generator().manual_seed(0), image_size=64)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_does_not_wait_for_the_gpu(splits):
    recipe = change(RECIPE, batch_size=4)
    training = Training(model=TinySegmenter(), **splits, recipe=recipe, device=torch.device("cuda"))
    generator = torch.Generator().manual_seed(0)
    training.step(torch.arange(4), generator, image_size=64)
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.step(torch.arange(4), generator, image_size=64)
    finally:
        torch.cuda.set_sync_debug_mode("default")


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
        ({"loss": replace(NO_LOSS, bce=0.0, dice=1e30)}, "Write a smaller loss.dice than 1e+30"),
        ({"lr": 0.01, "encoder_lr": 0.04}, "smaller train_finetuned.encoder_lr than 0.04"),
        ({"lr": 0.01, "encoder_lr": 0.004}, "Write a smaller train.lr than 0.01"),
    ],
)
def test_what_is_largest_beside_its_usual_value_is_to_blame(
    make_tiny, monkeypatch, changes, message
):
    training = make_tiny(run="train_finetuned", **changes)
    losses = iter(torch.tensor([1.0, 1.0]))
    nan = torch.tensor(math.nan)
    monkeypatch.setattr(training, "step", lambda *_, **__: next(losses, nan))
    with pytest.raises(TrainingError) as caught:
        next(iter(training))
    assert message in str(caught.value)
    in_play = {"train.lr": training.recipe.train.lr, "encoder_lr": training.recipe.encoder_lr}
    assert all((f"{name} " in str(caught.value)) == bool(value) for name, value in in_play.items())


@pytest.mark.parametrize(
    ("weight", "message"),
    [(1e38, "Write a smaller loss.bce than 1e+38 in"), (1.0, "Write another download.weights in")],
)
def test_before_the_first_step_no_rate_is_to_blame(make_tiny, weight, message):
    training = make_tiny(lr=1e9, encoder_lr=1e9, loss=replace(NO_LOSS, bce=weight))
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


def test_the_seconds_of_a_run_are_those_of_all_its_epochs(tmp_path, make_tiny):
    training = make_tiny(epochs=2)
    training.history = [replace(epoch, seconds=4.0) for epoch in training]
    files = TrainingFiles(tmp_path)
    tags = {**ORIGIN, "training_key": "-"}
    write_results(files, CONFIG, training, tags=tags, params={})
    details = json.loads(files.record.read_text())
    assert details["seconds"] == 8
    assert details["images_per_second"] == 2 * 10 / 8


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


LOCK = """\
schema: '2.0'
stages:
  train_frozen:
    cmd: python -m stages.train train_frozen
    deps:
    - path: data/processed/train
      hash: md5
      md5: {dep}
    outs:
    - path: results/train_frozen/model.pt
      hash: md5
      md5: {out}
      size: 10
"""


def test_a_finished_training_s_checkpoints_go_only_when_dvc_has_its_model(tmp_path):
    model = tmp_path / "model.pt"
    model.write_bytes(b"a model")
    md5 = hashlib.md5(b"a model").hexdigest()
    root = tmp_path / ".checkpoints"
    save_checkpoint(root / "unfinished", {"a": 1})
    save_checkpoint(root / "finished", {"a": 1})
    mark_finished(root / "finished", model)
    delete_committed(root)  # no lock file
    (tmp_path / "dvc.lock").write_text(LOCK.format(dep=md5, out="0" * 32))
    delete_committed(root)  # the model is no output of it
    assert {path.name for path in root.iterdir()} == {"unfinished", "finished"}
    (tmp_path / "dvc.lock").write_text(LOCK.format(dep="0" * 32, out=md5))
    delete_committed(root)
    assert [path.name for path in root.iterdir()] == ["unfinished"]


def test_trainings_that_tidy_up_at_once_do_not_trip_over_each_other(tmp_path, monkeypatch):
    root = tmp_path / ".checkpoints"
    save_checkpoint(root / "finished", {"a": 1})
    mark_finished(root / "finished", root / "finished/checkpoint.pt")
    (tmp_path / "dvc.lock").write_text(LOCK.format(dep="0" * 32, out="0" * 32))

    def vanish(path, **_):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", vanish)  # listed, and gone before it is read
    delete_committed(root)
    assert (root / "finished/checkpoint.pt").exists()


def test_the_checkpoint_s_folder_is_another_for_every_other_training(tmp_path):
    data, other = tmp_path / "images.npy", tmp_path / "masks.npy"
    data.write_bytes(b"1")
    other.write_bytes(b"2")

    def folder(run="train_frozen", inputs=(data, other), **settings):
        settings = {"train.lr": 0.002, "loss.bce": 1.0, "torch": "2.13"} | settings
        return checkpoint_dir(tmp_path, run=run, settings=settings, inputs=inputs, code=[])

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


def test_the_checkpoint_s_folder_is_another_for_other_code(tmp_path):
    code = tmp_path / "a.py"
    code.write_text("1")
    first = checkpoint_dir(tmp_path, run="r", settings={}, inputs=[], code=[code])
    code.write_text("2")
    assert checkpoint_dir(tmp_path, run="r", settings={}, inputs=[], code=[code]) != first


def test_a_training_s_code_is_what_dvc_makes_it_depend_on(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    names = {path.as_posix() for path in stage_code("train_frozen")}
    assert {"stages/train.py", "src/lesionseg/models/encoder.py"} <= names
    assert not {"src/lesionseg/tracking/runs.py", "src/lesionseg/report/page.py"} & names


def test_the_checkpoint_s_folder_does_not_depend_on_where_the_inputs_lie(tmp_path):
    folders = set()
    for name in ("a", "b"):
        path = tmp_path / name / "images.npy"
        path.parent.mkdir()
        path.write_bytes(b"1")
        folders.add(checkpoint_dir(tmp_path, run="r", settings={}, inputs=[path], code=[]))
    assert len(folders) == 1


@pytest.mark.parametrize("fast", [False, True])
def test_auto_is_float32_on_every_kind_of_cpu(monkeypatch, fast):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: fast)
    assert choose_precision("auto", CPU) == torch.float32
    assert choose_precision("float32", CPU) == torch.float32
    assert choose_precision("bfloat16", CPU) == torch.bfloat16


def test_a_line_says_device_kind_precision_and_threads():
    kind = torch.backends.cpu.get_cpu_capability()
    line = f"cpu ({kind}), bfloat16, {torch.get_num_threads()} threads"
    assert describe(CPU, torch.bfloat16) == line


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
