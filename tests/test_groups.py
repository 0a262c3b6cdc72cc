"""Images of one patient or lesion are never torn apart: not between splits, not between folds."""

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lesionseg.data.dataset import SPLITS, Fold, Split, load_split, split_fold
from lesionseg.data.folder import list_folder
from lesionseg.data.groups import draw, gather, in_order
from lesionseg.data.manifest import write_manifest
from lesionseg.data.pairs import draw_test, to_know, write_pairs
from lesionseg.data.preprocessing import preprocess
from lesionseg.errors import ConfigError, DataError

NUM_IMAGES = 30


@pytest.fixture(name="source_dir", scope="module")
def _source_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images `00.png` and their masks, to be named by a table."""
    folder = tmp_path_factory.mktemp("grouped")
    rng = np.random.default_rng(0)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 255
    for number in range(NUM_IMAGES):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(
            folder / f"{number:02}.png"
        )
        Image.fromarray(mask).save(folder / f"{number:02}_mask.png")
    return folder


def process(source_dir: Path, work_dir: Path, rows: list[str], *, seed: int = 0) -> Path:
    """`data/processed` of the images, of which a table says `split,group,fold`."""
    lines = [f"{n:02}.png,{n:02}_mask.png,{row}\n" for n, row in enumerate(rows)]
    (source_dir / "images.csv").write_text("image,mask,split,group,fold\n" + "".join(lines))
    pairs = draw_test(list_folder(source_dir), fraction=0.3, seed=seed)
    write_pairs(work_dir / "raw", pairs)
    write_manifest(work_dir / "raw", to_know(pairs))
    preprocess(
        work_dir / "raw",
        work_dir / "processed",
        source="folder",
        image_size=32,
        val_fraction=0.3,
        seed=seed,
        near_duplicate_distance=0,
    )
    return work_dir / "processed"


def all_folds(
    train: Split, val: Split, *, seed: int = 0
) -> list[tuple[Split | Fold, Split | Fold]]:
    """As many folds as there are."""
    num_folds = 1
    while True:
        try:
            split_fold(train, val, fold=0, num_folds=num_folds + 1, seed=seed)
        except ConfigError:
            break
        num_folds += 1
    return [
        split_fold(train, val, fold=fold, num_folds=num_folds, seed=seed)
        for fold in range(num_folds)
    ]


@pytest.mark.parametrize("seed", range(8))
def test_no_group_of_any_size_is_in_two_splits_or_on_both_sides_of_a_fold(
    source_dir: Path, tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, rng.integers(6, 20), NUM_IMAGES)
    groups = ["" if n == 0 else f"patient {n}" for n in numbers]
    processed_dir = process(source_dir, tmp_path, [f",{g}," for g in groups], seed=seed)
    splits = {name: load_split(processed_dir, name) for name in SPLITS}
    group_of = {f"{n:02}": group or f"{n:02}" for n, group in enumerate(groups)}
    held = {name: {group_of[id_] for id_ in split.ids} for name, split in splits.items()}
    assert all(held.values())
    for one, other in itertools.combinations(SPLITS, 2):
        assert not held[one] & held[other]
    assert sorted(itertools.chain(*(split.ids for split in splits.values()))) == sorted(group_of)
    folds = all_folds(splits["train"], splits["val"], seed=seed)
    assert len(folds) > 1
    every = sorted([*splits["train"].ids, *splits["val"].ids])
    for rest, held_out in folds:
        assert not {group_of[i] for i in rest.ids} & {group_of[i] for i in held_out.ids}
        assert sorted([*rest.ids, *held_out.ids]) == every
    validated = list(itertools.chain(*(held_out.ids for _, held_out in folds)))
    assert len(validated) == len(set(validated))


def test_a_users_own_folds_are_those_of_the_cross_validation(
    source_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folds = [("9", "10", "", "11", "9")[n % 5] for n in range(NUM_IMAGES)]
    rows = [f"{'test' if n >= 25 else 'train'},,{fold}" for n, fold in enumerate(folds)]
    with caplog.at_level(logging.INFO):
        processed_dir = process(source_dir, tmp_path, rows)
    assert "val is fold 9 of the data; preprocess.val_fraction is not used" in caplog.messages
    train, val = load_split(processed_dir, "train"), load_split(processed_dir, "val")
    found = [held_out.ids for _, held_out in all_folds(train, val)]
    expected = [
        tuple(f"{n:02}" for n in range(25) if folds[n] == name) for name in ("9", "10", "11")
    ]
    assert found == expected
    for rest, held_out in all_folds(train, val):
        assert set(rest.ids) == {f"{n:02}" for n in range(25)} - set(held_out.ids)


def test_more_seeds_than_own_folds_are_refused(source_dir: Path, tmp_path: Path) -> None:
    rows = [f",,{n % 3}" if n < 25 else "test,," for n in range(NUM_IMAGES)]
    processed_dir = process(source_dir, tmp_path, rows)
    train, val = load_split(processed_dir, "train"), load_split(processed_dir, "val")
    with pytest.raises(ConfigError) as caught:
        split_fold(train, val, fold=0, num_folds=4, seed=0)
    assert str(caught.value).endswith(
        f"the {len(train.ids)} images of train have 2 folds beside val's. Write num_seeds of at "
        "most 3"
    )


def test_a_users_own_val_is_kept(
    source_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [f"{('train', 'val', 'test')[n % 3]},," for n in range(NUM_IMAGES)]
    with caplog.at_level(logging.INFO):
        processed_dir = process(source_dir, tmp_path, rows)
    for position, name in enumerate(("train", "val", "test")):
        expected = tuple(f"{n:02}" for n in range(NUM_IMAGES) if n % 3 == position)
        assert load_split(processed_dir, name).ids == expected
    assert "val is what the data say; preprocess.val_fraction is not used" in caplog.messages


def test_a_fold_that_leaves_nothing_to_train_on_is_refused(
    source_dir: Path, tmp_path: Path
) -> None:
    rows = [",,0" if n < 20 else "test,," for n in range(NUM_IMAGES)]
    with pytest.raises(DataError, match="leave 20 images for validation and 0 for training"):
        process(source_dir, tmp_path, rows)


def test_groups_too_few_for_val_are_counted(source_dir: Path, tmp_path: Path) -> None:
    rows = [",P1," if n < 20 else "test,," for n in range(NUM_IMAGES)]
    with pytest.raises(DataError, match=r"1 training groups with .*val_fraction 0\.3 leave"):
        process(source_dir, tmp_path, rows)


def test_without_groups_a_share_of_images_is_drawn_as_it_always_was() -> None:
    groups = [""] * 40
    expected = np.random.default_rng(5).permutation(np.arange(40))[:6]
    assert draw(groups, fraction=0.15, seed=5) == sorted(expected)


def test_groups_are_gathered_in_the_order_of_their_first_images() -> None:
    assert gather(["b", "", "a", "b", ""]) == [[0, 3], [1], [2], [4]]


def test_folds_are_ordered_as_people_count() -> None:
    assert in_order(["10", "9", "", "b", "a", "9"]) == ["9", "10", "a", "b"]


def test_the_first_images_of_a_split_keep_their_groups_and_folds() -> None:
    split = Split(
        name="train",
        images=np.zeros((3, 1, 1, 3), np.uint8),
        masks=np.zeros((3, 1, 1), np.uint8),
        ids=("a", "b", "c"),
        groups=("1", "1", "2"),
        folds=("", "0", "1"),
    )
    first = split.first(2)
    assert (first.ids, first.groups, first.folds) == (("a", "b"), ("1", "1"), ("", "0"))
