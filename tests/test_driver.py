"""Trials on other machines: what is lost, and jobs of SLURM, on commands that stand for its own."""

import os
import re
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import slurm_world
from fake_pipeline import call

from lesionseg.errors import LesionsegError
from lesionseg.sweep import cluster, driver, node, slurm
from lesionseg.sweep.driver import Driver, Lost
from lesionseg.sweep.executor import Placement
from lesionseg.sweep.trials import Trial
from lesionseg.sweep.workspaces import Repository

TRIAL = Trial(name="sweep-00000001", settings={"model.dropout": 0.2})
ROOT = Path(__file__).parents[1]
WHERE = Placement(cluster="slurm", jobs=2, num_cpus=3)
SERVER = "http://127.0.0.1:5999"


def make_project(root, **more):
    values = {"commit": "0" * 40, "params": "", "lock": "-", "environment": {}, "versions": {}}
    return node.Project(url=str(root), is_guarded=False, **values | more)


@pytest.fixture
def repository(tmp_path):
    """One without a commit."""
    root = tmp_path / "project"
    call(tmp_path, "git", "init", "--quiet", str(root))
    (root / "params.yaml").touch()
    repository = Repository(root, "0" * 40, dict(os.environ))
    repository.cache_dir = str(tmp_path / "cache")
    return repository


@pytest.fixture
def scheduler(repository, tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit", reason="submitit is missing: pip install '.[slurm]'")
    for name, value in slurm_world.install(tmp_path / "bin").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node"))
    monkeypatch.setattr(submitit.SlurmJob, "_results_timeout_s", 0)
    yield slurm._Slurm(repository.root, WHERE)
    slurm_world.end_all(tmp_path / "bin")


def wait_for(scheduler, job):
    deadline = time.monotonic() + 60
    while not scheduler.ended([job]):
        assert time.monotonic() < deadline


def test_a_job_asks_for_what_a_trial_is_given_and_its_report_comes_back(
    scheduler, repository, tmp_path
):
    other = make_project(repository.root, versions={"torch": "1.0"})
    job = scheduler.start(other, TRIAL, "one", "", False)
    wait_for(scheduler, job)
    assert re.search("it has torch .*, and 1.0 is wanted", scheduler.report(job).error)
    [script] = slurm_world.scripts(tmp_path / "bin")
    options = re.findall("(?m)^#SBATCH --(.*)", script)
    for option in ("cpus-per-task=3", "no-requeue", "signal=TERM@60"):
        assert option in options
    # What a site decides is left to it.
    assert not [one for one in options if one.startswith(("time", "mem", "wckey", "gpus"))]
    assert re.search("(?m)^srun .*--cpus-per-task=3", script)


def test_what_interrupts_the_command_leaves_no_job_in_the_queue(scheduler, repository, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    monkeypatch.setattr(slurm.store, "prepare", lambda: None)
    with (
        suppress(KeyboardInterrupt),
        slurm.open_slurm(repository, WHERE, archives="archives") as executor,
    ):
        project = executor._project
        job = executor._scheduler.start(project, TRIAL, "one", "", False)
        assert scheduler._call("squeue").split() == [job.job_id]
        raise KeyboardInterrupt
    assert scheduler._call("squeue") == ""
    wait_for(scheduler, job)
    with pytest.raises(Lost, match=f"its job {job.job_id} was lost"):
        scheduler.report(job)
    # What jobs share.
    assert (project.url, project.cache) == (str(repository.root), repository.cache_dir)
    assert project.checkpoints == str(repository.root / ".checkpoints")


def test_a_job_that_slurm_ends_says_so_and_no_trial_has_failed(monkeypatch, tmp_path):
    def run_trial(*arguments, **more):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(node, "run_trial", run_trial)
    assert slurm._work(make_project(tmp_path), TRIAL, "one", "", False, tmp_path) is None


def test_a_job_says_how_far_it_is_and_hears_that_it_is_to_stop(scheduler, monkeypatch):
    heard = []

    def run_trial(*arguments, tell, **more):
        heard.append(tell("train_frozen", {1: 0.5}))
        scheduler.stop(TRIAL)
        heard.append(tell("train_finetuned", {1: 0.5, 2: 0.6}))

    monkeypatch.setattr(node, "run_trial", run_trial)
    folder = scheduler._executor.folder
    folder.mkdir(parents=True)
    slurm._work(make_project(folder), TRIAL, "one", "", True, folder)
    assert heard == [False, True]
    [(name, said)] = scheduler.progress().items()
    assert (name, said.curve) == (TRIAL.name, {1: 0.5, 2: 0.6})
    assert said.text.endswith("  train_finetuned")


class Placed:
    """A scheduler that has ended at once, with answers given beforehand."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def start(self, project, trial, attempt, known, is_judged):
        return attempt

    def ended(self, tasks):
        return tasks

    def report(self, task):
        if isinstance(self.answers[0], Lost):
            raise self.answers.pop(0)
        return self.answers.pop(0)


@pytest.mark.parametrize(
    ("answers", "error", "num_attempts"),
    [
        ([Lost("it was lost", "its log")] * 4, "it was lost 3 times", 3),
        ([Lost("it was lost"), node.Report(error="nan", log="", seconds=1.0)], "nan", 2),
    ],
)
def test_what_is_lost_is_tried_again_and_a_trials_own_error_is_not(
    repository, monkeypatch, answers, error, num_attempts
):
    ended = []
    monkeypatch.setattr(driver.attempts, "end_lost", ended.append)
    monkeypatch.setattr(driver.attempts, "keep_last", ended.append)
    project = make_project(repository.root)
    [outcome] = Driver(Placed(*answers), repository, project, None, jobs=1).run([TRIAL])
    assert (outcome.error, outcome.scores) == (error, {})
    assert [len(names) for names in ended] == list(range(num_attempts + 1))
    assert outcome.log.read_text() == ("its log" if num_attempts == 3 else "")


def test_a_trial_that_ends_with_its_node_is_lost_though_ray_brings_a_report():
    class Ray:
        exceptions = SimpleNamespace(RayTaskError=KeyError, RayError=OSError)
        get = staticmethod(lambda task: None)

    one = cluster.Cluster.__new__(cluster.Cluster)
    one._ray = Ray
    with pytest.raises(Lost, match="its node was lost"):
        one.report("task")


@pytest.mark.parametrize(
    ("where", "server", "reason"),
    [
        (Placement(cluster="slurm"), SERVER, "--jobs N"),
        (WHERE, "", "MLFLOW_TRACKING_URI.*address of an MLflow server"),
        (WHERE, "sqlite:////shared/mlflow.db", "MLFLOW_TRACKING_URI.*address of an MLflow server"),
        (WHERE, SERVER, r"submitit.*Run: pip install -e '\.\[slurm\]'"),
    ],
)
def test_what_is_missing_is_said_before_work(repository, monkeypatch, where, server, reason):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with (
        pytest.raises(LesionsegError, match=reason),
        slurm.open_slurm(repository, where, archives="archives"),
    ):
        pass


@pytest.mark.parametrize(
    ("place", "server", "is_warned"),
    [
        ("ray://head:10001", "sqlite:////home/me/mlflow.db", True),
        ("ray://head:10001", SERVER, False),
        ("local", "sqlite:////home/me/mlflow.db", False),
    ],
)
def test_a_warning_says_that_nodes_have_no_file_of_another_machine(
    repository, monkeypatch, caplog, place, server, is_warned
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    where = Placement(cluster=place, num_cpus=1)
    driver.make_project(repository, where, url="https://git.example.org/project")
    assert [line for line in caplog.messages if "SQLite" in line] == (
        [
            "MLFLOW_TRACKING_URI names an SQLite file: runs of other machines end in a file there. "
            "Set it to the address of an MLflow server (docs/team.md)"
        ]
        if is_warned
        else []
    )


def test_where_there_is_no_slurm_it_says_so(repository, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", type(sys)("submitit"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LesionsegError, match=r"no srun here.*login node"):
        slurm._Slurm(repository.root, WHERE)
