"""Images that two splits share."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from lesionseg.data import leaks
from lesionseg.data.leaks import Fingerprints, Leak, thumbnails


def blobs(num: int) -> np.ndarray:
    """Unrelated smooth images, (num, 64, 64, 3) uint8."""
    coarse = np.random.default_rng(0).integers(40, 220, (num, 5, 5, 3), np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(c).resize((64, 64), Image.Resampling.BICUBIC)) for c in coarse]
    )


def as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    stream = BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def fingerprints(split: str, images: np.ndarray, **options: list[str]) -> Fingerprints:
    names = [f"{split}{i}" for i in range(len(images))]
    found = {"ids": names, "sha256": [f"hash of {name}" for name in names], **options}
    found = {"archive_ids": found["ids"], **found}
    members = list(range(len(images)))
    return Fingerprints(split=split, thumbnails=thumbnails(images), members=members, **found)


def find_duplicates(*splits: Fingerprints, distance: float) -> list[Leak]:
    return leaks.find_duplicates(*splits, near_duplicate_distance=distance)


def test_thumbnails_are_the_mean_colours_of_16_by_16_cells():
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 32, 3), np.uint8)
    found = thumbnails(images)
    assert found.shape == (3, 16 * 16 * 3)
    assert found.dtype == np.float32
    cell = images[1, 4 * 5 : 4 * 6, 2 * 7 : 2 * 8]
    np.testing.assert_allclose(found.reshape(3, 16, 16, 3)[1, 5, 7], cell.mean(axis=(0, 1)))


def test_distance_is_the_mean_absolute_difference_in_grey_levels():
    image = np.full((1, 32, 32, 3), 100, np.uint8)
    brighter = image + np.array([3, 6, 0], np.uint8)
    (leak,) = find_duplicates(
        fingerprints("train", image), fingerprints("test", brighter), distance=3.01
    )
    assert leak.distance == pytest.approx(3)


@pytest.mark.parametrize(("distance", "num"), [(2.99, 0), (3.0, 0), (3.01, 1)])
def test_near_means_strictly_below_the_given_distance(distance, num):
    image = np.full((1, 32, 32, 3), 100, np.uint8)
    first, second = fingerprints("train", image), fingerprints("test", image + np.uint8(3))
    assert len(find_duplicates(first, second, distance=distance)) == num


def test_a_jpeg_saved_again_is_found_and_unrelated_images_are_not():
    images = blobs(40)
    train, test = images[:20], images[20:].copy()
    test[7] = as_jpeg(train[3], quality=50)
    (leak,) = find_duplicates(
        fingerprints("train", train), fingerprints("test", test), distance=2.5
    )
    assert (leak.id, leak.split, leak.other_id, leak.other_split) == (
        "train3",
        "train",
        "test7",
        "test",
    )
    assert leak.kind == "near"
    assert leak.action == "dropped from train"


def test_each_kind_is_found_alone():
    images = blobs(6)
    test = np.concatenate([images[3:5], images[2:3]])
    found = find_duplicates(
        fingerprints("train", images[:3], ids=["a", "b", "c"], sha256=["1", "2", "3"]),
        fingerprints("test", test, ids=["a", "y", "z"], sha256=["7", "2", "9"]),
        distance=1.0,
    )
    assert [(leak.id, leak.other_id, leak.kind) for leak in found] == [
        ("a", "a", "id"),
        ("b", "y", "sha256"),
        ("c", "z", "near"),
    ]


def test_an_id_that_is_not_unique_says_nothing():
    images, names = blobs(5), {"ids": ["a", "b", "c"], "archive_ids": ["", "", ""]}
    found = find_duplicates(
        fingerprints("train", images[:3], **names, sha256=["1", "2", "3"]),
        fingerprints("test", images[2:], **names, sha256=["7", "2", "9"]),
        distance=1.0,
    )
    assert [(leak.id, leak.other_id, leak.kind) for leak in found] == [
        ("b", "b", "sha256"),
        ("c", "a", "near"),
    ]


def test_a_pair_is_reported_once_however_many_kinds_hold():
    images = blobs(1)
    same = {"ids": ["a"], "sha256": ["1"]}
    (leak,) = find_duplicates(
        fingerprints("train", images, **same),
        fingerprints("test", images, **same),
        distance=1.0,
    )
    assert (leak.kind, leak.distance) == ("id", 0)


def test_distance_0_finds_ids_and_files_only():
    images = blobs(2)
    found = find_duplicates(
        fingerprints("train", images, sha256=["1", "2"]),
        fingerprints("test", images, sha256=["8", "2"]),
        distance=0,
    )
    assert [leak.kind for leak in found] == ["sha256"]


def test_an_image_with_several_copies_is_reported_with_each():
    image = blobs(1)
    found = find_duplicates(
        fingerprints("train", image),
        fingerprints("test", np.repeat(image, 3, axis=0)),
        distance=1.0,
    )
    assert [leak.other_id for leak in found] == ["test0", "test1", "test2"]


def test_comparing_in_chunks_finds_the_same(monkeypatch):
    images = blobs(30)
    splits = fingerprints("train", images), fingerprints("test", images[::-1])
    whole = find_duplicates(*splits, distance=20.0)
    monkeypatch.setattr(leaks, "CHUNK", 7)
    assert find_duplicates(*splits, distance=20.0) == whole
    assert len(whole) >= 30


def test_an_empty_split_shares_nothing():
    some, none = fingerprints("train", blobs(2)), fingerprints("test", blobs(2)[:0])
    assert find_duplicates(some, none, distance=255) == []
    assert find_duplicates(none, some, distance=255) == []
