"""The functions of segment.html, each beside what `lesionseg predict` does it with."""

import base64
import csv
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from lesionseg.data.images import resize_image
from lesionseg.export.page import SCRIPTS, _as_global, read_asset
from lesionseg.inference.contours import to_geojson
from lesionseg.inference.outputs import summarise
from lesionseg.inference.prediction import resize_probabilities
from lesionseg.inference.sources import SUMMARY_COLUMNS
from lesionseg.outlines import find_regions

TOOLS = """
const fromBase64 = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const toBase64 = (bytes) => {
  let text = "";
  for (const byte of new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength)) {
    text += String.fromCharCode(byte);
  }
  return btoa(text);
};
const rowsOf = (rgba, width) => (numbers) => {
  const rows = new Uint8ClampedArray(4 * width * numbers.length);
  numbers.forEach((number, index) => {
    rows.set(rgba.subarray(4 * width * number, 4 * width * (number + 1)), 4 * width * index);
  });
  return rows;
};
"""


@pytest.fixture(scope="module")
def blank(browser):
    """An empty page that has all functions but those of the page itself."""
    page = browser.new_page()
    for name in SCRIPTS[: SCRIPTS.index("network.js")]:
        page.add_script_tag(content=read_asset(name))
    page.add_script_tag(content=TOOLS)
    return page


def encode(array):
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def decode(text, dtype, shape):
    return np.frombuffer(base64.b64decode(text), dtype).reshape(shape)


def draw_noise(height, width, *, seed=0):
    """Pixels (H, W, 3) uint8 with all levels, some next to each other, some far apart."""
    generator = np.random.default_rng(seed)
    noise = generator.integers(0, 256, (height, width, 3))
    wave = 127 + 128 * np.sin(np.arange(width) / 5)[:, None]
    return np.where(generator.random((height, width, 1)) < 0.5, noise, wave).astype(np.uint8)


def shrink(blank, pixels, *, size, factor=1, left=False, top=False):
    height, width = pixels.shape[:2]
    rgba = np.dstack([pixels, np.full((height, width), 255, np.uint8)])
    result = blank.evaluate(
        """([text, height, width, size, factor, left, top]) => toBase64(shrink(
            rowsOf(fromBase64(text), width), {height, width, size, factor, cut: {left, top}}))""",
        [encode(rgba), height, width, size, factor, left, top],
    )
    return decode(result, np.uint8, (size, size, 3))


@pytest.mark.parametrize(
    "size",
    [
        (96, 96),
        (96, 40),
        (37, 53),
        (200, 96),
        (96, 200),
        (301, 455),
        (1000, 97),
        (300, 190),
        (2, 3),
        (1, 1),
    ],
    ids=str,
)
def test_an_image_is_resized_as_by_pillow(blank, size):
    pixels = draw_noise(*size)
    expected = resize_image(pixels, size=96)
    assert np.array_equal(shrink(blank, pixels, size=96), expected)


def average_blocks(pixels, factor, *, left, top):
    """Means of blocks; the first or last ones may be cut off, and repeat their edge."""
    height, width = pixels.shape[:2]
    missing = [-height % factor, -width % factor]
    before = [missing[0] * top, missing[1] * left]
    after = [m - b for m, b in zip(missing, before, strict=True)]
    padding = [*zip(before, after, strict=True), (0, 0)]
    padded = np.pad(pixels.astype(int), padding, mode="edge")
    blocks = padded.reshape(len(padded) // factor, factor, -1, factor, 3).sum(axis=(1, 3))
    return ((blocks + factor**2 // 2) // factor**2).astype(np.uint8)


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize(("left", "top"), [(False, False), (True, False), (False, True)])
def test_blocks_of_a_large_jpeg_are_averaged_before(blank, factor, left, top):
    pixels = draw_noise(501, 407)
    means = average_blocks(pixels, factor, left=left, top=top)
    expected = resize_image(means, size=32)
    assert np.array_equal(
        shrink(blank, pixels, size=32, factor=factor, left=left, top=top), expected
    )


def test_it_is_decoded_at_the_scale_that_pillow_chooses(blank):
    for height, width in [
        (255, 900),
        (256, 256),
        (511, 512),
        (512, 512),
        (1023, 4000),
        (3000, 4000),
    ]:
        stream = io.BytesIO()
        Image.new("L", (width, height)).save(stream, "JPEG")
        with Image.open(stream) as image:
            image.draft(None, (256, 256))
            expected = round(width / image.width)
        assert blank.evaluate(f"draftFactor({width}, {height}, 128)") == expected


def test_a_photograph_is_processed_in_strips_that_do_not_show(blank):
    pixels = draw_noise(1200, 1100)  # more than a strip holds
    assert np.array_equal(shrink(blank, pixels, size=32), resize_image(pixels, size=32))


def draw_probabilities(size, *, seed=0):
    """A smooth map (S, S) float32 in [0, 1] with some regions above one half."""
    coarse = np.random.default_rng(seed).random((5, 5), dtype=np.float32)
    return np.clip(resize_probabilities(coarse, (size, size)), 0, 1)


def make_mask(blank, probability, *, size, threshold):
    found = blank.evaluate(
        """([text, size, height, width, threshold]) => {
          const probabilities = new Float32Array(fromBase64(text).buffer);
          const {mask, ...rest} = makeMask(probabilities, {size, height, width, threshold});
          return {mask: toBase64(mask), ...rest};
        }""",
        [encode(probability), len(probability), *size, threshold],
    )
    return decode(found["mask"], np.uint8, size), found["area"], found["meanProbability"]


@pytest.mark.parametrize("size", [(48, 48), (31, 200), (500, 333), (20, 7)], ids=str)
@pytest.mark.parametrize("threshold", [0.5, 0.37])
def test_a_mask_is_interpolated_as_by_torch(blank, size, threshold):
    probability = draw_probabilities(48)
    mask, area, mean = make_mask(blank, probability, size=size, threshold=threshold)
    own_size = resize_probabilities(probability, size)
    clear = np.abs(own_size - threshold) > 1e-6  # of rounding
    assert np.array_equal(mask[clear], (own_size > threshold)[clear])
    assert clear.mean() > 0.99
    assert area == mask.sum() > 0
    assert mean == pytest.approx(own_size[mask == 1].mean(dtype=np.float64), abs=1e-6)


def test_a_mask_without_a_lesion_has_no_probability(blank):
    mask, area, mean = make_mask(blank, np.zeros((8, 8), np.float32), size=(9, 9), threshold=0.5)
    assert (mask.sum(), area, mean) == (0, 0, None)


def masks():
    """Noise has all ways in which pixels touch; then holes in holes, all, none, one pixel."""
    generator = np.random.default_rng(0)
    yield from (generator.random((23, 31)) < share for share in (0.2, 0.5, 0.7, 0.95))
    rings = np.zeros((30, 40), bool)
    for margin in range(0, 12, 2):
        rings[margin : 30 - margin, margin : 40 - margin] = margin % 4 == 0
    yield rings
    yield np.ones((5, 4), bool)
    yield np.zeros((5, 4), bool)
    single = np.zeros((5, 4), bool)
    single[4, 3] = True
    yield single


def turned(ring):
    """A closed ring that begins with its least corner."""
    corners = ring[:-1]
    start = corners.index(min(corners))
    return [*corners[start:], *corners[:start], corners[start]]


def normal(geojson):
    """Features without the freedom that GeoJSON leaves: where a ring begins, the order of holes."""
    features = []
    for feature in json.loads(geojson)["features"]:
        outline, *holes = map(turned, feature["geometry"]["coordinates"])
        features.append([outline, sorted(holes), feature["properties"] | {"region": 0}])
    return sorted(features, key=str)


@pytest.mark.parametrize("mask", list(masks()), ids=lambda mask: f"{mask.shape} {mask.mean():.2f}")
def test_outlines_are_those_of_predict(blank, mask):
    height, width = mask.shape
    ours = to_geojson(find_regions(mask), name="é.jpg", size=mask.shape)
    theirs, path = blank.evaluate(
        """([text, height, width]) => {
          const regions = findRegions(fromBase64(text), {height, width});
          return [toGeojson(regions, {file: "é.jpg", height, width}), toPath(regions)];
        }""",
        [encode(mask.astype(np.uint8)), height, width],
    )
    assert normal(theirs) == normal(ours)
    features = json.loads(theirs)["features"]
    areas = [feature["properties"]["area"] for feature in features]
    assert areas == sorted(areas, reverse=True)
    assert [f["properties"]["region"] for f in features] == list(range(1, len(areas) + 1))
    assert path.count("Z") == sum(len(f["geometry"]["coordinates"]) for f in features)


@pytest.mark.parametrize("mask", list(masks()), ids=lambda mask: f"{mask.shape} {mask.mean():.2f}")
def test_a_mask_is_a_png_of_grey_levels(blank, mask):
    height, width = mask.shape
    content = blank.evaluate(
        """async ([text, height, width]) =>
          toBase64(await toPng(fromBase64(text), {height, width}))""",
        [encode(mask.astype(np.uint8)), height, width],
    )
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        image.verify()
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        assert np.array_equal(np.asarray(image), mask * 255)


def test_the_table_is_that_of_predict(blank):
    generator = np.random.default_rng(0)
    names, expected, rows = ['a "b", c.jpg', "é.png", "none.jpg", "full.jpg"], [], []
    probabilities = [generator.random((9, 14), np.float32) for _ in names[:2]]
    probabilities += [np.zeros((9, 14), np.float32), np.ones((9, 14), np.float32)]
    for name, probability in zip(names, probabilities, strict=True):
        mask = probability > 0.8
        mask[:, [0, -1]] = False  # touches the border above and below
        row = summarise(mask, probability, name=name)
        expected.append(row)
        rows.append([encode(mask.astype(np.uint8)), name, float(row.mean_probability or 0)])
    text = blank.evaluate(
        """(rows) => toCsv(rows.map(([text, file, mean]) => {
          const mask = fromBase64(text);
          const size = {height: 9, width: 14};
          const regions = findRegions(mask, size);
          const area = mask.reduce((sum, value) => sum + value, 0);
          return summarise(mask, {file, ...size, area, meanProbability: area ? mean : null,
            numRegions: regions.length});
        }))""",
        rows,
    )
    table = list(csv.DictReader(io.StringIO(text, newline="")))
    assert list(table[0]) == list(SUMMARY_COLUMNS)
    for row, ours in zip(table, expected, strict=True):
        for column in SUMMARY_COLUMNS:
            value = getattr(ours, column)
            kind = float if isinstance(value, float) else str
            assert kind(row[column]) == ("" if value is None else kind(value)), column
    assert {row.touches_border for row in expected} == {True, False}


def test_the_files_are_a_sound_archive(blank):
    content = blank.evaluate(
        """() => toBase64(toZip({"é.txt": new TextEncoder().encode("grün"), "b.bin":
          new Uint8Array(70000).fill(7), "empty": new Uint8Array()}))"""
    )
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(content))) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["é.txt", "b.bin", "empty"]
        assert archive.read("é.txt").decode() == "grün"
        assert archive.read("b.bin") == b"\7" * 70000


def test_no_two_images_get_one_name(blank):
    names = blank.evaluate(
        """() => {
          const taken = new Set();
          for (const file of ["a.jpg", "a.png", "a.jpg", ".jpg", "b", "c.d.jpg"]) {
            taken.add(outputName(file, taken));
          }
          return [...taken];
        }"""
    )
    assert names == ["a", "a_2", "a_3", "image", "b", "c.d"]


def write_jpeg(*, orientation, byteorder=b"II*\0"):
    """A JPEG with an EXIF block of either byte order, behind a comment."""
    exif = Image.Exif()
    exif.endian = "<" if byteorder[:1] == b"I" else ">"
    exif[0x010F] = "maker"
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "JPEG", exif=exif, comment="c" * 300)
    return stream.getvalue()


def orientation_of(blank, content):
    return blank.evaluate(
        "(text) => orientationOf(fromBase64(text))", encode(np.frombuffer(content, np.uint8))
    )


@pytest.mark.parametrize("byteorder", [b"II*\0", b"MM\0*"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_photograph_is_found(blank, orientation, byteorder):
    content = write_jpeg(orientation=orientation, byteorder=byteorder)
    assert byteorder in content
    assert orientation_of(blank, content) == orientation


def test_a_damaged_or_missing_orientation_is_none(blank):
    whole = write_jpeg(orientation=6)
    for content in (
        whole[:50],
        whole[: whole.index(b"MM") + 12 if b"MM" in whole else 60],
        b"\xff\xd8",
    ):
        assert orientation_of(blank, content) == 1
    assert orientation_of(blank, write_jpeg(orientation=99)) == 1
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "JPEG")
    assert orientation_of(blank, stream.getvalue()) == 1


def test_the_runtime_is_a_script_that_knows_no_file_and_no_module():
    module = "var a=1,b=import.meta.url;export{a as Tensor,b as env};\n//# sourceMappingURL=x.map\n"
    script = _as_global(module)
    assert script == 'var a=1,b="page:///";globalThis.ort={Tensor:a,env:b};'
