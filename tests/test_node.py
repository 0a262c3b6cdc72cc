"""What a node does with a trial: once, published whole, and nothing where it must not work."""

import io
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fake_pipeline import call, environment, experiments, fake_repository, trainings

from lesionseg.errors import LesionsegError
from lesionseg.sweep import node
from lesionseg.sweep.progress import last_progress, open_view
from lesionseg.sweep.trials import Trial

TRIAL = Trial(name="sweep-00000001", settings={"model.dropout": 0.2})


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with remotes, as nodes are told of it; what runs is noted in runs.txt."""
    folder = fake_repository(tmp_path / "project")
    remote = tmp_path / "remote.git"
    call(tmp_path, "git", "init", "--quiet", "--bare", str(remote))
    call(folder, "git", "remote", "add", "origin", str(remote))
    call(folder, "dvc", "remote", "add", "--default", "team", str(tmp_path / "data"))
    call(folder, "git", "commit", "--quiet", "--all", "--message", "remote")
    call(folder, "git", "push", "--quiet", "origin", "HEAD:main")
    call(folder, "dvc", "repro", "external")
    call(folder, "dvc", "push", "--quiet", "--run-cache", "external", "--with-deps")
    for name, value in environment(folder).items():
        monkeypatch.setenv(name, value)
    use_node(tmp_path, monkeypatch, number=1)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    return node.Project(
        url=str(remote),
        commit=call(folder, "git", "rev-parse", "HEAD").strip(),
        params=(folder / "params.yaml").read_text(),
        lock=(folder / "dvc.lock").read_text(),
        versions=node.versions(),
        environment={},
    )


def use_node(folder, monkeypatch, *, number):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / f"node-{number}"))


def attempt(project, name, *, known="", trial=TRIAL):
    return node.run_trial(project, trial, attempt=name, known=known, tell=lambda *_: False)


def published(project):
    return experiments(Path(project.url))


def test_a_trial_leaves_its_experiment_and_its_data_on_the_remotes(project, tmp_path):
    report = attempt(project, "one")
    assert (report.error, published(project)) == ("", [TRIAL.name])
    assert "Running stage 'train_frozen'" in report.log
    assert "Running stage 'preprocess'" not in report.log
    elsewhere = tmp_path / "elsewhere"
    call(tmp_path, "git", "clone", "--quiet", "--branch", "main", project.url, str(elsewhere))
    call(elsewhere, "dvc", "exp", "pull", "origin", TRIAL.name)
    call(elsewhere, "dvc", "exp", "apply", TRIAL.name)
    assert (elsewhere / "results/train_frozen/seeds/scores.csv").is_file()


def test_an_attempt_after_one_that_came_through_runs_nothing(project, tmp_path, monkeypatch):
    attempt(project, "one")
    use_node(tmp_path, monkeypatch, number=2)
    assert attempt(project, "two").error == ""
    assert len(trainings(tmp_path / "project")) == 2


def test_machines_that_share_a_home_share_no_workspace(project, monkeypatch):
    homes = set()
    for name in ("one", "two", "one"):
        monkeypatch.setattr(node.socket, "gethostname", lambda name=name: name)
        homes.add(node._home(project))
    assert len(homes) == 2


def test_of_two_attempts_that_come_through_the_first_is_kept(project, tmp_path, monkeypatch):
    """The network was cut: both nodes have trained, and neither knew of the other."""
    attempt(project, "one")
    first = call(Path(project.url), "git", "for-each-ref", "refs/exps")
    use_node(tmp_path, monkeypatch, number=2)
    ended = []
    monkeypatch.setattr(node, "end_lost", lambda names, finished: ended.append((names, finished)))
    real = node._published
    answers = [""]  # as the second one saw it when it began
    monkeypatch.setattr(node, "_published", lambda *a: answers.pop() if answers else real(*a))
    assert attempt(project, "two").error == ""
    assert call(Path(project.url), "git", "for-each-ref", "refs/exps") == first
    assert ended == [(["two"], True)]


def test_an_experiment_that_cannot_be_read_is_replaced(project, tmp_path):
    attempt(project, "one")
    first = call(Path(project.url), "git", "for-each-ref", "refs/exps")
    assert attempt(project, "two", known=first.split()[0]).error == ""
    assert call(Path(project.url), "git", "for-each-ref", "refs/exps") != first


def test_a_trials_own_error_is_its_line_and_its_log(project):
    trial = Trial(name="sweep-00000002", settings={"model.dropout": 0.6})
    report = attempt(project, "one", trial=trial)
    assert report.error == "so much dropout is too much"
    assert "error: so much dropout is too much" in report.log
    assert published(project) == []


def test_a_trial_whose_node_has_ended_is_stopped(project, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "60")
    trial = Trial(name="sweep-00000002", settings={"model.dropout": 0.6})

    def tell(text, _):
        if text == "train_frozen":
            raise LesionsegError("its node has ended")
        return False

    report = node.run_trial(project, trial, attempt="one", known="", tell=tell)
    assert report.error == "its node has ended"
    pid = int((tmp_path / "runs.txt").read_text().split()[-1])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_trial_that_stops_early_leaves_nothing_but_its_log(project, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "60")
    trial = Trial(name="sweep-00000002", settings={"model.dropout": 0.6})
    report = node.run_trial(
        project, trial, attempt="one", known="", tell=lambda text, _: text == "train_frozen"
    )
    assert (report.error, report.is_stopped) == ("", True)
    assert "Running stage 'train_frozen'" in report.log
    assert published(project) == []
    pid = int((tmp_path / "runs.txt").read_text().split()[-1])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not attempt(project, "two").is_stopped
    assert published(project) == [TRIAL.name]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"versions": {"torch": "1.0"}}, r"it has torch .*, and 1.0 is wanted.*make setup"),
        ({"versions": {"lesionseg's code": "c0ffee"}}, "it has lesionseg's code .* c0ffee"),
        ({"commit": "0" * 40}, "git fetch.*Push the commit"),
        ({"url": "/nowhere.git"}, "git fetch.*reach the git remote"),
    ],
)
def test_a_node_that_is_not_like_the_others_refuses_before_work(project, change, reason, tmp_path):
    assert node.refusal(project) == ""
    other = replace(project, **change)
    for refusal in (node.refusal(other), attempt(other, "one").error):  # git's own words may differ
        assert "\n" not in refusal
        assert re.search(reason, refusal)
    assert trainings(tmp_path / "project") == []


def test_a_node_without_a_token_refuses(project, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE")
    assert "without RAY_AUTH_MODE=token" in node.refusal(project)
    assert node.refusal(replace(project, is_guarded=False)) == ""


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("", ""),
        ("Running stage 'evaluate':\n", "evaluate"),
        (
            "Running stage 'train_frozen':\ntrain_frozen epoch 3/15: loss 0.1, val loss 0.2, "
            "val jaccard 0.812, val dice 0.9; 12 s, about 2.4 min left\nnoise\n",
            "train_frozen epoch 3/15, val jaccard 0.812, 2.4 min left",
        ),
    ],
)
def test_how_far_a_trial_is_stands_in_its_log(tmp_path, log, expected):
    (tmp_path / "log").write_text(log)
    assert last_progress(tmp_path / "log") == expected
    assert last_progress(tmp_path / "none") == ""


def test_the_view_is_silent_where_there_is_no_terminal(capfd):
    with open_view(3) as view:
        assert not view.is_due()
    assert capfd.readouterr() == ("", "")


def test_the_view_has_a_line_for_all_trials_and_one_for_each_that_runs(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with open_view(3) as view:
        assert view.is_due()
        view.show({"sweep-1": "node  evaluate", "sweep-2": "node  report"}, num_done=1)
        assert not view.is_due()
        said = sys.stderr.getvalue()
    for text in ("1/3", "sweep-1  node  evaluate", "sweep-2  node  report"):
        assert text in said


def test_a_workspace_whose_trial_was_killed_is_made_anew(project):
    """DVC has left its lock there, as a process that is not there any more."""
    attempt(project, "one")
    [workspace] = Path(os.environ["XDG_CACHE_HOME"]).glob("lesionseg/*/workspaces/1")
    lock = '{"%s": {"write": {"pid": 1, "cmd": "dvc exp run"}}}' % (workspace / "data/processed")
    (workspace / ".dvc/tmp/rwlock").write_text(lock)
    workspace.with_suffix(".unclean").touch()
    other = Trial(name="sweep-00000002", settings={"model.dropout": 0.3})
    assert attempt(project, "two", trial=other).error == ""
    assert not workspace.with_suffix(".unclean").exists()
