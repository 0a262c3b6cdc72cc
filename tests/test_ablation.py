"""An ablation runs each configuration once and compares it with its base, seed by seed."""

import re
from pathlib import Path

import pandas as pd
import pytest
from fake_pipeline import PARAMS, ROOT, experiments, fake_repository, start, trainings

from lesionseg.cli import main
from lesionseg.config import read_yaml
from lesionseg.errors import ConfigError
from lesionseg.results.layout import RUNS
from lesionseg.sweep.configurations import Configuration, read_configurations
from lesionseg.sweep.tables import ablation_tables
from lesionseg.sweep.trials import check, make_trial

FILE = ROOT / "experiments/ablation.yaml"
CONFIGURATIONS = read_configurations(FILE)
THREE = """
default: {what: nothing, set: []}
more: {what: more dropout, set: [model.dropout=0.3]}
far-more: {what: far too much dropout, set: [model.dropout=0.6]}
"""
ABLATION = ("ablation", "--file", "three.yaml", "--seeds", "2")


@pytest.mark.parametrize("one", CONFIGURATIONS, ids=lambda one: one.name)
def test_every_configuration_is_valid_and_changes_something_but_the_default(one):
    config = check(read_yaml(PARAMS), one.settings)
    assert (config == check(read_yaml(PARAMS), {})) == (one.name == "default")


def test_no_two_configurations_are_the_same():
    content = read_yaml(PARAMS)
    names = {make_trial(content, one.settings, prefix="a").name for one in CONFIGURATIONS}
    assert len(names) == len(CONFIGURATIONS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {what: x, set: []}\na: {what: y, set: []}", "key 'a' occurs twice"),
        ("a: {set: []}", "a must have `what` and `set`"),
        ("a: {what: x, set: [], also: y}", "a must have `what` and `set`, and may have `from`"),
        ("a: {from: b, what: x, set: []}\nb: {what: y, set: []}", "from must name an entry above"),
        ("a: {what: x, set: {train.lr: 1}}", "a: set must be a list"),
        ("a: {what: x, set: ['train.lr=1,2']}", "a: train.lr takes one value"),
        ("a: {what: x, set: [train.lr=1, train.lr=2]}", "a: train.lr is given twice"),
        ("a/b: {what: x, set: []}", "must be letters"),
    ],
)
def test_a_mistake_in_the_file_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "ablation.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_configurations(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "none"], "--only none: .* has default, plain, system-1"),
        (["--set", "train.epochs=2"], "ablation.yaml: plain: train.epochs is set for all"),
        (["--file", "absent.yaml"], "absent.yaml is missing. Name a file of .* with --file"),
        (["--set", "train.num_seeds=2"], "train.num_seeds is given twice"),
        (["--set", "train.lr=-1"], "lr must be a number above 0"),
    ],
)
def test_a_mistake_is_refused_before_anything_runs(monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(ROOT)
    assert main(["ablation", *arguments, "--dry-run"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"error: .*{message}.*\n", err), err


def test_a_dry_run_prints_what_would_run_in_the_files_order(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["ablation", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub("^ablation-|-[0-9a-f]{8}  .*$", "", line) for line in lines] == [
        one.name for one in CONFIGURATIONS
    ]
    only = ["--only", "lovasz", "--only", "default", "--seeds", "2", "--set", "train.lr=0.004"]
    assert main(["ablation", *only, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    settings = [line.split(maxsplit=1)[1] for line in lines]
    assert settings[0] == "train.lr=0.004 train.num_seeds=2"
    assert settings[1].startswith(
        "train.lr=0.004 train.num_seeds=2 train.epochs=15 augment.scale=0"
    )
    assert settings[1].endswith(" loss.dice=0 loss.iou=0 loss.lovasz=1")


def test_a_trial_is_another_one_when_the_scoring_of_test_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").touch()
    printed = []
    for threshold in ("0.5", "0.4"):
        text = PARAMS.read_text().replace("threshold: 0.5", f"threshold: {threshold}")
        Path("params.yaml").write_text(text)
        assert main(["ablation", "--file", str(FILE), "--only", "default", "--dry-run"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] != printed[1]


def results(name, run, *test_jaccards):
    return [
        {
            "name": name,
            "run": run,
            "seed": seed,
            "val_jaccard": 0.9,
            "test_jaccard": jaccard,
            "test_dice": 0.95,
            "seconds": 100 + seed,
        }
        for seed, jaccard in enumerate(test_jaccards)
    ]


def configurations(*names, base="default"):
    return [Configuration(name=name, base=base, what=f"as {name}", settings={}) for name in names]


def test_the_tables_have_means_over_seeds_and_differences_within_them():
    frozen, finetuned = RUNS
    rows = [
        *results("default", finetuned, 0.80, 0.84),
        *results("better", finetuned, 0.82, 0.85),
        *results("better", frozen, 0.7),
        *results("default", frozen, 0.75),
    ]
    head = (
        "|  | base | what it changes | val jaccard | test jaccard | test dice | "
        "test jaccard - base's | training, s |\n"
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |\n"
    )
    # Differences +0.02 and +0.01: mean 0.015, standard deviation 0.01 / sqrt(2).
    assert ablation_tables(pd.DataFrame(rows), configurations("better", "not-run", "default")) == (
        "Fine-tuned:\n\n"
        + head
        + "| `better` | `default` | as better | 0.900 ±0.000 | 0.835 ±0.021 | "
        "0.950 ±0.000 | +0.015 ±0.007 | 100 |\n"
        "| `default` |  | as default | 0.900 ±0.000 | 0.820 ±0.028 | 0.950 ±0.000 |  | 100 |\n\n"
        "Frozen:\n\n"
        + head
        + "| `better` | `default` | as better | 0.900 | 0.700 | 0.950 | -0.050 | 100 |\n"
        "| `default` |  | as default | 0.900 | 0.750 | 0.950 |  | 100 |\n"
    )


def test_an_entry_has_what_its_base_sets_and_may_set_it_otherwise(tmp_path):
    path = tmp_path / "ablation.yaml"
    path.write_text(
        "a: {what: x, set: [train.lr=1, train.epochs=2]}\n"
        "b: {from: a, what: y, set: [train.epochs=3, loss.iou=0]}\n"
        "c: {from: b, what: z, set: []}\n"
    )
    found = {one.name: (one.base, one.settings) for one in read_configurations(path)}
    changed = {"train.lr": 1, "train.epochs": 3, "loss.iou": 0}
    assert found == {
        "a": ("default", {"train.lr": 1, "train.epochs": 2}),
        "b": ("a", changed),
        "c": ("b", changed),
    }


def test_the_difference_is_to_the_base():
    run = RUNS[1]
    rows = [*results("default", run, 0.8), *results("base", run, 0.7), *results("one", run, 0.75)]
    known = [*configurations("default", "base"), *configurations("one", base="base")]
    text = ablation_tables(pd.DataFrame(rows + results("one", RUNS[0], 0.5)), known)
    assert "| `base` | `default` | as base | 0.900 | 0.700 | 0.950 | -0.100 | 100 |" in text
    assert "| `one` | `base` | as one | 0.900 | 0.750 | 0.950 | +0.050 | 100 |" in text


def test_seeds_that_the_base_has_not_are_in_no_difference():
    run = RUNS[1]
    rows = [*results("default", run, 0.8), *results("other", run, 0.9, 0.1)]
    rows += results("other", RUNS[0], 0.5)
    text = ablation_tables(pd.DataFrame(rows), configurations("other"))
    assert "| 0.500 ±0.566 |" in text
    assert "| +0.100 |" in text


@pytest.fixture(scope="module")
def ablated(tmp_path_factory):
    """A repository with three configurations, one of which fails: exit status, output."""
    folder = fake_repository(tmp_path_factory.mktemp("ablated") / "project")
    (folder / "three.yaml").write_text(THREE)
    process = start(folder, *ABLATION, "--jobs", "2")
    output, errors = process.communicate()
    assert "ablation" in output, errors
    return folder, process.returncode, output


def test_every_configuration_is_an_experiment_whose_seeds_are_in_the_csv(ablated):
    folder, _, _ = ablated
    assert sorted(name[:-9] for name in experiments(folder)) == [
        "ablation-default",
        "ablation-more",
    ]
    table = pd.read_csv(folder / "results/three.csv")
    keys = [(name, run, seed) for name in ("default", "more") for run in RUNS for seed in (0, 1)]
    assert [tuple(row) for row in table[["name", "run", "seed"]].to_numpy()] == keys
    last = table.iloc[-1]
    assert last[["val_jaccard", "test_jaccard", "test_dice", "seconds"]].to_list() == (
        pytest.approx([0.69, 0.59, 0.65, 11])
    )


def test_a_failed_configuration_is_named_and_the_others_are_compared(ablated):
    _, status, output = ablated
    assert status == 1
    assert re.search(r"FAILED ablation-far-more-.*\n +so much dropout.*\n +its log: ", output)
    assert output.count("| `more` | `default` | more dropout | 0.695 ±0.007 | 0.595 ±0.007 | ") == 2
    assert output.count("| -0.200 ±0.000 |") == 2


def test_a_finished_configuration_is_not_run_again_and_stays_in_the_table(ablated):
    folder, _, output = ablated
    before = trainings(folder)
    process = start(folder, *ABLATION, "--only", "more")
    again, errors = process.communicate()
    assert process.returncode == 0, errors
    assert trainings(folder) == before
    assert again == output.split("\nFAILED")[0]
