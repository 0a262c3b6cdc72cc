"""What README and docs tell a user to type exists, and their links lead somewhere."""

import argparse
import contextlib
import io
import re
import tomllib
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from dvc.cli import DvcParserError
from dvc.cli import parse_args as parse_dvc
from dvc.cli.parser import get_main_parser

from docs import fill_numbers
from lesionseg.cli import _make_parser
from lesionseg.config import load_config, override, read_yaml
from tests.pages import PAGES, ROOT, Command, commands, fences

LANGUAGES = {"bash", "console", "text", "python", "yaml", "diff", "mermaid"}
# Programs that are not the project's; a new one is looked at once, and then named here.
OTHERS = {
    "source",
    "cd",
    "export",
    "git",
    "pre-commit",
    "ray",
    "chmod",
    "curl",
    "cut",
    "head",
    "docker",
    "sqlite3",
    "wc",
    "printf",
    "tr",
    "base64",
    "mlflow",
    "sudo",
    "useradd",
    "install",
    "cp",
    "systemctl",
    "pg_dump",
    "pg_restore",
    "createdb",
    "{",
    "}",
    "/opt/mlflow/bin/pip",
}
OF_OLD = {"CHANGELOG.md", "log.md"}  # what was and is no more is in them too
MAKEFILE = (ROOT / "Makefile").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# What CONTRIBUTING.md's recipes add; tests/test_contributing.py applies them.
OF_RECIPES = {"loss.log_cosh_dice": "loss.dice", "additive": "pyramid", "beside": "folder"}


def check_make(words):
    targets = [word for word in words if "=" not in word and not word.startswith("-")]
    assert targets
    for target in targets:
        assert re.search(rf"(?m)^{re.escape(target)}:", MAKEFILE), f"no target {target}"


def check_lesionseg(words):
    try:
        arguments = _make_parser().parse_args(words)
    except SystemExit as exit_:
        if exit_.code:  # --version ends as well
            pytest.fail(" ".join(words))
    else:
        check_parameters(
            [*(getattr(arguments, "set", None) or []), *getattr(arguments, "grid", [])]
        )


def check_dvc(words):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            arguments = parse_dvc(words)
        except DvcParserError:
            pytest.fail(said.getvalue())
    check_parameters(getattr(arguments, "set_param", None) or [])


def check_parameters(settings):
    """Each name is one of params.yaml, each value one that it may have."""
    for setting in settings:
        name, _, values = setting.partition("=")
        if ".." not in values:  # a range, which tests/test_sweep.py knows
            for value in values.split(","):
                check_parameter(OF_RECIPES.get(name, name), OF_RECIPES.get(value, value))


def check_parameter(name, value):
    content = read_yaml(ROOT / "params.yaml")
    section, key = name.split(".")
    old = content[section][key]
    # What the value may need beside it: the page sets that too.
    others = {"download.folder": "data", "train.num_seeds": 2, "loss.bce": 1}
    kind = yaml.safe_load if isinstance(old, bool) else type(old) if isinstance(old, str) else float
    with TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_text(override(content, {**others, name: kind(value)}))
        load_config(path)


def check_python(words):
    if words[0] == "-m":
        assert find_spec(words[1]) or words[1] == "build", words[1]  # named with how to install it
    elif words[0] != "-c":
        assert (ROOT / words[0]).exists(), words[0]


def check_pip(words):
    for extra in re.findall(r"\.\[(\w+)\]", " ".join(words)):
        assert extra in EXTRAS


CHECKS = {
    "make": check_make,
    "lesionseg": check_lesionseg,
    "dvc": check_dvc,
    "python": check_python,
    "python3": check_python,
    "pip": check_pip,
}
CALLS = sorted(
    {
        (command.page, tuple(call))
        for page in PAGES
        for command in commands(page)
        for call in command.parts()
    }
)


@pytest.mark.parametrize(
    ("page", "call"), CALLS, ids=[f"{page}: {' '.join(call)[:60]}" for page, call in CALLS]
)
def test_what_a_page_tells_to_type_exists(page, call):
    program, *words = call
    if program not in OTHERS:
        CHECKS[program](words)


def test_enough_commands_are_found():
    programs = {call[0] for _, call in CALLS}
    assert {"make", "lesionseg", "dvc", "pip", "curl"} <= programs
    assert len(CALLS) > 50


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_fence_names_what_it_holds(page):
    assert [text for language, text in fences(page) if language not in LANGUAGES] == []


def inline(page):
    """What stands as code in a page's sentences and tables, but for what a command writes there."""
    text = fill_numbers.BLOCK.sub("", page.read_text(encoding="utf-8"))
    text = re.sub(r"(?ms)^```.*?^```$", "", text)
    return sorted(set(re.findall(r"`([^`\n]+)`", text)))


INLINE = [(page.name, code) for page in PAGES if page.name not in OF_OLD for code in inline(page)]
NAMED = [
    (page, code) for page, code in INLINE if re.match(r"(make|lesionseg|dvc|pip|python) ", code)
]
FILES = [
    (page, code)
    for page, code in INLINE
    if re.fullmatch(r"(src|stages|experiments|benchmarks|docs|tests|notebooks)/[\w./-]+", code)
    or re.fullmatch(r"[\w/-]+/\w+\.py", code)
]


def check_options(parser, words):
    """Commands and options exist, whatever else they may need."""
    for word in words:
        groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if word.startswith("--"):
            assert word.partition("=")[0] in parser._option_string_actions, word
        elif word.startswith("-"):  # several letters are several options
            assert all(f"-{letter}" in parser._option_string_actions for letter in word[1:]), word
        elif groups:
            assert word in groups[0].choices, word
            parser = groups[0].choices[word]


@pytest.mark.parametrize(("page", "code"), NAMED, ids=[f"{page}: {code}" for page, code in NAMED])
def test_a_command_in_a_sentence_exists(page, code):
    parsers = {"lesionseg": _make_parser, "dvc": get_main_parser}
    for program, *words in Command(page, code).parts():
        if program in parsers:
            check_options(parsers[program](), words)
        elif program not in OTHERS:
            CHECKS[program](words)


@pytest.mark.parametrize(("page", "code"), FILES, ids=[f"{page}: {code}" for page, code in FILES])
def test_a_file_in_a_sentence_exists(page, code):
    places = [ROOT, ROOT / "src/lesionseg"]
    assert any((place / code).exists() for place in places), code


def test_enough_of_sentences_is_found():
    assert len(NAMED) > 50
    assert len(FILES) > 20


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8"))
    headings = re.findall(r"(?m)^#+ (.+)$", text)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page):
    text = re.sub(r"(?ms)^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"))
    for path, anchor in re.findall(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        target = page.parent / path if path else page
        assert target.is_file(), f"{page.name}: {path}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {path}#{anchor}"
