"""Masks made from the truth, against jaccards counted by hand."""

import numpy as np
import pytest
from PIL import Image

from lesionseg.data.dataset import Split
from lesionseg.evaluation.limits import score_limits


def make_split(tmp_path, own_masks, masks):
    paths = []
    for number, mask in enumerate(own_masks):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(paths[-1])
    images = np.zeros((*masks.shape, 3), np.uint8)
    ids = tuple(map(str, range(len(masks))))
    return Split(name="test", images=images, masks=masks.astype(np.uint8), ids=ids), paths


def square(size, start, stop):
    mask = np.zeros((size, size), bool)
    mask[start:stop, start:stop] = True
    return mask


def test_a_square_a_pixel_larger_or_smaller_scores_as_counted_by_hand(tmp_path):
    split, paths = make_split(tmp_path, [square(32, 10, 20)], square(32, 10, 20)[None])
    limits = score_limits(split, mask_paths=paths)
    assert limits.perfect_own_size == 1
    assert limits.pixel_larger == pytest.approx(100 / 140)  # the corners stay
    assert limits.pixel_smaller == pytest.approx(64 / 100)


def test_a_lesion_that_leaves_the_image_is_not_shrunk_from_outside(tmp_path):
    mask = np.zeros((32, 32), bool)
    mask[:, :16] = True
    split, paths = make_split(tmp_path, [mask], mask[None])
    assert score_limits(split, mask_paths=paths).pixel_smaller == pytest.approx(15 / 16)


def test_detail_lost_at_the_networks_size_is_missed_at_own_size(tmp_path):
    stripes = square(64, 16, 48) & (np.arange(64) % 2 == 0)
    split, paths = make_split(
        tmp_path, [square(64, 16, 48), stripes], np.stack([square(32, 8, 24)] * 2)
    )
    limits = score_limits(split, mask_paths=paths)
    # Interpolation rounds the square's four corners by a pixel.
    assert limits.perfect_own_size == pytest.approx((1020 / 1024 + 510 / 1022) / 2, abs=0.003)
