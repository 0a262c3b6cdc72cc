"""MLflow's database is whole or not there, and what is wrong with it is one line."""

import os
import shutil
import sqlite3
from contextlib import closing

import pytest
from filelock import FileLock

from lesionseg.errors import TrackingError
from lesionseg.tracking import database

KNOWN = {"first", "second", "third"}


@pytest.fixture
def path(tmp_path):
    (tmp_path / "mlruns").mkdir()
    return tmp_path / "mlruns/mlflow.db"


def execute(path, script):
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
        return path


def make_tables(path, version="third", num_runs=1):
    """The tables that matter here, at a version."""
    script = "CREATE TABLE alembic_version (version_num TEXT);"
    for table, column in database._LOCATIONS:
        script += f"CREATE TABLE IF NOT EXISTS {table} (name TEXT);"
        script += f"ALTER TABLE {table} ADD COLUMN {column} TEXT;"
    if version:
        script += f"INSERT INTO alembic_version VALUES ('{version}');"
    script += "INSERT INTO runs (name) VALUES ('a');" * num_runs
    return execute(path, script)


def check(path):
    database.check(path, address="sqlite:///it", newest="third", known=lambda: KNOWN)


def test_a_build_that_is_killed_never_leaves_a_database(path):
    """Until it is ready it has another name; what the dead have left goes."""
    left = path.with_name(".mlflow.db.123.part-journal")
    left.write_text("half")

    def build(temporary):
        assert not left.exists()
        assert not path.exists()
        temporary.write_text("whole")

    database.make_whole(path, build)
    assert path.read_text() == "whole"
    database.make_whole(path, lambda _: pytest.fail("it is there"))
    assert [file.name for file in path.parent.iterdir()] == ["mlflow.db"]


def test_a_full_disk_leaves_nothing_and_an_empty_file_is_as_none(path):
    def build(temporary):
        temporary.write_text("half")
        raise OSError("No space left on device")

    path.touch()
    with pytest.raises(OSError, match="No space"):
        database.make_whole(path, build)
    assert [file.stat().st_size for file in path.parent.iterdir()] == [0]
    database.make_whole(path, lambda temporary: temporary.write_text("whole"))
    assert path.read_text() == "whole"


def test_a_database_of_the_installed_mlflow_is_right(path):
    check(make_tables(path))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda path: path.write_text("no database" * 999), "no SQLite database, or a damaged"),
        (lambda path: execute(path, "CREATE TABLE sales (x)"), "no database of MLflow's, or half"),
        (lambda path: make_tables(path, version=None), "or half of one. Move it away"),
        (lambda path: make_tables(path, "first", num_runs=0), "or half of one. Move it away"),
        (lambda path: make_tables(path, "first"), "older MLflow.*mlflow db upgrade sqlite:///it"),
        (lambda path: make_tables(path, "fifth"), "newer MLflow.*Install that one, or move"),
    ],
)
def test_a_database_that_mlflow_cannot_use_is_one_line_with_its_remedy(path, make, line):
    make(path)
    before = path.read_bytes()
    with pytest.raises(TrackingError, match=line) as caught:
        check(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("then run: lesionseg replay")
    assert len(str(caught.value).splitlines()) == 1
    assert path.read_bytes() == before


def test_a_damaged_page_is_damage(path):
    make_tables(path)
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(TrackingError, match=r"or a damaged one.*Move it away"):
        check(path)


def test_another_process_that_writes_for_ever_is_not_waited_for(path, monkeypatch):
    monkeypatch.setattr(database, "_LOCK_SECONDS", 0.05)
    make_tables(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(TrackingError, match=r"is being written.*Find and end it"):
            check(path)
    lock = FileLock(path.parent / ".lock", is_singleton=False)
    with (
        lock,
        pytest.raises(TrackingError, match=r"\.lock is held.*Find and end it"),
        database.locked(path.parent),
    ):
        pass


@pytest.mark.parametrize("name", [*database.LOCKS, "mlflow.db", "artifacts", ""])
def test_what_another_user_made_is_named_with_the_command_that_helps(path, name, monkeypatch):
    folder = path.parent
    other = folder / name
    other.mkdir(exist_ok=True)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != other and access(path, mode))
    with (
        pytest.raises(TrackingError, match=f"{other} cannot be .* belongs to .*sudo chown -R .*"),
        database.locked(folder),
    ):
        pass


def addresses(path):
    with closing(sqlite3.connect(path)) as connection:
        return [
            connection.execute(f"SELECT {column} FROM {table} ORDER BY rowid").fetchall()
            for table, column in database._LOCATIONS
        ]


@pytest.fixture
def project(tmp_path):
    """A project with a run that has an artefact, and one that has none."""
    root = tmp_path / "old name é"
    (root / "mlruns/artifacts/r1").mkdir(parents=True)
    (root / "mlruns/artifacts/r1/model.pt").touch()
    path = make_tables(root / "mlruns/mlflow.db", num_runs=0)
    there = (root / "mlruns").as_uri()
    script = f"INSERT INTO experiments VALUES ('Default', '{root}/mlruns/0');"
    script += f"INSERT INTO experiments VALUES ('lesionseg', '{there}/artifacts');"
    script += f"INSERT INTO runs VALUES ('r1', '{there}/artifacts/r1');"
    script += f"INSERT INTO runs VALUES ('r2', '{there}/artifacts/r2');"
    script += "INSERT INTO runs VALUES ('else', 's3://bucket/r3'), ('none', NULL);"
    script += f"INSERT INTO logged_models VALUES ('m', '{there}/artifacts/m');"
    script += f"INSERT INTO model_versions VALUES ('v', '{there}/artifacts/m', 'models:/m');"
    execute(path, script)
    return root


def follow(root):
    database.follow_project(root / "mlruns/mlflow.db", experiment="lesionseg")
    return addresses(root / "mlruns/mlflow.db")


def expected(root):
    there = (root / "mlruns").as_uri()
    return [
        [(f"{root}/mlruns/0",), (f"{there}/artifacts",)],
        [(f"{there}/artifacts/r1",), (f"{there}/artifacts/r2",), ("s3://bucket/r3",), (None,)],
        [(f"{there}/artifacts/m",)],
        [(f"{there}/artifacts/m",)],
        [("models:/m",)],
    ]


def test_all_addresses_follow_a_project_that_was_moved(project, caplog):
    caplog.set_level("INFO")
    assert follow(project) == expected(project)
    assert not caplog.records
    new = project.rename(project.with_name("new%20name?"))
    assert follow(new) == expected(new)
    assert follow(new) == expected(new)
    assert len(caplog.records) == 1


def test_a_copy_is_a_project_of_its_own_and_leaves_the_original(project):
    before = addresses(project / "mlruns/mlflow.db")
    copy = shutil.copytree(project, project.with_name("copy"))
    shutil.rmtree(copy / "mlruns/artifacts")
    assert follow(copy) == expected(copy)
    assert addresses(project / "mlruns/mlflow.db") == before == expected(project)


def test_artefacts_that_went_to_the_old_place_after_the_move_stay_found(project):
    new = project.rename(project.with_name("new"))
    (project / "mlruns/artifacts/r2").mkdir(parents=True)
    runs = follow(new)[1]
    assert runs[0] == expected(new)[1][0]
    assert runs[1] == expected(project)[1][1]


def test_an_experiment_that_was_put_elsewhere_stays_there(project):
    path = project / "mlruns/mlflow.db"
    execute(path, "UPDATE experiments SET artifact_location = 's3://bucket/mlruns/artifacts'")
    before = addresses(path)
    assert follow(project) == before
