"""Results on disk become MLflow runs: whole, once, and again after a server was away."""

import json
import shutil
import socket

import pandas as pd
import pytest

from lesionseg.errors import DataError, LesionsegError, MissingFileError, TrackingError, rerun
from lesionseg.report.page import answer
from lesionseg.results.evaluation import TABLES, Comparison
from lesionseg.results.layout import RUNS, Results
from lesionseg.tracking import runs, store
from lesionseg.tracking.replay import EXAMPLES, replay
from lesionseg.tracking.views import report_link
from tests.damage import KINDS, damage
from tests.mlflow_contents import client_of, contents, edit_json, runs_in, write_project

PIPELINE = "shaky-clam · pyramid · frozen vs fine-tuned · seed 0"


@pytest.fixture(scope="module")
def results(tmp_path_factory, empty_store):
    """A project with all results and no MLflow runs, to be copied."""
    root = tmp_path_factory.mktemp("results")
    write_project(root, empty_store)
    return root


@pytest.fixture(scope="module")
def brought(results, tmp_path_factory):
    """The project with a replay's runs, read only or to be copied: figures take long to draw."""
    root = tmp_path_factory.mktemp("brought")
    shutil.copytree(results, root, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(root))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert bring(root) == 2
    return root


@pytest.fixture
def project(results, tmp_path, monkeypatch):
    """A copy of the project without runs."""
    return enter(results, tmp_path, monkeypatch)


@pytest.fixture
def again(brought, tmp_path, monkeypatch):
    """A copy of the project with its runs, whose artefacts stay where they are."""
    return enter(brought, tmp_path, monkeypatch)


def enter(project, folder, monkeypatch):
    shutil.copytree(project, folder, dirs_exist_ok=True)
    monkeypatch.setenv("DVC_ROOT", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def bring(project):
    return replay(Results(project / "results"), project / "data/processed")


def test_every_training_becomes_one_finished_run_with_its_whole_history(brought):
    for name in RUNS:
        history = pd.read_csv(brought / f"results/{name}/history.csv")
        found = contents(client_of(brought))[name]
        assert found["status"] == "FINISHED"
        assert found["metrics"]["val/jaccard"] == list(
            zip(history["epoch"], history["val_jaccard"], strict=True)
        )
        assert found["params"]["train.lr"] == "0.002"
        assert found["datasets"] == [("ab" * 32)[:36]]
        assert found["artifacts"] == ["history.csv", "metrics.json", "model.pt", "run.json"]


def test_test_metrics_come_with_their_intervals_and_the_difference_with_the_pipeline_run(brought):
    comparison = json.loads((brought / "results/evaluate/comparison.json").read_text())
    result = comparison["test"]["jaccard"]
    over_seeds = comparison["seeds"]["test"]["jaccard"]["difference"]
    found = contents(client_of(brought))
    frozen, pipeline = found["train_frozen"]["metrics"], found[PIPELINE]["metrics"]
    assert frozen["test/jaccard"] == [(0, result["train_frozen"])]
    assert frozen["test/jaccard_low"] == [(0, result["train_frozen_interval"][0])]
    assert pipeline["fine-tuned/jaccard"] == [(0, result["train_finetuned"])]
    assert pipeline["difference/jaccard"] == [(0, result["difference"])]
    assert pipeline["difference/jaccard_high"] == [(0, result["interval"][1])]
    assert pipeline["seeds/difference/jaccard"] == [(0, over_seeds["mean"])]


def test_few_numbers_are_metrics_and_all_others_lie_in_the_artefacts(brought):
    found = contents(client_of(brought))
    assert max(len(run["metrics"]) for run in found.values()) <= 15
    files = found[PIPELINE]["artifacts"]
    tables = {f"evaluate/{name}.csv" for name in TABLES}
    assert tables <= set(files)
    assert {"evaluate/comparison.json", "evaluate/train_frozen.json", "curves.png"} <= set(files)
    assert "report/report.html" in files
    assert sum(name.startswith("overlays/") for name in files) == len(EXAMPLES)
    assert len(files) == len(tables) + 3 + 1 + 1 + len(EXAMPLES)


def test_the_pipeline_run_is_the_parent_and_says_the_answer_and_where_the_rest_is(brought):
    found = contents(client_of(brought))
    assert found[PIPELINE]["parent"] is None
    assert {found[name]["parent"] for name in RUNS} == {PIPELINE}
    assert [found[name]["name"] for name in RUNS] == [
        "pyramid · frozen · seed 0",
        "pyramid · fine-tuned · seed 0",
    ]
    (run,) = runs_in(client_of(brought), "pipeline run")
    text = run.data.tags["mlflow.note.content"]
    link = report_link("1", run.info.run_id)
    sentence = answer(Comparison.read(Results(brought / "results").evaluation))
    assert text.startswith(f"[Open the report]({link}). {sentence}")
    expected = {
        "data_source": "isic2016",
        "encoder_start": "imagenet",
        "device": "cpu",
        "precision": "bfloat16",
        "mlflow.source.git.commit": "0123456789abcdef0123456789abcdef01234567",
    }
    for one in runs_in(client_of(brought)):
        assert expected.items() <= one.data.tags.items()
        assert one.data.tags["mlflow.user"]


def test_a_second_replay_changes_nothing(again):
    before = contents(client_of(again))
    assert bring(again) == 2
    assert contents(client_of(again)) == before


def test_a_run_that_lost_its_server_midway_is_completed_not_doubled(project, brought):
    record = json.loads((project / "results/train_frozen/run.json").read_text())
    tags = {"training_key": record["training_key"]}
    history = pd.read_csv(project / "results/train_frozen/history.csv")
    params = record["params"]
    with runs.training_run("train_frozen", params=params, tags=tags, id_path=project / "id") as run:
        for row in history.head(3).to_dict("records"):
            run.log_metrics(runs.epoch_metrics(row), step=row["epoch"])
    assert bring(project) == 2
    assert contents(client_of(project)) == contents(client_of(brought))


def test_a_run_of_an_earlier_version_gets_its_name_and_its_parent(again):
    client = client_of(again)
    (old,) = client.search_runs(["1"], "tags.dvc_stage = 'train_frozen'")
    client.update_run(old.info.run_id, name="train_frozen")
    client.delete_tag(old.info.run_id, "mlflow.parentRunId")
    expected = contents(client) | {"train_frozen": None}
    bring(again)
    found = contents(client)
    assert found.keys() == expected.keys()
    assert found["train_frozen"]["name"] == "pyramid · frozen · seed 0"
    assert found["train_frozen"]["parent"] == PIPELINE


def test_an_artefact_that_a_kill_cut_short_is_made_whole(project):
    bring(project)
    expected = contents(client_of(project))
    (model,) = (p for p in project.rglob("mlruns/**/model.pt") if p.read_text() == "train_frozen")
    model.write_text("train_")
    bring(project)
    assert model.read_text() == "train_frozen"
    assert contents(client_of(project)) == expected


def test_the_same_training_in_two_experiments_is_two_runs(again):
    edit_json(again / "results/train_frozen/run.json", training_key="train_frozen-other")
    assert bring(again) == 2
    client = client_of(again)
    assert len(runs_in(client, "training")) == 3
    (pipeline,) = runs_in(client, "pipeline run")
    parents = {run.data.tags["mlflow.parentRunId"] for run in runs_in(client, "training")}
    assert parents == {pipeline.info.run_id}


def test_scores_on_external_test_sets_stand_beside_those_on_test(
    tmp_path, empty_store, monkeypatch
):
    write_project(tmp_path, empty_store, external=("elsewhere",))
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert bring(tmp_path) == 2
    found = contents(client_of(tmp_path))
    path = tmp_path / "results/evaluate/external/elsewhere/comparison.json"
    result = json.loads(path.read_text())["test"]["jaccard"]
    of_frozen, of_pipeline = (found[name]["metrics"] for name in ("train_frozen", PIPELINE))
    assert of_frozen["external/elsewhere/jaccard"] == [(0, result["train_frozen"])]
    assert of_pipeline["external/elsewhere/difference/jaccard"] == [(0, result["difference"])]
    assert of_pipeline["external/elsewhere/frozen/jaccard"] == [(0, result["train_frozen"])]
    assert "evaluate/external/elsewhere/comparison.json" in found[PIPELINE]["artifacts"]
    (run,) = runs_in(client_of(tmp_path), "pipeline run")
    assert "That is also so on elsewhere" in run.data.tags["mlflow.note.content"]


def test_a_pipeline_run_that_a_kill_cut_short_is_made_whole(project, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("lesionseg.tracking.replay.draw_curves", stop)
        with pytest.raises(KeyboardInterrupt):
            bring(project)
    (run,) = runs_in(client_of(project), "pipeline run")
    assert run.info.status == "RUNNING"
    bring(project)
    found = contents(client_of(project))
    assert found[PIPELINE]["status"] == "FINISHED"
    assert {"curves.png", "report/report.html"} <= set(found[PIPELINE]["artifacts"])


def stop(*_):
    raise KeyboardInterrupt


def test_scores_of_another_evaluation_take_the_place_of_the_old_ones(project):
    bring(project)
    path = project / "results/evaluate/comparison.json"
    comparison = json.loads(path.read_text())
    comparison["test"]["jaccard"] |= {"difference": 0.25}
    path.write_text(json.dumps(comparison))
    bring(project)
    (run,) = runs_in(client_of(project), "pipeline run")
    assert run.data.metrics["difference/jaccard"] == 0.25
    assert "+0.250" in run.data.tags["mlflow.note.content"]
    (copy,) = project.glob(f"mlruns/artifacts/{run.info.run_id}/artifacts/evaluate/comparison.json")
    assert json.loads(copy.read_text())["test"]["jaccard"]["difference"] == 0.25


def test_a_replay_later_leaves_the_times_of_finished_runs(again):
    before = {run.info.run_id: run.info.end_time for run in runs_in(client_of(again))}
    bring(again)
    assert {run.info.run_id: run.info.end_time for run in runs_in(client_of(again))} == before


def test_a_pipeline_run_that_was_deleted_comes_back_with_its_trainings(again):
    client = client_of(again)
    (run,) = runs_in(client, "pipeline run")
    client.delete_run(run.info.run_id)
    expected = contents(client_of(again)).keys() | {PIPELINE}
    bring(again)
    found = contents(client)
    assert found.keys() == expected
    assert {found[name]["parent"] for name in RUNS} == {PIPELINE}
    assert "difference/jaccard" in found[PIPELINE]["metrics"]


def test_without_a_server_a_replay_fails_in_one_line_and_the_files_stay(
    project, monkeypatch, caplog
):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed.getsockname()[1]}")
        line = r"not all is in MLflow: http\S+ does not answer .*again run: lesionseg replay"
        with pytest.raises(LesionsegError, match=line):
            bring(project)
    assert not caplog.records
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert bring(project) == 2


def test_without_results_the_next_step_is_named(tmp_path):
    with pytest.raises(MissingFileError, match="holds no training"):
        replay(Results(tmp_path / "results"), tmp_path / "data/processed")


def test_an_evaluation_without_one_of_its_trainings_names_the_stage(project):
    shutil.rmtree(project / "results/train_frozen")
    with pytest.raises(
        MissingFileError, match=r"run\.json is missing\. Run: dvc repro train_frozen"
    ):
        bring(project)


def test_a_damaged_record_is_named_with_the_stage_to_run(project):
    (project / "results/train_frozen/run.json").write_text("{}")
    with pytest.raises(
        DataError,
        match=r"run.json was written by another version .*dvc repro -sf train_frozen && dvc repro",
    ):
        bring(project)


@pytest.fixture
def no_server(monkeypatch):
    """Nothing reaches MLflow, which takes seconds."""

    def fail():
        raise TrackingError("away")

    monkeypatch.setattr(store, "connect", fail)


DAMAGED = {
    **{f"train_frozen/{name}": "train_frozen" for name in ("run.json", "metrics.json")},
    **{f"train_frozen/{name}": "train_frozen" for name in ("history.csv", "seeds/1/history.csv")},
    **{f"evaluate/{name}": "evaluate" for name in ("comparison.json", "train_finetuned.json")},
    **{f"evaluate/{name}": "evaluate" for name in ("seeds.csv", "per_image.csv")},
    "evaluate/masks/train_frozen/ISIC_0000000_segmentation.png": "evaluate",
    "../data/processed/test/images.npy": "preprocess",
    "../data/processed/test/index.csv": "preprocess",
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_damaged_file_is_named_with_the_stage_to_run(project, no_server, monkeypatch, kind):
    monkeypatch.setattr("lesionseg.tracking.replay.draw_curves", lambda _: None)
    monkeypatch.setattr("lesionseg.tracking.replay.draw_overlay", lambda *_: None)
    monkeypatch.setattr(runs.Run, "is_lost", False)  # else its figures are not drawn
    # Of all test images, so that the damaged one is among them.
    monkeypatch.setattr("lesionseg.tracking.replay.choose_examples", lambda _: {"worst": 0})
    seed = project / "results/train_frozen/seeds/1"
    shutil.copytree(project / "results/train_frozen", seed)
    for name, stage in DAMAGED.items():
        path = project / "results" / name
        whole = path.read_bytes()
        damage(path, kind)
        with pytest.raises(DataError) as caught:
            bring(project)
        message = str(caught.value)
        assert path.name in message, name
        assert message.endswith(f"Run: {rerun(stage)}"), message
        assert len(message.splitlines()) == 1
        path.write_bytes(whole)
    with pytest.raises(LesionsegError, match="not all is in MLflow"):
        bring(project)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train_frozen/metrics.json", {"val": 3}, "metrics.json: val must be an object"),
        ("train_frozen/run.json", {"params": 3}, "run.json: params must be an object"),
        ("train_frozen/run.json", {"versions": None}, "run.json: versions must be an object"),
        ("evaluate/comparison.json", {"test": 3}, "comparison.json: test must be an object"),
        (
            "evaluate/train_frozen.json",
            {"test": None},
            "train_frozen.json: test must be an object",
        ),
    ],
)
def test_a_record_of_another_form_is_named(project, no_server, name, content, message):
    edit_json(project / "results" / name, **content)
    with pytest.raises(DataError, match=message) as caught:
        bring(project)
    assert len(str(caught.value).splitlines()) == 1
