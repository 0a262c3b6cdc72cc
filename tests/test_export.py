"""Exported models: the same masks elsewhere, what the file says of itself, what is refused."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lesionseg.cli import main
from lesionseg.data.phantom import draw_phantom
from lesionseg.export import extra, gate, graph, latency, precision
from lesionseg.files import sha256
from lesionseg.inference import predictor
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.threshold import find_threshold
from lesionseg.models import segmenter
from lesionseg.models.segmenter import load_model
from lesionseg.results.layout import RUNS, Results
from lesionseg.tracking import registry
from tests.pages import ROOT, fences
from tests.trained_results import IMAGE_SIZE, write_evaluation, write_run

pytestmark = pytest.mark.usefixtures("one_thread")

needs_extra = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))),
    reason="needs: pip install -e '.[export]'",
)
NUM_IMAGES = 5


@pytest.fixture(scope="module")
def pixels():
    drawn = [draw_phantom(size=IMAGE_SIZE, seed=seed)[0] for seed in range(NUM_IMAGES)]
    return np.stack(drawn)


@pytest.fixture(scope="module")
def root(tmp_path_factory, encoder_state, pixels):
    """A project with an untrained model, and phantoms as its processed splits."""
    root = tmp_path_factory.mktemp("project")
    write_run(root, "train_finetuned", val=0.8, encoder_state=encoder_state)
    for split in ("val", "test"):
        folder = root / "data/processed" / split
        folder.mkdir(parents=True)
        np.save(folder / "images.npy", pixels)
        np.save(folder / "masks.npy", np.zeros(pixels.shape[:3], np.uint8))
        ids = "".join(f"{number}\n" for number in range(len(pixels)))
        (folder / "index.csv").write_text(f"id\n{ids}")
    return root


@pytest.fixture(scope="module")
def model_path(root):
    return root / "results/train_finetuned/model.pt"


@pytest.fixture(scope="module")
def by_torch(model_path, pixels):
    return Predictor.load(model_path, device="cpu").forward(pixels)


@pytest.fixture(scope="module")
def threshold(by_torch):
    """In the middle of the widest gap between probabilities about the median: no mask is decided
    by rounding, whatever the processor.
    """
    low, high = np.quantile(by_torch, [0.4, 0.6])
    values = np.unique(by_torch[(by_torch > low) & (by_torch < high)])
    widest = np.diff(values).argmax()
    return float(values[widest : widest + 2].mean())


@pytest.fixture(scope="module")
def plain(model_path):
    """The model as a graph of pixels; whoever changes it makes a copy."""
    model, image_size = load_model(model_path, stage="train_finetuned")
    return graph.to_onnx(model, image_size=image_size)


def copy(plain):
    import onnx

    copied = onnx.ModelProto()
    copied.CopyFrom(plain)
    return copied


def run(made, images):
    session = latency.open_session(made.SerializeToString(), num_threads=1)
    return session.run(None, {graph.INPUT: images})[0]


@pytest.fixture
def export(root, threshold, plain, capsys, monkeypatch):
    """Runs `lesionseg export onnx ...` in the project: exit status, standard output and error.

    The graph is made once; each call gets a copy of it.
    """
    monkeypatch.chdir(root)
    monkeypatch.setattr(latency, "SECONDS", 0)

    def to_onnx(model, *, image_size, input_kind):
        assert (image_size, input_kind) == (IMAGE_SIZE, "uint8")
        return copy(plain)

    monkeypatch.setattr(graph, "to_onnx", to_onnx)

    def export(*arguments):
        capsys.readouterr()
        status = main(["export", "onnx", "--threshold", str(threshold), *map(str, arguments)])
        return status, *capsys.readouterr()

    return export


@needs_extra
def test_the_file_gives_the_masks_of_torch_in_batches_of_any_size(
    root, export, pixels, by_torch, threshold, tmp_path
):
    import onnxruntime

    out = tmp_path / "new/model.onnx"
    status, said, _ = export("--out", out)
    assert status == 0
    session = onnxruntime.InferenceSession(out)
    for num in (1, 2, NUM_IMAGES):
        (probability,) = session.run(None, {"images": pixels[:num]})
        assert probability.shape == (num, IMAGE_SIZE, IMAGE_SIZE)
        np.testing.assert_allclose(probability, by_torch[:num], atol=1e-4)
        assert ((probability > threshold) == (by_torch[:num] > threshold)).all()
    assert 0.2 < (by_torch > threshold).mean() < 0.8
    assert f"masks of {NUM_IMAGES} images (data/processed/test) beside torch's: 0 of " in said
    assert re.search(r"^ +1 +32 +\d+\.\d+ +\d+\.\d+$", said, re.MULTILINE)  # the latencies


@needs_extra
def test_the_file_says_what_it_is_and_nothing_of_this_machine(
    root, export, model_path, threshold, tmp_path
):
    import onnx

    export("--out", tmp_path / "model.onnx")
    content = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(content, full_check=True)
    facts = {item.key: item.value for item in content.metadata_props}
    assert json.loads(facts["classes"]) == ["background", "lesion"]
    assert float(facts["threshold"]) == threshold
    assert facts["image_size"] == str(IMAGE_SIZE)
    assert facts["model_sha256"] == sha256(model_path)
    assert (facts["commit"], facts["data_sha256"]) == ("abc123", "da7a" * 16)
    assert facts["use"] == "Research use, not for diagnosis."
    assert facts["licence"].startswith("MIT")
    assert "uint8 RGB" in facts["input"]
    whole = (tmp_path / "model.onnx").read_bytes()
    for place in (graph.__file__, torch.__file__, str(root)):
        assert place.rpartition("/")[0].encode() not in whole


@needs_extra
def test_float_images_give_what_their_pixels_give(model_path, plain, pixels):
    model, image_size = load_model(model_path, stage="train_finetuned")
    taking_floats = graph.to_onnx(model, image_size=image_size, input_kind="float32")
    graph.check(taking_floats)
    floats = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255
    np.testing.assert_allclose(run(taking_floats, floats), run(plain, pixels), atol=1e-5)


@needs_extra
def test_other_masks_are_refused_in_one_line_and_the_file_before_stays(
    export, plain, monkeypatch, tmp_path
):
    from onnx import numpy_helper

    changed = copy(plain)
    (bias,) = (t for t in changed.graph.initializer if t.name.endswith("head.bias"))
    bias.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.01), bias.name)
    )
    monkeypatch.setattr(graph, "to_onnx", lambda *_, **__: changed)
    out = tmp_path / "model.onnx"
    out.write_bytes(b"before")
    status, said, error = export("--out", out)
    assert (status, said) == (1, "")
    assert len(error.splitlines()) == 1
    assert error.startswith("error: not written: in float32 the exported model does not give the ")
    assert re.search(r"Got: [\d,]+ of 20,480 pixels differ .* worst in [0-4]\. ", error)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert out.read_bytes() == b"before"


@needs_extra
def test_half_precision_halves_large_weights_and_computes_in_float32(plain, pixels, by_torch):
    import onnx

    halved = precision.halve_weights(plain)
    graph.check(halved)
    kinds = {tensor.data_type: [] for tensor in halved.graph.initializer}
    for tensor in halved.graph.initializer:
        kinds[tensor.data_type].append(np.prod(tensor.dims))
    assert min(kinds[onnx.TensorProto.FLOAT16]) >= precision.LARGE_HALF
    assert max(kinds[onnx.TensorProto.FLOAT]) < precision.LARGE_HALF
    assert halved.ByteSize() < 0.6 * plain.ByteSize()
    got = run(halved, pixels)
    assert got.dtype == np.float32
    assert 0 < np.abs(got - by_torch).max() < 0.01


@needs_extra
def test_integers_are_for_large_pointwise_convolutions_in_batches_of_any_size(
    plain, pixels, by_torch
):
    before = plain.SerializeToString()
    quantised = precision.quantise(plain, pixels)
    graph.check(quantised)
    assert plain.SerializeToString() == before
    assert quantised.ByteSize() < 0.6 * plain.ByteSize()
    for num in (1, NUM_IMAGES):
        assert 0 < np.abs(run(quantised, pixels[:num]) - by_torch[:num]).max() < 0.2


def test_the_threshold_is_that_of_the_evaluation_of_this_model_or_one_half(tmp_path, encoder_state):
    results = Results(tmp_path / "results")
    shas = {run: write_run(tmp_path, run, val=0.8, encoder_state=encoder_state) for run in RUNS}
    assert find_threshold(results, model_sha256=shas["train_frozen"]) == 0.5
    write_evaluation(tmp_path, threshold=0.37)
    assert [find_threshold(results, model_sha256=sha) for sha in shas.values()] == [0.37, 0.37]
    assert find_threshold(results, model_sha256="0" * 64) == 0.5


@needs_extra
def test_a_registered_model_comes_with_the_commit_that_the_registry_has(
    export, model_path, monkeypatch, tmp_path
):
    import onnx

    path = tmp_path / "model.pt"
    path.write_bytes(model_path.read_bytes())  # nothing beside it
    version = registry.Version(
        version=2,
        run="train_finetuned",
        decoder="transposed",
        val_jaccard=0.8,
        test_jaccard=None,
        model_sha256=sha256(path),
        data_sha256="feed" * 16,
        commit="c0ffee",
        is_champion=True,
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    monkeypatch.setattr(registry, "download_model", lambda _uri: path)
    monkeypatch.setattr(registry, "list_versions", lambda: [version])
    out = tmp_path / "model.onnx"
    assert export("--model", "models:/lesionseg@champion", "--out", out)[0] == 0
    facts = {item.key: item.value for item in onnx.load(out).metadata_props}
    assert (facts["commit"], facts["data_sha256"]) == ("c0ffee", "feed" * 16)


@needs_extra
def test_the_model_is_read_once(export, monkeypatch, tmp_path):
    paths = []

    def load_model(path, **options):
        paths.append(path)
        return segmenter.load_model(path, **options)

    monkeypatch.setattr(predictor, "load_model", load_model)
    assert export("--out", tmp_path / "model.onnx")[0] == 0
    assert len(paths) == 1


@needs_extra
def test_given_images_take_the_place_of_the_test_split(export, pixels, tmp_path):
    Image.fromarray(pixels[0]).resize((90, 70)).save(tmp_path / "photo.png")
    status, said, _ = export("--images", tmp_path / "photo.png", "--out", tmp_path / "model.onnx")
    assert status == 0
    assert f"masks of 1 images ({tmp_path / 'photo.png'})" in said


@needs_extra
def test_what_cannot_be_compared_is_one_line_and_no_file(root, export, monkeypatch, tmp_path):
    out = tmp_path / "model.onnx"

    def refusal(*arguments):
        status, said, error = export("--out", out, *arguments)
        assert (status, said, len(error.splitlines())) == (1, "", 1)
        assert not out.exists()
        return error

    (tmp_path / "broken.jpg").write_bytes(b"no image")
    assert "broken.jpg cannot be read" in refusal("--images", tmp_path / "broken.jpg")
    monkeypatch.chdir(tmp_path)
    model = ("--model", root / "results/train_finetuned/model.pt")
    assert "data/processed/test is missing, and the exported" in refusal(*model)
    assert "results/train_finetuned/model.pt is missing" in refusal()
    out.mkdir()
    status, _, error = export("--out", out, *model)
    assert (status, error) == (1, f"error: {out}: Is a directory\n")


@needs_extra
def test_the_python_of_the_docs_gives_the_masks_of_predict(
    export, model_path, threshold, pixels, monkeypatch, tmp_path
):
    (code,) = (text for language, text in fences(ROOT / "docs/export.md") if language == "python")
    assert set(re.findall(r"(?m)^(?:import|from) (\w+)", code)) == {"numpy", "onnxruntime", "PIL"}
    monkeypatch.setattr(latency, "SECONDS", 0)
    assert export("--out", tmp_path / "lesionseg.onnx")[0] == 0
    sizes = {"lesion.jpg": (90, 70), "large.jpg": (640, 801), "wide.png": (300, 41)}
    for number, (name, size) in enumerate(sizes.items()):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels[number]).resize(size).save(tmp_path / name, exif=exif)
    Image.fromarray(pixels[3]).convert("L").save(tmp_path / "grey.png")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    found = {path: names["segment"](path) for path in map(Path, [*sizes, "grey.png"])}
    maps = Predictor.load(model_path, device="cpu").predict_encoded(list(found))
    for (path, mask), probability in zip(found.items(), maps, strict=True):
        clear = np.abs(probability - threshold) > 1e-5  # of rounding
        assert np.array_equal(mask[clear], (probability > threshold)[clear]), path
        assert clear.mean() > 0.9
    with Image.open("mask.png") as image:
        assert np.array_equal(np.asarray(image) == 255, found[Path("lesion.jpg")])


def test_a_missing_package_is_named_before_anything_else(monkeypatch, capsys):
    monkeypatch.setattr(extra, "_PACKAGES", ("numpy", "no_such_package", "nor_this"))
    assert main(["export", "onnx"]) == 1
    said, error = capsys.readouterr()
    assert said == ""
    assert error == (
        "error: lesionseg export needs no_such_package, nor_this. Run: pip install "
        "'lesionseg[export]', or in the repository: pip install -e '.[export]'\n"
    )


def as_maps(*rows):
    return np.array(rows, np.float32).reshape(len(rows), 1, -1)


def test_agreement_is_counted_for_each_image():
    ours = as_maps([0.9, 0.9, 0.1, 0.1], [0.1, 0.1, 0.1, 0.1])
    theirs = as_maps([0.9, 0.4, 0.1, 0.6], [0.2, 0.2, 0.2, 0.2])
    found = gate.compare(ours, theirs, threshold=0.5)
    assert found.num_pixels == 8
    assert found.differing.tolist() == found.beyond_rounding.tolist() == [2, 0]
    assert found.jaccard.tolist() == [pytest.approx(1 / 3), 1.0]  # empty and empty agree
    assert found.largest_difference == pytest.approx(0.5)


@pytest.mark.parametrize(("distance", "is_refused"), [(0.5, False), (2, True)])
def test_in_float32_only_a_pixel_at_the_threshold_may_differ(distance, is_refused):
    ours = as_maps([0.5 + distance * gate.ROUNDING, 0.9])
    found = gate.compare(ours, as_maps([0.49, 0.9]), threshold=0.5)
    assert found.differing.tolist() == [1]
    if not is_refused:
        gate.require_agreement(found, precision="float32", names=["a"])
        return
    with pytest.raises(gate.ExportError, match=r"not written: in float32 .* worst in a"):
        gate.require_agreement(found, precision="float32", names=["a"])


@pytest.mark.parametrize("name", gate.BOUNDS)
def test_other_precisions_are_refused_below_the_mean_or_the_least_jaccard(name):
    bound = gate.BOUNDS[name]

    def check(*jaccard):
        found = gate.Agreement(
            num_pixels=9,
            differing=np.ones(len(jaccard), int),
            beyond_rounding=np.ones(len(jaccard), int),
            jaccard=np.array(jaccard),
            largest_difference=0.1,
        )
        gate.require_agreement(found, precision=name, names=["a"] * (len(jaccard) - 1) + ["b"])

    check(bound.mean, bound.mean)
    check(1.0, 2 * bound.mean - 1)
    with pytest.raises(gate.ExportError, match=f"at least {bound.mean} on average"):
        check(bound.mean, bound.mean - 0.002)
    with pytest.raises(gate.ExportError, match="worst in b"):
        check(*[1.0] * 999, bound.least - 0.01)


def test_the_docs_have_the_bounds_of_the_gate():
    text = " ".join((ROOT / "docs/export.md").read_text(encoding="utf-8").split())
    half, whole = gate.BOUNDS["float16"], gate.BOUNDS["int8"]
    assert (
        f"`float16` by a jaccard of the two masks of {half.mean:g} on average and {half.least:g} "
        f"in each image; `int8` by {whole.mean:g} and {whole.least:g}."
    ) in text
