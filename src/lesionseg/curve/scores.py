"""Scores of a finished experiment on each set of test images, and how its models were trained."""

import math
from dataclasses import dataclass

from lesionseg.curve.record import Setting
from lesionseg.curve.sizes import count_images
from lesionseg.results.evaluation import TABLES, Comparison, rows_of
from lesionseg.results.layout import FINETUNED, RUNS, EvaluationFiles
from lesionseg.results.training import TrainingRecord
from lesionseg.sweep.finished import Experiment, Row

TEST = "test"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one experiment has measured.

    Attributes:
        num_images: Test images of each set, `test` first.
        confidence: Coverage of intervals, as in params.yaml.
        rows: Rows of curve.csv: for each set, model and seed the mean jaccard over the test images,
            at the size the network sees and at their own.
        setting: How its models were trained.
    """

    num_images: dict[str, int]
    confidence: float
    rows: list[Row]
    setting: Setting


def read_measured(experiment: Experiment) -> Measured:
    """What one experiment has measured.

    Raises:
        FileNotFoundError: A file is missing in it.
        DataError: A file is damaged.
    """
    sets = sets_of(experiment)
    comparisons = {}
    for name, files in sets.items():
        experiment.fetch(files.comparison)
        comparisons[name] = Comparison.read(files)
    records = {run: _read_record(experiment, run) for run in RUNS}
    rows = [
        {"set": name, "run": run, "num_images": records[run].num_images, **row}
        for name, files in sets.items()
        for run in RUNS
        for row in _read_seeds(experiment, files, run)
    ]
    return Measured(
        num_images={name: one.num_images for name, one in comparisons.items()},
        confidence=comparisons[TEST].confidence,
        rows=rows,
        setting=_read_setting(experiment, records[FINETUNED]),
    )


def sets_of(experiment: Experiment) -> dict[str, EvaluationFiles]:
    """What `evaluate` wrote for each set of test images, by name: `test`, then external ones.

    Raises:
        FileNotFoundError: The cache has lost the folder of the external sets.
    """
    own = experiment.results.evaluation
    names = experiment.folders(own.external)
    return {TEST: own, **{name: EvaluationFiles(own.external / name) for name in names}}


def _read_record(experiment: Experiment, run: str) -> TrainingRecord:
    """The record of the first seed's training; the others learn from as many images."""
    files = experiment.results.training(run)
    experiment.fetch(files.record)
    return TrainingRecord.read(files, run=run)


def _read_seeds(experiment: Experiment, files: EvaluationFiles, run: str) -> list[Row]:
    """Seed and mean jaccards of each of a model's trainings, on one set."""
    table = TABLES["seeds"].read(experiment.fetch(files.table("seeds")))
    seen, own = (
        rows_of(table, run, scope).set_index("seed")["jaccard"]
        for scope in ("test", "test_own_size")
    )
    return [
        {"seed": int(seed), "jaccard": float(seen[seed]), "jaccard_own_size": float(own[seed])}
        for seed in seen.index
    ]


def _read_setting(experiment: Experiment, record: TrainingRecord) -> Setting:
    processed = experiment.at("data/processed")
    for split in ("train", "val"):
        experiment.fetch(processed / split / "index.csv")
    num_train = count_images(processed, "train")
    epochs, batch_size = (int(record.param(f"train.{name}")) for name in ("epochs", "batch_size"))
    return Setting(
        source=str(record.param("download.source")),
        image_size=int(record.param("preprocess.image_size")),
        epochs=epochs,
        num_steps=epochs * math.ceil(num_train / batch_size),
        num_train=num_train,
        num_val=count_images(processed, "val"),
        device=record.device,
        precision=record.precision,
    )
