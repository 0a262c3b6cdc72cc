"""Image and mask files as arrays."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from lesionseg.data.images import read_image, read_mask, resize_image, resize_mask
from lesionseg.errors import DataError

GREY = np.linspace(0, 255, 48 * 64).reshape(48, 64).astype(np.uint8)
COLOURS = np.stack([GREY, GREY[::-1], np.full_like(GREY, 90)], axis=-1)


def smooth_image(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(0).uniform(size=(height, width, 3))
    smooth = ndimage.gaussian_filter(noise, (12, 12, 0))
    return ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def test_an_rgb_png_comes_back_as_it_was_saved(tmp_path):
    image = read_image(save(tmp_path / "a.png", COLOURS))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, COLOURS)


def test_a_jpeg_at_reduced_scale_resizes_to_nearly_the_same_pixels(tmp_path):
    path = save(tmp_path / "a.jpg", smooth_image(800, 1200), quality=95)
    reduced = read_image(path, at_least=64)
    assert reduced.shape == (200, 300, 3)
    difference = resize_image(reduced, size=64).astype(int) - resize_image(
        read_image(path), size=64
    )
    assert abs(difference).max() <= 4
    assert abs(difference).mean() < 0.5


@pytest.mark.parametrize("at_least", [64, 100, 128, 399, 400, 1000])
def test_reduced_scale_keeps_twice_what_is_asked_for_where_the_file_has_it(tmp_path, at_least):
    path = save(tmp_path / "a.jpg", smooth_image(800, 1200))
    height, width, _ = read_image(path, at_least=at_least).shape
    assert min(height, width) >= min(2 * at_least, 800)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("at_least", [None, 8])
def test_exif_orientation_is_applied(tmp_path, name, at_least):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter to the left: the viewer turns it right
    left_dark = np.zeros((64, 128, 3), np.uint8)
    left_dark[:, 64:] = 255
    image = read_image(save(tmp_path / name, left_dark, exif=exif), at_least=at_least)
    height, width, _ = image.shape
    assert height == 2 * width
    assert image[: height // 4].max() < 10
    assert image[-height // 4 :].min() > 245


def test_exif_orientation_is_applied_to_masks(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = (COLOURS[..., 0] > 128).astype(np.uint8)
    mask = read_mask(save(tmp_path / "m.png", stored * 255, exif=exif))
    np.testing.assert_array_equal(mask, np.rot90(stored, -1))


def test_a_cmyk_jpeg_keeps_its_colours(tmp_path):
    Image.new("RGB", (32, 32), (200, 60, 30)).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    image = read_image(tmp_path / "a.jpg", at_least=8)
    assert abs(image.astype(int) - (200, 60, 30)).max() <= 3


def test_a_grey_image_has_three_equal_channels(tmp_path):
    image = read_image(save(tmp_path / "a.png", GREY))
    np.testing.assert_array_equal(image, np.stack([GREY] * 3, axis=-1))


def test_16_bit_grey_levels_are_scaled_and_not_clipped(tmp_path):
    levels = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    image = read_image(save(tmp_path / "a.png", levels))
    assert abs(image[..., 0] - levels / 257).max() <= 1
    assert image.max() == 255


def test_a_palette_is_looked_up(tmp_path):
    Image.new("RGB", (8, 8), (200, 60, 30)).quantize(4).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == (200, 60, 30)).all()


def test_transparent_pixels_are_white_whatever_colour_hides_below(tmp_path):
    pixels = np.dstack([COLOURS, np.full_like(GREY, 255)])
    pixels[:10, :, 3] = 0
    image = read_image(save(tmp_path / "a.png", pixels))
    assert (image[:10] == 255).all()
    np.testing.assert_array_equal(image[10:], COLOURS[10:])


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_a_truncated_file_is_named_in_one_line_with_the_next_step(tmp_path, name, read, share):
    path = save(tmp_path / name, smooth_image(64, 64))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError) as error:
        read(path)
    message = str(error.value)
    assert message.count(str(path)) == 1
    assert "dvc repro -f download" in message
    assert "\n" not in message


def test_a_missing_file_is_named_with_the_next_step(tmp_path):
    with pytest.raises(DataError, match=r"absent\.png.*file not found.*dvc repro -f download"):
        read_image(tmp_path / "absent.png")


def test_a_text_file_is_no_image(tmp_path):
    (tmp_path / "a.jpg").write_text("<html>404</html>")
    with pytest.raises(DataError, match="unknown or damaged format"):
        read_image(tmp_path / "a.jpg")


def test_foreground_is_above_128(tmp_path):
    levels = np.array([[0, 1, 127, 128, 129, 255]], np.uint8)
    mask = read_mask(save(tmp_path / "m.png", levels))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, [[0, 0, 0, 0, 1, 1]])


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "I;16"])
def test_a_mask_is_the_same_in_every_mode_that_holds_black_and_white(tmp_path, mode):
    stored = GREY > 100
    if mode == "I;16":
        picture = Image.fromarray(stored.astype(np.uint16) * 65535)
    else:
        picture = Image.fromarray(stored.astype(np.uint8) * 255).convert(mode)
    picture.save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), stored)


def test_a_mask_stored_as_0_and_1_is_refused(tmp_path):
    path = save(tmp_path / "m.png", (GREY > 100).astype(np.uint8))
    with pytest.raises(DataError, match=r"m\.png: a mask must be 0 .* and 255 .* above 1\."):
        read_mask(path)


def test_an_empty_mask_is_a_mask(tmp_path):
    assert not read_mask(save(tmp_path / "m.png", np.zeros_like(GREY))).any()


@pytest.mark.parametrize("shape", [(20, 30), (64, 64), (301, 517)])
def test_resized_masks_are_exactly_0_and_1(shape):
    mask = (np.random.default_rng(1).uniform(size=shape) < 0.5).astype(np.uint8)
    resized = resize_mask(mask, size=64)
    assert resized.shape == (64, 64)
    assert resized.dtype == np.uint8
    assert set(np.unique(resized)) == {0, 1}


def test_a_mask_of_the_right_size_is_left_as_it_is():
    mask = (np.random.default_rng(1).uniform(size=(64, 64)) < 0.5).astype(np.uint8)
    np.testing.assert_array_equal(resize_mask(mask, size=64), mask)


def test_resizing_keeps_a_masks_share_of_the_image():
    y, x = np.mgrid[:1000, :1500]
    mask = (np.hypot((y - 480) / 300, (x - 700) / 400) < 1).astype(np.uint8)
    assert resize_mask(mask, size=128).mean() == pytest.approx(mask.mean(), rel=0.01)


def test_resizing_averages_out_what_is_finer_than_a_new_pixel():
    image = (np.indices((512, 512)).sum(axis=0) % 2 * 255).astype(np.uint8)
    resized = resize_image(np.stack([image] * 3, axis=-1), size=64)
    assert resized.shape == (64, 64, 3)
    assert abs(resized.astype(int) - 128).max() <= 1


def test_image_and_mask_are_resized_onto_the_same_place():
    mask = np.zeros((331, 577), np.uint8)
    mask[100:200, 50:300] = 1
    image = np.stack([mask * np.uint8(255)] * 3, axis=-1)
    resized = resize_image(image, size=64)[..., 0]
    clear = abs(resized.astype(int) - 127) > 2  # else 8-bit rounding may tip the balance
    np.testing.assert_array_equal(
        resize_mask(mask, size=64)[clear], (resized > 127).astype(np.uint8)[clear]
    )
