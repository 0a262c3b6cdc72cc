"""The results of finished trials, read from git and from DVC's cache or remote."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lesionseg.errors import DataError
from lesionseg.results.layout import FINETUNED, RUNS, Results
from lesionseg.results.training import history_table, seed_scores_table
from lesionseg.sweep.trials import Trial
from lesionseg.sweep.workspaces import Repository, read_scores

if TYPE_CHECKING:
    from dvc.api import DVCFileSystem

Row = dict[str, Any]
Found = TypeVar("Found")


class Experiment:
    """The files of a finished trial, copied on demand into a folder of their own.

    Attributes:
        results: Where the files of `results/` are, once they are fetched.
    """

    def __init__(self, files: "DVCFileSystem", root: Path) -> None:
        self._files, self._root = files, root
        self.results = Results(root / "results")

    def fetch(self, path: Path) -> Path:
        """Copy a file to `path`, one of `results` or below `at`.

        DVC's own method may make a link, and fetching that a second time empties the cached file.

        Raises:
            FileNotFoundError: The trial does not have it, or the cache has lost it.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lost_folders_are_missing(), self._files.open(self._name(path), "rb") as source:
            path.write_bytes(source.read())
        return path

    def at(self, name: str) -> Path:
        """Where a file of the repository is, once it is fetched."""
        return self._root / name

    def folders(self, path: Path) -> list[str]:
        """The names of the folders in a folder, sorted; empty if it does not exist.

        Raises:
            FileNotFoundError: The cache has lost its content.
        """
        name = self._name(path)
        with _lost_folders_are_missing():
            entries = self._files.ls(name, detail=True) if self._files.exists(name) else []
        return sorted(Path(one["name"]).name for one in entries if one["type"] == "directory")

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


@contextmanager
def _lost_folders_are_missing() -> Iterator[None]:
    """A block in which a folder that DVC's cache has lost raises FileNotFoundError."""
    from dvc_data.index import DataIndexDirError  # it takes a while to load

    try:
        yield
    except DataIndexDirError as error:
        raise FileNotFoundError(str(error)) from error


def read_finished(
    repository: Repository, trial: Trial, read: Callable[[Experiment], Found]
) -> Found | None:
    """What `read` finds in a finished trial; None if it is missing or incomplete.

    `dvc exp remove` and `dvc gc` may have removed it, and files in the cache may be damaged.
    """
    try:
        return _read(repository, trial, read)
    except (FileNotFoundError, DataError):
        return None


def _read(repository: Repository, trial: Trial, read: Callable[[Experiment], Found]) -> Found:
    """Like `read_finished`, but raises an error with the reason if it is missing."""
    from dvc.api import DVCFileSystem  # it takes a while to load

    revision = repository.git("for-each-ref", "--format=%(objectname)", repository.ref(trial.name))
    if not revision:
        raise FileNotFoundError(f"there is no experiment {trial.name}")
    files = DVCFileSystem(repo=repository.root, rev=revision)
    with tempfile.TemporaryDirectory() as folder:
        return read(Experiment(files, Path(folder)))


def val_scores(experiment: Experiment) -> dict[str, list[float]]:
    """Best val jaccards of a finished trial by model, one for each of its training seeds.

    Raises:
        FileNotFoundError: The trial lacks them.
        DataError: They cannot be read.
    """
    for run in RUNS:
        experiment.fetch(experiment.results.seed_scores(run))
    return {run: read_scores(experiment.results, run) for run in RUNS}


def val_curve(experiment: Experiment) -> dict[int, float]:
    """The fine-tuned model's val jaccards of a finished trial, by epoch as a `trials.Curve`.

    They are rounded as in the logs, with which they are compared.

    Raises:
        FileNotFoundError: The trial does not have them.
        DataError: They cannot be read.
    """
    results = experiment.results
    path = experiment.fetch(results.seed_scores(FINETUNED))
    seeds = [int(seed) for seed in seed_scores_table(FINETUNED).read(path)["seed"]]
    scores: list[float] = []
    for files in results.trainings(FINETUNED, range(seeds[0], seeds[-1] + 1)).values():
        history = history_table(FINETUNED).read(experiment.fetch(files.history))
        scores += [round(float(score), 3) for score in history["val_jaccard"]]
    return dict(enumerate(scores, start=1))


def why_unread(repository: Repository, trial: Trial, read: Callable[[Experiment], object]) -> str:
    """Why `read` cannot read a trial that has just finished; "" if it can."""
    try:
        _read(repository, trial, read)
    except DataError as error:
        return error.problem
    except FileNotFoundError as error:
        return f"its results are not in DVC's cache: {error}"
    return ""
