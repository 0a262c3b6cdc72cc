"""The command line: what it answers, with which exit status, and how little it loads for that."""

import argparse
import csv
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lesionseg.cli import _make_parser, main
from lesionseg.inference.predictor import Predictor
from lesionseg.results.layout import RUNS
from lesionseg.tracking import registry
from tests.trained_results import save_random_model, write_evaluation

pytestmark = pytest.mark.usefixtures("one_thread")

STAGES = ("download", "preprocess", "external", "train", "evaluate", "report")
MIDDLE = "0.542"  # the random model's probabilities are around it
SOURCE = Path(__file__).parents[1] / "src"


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
        "a_segmentation.png",
        "b_segmentation.png",
        "deep/a_segmentation.png",
        "summary.csv",
    ]
    assert [line.split()[0] for line in out.splitlines()] == [
        "file",
        "a.png",
        "b.jpg",
        "deep/a.jpg",
        "3",
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


@pytest.fixture
def evaluated(folder, model_path):
    """A project whose fine-tuned model, that of `predict`, was evaluated at MIDDLE."""
    for run in RUNS:
        model = folder / "results" / run / "model.pt"
        model.parent.mkdir(parents=True)
        model.write_bytes(model_path.read_bytes() if run == "train_finetuned" else b"another")
    write_evaluation(folder, threshold=float(MIDDLE))
    return folder


def masks_of(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*_segmentation.png")}


def test_masks_are_drawn_at_the_threshold_of_the_evaluation(evaluated, predict, model_path, capsys):
    predict("photos")
    expected = masks_of(Path("predictions"))
    assert main(["predict", "photos", "--model", str(model_path), "--out", "again"]) == 0
    assert capsys.readouterr().out.startswith(
        f"threshold {MIDDLE}, which the model was evaluated with\n"
    )
    assert masks_of(Path("again")) == expected
    write_evaluation(evaluated, threshold=0.5)
    assert main(["predict", "photos", "--model", str(model_path), "--out", "half"]) == 0
    assert "threshold" not in capsys.readouterr().out
    assert masks_of(Path("half")) != expected


def test_models_of_different_thresholds_need_one_from_the_user(evaluated, capsys, encoder_state):
    save_random_model(evaluated / "other.pt", encoder_state, decoder="bilinear")
    models = ["--model", "results/train_finetuned/model.pt", "--model", "other.pt"]
    assert main(["predict", "photos", *models]) == 1
    assert capsys.readouterr().err == (
        "error: the models have different thresholds (results/train_finetuned/model.pt: "
        f"{MIDDLE}, other.pt: 0.5). Choose one with --threshold\n"
    )
    assert main(["predict", "photos", *models, "--threshold", MIDDLE]) == 0


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
        "error: 2 of 5 failed, all others are done:\n"
        "  photos/broken.jpg cannot be read as an image (unknown or damaged format).\n"
        "  photos/phone.heic cannot be read as an image (unknown or damaged format).\n"
    )


def test_the_summary_is_of_this_call_even_where_nothing_was_readable(folder, predict):
    (folder / "broken.jpg").touch()
    assert predict("photos/a.png")[0] == 0
    status, out, err = predict("broken.jpg")
    assert (status, out) == (1, "")
    assert err.startswith("error: 1 of 1 failed")
    with (folder / "predictions/summary.csv").open(newline="") as stream:
        reader = csv.DictReader(stream)
        assert (list(reader), reader.fieldnames[0]) == ([], "file")


def test_one_odd_file_costs_one_line_and_never_the_others(folder, predict, monkeypatch):
    photos = folder / "photos"
    os.mkfifo(photos / "fifo.png")
    (photos / "itself.png").symlink_to("itself.png")
    (photos / "gone.png").symlink_to("absent")
    (photos / "folder.png").mkdir()
    (photos / "two\nlines.png").write_text("no image")
    os.link(photos / "a.png", photos / ("n" * 250 + ".png"))
    os.link(photos / "a.png", photos / os.fsdecode(b"\xe9.png"))
    status, out, err = predict("photos", "photos/a.png", "photos/fifo.png")
    assert status == 1
    assert "4 masks and summary.csv are in predictions" in out
    first, *lines = err.splitlines()
    assert first == "error: 6 of 10 failed, all others are done:"
    for word in ("fifo.png", "itself.png", "gone.png", "folder.png", "\ufffdlines.png", "nnn.png"):
        assert sum(word in line for line in lines) == 1, word
    assert len(lines) == 6
    with (folder / "predictions/summary.csv").open(newline="") as stream:
        names = [row["file"] for row in csv.DictReader(stream)]
    assert names == ["a.png", "b.jpg", "\ufffd.png", "deep/a.jpg"]


def test_nothing_but_what_cannot_be_opened_loads_and_makes_nothing(folder, predict):
    os.mkfifo(folder / "fifo.png")
    status, out, err = predict("fifo.png", model="photos/a.png")
    assert (status, out, len(err.splitlines())) == (1, "", 2)
    assert not (folder / "predictions").exists()


def test_a_name_that_the_terminal_cannot_show_is_shown_in_another_way(
    folder, model_path, monkeypatch
):
    os.link(folder / "photos/a.png", folder / "\u00e4.png")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["predict", "\u00e4.png", "--model", str(model_path)]) == 0
    terminal.seek(0)
    assert "\\xe4.png" in terminal.read()


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


@pytest.fixture
def project(folder):
    """The folder is a project's root."""
    for name in ("dvc.yaml", "params.yaml"):
        (folder / name).touch()
    return folder


def test_a_missing_model_is_answered_with_the_stage_that_makes_it(project, predict, capsys):
    for stage in ("train_frozen", "train_finetuned"):
        path = f"results/{stage}/model.pt"
        message = rf"{path} is missing\. Run: dvc repro {stage}, or name another with --model"
        assert_is_one_line(*predict("photos", model=path), message=message)
    status = main(["predict", "photos"])
    message = r"results/train_finetuned/model\.pt is missing\. Run: dvc repro train_finetuned.*"
    assert_is_one_line(status, *capsys.readouterr(), message=message)
    message = r"absent\.pt is missing\. Name another with --model"
    assert_is_one_line(*predict("photos", model="absent.pt"), message=message)


def test_a_model_that_no_stage_makes_is_answered_without_one(folder, predict, capsys):
    (folder / "results/train_frozen").mkdir(parents=True)
    (folder / "results/train_frozen/model.pt").touch()
    remedy = r"Name another with --model, or run from the project's root"
    status = main(["predict", "photos"])
    message = rf"results/train_finetuned/model\.pt is missing\. {remedy}"
    assert_is_one_line(status, *capsys.readouterr(), message=message)
    for model in ("n" * 300, "absent.pt"):
        message = rf"{model} is missing\. {remedy}"
        assert_is_one_line(*predict("photos", model=model), message=message)
    os.mkfifo(folder / "fifo")  # opened, it would wait for ever
    assert_is_one_line(*predict("photos", model="fifo"), message=rf"fifo is no file\. {remedy}")
    model = "results/train_frozen/model.pt"
    message = rf"{model} is not a model \(.*\)\. {remedy}"
    assert_is_one_line(*predict("photos", model=model), message=message)


def test_a_broken_model_of_the_project_is_made_anew_by_its_stage(project, predict):
    (project / "results/train_frozen").mkdir(parents=True)
    (project / "results/train_frozen/model.pt").touch()
    path = "results/train_frozen/model.pt"
    remedy = "Run: dvc repro -sf train_frozen && dvc repro, or name another with --model"
    message = rf"{path} is not a model \(.*\)\. {remedy}"
    assert_is_one_line(*predict("photos", model=path), message=message)
    assert_is_one_line(*predict("photos", "--model", path), message=message)  # the second of two
    (project / "mine.pt").touch()
    message = r"mine\.pt is not a model \(.*\)\. Name another with --model"
    assert_is_one_line(*predict("photos", "--model", "mine.pt"), message=message)
    assert not (project / "predictions").exists()


@pytest.mark.parametrize("command", [["champion"], ["champion", "--set", "1"], ["register"]])
@pytest.mark.parametrize("where", ["photos", "."])
def test_without_a_project_nothing_is_made(folder, monkeypatch, capsys, command, where):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(where)
    before = files_below(folder)
    others = [["replay"], ["sweep", "--grid", "train.lr=1"], ["ablation", "--dry-run"]]
    others.append(["curve", "--dry-run"])
    for arguments in (command, *others, ["predict", "a.png", "--model", "models:/x/1"]):
        if arguments[0] == "predict" and where == ".":
            arguments[1] = "photos/a.png"
        status = main(arguments)
        message = rf"{Path.cwd()} has no dvc\.yaml .*Run from the project's root, where .*"
        assert_is_one_line(status, *capsys.readouterr(), message=message)
    assert files_below(folder) == before
    assert not list(folder.rglob("mlruns"))


def test_a_registry_elsewhere_needs_no_project(folder, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setattr(registry, "list_versions", list)
    assert main(["champion"]) == 0
    status = main(["register"])
    capsys_out, err = capsys.readouterr()
    assert "no version of lesionseg is registered" in capsys_out
    assert (status, "Run from the project's root" in err) == (1, True)


def test_predicting_outside_a_project_makes_nothing_but_its_outputs(folder, predict):
    before = files_below(folder)
    assert predict("photos/a.png")[0] == 0
    new = set(files_below(folder)) - set(before)
    assert new == {"predictions/a_segmentation.png", "predictions/summary.csv"}


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
    message = r"predictions/a_segmentation\.png: No space left on device\. Make room and .*"
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
        (["predict", "a", "--batch-size", "0"], "must be a whole number in [1, 4096], got '0'"),
        (["predict", "a", "--batch-size", "1.5"], "must be a whole number in [1, 4096], got '1.5'"),
        (["predict", "a", "--batch-size", "5000"], "number in [1, 4096], got '5000'"),
        (["predict", "a", "--device", "gpu"], "must be auto, cpu, cuda or cuda:1, got 'gpu'"),
        (["predict", "a", "--contours", "svg"], "invalid choice: 'svg'"),
        (["predict", "a", "--tta", "3"], "argument --tta: invalid choice: 3"),
        (["predict", "a", "--tta", "all"], "argument --tta: invalid int value: 'all'"),
        (["sweep"], "one of the arguments --grid --search is required"),
        (["sweep", "--grid", "a", "--search", "b"], "--search: not allowed with argument --grid"),
        (["sweep", "--search", "a", "--sampler", "grid"], "--sampler: invalid choice: 'grid'"),
        (["ui", "--port", "70000"], "--port: must be a whole number in [1, 65535], got '70000'"),
        (["ablation", "--seeds", "0"], "--seeds: must be a whole number in [1, 10000], got '0'"),
    ],
)
def test_wrong_arguments_are_answered_in_one_line_with_status_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    out, err = capsys.readouterr()
    assert (exit_.value.code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert re.search(r"Run: lesionseg( predict| sweep| ui| ablation)? --help\n$", err)
    assert len(err.splitlines()) == 1


def commands(parser):
    """Every parser of the command line, by what is typed to reach it."""
    named = {parser.prog: parser}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                named |= commands(command)
    return named


@pytest.mark.parametrize("name", commands(_make_parser()))
def test_the_help_of_each_command_has_an_example_that_is_understood(name):
    text = commands(_make_parser())[name].format_help().partition("\n\n")[2]  # without the usage
    examples = re.findall(rf"(?m)(?:^ +|Example: )({name} [^\n|>]+|{name}$)", text)
    assert examples
    for example in examples:
        arguments = _make_parser().parse_args(shlex.split(example)[1:])
        assert callable(arguments.run)


@pytest.mark.parametrize(
    "name",
    [
        *(f"stages.{name}" for name in STAGES),
        "experiments.demo",
        "experiments.recipes",
        "experiments.sweep_demo",
        "benchmarks.__main__",
        "benchmarks.serving",
    ],
)
def test_the_help_of_each_module_that_is_run_has_an_example(name, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(name).main(["--help"])
    module = name.removesuffix(".__main__")
    stage = module.removeprefix("stages.")
    assert re.search(f"Example: (python -m {module}|dvc repro {stage})", capsys.readouterr().out)


def test_the_version_is_that_of_the_project(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    project = tomllib.loads((SOURCE.parent / "pyproject.toml").read_text())["project"]
    assert capsys.readouterr().out == f"lesionseg {project['version']}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_completion_knows_commands_and_options(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("predict", "doctor", "--overlay", "geojson"))


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_bash_completes_with_the_script(folder, capsys):
    main(["completion", "bash"])
    (folder / "script").write_text(capsys.readouterr().out)
    typed = "COMP_WORDS=(lesionseg predict ph); COMP_CWORD=2; COMP_LINE='lesionseg predict ph'"
    shown = 'COMP_POINT=${#COMP_LINE}; _shtab_lesionseg; echo "${COMPREPLY[@]}"'
    code = f". ./script; {typed}; {shown}"
    done = subprocess.run(["bash", "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.stdout == "photos\n"


def test_a_model_of_the_registry_is_fetched_from_there(project, predict, model_path, monkeypatch):
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
        if name == "summary.csv":
            continue
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


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["predict", "--help"],
        ["predict", "absent"],
        ["sweep", "--help"],
        ["ablation"],
        ["curve"],
        ["doctor"],
        ["serve"],
        ["new"],
    ],
)
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
    heavy |= {"yaml", "optuna", "lesionseg.sweep.space"}
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
