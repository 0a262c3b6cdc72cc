"""What the docs' commands print is recorded by running them: the record is of the very commands."""

import json
import re
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from experiments import recipes
from experiments.recipes import ROOT, SESSIONS, Session
from lesionseg.errors import LesionsegError
from tests.ports import free_port

RECORDS = json.loads(recipes.STORE.read_text())
NAMES = [(session, name) for session in SESSIONS for name in session.recipes]
ABOUT = {"date": "2027-01-31", "commit": "c0ffee", "machine": "a machine"}


def session(make=lambda folder: folder.mkdir(), **more):
    return Session(make=make, **more)


@pytest.mark.parametrize(("session", "name"), NAMES, ids=[name for _, name in NAMES])
def test_the_record_is_of_the_commands_that_the_page_shows(session, name):
    commands = [one["command"] for one in RECORDS[name]["commands"]]
    assert commands == list(session.recipes[name] or [recipes.fence_before(name)]), (
        f"Run: python -m experiments.recipes {session.page} && make docs-numbers"
    )
    page = (ROOT / f"docs/{session.page}.md").read_text(encoding="utf-8")
    assert all(command in page for command in commands)


def test_nothing_else_is_recorded():
    assert RECORDS.keys() == {name for _, name in NAMES}


def test_no_path_of_a_machine_is_recorded():
    said = [one["output"] for record in RECORDS.values() for one in record["commands"]]
    assert [text for text in said if re.search(r"(?<!\w)/(tmp|home|root|work|usr)/", text)] == []


def test_a_recipe_is_recorded_with_what_it_prints_and_without_its_place():
    found = recipes.run(session(recipes={"page.a": ["echo 'a  '; pwd; echo b >&2", "ls"]}), ABOUT)
    shown = [one["output"] for one in found["page.a"]["commands"]]
    assert shown == ["a\n...", ""]
    assert found["page.a"]["commit"] == "c0ffee"
    assert found["page.a"]["seconds"] >= 0


def test_a_recipe_that_fails_is_an_error_unless_it_must():
    given = {"page.a": ["echo a; echo 'error: so it is' >&2; exit 1"]}
    with pytest.raises(LesionsegError, match="exit status 1"):
        recipes.run(session(recipes=given), ABOUT)
    found = recipes.run(session(recipes=given, failing=["page.a"]), ABOUT)
    assert found["page.a"]["commands"][0]["output"] == "a\nerror: so it is"
    with pytest.raises(LesionsegError, match="exit status 0"):
        recipes.run(session(recipes={"page.a": ["true"]}, failing=["page.a"]), ABOUT)


def test_a_server_runs_for_the_recipes_after_it_and_no_longer():
    address = f"http://127.0.0.1:{free_port()}/"
    serve = (
        f"echo ready; echo why >&2; {sys.executable} -m http.server {address.split(':')[2][:-1]}"
    )
    ask = f"import urllib.request\nprint(urllib.request.urlopen({address!r}).status)"
    found = recipes.run(
        session(
            recipes={"page.serve": [serve], "page.ask": [ask]}, servers={"page.serve": address}
        ),
        ABOUT,
    )
    printed = found["page.serve"]["commands"][0]["output"]
    assert printed.startswith("ready")
    assert "why" not in printed
    assert found["page.ask"]["commands"][0]["output"] == "200"
    assert not recipes.is_there(address)


def test_a_server_of_somebody_else_is_not_taken_for_the_recipe_s():
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever).start()
        address = f"http://127.0.0.1:{other.server_port}/"
        given = {"page.serve": ["echo ready; sleep 60"]}
        try:
            with pytest.raises(LesionsegError, match="another server answers"):
                recipes.run(session(recipes=given, servers={"page.serve": address}), ABOUT)
        finally:
            other.shutdown()


def test_a_page_without_recipes_is_told():
    with pytest.raises(LesionsegError, match="no recipes for data; there are some for sweeps"):
        recipes.main(["data"])
