"""The real `dvc repro`, end to end, on a handful of phantoms.

DVC and the stages start as processes of their own where that is the point. Elsewhere the tests call
what `python -m` would, in a copy of the finished project: a start takes seconds.
"""

import base64
import csv
import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from dvc.api import DVCFileSystem
from mlflow import MlflowClient
from PIL import Image

from experiments.demo import ROOT, copy_pipeline
from lesionseg import cli
from lesionseg.config import load_config, override, read_yaml
from lesionseg.curve.scores import read_measured
from lesionseg.errors import DataError, MissingFileError
from lesionseg.evaluation.evaluate import check_trainings
from lesionseg.files import sha256
from lesionseg.processes import child_environment
from lesionseg.results.evaluation import Comparison, ModelScores
from lesionseg.results.layout import RUNS, EvaluationFiles, Results
from lesionseg.sweep.finished import Experiment
from lesionseg.tracking import store
from lesionseg.training import run as training_run
from lesionseg.training.checkpoints import delete_committed
from stages import evaluate, preprocess, report, train
from tests.damage import kill_at_second_checkpoint
from tests.mlflow_contents import client_of, contents, runs_in
from tests.ports import free_port
from tests.raw_data import phantoms
from tests.trained_results import write_evaluation, write_run

pytestmark = [
    # As in the processes: another number of threads rounds sums in another way.
    pytest.mark.usefixtures("one_thread"),
    # Of MLflow 3.17's own classes, at the import of mlflow.pyfunc.
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    # MLflow 3.17 compares the columns of the input example with a range.
    pytest.mark.filterwarnings("ignore:Operation with range:DeprecationWarning:mlflow"),
]

PARAMS = {
    **phantoms(num_train=20, num_test=6),
    "train.epochs": 4,
    "train.batch_size": 4,
    "train.device": "cpu",
    "train.reproducible": "machine",  # what is computed here must be what processes compute
    "train_finetuned.encoder_lr": 0.001,
    "evaluate.num_resamples": 200,
}
ENVIRONMENT = {
    **child_environment(),
    "OMP_NUM_THREADS": "1",
}


def set_params(project: Path, values: dict[str, object]) -> None:
    path = project / "params.yaml"
    path.write_text(override(read_yaml(path), values))


def dvc(project: Path, *arguments: str) -> str:
    """Standard output and error of a dvc command that succeeds."""
    done = subprocess.run(
        ["dvc", *arguments],
        cwd=project,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def stages_run(output: str) -> list[str]:
    return re.findall(r"Running stage '(\w+)'", output)


def trainings_of(project: Path) -> list:
    """The MLflow runs of a project's trainings."""
    return runs_in(client_of(project), "training")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project that has run to its report."""
    project = tmp_path_factory.mktemp("finished") / "project"
    copy_pipeline(project)
    set_params(project, PARAMS)
    dvc(project, "init", "--no-scm", "--quiet")
    stages = ["download", "preprocess", "external", *RUNS, "evaluate", "report"]
    output = dvc(project, "repro")
    assert stages_run(output) == stages
    (project.parent / "output").write_text(output)
    return project


@pytest.fixture
def copy(project, tmp_path) -> Path:
    """A copy of the finished project."""
    return Path(shutil.copytree(project, tmp_path / "copy"))


@pytest.fixture
def untrained(project, tmp_path, empty_store) -> Path:
    """A copy of the project's data, code and DVC cache but for its runs, and an empty store."""
    copy = tmp_path / "untrained"
    (copy / "mlruns").mkdir(parents=True)
    shutil.copy(empty_store, copy / "mlruns")
    for name in ("params.yaml", "dvc.yaml", ".dvcignore"):
        shutil.copy(project / name, copy)
    for name in (".dvc", "stages", "src", "data"):
        shutil.copytree(project / name, copy / name)
    shutil.rmtree(copy / ".dvc/cache/runs")
    return copy


@pytest.fixture
def enter(monkeypatch):
    """Makes a project the working directory, as DVC does for its stages, each a new process."""

    def enter(project: Path) -> None:
        monkeypatch.setattr(store, "_stores", {})
        monkeypatch.chdir(project)
        monkeypatch.setenv("DVC_ROOT", str(project))
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    return enter


def test_a_second_repro_runs_nothing(project):
    output = dvc(project, "repro")
    assert stages_run(output) == []
    assert "Data and pipelines are up to date." in output


def test_a_killed_training_goes_on_and_ends_in_the_same_bytes(untrained, project, tmp_path):
    kill_at_second_checkpoint(tmp_path, with_group=True)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    killed = subprocess.run(
        ["dvc", "repro", "-s", "train_finetuned"],
        cwd=untrained,
        env={**ENVIRONMENT, "PYTHONPATH": path},
        start_new_session=True,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (untrained / "results/train_finetuned/model.pt").exists()
    output = dvc(untrained, "repro", "-s", "train_finetuned")
    assert "goes on after epoch 1" in output
    for name in ("model.pt", "history.csv", "metrics.json"):
        path = f"results/train_finetuned/{name}"
        assert sha256(untrained / path) == sha256(project / path)
    (run,) = trainings_of(untrained)
    assert run.info.status == "FINISHED"
    (parent,) = runs_in(client_of(untrained), "pipeline run")
    assert parent.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    history = client_of(untrained).get_metric_history(run.info.run_id, "val/jaccard")
    assert {metric.step for metric in history} == {1, 2, 3, 4}


def test_more_seeds_leave_the_first_model_as_it_is_and_are_kept_apart(untrained, project, enter):
    copy = untrained
    set_params(copy, {"train.num_seeds": 2})
    enter(copy)
    for name in RUNS:
        train.main([name])
    evaluate.main([])
    for name in RUNS:
        first, second = (copy / f"results/{name}{folder}" for folder in ("", "/seeds/1"))
        assert sha256(first / "model.pt") == sha256(project / f"results/{name}/model.pt")
        assert sha256(first / "model.pt") != sha256(second / "model.pt")
        best = [json.loads((folder / "metrics.json").read_text()) for folder in (first, second)]
        scores = pd.read_csv(first / "seeds/scores.csv")
        assert scores["seed"].tolist() == [0, 1]
        assert scores["val_jaccard"].tolist() == [record["val"]["jaccard"] for record in best]
    seeds = pd.read_csv(copy / "results/evaluate/seeds.csv")
    assert len(seeds) == len(RUNS) * 2 * 2
    with_one, with_two = (
        json.loads((folder / "results/evaluate/comparison.json").read_text())
        for folder in (project, copy)
    )
    variants = pd.read_csv(copy / "results/evaluate/variants.csv")
    assert variants.value_counts("variant").to_dict() == {"single": 4, "ensemble": 4}
    spread = with_two.pop("seeds")
    assert with_one.pop("seeds") is None
    assert with_two == with_one
    means = seeds[seeds["scope"] == "test"].groupby("run")["jaccard"].mean()
    for name in RUNS:
        assert spread["test"]["jaccard"][name]["mean"] == pytest.approx(means[name])
    runs = sorted(run.info.run_name for run in trainings_of(copy))
    labels = ("fine-tuned", "frozen")
    assert runs == [f"pyramid · {label} · seed {seed}" for label in labels for seed in (0, 1)]
    assert all("test/jaccard" in run.data.metrics for run in trainings_of(copy))
    (parent,) = runs_in(client_of(copy), "pipeline run")
    assert parent.info.run_name == "pyramid · frozen vs fine-tuned · seeds 0 to 1"
    assert {run.data.tags["mlflow.parentRunId"] for run in trainings_of(copy)} == {
        parent.info.run_id
    }
    mean = spread["test"]["jaccard"]["difference"]["mean"]
    assert parent.data.metrics["seeds/difference/jaccard"] == pytest.approx(mean)


# The scorer calls pandas in a way that pandas 3.1 deprecates.
@pytest.mark.filterwarnings("ignore:The inplace keyword in Series.rename:DeprecationWarning")
@pytest.mark.parametrize("name", RUNS)
def test_the_official_scorer_reads_the_written_masks_and_agrees(project, tmp_path, name):
    official = pytest.importorskip(
        "isic_challenge_scoring.segmentation", reason="the official scorer needs Python < 3.13"
    )
    for path in (project / "data/raw/test/masks").iterdir():  # it knows no phantoms
        shutil.copyfile(path, tmp_path / path.name.replace("PHANTOM", "ISIC"))
    predictions = project / f"results/evaluate/masks/{name}"
    score = official.SegmentationScore.from_dir(tmp_path, predictions)
    ours = json.loads((project / f"results/evaluate/{name}.json").read_text())["test_own_size"]
    theirs = score.to_dict()["macro_average"]
    assert len(theirs) == 6
    assert {metric: ours[metric] for metric in theirs} == pytest.approx(theirs, abs=1e-9)


def test_repro_ends_with_the_comparison_as_a_table(project):
    table = Comparison.read(Results(project / "results").evaluation).lines()
    shown, _, rest = (project.parent / "output").read_text().partition("\n".join(table))
    assert "Running stage 'report'" in shown
    assert "results/report/report.html" in rest
    assert "Running stage" not in rest


def test_only_the_report_runs_again_when_only_its_parameters_change(copy):
    set_params(copy, {"report.title": "Another title"})
    assert stages_run(dvc(copy, "repro", "--dry")) == ["report"]


def test_with_pull_a_stage_gets_the_rest_of_a_folder_that_is_there_in_part(copy, tmp_path):
    """As on a node of a cluster, where DVC has brought what the trainings read."""
    dvc(copy, "remote", "add", "--default", "team", str(tmp_path / "remote"))
    dvc(copy, "push")
    shutil.rmtree(copy / ".dvc/cache")
    for name in ("val", "test"):
        shutil.rmtree(copy / "data/processed" / name)
    (copy / "data/processed/leaks.csv").unlink()
    set_params(copy, {"report.title": "Another title"})
    assert stages_run(dvc(copy, "repro", "--pull", "--allow-missing")) == ["report"]


def test_another_external_test_set_trains_nothing_and_leaves_the_scores_on_test(copy):
    known = (copy / "results/evaluate/comparison.json").read_bytes()
    another = {"name": "third_clinic", "source": "phantom", "folder": ""}
    set_params(copy, {"external": [*read_yaml(copy / "params.yaml")["external"], another]})
    assert stages_run(dvc(copy, "repro")) == ["external", "evaluate", "report"]
    assert (copy / "results/evaluate/comparison.json").read_bytes() == known
    folders = (copy / "results/evaluate/external").iterdir()
    assert sorted(folder.name for folder in folders) == ["another-clinic", "third_clinic"]
    runs = {run.data.tags["dvc_stage"]: run for run in trainings_of(copy)}
    (parent,) = runs_in(client_of(copy), "pipeline run")
    for name in ("another-clinic", "third_clinic"):
        files = EvaluationFiles(copy / "results/evaluate/external" / name)
        compared = Comparison.read(files).test["jaccard"]
        for run in RUNS:
            score = ModelScores.read(files, run).test["jaccard"]
            assert runs[run].data.metrics[f"external/{name}/jaccard"] == pytest.approx(score)
        difference = parent.data.metrics[f"external/{name}/difference/jaccard"]
        assert difference == pytest.approx(compared.difference)
    page = (copy / "results/report/report.html").read_text()
    assert "third_clinic <small>6 images, source: phantom" in page


def test_each_training_is_one_mlflow_run_with_all_that_belongs_to_it(project):
    runs = {run.data.tags["dvc_stage"]: run for run in trainings_of(project)}
    assert sorted(runs) == sorted(RUNS)
    assert len(trainings_of(project)) == 2
    for name, run in runs.items():
        assert run.info.status == "FINISHED"
        assert run.data.params["train.lr"] == "0.002"
        assert (
            float(run.data.params["encoder_lr"])
            == {"train_frozen": 0, "train_finetuned": 0.001}[name]
        )
        expected = json.loads((project / f"results/evaluate/{name}.json").read_text())
        for metric in ("test/jaccard", "test/dice", "test_own_size/jaccard"):
            scope, score = metric.split("/")
            assert run.data.metrics[metric] == pytest.approx(expected[scope][score])
        tags = run.data.tags
        assert tags["dvc_stage"] == name
        assert {"commit", "dvc_experiment", "data_sha256", "device", "version.torch"} <= set(tags)
        assert tags["model_sha256"] == sha256(project / f"results/{name}/model.pt")
        artifacts = project / "mlruns/artifacts" / run.info.run_id / "artifacts"
        names = {path.name for path in artifacts.iterdir()}
        assert names == {"model.pt", "history.csv", "metrics.json", "run.json"}


def test_a_repro_is_one_pipeline_run_with_both_trainings_the_answer_and_the_report(project):
    (run,) = runs_in(client_of(project), "pipeline run")
    assert run.info.run_name == "pyramid · frozen vs fine-tuned · seed 0"
    assert run.info.status == "FINISHED"
    parents = {one.data.tags["mlflow.parentRunId"] for one in trainings_of(project)}
    assert parents == {run.info.run_id}
    comparison = json.loads((project / "results/evaluate/comparison.json").read_text())
    result = comparison["test"]["jaccard"]
    expected = [result["difference"], *result["interval"], result["train_frozen"]]
    names = [f"difference/jaccard{end}" for end in ("", "_low", "_high")]
    assert [run.data.metrics[name] for name in [*names, "frozen/jaccard"]] == expected
    artifacts = project / "mlruns/artifacts" / run.info.run_id / "artifacts"
    report = "report/report.html"
    assert (artifacts / report).read_bytes() == (project / "results" / report).read_bytes()
    assert len(list((artifacts / "overlays").iterdir())) == 3
    seconds = [(one.info.end_time - one.info.start_time) / 1000 for one in trainings_of(project)]
    assert run.info.end_time - run.info.start_time > 1000 * max(seconds)


def test_a_replay_of_the_files_gives_the_runs_that_the_pipeline_gave(copy, project, enter):
    shutil.rmtree(copy / "mlruns")
    enter(copy)
    assert cli.main(["replay"]) == 0
    expected = contents(client_of(project))
    assert contents(client_of(copy)) == expected
    assert cli.main(["replay"]) == 0
    assert contents(client_of(copy)) == expected


def test_a_server_that_dies_during_training_costs_nothing(
    untrained, project, enter, empty_store, tmp_path, monkeypatch, caplog
):
    folder = tmp_path / "store"
    folder.mkdir()
    shutil.copy(empty_store, folder / "server.db")
    uri = f"http://127.0.0.1:{free_port()}"
    enter(untrained)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    server = start_server(folder, uri)
    save_checkpoint = training_run.save_checkpoint

    def save_and_stop_server(*arguments: object) -> None:
        save_checkpoint(*arguments)
        if server.poll() is None:
            stop(server)

    monkeypatch.setattr(training_run, "save_checkpoint", save_and_stop_server)
    with caplog.at_level(logging.WARNING, logger="lesionseg"):
        train.main(["train_frozen"])
    assert server.poll() is not None
    assert caplog.text.count("MLflow is not available") in (1, 2)  # during the training, at its end
    path = "results/train_frozen/model.pt"
    assert sha256(untrained / path) == sha256(project / path)
    server = start_server(folder, uri)
    store._stores.clear()  # as in the next process
    try:
        assert cli.main(["replay"]) == 0
        found = contents(MlflowClient(uri))["train_frozen"]
    finally:
        stop(server)
    expected = contents(client_of(project))["train_frozen"]
    history = {key: values for key, values in expected["metrics"].items() if "val/" in key}
    assert {key: found["metrics"][key] for key in history} == history
    assert found["status"] == "FINISHED"


def start_server(folder: Path, uri: str) -> subprocess.Popen:
    """An MLflow server that answers, without the processes that work off MLflow's own jobs."""
    log_path = folder / "server.log"
    with log_path.open("w") as log:
        server = subprocess.Popen(
            [
                "mlflow",
                "server",
                "--host",
                "127.0.0.1",
                "--port",
                uri.rpartition(":")[2],
                "--backend-store-uri",
                f"sqlite:///{folder}/server.db",
                "--workers",
                "1",
                "--artifacts-destination",
                str(folder / "artifacts"),
            ],
            env={**ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    wait_for(f"{uri}/health", server, log_path)
    return server


def stop(server: subprocess.Popen) -> None:
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def test_mlflow_has_the_metrics_of_every_epoch(project):
    client = MlflowClient(f"sqlite:///{project}/mlruns/mlflow.db")
    for run in trainings_of(project):
        with (project / f"results/{run.data.tags['dvc_stage']}/history.csv").open() as stream:
            expected = [float(row["val_jaccard"]) for row in csv.DictReader(stream)]
        history = client.get_metric_history(run.info.run_id, "val/jaccard")
        assert [metric.value for metric in sorted(history, key=lambda m: m.step)] == expected


def test_both_models_start_from_the_same_encoder_and_only_one_of_them_changes_it(project):
    encoder = torch.load(project / "data/raw/encoder.pth", weights_only=True)
    states = {
        name: torch.load(project / f"results/{name}/model.pt", weights_only=True)["state"]
        for name in RUNS
    }
    same = {
        name: all(torch.equal(state[f"encoder.features.{key}"], encoder[key]) for key in encoder)
        for name, state in states.items()
    }
    assert same == {"train_frozen": True, "train_finetuned": False}


def test_dvc_shows_metrics_and_plots(project, tmp_path):
    lines = dvc(project, "metrics", "show").splitlines()
    assert max(map(len, lines)) <= 100
    shown = dict(zip(*(line.split() for line in lines), strict=True))
    for column, run in (("frozen", "train_frozen"), ("tuned", "train_finetuned")):
        scores = json.loads((project / f"results/evaluate/{run}.json").read_text())["test"]
        for metric in ("jaccard", "dice"):
            assert float(shown[f"{column}.{metric}"]) == pytest.approx(scores[metric], abs=1e-5)
    best = json.loads((project / "results/train_finetuned/metrics.json").read_text())
    assert float(shown["tuned.val"]) == pytest.approx(best["val"]["jaccard"], abs=1e-5)
    dvc(project, "plots", "show", "--out", str(tmp_path / "plots"))
    page = (tmp_path / "plots/index.html").read_text()
    assert "val_jaccard" in page


def test_the_learning_curve_reads_what_the_pipeline_wrote(project, tmp_path):
    measured = read_measured(Experiment(DVCFileSystem(repo=project), tmp_path))
    [external] = load_config(project / "params.yaml").external
    assert list(measured.num_images) == ["test", external.name]
    assert measured.num_images["test"] == 6
    results = Results(project / "results")
    files = {"test": results.evaluation, **results.evaluation.externals()}
    assert [(row["set"], row["run"]) for row in measured.rows] == [
        (name, run) for name in files for run in RUNS
    ]
    for row in measured.rows:
        compared = Comparison.read(files[row["set"]])
        assert row["jaccard"] == compared.test["jaccard"].mean(row["run"])
        assert row["jaccard_own_size"] == compared.test_own_size["jaccard"].mean(row["run"])
        assert (row["seed"], row["num_images"]) == (0, measured.setting.num_train)
    assert (measured.setting.num_train, measured.setting.num_val) == (17, 3)
    assert measured.setting.num_steps == 4 * 5  # epochs of 17 images in batches of 4
    assert measured.setting.source == "phantom"


def test_the_report_is_there_and_holds_the_measured_difference(project):
    page = (project / "results/report/report.html").read_text()
    comparison = json.loads((project / "results/evaluate/comparison.json").read_text())
    assert f"{comparison['test']['jaccard']['difference']:+.3f}" in page


def test_a_mistake_in_a_parameter_stops_before_any_work_with_one_line(copy):
    path = copy / "params.yaml"
    path.write_text(path.read_text().replace("lr: 0.002", "lr: 1e-4x"))
    done = subprocess.run(
        [sys.executable, "-m", "stages.preprocess"],  # of all stages the fastest to start
        cwd=copy,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == "error: params.yaml: train: lr must be a number above 0, got '1e-4x'\n"


@pytest.mark.parametrize(
    ("stage", "arguments"),
    [(preprocess, []), (train, ["train_frozen"]), (evaluate, []), (report, [])],
    ids=["preprocess", "train", "evaluate", "report"],
)
def test_a_stage_without_its_input_says_in_one_line_which_stage_to_run(
    tmp_path, enter, stage, arguments
):
    for name in ("params.yaml", "dvc.yaml"):  # what makes a folder a project
        shutil.copyfile(ROOT / name, tmp_path / name)
    enter(tmp_path)
    with pytest.raises(MissingFileError) as caught:
        stage.main(arguments)
    assert re.fullmatch(r".* is missing\. Run: dvc repro .*", str(caught.value))


def test_a_training_whose_commit_failed_is_not_trained_again(copy, project, enter, caplog):
    # As DVC leaves a project whose cache it could not write: no lock file, no outputs.
    (kept,) = (copy / ".checkpoints").glob("*")  # of the last training; of the first DVC has all
    assert kept.name.startswith("train_finetuned-")
    shutil.rmtree(copy / "results/train_finetuned")
    (copy / "dvc.lock").unlink()
    shutil.rmtree(copy / ".dvc/cache/runs")
    enter(copy)
    with caplog.at_level(logging.INFO, logger="lesionseg"):
        train.main(["train_finetuned"])
    assert "train_finetuned is trained already after epoch 4" in caplog.text
    for name in ("model.pt", "history.csv", "metrics.json"):
        path = f"results/train_finetuned/{name}"
        assert sha256(copy / path) == sha256(project / path)
    assert len(trainings_of(copy)) == len(trainings_of(project))
    assert {run.info.status for run in trainings_of(copy)} == {"FINISHED"}


def test_checkpoints_are_kept_while_the_cache_lacks_an_output(copy, enter):
    (copy / "dvc.lock").unlink()  # as after an experiment in a workspace of its own
    enter(copy)
    root = copy / ".checkpoints"
    md5 = (next(root.glob("*")) / "finished").read_text()
    cached = copy / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    cached.rename(copy / "aside")
    delete_committed(root)
    assert len(list(root.iterdir())) == 1
    (copy / "aside").rename(cached)
    delete_committed(root)
    assert list(root.iterdir()) == []


def test_a_model_of_other_parameters_or_of_another_training_is_not_evaluated(project, tmp_path):
    config = load_config(project / "params.yaml")
    results = Results(tmp_path)
    for run in RUNS:
        shutil.copytree(project / "results" / run, tmp_path / run)
    check_trainings(config, results=results)
    other = replace(config, train=replace(config.train, epochs=5))
    with pytest.raises(DataError) as caught:
        check_trainings(other, results=results)
    assert str(caught.value) == (
        f"{tmp_path}/train_frozen/model.pt was trained with train.epochs 4, and params.yaml says "
        "5. Run: dvc repro -sf train_frozen && dvc repro"
    )
    shutil.copy(tmp_path / "train_frozen/model.pt", tmp_path / "train_finetuned")
    with pytest.raises(DataError) as caught:
        check_trainings(config, results=results)
    path = tmp_path / "train_finetuned/model.pt"
    assert str(caught.value).startswith(f"{path} is not the model that run.json is about")
    shutil.copy(tmp_path / "train_frozen/run.json", tmp_path / "train_finetuned")
    with pytest.raises(DataError, match=r"is about train_frozen, not about train_finetuned\. Run:"):
        check_trainings(config, results=results)


def test_what_the_pipeline_wrote_is_registered_served_and_predicted_with(copy, enter, capsys):
    def lesionseg(*arguments: str) -> str:
        """Standard output of a lesionseg command that succeeds."""
        capsys.readouterr()
        assert cli.main(arguments) == 0
        return capsys.readouterr().out

    def predict(images: list[Path], *arguments: str) -> dict[str, str]:
        """Hashes of the masks and probabilities that `lesionseg predict` writes."""
        lesionseg("predict", *map(str, images), "--probability", *arguments)
        out_dir = Path(arguments[arguments.index("--out") + 1])
        return {path.name: sha256(path) for path in out_dir.glob("*.png")}

    enter(copy)
    # The card is about what was trained, whatever params.yaml says by now.
    set_params(copy, {"download.source": "isic2016", "download.weights": "imagenet"})
    assert "is now version 1; champion is version 1" in lesionseg("register")
    assert "is registered already as version 1" in lesionseg("register")
    assert re.search(r"^1 .* champion$", lesionseg("champion"), flags=re.MULTILINE)
    assert "champion is version 1" in lesionseg("champion", "--set", "1")
    client = client_of(copy)
    version = client.get_model_version_by_alias("lesionseg", "champion")
    assert "Synthetic phantoms, no photographs" in version.description
    assert "ISIC" not in version.description
    assert "start: `none`" in version.description
    assert "17 images to train on" in version.description
    photographs = sorted((copy / "data/raw/test/images").iterdir())[:3]
    model = str(copy / "results" / version.tags["run"] / "model.pt")
    champion = "models:/lesionseg@champion"
    alone = predict(photographs[:1], "--model", model, "--out", "alone")
    expected = predict(photographs, "--model", model, "--out", "file", "--batch-size", "1")
    same = predict(photographs, "--model", champion, "--out", "same", "--batch-size", "1")
    assert same == expected
    assert {name: expected[name] for name in alone} == alone
    with served(copy) as url:
        assert ask(url, photographs[:1]) == ask(url, photographs)[:1]
        for photograph, given in zip(photographs, ask(url, photographs), strict=True):
            for key, ending in (("mask", "segmentation"), ("probability", "probability")):
                answer = pixels(io.BytesIO(base64.b64decode(given[key])))
                written = pixels(copy / "file" / f"{photograph.stem}_{ending}.png")
                assert answer.dtype == written.dtype
                assert (answer == written).all()


def test_the_notebook_runs_on_what_the_pipeline_wrote(project, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="make setup installs it")
    pytest.importorskip("ipykernel", reason="make setup installs it")
    import nbformat

    monkeypatch.setenv("LESIONSEG_ROOT", str(project))
    monkeypatch.setenv("PYTHONPATH", str(project / "src"))
    notebook = nbformat.read(ROOT / "notebooks/answer.ipynb", as_version=4)
    folder = {"metadata": {"path": str(ROOT / "notebooks")}}
    nbclient.NotebookClient(notebook, timeout=300, resources=folder).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    assert "\n".join(Comparison.read(Results(project / "results").evaluation).lines()) in shown
    drawn = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(drawn) == 4
    tables = "".join(output.get("data", {}).get("text/plain", "") for output in outputs)
    for name in ("frozen vs fine-tuned", "· frozen ·", "· fine-tuned ·"):  # as MLflow has them
        assert name in tables


def test_the_results_that_other_tests_make_up_hold_what_the_pipeline_writes(project, tmp_path):
    encoder = torch.load(project / "data/raw/encoder.pth", weights_only=True)
    write_run(tmp_path, "train_finetuned", val=0.8, encoder_state=encoder)
    write_evaluation(tmp_path)
    files = [f"train_finetuned/{name}" for name in ("run.json", "metrics.json")]
    for file in (*files, "evaluate/comparison.json"):
        real, made_up = (
            kinds(json.loads((root / "results" / file).read_text())) for root in (project, tmp_path)
        )
        assert made_up.items() <= real.items()
        if "evaluate" not in file:
            wanted = {key for key in real if not key.startswith("versions.")}
            assert wanted <= made_up.keys()
    for file in ("train_finetuned/history.csv", "evaluate/strata.csv"):
        real, made_up = (pd.read_csv(root / "results" / file) for root in (project, tmp_path))
        assert set(made_up.columns) <= set(real.columns)


def kinds(record: dict, within: str = "") -> dict[str, type]:
    """The type of each value in a JSON object, by its keys."""
    found = {}
    for key, value in record.items():
        nested = kinds(value, f"{within}{key}.") if isinstance(value, dict) else {}
        found |= nested or {f"{within}{key}": type(value)}
    return found


@contextmanager
def served(project: Path) -> Iterator[str]:
    """The address at which `mlflow models serve` answers, as docs/serving.md starts it."""
    port = free_port()
    log_path = project / "server.log"
    uri = "sqlite:///mlruns/mlflow.db"
    with log_path.open("w") as log:
        server = subprocess.Popen(
            [
                "mlflow",
                "models",
                "serve",
                "-m",
                "models:/lesionseg@champion",
                "--env-manager",
                "local",
                "--port",
                str(port),
                "--workers",
                "1",
            ],
            cwd=project,
            env={**ENVIRONMENT, "MLFLOW_TRACKING_URI": uri},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{url}/ping", server, log_path)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_for(url: str, server: subprocess.Popen, log_path: Path) -> None:
    """Return when a server answers; fail with its log when it ends, or after three minutes."""
    deadline = time.monotonic() + 180
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, log_path.read_text()
            assert time.monotonic() < deadline, log_path.read_text()
            time.sleep(0.2)


def ask(url: str, photographs: list[Path]) -> list[dict]:
    """The server's answers for image files in one request."""
    rows = [{"image": base64.b64encode(path.read_bytes()).decode()} for path in photographs]
    request = urllib.request.Request(
        f"{url}/invocations",
        json.dumps({"dataframe_records": rows}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)["predictions"]


def pixels(file: Path | io.BytesIO) -> np.ndarray:
    with Image.open(file) as image:
        return np.array(image)
