"""The MLflow store: made once, found again, and never in the way."""

import logging
import multiprocessing
import os
import shutil
import socket

import pytest
from mlflow import MlflowClient

from lesionseg import tracking


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture
def store(project, empty_store):
    """The project has a store already, without an experiment."""
    (project / "mlruns").mkdir()
    shutil.copy(empty_store, project / "mlruns")


def client_of(project):
    return MlflowClient(f"sqlite:///{project}/mlruns/mlflow.db")


def start(project, name="train_frozen", id_path=None):
    return tracking.training_run(
        name, params={"train.lr": 0.002}, tags={"commit": "abc"}, id_path=id_path or project / name
    )


def test_the_store_lies_under_the_projects_root_wherever_the_stage_runs(
    project, tmp_path, monkeypatch
):
    elsewhere = tmp_path / "workspace"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with start(project) as run:
        run.log_metrics({"val/jaccard": 0.5}, step=1)
    found = client_of(project).get_run(run.run_id)
    assert found.info.artifact_uri.startswith((project / "mlruns/artifacts").as_uri())
    assert found.data.params == {"train.lr": "0.002"}
    assert found.data.metrics == {"val/jaccard": 0.5}
    assert not list(elsewhere.iterdir())


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_run_that_stops_says_how(project, error, status):
    with pytest.raises(error), start(project) as run:
        raise error
    assert client_of(project).get_run(run.run_id).info.status == status


@pytest.mark.usefixtures("store")
def test_a_training_taken_up_again_goes_on_in_its_own_run(project):
    id_path = project / "run_id"
    with start(project, id_path=id_path) as first:
        first.log_metrics({"val/jaccard": 0.5}, step=1)
    with start(project, id_path=id_path) as second:
        assert second.logged_steps("val/jaccard") == {1}
    assert second.run_id == first.run_id
    assert client_of(project).get_run(first.run_id).info.status == "FINISHED"


@pytest.mark.usefixtures("store")
def test_a_model_leads_to_the_latest_run_that_trained_it(project):
    with start(project, "first") as first:
        first.set_tags({"model_sha256": "aa"})
    with start(project, "second") as second:
        second.set_tags({"model_sha256": "aa"})
    assert tracking.find_run(model_sha256="aa").run_id == second.run_id
    assert first.run_id != second.run_id


@pytest.mark.usefixtures("store")
def test_a_model_that_no_run_trained_costs_one_warning(project, caplog):
    run = tracking.find_run(model_sha256="bb")
    run.log_metrics({"test/jaccard": 1.0})
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_server_that_is_away_costs_one_warning_and_never_the_training(
    monkeypatch, project, caplog
):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with caplog.at_level(logging.WARNING, logger="lesionseg"), start(project) as run:
            for step in range(3):
                run.log_metrics({"val/jaccard": 0.5}, step=step)
            run.set_tags({"model_sha256": "aa"})
    ours = [r for r in caplog.records if r.name.startswith("lesionseg")]
    assert len(ours) == 1
    assert "goes on without it" in ours[0].message
    assert len(ours[0].message.splitlines()) == 1


def create_run(project: str, name: str) -> str:
    os.environ["DVC_ROOT"] = project
    with tracking.training_run(
        name, params={}, tags={}, id_path=tracking.project_root() / name
    ) as run:
        return run.run_id


def test_processes_that_start_at_once_on_a_fresh_store_all_get_their_run(project):
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        ids = pool.starmap(create_run, [(str(project), f"run{i}") for i in range(3)])
    assert len({i for i in ids if i}) == 3
