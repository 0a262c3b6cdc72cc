"""docs/experiments.md: its commands do what they say, in a pipeline that takes no time."""

import re
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from lesionseg.config import read_yaml
from tests.fake_pipeline import PARAMS, call, environment, fake_repository
from tests.pages import PAGES, commands

ROOT = Path(__file__).parents[1]
RUNS = [
    shlex.split(command.line)
    for command in commands(ROOT / "docs/experiments.md")
    if command.line.startswith("dvc exp run")
]


def settings_of(words):
    pairs = [after for word, after in pairwise(words) if word == "-S"]
    return dict(pair.split("=") for pair in pairs)


def params_of(folder, name):
    (reference,) = call(
        folder, "git", "for-each-ref", "--format=%(refname)", f"refs/exps/**/{name}"
    ).split()
    (folder.parent / "params.yaml").write_text(
        call(folder, "git", "show", f"{reference}:params.yaml")
    )
    return read_yaml(folder.parent / "params.yaml")


def with_settings(settings):
    path = ROOT / "params.yaml"
    content = read_yaml(path)
    for name, value in settings.items():
        section, key = name.split(".")
        kind = type(content[section][key])
        content[section][key] = value == "true" if kind is bool else kind(value)
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A repository in which the page's experiments have run, one after the other."""
    folder = fake_repository(tmp_path_factory.mktemp("experiments") / "project")
    call(folder, "dvc", "repro", "--quiet")
    call(folder, "git", "add", "--all")
    call(folder, "git", "commit", "--quiet", "--message", "results")
    for words in RUNS:
        call(folder, *words)
    return folder


def test_the_page_names_experiments_with_a_setting_each():
    assert len(RUNS) >= 5
    assert all(settings_of(words) for words in RUNS)


def test_each_experiment_differs_in_what_its_line_says_and_in_nothing_else(folder):
    for words in RUNS:
        name = words[words.index("--name") + 1]
        assert params_of(folder, name) == with_settings(settings_of(words))


def test_the_workspace_stays_as_it_was(folder):
    assert call(folder, "git", "status", "--porcelain") == ""
    assert read_yaml(folder / "params.yaml") == read_yaml(PARAMS)


def test_an_experiment_is_taken_over_and_left_as_the_page_says(folder):
    lines = [command.line for command in commands(ROOT / "docs/experiments.md")]
    apply, back = (
        next(line for line in lines if line.startswith(start))
        for start in ("dvc exp apply", "git checkout")
    )
    call(folder, "sh", "-c", apply)
    assert read_yaml(folder / "params.yaml")["model"]["decoder"] == "bilinear"
    call(folder, "sh", "-c", back)
    assert call(folder, "git", "status", "--porcelain") == ""
    assert read_yaml(folder / "params.yaml") == read_yaml(PARAMS)


def test_without_temp_settings_add_up_until_git_brings_the_committed_ones_back(tmp_path):
    folder = fake_repository(tmp_path / "project")
    call(folder, "dvc", "exp", "run", "-S", "model.dropout=0.2")
    call(folder, "dvc", "exp", "run", "-S", "train.lr=0.001")
    both = read_yaml(folder / "params.yaml")
    assert (both["model"]["dropout"], both["train"]["lr"]) == (0.2, 0.001)
    call(folder, "git", "checkout", "params.yaml")
    assert read_yaml(folder / "params.yaml") == read_yaml(PARAMS)


def test_no_page_names_a_run_that_changes_params_yaml_but_to_say_which_data():
    lines = [
        shlex.split(command.line)
        for page in PAGES
        for command in commands(page)
        if command.line.startswith("dvc exp run")
    ]
    stay = [words for words in lines if not {"--temp", "--queue"} & set(words)]
    assert [words for words in stay if not any("download." in word for word in words)] == []


def make_experiments(folder):
    """What `make experiments` prints in a repository."""
    makefile = (ROOT / "Makefile").read_text()
    command = re.search(r"(?m)^SHOW = (.*)$", makefile)[1]
    recipe = re.search(r"(?m)^experiments: setup\n\t@(.*)$", makefile)[1]
    done = subprocess.run(
        recipe.replace("$(SHOW)", command),
        shell=True,
        cwd=folder,
        env=environment(folder, COLUMNS="60"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]


def test_make_experiments_shows_jaccards_and_what_differs_the_best_on_val_first(tmp_path):
    folder = fake_repository(tmp_path / "project")
    assert make_experiments(folder)[0] == ["Experiment"]  # nothing has run
    call(folder, "dvc", "repro", "--quiet")
    call(folder, "git", "add", "--all")
    call(folder, "git", "commit", "--quiet", "--message", "results")
    for dropout in ("0.3", "0.05"):
        call(folder, "dvc", "exp", "run", "--temp", "-S", f"model.dropout={dropout}")
    header, _, _workspace, _commit, *rows = [row for row in make_experiments(folder) if row]
    assert header[1:] == ["frozen.jaccard", "tuned.jaccard", "tuned.val", "model.dropout"]
    assert [row[1:] for row in rows] == [
        ["0.85", "0.85", "0.95", "0.05"],
        ["0.6", "0.6", "0.7", "0.3"],
    ]


def test_what_dvc_prints_of_the_metrics_fits_100_columns(folder):
    lines = call(folder, "dvc", "metrics", "show").splitlines()
    assert max(map(len, lines)) <= 100
    assert {"frozen.jaccard", "frozen.dice", "tuned.jaccard", "tuned.dice", "tuned.val"} < set(
        lines[0].split()
    )
