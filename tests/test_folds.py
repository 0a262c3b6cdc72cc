"""Folds of a cross-validation: who validates on which images."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from lesionseg.config import load_config, override, read_yaml
from lesionseg.data.batches import load_batch
from lesionseg.data.dataset import Split, load_split, split_fold
from lesionseg.errors import ConfigError
from lesionseg.results.layout import RUNS
from lesionseg.training import setup

PARAMS = Path(__file__).parents[1] / "params.yaml"
SIZE = 64


def make_split(name: str, numbers: Sequence[int]) -> Split:
    """Images and masks that are filled with their own number."""
    column = np.array(numbers, np.uint8)[:, None, None]
    masks = np.broadcast_to(column, (len(numbers), SIZE, SIZE))
    images = np.repeat(masks[..., None], 3, axis=3)
    return Split(name=name, images=images, masks=masks, ids=tuple(f"i{n:02d}" for n in numbers))


def make_splits(num_train: int, num_val: int) -> tuple[Split, Split]:
    """Train and val; every third of the first images is one of val."""
    in_val = range(0, 3 * num_val, 3)
    in_train = [n for n in range(num_train + num_val) if n not in in_val]
    return make_split("train", in_train), make_split("val", in_val)


def make_folds(train: Split, val: Split, *, num_folds: int, seed: int = 0):
    return [
        split_fold(train, val, fold=fold, num_folds=num_folds, seed=seed)
        for fold in range(num_folds)
    ]


def test_fold_0_is_the_two_splits_themselves():
    train, val = make_splits(12, 4)
    first = make_folds(train, val, num_folds=4)[0]
    assert first[0] is train
    assert first[1] is val


def test_each_image_is_in_val_once_and_in_train_otherwise():
    train, val = make_splits(12, 4)
    folds = make_folds(train, val, num_folds=4)
    every = set(train.ids + val.ids)
    assert sorted(itertools.chain(*(held_out.ids for _, held_out in folds))) == sorted(every)
    for rest, held_out in folds:
        assert len(held_out.ids) == 4
        assert len(rest.ids) == 12
        assert set(rest.ids) == every - set(held_out.ids)
        assert (rest.name, held_out.name) == ("train", "val")


def test_further_folds_train_on_the_original_val():
    train, val = make_splits(12, 4)
    for rest, _ in make_folds(train, val, num_folds=4)[1:]:
        assert set(val.ids) < set(rest.ids)


def test_ids_stay_sorted():
    folds = make_folds(*make_splits(12, 4), num_folds=4)
    assert all(list(part.ids) == sorted(part.ids) for fold in folds for part in fold)


@pytest.mark.parametrize(
    ("num_train", "sizes"),
    [(12, [4, 4, 4]), (11, [4, 4, 3]), (10, [4, 4, 2]), (9, [4, 4]), (8, [4, 4])],
)
def test_a_last_chunk_counts_from_half_the_size_of_val(num_train, sizes):
    train, val = make_splits(num_train, 4)
    folds = make_folds(train, val, num_folds=1 + len(sizes))
    assert [len(held_out.ids) for _, held_out in folds] == [4, *sizes]
    assert all(len(rest.ids) + len(held_out.ids) == num_train + 4 for rest, held_out in folds)


def test_images_without_groups_are_cut_as_one_shuffled_row():
    train, val = make_splits(11, 4)
    shuffled = np.random.default_rng(5).permutation(11)
    for number, (_, held_out) in enumerate(make_folds(train, val, num_folds=4, seed=5)[1:]):
        rows = sorted(shuffled[4 * number : 4 * number + 4])
        assert held_out.ids == tuple(train.ids[row] for row in rows)


def test_too_many_folds_are_refused_before_the_first():
    train, val = make_splits(9, 4)
    with pytest.raises(ConfigError) as caught:
        split_fold(train, val, fold=0, num_folds=4, seed=0)
    assert str(caught.value) == (
        "params.yaml: train: num_seeds is 4, and cross_validate is true: the 9 images of train "
        "make 2 parts as large as val (4 images). Write num_seeds of at most 3, "
        "or a smaller preprocess.val_fraction"
    )


def test_the_same_seed_gives_the_same_folds_and_another_seed_others():
    train, val = make_splits(12, 4)
    first, again, other = (
        [held_out.ids for _, held_out in make_folds(train, val, num_folds=4, seed=seed)]
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_fewer_folds_are_the_first_of_more():
    train, val = make_splits(12, 4)
    few, many = ([h.ids for _, h in make_folds(train, val, num_folds=k)] for k in (3, 4))
    assert many[:3] == few


def test_a_batch_of_a_fold_holds_the_images_of_its_ids():
    for part in make_folds(*make_splits(12, 4), num_folds=4)[2]:
        rows = np.array([3, 0, 2])
        numbers = np.array([int(part.ids[row][1:]) for row in rows])
        images, masks = load_batch(part, rows, torch.device("cpu"))
        assert images.shape == (3, 3, SIZE, SIZE)
        assert masks.shape == (3, 1, SIZE, SIZE)
        np.testing.assert_allclose(images[:, 0, 0, 0] * 255, numbers, atol=1e-4)
        np.testing.assert_array_equal(masks[:, 0, 0, 0], numbers)
        assert part.image_size == SIZE


@pytest.fixture
def project(tmp_path, monkeypatch, encoder_state):
    """What the stage train reads, 12 images to train on and 4 to validate on."""
    for split in make_splits(12, 4):
        folder = tmp_path / "data/processed" / split.name
        folder.mkdir(parents=True)
        np.save(folder / "images.npy", split.images)
        np.save(folder / "masks.npy", np.minimum(split.masks, 1))
        (folder / "index.csv").write_text("\n".join(["id", *split.ids, ""]))
    encoder_path = tmp_path / "data/raw/encoder.pth"
    encoder_path.parent.mkdir()
    torch.save(encoder_state, encoder_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config_of(project: Path, **values):
    path = project / "params.yaml"
    settings = {f"train.{name}": value for name, value in values.items()}
    path.write_text(override(read_yaml(PARAMS), settings))
    return load_config(path)


def test_the_stage_gives_each_seed_its_fold_and_both_models_the_same(project):
    config = config_of(project, num_seeds=4, cross_validate=True, seed=7)
    held_out = {
        name: [
            setup.make_training(config, name, seed=seed, inputs=setup.Inputs()).val
            for seed in config.seeds()
        ]
        for name in RUNS
    }
    ids = {name: [part.ids for part in parts] for name, parts in held_out.items()}
    assert ids["train_frozen"] == ids["train_finetuned"]
    assert ids["train_frozen"][0] == load_split(Path("data/processed"), "val").ids
    assert len(set(itertools.chain(*ids["train_frozen"]))) == 16
    images, _ = held_out["train_frozen"][1].load(np.array([1, 0]))
    assert not isinstance(images, np.memmap)
    assert images[:, 0, 0, 0].tolist() == [int(n[1:]) for n in ids["train_frozen"][1][1::-1]]


def test_without_cross_validation_every_seed_has_the_splits_as_they_are(project):
    config = config_of(project, num_seeds=3)
    for seed in config.seeds():
        train, val = setup.choose_images(config, Path("data/processed"), seed=seed)
        assert isinstance(train, Split)
        assert isinstance(val, Split)
        assert (len(train.ids), len(val.ids)) == (12, 4)


def test_no_two_trainings_on_other_images_have_the_same_parameters(project):
    params = []
    for first, cross_validate in [(0, False), (0, True), (1, True)]:
        config = config_of(project, seed=first, num_seeds=2, cross_validate=cross_validate)
        params += [config.training_params("train_frozen", seed=seed) for seed in config.seeds()]
    for one, other in itertools.combinations(params, 2):
        assert one != other
    assert [one.get("fold") for one in params] == [None, None, 0, 1, 0, 1]
    assert all("train.num_seeds" not in one for one in params)
