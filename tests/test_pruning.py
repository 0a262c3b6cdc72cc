"""Hopeless trials are stopped early, the others never; neither forgotten nor trained again."""

import argparse
import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_pipeline import PARAMS, ROOT, call, fake_repository, start, trainings

from benchmarks.pruning import Trained, replay
from lesionseg.config import read_yaml
from lesionseg.errors import ConfigError
from lesionseg.results.layout import FINETUNED, FROZEN, RUNS, Results
from lesionseg.results.training import history_table, seed_scores_table
from lesionseg.sweep import sweep as sweep_module
from lesionseg.sweep.arguments import add_sweep
from lesionseg.sweep.finished import val_curve
from lesionseg.sweep.progress import read_curve
from lesionseg.sweep.pruning import Pruner
from lesionseg.sweep.space import Axis, TpeSampler
from lesionseg.sweep.sweep import Sweep
from lesionseg.sweep.tables import summary
from lesionseg.sweep.trials import Outcome, Trial
from lesionseg.sweep.workspaces import Repository, judged_first

pytest.importorskip("optuna", reason="optuna is missing: pip install -e '.[sweep]'")

NUM_EPOCHS = 9


def trial(name):
    return Trial(name=name, settings={})


def finished(name, score):
    return Outcome(trial=trial(name), scores={FROZEN: [0.5], FINETUNED: [score]})


def steady(score, *, num_epochs=NUM_EPOCHS):
    """A curve that rises to a score."""
    return {epoch: score * epoch / NUM_EPOCHS for epoch in range(1, num_epochs + 1)}


def make_pruner(kind, folder, *, scores=()):
    """A pruner that has heard of trials which have finished."""
    pruner = Pruner(kind, num_epochs=NUM_EPOCHS, folder=folder)
    for number, score in enumerate(scores):
        pruner.end(finished(f"finished-{number}", score), steady(score))
    return pruner


FIVE = (0.7, 0.72, 0.74, 0.76, 0.78)


def test_the_median_stops_what_is_behind_after_a_third_of_the_epochs(tmp_path):
    pruner = make_pruner("median", tmp_path, scores=FIVE)
    assert pruner.hear(trial("hopeless"), steady(0.5, num_epochs=2)) is None
    stop = pruner.hear(trial("hopeless"), steady(0.5))
    assert (stop.epoch, stop.score) == (3, pytest.approx(0.5 / 3))
    assert stop.reason == (
        "after 3 of 9 epochs: best val jaccard 0.167; the median of 5 finished trials is 0.247"
    )
    assert pruner.hear(trial("better than the median"), steady(0.75)) is None


def test_the_median_stops_nothing_before_five_trials_have_finished(tmp_path):
    pruner = make_pruner("median", tmp_path, scores=FIVE[:4])
    assert pruner.hear(trial("hopeless"), steady(0.1)) is None
    pruner.end(Outcome(trial=trial("failed"), error="no"), {})
    assert pruner.hear(trial("as hopeless"), steady(0.1)) is None


def test_asha_lets_the_best_third_go_on_after_a_ninth_and_a_third(tmp_path):
    pruner = make_pruner("asha", tmp_path, scores=FIVE)
    stop = pruner.hear(trial("hopeless"), steady(0.5))
    assert stop.reason == (
        "after 1 of 9 epochs: best val jaccard 0.056; the best 2 of 6 trials have at least 0.084"
    )
    fading = {1: 0.2, 2: 0.2, 3: 0.2}
    assert pruner.hear(trial("fading"), fading).epoch == 3
    assert pruner.hear(trial("best"), steady(0.9)) is None


@pytest.mark.parametrize("kind", ["median", "asha"])
def test_one_bad_epoch_does_not_count(tmp_path, kind):
    pruner = make_pruner(kind, tmp_path, scores=FIVE)
    assert pruner.hear(trial("noisy"), {1: 0.1, 2: 0.4, 3: 0.01, 4: 0.02}) is None


@pytest.mark.parametrize("kind", ["median", "asha"])
def test_a_training_that_is_through_is_not_stopped(tmp_path, kind):
    pruner = make_pruner(kind, tmp_path, scores=FIVE)
    assert pruner.hear(trial("late"), {NUM_EPOCHS: 0.1}) is None


def test_how_often_a_log_is_looked_at_changes_nothing(tmp_path):
    curve = {**steady(0.75, num_epochs=3), **dict.fromkeys(range(4, 8), 0.3)}
    stops = []
    for name, cuts in (("seldom", [7]), ("often", range(1, 8))):
        pruner = make_pruner("median", tmp_path / name, scores=FIVE)
        parts = ({e: s for e, s in curve.items() if e <= cut} for cut in cuts)
        stops.append(next(filter(None, (pruner.hear(trial("one"), part) for part in parts))))
    assert stops[0] == stops[1]


def test_epochs_are_counted_through_all_seeds_of_the_fine_tuned_model(tmp_path):
    def epoch(run, number, score):
        return (
            f"{run} epoch {number}/3: loss 0.1, val loss 0.2, val jaccard {score}, val dice 0.9; "
            "12 s, about 2.4 min left"
        )

    lines = [
        f"{FROZEN} with seed 4 of [4, 5]",
        epoch(FROZEN, 1, 0.999),
        f"{FINETUNED} with seed 4 of [4, 5]",
        epoch(FINETUNED, 1, 0.5),
        epoch(FINETUNED, 3, 0.6),
        f"{FINETUNED} with seed 5 of [4, 5]",
        f"{FINETUNED} goes on after epoch 1",
        epoch(FINETUNED, 2, 0.55),
        epoch(FINETUNED, 3, 0.7)[:60],  # half a line
    ]
    log = tmp_path / "log"
    log.write_text("\n".join(lines))
    assert read_curve(log) == {1: 0.5, 3: 0.6, 5: 0.55}
    assert read_curve(tmp_path / "none") == {}


def test_finished_trials_have_the_curve_that_their_log_had(tmp_path):
    results = Results(tmp_path)
    table = seed_scores_table(FINETUNED)
    rows = [dict.fromkeys(table.columns, 0) | {"seed": seed} for seed in (4, 5)]
    table.write(results.seed_scores(FINETUNED), rows)
    table = history_table(FINETUNED)
    for seed, files in results.trainings(FINETUNED, range(4, 6)).items():
        rows = [
            dict.fromkeys(table.columns, 0) | {"epoch": epoch, "val_jaccard": seed / 10 + 0.00049}
            for epoch in (1, 2)
        ]
        table.write(files.history, rows)

    class Experiment:
        def fetch(self, path):
            return path

    experiment = Experiment()
    experiment.results = results
    assert val_curve(experiment) == {1: 0.4, 2: 0.4, 3: 0.5, 4: 0.5}


def test_tpe_takes_a_stopped_trial_as_worse_than_a_finished_one():
    axis = Axis(name="train.lr", low=0.0, high=1.0)
    sampler = TpeSampler([axis], whole={axis.name: False}, seed=0)
    values = []
    for _ in range(40):
        values.append(sampler.ask()["train.lr"])
        is_stopped = values[-1] < 0.7
        sampler.tell(0.99 if is_stopped else 0.5, epoch=3 if is_stopped else 0)
    assert sum(value > 0.7 for value in values[20:]) > 10  # of 20; by chance there were 6


def test_the_judged_model_is_trained_first_and_each_stage_after_what_it_needs():
    stages = read_yaml(ROOT / "dvc.yaml")["stages"]
    order = judged_first(ROOT)
    assert sorted(order) == sorted(stages)
    assert order.index(FINETUNED) + 1 == order.index(FROZEN)
    missing = {out for stage in stages.values() for out in paths(stage, "outs")}
    for name in order:
        deps = paths(stages[name], "deps")
        assert not [dep for dep in deps for out in missing if Path(dep).is_relative_to(out)]
        missing -= set(paths(stages[name], "outs"))
    assert not missing


def paths(stage, kind):
    """Those of a stage's `deps` or `outs`, also where they have options."""
    entries = stage.get(kind, [])
    return [one if isinstance(one, str) else next(iter(one)) for one in entries]


# --- a sweep, its trials run by what takes no time


class Fakes:
    """An executor and its experiments: trials of some dropout end with `1 - dropout` on val.

    Attributes:
        epochs: How many epochs of a trial were trained, by its dropout.
    """

    jobs = 1

    def __init__(self):
        self.epochs = {}
        self._finished = {}

    def run(self, trials, *, pruner=None):
        for one in trials:
            dropout = one.settings["model.dropout"]
            score, stop = round(1 - dropout, 3), None
            for epoch in range(self.epochs.get(dropout, 0) + 1, NUM_EPOCHS + 1):
                self.epochs[dropout] = epoch
                curve = {epoch: round(score * epoch / NUM_EPOCHS, 3)}  # what the new log has
                if stop := pruner and pruner.hear(one, curve):
                    break
            if stop:
                yield Outcome(trial=one, stop=stop)
            else:
                self._finished[one.name] = score
                yield Outcome(trial=one, scores={run: [score] for run in RUNS}, seconds=1)

    def read_finished(self, _repository, one, read):
        score = self._finished.get(one.name)
        if score is None:
            return None
        if read is val_curve:
            return {epoch: round(value, 3) for epoch, value in steady(score).items()}
        return {run: [score] for run in RUNS}

    @contextmanager
    def open(self, *_, **__):
        yield self


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_bytes(PARAMS.read_bytes())
    monkeypatch.chdir(tmp_path)
    fakes = Fakes()
    monkeypatch.setattr(sweep_module, "open_executor", fakes.open)
    monkeypatch.setattr(sweep_module, "read_finished", fakes.read_finished)
    repository = Repository(root=tmp_path, commit="0" * 40, environment={})
    monkeypatch.setattr(sweep_module, "open_repository", lambda _: repository)
    return fakes


GRID = ("--grid", "model.dropout=0.3,0.28,0.26,0.24,0.22,0.5,0.2,0.6")
SET = ("--set", f"train.epochs={NUM_EPOCHS}")


def make_sweep(*arguments):
    parser = argparse.ArgumentParser()
    add_sweep(parser)
    return Sweep(parser.parse_args(arguments))


def swept(*arguments):
    sweep = make_sweep(*arguments, *SET)
    sweep.run()
    return sweep.outcomes()


def test_a_sweep_stops_the_hopeless_and_no_others(fakes):
    outcomes = swept(*GRID, "--pruner", "median")
    stopped = [one.trial.settings["model.dropout"] for one in outcomes if one.stop]
    assert stopped == [0.5, 0.6]
    assert sorted(fakes.epochs.values()) == [3, 3, *[NUM_EPOCHS] * 6]
    text = summary(outcomes, [])
    assert "8 trials: 6 finished, 2 stopped early" in text
    assert re.search(
        r"STOPPED EARLY sweep-\w{8}: train.epochs=9 model.dropout=0.5\n +after 3 of 9 epochs", text
    )
    assert re.search(r"Best .*model.dropout=0.2\)", text)


def test_without_a_pruner_nothing_is_stopped(fakes):
    assert not any(one.stop for one in swept(*GRID))
    assert set(fakes.epochs.values()) == {NUM_EPOCHS}


def test_the_same_command_again_trains_nothing_and_tells_the_same(fakes):
    first, trained = swept(*GRID, "--pruner", "median"), dict(fakes.epochs)
    again = swept(*GRID, "--pruner", "median")
    assert fakes.epochs == trained
    assert [(one.trial, one.stop) for one in again] == [(one.trial, one.stop) for one in first]


def test_without_the_pruner_a_stopped_trial_goes_on_to_its_end(fakes):
    swept(*GRID, "--pruner", "median")
    assert all(one.scores for one in swept(*GRID))
    assert set(fakes.epochs.values()) == {NUM_EPOCHS}


def test_another_pruner_judges_what_the_first_has_stopped(fakes):
    swept(*GRID, "--pruner", "median")
    trained = dict(fakes.epochs)
    outcomes = swept(*GRID, "--pruner", "asha")
    stops = {one.trial.settings["model.dropout"]: one.stop for one in outcomes if one.stop}
    assert {dropout: stop.pruner for dropout, stop in stops.items()} == {0.5: "asha", 0.6: "asha"}
    assert fakes.epochs == trained


def test_trials_that_another_command_has_finished_count(fakes):
    swept("--grid", "model.dropout=0.3,0.28,0.26,0.24,0.22")
    *_, last = swept("--grid", "model.dropout=0.3,0.28,0.26,0.24,0.22,0.6", "--pruner", "median")
    assert last.stop.reason.endswith("the median of 5 finished trials is 0.247")


def test_a_search_proposes_the_same_again_whatever_was_stopped(fakes):
    search = ("--search", "model.dropout=0..0.9", "--trials", "16", "--pruner", "asha")
    first = [(one.trial, one.stop) for one in swept(*search)]
    assert len(first) == 16
    assert any(stop for _, stop in first)
    trained = dict(fakes.epochs)
    assert [(one.trial, one.stop) for one in swept(*search)] == first
    assert fakes.epochs == trained


def test_a_damaged_file_of_a_stopped_trial_costs_its_epochs_and_no_more(fakes, caplog):
    swept(*GRID, "--pruner", "median")
    for path in Path(".dvc/tmp/sweep/unfinished").rglob("*.json"):
        path.write_text("{")
    outcomes = swept(*GRID, "--pruner", "median")
    assert sum(bool(one.scores) for one in outcomes) == 6
    assert caplog.text.count("is judged again") == 2


@pytest.mark.parametrize("name", ["train.epochs", "train.num_seeds", "train.seed"])
def test_what_cannot_be_compared_is_refused_before_anything_runs(fakes, name):
    with pytest.raises(ConfigError, match=f"{name} must be the same in all. Leave --pruner away"):
        make_sweep("--grid", f"{name}=2,3", "--pruner", "asha")


def test_a_missing_optuna_is_named_with_what_to_install(fakes, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"--pruner needs optuna. Run: pip install 'optuna>=5"):
        swept(*GRID, "--pruner", "median")
    assert fakes.epochs == {}


def test_a_benchmark_counts_of_a_stopped_trial_only_the_epochs_that_were_trained(tmp_path):
    def trained(score):
        scores = list(steady(score).values())
        return Trained(lr=1, scores=scores, seconds=[1.0] * NUM_EPOCHS, frozen_seconds=4.0)

    found = replay("median", [trained(score) for score in (*FIVE, 0.5)], tmp_path)
    assert (found.num_stopped, found.best) == (1, max(FIVE))
    assert found.seconds == 5 * (NUM_EPOCHS + 4) + 3


# --- for real, but for the trainings

PIPELINE = """
stages:
  external:
    cmd: mkdir -p data/external
    outs: [data/external]
""" + "".join(
    f"""
  {run}:
    cmd: python fake.py {run}
    params: [model]
    deps: [data/external]
    outs: [results/{run}/seeds]
"""
    for run in RUNS
)
# The fine-tuned model with much dropout takes long.
STAGE = """
import os, sys, time, yaml
from pathlib import Path

name = sys.argv[1]
dropout = yaml.safe_load(Path("params.yaml").read_text())["model"]["dropout"]
with (Path(os.environ["FAKE_RUNS"])).open("a") as stream:
    stream.write(f"{name} {dropout} {os.getpid()}\\n")
for epoch in range(1, 10):
    print(f"{name} epoch {epoch}/9: val jaccard {1 - dropout:.3f}, x; 1 s, about 0.1 min left",
          flush=True)
    if dropout > 0.5 and name == "train_finetuned":
        time.sleep(float(os.environ.get("FAKE_SECONDS", 0)))
seeds = Path("results") / name / "seeds"
seeds.mkdir(parents=True)
(seeds / "scores.csv").write_text("COLUMNS\\n" + f"0,{1 - dropout}" + ",0" * NUM_OTHERS)
"""
_OTHERS = [n for n in seed_scores_table("").columns if n not in ("seed", "val_jaccard")]
STAGE = STAGE.replace("COLUMNS", ",".join(["seed", "val_jaccard", *_OTHERS]))
STAGE = STAGE.replace("NUM_OTHERS", str(len(_OTHERS)))


def test_a_hopeless_trial_is_stopped_with_its_processes_and_is_no_failure(tmp_path):
    folder = fake_repository(tmp_path / "project")
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "fake.py").write_text(STAGE)
    call(folder, "git", "commit", "--quiet", "--all", "--message", "short")
    grid = ("--grid", "model.dropout=0.2,0.6,0.1", *SET)
    process = start(folder, "sweep", *grid, "--pruner", "asha", FAKE_SECONDS="300")
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "3 trials: 2 finished, 1 stopped early" in output
    assert re.search(r"\n +after 1 of 9 epochs: best val jaccard 0.400; the best 1 of 2", output)
    assert len(re.findall(r"sweep-\w{8} stopped early after 1 of 9 epochs", errors)) == 1
    assert "val jaccard 0.900 fine-tuned, 0.900 frozen" in errors  # in the workspace made anew
    # The judged model comes first: of the hopeless trial the other was never trained.
    assert trainings(folder) == sorted(
        [f"{run} {dropout}" for run in RUNS for dropout in (0.1, 0.2)] + [f"{FINETUNED} 0.6"]
    )
    lines = (folder.parent / "runs.txt").read_text().splitlines()
    (pid,) = (int(line.split()[-1]) for line in lines if " 0.6 " in line)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert call(folder, "git", "status", "--porcelain") == ""
