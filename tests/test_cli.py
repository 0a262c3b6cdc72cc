"""The command line: what it answers, with which exit status, and how little it loads for that."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lesionseg import registry
from lesionseg.cli import main
from lesionseg.inference.predictor import Predictor
from lesionseg.models.segmenter import build_segmenter, save_model

pytestmark = pytest.mark.usefixtures("one_thread")

MIDDLE = "0.542"  # the random model's probabilities are around it
SOURCE = Path(__file__).parents[1] / "src"


@pytest.fixture(scope="module")
def model_path(tmp_path_factory, encoder_state):
    path = tmp_path_factory.mktemp("model") / "model.pt"
    model = build_segmenter(
        encoder_state=encoder_state, decoder="transposed", dropout=0.1, frozen=True, seed=0
    )
    save_model(path, state=model.state_dict(), decoder="transposed", image_size=64, frozen=True)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder `photos` of three images in the working directory, two of them with one name."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), dtype=np.uint8)
    for name, pixels in zip(("a.png", "b.jpg", "deep/a.jpg"), noise, strict=True):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path


@pytest.fixture
def predict(model_path, capsys):
    """Runs `lesionseg predict ... --model MODEL`: exit status, standard output and error."""

    def predict(*arguments, model=model_path):
        capsys.readouterr()
        options = ["--model", str(model), "--device", "cpu", "--threshold", MIDDLE]
        status = main(["predict", *options, *arguments])
        return status, *capsys.readouterr()

    return predict


def files_below(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_folder_gives_a_mask_for_each_image_and_a_summary(folder, predict):
    status, out, err = predict("photos")
    assert (status, err) == (0, "")
    assert files_below(folder / "predictions") == [
        *("a_segmentation.png", "b_segmentation.png", "deep/a_segmentation.png", "summary.csv")
    ]
    assert [line.split()[0] for line in out.splitlines()] == [
        *("file", "a.png", "b.jpg", "deep/a.jpg", "3")
    ]
    assert out.endswith(" are in predictions\n")


def test_the_options_name_what_else_is_written_and_where(folder, predict):
    predict("photos/b.jpg", "--out", "x/y", "--overlay", "--probability", "--contours", "geojson")
    names = ["contours.geojson", "overlay.jpg", "probability.png", "segmentation.png"]
    assert files_below(folder / "x/y") == [*(f"b_{name}" for name in names), "summary.csv"]
    predict("photos/b.jpg", "--out", "z", "--contours", "csv")
    names = ["b_contours.csv", "b_segmentation.png", "summary.csv"]
    assert files_below(folder / "z") == names


def test_the_summary_s_numbers_are_those_of_the_masks(folder, predict):
    predict("photos")
    with (folder / "predictions/summary.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["file"] for row in rows] == ["a.png", "b.jpg", "deep/a.jpg"]
    for row in rows:
        path = (folder / "predictions" / row["file"]).with_suffix("")
        with Image.open(f"{path}_segmentation.png") as image:
            mask = np.asarray(image) > 0
        assert (int(row["height"]), int(row["width"])) == mask.shape == (40, 60)
        assert 0 < int(row["lesion_pixels"]) == mask.sum() < mask.size
        assert float(row["lesion_fraction"]) == pytest.approx(mask.mean(), abs=1e-6)


def test_several_views_write_the_same_files_with_other_probabilities(folder, predict):
    outputs = {}
    for num_views in (None, "1", "8"):
        options = ["--tta", num_views] if num_views else []
        status, _, err = predict("photos", "--probability", "--out", f"x{num_views}", *options)
        assert (status, err) == (0, "")
        names = files_below(folder / f"x{num_views}")
        outputs[num_views] = {n: (folder / f"x{num_views}" / n).read_bytes() for n in names}
    assert outputs["1"] == outputs[None]
    assert set(outputs["8"]) == set(outputs[None])
    assert outputs["8"]["a_probability.png"] != outputs[None]["a_probability.png"]


def test_two_equal_calls_write_equal_bytes(folder, predict):
    arguments = ("photos", "--overlay", "--probability", "--contours", "geojson")
    outputs = []
    for name in ("x", "y"):
        predict(*arguments, "--out", name)
        names = files_below(folder / name)
        outputs.append({n: (folder / name / n).read_bytes() for n in names})
    assert outputs[0] == outputs[1]


def test_a_second_call_in_the_folder_of_the_images_finds_the_same_images(
    folder, predict, monkeypatch
):
    monkeypatch.chdir(folder / "photos")
    first = predict(".")
    assert first[0] == 0
    assert predict(".") == first


def test_a_higher_threshold_marks_no_more_pixels(folder, predict):
    counts = []
    for threshold in ("0.01", MIDDLE, "0.99"):
        predict("photos/a.png", "--threshold", threshold)
        with Image.open("predictions/a_segmentation.png") as image:
            counts.append(int((np.asarray(image) > 0).sum()))
    assert counts[0] == 40 * 60 > counts[1] > counts[2] == 0


def test_empty_masks_are_counted(folder, predict):
    _, out, _ = predict("photos", "--threshold", "0.999")
    assert out.endswith("3 masks, 3 of them empty, and summary.csv are in predictions\n")


def test_a_long_table_is_cut_off(folder, predict):
    for number in range(20):
        Image.new("RGB", (8, 8)).save(folder / f"photos/{number:02}.png")
    _, out, _ = predict("photos")
    lines = out.splitlines()
    assert len(lines) == 1 + 10 + 2
    assert lines[-2] == "... and 13 more"


def test_unreadable_files_are_named_at_the_end_with_status_1(folder, predict):
    (folder / "photos/broken.jpg").write_text("<html>404</html>")
    (folder / "photos/phone.heic").write_bytes(b"")
    status, out, err = predict("photos")
    assert status == 1
    assert re.search(r"^3 masks.* are in predictions$", out, re.MULTILINE)
    assert err == (
        "error: 2 of 5 files could not be read:\n"
        "  photos/broken.jpg cannot be read as an image (unknown or damaged format).\n"
        "  photos/phone.heic cannot be read as an image (unknown or damaged format).\n"
    )


def test_nothing_but_unreadable_files_writes_no_summary(folder, predict):
    (folder / "broken.jpg").touch()
    status, out, err = predict("broken.jpg")
    assert (status, out) == (1, "")
    assert "1 of 1 files" in err
    assert files_below(folder / "predictions") == []


def test_files_left_out_by_their_names_are_counted(folder, predict):
    (folder / "photos/notes.txt").touch()
    status, _, err = predict("photos")
    assert status == 0
    assert err == "not images by their names, left out: 1\n"


def assert_is_one_line(status, out, err, *, message):
    assert (status, out) == (1, "")
    assert re.fullmatch(rf"error: {message}\n", err), err


def test_a_missing_path_is_answered_before_anything_is_written(folder, predict):
    result = predict("photos", "absent")
    assert_is_one_line(*result, message=r"absent is not there\. Give .*")
    assert not (folder / "predictions").exists()


def test_an_empty_folder_is_answered_with_what_was_looked_for(folder, predict):
    (folder / "empty").mkdir()
    assert_is_one_line(*predict("empty"), message=r"empty: no images among 0 files.* \.png .*")


def test_a_missing_model_is_answered_with_the_stage_that_makes_it(folder, predict, capsys):
    message = r"absent\.pt is missing\. Run: dvc repro train_finetuned, or .* --model"
    assert_is_one_line(*predict("photos", model="absent.pt"), message=message)
    path = "results/train_frozen/model.pt"
    message = r"results/train_frozen/model\.pt is missing\. Run: dvc repro train_frozen, or .*"
    assert_is_one_line(*predict("photos", model=path), message=message)
    status = main(["predict", "photos"])
    message = r"results/train_finetuned/model\.pt is missing\. Run: dvc repro train_finetuned.*"
    assert_is_one_line(status, *capsys.readouterr(), message=message)


def test_the_model_option_can_be_given_several_times(folder, predict, model_path):
    again = ("photos", "--model", str(model_path))
    status, output, _ = predict(*again)
    assert status == 0
    assert "summary.csv" in output
    assert_is_one_line(*predict(*again, model="absent.pt"), message=r"absent\.pt is missing.*")


def test_a_broken_model_is_answered_in_one_line(folder, predict):
    (folder / "model.pt").write_text("no model")
    assert_is_one_line(*predict("photos", model="model.pt"), message=r"model\.pt is not a model .*")


def test_an_output_folder_that_cannot_be_is_answered_before_the_work(folder, predict):
    (folder / "file").touch()
    for out in ("file", "file/below"):
        message = rf"{out} cannot be written to \(.*\)\. Choose another folder with --out"
        assert_is_one_line(*predict("photos", "--out", out), message=message)


def test_a_folder_without_permission_is_answered_before_the_work(folder, predict, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *arguments: False)  # root may write anywhere
    message = r"predictions cannot be written to \(Permission denied\)\. Choose .* --out"
    assert_is_one_line(*predict("photos"), message=message)


def test_a_full_disk_is_answered_in_one_line(folder, predict, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device", "predictions/a_segmentation.png")

    monkeypatch.setattr("lesionseg.inference.outputs.Outputs.write", fail)
    message = r"\[Errno 28\] No space left on device: 'predictions/a_segmentation\.png'"
    assert_is_one_line(*predict("photos"), message=message)


def test_a_device_that_is_not_there_is_answered_in_one_line(folder, model_path, capsys):
    status = main(["predict", "photos", "--model", str(model_path), "--device", "cuda:99"])
    message = r"--device cuda:99 is not there\. Write auto or cpu"
    assert_is_one_line(status, *capsys.readouterr(), message=message)


def test_an_error_keeps_its_traceback_for_debugging(folder, predict, monkeypatch):
    monkeypatch.setenv("LESIONSEG_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        predict("absent")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["predict"], "the following arguments are required: PATH"),
        (["paint"], "argument COMMAND: invalid choice: 'paint'"),
        (["predict", "a", "--threshold", "1"], "must be a number above 0 and below 1, got '1'"),
        (["predict", "a", "--threshold", "nan"], "must be a number above 0 and below 1, got 'nan'"),
        (["predict", "a", "--threshold", "half"], "above 0 and below 1, got 'half'"),
        (["predict", "a", "--batch-size", "0"], "must be a whole number from 1 on, got '0'"),
        (["predict", "a", "--batch-size", "1.5"], "must be a whole number from 1 on, got '1.5'"),
        (["predict", "a", "--device", "gpu"], "must be auto, cpu, cuda or cuda:1, got 'gpu'"),
        (["predict", "a", "--contours", "svg"], "invalid choice: 'svg'"),
        (["predict", "a", "--tta", "3"], "argument --tta: invalid choice: 3"),
        (["predict", "a", "--tta", "all"], "argument --tta: invalid int value: 'all'"),
    ],
)
def test_wrong_arguments_are_answered_in_one_line_with_status_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    out, err = capsys.readouterr()
    assert (exit_.value.code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert re.search(r"Run: lesionseg( predict)? --help\n$", err)
    assert len(err.splitlines()) == 1


def test_a_model_of_the_registry_is_fetched_from_there(folder, predict, model_path, monkeypatch):
    asked = []

    def download_model(uri):
        asked.append(uri)
        return model_path

    monkeypatch.setattr(registry, "download_model", download_model, raising=False)
    status, _, _ = predict("photos", model="models:/lesionseg@champion")
    assert status == 0
    assert asked == ["models:/lesionseg@champion"]


def test_ctrl_c_is_answered_in_one_line_and_what_is_written_is_whole(folder, predict, monkeypatch):
    forward, num_batches = Predictor.forward, 0

    def interrupt(self, pixels):
        nonlocal num_batches
        num_batches += 1
        if num_batches == 3:
            raise KeyboardInterrupt
        return forward(self, pixels)

    monkeypatch.setattr(Predictor, "forward", interrupt)
    status, out, err = predict("photos", "--batch-size", "1")
    assert (status, out) == (130, "")
    assert re.fullmatch(r"interrupted\. .*\n", err)
    for name in files_below(folder / "predictions"):
        with Image.open(folder / "predictions" / name) as image:
            image.load()


def test_photographs_of_a_hundred_megapixels_are_read_without_a_remark(
    folder, predict, monkeypatch
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 60 - 1)  # a warning, up to twice as many
    status, _, err = predict("photos")
    assert (status, err) == (0, "")


# As its own process.


def lesionseg(*arguments, cwd, code=None):
    command = ["-c", code] if code else ["-m", "lesionseg"]
    return subprocess.run(
        [sys.executable, "-W", "error", *command, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["predict", "absent"]])
def test_help_and_first_mistakes_load_nothing_that_takes_long(tmp_path, arguments):
    code = f"""
import json, sys
from lesionseg.cli import main
try:
    main({arguments!r})
except SystemExit:
    pass
sys.stderr.write("\\n" + json.dumps(sorted(sys.modules)))
"""
    done = lesionseg(cwd=tmp_path, code=code)
    loaded = set(json.loads(done.stderr.splitlines()[-1]))
    heavy = {"torch", "numpy", "PIL", "skimage", "scipy", "pandas", "matplotlib", "mlflow", "dvc"}
    assert "lesionseg.cli" in loaded
    assert loaded & heavy == set()


def test_the_help_names_every_output_and_suffix(tmp_path):
    done = lesionseg("predict", "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("segmentation", "overlay", "probability", "contours", "summary.csv", ".webp"):
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_predicting_loads_neither_mlflow_nor_dvc_nor_drawing(folder, model_path):
    code = f"""
import sys
from lesionseg.cli import main
assert main(["predict", "photos", "--overlay", "--model", {str(model_path)!r}]) == 0
assert not {{"mlflow", "dvc", "matplotlib", "pandas"}} & set(sys.modules)
"""
    done = lesionseg(cwd=folder, code=code)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_module_exits_with_the_command_s_status(folder):
    done = lesionseg("predict", "absent", cwd=folder)
    assert done.returncode == 1
    assert done.stderr == ("error: absent is not there. Give the path of an image or a folder\n")
