"""One trial of a sweep: its settings, checked, its name, and its outcome."""

import copy
import dataclasses
import hashlib
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lesionseg.config import Config, load_config, override
from lesionseg.errors import ConfigError
from lesionseg.results.layout import RUNS
from lesionseg.sweep.space import Axis, Settings

# What a trial's score can depend on. The other sections are about the test split and the page.
SECTIONS = (
    "download",
    "preprocess",
    "train",
    "model",
    "loss",
    "augment",
    "train_frozen",
    "train_finetuned",
)
SEED = "train.seed"
# Val jaccards of the fine-tuned model by epoch, counting from 1 through all its training seeds.
Curve = Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting of the swept parameters: one DVC experiment.

    Attributes:
        name: The experiment's name; it contains a hash of every parameter a score depends on.
        settings: What is set with `-S`.
    """

    name: str
    settings: Settings = field(hash=False)


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Why a trial was stopped early.

    Attributes:
        pruner: `median` or `asha`.
        epoch: The last epoch that was judged, counting from 1 over all its training seeds.
        score: The fine-tuned model's best val jaccard by then, the one compared.
        reason: Epoch, score and what it was compared with, in words.
    """

    pruner: str
    epoch: int
    score: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a trial.

    Attributes:
        scores: Best val jaccards of each model, one for each training seed; empty if it failed or
            was stopped.
        stop: Why it was stopped early, if it was.
        error: The last error line if it failed.
        log: Where its whole output is.
        seconds: Time it took; 0 if it had already finished before.
    """

    trial: Trial
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    stop: Stop | None = None
    error: str = ""
    log: Path | None = None
    seconds: float = 0.0

    @property
    def has_failed(self) -> bool:
        """Whether it neither finished nor was stopped."""
        return not self.scores and self.stop is None

    def mean(self, run: str) -> float:
        """Mean val jaccard of one model over its seeds."""
        return statistics.fmean(self.scores[run])


def check(content: dict[str, Any], settings: Mapping[str, Any]) -> Config:
    """The validated records of parameters with some values replaced.

    Raises:
        ConfigError: A name is unknown, or a value is invalid.
    """
    changed = copy.deepcopy(content)
    for name in settings:
        section = name.split(".")[0]
        if section in content and section not in SECTIONS:
            raise ConfigError(
                f"{name}: no score on val depends on it. A sweep varies {', '.join(SECTIONS)}"
            )
        changed.setdefault(section, {})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"  # messages begin with this name
        path.write_text(override(changed, settings), encoding="utf-8")
        return load_config(path)


def check_axes(content: dict[str, Any], axes: Sequence[Axis], fixed: Settings) -> None:
    """Refuse invalid names and values before anything runs.

    Raises:
        ConfigError: A name occurs twice or is unknown, or a value by itself is invalid.
    """
    names = [*(axis.name for axis in axes), *fixed]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{name} is given twice; keep one")
    for axis in axes:
        for value in axis.ends():
            check(content, {**fixed, axis.name: value})


def whole_numbers(config: Config) -> dict[str, bool]:
    """For each parameter that a sweep can vary, whether it is a whole number."""
    return {name: isinstance(value, int) for name, value in config.flat(*SECTIONS).items()}


def make_trial(
    content: dict[str, Any],
    settings: Settings,
    *,
    prefix: str,
    sections: Sequence[str] = SECTIONS,
) -> Trial:
    """The trial with some settings.

    Args:
        content: The content of params.yaml.
        settings: What is set in it.
        prefix: First part of the trial's name.
        sections: The sections of params.yaml by which trials are distinguished.

    Raises:
        ConfigError: The values are an invalid combination.
    """
    config = check(content, settings)
    values = dataclasses.asdict(config)
    text = json.dumps({section: values[section] for section in sections}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return Trial(name=f"{prefix}-{digest}", settings=settings)


def confirm(outcome: Outcome, kept: Mapping[str, Sequence[float]] | None) -> Outcome:
    """The outcome, or a failed one if DVC does not have its experiment with its score.

    Args:
        outcome: The outcome of a trial.
        kept: Val jaccards of its experiment by model; None if there is no experiment.
    """
    if outcome.scores and kept != outcome.scores:
        reason = "DVC does not have its experiment with its score"
        return Outcome(trial=outcome.trial, error=reason, log=outcome.log)
    return outcome


@dataclass(frozen=True, kw_only=True)
class Row:
    """Trials that differ in nothing but their seed."""

    name: str  # of the first seed's trial: choosing the luckiest seed would flatter it
    settings: Settings
    scores: Mapping[str, Sequence[float]]

    def mean(self, run: str) -> float:
        """Mean val jaccard of one model over all its seeds."""
        return statistics.fmean(self.scores[run])


def rank(outcomes: Sequence[Outcome]) -> list[Row]:
    """The finished trials, best first: by model 2, then by model 1, on val alone."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.scores:
            groups.setdefault(json.dumps(_without_seed(outcome.trial.settings)), []).append(outcome)
    rows = [
        Row(
            name=group[0].trial.name,
            settings=_without_seed(group[0].trial.settings),
            scores={run: [s for one in group for s in one.scores[run]] for run in RUNS},
        )
        for group in groups.values()
    ]
    return sorted(rows, key=lambda row: [row.mean(run) for run in reversed(RUNS)], reverse=True)


def _without_seed(settings: Settings) -> Settings:
    return {name: value for name, value in settings.items() if name != SEED}
