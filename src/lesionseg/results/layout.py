"""Where every file under `results/` is, and the names of both models: defined only here."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# The two models, named after the stages that train them.
RUNS = ("train_frozen", "train_finetuned")
FROZEN, FINETUNED = RUNS


@dataclass(frozen=True)
class TrainingFiles:
    """The files of one training with one seed."""

    folder: Path

    @property
    def model(self) -> Path:
        """The weights of the best epoch, and what is needed to rebuild the network."""
        return self.folder / "model.pt"

    @property
    def history(self) -> Path:
        """A row for each epoch: `training.history_table`."""
        return self.folder / "history.csv"

    @property
    def metrics(self) -> Path:
        """`training.BestEpoch`; equal trainings have equal files."""
        return self.folder / "metrics.json"

    @property
    def record(self) -> Path:
        """`training.TrainingRecord`."""
        return self.folder / "run.json"

    def all(self) -> tuple[Path, ...]:
        """Every file."""
        return self.model, self.history, self.metrics, self.record


@dataclass(frozen=True)
class EvaluationFiles:
    """The files of `evaluate` about one test set: `test`, or an external one."""

    folder: Path

    @property
    def comparison(self) -> Path:
        """`evaluation.Comparison`."""
        return self.folder / "comparison.json"

    @property
    def masks(self) -> Path:
        """Holds a folder of masks for each run."""
        return self.folder / "masks"

    @property
    def external(self) -> Path:
        """Holds a folder for each external test set, with the files of one; only beside `test`."""
        return self.folder / "external"

    def externals(self) -> dict[str, "EvaluationFiles"]:
        """The files about each external test set, by its name."""
        folders = sorted(self.external.glob("*/")) if self.external.is_dir() else []
        return {folder.name: EvaluationFiles(folder) for folder in folders}

    def scores(self, run: str) -> Path:
        """`evaluation.ModelScores` of one run."""
        return self.folder / f"{run}.json"

    def table(self, name: str) -> Path:
        """One of `evaluation.TABLES`."""
        return self.folder / f"{name}.csv"

    def mask(self, run: str, image_id: str) -> Path:
        """The predicted mask of an image at its own size, under the challenge's name."""
        return self.masks / run / mask_name(image_id)


def mask_name(image_id: str) -> str:
    """The file name of an image's mask, as in the challenge."""
    return f"{image_id}_segmentation.png"


@dataclass(frozen=True)
class Results:
    """The folder `results/`."""

    root: Path = Path("results")

    def training(self, run: str) -> TrainingFiles:
        """The training whose model is scored image by image: that of the first seed."""
        return TrainingFiles(self.root / run)

    def seeds(self, run: str) -> Path:
        """The folder of the further seeds."""
        return self.root / run / "seeds"

    def seed_scores(self, run: str) -> Path:
        """The best epochs of all seeds, including the first, as a table."""
        return self.seeds(run) / "scores.csv"

    def trainings(self, run: str, seeds: range) -> dict[int, TrainingFiles]:
        """The training of each seed."""
        further = {seed: TrainingFiles(self.seeds(run) / str(seed)) for seed in seeds[1:]}
        return {seeds[0]: self.training(run), **further}

    def found(self) -> Iterator[tuple[str, TrainingFiles]]:
        """Run and files of each training with a record, the first seed before the others."""
        for run in RUNS:
            further = sorted(self.seeds(run).glob("[0-9]*"))
            for files in (self.training(run), *map(TrainingFiles, further)):
                if files.record.exists():
                    yield run, files

    @property
    def evaluation(self) -> EvaluationFiles:
        """The files of `evaluate`."""
        return EvaluationFiles(self.root / "evaluate")

    @property
    def metrics(self) -> Path:
        """`evaluation.Headline`: what DVC prints."""
        return self.root / "metrics.json"

    @property
    def report(self) -> Path:
        """The page."""
        return self.root / "report/report.html"

    @property
    def segment_page(self) -> Path:
        """What `lesionseg export html` writes; the report has a link to it."""
        return self.root / "segment.html"
