"""Raw files to packed arrays, and those arrays read back."""

import csv
import dataclasses
import errno
import hashlib
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lesionseg.data.dataset import SPLITS, load_split
from lesionseg.data.external_sets import write_sets
from lesionseg.data.images import read_image, resize_image, resize_mask
from lesionseg.data.manifest import read_manifest, write_manifest
from lesionseg.data.masks import read_mask
from lesionseg.data.preprocessing import preprocess
from lesionseg.errors import DataError, DiskSpaceError, MissingFileError
from lesionseg.evaluation import evaluate
from lesionseg.files import write_csv
from stages import preprocess as stage

OPTIONS = {
    "source": "folder",
    "image_size": 32,
    "val_fraction": 0.25,
    "seed": 0,
    "near_duplicate_distance": 2.5,
}
NUM_TRAIN, NUM_TEST = 20, 6


@pytest.fixture(scope="module")
def pristine_dir(tmp_path_factory) -> Path:
    """Unrelated images and masks in the layout of data/raw."""
    raw_dir = tmp_path_factory.mktemp("pristine")
    rng = np.random.default_rng(0)
    for number in range(NUM_TRAIN + NUM_TEST):
        split = "train" if number < NUM_TRAIN else "test"
        coarse = Image.fromarray(rng.integers(40, 220, (5, 5, 3), np.uint8))
        picture = coarse.resize((120, 90), Image.Resampling.BICUBIC)
        mask = Image.fromarray((rng.uniform(size=(4, 4)) < 0.5).astype(np.uint8) * 255)
        save(picture, raw_dir / split / "images" / f"IMG_{number:03d}.jpg", quality=95)
        save(mask.resize((120, 90)), raw_dir / split / "masks" / f"IMG_{number:03d}.png")
    write_manifest(raw_dir)
    return raw_dir


@pytest.fixture
def raw_dir(pristine_dir, tmp_path) -> Path:
    return shutil.copytree(pristine_dir, tmp_path / "raw")


@pytest.fixture
def out_dir(tmp_path) -> Path:
    return tmp_path / "processed"


def save(picture: Image.Image, path: Path, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)


def copy_into(raw_dir: Path, source: str, target: str, *, quality: int | None = None) -> None:
    """Plant `source`, such as "test/IMG_020", as `target`: the file itself, or saved again."""
    split, name = source.split("/")
    new_split, new_name = target.split("/")
    image_path = raw_dir / split / "images" / f"{name}.jpg"
    new_path = raw_dir / new_split / "images" / f"{new_name}.jpg"
    if quality is None:
        shutil.copy(image_path, new_path)
    else:
        Image.open(image_path).save(new_path, quality=quality)
    mask_path = raw_dir / split / "masks" / f"{name}.png"
    shutil.copy(mask_path, raw_dir / new_split / "masks" / f"{new_name}.png")
    write_manifest(raw_dir)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def all_ids(folder: Path) -> dict[str, tuple[str, ...]]:
    return {name: load_split(folder, name).ids for name in SPLITS}


def test_the_files_are_those_of_the_design_and_no_others(raw_dir, out_dir):
    preprocess(raw_dir, out_dir, **OPTIONS)
    arrays = [
        f"{name}/{file}" for name in SPLITS for file in ("images.npy", "index.csv", "masks.npy")
    ]
    assert list(digests(out_dir)) == sorted(["leaks.csv", *arrays])
    assert sorted(path.name for path in out_dir.parent.iterdir()) == ["processed", "raw"]


def test_every_row_is_its_own_file_decoded_and_resized(raw_dir, out_dir):
    preprocess(raw_dir, out_dir, **OPTIONS)
    rows = {row.id: row for row in read_manifest(raw_dir)}
    for name in SPLITS:
        split = load_split(out_dir, name)
        for id_, image, mask in zip(split.ids, split.images, split.masks, strict=True):
            source = read_image(raw_dir / rows[id_].image_path, at_least=32)
            np.testing.assert_array_equal(image, resize_image(source, size=32))
            outline = read_mask(raw_dir / rows[id_].mask_path)
            np.testing.assert_array_equal(mask, resize_mask(outline, size=32))


def test_masks_are_exactly_0_and_1(raw_dir, out_dir):
    preprocess(raw_dir, out_dir, **OPTIONS)
    for name in SPLITS:
        masks = load_split(out_dir, name).masks
        assert masks.dtype == np.uint8
        assert set(np.unique(masks)) == {0, 1}


def test_the_index_repeats_the_manifest_in_the_order_of_ids(raw_dir, out_dir):
    preprocess(raw_dir, out_dir, **OPTIONS)
    rows = {row.id: row for row in read_manifest(raw_dir)}
    for name in SPLITS:
        index = read_table(out_dir / name / "index.csv")
        assert [entry["id"] for entry in index] == sorted(entry["id"] for entry in index)
        for entry in index:
            row = dataclasses.asdict(rows[entry["id"]])
            assert entry == {key: str(row[key]) for key in entry}


def test_the_splits_are_disjoint_and_complete(raw_dir, out_dir):
    summary = preprocess(raw_dir, out_dir, **OPTIONS)
    ids = all_ids(out_dir)
    train = {row.id for row in read_manifest(raw_dir) if row.split == "train"}
    test = {row.id for row in read_manifest(raw_dir) if row.split == "test"}
    assert not set(ids["train"]) & set(ids["val"])
    assert set(ids["train"]) | set(ids["val"]) == train
    assert set(ids["test"]) == test
    assert [(split.name, split.num_images) for split in summary.splits] == [
        ("train", 15),
        ("val", 5),
        ("test", 6),
    ]


def test_the_validation_split_depends_on_the_seed_alone(raw_dir, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        preprocess(raw_dir, tmp_path / name, **{**OPTIONS, "seed": seed})
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert all_ids(tmp_path / "a")["val"] != all_ids(tmp_path / "c")["val"]


def test_one_more_test_image_leaves_the_other_splits_as_they_were(raw_dir, tmp_path):
    preprocess(raw_dir, tmp_path / "a", **OPTIONS)
    copy_into(raw_dir, "test/IMG_020", "test/A_NEW_ONE")
    preprocess(raw_dir, tmp_path / "b", **OPTIONS)
    before, after = all_ids(tmp_path / "a"), all_ids(tmp_path / "b")
    assert (before["train"], before["val"]) == (after["train"], after["val"])
    assert len(after["test"]) == NUM_TEST + 1


def test_the_order_of_the_manifest_changes_nothing(raw_dir, tmp_path):
    preprocess(raw_dir, tmp_path / "a", **OPTIONS)
    rows = [dataclasses.asdict(row) for row in read_manifest(raw_dir)]
    write_csv(raw_dir / "manifest.csv", np.random.default_rng(3).permutation(rows).tolist())
    preprocess(raw_dir, tmp_path / "b", **OPTIONS)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_one_thread_and_many_write_the_same_bytes(raw_dir, tmp_path):
    preprocess(raw_dir, tmp_path / "a", **OPTIONS, num_threads=1)
    preprocess(raw_dir, tmp_path / "b", **OPTIONS, num_threads=8)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_unrelated_images_are_kept_and_leaks_csv_has_only_its_header(raw_dir, out_dir, caplog):
    summary = preprocess(raw_dir, out_dir, **OPTIONS)
    assert summary.leaks == ()
    header = "id,split,other_id,other_split,kind,distance,action\n"
    assert (out_dir / "leaks.csv").read_text() == header
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(("quality", "kind"), [(None, "sha256"), (40, "near")])
def test_a_training_copy_of_a_test_image_is_dropped(raw_dir, out_dir, quality, kind):
    copy_into(raw_dir, "test/IMG_022", "train/COPY", quality=quality)
    (leak,) = preprocess(raw_dir, out_dir, **OPTIONS).leaks
    assert (leak.id, leak.other_id, leak.other_split, leak.kind) == (
        "COPY",
        "IMG_022",
        "test",
        kind,
    )
    ids = all_ids(out_dir)
    assert sum(map(len, ids.values())) == NUM_TRAIN + NUM_TEST
    assert "COPY" not in ids["train"] + ids["val"]


def test_a_validation_copy_of_a_test_image_is_dropped_from_validation(raw_dir, tmp_path):
    preprocess(raw_dir, tmp_path / "a", **OPTIONS)
    victim = all_ids(tmp_path / "a")["val"][0]
    copy_into(raw_dir, "test/IMG_022", f"train/{victim}")
    (leak,) = preprocess(raw_dir, tmp_path / "b", **OPTIONS).leaks
    assert (leak.id, leak.split, leak.action) == (victim, "val", "dropped from val")
    assert victim not in all_ids(tmp_path / "b")["val"]


def test_a_training_copy_of_a_validation_image_is_dropped_from_training(raw_dir, tmp_path):
    preprocess(raw_dir, tmp_path / "a", **OPTIONS)
    ids = all_ids(tmp_path / "a")
    victim, original = ids["train"][0], ids["val"][0]
    copy_into(raw_dir, f"train/{original}", f"train/{victim}", quality=60)
    (leak,) = preprocess(raw_dir, tmp_path / "b", **OPTIONS).leaks
    assert (leak.id, leak.split, leak.other_id, leak.other_split) == (
        victim,
        "train",
        original,
        "val",
    )
    assert all_ids(tmp_path / "b")["train"] == ids["train"][1:]
    assert all_ids(tmp_path / "b")["val"] == ids["val"]


def test_all_three_kinds_are_listed_and_summed_up_in_one_warning(raw_dir, out_dir, caplog):
    preprocess(raw_dir, out_dir, **OPTIONS)
    first, second, third = all_ids(out_dir)["train"][:3]
    copy_into(raw_dir, "test/IMG_021", f"train/{first}")
    copy_into(raw_dir, "test/IMG_022", f"train/{second}", quality=40)
    copy_into(raw_dir, "test/IMG_023", f"train/{third}", quality=40)
    copy_into(raw_dir, "test/IMG_024", f"test/{third}")
    preprocess(raw_dir, out_dir, **OPTIONS | {"source": "isic2016"})
    table = read_table(out_dir / "leaks.csv")
    assert {(row["id"], row["other_id"], row["kind"]) for row in table} == {
        (first, "IMG_021", "sha256"),
        (second, "IMG_022", "near"),
        (third, "IMG_023", "near"),
        (third, third, "id"),
    }
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.getMessage().startswith("Dropped 3 from train:")
    assert "\n" not in warning.getMessage()


@pytest.fixture
def renamed_dir(raw_dir) -> Path:
    """Raw data whose test images have the names of the first training images."""
    for kind, suffix in (("images", "jpg"), ("masks", "png")):
        folder = raw_dir / "test" / kind
        for number in range(NUM_TEST):
            old = folder / f"IMG_{NUM_TRAIN + number:03d}.{suffix}"
            old.rename(folder / f"IMG_{number:03d}.{suffix}")
    write_manifest(raw_dir)
    return raw_dir


def test_different_images_of_one_name_are_all_used_and_noted_in_a_line(
    renamed_dir, out_dir, caplog
):
    with caplog.at_level(logging.INFO):
        summary = preprocess(renamed_dir, out_dir, **OPTIONS)
    assert summary.leaks == ()
    assert [split.num_images for split in summary.splits] == [15, 5, 6]
    (note,) = [record for record in caplog.records if "same name" in record.getMessage()]
    assert note.levelno == logging.INFO
    assert note.getMessage() == (
        "6 images of train and val have the same name as one of test, such as IMG_000. They are "
        "different pictures: all are used"
    )


def test_images_of_one_name_keep_their_own_pixels(renamed_dir, out_dir):
    preprocess(renamed_dir, out_dir, **OPTIONS)
    rows = {(row.split, row.id): row for row in read_manifest(renamed_dir)}
    for name in SPLITS:
        split = load_split(out_dir, name)
        for id_, image, mask in zip(split.ids, split.images, split.masks, strict=True):
            row = rows["test" if name == "test" else "train", id_]
            source = read_image(renamed_dir / row.image_path, at_least=32)
            np.testing.assert_array_equal(image, resize_image(source, size=32))
            outline = read_mask(renamed_dir / row.mask_path)
            np.testing.assert_array_equal(mask, resize_mask(outline, size=32))


def test_one_name_is_one_image_where_an_archive_gave_it(renamed_dir, out_dir, caplog):
    summary = preprocess(renamed_dir, out_dir, **OPTIONS | {"source": "isic2016"})
    assert {(leak.id, leak.other_split, leak.kind) for leak in summary.leaks} == {
        (f"IMG_{number:03d}", "test", "id") for number in range(NUM_TEST)
    }
    assert sum(split.num_images for split in summary.splits) == NUM_TRAIN
    assert not [text for text in caplog.messages if "same name" in text]


def test_a_copy_under_the_same_name_is_dropped_for_its_bytes(raw_dir, out_dir):
    copy_into(raw_dir, "train/IMG_003", "test/IMG_003")
    (leak,) = preprocess(raw_dir, out_dir, **OPTIONS).leaks
    assert (leak.id, leak.other_id, leak.kind) == ("IMG_003", "IMG_003", "sha256")
    ids = all_ids(out_dir)
    assert "IMG_003" not in ids["train"] + ids["val"]
    assert "IMG_003" in ids["test"]


def test_the_summary_counts_the_masks_as_the_network_sees_them(raw_dir, out_dir):
    for number, levels in ((20, 0), (21, 255), (22, 255)):
        Image.new("L", (120, 90), levels).save(raw_dir / f"test/masks/IMG_{number:03d}.png")
    speck = Image.new("L", (120, 90))
    speck.putpixel((60, 45), 255)
    speck.save(raw_dir / "test/masks/IMG_023.png")
    split = preprocess(raw_dir, out_dir, **OPTIONS).splits[2]
    assert (split.name, split.heights, split.widths) == ("test", (32, 32), (32, 32))
    assert (split.num_empty, split.num_full) == (2, 2)
    assert split.lesion_fraction == pytest.approx(load_split(out_dir, "test").masks.mean())


def test_an_earlier_result_is_replaced_as_a_whole(raw_dir, out_dir):
    preprocess(raw_dir, out_dir, **OPTIONS)
    expected = digests(out_dir)
    (out_dir / "stale.txt").write_text("from another time")
    preprocess(raw_dir, out_dir, **OPTIONS)
    assert digests(out_dir) == expected


@pytest.mark.parametrize("val_fraction", [0.001, 0.999])
def test_a_split_without_images_is_refused(raw_dir, out_dir, val_fraction):
    with pytest.raises(DataError, match=r"Change val_fraction in params\.yaml"):
        preprocess(raw_dir, out_dir, **{**OPTIONS, "val_fraction": val_fraction})


def test_training_images_that_are_all_copies_are_refused(raw_dir, out_dir):
    with pytest.raises(DataError, match=r"no train image is left: .*near_duplicate_distance"):
        preprocess(raw_dir, out_dir, **{**OPTIONS, "near_duplicate_distance": 255})


def test_a_mask_of_another_size_than_its_image_is_named_with_both_sizes(raw_dir, out_dir):
    path = raw_dir / "train" / "masks" / "IMG_004.png"
    Image.open(path).resize((90, 120)).save(path)
    with pytest.raises(DataError, match=r"IMG_004\.png must be 90 x 120 .* got 120 x 90\. Run:"):
        preprocess(raw_dir, out_dir, **OPTIONS)


def test_a_damaged_image_leaves_nothing_half_written(raw_dir, out_dir):
    path = raw_dir / "train" / "images" / "IMG_004.jpg"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"IMG_004\.jpg cannot be read"):
        preprocess(raw_dir, out_dir, **OPTIONS)
    assert [entry.name for entry in out_dir.parent.iterdir()] == ["raw"]


def test_an_error_leaves_an_earlier_result_as_it_was(raw_dir, out_dir):
    preprocess(raw_dir, out_dir, **OPTIONS)
    expected = digests(out_dir)
    (raw_dir / "train" / "images" / "IMG_004.jpg").write_bytes(b"")
    with pytest.raises(DataError):
        preprocess(raw_dir, out_dir, **OPTIONS)
    assert digests(out_dir) == expected


def test_of_several_damaged_images_the_first_is_named_however_many_threads(raw_dir, out_dir):
    for number in (2, 9, 15):
        (raw_dir / "train" / "images" / f"IMG_{number:03d}.jpg").write_bytes(b"")
    for num_threads in (1, 8):
        with pytest.raises(DataError, match=r"IMG_002\.jpg"):
            preprocess(raw_dir, out_dir, **OPTIONS, num_threads=num_threads)


def test_a_disk_without_room_is_refused_before_decoding(raw_dir, out_dir, monkeypatch):
    usage = shutil.disk_usage(raw_dir)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DiskSpaceError):
        preprocess(raw_dir, out_dir, **OPTIONS)
    assert [entry.name for entry in out_dir.parent.iterdir()] == ["raw"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_runs_full_meanwhile_is_an_error_before_a_memory_map_is_written_to(
    raw_dir, out_dir, monkeypatch, number
):
    def allocate(descriptor: int, start: int, size: int) -> None:
        if size > 32 * 32 * 26:  # the masks have been given their room
            raise OSError(number, "no room")

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    monkeypatch.setattr("lesionseg.data.preprocessing.read_image", None)
    with pytest.raises(DiskSpaceError) as caught:
        preprocess(raw_dir, out_dir, **OPTIONS)
    assert str(caught.value).startswith(f"the disk of {out_dir} has run full. Make room")
    assert [entry.name for entry in out_dir.parent.iterdir()] == ["raw"]


def test_a_disk_that_cannot_give_room_in_advance_is_written_to_all_the_same(
    raw_dir, tmp_path, monkeypatch
):
    def allocate(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    preprocess(raw_dir, tmp_path / "a", **OPTIONS)
    monkeypatch.setattr(os, "posix_fallocate", allocate)
    preprocess(raw_dir, tmp_path / "b", **OPTIONS)
    monkeypatch.delattr(os, "posix_fallocate")
    preprocess(raw_dir, tmp_path / "c", **OPTIONS)
    assert digests(tmp_path / "a") == digests(tmp_path / "b") == digests(tmp_path / "c")


def test_without_a_manifest_the_stage_to_run_is_named(tmp_path, out_dir):
    with pytest.raises(MissingFileError, match="Run: dvc repro download"):
        preprocess(tmp_path, out_dir, **OPTIONS)


def test_loaded_arrays_are_read_only_memory_maps(raw_dir, out_dir):
    preprocess(raw_dir, out_dir, **OPTIONS)
    split = load_split(out_dir, "train")
    for array in (split.images, split.masks):
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable


@pytest.mark.parametrize("file", ["images.npy", "masks.npy", "index.csv"])
def test_a_missing_file_of_a_split_names_the_stage_to_run(raw_dir, out_dir, file):
    preprocess(raw_dir, out_dir, **OPTIONS)
    (out_dir / "val" / file).unlink()
    with pytest.raises(MissingFileError, match=rf"{file} is missing\. Run: dvc repro preprocess"):
        load_split(out_dir, "val")


@pytest.fixture(scope="module")
def processed_dir(pristine_dir, tmp_path_factory) -> Path:
    """What the stage leaves, for tests that damage a copy of its val."""
    folder = tmp_path_factory.mktemp("whole") / "processed"
    preprocess(pristine_dir, folder, **OPTIONS)
    return folder


@pytest.fixture
def val_dir(processed_dir, tmp_path) -> Path:
    return shutil.copytree(processed_dir / "val", tmp_path / "damaged/val")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def be_text(path: Path) -> None:
    path.write_bytes(b"\x93NUMPY\x01\x00v\x00\xff(not an array" + b" " * 200)


def be_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def be_an_archive(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), a=np.zeros(3))
    path.with_suffix(".npz").replace(path)


def be_objects(path: Path) -> None:
    np.save(path, np.array([{}]), allow_pickle=True)


@pytest.mark.parametrize("damage", [cut, empty, be_text, be_a_folder, be_an_archive, be_objects])
@pytest.mark.parametrize("file", ["images.npy", "masks.npy"])
def test_a_damaged_array_is_refused_in_one_line(val_dir, file, damage):
    damage(val_dir / file)
    with pytest.raises(DataError) as caught:
        load_split(val_dir.parent, "val")
    message = str(caught.value)
    assert message.startswith(f"{val_dir / file} is no NumPy array (")
    assert message.endswith(". Run: dvc repro -sf preprocess && dvc repro")
    assert len(message.splitlines()) == 1


OTHER_ARRAYS = {
    "images.npy": (
        np.zeros((5, 32, 32), np.uint8),
        np.zeros((5, 32, 32, 3), np.float32),
        np.zeros((5, 32, 16, 3), np.uint8),
        np.zeros((5, 64, 64, 3), np.uint8),
        np.zeros((5, 32, 32, 4), np.uint8),
        np.zeros((4, 32, 32, 3), np.uint8),
        np.uint8(3),
    ),
    "masks.npy": (
        np.zeros((5, 32, 32, 1), np.uint8),
        np.zeros((5, 32, 32), np.bool_),
        np.zeros((5, 16, 32), np.uint8),
        np.zeros((5, 64, 64), np.uint8),
        np.zeros((6, 32, 32), np.uint8),
        np.full((5, 32, 32), 255, np.uint8),
        np.eye(32, dtype=np.uint8)[None].repeat(5, 0) * np.uint8(2),
    ),
}


@pytest.mark.parametrize(
    ("file", "array"), [(file, array) for file in OTHER_ARRAYS for array in OTHER_ARRAYS[file]]
)
def test_an_array_of_another_kind_is_refused_in_one_line(val_dir, file, array):
    np.save(val_dir / file, array)
    with pytest.raises(DataError) as caught:
        load_split(val_dir.parent, "val")
    message = str(caught.value)
    assert message.startswith(str(val_dir))
    assert message.endswith(". Run: dvc repro -sf preprocess && dvc repro")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "5 images, 5 masks and 0 ids"),
        ("id\na\nb\nc\nd\n", "5 images, 5 masks and 4 ids"),
        ("id\na\nb\nc\nd\ne\nf\n", "5 images, 5 masks and 6 ids"),
        ("name\na\nb\nc\nd\ne\n", "is no table of images ('id')"),
        ("height,id\n1,a\n2\n3,c\n4,d\n5,e\n", "must name each image once"),
        ("id\na\nb\nc\ne\nd\n", "must name each image once, in the order of the ids"),
        ("id\na\nb\nb\nc\nd\n", "must name each image once, in the order of the ids"),
        ('id\na\nb\nc\nd\n"e', "is no table of images"),
        ("id\na\nb\nc\nd\n\xff\n", "is no table of images"),
    ],
)
def test_a_damaged_index_is_refused_in_one_line(val_dir, content, problem):
    (val_dir / "index.csv").write_text(content, encoding="latin-1")
    with pytest.raises(DataError) as caught:
        load_split(val_dir.parent, "val")
    message = str(caught.value)
    assert message.startswith(str(val_dir))
    assert problem in message
    assert message.endswith(". Run: dvc repro -sf preprocess && dvc repro")
    assert len(message.splitlines()) == 1


def test_a_split_without_a_single_image_is_refused(val_dir):
    np.save(val_dir / "images.npy", np.zeros((0, 32, 32, 3), np.uint8))
    np.save(val_dir / "masks.npy", np.zeros((0, 32, 32), np.uint8))
    (val_dir / "index.csv").write_text("id\n")
    with pytest.raises(DataError, match="Run: dvc repro -sf preprocess && dvc repro"):
        load_split(val_dir.parent, "val")


def test_test_images_that_the_manifest_does_not_have_are_named(renamed_dir, out_dir):
    preprocess(renamed_dir, out_dir, **OPTIONS)
    external_dir = out_dir.with_name("external")
    external_dir.mkdir()
    write_sets(external_dir, [])
    test = evaluate.load_data(out_dir, renamed_dir, external_dir).test
    assert test.image_paths == [renamed_dir / f"test/images/{id_}.jpg" for id_ in test.split.ids]
    (renamed_dir / "test/images/IMG_002.jpg").unlink()
    (renamed_dir / "test/masks/IMG_002.png").unlink()
    write_manifest(renamed_dir)  # IMG_002 is in train still
    with pytest.raises(DataError, match=r"no test image IMG_002, .* Run: dvc repro preprocess"):
        evaluate.load_data(out_dir, renamed_dir, external_dir)


def test_the_stage_writes_data_processed_as_params_yaml_says(raw_dir, tmp_path, monkeypatch):
    params_path = Path(__file__).parents[1] / "params.yaml"
    shutil.copytree(raw_dir, tmp_path / "data" / "raw")
    shutil.copy(params_path, tmp_path)
    monkeypatch.chdir(tmp_path)
    stage.main([])
    assert load_split(Path("data/processed"), "test").images.shape == (NUM_TEST, 128, 128, 3)
