"""What `evaluate` writes: each model's scores, the comparison of both, and tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pandas as pd
from pydantic import FiniteFloat

from lesionseg.results.layout import FINETUNED, FROZEN, RUNS, EvaluationFiles, Results
from lesionseg.results.records import FORMAT, read_record, unreadable, write_record
from lesionseg.results.tables import Table
from lesionseg.results.vocabulary import METRICS, POOLED, RUN_LABELS, SCOPES, STRATA

Interval = tuple[FiniteFloat, FiniteFloat]
Scores = dict[str, FiniteFloat]
_STAGE = "evaluate"


@dataclass(frozen=True, kw_only=True)
class ModelScores:
    """The file `<run>.json`: means over a test set's images.

    The keys are the same for an external test set: `test` means the size, not the split.

    Attributes:
        test: At the network's size: each of `METRICS`, `failure_rate`, `pooled_<metric>` and
            `ece`, the expected calibration error.
        test_own_size: At each image's own size, without `ece`.
    """

    test: Scores
    test_own_size: Scores

    def at(self, scope: str) -> Scores:
        """The scores at one of `SCOPES`."""
        return {"test": self.test, "test_own_size": self.test_own_size}[scope]

    def write(self, files: EvaluationFiles, run: str) -> None:
        """Write `<run>.json`."""
        write_record(files.scores(run), self)

    @classmethod
    def read(cls, files: EvaluationFiles, run: str) -> Self:
        """The scores of one model.

        Raises:
            MissingFileError: The file is missing.
            DataError: It cannot be read, or lacks a score.
        """
        path = files.scores(run)
        scores = read_record(path, cls, stage=_STAGE)
        names = (*METRICS, "failure_rate", *(f"pooled_{metric}" for metric in POOLED))
        for scope in SCOPES:
            _require(path, scores.at(scope), names, within=scope)
        _require(path, scores.test, ("ece",), within="test")
        return scores


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The file metrics.json: the five numbers that `dvc metrics show` and `dvc exp show` print.

    DVC makes the file a row and each number a column: five with short names fit a terminal. All
    other numbers are in `ModelScores` and `Comparison`.

    Attributes:
        frozen: For model 1, `jaccard` and `dice` on the test split at the network's size.
        tuned: The same for model 2, and `val`: its jaccard on the validation split, by which
            experiments are chosen.
    """

    frozen: Scores
    tuned: Scores

    @classmethod
    def of(cls, scores: Mapping[str, ModelScores], *, val: float) -> Self:
        """The headline of both models' scores.

        Args:
            scores: By run.
            val: The fine-tuned model's jaccard on the validation split.
        """
        frozen, tuned = (
            {name: scores[run].test[name] for name in ("jaccard", "dice")} for run in RUNS
        )
        return cls(frozen=frozen, tuned={**tuned, "val": val})

    def write(self, results: Results) -> None:
        """Write metrics.json."""
        write_record(results.metrics, self)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One metric of both models over the test images; differences are fine-tuned minus frozen.

    Attributes:
        train_frozen: Mean of model 1.
        train_frozen_interval: Interval of that mean, over images.
        train_finetuned: Mean of model 2.
        train_finetuned_interval: Likewise.
        difference: Difference of the means.
        interval: Interval of the difference, from paired images.
        wilcoxon_p: Two-sided signed-rank test.
        rank_biserial: Its effect size in [-1, 1], above 0 if the fine-tuned model is better.
        wins: Images on which the fine-tuned model is better.
        ties: Images on which both are equal.
        losses: Images on which it is worse.
    """

    train_frozen: FiniteFloat
    train_frozen_interval: Interval
    train_finetuned: FiniteFloat
    train_finetuned_interval: Interval
    difference: FiniteFloat
    interval: Interval
    wilcoxon_p: FiniteFloat
    rank_biserial: FiniteFloat
    wins: int
    ties: int
    losses: int

    def mean(self, run: str) -> float:
        """The mean of one of `RUNS`."""
        return {FROZEN: self.train_frozen, FINETUNED: self.train_finetuned}[run]

    def mean_interval(self, run: str) -> Interval:
        """The interval of that mean."""
        return {
            FROZEN: self.train_frozen_interval,
            FINETUNED: self.train_finetuned_interval,
        }[run]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and standard deviation (of the sample, N - 1) over training seeds."""

    mean: FiniteFloat
    sd: FiniteFloat


@dataclass(frozen=True, kw_only=True)
class DifferenceSpread(Spread):
    """Spread of each seed's difference; in `num_better` seeds the fine-tuned model is better."""

    num_better: int


@dataclass(frozen=True, kw_only=True)
class SeedsCompared:
    """One metric of both models over training seeds."""

    train_frozen: Spread
    train_finetuned: Spread
    difference: DifferenceSpread


@dataclass(frozen=True, kw_only=True)
class SeedComparison:
    """Both models over several training seeds, by scope and metric."""

    num_seeds: int
    test: dict[str, SeedsCompared]
    test_own_size: dict[str, SeedsCompared]

    def at(self, scope: str) -> dict[str, SeedsCompared]:
        """By metric at one of `SCOPES`."""
        return {"test": self.test, "test_own_size": self.test_own_size}[scope]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Mean jaccards of masks made from the truth.

    Attributes:
        perfect_own_size: The truth at the network's size, resized to the image's own size like
            predictions: no model of this size can be expected to score higher there.
        pixel_larger: The truth enlarged by one pixel all around, at the network's size.
        pixel_smaller: The same, reduced by one pixel.
    """

    perfect_own_size: FiniteFloat
    pixel_larger: FiniteFloat
    pixel_smaller: FiniteFloat


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The file comparison.json: both models on the same test images.

    Attributes:
        format: Version of the file.
        num_images: Test images.
        confidence: Coverage of the intervals, in (0, 1).
        num_resamples: Bootstrap resamples behind them.
        threshold: A pixel is lesion above this probability.
        surface_tolerance: Tolerance of nsd, in percent of the diagonal.
        limits: What masks made from the truth would score.
        models: SHA-256 of both model.pt, by run.
        test: By metric, at the network's size.
        test_own_size: By metric, at each image's own size.
        seeds: Over training seeds; None if there is only one.
    """

    format: int = FORMAT
    num_images: int
    confidence: FiniteFloat
    num_resamples: int
    threshold: FiniteFloat
    surface_tolerance: FiniteFloat
    limits: Limits
    models: dict[str, str]
    test: dict[str, Compared]
    test_own_size: dict[str, Compared]
    seeds: SeedComparison | None

    def at(self, scope: str) -> dict[str, Compared]:
        """By metric at one of `SCOPES`."""
        return {"test": self.test, "test_own_size": self.test_own_size}[scope]

    def lines(self) -> list[str]:
        """A table for a terminal: both models side by side at the network's size."""
        frozen, finetuned = (RUN_LABELS[run] for run in RUNS)
        lines = [
            f"mean over {self.num_images} test images",
            f"{'':23}{frozen:>8}{finetuned:>12}{'difference':>12}   "
            f"{100 * self.confidence:g} % interval",
        ]
        for name, metric in METRICS.items():
            row, digits = self.test[name], metric.decimals
            low, high = row.interval
            label = f"{metric.label} (lower is better)" if metric.lower_is_better else metric.label
            lines.append(
                f"{label:23}{row.train_frozen:8.{digits}f}{row.train_finetuned:12.{digits}f}"
                f"{row.difference:+12.{digits}f}   {low:+.{digits}f} to {high:+.{digits}f}"
            )
        return lines

    def write(self, files: EvaluationFiles) -> None:
        """Write comparison.json."""
        write_record(files.comparison, self)

    @classmethod
    def read(cls, files: EvaluationFiles) -> Self:
        """The comparison of both models.

        Raises:
            MissingFileError: The file is missing.
            DataError: It cannot be read, or lacks a model or a metric.
        """
        path = files.comparison
        comparison = read_record(path, cls, stage=_STAGE)
        _require(path, comparison.models, RUNS, within="models")
        for scope in SCOPES:
            _require(path, comparison.at(scope), METRICS, within=scope)
            if comparison.seeds:
                _require(path, comparison.seeds.at(scope), METRICS, within=f"seeds.{scope}")
        return comparison


def _require(
    path: Path,
    found: Mapping[str, object],
    names: tuple[str, ...] | Mapping[str, object],
    *,
    within: str,
) -> None:
    """Raise DataError for the first name that is missing."""
    for name in names:
        if name not in found:
            raise unreadable(f"{path} has no {within}.{name}", stage=_STAGE)


def _by_run(*names: str) -> tuple[str, ...]:
    return tuple(f"{run}_{name}" for name in names for run in RUNS)


# By the names of their files. All except `thresholds` exist for external test sets too.
TABLES = {
    # A row for each image, run and scope.
    "per_image": Table(stage=_STAGE, text=("id", "run", "scope"), numbers=(*METRICS,)),
    # Measures and groups of each test image, and both models' jaccard at the network's size.
    "attributes": Table(
        stage=_STAGE,
        text=("id", *STRATA),
        numbers=_by_run("jaccard"),
        blank=tuple(stratum.measure for stratum in STRATA.values()),
    ),
    # Scores in each group of images; no interval for fewer than `FEW_IMAGES`.
    "strata": Table(
        stage=_STAGE,
        text=("stratum", "group"),
        numbers=("num_images", *_by_run("jaccard", "failure_rate"), "difference"),
        blank=("difference_low", "difference_high"),
    ),
    # Pixels by their probability, in bins that may be empty.
    "calibration": Table(
        stage=_STAGE,
        numbers=("probability_low", "probability_high", *_by_run("num_pixels")),
        blank=_by_run("probability", "lesion_fraction"),
    ),
    # Mean scores on val at each threshold.
    "thresholds": Table(stage=_STAGE, numbers=("threshold", *_by_run("jaccard", "dice"))),
    # Mean scores of each training seed's model.
    "seeds": Table(stage=_STAGE, text=("run", "scope"), numbers=("seed", *METRICS)),
    # Mean scores of other ways to predict, and of the main one.
    "variants": Table(
        stage=_STAGE,
        text=("run", "variant", "scope"),
        numbers=("num_models", "num_views", *METRICS),
    ),
}


EXTERNAL_TABLES = {name: table for name, table in TABLES.items() if name != "thresholds"}


def rows_of(table: pd.DataFrame, run: str, scope: str) -> pd.DataFrame:
    """The rows of one run at one scope."""
    return table[(table["run"] == run) & (table["scope"] == scope)]
