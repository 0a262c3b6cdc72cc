"""The registry: the better model as a version, and a champion that only improves by itself."""

import json
import multiprocessing
import os
import re
import shutil
import socket
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.models import Model

from lesionseg.cli import _show_versions
from lesionseg.config import DownloadConfig
from lesionseg.errors import DataError, DownloadError, MissingFileError
from lesionseg.files import sha256
from lesionseg.results.evaluation import TABLES
from lesionseg.results.layout import EvaluationFiles, Results
from lesionseg.tracking import packaging, registry, runs
from lesionseg.tracking.card import MAX_CHARACTERS, read_facts, write_card
from tests.mlflow_contents import edit_json
from tests.raw_data import begin_project
from tests.test_dvc import import_closure, imported_names
from tests.trained_results import ROOT, write_evaluation, write_run

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Of MLflow 3.17's own classes, at the import of mlflow.pyfunc.
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    # MLflow 3.17 compares the columns of the input example with a range.
    pytest.mark.filterwarnings("ignore:Operation with range:DeprecationWarning:mlflow"),
]


@pytest.fixture
def project(tmp_path, empty_store, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    begin_project(tmp_path)
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty_store, tmp_path / "mlruns")
    return tmp_path


@pytest.fixture
def train(project, encoder_state):
    def train(run="train_finetuned", *, val, seed=0):
        return write_run(project, run, val=val, encoder_state=encoder_state, seed=seed)

    return train


def client_of(project):
    return MlflowClient(f"sqlite:///{project}/mlruns/mlflow.db")


def champion_of(project):
    return client_of(project).get_model_version_by_alias(registry.NAME, registry.ALIAS)


@pytest.mark.parametrize("better", ["train_frozen", "train_finetuned"])
def test_the_model_with_the_larger_val_jaccard_is_registered(project, train, better):
    hashes = {
        run: train(run, val=0.9 if run == better else 0.8)
        for run in ("train_frozen", "train_finetuned")
    }
    done = registry.register(Results())
    assert (done.version, done.is_new) == (1, True)
    tags = champion_of(project).tags
    assert (tags["run"], tags["model_sha256"]) == (better, hashes[better])


def test_a_version_knows_its_scores_its_data_and_the_run_that_trained_it(project, train):
    model_sha256 = train(val=0.85)
    write_evaluation(project)
    with runs.training_run("r", params={}, tags={}, id_path=project / "id") as run:
        run.set_tags({"model_sha256": model_sha256})
    registry.register(Results())
    found = champion_of(project)
    assert found.run_id == run.run_id
    expected = {
        "run": "train_finetuned",
        "decoder": "transposed",
        "commit": "abc123",
        "data_sha256": "da7a" * 16,
        "model_sha256": model_sha256,
        "val/jaccard": "0.85",
        "test/jaccard": "0.72",
        "test_own_size/dice_interval": "[0.71, 0.74]",
    }
    assert expected.items() <= found.tags.items()
    outputs = client_of(project).get_run(run.run_id).outputs.model_outputs
    assert found.source.endswith(f"{outputs[0].model_id}/artifacts")


def test_a_version_has_all_that_serving_takes(project, train):
    train(val=0.85)
    registry.register(Results())
    folder = Path(champion_of(project).source.removeprefix("file://"))
    model = Model.load(str(folder))
    assert model.signature.inputs.optional_input_names() == ["image", "array"]
    assert model.signature.outputs.input_names() == [
        "mask",
        "probability",
        "height",
        "width",
        "lesion_fraction",
    ]
    assert json.loads((folder / "serving_input_example.json").read_text())["dataframe_split"]
    assert (folder / "code/lesionseg/tracking/served.py").is_file()
    assert not list(folder.rglob("__pycache__"))
    pins = (folder / "requirements.txt").read_text().splitlines()
    assert [pin.partition("==")[0] for pin in pins] == list(packaging.REQUIREMENTS)
    assert not [pin for pin in pins if "+" in pin]


def test_the_requirements_are_what_serving_imports():
    files = import_closure(ROOT / "src/lesionseg/tracking/served.py")
    names = {name for file in files for name in imported_names(file) if "." not in name}
    expected = {name.replace("pillow", "PIL") for name in packaging.REQUIREMENTS}
    others = {"lesionseg", "pillow_heif", "tifffile"}  # it takes JPEG and PNG only
    assert names - sys.stdlib_module_names - others == expected


def test_the_same_model_gives_no_second_version(project, train):
    train(val=0.85)
    registry.register(Results())
    again = registry.register(Results())
    assert (again.version, again.is_new) == (1, False)
    assert "registered already as version 1" in again.message
    assert len(registry.list_versions()) == 1


@pytest.mark.parametrize(("second", "champion"), [(0.84, 1), (0.85, 1), (0.86, 2)])
def test_the_champion_changes_only_when_val_improves(train, second, champion):
    train(val=0.85)
    registry.register(Results())
    train(val=second, seed=1)
    done = registry.register(Results())
    rows = registry.list_versions()
    assert [row.version for row in rows if row.is_champion] == [champion]
    verb = "is" if champion == 2 else "stays"
    assert f"champion {verb} version {champion}" in done.message
    assert len(done.message.splitlines()) == 1


def test_a_champion_of_other_data_is_named_as_such(project, train):
    train(val=0.99)
    registry.register(Results())
    train(val=0.8, seed=1)
    path = project / "results/train_finetuned/run.json"
    edit_json(path, data_sha256="07e7")
    assert "on other data" in registry.register(Results()).message


def test_registering_again_does_not_take_back_what_was_chosen_by_hand(train):
    train(val=0.8)
    registry.register(Results())
    train(val=0.9, seed=1)
    registry.register(Results())
    assert registry.promote(1) == "champion is version 1, no longer version 2"
    assert "lesionseg champion --set 2" in registry.register(Results()).message
    assert [row.is_champion for row in registry.list_versions()] == [True, False]


def test_an_unknown_version_cannot_be_champion(train):
    with pytest.raises(MissingFileError, match="there is none"):
        registry.promote(1)
    train(val=0.8)
    registry.register(Results())
    with pytest.raises(MissingFileError, match=r"version 7 of lesionseg .* there are 1"):
        registry.promote(7)


def test_the_table_has_a_row_for_each_version(project, train):
    assert "Run: lesionseg register" in _show_versions(registry.list_versions())
    train(val=0.8)
    registry.register(Results())
    model_sha256 = train(val=0.9, seed=1)
    write_evaluation(project)
    registry.register(Results())
    head, first, second = _show_versions(registry.list_versions()).splitlines()
    assert re.split(r"  +", head)[:4] == ["version", "run", "decoder", "val jaccard"]
    assert first.split()[:5] == ["1", "train_finetuned", "transposed", "0.8000", "-"]
    assert second.split()[3:] == ["0.9000", "0.7200", model_sha256[:12], "champion"]


@pytest.mark.parametrize("uri", ["models:/lesionseg@champion", "models:/lesionseg/1"])
def test_a_registered_model_is_fetched_as_it_was(train, uri):
    model_sha256 = train(val=0.8)
    registry.register(Results())
    assert sha256(registry.download_model(uri)) == model_sha256


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        ("models:/lesionseg@nobody", MissingFileError),
        ("models:/lesionseg/7", MissingFileError),
        ("models:/other@champion", MissingFileError),
        ("models:/lesionseg", DataError),
    ],
)
def test_an_address_that_leads_nowhere_is_one_line(train, uri, error):
    train(val=0.8)
    registry.register(Results())
    with pytest.raises(error, match=re.escape(uri)) as caught:
        registry.download_model(uri)
    assert len(str(caught.value).splitlines()) == 1


def test_a_model_that_was_changed_since_is_refused(project, train):
    train(val=0.8)
    registry.register(Results())
    path = registry.download_model("models:/lesionseg@champion")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match="not the model that was registered"):
        registry.download_model("models:/lesionseg@champion")


def test_without_a_training_the_next_step_is_said(project):
    with pytest.raises(MissingFileError, match="dvc repro train_finetuned"):
        registry.register(Results())


def test_metrics_without_their_model_are_no_model(project, train):
    # git has the metrics, DVC the model.
    train(val=0.8)
    (project / "results/train_finetuned/model.pt").unlink()
    with pytest.raises(MissingFileError, match=r"model\.pt is missing"):
        registry.register(Results())


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        (
            "metrics.json",
            "val",
            {"jaccard": float("nan")},
            "val.jaccard must be a number, got nan",
        ),
        ("metrics.json", "val", {"jaccard": 0.8}, "has no val.loss"),
        ("metrics.json", "val", 1, "val must be an object, got 1"),
        ("run.json", "model_sha256", "other", "is about. Run:"),
        ("run.json", "num_images", "many", "num_images must be a whole number, got 'many'"),
        ("run.json", "params", {}, "of train_finetuned has no params.download.source"),
        ("run.json", "params", None, "params must be an object, got None"),
    ],
)
def test_broken_results_are_refused_before_anything_is_registered(
    project, train, file, key, value, message
):
    train(val=0.8)
    path = project / "results/train_finetuned" / file
    edit_json(path, **{key: value})
    with pytest.raises(DataError, match=f"{file}.* {message}.* dvc repro -sf train_") as caught:
        registry.register(Results())
    assert len(str(caught.value).splitlines()) == 1
    assert registry.list_versions() == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("threshold", None, "comparison.json: threshold must be a number"),
        ("models", [], "comparison.json: models must be an object"),
        ("confidence", "high", "confidence must be a number, got 'high'"),
        ("test_own_size", {}, "has no test_own_size.jaccard"),
        ("test", {"jaccard": 1}, "test.jaccard must be an object, got 1"),
        ("format", 1, r"another version of this program \(format 1, this one reads 2\)"),
    ],
)
def test_a_foreign_evaluation_is_named_and_not_the_training(project, train, key, value, message):
    train(val=0.8)
    write_evaluation(project)
    path = project / "results/evaluate/comparison.json"
    edit_json(path, **{key: value})
    with pytest.raises(
        DataError, match=f"{message}.* dvc repro -sf evaluate && dvc repro$"
    ) as caught:
        registry.register(Results())
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "id,jaccard\n1,0.5\n",
            "strata.csv has no column stratum.* dvc repro -sf evaluate && dvc repro$",
        ),
        ("\0" * 200_000, "strata.csv has no column stratum|is not CSV"),
        (
            f"{','.join(TABLES['strata'].columns)}\nall,all,20,0.5,0.5,0.1,0.1,0,,\n",
            "strata.csv is of another evaluation than .*comparison.json. Run: dvc checkout",
        ),
    ],
)
def test_strata_that_are_not_of_the_comparison_are_refused(project, train, text, message):
    train(val=0.8)
    write_evaluation(project)
    (project / "results/evaluate/strata.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        registry.register(Results())


def test_scores_from_git_beside_another_training_of_dvcs_cache_are_refused(project, train):
    train(val=0.8)
    path = project / "results/train_finetuned/metrics.json"
    other = path.read_text().replace("0.8,", "0.9,", 1)
    assert other != path.read_text()
    path.write_text(other)
    with pytest.raises(DataError, match=r"metrics.json is of another training .*dvc checkout"):
        registry.register(Results())


def test_what_only_a_later_version_can_tell_of_is_left_to_it(project, train):
    train(val=0.8)
    with pytest.raises(DataError, match=r"download\.source is 'isic2030', which this version"):
        write_card_with(project, {"download.source": "isic2030"})


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"augment.padding": "reflection"}, "views: horizontal_flip 0.5, padding reflection. "),
        ({"augment.horizontal_flip": 0.0}, "views: none. "),
        ({"augment.mirror": True}, "horizontal_flip 0.5, padding border, mirror True. "),
        ({"loss.dice": 0.25}, "Loss: bce 1, dice 0.25. "),
        ({"download.weights": "none"}, "start: `none`"),
        ({"download.weights": "none"}, "Licence of the code: MIT; of the images: CC-0.\n"),
        ({"download.weights": "imagenet"}, "torchvision's weights, learnt on ImageNet"),
        ({"download.weights": "mine.pth"}, "weights that may have terms of their own"),
        ({"encoder_lr": 0.0}, "MobileNetV2 encoder (frozen)"),
    ],
)
def test_the_card_tells_any_parameter_as_it_was(project, train, params, expected):
    train(val=0.8)
    assert expected in write_card_with(project, params)


def test_the_card_tells_of_every_source_there_is(project, train):
    train(val=0.8)
    choices = {key.name: key.metadata for key in fields(DownloadConfig)}["source"]["choices"]
    for source in choices:
        assert "## Data" in write_card_with(project, {"download.source": source})
    card = write_card_with(project, {"download.source": "isic2016, ph2"})
    assert "ISIC 2016 challenge" in card
    assert "PH2 (Mendonca" in card


@pytest.mark.parametrize(
    ("commit", "expected"),
    [
        ("abc", "Trained at commit `abc`. "),
        ("abc-dirty", "Trained at commit `abc` with changes in no commit. "),
        ("unknown", "Trained at an unknown commit. "),
    ],
)
def test_the_card_tells_whether_a_commit_has_the_code(project, train, commit, expected):
    train(val=0.8)
    assert expected in write_card_with(project, commit=commit)


def test_the_registry_knows_the_threshold_of_a_model(project, train):
    train(val=0.85)
    registry.register(Results())
    assert registry.read_threshold("models:/lesionseg/1") == 0.5
    train(val=0.86, seed=1)
    write_evaluation(project, threshold=0.4)
    registry.register(Results())
    assert registry.read_threshold("models:/lesionseg@champion") == 0.4
    with pytest.raises(DataError, match=r"is no address of a registered model"):
        registry.read_threshold("models:/lesionseg")


def test_the_card_says_where_its_threshold_comes_from(project, train):
    train(val=0.8)
    assert "where it is above 0.5 (the default; it was not evaluated)." in write_card_with(project)
    write_evaluation(project, threshold=0.4)
    assert "where it is above 0.4." in write_card_with(project)


def test_the_card_tells_of_external_test_sets_scored_with_this_model(project, train):
    train(val=0.8)
    write_evaluation(project)
    files = Results(project / "results").evaluation
    external = EvaluationFiles(files.external / "ph2")
    external.folder.mkdir(parents=True)
    shutil.copy(files.comparison, external.comparison)
    row = "| external test set ph2, 20 images, at 64 px | 0.720 (0.710 to 0.740) |"
    assert row in write_card_with(project)
    train(val=0.8, seed=1)  # what was scored is another model now
    assert "ph2" not in write_card_with(project)


def write_card_with(project, params=None, **details):
    """The card of the trained model, some things in its run.json being others."""
    path = project / "results/train_finetuned/run.json"
    old = json.loads(path.read_text())["params"]
    edit_json(path, params=old | (params or {}), **details)
    return write_card(read_facts(Results(project / "results")))


def test_the_scores_of_another_model_are_not_those_of_this_one(project, train):
    train(val=0.8)
    write_evaluation(project)
    train(val=0.8, seed=1)
    registry.register(Results())
    (row,) = registry.list_versions()
    assert row.test_jaccard is None
    assert "Not evaluated on test images" in champion_of(project).description


def test_the_card_tells_use_data_scores_and_failures(project, train):
    train(val=0.85)
    write_evaluation(project)
    registry.register(Results())
    card = champion_of(project).description
    for text in (
        "**Not for diagnosis.**",
        "ISIC 2016",
        "CC-0",
        "100 images to train on",
        "| val (chose the epoch) | 0.850 | 0.800 | 0.700 | 0.900 |",
        "| test, at 64 px | 0.720 (0.710 to 0.740) |",
        "size small: jaccard 0.620, 25% of the 10 images below 0.65",
        "Too few test images to tell: skin tone brown (3)",
        "Loss: bce 1. Random views: horizontal_flip 0.5, padding border.",
    ):
        assert text in card
    assert len(card) < MAX_CHARACTERS
    folder = Path(champion_of(project).source.removeprefix("file://"))
    assert (folder / "model_card.md").read_text() == card


@pytest.mark.parametrize(
    ("source", "text"), [("phantom", "Synthetic phantoms"), ("folder", "a folder, `mine`")]
)
def test_the_card_is_about_the_data_of_the_training_not_of_params_yaml(
    project, train, source, text
):
    train(val=0.85)
    assert not (project / "params.yaml").read_text()  # nothing of it is asked
    params = {"download.source": source, "download.folder": "mine", "download.weights": "none"}
    card = write_card_with(project, params)
    assert text in card
    assert "at the\nstart: `none`" in card
    assert "ISIC" not in card


def test_the_card_tells_of_every_source_that_was_joined(project, train):
    train(val=0.85)
    params = {"download.source": "folder, isic2018", "download.folder": "mine"}
    card = write_card_with(project, params)
    assert "a folder, `mine`" in card
    assert "ISIC 2018 challenge" in card
    assert "their owner's; of the images: CC BY-NC 4.0" in card


def test_registering_leaves_the_process_with_the_store_it_had(project, train, monkeypatch):
    train(val=0.8)
    registry.register(Results())
    assert "MLFLOW_TRACKING_URI" not in os.environ
    uri = f"sqlite:///{project}/mlruns/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    train(val=0.9, seed=1)
    registry.register(Results())
    assert os.environ["MLFLOW_TRACKING_URI"] == uri


def test_a_server_that_is_away_is_one_line(project, train, monkeypatch):
    train(val=0.8)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(DownloadError, match=f"{uri} cannot be used.* same command") as caught:
            registry.register(Results())
    assert len(str(caught.value).splitlines()) == 1


def register_from(project: str, folder: str) -> str:
    os.environ["DVC_ROOT"] = project
    return registry.register(Results(Path(folder))).message


def test_processes_that_register_at_once_lose_nothing(project, train):
    folders = []
    for seed, val in enumerate((0.8, 0.9)):
        train(val=val, seed=seed)
        folders.append(str((project / "results").rename(project / f"results{seed}")))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # loads MLflow once for all of them
    with context.Pool(2) as pool:
        pool.starmap(register_from, [(str(project), f) for f in (*folders, folders[1])])
    rows = registry.list_versions()
    assert sorted(row.val_jaccard for row in rows) == [0.8, 0.9]
    assert [row.val_jaccard for row in rows if row.is_champion] == [0.9]


def test_a_registered_model_follows_its_project_when_that_is_moved(project, train, monkeypatch):
    model_sha256 = train(val=0.8)
    registry.register(Results())
    moved = project.rename(project.with_name(f"{project.name} moved %20"))
    monkeypatch.setenv("DVC_ROOT", str(moved))
    monkeypatch.chdir(moved)
    path = registry.download_model(f"models:/{registry.NAME}@{registry.ALIAS}")
    assert path.is_relative_to(moved / "mlruns/artifacts")
    assert sha256(path) == model_sha256
