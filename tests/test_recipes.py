"""What the docs' commands print is recorded by running them."""

import sys

import pytest

from experiments import recipes
from experiments.recipes import Session
from lesionseg.errors import LesionsegError
from tests.ports import free_port

ABOUT = {"date": "2027-01-31", "commit": "c0ffee", "machine": "a machine"}


def session(make=lambda folder: folder.mkdir(), **more):
    return Session(make=make, **more)


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


def test_a_page_without_recipes_is_told():
    with pytest.raises(LesionsegError, match="no recipes for data; there are some for sweeps"):
        recipes.main(["data"])
