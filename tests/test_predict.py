"""Predicting on files: the same as `evaluate` at any size, kind and number of images."""

import csv
import dataclasses
import inspect
import io
import itertools
import json
import os
import random
import socket
import sys

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from scipy import ndimage

from lesionseg.data.dataset import Split
from lesionseg.data.images import read_image, resize_image
from lesionseg.errors import ConfigError, DataError, LesionsegError, MissingFileError
from lesionseg.evaluation.scoring import score_split
from lesionseg.inference.contours import to_csv, to_geojson
from lesionseg.inference.decoding import decode
from lesionseg.inference.outputs import Outputs, Summary, summarise
from lesionseg.inference.overlay import LONGER_SIDE, draw_regions
from lesionseg.inference.payloads import PROBABILITY_LEVELS, mask_png
from lesionseg.inference.pipeline import Skipped, predict_files
from lesionseg.inference.prediction import predict_split, resize_probabilities
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.sources import ENDINGS, SUMMARY_COLUMNS, Source, find_images
from lesionseg.models.segmenter import load_model
from lesionseg.outlines import find_regions
from tests.trained_results import save_random_model

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 64


@pytest.fixture(scope="module")
def predictor(model_path):
    return Predictor.load(model_path, device="cpu")


@pytest.fixture(scope="module")
def threshold(predictor):
    """A probability that the random model goes above in some pixels of any image, not in others."""
    return float(np.median(predictor.predict([photograph(96, 96)])[0]))


def photograph(height, width, seed=0):
    noise = np.random.default_rng(seed).uniform(size=(height, width, 3))
    smooth = ndimage.gaussian_filter(noise, (4, 4, 0))
    return ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def save_all_kinds(folder):
    """A file of each kind that cameras and programs write; their sizes (H, W)."""
    rgb = photograph(90, 150)
    grey = rgb[..., 0]
    save(folder / "small.png", photograph(20, 30))
    save(folder / "large.jpg", photograph(700, 500))
    save(folder / "grey.png", grey)
    save(folder / "deep.png", grey.astype(np.uint16) * 257)
    save(folder / "deep.tif", grey.astype(np.uint16) * 257)
    save(folder / "turned.jpg", photograph(400, 600), exif=exif(6))
    save(folder / "turned.png", rgb, exif=exif(8))
    save(folder / "upside_down.jpg", rgb, exif=exif(3))
    save(folder / "clear.png", np.dstack([rgb, np.where(grey > 90, 255, 0).astype(np.uint8)]))
    Image.fromarray(rgb).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(rgb).quantize(16).save(folder / "palette.png")
    Image.fromarray(rgb).save(folder / "web.webp")
    return {
        **dict.fromkeys(["grey.png", "deep.png", "deep.tif", "clear.png"], (90, 150)),
        **dict.fromkeys(["upside_down.jpg", "cmyk.jpg", "palette.png", "web.webp"], (90, 150)),
        "small.png": (20, 30),
        "large.jpg": (700, 500),
        "turned.jpg": (600, 400),
        "turned.png": (150, 90),
    }


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    return folder, save_all_kinds(folder)


def sources_of(folder):
    return find_images([folder], out_dir=folder / "out").sources


def run(folder, predictor, outputs, **options):
    outputs.prepare(sources_of(folder))
    return list(predict_files(sources_of(folder), predictor, outputs, **options))


def written_in(folder):
    """The outputs of images by name, all but the summary."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "summary.csv")
    return {path.relative_to(folder).as_posix(): path for path in paths}


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


# The same numbers as `evaluate`.


def test_masks_are_those_that_evaluate_writes_byte_for_byte(
    tmp_path, kinds, model_path, predictor, threshold
):
    folder, sizes = kinds
    sources = sources_of(folder)
    # What `preprocess` and `evaluate` do.
    images = [resize_image(read_image(s.path, at_least=SIZE), size=SIZE) for s in sources]
    (tmp_path / "truth").mkdir()
    truths = [
        save(tmp_path / f"truth/{number}.png", np.zeros(sizes[s.name], np.uint8))
        for number, s in enumerate(sources)
    ]
    ids = tuple(source.id for source in sources)
    masks = np.zeros((len(ids), SIZE, SIZE), np.uint8)
    split = Split(name="test", images=np.stack(images), masks=masks, ids=ids)
    model, _ = load_model(model_path, stage="train_finetuned")
    device = torch.device("cpu")
    probabilities = predict_split(model, split, batch_size=32, device=device, label="test")
    score_split(
        list(probabilities),
        split,
        mask_paths=truths,
        threshold=threshold,
        surface_tolerance=1.0,
        out_dir=tmp_path / "evaluate",
    )
    run(folder, predictor, Outputs(out_dir=tmp_path / "predict", threshold=threshold))
    paths = written_in(tmp_path / "predict")
    written = {name: path.read_bytes() for name, path in paths.items()}
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "evaluate").iterdir()}
    assert len(written) == len(sizes)
    assert all(0 < read(path).mean() < 255 for path in paths.values())


def test_a_mask_has_the_size_at_which_a_viewer_shows_the_image(tmp_path, kinds, predictor):
    folder, sizes = kinds
    rows = run(folder, predictor, Outputs(out_dir=tmp_path))
    assert {row.file: (row.height, row.width) for row in rows} == sizes
    for source in sources_of(folder):
        assert read(tmp_path / f"{source.id}_segmentation.png").shape == sizes[source.name]


@pytest.mark.parametrize("orientation", range(1, 10))
def test_a_turned_jpeg_is_predicted_as_it_is_seen(tmp_path, predictor, orientation):
    path = save(tmp_path / "a.jpg", photograph(300, 400), exif=exif(orientation))
    decoded = decode(path, image_size=SIZE)
    assert decoded.size == read_image(path).shape[:2]
    seen = resize_image(read_image(path, at_least=SIZE), size=SIZE)
    np.testing.assert_array_equal(decoded.pixels, seen)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (300, 1), (2, 3)])
def test_the_smallest_images_have_masks(tmp_path, predictor, shape):
    save(tmp_path / "a.jpg", np.full((*shape, 3), 90, np.uint8))
    outputs = Outputs(out_dir=tmp_path / "out", overlay=True, probability=True, contours="csv")
    (row,) = run(tmp_path, predictor, outputs)
    assert (row.height, row.width) == shape
    assert read(tmp_path / "out/a_segmentation.png").shape == shape
    assert read(tmp_path / "out/a_probability.png").shape == shape
    assert read(tmp_path / "out/a_overlay.jpg").shape == (*shape, 3)


# The predictor, without files.


def test_probabilities_of_arrays_have_their_own_sizes(predictor):
    images = [photograph(50, 70), photograph(200, 30), photograph(SIZE, SIZE)]
    maps = predictor.predict(images)
    assert [p.shape for p in maps] == [(50, 70), (200, 30), (SIZE, SIZE)]
    for probability, image in zip(maps, images, strict=True):
        assert probability.dtype == np.float32
        assert 0 <= probability.min() < probability.max() <= 1
        small = predictor.forward(resize_image(image, size=SIZE)[None])[0]
        expected = resize_probabilities(small, image.shape[:2])
        np.testing.assert_allclose(probability, expected, atol=1e-5)


def test_eight_views_are_the_mean_over_the_turned_and_mirrored_images(model_path, predictor):
    pixels = photograph(SIZE, SIZE)
    maps = []
    for quarter_turns in range(4):
        turned = np.rot90(pixels, quarter_turns)
        as_it_is, mirrored = (predictor.predict([v])[0] for v in (turned, turned[:, ::-1]))
        maps += [np.rot90(p, -quarter_turns) for p in (as_it_is, mirrored[:, ::-1])]
    several = Predictor.load(model_path, device="cpu", num_views=8)
    (probability,) = several.predict([pixels])
    np.testing.assert_allclose(probability, np.mean(maps, axis=0), rtol=0, atol=1e-5)
    assert np.abs(probability - maps[0]).max() > 1e-3


def test_several_models_predict_their_mean(model_path, predictor, tmp_path, encoder_state):
    other_path = save_random_model(tmp_path / "other.pt", encoder_state, decoder="bilinear")
    images = [photograph(40, 60)]
    both = Predictor.load(model_path, other_path, device="cpu").predict(images)[0]
    one, other = predictor.predict(images)[0], Predictor.load(other_path).predict(images)[0]
    np.testing.assert_allclose(both, (one + other) / 2, rtol=0, atol=1e-6)
    assert np.abs(one - other).max() > 1e-3
    twice = Predictor.load(model_path, model_path, device="cpu").predict(images)[0]
    np.testing.assert_array_equal(twice, one)


def test_models_for_images_of_different_sizes_are_refused(model_path, tmp_path, encoder_state):
    other_path = tmp_path / "other.pt"
    save_random_model(other_path, encoder_state, decoder="bilinear", image_size=96)
    with pytest.raises(DataError, match=r"different sizes .*model\.pt: 64, .*other\.pt: 96"):
        Predictor.load(model_path, other_path)


def test_no_images_have_no_predictions(predictor):
    assert predictor.predict([]) == []


def test_the_content_of_a_file_is_predicted_as_the_file_is(kinds, predictor):
    folder, _ = kinds
    paths = sorted(folder.iterdir())
    from_files = predictor.predict_encoded(paths)
    from_bytes = predictor.predict_encoded([path.read_bytes() for path in paths])
    assert all(map(np.array_equal, from_files, from_bytes))


def test_content_that_is_no_image_is_answered_in_one_line(predictor):
    with pytest.raises(DataError, match=r"^this cannot be read as an image \(unknown") as caught:
        predictor.predict_encoded([b"<html>404</html>"])
    assert "\n" not in str(caught.value)


def test_a_stream_goes_by_its_name(predictor):
    stream = io.BytesIO(b"<html>404</html>")
    stream.name = "the upload"
    with pytest.raises(DataError, match=r"^the upload cannot be read as an image \(unknown"):
        predictor.predict_encoded([stream])


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_an_array_that_is_no_rgb_image_is_refused_with_its_shape_and_type(predictor, image):
    with pytest.raises(DataError, match=rf"^image 1 must be .* uint8, got .* {image.dtype}$"):
        predictor.predict([photograph(8, 8), image])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_the_batch_size_changes_no_mask(predictor, threshold, batch_size):
    images = [photograph(40 + i, 60, seed=i) for i in range(7)]
    reference = predictor.predict(images, batch_size=4)
    maps = predictor.predict(images, batch_size=batch_size)
    for probability, expected in zip(maps, reference, strict=True):
        np.testing.assert_allclose(probability, expected, rtol=0, atol=1e-5)
        # A pixel may change sides only if rounding can push it: here none is that close.
        np.testing.assert_array_equal(probability > threshold, expected > threshold)


def test_predicting_leaves_the_model_and_the_random_state_as_they_are(predictor):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second = (predictor.predict([photograph(50, 50)])[0] for _ in range(2))
    assert np.array_equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_device_out_of_memory_is_answered_with_the_next_step(predictor, monkeypatch):
    def fail(images):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(predictor, "_models", [fail])
    with pytest.raises(LesionsegError, match=r"no memory for 1 images .*smaller batch size$"):
        predictor.predict([photograph(8, 8)])


def test_a_missing_model_and_a_missing_device_are_errors(tmp_path, model_path):
    with pytest.raises(MissingFileError, match="Run: dvc repro train_frozen"):
        Predictor.load(tmp_path / "model.pt", stage="train_frozen")
    with pytest.raises(ConfigError):
        Predictor.load(model_path, device="cuda:99")


# Which files, and under which names.


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_folder_is_searched_through_all_levels_in_order(tmp_path):
    touch(tmp_path, "b.png", "a.JPG", "z/y/c.Tiff", "z/a.jpg")
    found = find_images([tmp_path], out_dir=tmp_path / "out")
    assert [source.id for source in found.sources] == ["a", "b", "z/a", "z/y/c"]
    assert [source.path for source in found.sources] == [
        tmp_path / name for name in ("a.JPG", "b.png", "z/a.jpg", "z/y/c.Tiff")
    ]


def test_files_that_are_no_images_by_name_are_counted_and_hidden_ones_left_out(tmp_path):
    touch(tmp_path, "a.jpg", "notes.txt", "deep/table.csv", "._a.jpg", ".cache/b.png")
    found = find_images([tmp_path], out_dir=tmp_path / "out")
    assert [source.name for source in found.sources] == ["a.jpg"]
    assert found.num_left_out == 2


def test_a_file_is_taken_whatever_it_is_called(tmp_path):
    touch(tmp_path, "scan.raw")
    (source,) = find_images([tmp_path / "scan.raw"], out_dir=tmp_path / "out").sources
    assert source == Source(id="scan", name="scan.raw", path=tmp_path / "scan.raw")


OUTPUTS_OF_A = [f"a{ending}" for ending in ENDINGS.values()]


def test_outputs_of_this_folder_are_left_out_and_other_images_in_it_are_not(tmp_path):
    touch(tmp_path, "a.jpg", "out/mine.png", "other/out/b.png", "c_segmentation.png")
    touch(tmp_path, *(f"out/{below}{name}" for below in ("", "x/") for name in OUTPUTS_OF_A))
    found = find_images([tmp_path], out_dir=tmp_path / "out")
    names = [source.name for source in found.sources]
    assert names == ["a.jpg", "c_segmentation.png", "other/out/b.png", "out/mine.png"]
    assert (found.num_left_out, found.unusable) == (0, ())


@pytest.mark.parametrize("earlier", ["old", "deep/er/old", "."])
def test_outputs_of_any_earlier_call_are_left_out(tmp_path, earlier):
    Outputs(out_dir=tmp_path / earlier).prepare([])  # killed right after this, it is known
    touch(tmp_path, "a.jpg", *(f"{earlier}/x/{name}" for name in OUTPUTS_OF_A))
    found = find_images([tmp_path], out_dir=tmp_path / "new")
    assert [source.name for source in found.sources] == ["a.jpg"]
    assert found.num_left_out == 0


def test_a_summary_of_somebody_else_s_makes_no_folder_of_outputs(tmp_path):
    touch(tmp_path, "a_segmentation.png")
    (tmp_path / "summary.csv").write_text("file,mine\n")
    found = find_images([tmp_path], out_dir=tmp_path / "out")
    assert [source.name for source in found.sources] == ["a_segmentation.png"]
    for name in ("out/summary.csv", "folder/summary.csv/x"):
        touch(tmp_path, name)
    for folder in (".", "out", "folder"):
        with pytest.raises(
            DataError, match=r"summary\.csv is not from lesionseg predict, .* --out$"
        ):
            Outputs(out_dir=tmp_path / folder).prepare([])


def test_the_columns_by_which_a_summary_is_known_are_those_of_its_rows():
    assert tuple(column.name for column in dataclasses.fields(Summary)) == SUMMARY_COLUMNS


def test_outputs_among_the_images_of_a_folder_are_refused(tmp_path):
    touch(tmp_path, "a.jpg")
    with pytest.raises(DataError, match=r"--out .* Choose another folder$"):
        find_images([tmp_path], out_dir=tmp_path / "b/..")


def test_a_file_named_twice_is_predicted_once(tmp_path, monkeypatch):
    touch(tmp_path, "x/a.jpg")
    monkeypatch.chdir(tmp_path)
    paths = [tmp_path / "x", tmp_path / "x/a.jpg", tmp_path / "x/../x", tmp_path.__class__("x")]
    assert len(find_images(paths, out_dir=tmp_path / "out").sources) == 1


def test_a_link_into_a_cache_is_an_image_of_the_folder(tmp_path):
    touch(tmp_path, "cache/0123", "data/b.jpg")
    (tmp_path / "data/a.jpg").symlink_to(tmp_path / "cache/0123")
    found = find_images([tmp_path / "data"], out_dir=tmp_path / "out")
    assert [source.id for source in found.sources] == ["a", "b"]


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # whose length is limited


ODD = {
    "a broken link": lambda path: path.symlink_to("absent"),
    "symbolic links": lambda path: path.symlink_to(path.name),
    "a fifo": os.mkfifo,
    "a socket": make_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder, and holds none": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("reason", ODD)
def test_what_is_no_file_is_named_and_never_opened(tmp_path, monkeypatch, reason):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "in/good.jpg")
    ODD[reason](tmp_path / "in/odd.jpg")
    given = [tmp_path / "in"] if "folder" in reason else [tmp_path / "in", tmp_path / "in/odd.jpg"]
    found = find_images([*given, *given], out_dir=tmp_path / "out")
    assert [source.name for source in found.sources] == ["good.jpg"]
    (line,) = found.unusable
    assert line.startswith(f"{tmp_path}/in/odd.jpg cannot be read as an image (")
    assert reason in line


def test_a_folder_is_searched_whatever_it_is_called(tmp_path):
    touch(tmp_path, "x.jpg/a.png", "y.jpg/z/b.png")
    found = find_images([tmp_path / "x.jpg", tmp_path], out_dir=tmp_path / "out")
    assert [source.name for source in found.sources] == ["x.jpg/a.png", "y.jpg/z/b.png"]
    assert found.unusable == ()


def test_a_folder_that_cannot_be_searched_is_named_and_the_others_are_done(tmp_path, monkeypatch):
    touch(tmp_path, "a.jpg", "closed/b.jpg", "open/c.jpg")
    scandir = os.scandir

    def refuse(path):  # as for all but root, who may read anything
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("lesionseg.inference.sources.os.scandir", refuse)
    found = find_images([tmp_path], out_dir=tmp_path / "out")
    assert [source.name for source in found.sources] == ["a.jpg", "open/c.jpg"]
    assert found.unusable == (f"{tmp_path}/closed cannot be searched (Permission denied).",)


def test_links_to_folders_are_named_and_not_followed(tmp_path):
    touch(tmp_path, "in/a.jpg", "outside/b.jpg")
    (tmp_path / "in/round").symlink_to(".")
    (tmp_path / "in/away").symlink_to(tmp_path / "outside")
    found = find_images([tmp_path / "in"], out_dir=tmp_path / "out")
    assert [source.name for source in found.sources] == ["a.jpg"]
    assert found.links == (tmp_path / "in/away", tmp_path / "in/round")


def test_folders_may_be_nested_deeper_than_functions(tmp_path):
    deep = "d/" * 120
    touch(tmp_path, f"{deep}a.png")
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 80)
    try:
        found = find_images([tmp_path], out_dir=tmp_path / "out")
    finally:
        sys.setrecursionlimit(before)
    assert [source.id for source in found.sources] == [f"{deep}a"]


def test_files_of_one_name_keep_apart(tmp_path):
    touch(tmp_path, "x/a.jpg", "y/a.jpg", "y/b.jpg", "y/b.png")
    ids = {
        how: [source.id for source in find_images(paths, out_dir=tmp_path / "out").sources]
        for how, paths in {
            "folder": [tmp_path],
            "folders": [tmp_path / "x", tmp_path / "y"],
            "files": [tmp_path / "x/a.jpg", tmp_path / "y/a.jpg"],
        }.items()
    }
    assert ids["folder"] == ["x/a", "y/a", "y/b.jpg", "y/b.png"]
    assert ids["folders"] == ids["folder"]
    assert ids["files"] == ["x/a", "y/a"]


def test_a_name_that_is_no_text_is_predicted_on(tmp_path, predictor):
    path = tmp_path / os.fsdecode(b"l\xe9sion.png")  # of an old archive, in Latin-1
    save(path, photograph(20, 20))
    (row,) = run(tmp_path, predictor, Outputs(out_dir=tmp_path / "out", contours="geojson"))
    assert row.file == "l\ufffdsion.png"
    assert (tmp_path / "out" / os.fsdecode(b"l\xe9sion_segmentation.png")).exists()


def test_an_ending_stays_until_no_two_names_are_the_same(tmp_path):
    touch(tmp_path, "a.jpg", "a.png", "a.jpg.png", "b.jpg.png")
    found = find_images([tmp_path], out_dir=tmp_path / "out")
    ids = {source.name: source.id for source in found.sources}
    assert ids == {"b.jpg.png": "b.jpg"} | {n: n for n in ("a.jpg", "a.png", "a.jpg.png")}


def test_an_output_never_replaces_an_image_to_predict_on(tmp_path):
    touch(tmp_path, "a.jpg", "a_segmentation.png")
    paths = sorted(tmp_path.iterdir())
    found = find_images(paths, out_dir=tmp_path)
    with pytest.raises(DataError, match=r"a_segmentation\.png is an image to predict on"):
        Outputs(out_dir=tmp_path).prepare(found.sources)


# Many files.


def test_unreadable_files_keep_their_place_and_the_others_are_done(tmp_path, predictor):
    for number in range(6):
        save(tmp_path / f"{number}.jpg", photograph(80, 60, seed=number))
    (tmp_path / "1.jpg").write_bytes(b"")
    whole = (tmp_path / "4.jpg").read_bytes()
    (tmp_path / "4.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "5.jpg").write_text("<html>404</html>")
    results = run(tmp_path, predictor, Outputs(out_dir=tmp_path / "out"), batch_size=2)
    kinds = [type(result) for result in results]
    assert kinds == [Summary, Skipped, Summary, Summary, Skipped, Skipped]
    for number, reason in ((1, "unknown"), (4, "truncated"), (5, "unknown")):
        assert results[number].source.name == f"{number}.jpg"
        assert results[number].reason.startswith(f"{tmp_path}/{number}.jpg cannot be read")
        assert reason in results[number].reason
        assert results[number].reason.endswith(").")
        assert "dvc" not in results[number].reason  # the next step of the pipeline's own images
    assert set(written_in(tmp_path / "out")) == {
        f"{number}_segmentation.png" for number in (0, 2, 3)
    }


def test_what_to_do_about_a_user_s_own_file_is_said(tmp_path, predictor):
    levels = np.full((8, 8), 65535, np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", levels, photometric="miniswhite")
    (skipped,) = run(tmp_path, predictor, Outputs(out_dir=tmp_path / "out"))
    expected = "a.tif has deep levels with 0 as white. Save it again with 8 bits"
    assert skipped.reason == f"{tmp_path}/{expected}"


def test_only_unreadable_files_are_no_error_of_the_network(tmp_path, predictor):
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    results = run(tmp_path, predictor, Outputs(out_dir=tmp_path / "out"), batch_size=2)
    assert [type(result) for result in results] == [Skipped] * 3


def test_a_decompression_bomb_is_named(tmp_path, predictor, monkeypatch):
    save(tmp_path / "a.png", photograph(50, 50))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50 * 50 // 2 - 1)
    (skipped,) = run(tmp_path, predictor, Outputs(out_dir=tmp_path / "out"))
    assert "a.png cannot be read as an image" in skipped.reason
    assert "megapixels" in skipped.reason


def test_files_are_taken_only_a_few_batches_ahead_of_the_results(tmp_path, predictor):
    path = save(tmp_path / "a.png", photograph(16, 16))
    num_taken = 0

    def endless():
        nonlocal num_taken
        for number in itertools.count():
            num_taken += 1
            yield Source(id=str(number), name="a.png", path=path)

    outputs = Outputs(out_dir=tmp_path / "out")
    results = predict_files(endless(), predictor, outputs, batch_size=2, num_threads=2)
    for num_done in range(1, 31):
        next(results)
        # One batch being decoded, one in the network, one being written.
        assert num_taken - num_done <= 3 * 2 + 2
    results.close()


def test_neither_threads_nor_batches_change_what_is_written(tmp_path, kinds, predictor, threshold):
    folder, _ = kinds
    options = {"threshold": threshold, "probability": True, "contours": "geojson"}
    for name, batch_size, num_threads in (("a", 32, 1), ("b", 32, 4), ("c", 5, 3)):
        outputs = Outputs(out_dir=tmp_path / name, **options)
        run(folder, predictor, outputs, batch_size=batch_size, num_threads=num_threads)
    first, *others = (
        {name: path.read_bytes() for name, path in written_in(tmp_path / folder).items()}
        for folder in "abc"
    )
    assert len(first) == 3 * len(sources_of(folder))
    assert all(other == first for other in others)


def test_an_output_that_cannot_be_written_is_a_skip(tmp_path, predictor):
    long_name = "n" * 250 + ".png"
    for name in ("a.png", "b.png", long_name):
        save(tmp_path / name, photograph(20, 20))
    touch(tmp_path, "out/a_segmentation.png/mine.txt")
    outputs = Outputs(out_dir=tmp_path / "out")
    first, second, third = run(tmp_path, predictor, outputs)
    place = f"{tmp_path}/a.png: its outputs cannot be written"
    assert first.reason == f"{place} (Is a directory)."
    assert second.file == "b.png"
    assert third.reason.endswith(
        f"{long_name}: its outputs cannot be written (File name too long)."
    )
    names = set(written_in(tmp_path / "out"))
    assert names == {"a_segmentation.png/mine.txt", "b_segmentation.png"}


@pytest.mark.parametrize("error", [RuntimeError("No\nway"), MemoryError(), ValueError("")])
def test_whatever_goes_wrong_with_one_image_s_outputs_is_a_skip(
    tmp_path, predictor, monkeypatch, error
):
    save(tmp_path / "a.png", photograph(20, 20))

    def fail(*arguments):
        raise error

    monkeypatch.setattr("lesionseg.inference.pipeline.resize_probabilities", fail)
    (skipped,) = run(tmp_path, predictor, Outputs(out_dir=tmp_path / "out"))
    assert isinstance(skipped, Skipped)
    assert len(skipped.reason.splitlines()) == 1


def test_a_full_disk_ends_the_threads(tmp_path, predictor, monkeypatch):
    for number in range(5):
        save(tmp_path / f"{number}.png", photograph(20, 20))

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Outputs, "write", fail)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, predictor, Outputs(out_dir=tmp_path / "out"), batch_size=2)


# What is written.


def test_probabilities_come_back_from_the_16_bit_file(tmp_path, predictor):
    path = save(tmp_path / "a.png", photograph(70, 90))
    run(tmp_path, predictor, Outputs(out_dir=tmp_path / "out", probability=True))
    levels = read(tmp_path / "out/a_probability.png")
    assert levels.dtype == np.uint16
    expected = predictor.predict_encoded([path])[0]
    np.testing.assert_allclose(levels / PROBABILITY_LEVELS, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (301, 402)])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_mask_s_file_is_a_sound_8_bit_png_of_its_pixels(shape, share):
    mask = np.random.default_rng(0).random((2 * shape[0], shape[1]))[::2] < share
    content = mask_png(mask)
    Image.open(io.BytesIO(content)).verify()  # its checksums
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        np.testing.assert_array_equal(np.asarray(image), np.where(mask, 255, 0))


def test_a_mask_s_file_is_no_larger_than_pillow_s():
    mask = photograph(600, 400)[..., 0] > 127
    pillows = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(pillows, "PNG")
    assert 0 < len(mask_png(mask)) <= len(pillows.getvalue())


def test_existing_outputs_are_replaced_and_other_files_stay(tmp_path, predictor):
    save(tmp_path / "a.png", photograph(20, 20))
    touch(tmp_path, "out/a_segmentation.png", "out/mine.txt", "out/b_segmentation.png")
    run(tmp_path, predictor, Outputs(out_dir=tmp_path / "out"))
    assert set(written_in(tmp_path / "out")) == {
        "a_segmentation.png",
        "mine.txt",
        "b_segmentation.png",
    }
    assert read(tmp_path / "out/a_segmentation.png").shape == (20, 20)


def test_a_summary_says_what_the_mask_is_like():
    mask = np.zeros((10, 20), bool)
    mask[2:4, 3:8] = mask[6, 19] = True
    probability = np.where(mask, np.float32(0.8), np.float32(0.1))
    probability[6, 19] = 0.91
    assert summarise(mask, probability, name="a.jpg") == Summary(
        file="a.jpg",
        height=10,
        width=20,
        lesion_pixels=11,
        lesion_fraction=0.055,
        num_regions=2,
        mean_probability=0.81,
        touches_border=True,
    )


def test_a_summary_of_an_empty_mask_has_no_mean_probability():
    summary = summarise(np.zeros((4, 5), bool), np.zeros((4, 5), np.float32), name="a.jpg")
    assert summary.mean_probability is None
    assert (summary.lesion_pixels, summary.num_regions, summary.touches_border) == (0, 0, False)


@pytest.mark.parametrize("pixel", [(0, 2), (3, 2), (1, 0), (1, 4)])
def test_each_edge_of_the_image_is_its_border(pixel):
    mask = np.zeros((4, 5), bool)
    mask[pixel] = True
    assert summarise(mask, mask.astype(np.float32), name="a.jpg").touches_border


def test_an_overlay_is_no_larger_than_its_side_and_no_larger_than_the_image(tmp_path):
    for name, shape in {"wide.jpg": (700, 2100), "small.png": (60, 40)}.items():
        path = save(tmp_path / name, photograph(*shape))
        height, width = shape
        shown = draw_regions(path, [], size=shape)
        scale = min(1, LONGER_SIDE / max(shape))
        assert shown.size == (round(width * scale), round(height * scale))


def test_an_overlay_is_the_image_with_the_outline_of_the_mask_on_it(tmp_path):
    path = save(tmp_path / "a.png", np.full((300, 400, 3), 128, np.uint8))
    mask = np.zeros((300, 400), bool)
    mask[100:200, 150:350] = True
    overlay = np.asarray(draw_regions(path, find_regions(mask), size=mask.shape)).astype(int)
    changed = (overlay != 128).any(axis=2)
    near = ndimage.binary_dilation(mask, iterations=4) & ~ndimage.binary_erosion(mask, iterations=4)
    assert not (changed & ~near).any()
    # From outside to inside: a dark rim, the colour, a dark rim again.
    for row in (97, 98, 99, 100, 101, 102):
        assert changed[row, 200] == (row in (98, 99, 100, 101))
    np.testing.assert_array_equal(overlay[99, 200], (0x56, 0xB4, 0xE9))
    assert overlay[98, 200].max() == 0


# Contours.


def test_an_empty_mask_has_no_contours():
    regions = find_regions(np.zeros((4, 4), bool))
    assert regions == []
    assert json.loads(to_geojson(regions, name="a.jpg", size=(4, 4)))["features"] == []
    assert to_csv(regions) == b"region,ring,x,y\n"


def test_both_kinds_of_contours_hold_the_same_corners(tmp_path, predictor, threshold):
    save(tmp_path / "a.png", photograph(90, 70))
    for kind in ("geojson", "csv"):
        run(
            tmp_path,
            predictor,
            Outputs(out_dir=tmp_path / kind, threshold=threshold, contours=kind),
        )
    collection = json.loads((tmp_path / "geojson/a_contours.geojson").read_text())
    assert collection["type"] == "FeatureCollection"
    corners = [
        (number, index, *corner)
        for number, feature in enumerate(collection["features"], 1)
        for index, ring in enumerate(feature["geometry"]["coordinates"])
        for corner in ring
    ]
    rows = csv.DictReader(io.StringIO((tmp_path / "csv/a_contours.csv").read_text()))
    assert [tuple(map(int, row.values())) for row in rows] == corners
    areas = [feature["properties"]["area"] for feature in collection["features"]]
    mask = read(tmp_path / "geojson/a_segmentation.png") > 0
    assert areas == sorted(areas, reverse=True)
    assert sum(areas) == mask.sum() > 0
    properties = collection["features"][0]["properties"]
    expected = {"file": "a.png", "height": 90, "width": 70, "region": 1, "area": areas[0]}
    assert properties == expected


@pytest.mark.parametrize("error", [RuntimeError("Not implemented"), TypeError(), MemoryError()])
def test_whatever_pillow_raises_is_named_in_one_line(tmp_path, predictor, monkeypatch, error):
    save(tmp_path / "a.png", photograph(20, 20))

    def fail(path, *, at_least):
        raise error

    monkeypatch.setattr("lesionseg.inference.decoding.read_image_and_size", fail)
    (skipped,) = run(tmp_path, predictor, Outputs(out_dir=tmp_path / "out"))
    reason = str(error) or type(error).__name__
    assert skipped.reason == f"{tmp_path}/a.png cannot be read as an image ({reason})."


def test_a_file_that_is_gone_before_its_overlay_is_drawn_is_a_skip(
    tmp_path, predictor, monkeypatch
):
    save(tmp_path / "a.png", photograph(20, 20))
    resize = resize_probabilities

    def resize_late(*arguments):
        (tmp_path / "a.png").unlink()
        return resize(*arguments)

    monkeypatch.setattr("lesionseg.inference.pipeline.resize_probabilities", resize_late)
    (skipped,) = run(tmp_path, predictor, Outputs(out_dir=tmp_path / "out", overlay=True))
    assert skipped.reason == f"{tmp_path}/a.png cannot be read as an image (file not found)."


@pytest.mark.filterwarnings("ignore:::PIL")  # remarks on metadata; the command hides them
def test_any_damage_to_a_file_is_a_skip(tmp_path, predictor):
    """Every byte may be wrong; what is still an image gets its mask."""
    shuffled = random.Random(0)
    originals = [save(tmp_path / f"a.{kind}", photograph(40, 50)) for kind in ("jpg", "png", "tif")]
    (tmp_path / "in").mkdir()
    for number in range(60):
        original = shuffled.choice(originals)
        content = bytearray(original.read_bytes())
        for _ in range(20):
            content[shuffled.randrange(min(len(content), 600))] = shuffled.randrange(256)
        (tmp_path / f"in/{number}{original.suffix}").write_bytes(content)
    results = run(tmp_path / "in", predictor, Outputs(out_dir=tmp_path / "out"))
    assert len(results) == 60
