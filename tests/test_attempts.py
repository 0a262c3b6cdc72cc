"""Of a training that several attempts have run, MLflow shows one that is finished, none RUNNING."""

import shutil

import pytest

from lesionseg.tracking import store
from lesionseg.tracking.attempts import ATTEMPT, VARIABLE, end_lost, keep_last
from lesionseg.tracking.runs import training_run

PARENT = "mlflow.parentRunId"


@pytest.fixture
def client(tmp_path, empty_store, monkeypatch):
    """Of an empty store, with the id of its experiment."""
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty_store, tmp_path / "mlruns")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return store.connect()


def add(client, status, *, attempt, stage="train_frozen", parent=""):
    mlflow, experiment_id = client
    tags = {ATTEMPT: attempt, "dvc_stage": stage, "params_sha256": "same"}
    run_id = mlflow.create_run(
        experiment_id, tags=tags | ({PARENT: parent} if parent else {})
    ).info.run_id
    if status != "RUNNING":
        mlflow.set_terminated(run_id, status)
    return run_id


def status(client, run_id):
    return client[0].get_run(run_id).info.status


def test_what_a_lost_attempt_has_left_running_is_ended_with_its_pipeline_run(client):
    parent = client[0].create_run(client[1]).info.run_id
    lost = add(client, "RUNNING", attempt="one", parent=parent)
    finished = add(client, "FINISHED", attempt="one", parent=parent)
    others = add(client, "RUNNING", attempt="two")
    end_lost(["one"])
    found = [status(client, run_id) for run_id in (lost, parent, finished, others)]
    assert found == ["KILLED", "KILLED", "FINISHED", "RUNNING"]


def test_an_attempt_that_another_has_outrun_leaves_nothing_finished(client):
    parent = client[0].create_run(client[1]).info.run_id
    run_id = add(client, "FINISHED", attempt="two", parent=parent)
    end_lost(["two"], finished=True)
    assert status(client, run_id) == "KILLED"
    assert status(client, parent) == "RUNNING"  # it is the other's as well


def test_of_a_training_that_was_finished_twice_the_last_run_stays(client):
    first = add(client, "FINISHED", attempt="one")
    other_model = add(client, "FINISHED", attempt="one", stage="train_finetuned")
    killed = add(client, "KILLED", attempt="one", stage="train_finetuned")
    last = add(client, "FINISHED", attempt="two")
    keep_last(["one", "two"])
    found = [status(client, run_id) for run_id in (first, last, other_model, killed)]
    assert found == ["KILLED", "FINISHED", "FINISHED", "KILLED"]


def test_a_training_is_tagged_with_its_attempt_and_again_when_it_is_taken_up(
    client, tmp_path, monkeypatch
):
    for attempt in ("one", "two"):
        monkeypatch.setenv(VARIABLE, attempt)
        with training_run("train_frozen", params={}, tags={}, id_path=tmp_path / "id") as run:
            assert run.tag(ATTEMPT) == attempt
    assert len(client[0].search_runs([client[1]])) == 1


def test_a_store_that_is_away_costs_a_warning(monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    end_lost(["one"])
    assert "MLflow is not available" in caplog.text
