"""Files are whole or not there, and what cannot be read is said in one line."""

import ast
import copy
import errno
import functools
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from lesionseg import project
from lesionseg.errors import (
    DataError,
    DiskSpaceError,
    MissingFileError,
    TrackingError,
    exit_status,
    repro,
    rerun,
)
from lesionseg.files import (
    NAME_BYTES,
    check_free_space,
    full_disk_is_an_error,
    made_by,
    project_root,
    replacing,
    require,
    sha256,
    write_bytes,
    write_csv,
    write_json,
)
from lesionseg.results.records import read_record


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_place_only_when_the_block_ends(tmp_path):
    path = tmp_path / "deep" / "er" / "a.txt"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(path.parent) == ["a.txt"]


def fill_and_fail(path: Path, fill: Callable[[Path], object], error: BaseException) -> None:
    with replacing(path) as temporary:
        fill(temporary)
        raise error


@pytest.mark.parametrize("error", [RuntimeError(), KeyboardInterrupt()])
def test_after_an_error_the_old_file_stays_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)):
        fill_and_fail(path, lambda temporary: temporary.write_text("half"), error)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_an_error_before_the_first_byte_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), replacing(tmp_path / "a.txt"):
        raise RuntimeError
    assert names(tmp_path) == []


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "split"
    path.mkdir()
    (path / "stale.txt").write_text("old")
    with replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "fresh.txt").write_text("new")
        assert names(path) == ["stale.txt"]
    assert names(path) == ["fresh.txt"]
    assert names(tmp_path) == ["split"]


def test_after_an_error_the_old_folder_stays_and_nothing_else(tmp_path):
    path = tmp_path / "split"
    path.mkdir()
    (path / "old.txt").write_text("old")
    with pytest.raises(RuntimeError):
        fill_and_fail(
            path, lambda temporary: (temporary / "half").mkdir(parents=True), RuntimeError()
        )
    assert names(path) == ["old.txt"]
    assert names(tmp_path) == ["split"]


@pytest.mark.parametrize("name", ["a" * NAME_BYTES, "\N{GRINNING FACE}" * 63 + ".md"])
def test_the_longest_names_are_written_too(tmp_path, name):
    assert len(name.encode()) == NAME_BYTES
    with replacing(tmp_path / name) as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == [name]


def test_long_names_that_differ_at_their_end_have_temporary_names_of_their_own(tmp_path):
    first, second = (tmp_path / ("a" * (NAME_BYTES - 1) + end) for end in "bc")
    with replacing(first) as one, replacing(second) as other:
        one.write_text("one")
        other.write_text("other")
    assert first.read_text() == "one"
    assert second.read_text() == "other"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_runs_full_while_a_file_is_written_is_named_with_its_remedy(tmp_path, number):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(DiskSpaceError) as caught:
        fill_and_fail(path, lambda temporary: temporary.write_text("half"), OSError(number, "full"))
    assert str(caught.value) == (
        f"the disk of {path} has run full. Make room there and run the same command again"
    )
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_other_errors_of_the_system_stay_what_they_are(tmp_path):
    with pytest.raises(PermissionError), full_disk_is_an_error(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_exactly_enough_room_is_enough(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    check_free_space(tmp_path, 10)
    with pytest.raises(DiskSpaceError, match=r"0\.0 MB are free"):
        check_free_space(tmp_path, 11)


def test_bytes_are_written_as_they_are(tmp_path):
    write_bytes(tmp_path / "a", b"\r\n\x00")
    assert (tmp_path / "a").read_bytes() == b"\r\n\x00"


def test_json_comes_back_as_it_went(tmp_path):
    content = {"b": 1, "a": [0.1, "é", None], "c": {"d": True}}
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == content
    assert "é" in text
    assert text.endswith("}\n")
    assert list(json.loads(text)) == ["b", "a", "c"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_does_not_know_are_refused_and_the_old_file_stays(tmp_path, value):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": {"b": value}})
    assert json.loads(path.read_text()) == {"a": 1}
    assert names(tmp_path) == ["a.json"]


@dataclass
class Note:
    a: int


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"{'a': 1}", b"\xff\xfe\x00", b"[1]", b"3", b"[" * 100_000],
    ids=["empty", "cut", "single quotes", "binary", "list", "number", "nested without end"],
)
def test_what_is_no_record_is_said_in_one_line(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_record(path, Note, stage="evaluate")
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.endswith(". Run: dvc repro -sf evaluate && dvc repro")
    assert len(message.splitlines()) == 1


def test_a_missing_file_names_the_stage_that_makes_it(tmp_path):
    path = tmp_path / "a.json"
    for function in (functools.partial(read_record, kind=Note), require):
        with pytest.raises(MissingFileError) as caught:
            function(path, stage="evaluate")
        assert str(caught.value) == f"{path} is missing. Run: dvc repro evaluate"
    path.write_text("{}")
    assert require(path, stage="evaluate") == path


def test_csv_has_a_line_of_names_and_a_line_for_each_row(tmp_path):
    rows = [{"id": "a,b", "score": 0.5}, {"id": "c", "score": 1}]
    write_csv(tmp_path / "a.csv", (row for row in rows))
    assert (tmp_path / "a.csv").read_bytes() == b'id,score\n"a,b",0.5\nc,1\n'
    assert names(tmp_path) == ["a.csv"]


def test_csv_without_rows_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no rows"):
        write_csv(tmp_path / "a.csv", [])
    assert names(tmp_path) == []


def test_sha256_is_that_of_the_bytes(tmp_path):
    content = os.urandom(300_000)
    write_bytes(tmp_path / "a", content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_the_project_s_root_is_where_dvc_says_and_else_here(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert project_root() == here.resolve()
    monkeypatch.setenv("DVC_ROOT", str(there))
    assert project_root() == there.resolve()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_names_the_folder_and_what_to_do(tmp_path, monkeypatch, capsys, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))  # as a write does: without the file

    monkeypatch.setattr(Path, "write_bytes", fail)

    def main():
        write_bytes(tmp_path / "deep/model.pt", b"weights")

    assert exit_status(main) == 1
    assert capsys.readouterr().err == (
        f"error: the disk of {tmp_path}/deep/model.pt has run full. Make room there and run the "
        "same command again\n"
    )
    assert list((tmp_path / "deep").iterdir()) == []


def test_another_error_of_the_system_keeps_its_own_file(tmp_path, capsys):
    def main():
        with replacing(tmp_path / "a"):
            (tmp_path / "absent").read_text()

    assert exit_status(main) == 1
    message = f"error: {tmp_path}/absent: No such file or directory\n"
    assert capsys.readouterr().err == message


def test_what_is_damaged_is_named_with_its_stage():
    with pytest.raises(DataError) as caught, made_by("evaluate"):
        raise DataError("a.png cannot be read (truncated)", remedy="Replace the file")
    assert str(caught.value) == f"a.png cannot be read (truncated). Run: {rerun('evaluate')}"


def test_a_stage_is_made_anew_alone_and_only_then_what_depends_on_it(tmp_path, monkeypatch):
    """-f alone would run all stages before it again, the trainings among them."""
    for name in project.FILES:
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert rerun("evaluate") == "dvc repro -sf evaluate && dvc repro"
    assert repro("train_frozen", "evaluate") == "dvc repro train_frozen evaluate"


def test_outside_a_project_no_remedy_is_a_command_of_dvc(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = "in the project that the file comes from"
    assert rerun("evaluate") == f"the stage evaluate, {where}"
    assert repro("a", "b") == f"the stage a and the stage b, {where}"
    with pytest.raises(MissingFileError) as caught:
        require(Path("results/a.csv"), stage="evaluate")
    assert str(caught.value) == f"results/a.csv is missing. Run: the stage evaluate, {where}"


# Where a message may name DVC's commands itself, each with what keeps it from being seen elsewhere.
OF_PROJECTS = {
    "errors.py": "asks whether there is one",
    "doctor.py": "lesionseg doctor refuses to start outside a project",
    "sweep/tables.py": "and so does lesionseg sweep",
    "tracking/card.py": "and lesionseg register",
    "tracking/replay.py": "and lesionseg replay",
    "cli.py": "the help of doctor",
    "tracking/pages.py": "and lesionseg ui",
    "tracking/parents.py": "the name of what has started a run",
}


def test_only_what_knows_that_there_is_a_project_advises_dvc():
    package = Path(project.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        texts = [n for n in nodes if isinstance(n, ast.Constant) and id(n) not in docstrings]
        if any("dvc repro" in str(node.value) for node in texts):
            found.add(path.relative_to(package).as_posix())
    assert found == set(OF_PROJECTS)


@pytest.mark.parametrize("kind", [DataError, MissingFileError, TrackingError])
def test_an_error_has_its_problem_and_its_remedy_apart_also_from_another_process(kind):
    error = kind("a.png is damaged", "Mend it, then")
    for known in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert str(known) == f"{known.problem}. {known.remedy}"
        assert known.problem == "a.png is damaged"
        assert known.remedy.startswith("Mend it, then")
    assert str(kind("a.png is damaged")) == "a.png is damaged"
    assert not kind("a.png is damaged").remedy
