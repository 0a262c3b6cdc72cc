"""A sweep runs each setting once, names what failed, chooses by val, and goes on when killed."""

import argparse
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from fake_pipeline import (
    IDENTITY,
    PARAMS,
    ROOT,
    call,
    environment,
    experiments,
    fake_repository,
    start,
    trainings,
)

from lesionseg.cli import main
from lesionseg.config import load_config, override, read_yaml
from lesionseg.errors import ConfigError, DataError, LesionsegError
from lesionseg.results.layout import RUNS, Results
from lesionseg.results.training import seed_scores_table
from lesionseg.sweep.arguments import SAMPLERS, add_ablation, add_curve, add_sweep
from lesionseg.sweep.executor import Placement, placement
from lesionseg.sweep.finished import read_finished, val_scores
from lesionseg.sweep.space import (
    Axis,
    TpeSampler,
    grid,
    grid_axis,
    make_sampler,
    parse_axis,
)
from lesionseg.sweep.tables import score_text, summary
from lesionseg.sweep.trials import Outcome, Trial, check, confirm, make_trial, rank
from lesionseg.sweep.workspaces import (
    Repository,
    dvc_value,
    last_error,
    only_one,
    open_repository,
    read_scores,
)
from tests.damage import KINDS, damage

THREE_TRIALS = ("--grid", "model.dropout=0.2,0.3,0.6", "--jobs", "2")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A sweep of three trials, killed when two were done: repository, exit status, log."""
    folder = fake_repository(tmp_path_factory.mktemp("swept") / "project")
    process = start(folder, "sweep", *THREE_TRIALS, FAKE_SECONDS="300")
    while len(experiments(folder)) < 2 or "train_frozen 0.6" not in trainings(folder):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=60)[1]
    return folder, process.returncode, errors


@pytest.fixture(scope="module")
def swept(killed):
    """The same sweep, started again: repository, exit status, output, log."""
    folder, *_ = killed
    process = start(folder, "sweep", *THREE_TRIALS)
    output, errors = process.communicate()
    return folder, process.returncode, output, errors


def test_a_killed_sweep_ends_its_trials_and_leaves_the_repository_as_it_was(killed):
    folder, status, errors = killed
    assert status == 130
    assert errors.splitlines()[-1] == "interrupted. Run the same command again to go on"
    pid = int((folder.parent / "runs.txt").read_text().split()[-1])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert call(folder, "git", "status", "--porcelain") == ""
    assert not (folder / ".dvc/tmp/sweep/workspaces").exists()


def test_a_sweep_that_goes_on_runs_only_what_is_missing(swept):
    folder, _, output, _ = swept
    assert "3 trials: 2 finished (2 before), 1 failed" in output
    assert trainings(folder) == sorted(
        ["train_frozen 0.6"] * 2 + [f"{run} {value}" for run in RUNS for value in (0.2, 0.3)]
    )


def test_a_failed_trial_is_named_with_its_error_and_its_log(swept):
    _, status, output, errors = swept
    assert status == 1
    assert "1 of 3 trials failed" in errors.splitlines()[-1]
    failed = re.search(r"FAILED (sweep-\w{8}): model.dropout=0.6\n +(.*)\n +its log: (.*)", output)
    assert failed[2] == "so much dropout is too much"
    assert "so much dropout is too much" in Path(failed[3]).read_text()


def test_the_best_trial_is_an_experiment_to_apply_after_which_nothing_runs(swept):
    folder, _, output, _ = swept
    best = re.search(r"dvc exp apply (\S+) && dvc repro", output)[1]
    assert best in experiments(folder)
    call(folder, "dvc", "exp", "apply", best)
    assert read_yaml(folder / "params.yaml")["model"]["dropout"] == 0.2
    assert "Running stage" not in call(folder, "dvc", "repro")


def test_only_one_sweep_runs_in_a_repository(tmp_path):
    with (
        only_one(tmp_path),
        pytest.raises(LesionsegError, match="another sweep runs"),
        only_one(tmp_path),
    ):
        pass


def bare(folder, monkeypatch, *, without):
    """A repository as a sweep needs it, but for one thing."""
    for name in IDENTITY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    shutil.copyfile(PARAMS, folder / "params.yaml")
    if without != "git":
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    if without not in ("identity", "git"):
        for key in ("name", "email"):
            subprocess.run(["git", "config", f"user.{key}", "tester"], cwd=folder, check=True)
    (folder / "dvc.yaml").write_text("stages: {}")
    if without not in ("commit", "git", "identity"):
        subprocess.run(["git", "add", "--all"], cwd=folder, check=True)
        subprocess.run(["git", "commit", "--quiet", "-m", "start"], cwd=folder, check=True)
    if without != "dvc":
        (folder / ".dvc").mkdir()
    if without == "clean code":
        (folder / "src").mkdir()
        (folder / "src/new.py").touch()


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("git", "is no git repository.*Run: git init"),
        ("identity", "git does not know your name.*git config user.name NAME"),
        ("commit", "has no commit. Run: git add"),
        ("dvc", "has no .dvc. Run: dvc init"),
        ("clean code", "src/ is not as in the last commit.*Run: git add"),
    ],
)
def test_what_experiments_need_is_asked_for_in_one_line(tmp_path, monkeypatch, without, message):
    bare(tmp_path, monkeypatch, without=without)
    with pytest.raises(LesionsegError, match=message) as caught:
        open_repository(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "train.lrr=1"], "train: unknown key 'lrr'; did you mean lr"),
        (["--grid", "trian.lr=1"], "unknown section 'trian'; did you mean train"),
        (["--grid", "train.lr=0.1,-1"], "lr must be a number above 0, got -1"),
        (["--grid", "train.lr=1e-4..1e-2 log"], "number of points.*log 5"),
        (["--grid", "train.lr"], "must be SECTION.KEY=VALUES"),
        (["--grid", "train.lr=1,1"], "a value occurs twice"),
        (["--grid", "train.lr=1", "--grid", "train.lr=2"], "train.lr is given twice"),
        (["--grid", "train.lr=1", "--set", "train.lr=2"], "train.lr is given twice"),
        (["--grid", "train.lr=1", "--set", "train.epochs=2,3"], "takes one value"),
        (["--grid", "evaluate.threshold=0.4"], "no score on val depends on it"),
        (["--grid", "train.lr=1..2 1000000000"], "at most 10000 points, got 1000000000"),
        (
            ["--grid", "train.lr=1e-4..1 log 200", "--grid", "loss.bce=1..100 51"],
            "trials, got 10200",
        ),
        (["--search", "train.lr=1..1e400"], "must be between finite numbers"),
        (["--search", "train.lr=2..1"], "from the lower to the higher"),
        (["--search", "train.lr=0..1 log"], "a log range begins above 0"),
        (["--search", "model.dropout=0..1"], "dropout must be a number at least 0 and below 1"),
        (["--grid", "train.lr=1", "--name", "a/b"], "must be letters"),
    ],
)
def test_a_mistake_is_refused_before_anything_runs(monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(ROOT)
    assert main(["sweep", *arguments, "--dry-run"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"error: .*{message}.*\n", err), err


@pytest.mark.parametrize("value", ["0", "10001", "1" + "0" * 30, "1.5", "many"])
def test_more_trials_or_jobs_than_anybody_could_wait_for_are_refused(capsys, value):
    for option in ("--trials", "--jobs"):
        with pytest.raises(SystemExit):
            main(["sweep", "--search", "train.lr=1..2", option, value])
        message = f"must be a whole number in [1, 10000], got '{value}'"
        assert message in capsys.readouterr().err


def test_a_dry_run_prints_each_trial_and_what_is_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(PARAMS, "params.yaml")
    Path("dvc.yaml").touch()
    arguments = ["sweep", "--dry-run", "--grid", "loss.bce=0,1", "--grid", "loss.dice=0,1"]
    assert main([*arguments, "--set", "loss.iou=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines] == [
        f"loss.iou=1 loss.bce={bce} loss.dice={dice}" for bce in (0, 1) for dice in (0, 1)
    ]
    content = {"loss.bce": 0, "loss.dice": 0}
    text = override(read_yaml(PARAMS), {"loss.bce": 1, "loss.dice": 1, "loss.iou": 0})
    Path("params.yaml").write_text(text)
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith("LEFT OUT loss.bce=0 loss.dice=0: params.yaml: loss: all weights")
    with pytest.raises(ConfigError):
        check(read_yaml(Path("params.yaml")), content)


def test_a_grid_is_every_combination_and_a_range_has_its_ends():
    whole = {"train.batch_size": True, "train.lr": False}
    axes = [
        grid_axis("train.lr=1e-4..1e-2 log 3", whole=whole),
        grid_axis("train.batch_size=8..16 2", whole=whole),
    ]
    assert [axis.values for axis in axes] == [(0.0001, 0.001, 0.01), (8, 16)]
    assert len(list(grid(axes))) == 6
    assert parse_axis("model.decoder = bilinear, transposed")[0].values == (
        "bilinear",
        "transposed",
    )
    assert [value is True for value in parse_axis("train.cross_validate=true,false")[0].values] == [
        True,
        False,
    ]


AXES = (
    Axis(name="train.lr", low=1e-4, high=1e-2, is_log=True),
    Axis(name="train.batch_size", low=4, high=32),
    Axis(name="model.decoder", values=("bilinear", "transposed")),
)
WHOLE = {"train.lr": False, "train.batch_size": True, "model.decoder": False}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_search_stays_in_its_ranges_and_proposes_the_same_again(name):
    if name == "tpe":
        pytest.importorskip("optuna")

    def proposals():
        sampler = make_sampler(name, AXES, whole=WHOLE, seed=3)
        for number in range(24):
            settings = sampler.ask()
            yield settings
            sampler.tell(None if number == 5 else settings["train.lr"])

    first = list(proposals())
    assert first == list(proposals())
    for settings in first:
        assert 1e-4 <= settings["train.lr"] <= 1e-2
        assert settings["train.batch_size"] in range(4, 33)
        assert settings["model.decoder"] in AXES[2].values
    assert len({settings["model.decoder"] for settings in first}) == 2


def test_tpe_learns_where_scores_are_high():
    pytest.importorskip("optuna")
    sampler = TpeSampler(AXES[:1], whole=WHOLE, seed=0)
    values = []
    for _ in range(30):
        values.append(sampler.ask()["train.lr"])
        sampler.tell(values[-1])
    late = values[15:]
    assert sum(value > 3e-3 for value in late) > len(late) / 2


def test_a_trials_name_tells_all_that_its_score_depends_on_and_nothing_else():
    content = read_yaml(PARAMS)
    same = make_trial(content, {"train.lr": 0.01, "loss.bce": 1}, prefix="a").name
    assert make_trial(content, {"loss.bce": 1.0, "train.lr": 1e-2}, prefix="a").name == same
    assert make_trial(content, {"train.lr": 0.02}, prefix="a").name != same
    title = read_yaml(PARAMS)
    title["report"]["title"] = "another"
    assert make_trial(title, {"train.lr": 0.01}, prefix="a").name == same
    epochs = read_yaml(PARAMS)
    epochs["train"]["epochs"] += 1
    assert make_trial(epochs, {"train.lr": 0.01}, prefix="a").name != same


def outcome(name, *, frozen, finetuned, **settings):
    trial = Trial(name=name, settings={key.replace("__", "."): v for key, v in settings.items()})
    return Outcome(trial=trial, scores=dict(zip(RUNS, ([frozen], [finetuned]), strict=True)))


def test_the_best_is_model_2s_on_val_and_model_1_breaks_ties():
    rows = rank(
        [
            outcome("low", frozen=0.9, finetuned=0.5, train__lr=1),
            outcome("tie", frozen=0.6, finetuned=0.7, train__lr=2),
            outcome("best", frozen=0.65, finetuned=0.7, train__lr=3),
            Outcome(trial=Trial(name="failed", settings={}), error="no"),
        ]
    )
    assert [row.name for row in rows] == ["best", "tie", "low"]


def test_a_trial_whose_experiment_dvc_does_not_have_has_failed():
    kept, lost, other = (outcome(name, frozen=0.6, finetuned=0.7) for name in "abc")
    scores = {"train_frozen": [0.6], "train_finetuned": [0.7]}
    assert confirm(kept, scores) == kept
    for one, there in ((lost, None), (other, {**scores, "train_finetuned": [0.8]})):
        assert not confirm(one, there).scores
        assert "DVC does not have" in confirm(one, there).error


def test_trials_that_differ_in_their_seed_are_one_row_under_the_first_seeds_name():
    outcomes = [
        outcome("first", frozen=0.1, finetuned=0.6, train__lr=1, train__seed=0),
        outcome("lucky", frozen=0.1, finetuned=0.8, train__lr=1, train__seed=1),
        outcome("other", frozen=0.1, finetuned=0.75, train__lr=2, train__seed=0),
    ]
    rows = rank(outcomes)
    assert [(row.name, row.mean("train_finetuned")) for row in rows] == [
        ("other", 0.75),
        ("first", pytest.approx(0.7)),
    ]
    assert score_text(rows[1].scores["train_finetuned"]) == "0.700 ±0.141"
    text = summary(outcomes, [])
    assert "seeds" in text
    assert "train.seed" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_score_is_that_trials_failure_and_named(tmp_path, kind):
    results = Results(tmp_path)
    table, path = seed_scores_table("train_frozen"), results.seed_scores("train_frozen")
    table.write(path, [dict.fromkeys(table.columns, 0) | {"val_jaccard": 0.5}])
    assert read_scores(results, "train_frozen") == [0.5]
    damage(path, kind)
    with pytest.raises(
        DataError, match=rf"{path.name} .*Run: dvc repro -sf train_frozen"
    ) as caught:
        read_scores(results, "train_frozen")
    assert len(str(caught.value).splitlines()) == 1


def test_an_experiment_that_is_not_whole_is_not_finished(tmp_path):
    folder = fake_repository(tmp_path / "project")
    call(folder, "dvc", "exp", "run", "--name", "whole", "-S", "train.num_seeds=2")
    commit = call(folder, "git", "rev-parse", "HEAD").strip()
    repository = Repository(folder, commit, environment(folder))
    whole, unknown = (Trial(name=name, settings={}) for name in ("whole", "unknown"))
    expected = {run: pytest.approx([0.9, 0.89]) for run in RUNS}
    assert read_finished(repository, whole, val_scores) == expected
    assert read_finished(repository, unknown, val_scores) is None
    shutil.rmtree(folder / ".dvc/cache/files")
    assert read_finished(repository, whole, val_scores) is None


def test_values_reach_dvc_as_they_are_meant(tmp_path):
    assert [dvc_value(value) for value in (1e-05, 3, True, "cuda:1", "it's")] == [
        "1e-05",
        "3",
        "True",
        "'cuda:1'",
        r"'it\'s'",
    ]
    assert load_config(PARAMS)  # the file that the others of these tests start from


def test_the_error_of_a_trial_is_the_stages_own_before_dvcs():
    output = "epoch 1\nerror: loss is not finite\nERROR: failed to reproduce 'train'\n\nsee above"
    assert last_error(output) == "loss is not finite"
    assert last_error("ERROR: no such stage\nhint") == "no such stage"
    assert last_error("Killed") == "Killed"
    assert last_error("") == "it said nothing"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], Placement()),
        (["--jobs", "2"], Placement(jobs=2)),
        (
            ["--cluster", "ray://head:10001", "--num-cpus", "4", "--num-gpus", "1"],
            Placement(cluster="ray://head:10001", num_cpus=4, num_gpus=1),
        ),
        (
            ["--cluster", "local", "--checkpoints", "x"],
            Placement(cluster="local", checkpoints=Path("x")),
        ),
    ],
)
@pytest.mark.parametrize("add", [add_sweep, add_ablation, add_curve])
def test_where_trials_run_is_said_by_the_options_of_all_that_have_some(add, options, expected):
    parser = argparse.ArgumentParser()
    add(parser)
    own = ["--grid", "train.lr=1"] if add is add_sweep else []
    assert placement(parser.parse_args([*own, *options])) == expected


def test_another_address_than_a_cluster_has_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["sweep", "--grid", "train.lr=1", "--cluster", "head:6379"])
    assert "ray://HOST:PORT, auto, local or slurm, got 'head:6379'" in capsys.readouterr().err
