"""The MLflow store: made once, found again, and never in the way."""

import contextlib
import multiprocessing
import os
import re
import shlex
import shutil
import socket
import sqlite3
import threading
import time
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient, experiments

from lesionseg.errors import TrackingError
from lesionseg.tracking import availability, database, runs, store
from tests.mlflow_contents import client_of

pytestmark = pytest.mark.usefixtures("bare_project")


@pytest.fixture
def project(project_with_store):
    return project_with_store


def start(project, name="train_frozen", id_path=None, **tags):
    return runs.training_run(
        name,
        params={"train.lr": 0.002},
        tags={"commit": "abc", **tags},
        id_path=id_path or project / name,
    )


def die(project, **tags):
    """The id of the run that a training leaves which is killed, with its file of the id."""
    with start(project, **tags) as run:
        run.log_metrics({"val/jaccard": 0.5}, step=1)
    client_of(project).update_run(run.run_id, status="RUNNING")
    return run.run_id


def warnings_of(caplog):
    """Ours, and those of MLflow and what it uses."""
    return [record.message for record in caplog.records if record.levelname != "INFO"]


def status_of(project, run_id):
    return client_of(project).get_run(run_id).info.status


def test_the_store_lies_under_the_projects_root_wherever_the_stage_runs(bare_project, monkeypatch):
    project, elsewhere = bare_project, bare_project / "workspace"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with start(project) as run:
        run.log_metrics({"val/jaccard": 0.5}, step=1)
    found = client_of(project).get_run(run.run_id)
    assert found.info.artifact_uri.startswith((project / "mlruns/artifacts").as_uri())
    assert found.data.params == {"train.lr": "0.002"}
    assert found.data.metrics == {"val/jaccard": 0.5}
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_run_that_stops_says_how(project, error, status):
    with pytest.raises(error), start(project) as run:
        raise error
    assert client_of(project).get_run(run.run_id).info.status == status


def test_a_training_taken_up_again_goes_on_in_its_own_run(project):
    id_path = project / "run_id"
    with start(project, id_path=id_path) as first:
        first.log_metrics({"val/jaccard": 0.5}, step=1)
    with start(project, id_path=id_path) as second:
        assert second.logged_steps("val/jaccard") == {1}
    assert second.run_id == first.run_id
    assert client_of(project).get_run(first.run_id).info.status == "FINISHED"


def test_a_model_leads_to_the_latest_run_that_trained_it(project):
    with start(project, "first") as first:
        first.set_tags({"model_sha256": "aa"})
    with start(project, "second") as second:
        second.set_tags({"model_sha256": "aa"})
    assert runs.find_run(model_sha256="aa").run_id == second.run_id
    assert first.run_id != second.run_id


def test_a_model_that_no_run_trained_costs_one_warning(project, caplog):
    run = runs.find_run(model_sha256="bb")
    run.log_metrics({"test/jaccard": 1.0})
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def train_thrice(project):
    """As a stage does that trains three seeds."""
    for seed in range(3):
        with start(project, f"seed{seed}", training_key=f"key{seed}") as run:
            run.log_metrics({"val/jaccard": 0.5}, step=1)
        assert runs.find_run(model_sha256="aa").is_lost
    assert run.is_lost


def test_a_server_that_is_away_costs_one_warning_and_never_the_training(
    monkeypatch, bare_project, caplog, capfd
):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed.getsockname()[1]}")
        train_thrice(bare_project)
    (line,) = warnings_of(caplog)
    assert re.search(
        r"goes on without it: http://127\S+ does not answer \(Connection refused", line
    )
    assert len(line.splitlines()) == 1
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def dripping():
    """The address of a server that sends a byte now and then, for ever."""
    end = threading.Event()

    def serve(connection):
        with contextlib.suppress(OSError), connection:
            connection.recv(9999)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
            while not end.wait(0.05):
                connection.sendall(b" ")

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        end.set()


def test_a_server_that_drips_for_ever_costs_its_deadline_and_one_warning(
    monkeypatch, bare_project, dripping, caplog, capfd
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dripping)
    monkeypatch.setattr(availability, "CALL_SECONDS", 0.5)
    begin = time.monotonic()
    train_thrice(bare_project)
    assert time.monotonic() - begin < 120  # of the 500 that all of its bytes would take
    (line,) = warnings_of(caplog)
    assert "is too slow" in line
    assert capfd.readouterr() == ("", "")


def test_a_store_that_is_locked_in_the_middle_of_a_training_costs_one_warning(
    monkeypatch, project, caplog, capfd
):
    with start(project, training_key="key") as run:
        monkeypatch.setattr(availability, "CALL_SECONDS", 0.5)
        path = project / "mlruns/mlflow.db"
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            for step in range(3):
                run.log_metrics({"val/jaccard": 0.5}, step=step)
    assert len(warnings_of(caplog)) == 1
    assert capfd.readouterr() == ("", "")


def test_a_store_that_breaks_in_the_middle_of_a_training_costs_one_warning(project, caplog, capfd):
    with start(project, training_key="key") as run:
        with contextlib.closing(sqlite3.connect(project / "mlruns/mlflow.db")) as connection:
            connection.executescript("DROP TABLE latest_metrics; DROP TABLE metrics")
        for step in range(3):
            run.log_metrics({"val/jaccard": 0.5}, step=step)
    (line,) = warnings_of(caplog)
    assert "no such table" in line
    assert len(line.splitlines()) == 1
    assert capfd.readouterr() == ("", "")


def test_a_store_that_another_process_keeps_costs_one_warning(monkeypatch, project, caplog, capfd):
    monkeypatch.setattr(database, "_LOCK_SECONDS", 0.1)
    path = project / "mlruns/mlflow.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        train_thrice(project)
    (line,) = warnings_of(caplog)
    assert re.search(r"mlflow\.db is being written by another process.*lesionseg replay", line)
    assert capfd.readouterr() == ("", "")


def test_a_database_that_is_none_costs_one_warning_and_stays(bare_project, caplog, capfd):
    path = bare_project / "mlruns/mlflow.db"
    path.parent.mkdir()
    path.write_text("no database " * 999)
    train_thrice(bare_project)
    (line,) = warnings_of(caplog)
    assert re.search(r"mlflow\.db is no SQLite database.*Move it away.*lesionseg replay", line)
    assert capfd.readouterr() == ("", "")
    assert path.read_text() == "no database " * 999


def test_a_database_half_made_is_none(bare_project, empty_store):
    shutil.copytree(empty_store.parent, bare_project / "mlruns")
    with contextlib.closing(sqlite3.connect(bare_project / "mlruns/mlflow.db")) as connection:
        connection.executescript("UPDATE alembic_version SET version_num = '451aebb31d03'")
    with pytest.raises(TrackingError, match=r"or half of one\. Move it away"):
        store.connect()


def test_the_tables_of_mlflow_have_no_other_addresses(empty_store):
    """A column that a newer MLflow adds must follow a project that is moved."""
    with contextlib.closing(sqlite3.connect(empty_store)) as connection:
        columns = connection.execute(
            "SELECT t.name, c.name FROM sqlite_master t, pragma_table_info(t.name) c "
            "WHERE t.type = 'table' AND (c.name LIKE '%artifact%' OR c.name LIKE '%location%' "
            "OR c.name LIKE '%uri%' OR c.name = 'source')"
        ).fetchall()
    others = {
        ("workspaces", "default_artifact_root"),  # of servers with workspaces
        ("workspaces", "trace_archival_location"),
        ("evaluation_dataset_records", "source"),  # of language models
        ("mcp_server_versions", "source"),
    }
    assert set(columns) == set(database._LOCATIONS) | others


@pytest.mark.parametrize("name", ["a%20b", "what?y=z", "é #1 'q' & \"50%\"", "plain"])
def test_a_store_lies_in_its_project_whatever_the_folder_is_called(
    bare_project, empty_store, name, monkeypatch
):
    root = bare_project / name
    (root / "mlruns").mkdir(parents=True)
    shutil.copy(empty_store, root / "mlruns")
    before = {path.relative_to(bare_project) for path in bare_project.rglob("*")}
    monkeypatch.setenv("DVC_ROOT", str(root))
    (root / "model.pt").write_text("weights")
    with start(root) as run:
        run.log_file(root / "model.pt")
    found = MlflowClient(store.uri()).get_run(run.run_id)
    with contextlib.closing(sqlite3.connect(root / "mlruns/mlflow.db")) as connection:
        assert connection.execute("SELECT run_uuid FROM runs").fetchall() == [(run.run_id,)]
    copy = mlflow.artifacts.download_artifacts(
        f"{found.info.artifact_uri}/model.pt", tracking_uri=store.uri()
    )
    assert Path(copy).read_text() == "weights"
    assert len(list((root / "mlruns/artifacts").rglob("model.pt"))) == 1
    new = {path.relative_to(bare_project) for path in bare_project.rglob("*")} - before
    assert {path.parts[0] for path in new} == {name}
    if name == "plain":
        assert store.uri() == f"sqlite:///{root}/mlruns/mlflow.db"


def test_runs_and_registered_models_of_a_moved_project_open_and_new_ones_lie_in_it(
    bare_project, empty_store, monkeypatch
):
    old, new = bare_project / "old", bare_project / "new"
    (old / "mlruns").mkdir(parents=True)
    shutil.copy(empty_store, old / "mlruns")
    monkeypatch.setenv("DVC_ROOT", str(old))
    (old / "model.pt").write_text("weights")
    with start(old) as first:
        first.log_file(old / "model.pt")
    client = client_of(old)
    source = client.get_run(first.run_id).info.artifact_uri
    client.create_registered_model("lesionseg")
    client.create_model_version("lesionseg", source=source, run_id=first.run_id)
    old.rename(new)
    monkeypatch.setenv("DVC_ROOT", str(new))
    with start(new, "second") as second:
        second.log_file(new / "model.pt")
    client = client_of(new)
    found = client.get_model_version_download_uri("lesionseg", "1")
    for address in (found, *(client.get_run(r.run_id).info.artifact_uri for r in (first, second))):
        assert address.startswith((new / "mlruns/artifacts").as_uri())
        copy = mlflow.artifacts.download_artifacts(f"{address}/model.pt")
        assert Path(copy).read_text() == "weights"
    assert not old.exists()


def test_a_run_of_a_dead_training_is_taken_up_though_its_id_is_lost(project):
    left = die(project, training_key="key")
    (project / "train_frozen").unlink()
    with start(project, training_key="key") as run:
        assert run.run_id == left
        for step in (1, 2):
            run.log_metrics({"val/jaccard": 0.5}, step=step)
    history = client_of(project).get_metric_history(left, "val/jaccard")
    assert [value.step for value in history] == [1, 2]
    assert status_of(project, left) == "FINISHED"


def test_of_several_dead_runs_of_one_training_one_goes_on_and_the_others_end(project):
    first = die(project, training_key="key")
    client = client_of(project)
    other = client.create_run("1", tags={"training_key": "key"}).info.run_id
    another = client.create_run("1", tags={"training_key": "else"}).info.run_id
    with start(project, training_key="key") as run:
        assert run.run_id == first
    assert status_of(project, other) == "KILLED"
    assert status_of(project, another) == "RUNNING"


@pytest.mark.parametrize("content", ["", "no id", "0" * 32, "deleted"])
def test_an_id_that_is_of_no_use_is_replaced(project, content, caplog):
    if content == "deleted":
        content = die(project)
        client_of(project).delete_run(content)
    (project / "id").write_text(content)
    with start(project, id_path=project / "id") as run:
        pass
    assert status_of(project, run.run_id) == "FINISHED"
    assert (project / "id").read_text() == run.run_id != content
    assert not caplog.records


@pytest.mark.parametrize("there", [{"host": "other"}, {"folder": "/elsewhere"}, {}])
def test_on_a_shared_store_a_run_that_is_under_way_elsewhere_is_left_alone(
    project, empty_store, there, monkeypatch
):
    shared = project / "shared.db"
    shutil.copy(empty_store, shared)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shared}")
    client = MlflowClient(f"sqlite:///{shared}")
    tags = {"training_key": "key", "model_sha256": "aa", **runs._place(), **there}
    other = client.create_run("1", tags=tags).info.run_id
    with start(project, training_key="key") as run:
        assert (run.run_id == other) == (not there)
    assert client.get_run(other).info.status == ("RUNNING" if there else "FINISHED")
    assert runs.find_run(model_sha256="aa").is_lost == bool(there)


def test_a_training_without_room_for_its_id_goes_on(project):
    (project / "file").touch()
    with start(project, id_path=project / "file/id") as run:
        pass
    assert status_of(project, run.run_id) == "FINISHED"


def test_values_longer_or_more_than_mlflow_takes_do_not_lose_the_run(project, caplog):
    params = {"long": "x" * 9000, **{f"p{i}": i for i in range(150)}}
    tags = {"long": "y" * 9000, **{f"t{i}": "v" for i in range(150)}}
    with runs.training_run("r", params=params, tags=tags, id_path=project / "id") as run:
        run.set_tags(tags)
    assert not run.error
    data = client_of(project).get_run(run.run_id).data
    assert len(data.params) == 151
    assert data.params["long"] == "x" * 5999 + "…"
    assert data.tags["long"] == "y" * 4999 + "…"
    assert not caplog.records


def test_a_deleted_experiment_is_restored_by_what_the_warning_says(project, caplog):
    client = client_of(project)
    client.delete_experiment("1")
    train_thrice(project)
    (line,) = warnings_of(caplog)
    command = shlex.split(re.search(r"Restore it with: (.*); then run: lesionseg replay", line)[1])
    name, _, address = command[0].partition("=")
    assert command[1:3] == ["mlflow", "experiments"]
    done = CliRunner().invoke(experiments.commands, command[3:], env={name: address})
    assert done.exit_code == 0, done.output
    assert client.get_experiment("1").lifecycle_stage == "active"
    store._stores.clear()  # as in the next process
    with start(project) as run:
        pass
    assert not run.error


@pytest.mark.parametrize("form", ["file://{}", "{}", "file:{}"])
def test_a_folder_as_the_store_means_a_database_in_it_and_a_line_says_so(
    bare_project, empty_store, form, monkeypatch, caplog
):
    monkeypatch.setattr(store, "_noted", set())
    (bare_project / "my runs").mkdir()
    shutil.copy(empty_store, bare_project / "my runs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", form.format(bare_project / "my runs"))
    for _ in range(2):
        with start(bare_project) as run:
            pass
        assert not run.error
    (line,) = warnings_of(caplog)
    instead = shlex.split(re.search(r"for other commands write (\S.*)$", line)[1])[0]
    assert instead == f"MLFLOW_TRACKING_URI=sqlite:///{bare_project}/my runs/mlflow.db"
    monkeypatch.setenv(*instead.split("=", 1))
    client, _ = store.connect()
    assert client.get_run(run.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("address", [None, "", "sqlite"])
def test_a_store_that_is_no_folder_draws_no_word(project, address, monkeypatch, caplog):
    monkeypatch.setattr(store, "_noted", set())
    if address is not None:
        uri = f"sqlite:///{project}/mlruns/mlflow.db" if address else ""
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    store.connect()
    assert warnings_of(caplog) == []


def test_artefacts_of_another_database_lie_beside_it(bare_project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{bare_project}/my runs/mlflow.db")
    client, experiment_id = store.connect()
    expected = (bare_project / "my runs/artifacts").as_uri()
    assert client.get_experiment(experiment_id).artifact_location == expected


def test_a_password_is_not_shown(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:secret@127.0.0.1:1")
    with pytest.raises(TrackingError, match=r"http://127\.0\.0\.1:1 does not") as caught:
        store.connect()
    assert "secret" not in str(caught.value)


def create_run(project: str, name: str) -> str:
    os.environ["DVC_ROOT"] = project
    with runs.training_run(name, params={}, tags={}, id_path=runs.project_root() / name) as run:
        return run.run_id


def test_processes_that_start_at_once_on_a_fresh_store_all_get_their_run(bare_project):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # loads MLflow once for all of them
    with context.Pool(3) as pool:
        ids = pool.starmap(create_run, [(str(bare_project), f"run{i}") for i in range(3)])
    assert len({i for i in ids if i}) == 3
