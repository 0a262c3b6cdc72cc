"""Phantoms: reproducible, exactly outlined, and laid out like the real data."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.measure import label

from lesionseg.data.phantom import draw_phantom, write_phantoms

NUM_SCENES = 200


@pytest.fixture(scope="module")
def scenes():
    """Images, (200, 64, 64, 3) uint8, and masks, (200, 64, 64) bool."""
    images, masks = zip(*(draw_phantom(size=64, seed=i) for i in range(NUM_SCENES)), strict=True)
    return np.stack(images), np.stack(masks) == 255


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes():
    first, second = draw_phantom(size=96, seed=7), draw_phantom(size=96, seed=7)
    assert first[0].tobytes() == second[0].tobytes()
    assert first[1].tobytes() == second[1].tobytes()


def test_different_seeds_give_different_images_and_masks(scenes):
    for pixels in scenes:
        assert len({one.tobytes() for one in pixels}) == NUM_SCENES


@pytest.mark.parametrize("size", [32, 65, 128])
def test_image_and_mask_have_the_promised_shape_and_type(size):
    image, mask = draw_phantom(size=size, seed=3)
    assert (image.shape, image.dtype) == ((size, size, 3), np.uint8)
    assert (mask.shape, mask.dtype) == ((size, size), np.uint8)


def test_masks_hold_exactly_0_and_255():
    for seed in range(30):
        assert np.unique(draw_phantom(size=48, seed=seed)[1]).tolist() == [0, 255]


def test_lesions_cover_2_to_60_percent_and_both_small_and_large_occur(scenes):
    areas = scenes[1].mean((1, 2))
    assert areas.min() >= 0.02
    assert areas.max() <= 0.60
    assert (areas < 0.06).any()
    assert (areas > 0.40).any()


def test_a_lesion_is_one_region_without_holes(scenes):
    for mask in scenes[1]:
        assert label(mask, connectivity=1).max() == 1
        assert label(~np.pad(mask, 1), connectivity=1).max() == 1


def test_some_lesions_touch_the_border_and_most_do_not(scenes):
    edges = np.concatenate([scenes[1][:, [0, -1]], scenes[1][:, :, [0, -1]].swapaxes(1, 2)], 1)
    touching = edges.any((1, 2)).mean()
    assert 0.02 < touching < 0.5


def test_lesions_are_darker_than_the_skin_around_them_on_average(scenes):
    images, masks = scenes
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    in_view = np.hypot(y, x) < 0.85  # leaves the dark corners out
    grey = images.mean(-1)
    differences = [
        grey[i][in_view & ~masks[i]].mean() - grey[i][in_view & masks[i]].mean()
        for i in range(NUM_SCENES)
        if (in_view & masks[i]).any() and (in_view & ~masks[i]).any()
    ]
    assert np.mean(differences) > 30
    assert np.mean(np.array(differences) > 0) > 0.9


def test_one_grey_level_does_not_separate_the_lesions(scenes):
    grey, masks = scenes[0].mean(-1), scenes[1]
    scores = []
    for level in range(40, 220, 10):
        predictions = grey < level
        scores.append(
            ((predictions & masks).sum((1, 2)) / (predictions | masks).sum((1, 2))).mean()
        )
    assert max(scores) < 0.6


def test_a_seed_shows_the_same_lesion_at_any_size():
    for seed in range(10):
        small = draw_phantom(size=64, seed=seed)[1] == 255
        large = draw_phantom(size=192, seed=seed)[1].reshape(64, 3, 64, 3).mean((1, 3)) > 127
        assert (small & large).sum() / (small | large).sum() > 0.8


def test_every_image_has_its_mask_in_the_promised_layout(tmp_path):
    write_phantoms(tmp_path, num_train=3, num_test=2, size=32, seed=0)
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    splits = {"train": [0, 1, 2], "test": [3, 4]}
    expected = [
        f"{split}/{kind}"
        for split, numbers in splits.items()
        for i in numbers
        for kind in (f"images/PHANTOM_{i:07d}.jpg", f"masks/PHANTOM_{i:07d}.png")
    ]
    assert found == sorted(expected)


def test_files_decode_to_colour_images_and_exact_grey_masks(tmp_path):
    write_phantoms(tmp_path, num_train=1, num_test=1, size=48, seed=0)
    for split, name in (("train", "PHANTOM_0000000"), ("test", "PHANTOM_0000001")):
        with Image.open(tmp_path / split / "images" / f"{name}.jpg") as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (48, 48))
        with Image.open(tmp_path / split / "masks" / f"{name}.png") as mask:
            assert (mask.format, mask.mode, mask.size) == ("PNG", "L", (48, 48))
            assert np.unique(np.asarray(mask)).tolist() == [0, 255]


def test_writing_twice_gives_the_same_files(tmp_path):
    for name in ("a", "b"):
        write_phantoms(tmp_path / name, num_train=6, num_test=3, size=32, seed=5)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_an_image_depends_on_its_number_and_not_on_how_many_there_are(tmp_path):
    write_phantoms(tmp_path / "few", num_train=2, num_test=2, size=32, seed=5)
    write_phantoms(tmp_path / "many", num_train=7, num_test=3, size=32, seed=5)
    few, many = contents(tmp_path / "few"), contents(tmp_path / "many")
    assert few.items() <= many.items()


def test_another_seed_gives_other_files(tmp_path):
    for seed in (0, 1):
        write_phantoms(tmp_path / str(seed), num_train=2, num_test=2, size=32, seed=seed)
    first, second = contents(tmp_path / "0"), contents(tmp_path / "1")
    assert not set(first.values()) & set(second.values())
