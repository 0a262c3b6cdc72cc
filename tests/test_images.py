"""Image and mask files as arrays."""

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from scipy import ndimage

from lesionseg.data.images import read_image, read_image_and_size, resize_image, resize_mask
from lesionseg.data.masks import read_mask, understand_mask
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
    assert "dvc repro -sf download && dvc repro" in message
    assert "\n" not in message


def test_a_missing_file_is_named_with_the_next_step(tmp_path):
    with pytest.raises(
        DataError, match=r"absent\.png.*file not found.*dvc repro -sf download && dvc repro"
    ):
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


# Levels of more than 8 bits


@pytest.mark.parametrize(
    ("levels", "white"),
    [
        (np.linspace(0, 1, 48 * 64, dtype=np.float32), 1),
        (np.linspace(0, 200, 48 * 64, dtype=np.float32), 255),
        (np.arange(48 * 64, dtype=np.int32) % 256, 255),
        (np.linspace(0, 4095, 48 * 64).astype(np.uint16), 4095),
        (np.linspace(0, 1000, 48 * 64).astype(np.uint16), 1023),
        (np.linspace(0, 16000, 48 * 64).astype(np.uint16), 16383),
        (np.linspace(0, 65535, 48 * 64).astype(np.uint16), 65535),
    ],
)
@pytest.mark.parametrize("ending", ["tif", "png"])
def test_levels_of_a_narrow_range_are_scaled_to_it(tmp_path, levels, white, ending):
    levels = levels.reshape(48, 64)
    if ending == "png" and levels.dtype != np.uint16:
        pytest.skip("PNG holds neither fractions nor 32 bits")
    image = read_image(save(tmp_path / f"a.{ending}", levels))
    assert abs(image[..., 0] - levels * (255 / white)).max() <= 1
    assert image.max() > 190


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_tiff_of_deep_colours_keeps_them(tmp_path, dtype):
    top = 4095 if dtype == np.uint16 else 1
    colours = (COLOURS / 255 * top).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", colours, photometric="rgb")
    assert abs(read_image(tmp_path / "a.tif").astype(int) - COLOURS).max() <= 1


def test_a_narrow_range_is_noted_once_for_its_kind(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("lesionseg.data.levels._noted", set())
    for name in ("a", "b"):
        read_image(save(tmp_path / f"{name}.png", GREY.astype(np.uint16) * 16))
    (message,) = caplog.messages
    assert str(tmp_path / "a.png") in message
    assert "white is taken to be 4095" in message


def test_all_of_16_bits_need_no_note(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("lesionseg.data.levels._noted", set())
    read_image(save(tmp_path / "a.png", GREY.astype(np.uint16) * 257))
    tifffile.imwrite(tmp_path / "a.tif", COLOURS.astype(np.uint16) * 257, photometric="rgb")
    read_image(tmp_path / "a.tif")
    assert caplog.messages == []


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64])
def test_a_grey_tiff_that_pillow_does_not_know_is_read(tmp_path, dtype):
    levels = GREY.astype(dtype) if dtype == np.int64 else (GREY / 255).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", levels)
    assert abs(read_image(tmp_path / "a.tif")[..., 0].astype(int) - GREY).max() <= 1


@pytest.mark.parametrize("narrow", [False, True])
def test_a_deep_tiff_is_read_from_a_stream_too(narrow):
    levels = COLOURS.astype(np.uint16) * 16 if narrow else COLOURS / 255
    stream = io.BytesIO()
    tifffile.imwrite(stream, levels, photometric="rgb")
    assert abs(read_image(stream).astype(int) - COLOURS).max() <= 1


def test_16_bits_with_a_sign_end_at_32767(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", (GREY / 255 * 32767).astype(np.int16))
    assert abs(read_image(tmp_path / "a.tif")[..., 0].astype(int) - GREY).max() <= 1


def test_deep_colours_in_planes_are_read(tmp_path):
    planes = np.moveaxis(COLOURS, -1, 0).astype(np.uint16) * 257
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_image(path), COLOURS)


def test_the_alpha_of_deep_colours_has_a_range_of_its_own(tmp_path):
    layers = np.dstack([COLOURS.astype(np.uint16) * 16, np.full_like(GREY, 65535, np.uint16)])
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, layers, photometric="rgb", extrasamples=["unassalpha"])
    assert abs(read_image(path).astype(int) - COLOURS).max() <= 1


@pytest.mark.parametrize("top", [65535, 4095, 1.0])
def test_a_turned_tiff_of_deep_colours_is_turned_once(tmp_path, top):
    colours = (COLOURS / 255 * top).astype(np.float32 if top == 1 else np.uint16)
    path, tag = tmp_path / "a.tif", (274, "H", 1, 6, True)
    tifffile.imwrite(path, colours, photometric="rgb", extratags=[tag])
    image, size = read_image_and_size(path)
    assert size == image.shape[:2]
    assert abs(image.astype(int) - np.rot90(COLOURS, -1)).max() <= 1


def test_a_deep_tiff_with_0_as_white_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY.astype(np.uint16) * 257, photometric="miniswhite")
    with pytest.raises(DataError, match=r"a\.tif has deep levels with 0 as white\. Save it again"):
        read_image(tmp_path / "a.tif")


def test_the_size_of_a_deep_tiff_is_limited_too(tmp_path, monkeypatch):
    monkeypatch.setattr("lesionseg.data.levels.MAX_PIXELS", 1000)
    tifffile.imwrite(tmp_path / "a.tif", COLOURS / 255, photometric="rgb")
    with pytest.raises(DataError, match="too large"):
        read_image(tmp_path / "a.tif")


def test_a_level_that_stands_for_transparent_is_white_at_16_bits_too(tmp_path):
    path = save(tmp_path / "a.png", GREY.astype(np.uint16) * 257, transparency=0)
    image = read_image(path)[..., 0]
    assert (image[GREY == 0] == 255).all()
    np.testing.assert_array_equal(image[GREY > 0], GREY[GREY > 0])


@pytest.mark.parametrize("wrong", [-0.5, np.nan, np.inf, 70000, 1.02])
def test_values_of_no_usual_range_are_refused(tmp_path, wrong):
    levels = np.full((8, 8), 0.5, np.float32)
    levels[0, 0] = wrong
    with pytest.raises(DataError, match=r"a\.tif holds values from .* Save it again with 8 bits"):
        read_image(save(tmp_path / "a.tif", levels))


def test_16_bit_colours_that_pillow_would_turn_black_are_refused(tmp_path):
    path = write_deep_png(tmp_path / "b.png", COLOURS.astype(int) * 257)
    np.testing.assert_array_equal(read_image(path), COLOURS)
    narrow = COLOURS.astype(int) * 16  # 12 bits in 16
    clear = np.where(GREY > 90, 65535, 0)  # shown on white, which is bright
    for pixels in (narrow, np.dstack([narrow, clear]), np.dstack([narrow[..., 0], 0 * clear + 1])):
        path = write_deep_png(tmp_path / "a.png", pixels)
        with pytest.raises(DataError, match="16 bits for each colour and uses only the lower"):
            read_image(path)


@pytest.mark.parametrize("top", [1, 255])
def test_16_bit_colours_that_pillow_would_turn_black_are_no_mask(tmp_path, top):
    lesion = LESION.astype(int)
    layers = np.dstack([0 * lesion + 65535, lesion * top])  # drawn in the alpha channel
    for pixels in (np.dstack([lesion * top] * 3), layers):
        path = write_deep_png(tmp_path / "a.png", pixels)
        with pytest.raises(DataError, match="16 bits for each colour and uses only the lower"):
            read_mask(path)


def write_deep_png(path, pixels):
    """A PNG of 16-bit grey with alpha, RGB or RGBA, which Pillow does not write."""
    height, width, num_channels = pixels.shape
    rows = pixels.astype(">u2").tobytes()

    def chunk(kind, content):
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    step = 2 * num_channels * width
    lines = b"".join(b"\0" + rows[start : start + step] for start in range(0, len(rows), step))
    kind = {2: 4, 3: 2, 4: 6}[num_channels]
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


# Orientation


def exif_block(*entries):
    """An EXIF block of (tag, type, number, value); a value is four bytes, or an offset to more."""
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + b"\0\0\0\0"


def save_with_exif(path, array, block):
    """A JPEG with an EXIF block as it is, which Pillow need not be able to write."""
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "JPEG", quality=95)
    content = stream.getvalue()
    app1 = b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block
    path.write_bytes(content[:2] + app1 + content[2:])
    return path


def test_a_photograph_is_turned_though_its_exif_cannot_be_written_again(tmp_path):
    turned = (0x112, 3, 1, struct.pack("<HH", 6, 0))
    odd = (0x11A, 10, 1, struct.pack("<I", 8 + 2 + 24 + 4))  # XResolution: a signed fraction
    block = exif_block(turned, odd) + struct.pack("<ii", -1, 1)
    image, size = read_image_and_size(save_with_exif(tmp_path / "a.jpg", COLOURS, block))
    assert size == image.shape[:2] == COLOURS.shape[1::-1]
    assert abs(image.astype(int) - np.rot90(COLOURS, -1)).mean() < 8


@pytest.mark.parametrize(
    "block",
    [
        exif_block((0x112, 3, 1, struct.pack("<HH", 0, 0))),
        exif_block((0x112, 3, 1, struct.pack("<HH", 9, 0))),
        exif_block((0x112, 3, 1, struct.pack("<HH", 6, 0)))[:20],
        exif_block((0x112, 2, 999, struct.pack("<I", 9999))),
        b"Exif\0\0garbage",
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_damaged_orientation_is_none(tmp_path, block):
    image, size = read_image_and_size(save_with_exif(tmp_path / "a.jpg", COLOURS, block))
    assert size == image.shape[:2] == COLOURS.shape[:2]


@pytest.mark.parametrize("value", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(tmp_path, value):
    exif = Image.Exif()
    exif[0x0112] = value
    path = save(tmp_path / "a.png", COLOURS, exif=exif)
    with Image.open(path) as picture:
        expected = np.array(ImageOps.exif_transpose(picture))
    image, size = read_image_and_size(path)
    np.testing.assert_array_equal(image, expected)
    assert size == expected.shape[:2]


def test_the_size_is_the_file_s_own_at_reduced_scale(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.jpg", smooth_image(401, 400), exif=exif)
    image, size = read_image_and_size(path, at_least=32)
    assert size == (400, 401)
    assert image.shape[0] < 200


# HEIC


def test_a_heic_photograph_is_read(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra `heic` is not installed")
    Image.new("RGB", (64, 48), (200, 60, 30))
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 60, 30))).save(tmp_path / "a.heic")
    image = read_image(tmp_path / "a.heic")
    assert image.shape == (48, 64, 3)
    assert abs(image.astype(int) - (200, 60, 30)).max() <= 6


def test_without_the_plugin_a_heic_photograph_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    with pytest.raises(DataError, match=r"a\.heic is a HEIC .*Run: pip install pillow-heif"):
        read_image(path)


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_an_image_that_is_too_large_says_so(tmp_path, monkeypatch, read):
    path = save(tmp_path / "a.png", GREY)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"too large: 0\.0 megapixels, more than the .* can be"):
        read(path)


# Masks

LESION = (np.hypot(*(np.indices((48, 64)) - 24)) < 12).astype(np.uint8)
PLAIN = LESION * np.uint8(255)


def with_alpha(grey, alpha):
    return np.stack(np.broadcast_arrays(grey, grey, grey, alpha), axis=-1).astype(np.uint8)


@pytest.mark.parametrize(
    ("stored", "meaning"),
    [
        (PLAIN, ""),
        (LESION, "0 is skin and 1 is lesion"),
        (LESION * np.uint8(2), "0 is skin and the one other level is lesion"),
        (LESION * np.uint8(200), "0 is skin and the one other level is lesion"),
        (LESION.astype(np.uint16), "0 is skin and 1 is lesion"),
        (LESION.astype(np.uint16) * 255, ""),
        (LESION.astype(np.uint16) * 65535, ""),
        (LESION.astype(np.uint16) * 4095, "0 is skin and 4095 is lesion"),
        (LESION.astype(np.int32), "0 is skin and 1 is lesion"),
        (LESION.astype(np.int64), "0 is skin and 1 is lesion"),
        (LESION.astype(np.int32) * 100_000, "0 is skin and the one other level is lesion"),
        (LESION.astype(np.float32), ""),
        (LESION.astype(np.float64), ""),
        (np.full_like(PLAIN, 1), "1, everywhere, is lesion"),
        (np.full_like(PLAIN, 255), ""),
        (np.zeros_like(PLAIN), ""),
        (with_alpha(255, PLAIN), "what is not transparent is lesion"),
        (with_alpha(0, PLAIN), "what is not transparent is lesion"),
        (with_alpha(255 - PLAIN, PLAIN), "what is not transparent is lesion"),
        (with_alpha(PLAIN, np.where(np.arange(64) < 60, 255, 0)), "what is bright and not transp"),
        (with_alpha(PLAIN, np.full_like(PLAIN, 255)), ""),
        (with_alpha(255, LESION * np.uint8(100)), "what is not transparent is lesion"),
        (np.dstack([PLAIN, 0 * PLAIN, 0 * PLAIN]), "what is not black is lesion"),
        (np.dstack([0 * PLAIN, 0 * PLAIN, LESION]), "what is not black is lesion"),
    ],
)
def test_a_mask_is_taken_as_it_is_meant(tmp_path, stored, meaning):
    stored = np.broadcast_to(stored, np.broadcast_shapes(stored.shape, (48, 64, *stored.shape[2:])))
    path = tmp_path / "m.png"
    if stored.dtype in (np.uint8, np.uint16):
        save(path, stored)
    else:
        path = path.with_suffix(".tif")
        tifffile.imwrite(path, stored)
    read = understand_mask(path)
    constant = stored.ndim == 2 and len(np.unique(stored)) == 1
    expected = (stored > 0).astype(np.uint8) if constant else LESION
    assert read.mask.dtype == np.uint8
    np.testing.assert_array_equal(read.mask, expected)
    assert read.meaning.startswith(meaning)
    assert bool(read.meaning) == bool(meaning)


def test_only_an_upright_8_bit_png_of_0_and_255_is_plain(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    assert understand_mask(save(tmp_path / "m.png", PLAIN)).is_plain
    smooth = ndimage.gaussian_filter(PLAIN, 1.0)
    for number, path in enumerate(
        (
            save(tmp_path / "turned.png", PLAIN, exif=exif),
            save(tmp_path / "smooth.png", smooth),
            save(tmp_path / "deep.png", PLAIN.astype(np.uint16)),
            save(tmp_path / "layers.png", with_alpha(PLAIN, 255)),
            save(tmp_path / "compressed.jpg", PLAIN),
            save(tmp_path / "small.png", PLAIN > 0),
        )
    ):
        assert not understand_mask(path).is_plain, number


@pytest.mark.parametrize("quality", [40, 75, 95])
def test_a_jpeg_mask_keeps_its_outline_but_for_its_edge(tmp_path, quality):
    mask = read_mask(save(tmp_path / "m.jpg", PLAIN, quality=quality))
    assert (mask != LESION).mean() < 0.02


def test_smooth_edges_are_cut_in_the_middle(tmp_path):
    smooth = ndimage.gaussian_filter(PLAIN.astype(float), 1.5)
    for levels in (smooth.astype(np.uint8), (smooth * 257).astype(np.uint16)):
        mask = read_mask(save(tmp_path / "m.png", levels))
        np.testing.assert_array_equal(mask, smooth.astype(np.uint8) > 128)


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (LESION + np.roll(LESION, 5), r"levels from 0 to 2\. Save it again"),
        (PLAIN // 2 + np.roll(PLAIN, 9) // 2, "areas of level 127 as well"),
        (np.where(LESION, 90, 40), "levels from 40 to 90"),
        (np.where(LESION, 200, 100), "areas of level 100 as well"),
        (np.where(LESION, 1, 255 * np.eye(48, 64)), "areas of level 1 as well"),
        (smooth_image(48, 64)[..., 0] // 2 + 64, "neither, so that it looks like a photograph"),
        (smooth_image(48, 64) // 8, "many colours, so that it looks like a photograph"),
        (np.dstack([PLAIN, PLAIN, PLAIN | np.roll(PLAIN, 20)]), "several colours"),
        (with_alpha(PLAIN, 0), "colours that are all transparent"),
    ],
)
def test_a_mask_that_can_mean_two_things_is_refused_in_one_line(tmp_path, stored, reason):
    path = save(tmp_path / "m.png", stored.astype(np.uint8))
    with pytest.raises(DataError, match=reason) as caught:
        read_mask(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_dark_jpeg_is_no_mask_of_0_and_1(tmp_path):
    with pytest.raises(DataError, match="Save it again"):
        read_mask(save(tmp_path / "m.jpg", LESION, quality=100))
