"""What a training writes beside its model: its origin, its epochs and the best of them."""

from dataclasses import dataclass
from typing import Self

from pydantic import FiniteFloat

from lesionseg.files import sha256
from lesionseg.results.layout import TrainingFiles
from lesionseg.results.records import FORMAT, read_record, unreadable, write_record
from lesionseg.results.tables import Table

Value = str | int | float | bool  # of a parameter
# Scores of each epoch on val, means over images.
VAL_SCORES = ("jaccard", "dice", "accuracy", "sensitivity", "specificity")


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """The file run.json: where a model comes from.

    Attributes:
        format: Version of the file.
        run: One of `RUNS`.
        model_sha256: SHA-256 of its model.pt.
        commit: Commit of the code, with `-dirty` if files differed.
        dvc_stage: The stage that trained it.
        dvc_experiment: The experiment's name, or "".
        data_sha256: SHA-256 of the training images' index.csv.
        device: `cpu`, or the name of a CUDA device.
        precision: `float32` or `bfloat16`.
        training_key: Identifies the training, and its MLflow run.
        seconds: Duration of all epochs.
        images_per_second: Training images per second over all epochs.
        num_images: Training images.
        num_parameters: Parameters of the network.
        num_trained_parameters: Those that are trained.
        versions: Versions of Python and of the packages.
        params: All parameters of the training, flat: `train.lr`.
    """

    format: int = FORMAT
    run: str
    model_sha256: str
    commit: str
    dvc_stage: str
    dvc_experiment: str
    data_sha256: str
    device: str
    precision: str
    training_key: str
    seconds: FiniteFloat
    images_per_second: FiniteFloat
    num_images: int
    num_parameters: int
    num_trained_parameters: int
    versions: dict[str, str]
    params: dict[str, Value]

    def write(self, files: TrainingFiles) -> None:
        """Write run.json."""
        write_record(files.record, self)

    @classmethod
    def read(cls, files: TrainingFiles, *, run: str) -> Self:
        """The record of a training of `run`, checked against the model beside it, if any.

        Raises:
            MissingFileError: The file is missing.
            DataError: It cannot be read, or is about another model.
        """
        record = read_record(files.record, cls, stage=run)
        if record.run != run:
            raise unreadable(f"{files.record} is about {record.run}, not about {run}", stage=run)
        if files.model.exists() and record.model_sha256 != sha256(files.model):
            problem = f"{files.model} is not the model that {files.record.name} is about"
            raise unreadable(problem, stage=run)
        return record

    def param(self, name: str) -> Value:
        """A parameter of the training by its flat name, such as `train.lr`.

        Raises:
            DataError: The record does not have it.
        """
        if name not in self.params:
            raise unreadable(f"run.json of {self.run} has no params.{name}", stage=self.run)
        return self.params[name]

    def section(self, name: str) -> dict[str, Value]:
        """The parameters of a section of params.yaml, without its name."""
        prefix = f"{name}."
        return {k.removeprefix(prefix): v for k, v in self.params.items() if k.startswith(prefix)}

    def check_params(self, files: TrainingFiles, expected: dict[str, Value]) -> None:
        """Return if the training had these parameters.

        Raises:
            DataError: One of them differed.
        """
        for key, value in expected.items():
            if (known := self.params.get(key)) != value:
                problem = (
                    f"{files.model} was trained with {key} {known!r}, and params.yaml says "
                    f"{value!r}"
                )
                raise unreadable(problem, stage=self.run)


@dataclass(frozen=True, kw_only=True)
class BestEpoch:
    """The file metrics.json: the epoch that was kept, its loss and scores.

    Attributes:
        best_epoch: Its number, counted from 1.
        train: `loss`, the mean over the epoch's views.
        val: `loss`, and each of `VAL_SCORES`.
    """

    best_epoch: int
    train: dict[str, FiniteFloat]
    val: dict[str, FiniteFloat]

    def write(self, files: TrainingFiles) -> None:
        """Write metrics.json."""
        write_record(files.metrics, self)

    @classmethod
    def read(cls, files: TrainingFiles, *, run: str) -> Self:
        """The best epoch of a training of `run`.

        Raises:
            MissingFileError: The file is missing.
            DataError: It cannot be read, or lacks a score.
        """
        best = read_record(files.metrics, cls, stage=run)
        for name in ("loss", *VAL_SCORES):
            if name not in best.val:
                raise unreadable(f"{files.metrics} has no val.{name}", stage=run)
        return best


def history_table(run: str) -> Table:
    """The columns of history.csv: a row for each epoch."""
    scores = (f"val_{name}" for name in ("loss", *VAL_SCORES))
    return Table(stage=run, numbers=("epoch", "train_loss", *scores, "lr", "encoder_lr"))


def seed_scores_table(run: str) -> Table:
    """The columns of seeds/scores.csv: the best epoch of each seed's training."""
    scores = (f"val_{name}" for name in ("loss", *VAL_SCORES))
    return Table(stage=run, numbers=("seed", "best_epoch", *scores))
