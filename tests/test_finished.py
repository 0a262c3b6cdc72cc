"""What is read of a finished trial leaves DVC's cache as it was, links and all."""

import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from dvc.api import DVCFileSystem

from lesionseg.processes import child_environment
from lesionseg.results.records import unreadable
from lesionseg.sweep import executor, finished
from lesionseg.sweep.executor import Placement, run_missing
from lesionseg.sweep.finished import Experiment
from lesionseg.sweep.trials import Outcome, Trial
from lesionseg.sweep.workspaces import Repository

ROOT = Path(__file__).parents[1]
CONTENT = b"run,seed\ntrain_frozen,0\n"


@pytest.fixture
def repository(tmp_path) -> Path:
    """A repository with the project's own DVC settings, and a result in the cache alone."""
    folder = tmp_path / "repository"
    (folder / "results").mkdir(parents=True)
    (folder / "results/seeds.csv").write_bytes(CONTENT)
    dvc = [sys.executable, "-m", "dvc"]
    for command in (["git", "init", "-q"], [*dvc, "init", "-q"]):
        subprocess.run(command, cwd=folder, env=child_environment(), check=True)
    shutil.copyfile(ROOT / ".dvc/config", folder / ".dvc/config")
    command = [*dvc, "add", "-q", "results/seeds.csv"]
    subprocess.run(command, cwd=folder, env=child_environment(), check=True)
    (folder / "results/seeds.csv").unlink()
    return folder


def cached(repository: Path) -> Path:
    (found,) = (p for p in (repository / ".dvc/cache/files/md5").rglob("*") if p.is_file())
    return found


def test_a_file_that_is_read_twice_stays_in_the_cache(repository, tmp_path):
    experiment = Experiment(DVCFileSystem(repo=repository), tmp_path / "out")
    path = experiment.at("results/seeds.csv")
    for _ in range(2):
        assert experiment.fetch(path).read_bytes() == CONTENT
        assert cached(repository).read_bytes() == CONTENT


def test_what_is_written_to_a_fetched_file_does_not_reach_the_cache(repository, tmp_path):
    experiment = Experiment(DVCFileSystem(repo=repository), tmp_path / "out")
    path = experiment.fetch(experiment.at("results/seeds.csv"))
    path.chmod(0o644)
    path.write_bytes(b"other")
    assert cached(repository).read_bytes() == CONTENT


def test_a_file_that_the_cache_has_lost_is_not_there(repository, tmp_path):
    cached(repository).unlink()
    experiment = Experiment(DVCFileSystem(repo=repository), tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        experiment.fetch(experiment.at("results/seeds.csv"))


def test_a_finished_trial_that_cannot_be_read_fails_with_the_reason(monkeypatch):
    class Pool:
        def run(self, trials):
            yield from (Outcome(trial=trial, scores={"train_frozen": [0.8]}) for trial in trials)

    def read(experiment):
        raise unreadable("run.json lacks seconds", stage="train_frozen")

    monkeypatch.setattr(executor, "open_pool", lambda *_, **__: nullcontext(Pool()))
    monkeypatch.setattr(finished, "_read", lambda *_: read(None))
    repository = Repository(root=ROOT, commit="0" * 40, environment={})
    (outcome,) = run_missing(
        repository, [Trial(name="one", settings={})], where=Placement(), archives="", read=read
    )
    assert outcome.error == "run.json lacks seconds"
