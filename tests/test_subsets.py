"""Trainings on some of the images: which ones, and with how many steps."""

import itertools
from collections import Counter
from pathlib import Path

import pytest
import torch

from lesionseg.config import load_config, override, read_yaml
from lesionseg.data.dataset import draw_subset, load_split
from lesionseg.errors import ConfigError
from lesionseg.files import sha256
from lesionseg.results.layout import RUNS, Results
from lesionseg.results.training import TrainingRecord
from lesionseg.training import run as training_run
from lesionseg.training import setup
from lesionseg.training.setup import Inputs
from tests.test_folds import PARAMS, make_split, project  # noqa: F401  (a fixture)

pytestmark = pytest.mark.usefixtures("one_thread")
PROCESSED = Path("data/processed")


def config_of(**values):
    settings = {f"train.{name}": value for name, value in values.items()}
    settings |= {"preprocess.image_size": 64, "train.device": "cpu"}
    Path("params.yaml").write_text(override(read_yaml(PARAMS), settings))
    return load_config(Path("params.yaml"))


def learnt_from(*, num_images, seed=0, run="train_frozen"):
    config = config_of(num_images=num_images, seed=seed)
    return setup.make_training(config, run, seed=seed, inputs=Inputs()).train.ids


def test_a_subset_has_that_many_images_of_the_split_in_the_order_of_their_ids():
    train = make_split("train", range(50))
    for num_images in (1, 7, 50):
        ids = draw_subset(train, num_images=num_images, seed=3).ids
        assert len(set(ids)) == num_images
        assert list(ids) == sorted(ids)
        assert set(ids) <= set(train.ids)


def test_with_one_seed_fewer_images_are_among_more():
    train = make_split("train", range(50))
    for seed in range(5):
        drawn = [set(draw_subset(train, num_images=n, seed=seed).ids) for n in (3, 6, 12, 50)]
        assert all(few < more for few, more in itertools.pairwise(drawn))


def test_over_the_seeds_every_image_is_drawn_about_as_often():
    train = make_split("train", range(20))
    counts = Counter(
        one for seed in range(400) for one in draw_subset(train, num_images=5, seed=seed).ids
    )
    # Expected 100 times, with a standard deviation of 9.
    assert len(counts) == 20
    assert 60 < min(counts.values()) <= max(counts.values()) < 140


@pytest.mark.usefixtures("project")
def test_both_models_learn_from_the_same_images_and_another_seed_from_others():
    frozen, finetuned = (learnt_from(num_images=5, run=name) for name in RUNS)
    assert frozen == finetuned
    assert len(frozen) == 5
    assert learnt_from(num_images=5, seed=1) != frozen


@pytest.mark.usefixtures("project")
def test_the_validation_split_stays_as_it_is():
    config = config_of(num_images=5)
    _, val = setup.choose_images(config, PROCESSED, seed=0)
    assert val.ids == load_split(PROCESSED, "val").ids


@pytest.mark.usefixtures("project")
def test_more_images_than_there_are_is_refused_in_one_line():
    with pytest.raises(ConfigError) as caught:
        learnt_from(num_images=13)
    assert str(caught.value) == (
        "params.yaml: train: num_images is 13, and the training split has 12 images. "
        "Write at most 12, or 0 for all"
    )


def steps_of(training):
    """Per epoch the rows of each batch, the learning rate of each step and the images' size."""
    seen = []

    def step(batch, _generator, *, image_size):
        seen.append((batch.tolist(), training.optimizer.param_groups[0]["lr"], image_size))
        return torch.tensor(0.5)

    training.step = step
    training._validate = lambda: {
        f"val_{name}": 0.5
        for name in ("loss", "jaccard", "dice", "accuracy", "sensitivity", "specificity")
    }
    losses = [epoch.train_loss for epoch in training]
    assert losses == pytest.approx([0.5] * training.recipe.train.epochs)
    return seen


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("run", RUNS)
def test_any_number_of_images_has_the_steps_rates_and_sizes_of_the_whole_split(run):
    schedules = []
    for num_images in (0, 1, 5, 12):
        config = config_of(num_images=num_images, epochs=2, batch_size=5)
        seen = steps_of(setup.make_training(config, run, seed=0, inputs=Inputs()))
        schedules.append([(len(rows), lr, size) for rows, lr, size in seen])
    assert len(schedules[0]) == 2 * 3
    assert all(schedule == schedules[0] for schedule in schedules)


@pytest.mark.usefixtures("project")
def test_an_epoch_shows_few_images_several_times_each_pass_in_another_order():
    config = config_of(num_images=5, epochs=2, batch_size=5)
    seen = steps_of(setup.make_training(config, "train_frozen", seed=0, inputs=Inputs()))
    rows = [row for batch, _, _ in seen for row in batch]
    passes = [rows[:5], rows[5:10], rows[12:17], rows[17:22]]  # 12 images in each epoch
    assert all(sorted(one) == list(range(5)) for one in passes)
    assert len(set(map(tuple, passes))) == 4


@pytest.fixture
def trained(project, monkeypatch):  # noqa: F811
    """Trains model 1 for one epoch with some parameters; what it leaves."""
    monkeypatch.setattr(training_run, "project_root", lambda: project)
    monkeypatch.setattr(training_run, "stage_code", lambda _run: [])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project / 'mlflow.db'}")

    def train(name, **values):
        config = config_of(epochs=1, batch_size=4, **values)
        results = Results(project / name)
        training_run.train_model(config, "train_frozen", results=results, inputs=Inputs())
        return results.training("train_frozen")

    return train


def test_all_images_by_number_are_all_images_and_fewer_are_another_training(trained):
    every, by_number, few = (trained(f"r{n}", num_images=n) for n in (0, 12, 5))
    assert sha256(every.model) == sha256(by_number.model) != sha256(few.model)
    records = [TrainingRecord.read(one, run="train_frozen") for one in (every, by_number, few)]
    assert [one.num_images for one in records] == [12, 12, 5]
    assert [one.params["train.num_images"] for one in records] == [0, 12, 5]
    assert len({one.training_key for one in records}) == 3
    assert records[2].images_per_second == pytest.approx(12 / records[2].seconds)
