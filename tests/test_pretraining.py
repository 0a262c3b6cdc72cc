"""A decoder that learns on phantoms first: the same for both models, and nothing else changes."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from lesionseg.config import load_config
from lesionseg.data.phantom import write_phantoms
from lesionseg.models.segmenter import build_segmenter
from lesionseg.training.loop import Training
from lesionseg.training.pretraining import draw_split, pretrain_decoder
from stages import train as stage
from tests.fake_pipeline import PARAMS
from tests.test_training import CPU, CRAFT, RECIPE, assert_same, make_split, record_batches

pytestmark = pytest.mark.usefixtures("one_thread")

PHANTOMS = {"epochs": 1, "num_phantoms": 4}


@pytest.fixture(scope="module")
def splits():
    return {"train": make_split("train", 4, 64), "val": make_split("val", 2, 64)}


@pytest.fixture
def make_model(encoder_state):
    def make_model(*, frozen: bool):
        return build_segmenter(
            encoder_state=encoder_state, decoder="pyramid", dropout=0.1, frozen=frozen, seed=0
        )

    return make_model


@pytest.fixture
def make_training(splits, make_model):
    """A training of the real network, at its first epoch."""

    def make_training(*, encoder_lr: float = 0.0, **changes) -> Training:
        recipe = dataclasses.replace(RECIPE, encoder_lr=encoder_lr, **{"epochs": 1, **changes})
        return Training(
            model=make_model(frozen=encoder_lr == 0), **splits, recipe=recipe, device=CPU
        )

    return make_training


@pytest.fixture
def config():
    """Params.yaml with one epoch on four phantoms."""
    config = load_config(PARAMS)
    changed = dataclasses.replace(config.train, phantom_epochs=1, num_phantoms=4)
    return dataclasses.replace(config, train=changed)


class Log:
    """An MLflow run that keeps nothing; it ends the process at one of the epochs."""

    def __init__(self, *, killed_at: int = 0) -> None:
        self.killed_at = killed_at

    def log_metrics(self, metrics, *, step: int) -> None:
        if step == self.killed_at:
            raise KeyboardInterrupt

    def logged_steps(self, key: str) -> set[int]:
        return set()


def copy_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def bytes_of(module: torch.nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in module.state_dict().items()}


def test_phantoms_are_images_and_masks_of_0_and_1_at_the_network_s_size():
    split = draw_split(num_phantoms=3, image_size=64, seed=0)
    assert (split.images.shape, split.images.dtype) == ((3, 64, 64, 3), np.uint8)
    assert (split.masks.shape, split.masks.dtype) == ((3, 64, 64), np.uint8)
    assert all(np.unique(mask).tolist() == [0, 1] for mask in split.masks)
    assert len(set(split.ids)) == 3


def test_phantoms_are_the_seed_s_own_and_each_is_another():
    first, again, other = (draw_split(num_phantoms=3, image_size=64, seed=s) for s in (5, 5, 6))
    assert first.images.tobytes() == again.images.tobytes()
    assert first.masks.tobytes() == again.masks.tobytes()
    masks = [mask.tobytes() for split in (first, other) for mask in split.masks]
    assert len(set(masks)) == 6


def test_phantoms_are_not_those_that_the_download_draws_with_the_same_seed(tmp_path):
    write_phantoms(tmp_path, num_train=4, num_test=4, size=64, seed=0)
    written = {(np.asarray(Image.open(p)) // 255).tobytes() for p in tmp_path.rglob("*.png")}
    drawn = {mask.tobytes() for mask in draw_split(num_phantoms=8, image_size=64, seed=0).masks}
    assert len(written) == len(drawn) == 8
    assert not written & drawn


def test_frozen_and_fine_tuned_start_from_the_same_bytes_whatever_else_is_on(make_training):
    trainings = [make_training(), make_training(encoder_lr=0.001)]
    craft = {key: value for key, value in CRAFT.items() if key != "decoder"}
    trainings.append(make_training(encoder_lr=0.001, run="train_finetuned", **craft))
    before = bytes_of(trainings[0].model.decoder)
    for global_seed, training in enumerate(trainings):
        torch.manual_seed(global_seed)
        pretrain_decoder(training, **PHANTOMS)
    states = [bytes_of(training.model.decoder) for training in trainings]
    assert states[0] == states[1] == states[2]
    assert all(states[0][name] != before[name] for name in before)  # statistics among them


def test_the_decoder_is_that_of_the_last_epoch_of_a_frozen_training_on_phantoms(
    make_training, make_model
):
    training = make_training(encoder_lr=0.001, seed=3)
    pretrain_decoder(training, epochs=2, num_phantoms=4)
    phantoms = draw_split(num_phantoms=4, image_size=64, seed=3)
    recipe = dataclasses.replace(RECIPE, epochs=2, seed=3)
    model = make_model(frozen=True)
    list(Training(model=model, train=phantoms, val=phantoms, recipe=recipe, device=CPU))
    assert bytes_of(training.model.decoder) == bytes_of(model.decoder)


@pytest.mark.parametrize("encoder_lr", [0.0, 0.001])
def test_pretraining_changes_the_decoder_and_nothing_else_of_a_training(make_training, encoder_lr):
    training, fresh = (make_training(encoder_lr=encoder_lr) for _ in range(2))
    encoder = bytes_of(training.model.encoder)
    pretrain_decoder(training, **PHANTOMS)
    assert bytes_of(training.model.encoder) == encoder
    learning = [[p.requires_grad for p in one.model.parameters()] for one in (training, fresh)]
    assert learning[0] == learning[1]
    fresh.model.decoder.load_state_dict(training.model.decoder.state_dict())
    assert_same(training.state_dict(), fresh.state_dict())


def test_the_training_after_it_is_that_of_any_model_with_this_decoder(make_training):
    settings = {"encoder_lr": 0.001, "ema_decay": 0.9, "deep_supervision": 0.4}
    training, loaded = make_training(**settings), make_training(**settings)
    pretrain_decoder(training, **PHANTOMS)
    loaded.model.decoder.load_state_dict(copy_of(training.model.decoder))
    batches = [record_batches(one) for one in (training, loaded)]
    torch.manual_seed(99)
    for one in (training, loaded):
        list(one)
    assert_same(*batches)
    assert_same(training.state_dict(), loaded.state_dict())


def test_a_killed_training_does_not_pretrain_again_and_ends_in_the_same_bits(
    tmp_path, monkeypatch, make_training, config
):
    settings = {"encoder_lr": 0.001, "epochs": 2}
    whole = make_training(**settings)
    stage.train(config, whole, tmp_path / "whole", Log())
    killed = make_training(**settings)
    with pytest.raises(KeyboardInterrupt):
        stage.train(config, killed, tmp_path / "killed", Log(killed_at=1))
    monkeypatch.delattr(stage, "pretrain_decoder")
    resumed = make_training(**settings)
    stage.train(config, resumed, tmp_path / "killed", Log())
    assert_same(resumed.state_dict(), whole.state_dict())
    assert resumed.pretraining_seconds == killed.pretraining_seconds > 0


def test_a_training_killed_in_its_first_epoch_goes_on_after_the_pretraining(
    tmp_path, monkeypatch, make_training, config
):
    def die(*_):
        raise KeyboardInterrupt

    killed = make_training()
    killed.model.encoder.register_forward_pre_hook(die)  # pretraining has an encoder of its own
    with pytest.raises(KeyboardInterrupt):
        stage.train(config, killed, tmp_path, Log())
    monkeypatch.delattr(stage, "pretrain_decoder")
    resumed, whole = make_training(), make_training()
    stage.train(config, resumed, tmp_path, Log())
    pretrain_decoder(whole, **PHANTOMS)
    list(whole)
    assert_same(resumed.state_dict(), whole.state_dict())


def test_with_no_phantom_epochs_nothing_is_pretrained(tmp_path, monkeypatch, make_training):
    monkeypatch.delattr(stage, "pretrain_decoder")
    training, plain = make_training(), make_training()
    config = load_config(PARAMS)
    assert config.train.phantom_epochs == 0
    stage.train(config, training, tmp_path, Log())
    list(plain)
    assert_same(training.state_dict(), plain.state_dict())


def test_the_seconds_of_a_run_are_those_of_the_pretraining_and_all_epochs(
    tmp_path, make_training, config
):
    training = make_training()
    list(training)
    training.pretraining_seconds = 50.0
    stage.write_results(tmp_path, config, training, tags={}, params={})
    details = json.loads((tmp_path / "run.json").read_text())
    in_epochs = sum(epoch.seconds for epoch in training.history)
    assert details["seconds"] == pytest.approx(50 + in_epochs)
    assert details["images_per_second"] * details["seconds"] == pytest.approx(4)


def test_one_line_says_what_was_learnt_on(make_training, caplog):
    with caplog.at_level("INFO"):
        pretrain_decoder(make_training(), **PHANTOMS)
    [record] = caplog.records
    assert record.getMessage().startswith("train_frozen on phantoms: 4 phantoms, 1 epochs, loss ")
