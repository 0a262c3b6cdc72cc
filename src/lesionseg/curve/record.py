"""A learning curve as a file: curve.json, from which its table, figure and page are made."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from pydantic import FiniteFloat, TypeAdapter, ValidationError

from lesionseg.errors import DataError, MissingFileError
from lesionseg.files import write_json
from lesionseg.results.layout import FINETUNED, FROZEN

FORMAT = 1  # raised when the previous version's reader could not read a new file
FEWEST_SIZES = 3  # for a guess: a power law has three numbers
Interval = tuple[FiniteFloat, FiniteFloat]
Value = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: Of `values`.
        interval: Interval of the mean, by Student's t over the seeds; None with one seed.
        values: One for each seed, in the order of `Curve.seeds`.
    """

    mean: FiniteFloat
    interval: Interval | None
    values: list[FiniteFloat]


@dataclass(frozen=True, kw_only=True)
class Point:
    """Jaccards at one number of training images.

    Attributes:
        num_images: Labelled images trained on.
        train_frozen: Mean jaccard over the test images, over seeds.
        train_finetuned: The same for the other model.
        difference: Fine-tuned minus frozen, taken within each seed first.
        num_better: Seeds in which the fine-tuned model is better.
    """

    num_images: int
    train_frozen: Estimate
    train_finetuned: Estimate
    difference: Estimate
    num_better: int

    def at(self, run: str) -> Estimate:
        """One of `RUNS`."""
        return {FROZEN: self.train_frozen, FINETUNED: self.train_finetuned}[run]


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Where the mean difference of the models changes its sign.

    Attributes:
        between: The two neighbouring sizes whose differences have opposite signs.
        num_images: Where the difference would be 0, interpolated linearly over the logarithm.
        better_after: The run that is better with more images.
        num_seeds: Seeds whose own differences at both sizes have the signs of the means.
        surely_between: The nearest sizes on both sides at which the interval of the difference
            excludes 0, with the signs of the crossing; None if there is none on one side.
    """

    between: tuple[int, int]
    num_images: FiniteFloat
    better_after: str
    num_seeds: int
    surely_between: tuple[int, int] | None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A value that was not measured, and its interval by the bootstrap over seeds."""

    value: FiniteFloat
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Law:
    """1 - jaccard = a + b * num_images ** -c, fitted to the means of one model.

    Attributes:
        a: Error that remains with unlimited labels.
        b: Scale.
        c: How fast the rest shrinks.
        jaccard: Jaccard with twice the largest number of images.
        gain: How much that exceeds the law's value at the largest number.
        checked: What the same fit without the largest number would have guessed there; None with
            too few sizes.
    """

    a: FiniteFloat
    b: FiniteFloat
    c: FiniteFloat
    jaccard: Prediction
    gain: Prediction
    checked: FiniteFloat | None


@dataclass(frozen=True, kw_only=True)
class Guess:
    """What twice the largest measured number of labels may bring.

    Attributes:
        num_images: Twice the largest number.
        train_frozen: Law of one model.
        train_finetuned: Law of the other.
        difference: Fine-tuned minus frozen at that number.
    """

    num_images: int
    train_frozen: Law
    train_finetuned: Law
    difference: Prediction

    def at(self, run: str) -> Law:
        """One of `RUNS`."""
        return {FROZEN: self.train_frozen, FINETUNED: self.train_finetuned}[run]


@dataclass(frozen=True, kw_only=True)
class SetCurve:
    """The curve on one set of test images.

    Attributes:
        name: `test`, or the name of an external set.
        num_images: Test images in it.
        points: By number of training images, ascending.
        crossings: Where the two models cross, ascending.
        guess: None with fewer than `FEWEST_SIZES` sizes.
    """

    name: str
    num_images: int
    points: list[Point]
    crossings: list[Crossing]
    guess: Guess | None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How all trainings of a curve were made.

    Attributes:
        source: Source of the data, as in download.source.
        image_size: Height and width in pixels at which masks are scored.
        epochs: Epochs of each training.
        num_steps: Steps of each training, however many images it learns from.
        num_train: Images of the whole training split.
        num_val: Images that choose the best epoch, in addition to those trained on.
        device: `cpu`, or the name of a CUDA device.
        precision: `float32` or `bfloat16`.
    """

    source: str
    image_size: int
    epochs: int
    num_steps: int
    num_train: int
    num_val: int
    device: str
    precision: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The file curve.json.

    Attributes:
        format: Version of the file.
        commit: Commit of the code.
        seeds: Seeds of the trainings of each model at each size.
        confidence: Coverage of the intervals, in (0, 1).
        setting: How all trainings were made.
        changed: Settings of all trainings that differ from params.yaml.
        sets: `test`, then the external ones.
    """

    format: int = FORMAT
    commit: str
    seeds: list[int]
    confidence: FiniteFloat
    setting: Setting
    changed: dict[str, Value]
    sets: list[SetCurve]


def write_curve(path: Path, curve: Curve) -> None:
    """Write curve.json."""
    write_json(path, dataclasses.asdict(curve))


def read_curve(path: Path) -> Curve:
    """The curve in a file.

    Raises:
        MissingFileError: It is missing.
        DataError: It holds something else, or comes from another version of this program.
    """
    if not path.exists():
        raise MissingFileError(f"{path} is missing", remedy="Run: lesionseg curve")
    try:
        curve = TypeAdapter(Curve).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        problem = f"{path} is no learning curve: {where}: {first['msg']}"
        raise DataError(problem, remedy="Run: lesionseg curve") from None
    if curve.format != FORMAT:
        problem = f"{path} has format {curve.format}, this program reads {FORMAT}"
        raise DataError(problem, remedy="Run: lesionseg curve")
    return curve
