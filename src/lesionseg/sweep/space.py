"""What a sweep varies: lists and ranges of parameters, and how the next values are chosen."""

import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lesionseg.errors import ConfigError
from lesionseg.sweep.arguments import MOST_TRIALS

Value = int | float | str
Settings = dict[str, Value]
_DIGITS = 3  # significant digits of a value from a range: readable, and finer than any effect


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One parameter and its values: a list, or a range from `low` to `high`."""

    name: str
    values: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_log: bool = False

    @property
    def is_range(self) -> bool:
        """Whether it is a range rather than a list."""
        return not self.values

    def ends(self) -> tuple[Value, ...]:
        """The values to check: if these are valid, so are all others."""
        return self.values or tuple(tidy(value) for value in (self.low, self.high))

    def at(self, share: float, *, is_whole: bool) -> Value:
        """The value at a given share, in [0, 1], of the range or the list."""
        if self.values:
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        if self.is_log:
            value = self.low * (self.high / self.low) ** share
        else:
            value = self.low + (self.high - self.low) * share
        return self.rounded(value, is_whole=is_whole)

    def rounded(self, value: float, *, is_whole: bool) -> Value:
        """A number of the range as it will be written: whole, or to three significant digits."""
        if is_whole:
            return round(value)
        return tidy(min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high))


def tidy(value: float) -> Value:
    """Whole numbers without a decimal point, as they are written in params.yaml."""
    return int(value) if value == int(value) else value


def parse_axis(text: str) -> tuple[Axis, int]:
    """The axis in `NAME=A,B,C` or `NAME=LOW..HIGH [log] [COUNT]`, and its count or 0.

    Raises:
        ConfigError: It is neither.
    """
    name, found, spec = text.partition("=")
    name, spec = name.strip(), spec.strip()
    if not found or not re.fullmatch(r"\w+\.\w+", name) or not spec:
        raise ConfigError(
            f"{text!r} must be SECTION.KEY=VALUES, as in model.decoder=bilinear,transposed "
            "or 'train.lr=1e-4..1e-2 log'"
        )
    if ".." in spec:
        return _parse_range(name, spec)
    values = tuple(parse_value(part.strip()) for part in spec.split(","))
    if len(set(values)) < len(values):
        raise ConfigError(f"{name}: a value occurs twice in {spec!r}; keep one")
    return Axis(name=name, values=values), 0


def _parse_range(name: str, spec: str) -> tuple[Axis, int]:
    number = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
    match = re.fullmatch(rf"({number})\.\.({number})(\s+log)?(?:\s+(\d+))?", spec)
    if not match:
        raise ConfigError(f"{name}: a range is LOW..HIGH [log] [COUNT], got {spec!r}")
    low, high, is_log = float(match[1]), float(match[2]), bool(match[3])
    if not math.isfinite(high - low):
        raise ConfigError(f"{name}: {spec!r} must be between finite numbers")
    if not low < high:
        raise ConfigError(f"{name}: {spec!r} must go from the lower to the higher number")
    if is_log and low <= 0:
        raise ConfigError(f"{name}: a log range begins above 0, got {match[1]}")
    return Axis(name=name, low=low, high=high, is_log=is_log), int(match[4] or 0)


def parse_value(text: str) -> Value:
    """The text as a number, true or false if it is one, as in params.yaml."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def parse_settings(texts: Sequence[str]) -> Settings:
    """The settings in several `NAME=VALUE`.

    Raises:
        ConfigError: One is not of this form, has several values, or occurs twice.
    """
    settings: Settings = {}
    for axis, _ in map(parse_axis, texts):
        if len(axis.values) != 1:
            raise ConfigError(f"{axis.name} takes one value here; vary it with --grid")
        if axis.name in settings:
            raise ConfigError(f"{axis.name} is given twice; keep one")
        settings[axis.name] = axis.values[0]
    return settings


def grid_axis(text: str, *, whole: Mapping[str, bool]) -> Axis:
    """An axis of a grid: a list, or the points of a range with a count.

    Args:
        text: As for `parse_axis`.
        whole: For each parameter, whether it is a whole number.
    """
    axis, count = parse_axis(text)
    if not axis.is_range:
        return axis
    if count < 2:
        raise ConfigError(
            f"{axis.name}: a grid needs the number of points, at least 2. "
            f"Write: --grid '{text.strip()} 5'"
        )
    if count > MOST_TRIALS:
        raise ConfigError(f"{axis.name}: a grid has at most {MOST_TRIALS} points, got {count}")
    is_whole = whole.get(axis.name, False)
    points = (axis.at(index / (count - 1), is_whole=is_whole) for index in range(count))
    return Axis(name=axis.name, values=tuple(dict.fromkeys(points)))


def grid(axes: Sequence[Axis]) -> Iterator[Settings]:
    """Every combination, the last axis fastest.

    Raises:
        ConfigError: There are more than `MOST_TRIALS`.
    """
    number = math.prod(len(axis.values) for axis in axes)
    if number > MOST_TRIALS:
        raise ConfigError(f"the grid must have at most {MOST_TRIALS} trials, got {number}")
    for values in itertools.product(*(axis.values for axis in axes)):
        yield {axis.name: value for axis, value in zip(axes, values, strict=True)}


class Sampler(Protocol):
    """Proposes settings and is told their scores, always in the same order."""

    def ask(self) -> Settings:
        """The next settings to try."""

    def tell(self, score: float | None, *, epoch: int = 0) -> None:
        """Take in the score of the oldest proposal that has not been reported yet.

        Args:
            score: Its val jaccard; None if it has none.
            epoch: The epoch after which it was stopped early with that score; 0 if it finished.
        """


class RandomSampler:
    """Independent draws from every axis."""

    def __init__(self, axes: Sequence[Axis], *, whole: Mapping[str, bool], seed: int) -> None:
        self._axes, self._whole, self._random = axes, whole, random.Random(seed)

    def ask(self) -> Settings:
        """The next settings to try."""
        return {
            axis.name: axis.at(self._random.random(), is_whole=self._whole[axis.name])
            for axis in self._axes
        }

    def tell(self, score: float | None, *, epoch: int = 0) -> None:
        """Ignore the score."""


class TpeSampler:
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011), after random trials.

    It keeps nothing on disk: the same axes, seed and scores give the same proposals, so a restarted
    search goes through its finished trials and continues from there.
    """

    def __init__(self, axes: Sequence[Axis], *, whole: Mapping[str, bool], seed: int) -> None:
        optuna = load_optuna("the search", otherwise="add --sampler random")
        self._axes, self._whole = axes, whole
        self._study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed)
        )
        self._space = {axis.name: _distribution(axis, whole[axis.name]) for axis in axes}
        self._asked: list[Any] = []

    def ask(self) -> Settings:
        """The next settings to try."""
        trial = self._study.ask(self._space)
        self._asked.append(trial)
        return {
            axis.name: axis.rounded(trial.params[axis.name], is_whole=self._whole[axis.name])
            if axis.is_range
            else trial.params[axis.name]
            for axis in self._axes
        }

    def tell(self, score: float | None, *, epoch: int = 0) -> None:
        """Take in the score of the oldest proposal that has not been reported yet."""
        from optuna.trial import TrialState

        trial = self._asked.pop(0)
        if score is None:
            self._study.tell(trial, state=TrialState.FAIL)
        elif epoch:  # counts as worse than all that finished or were stopped later
            trial.report(score, epoch)
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, score)


def load_optuna(need: str, *, otherwise: str) -> Any:
    """Optuna, set to log only warnings and errors.

    Args:
        need: What needs it, for the message.
        otherwise: What to do without it, for the message.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError:
        raise ConfigError(
            f"{need} needs optuna. Run: pip install 'optuna>=5,<6', or {otherwise}"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distribution(axis: Axis, is_whole: bool) -> Any:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if not axis.is_range:
        return CategoricalDistribution(axis.values)
    if is_whole:
        return IntDistribution(int(axis.low), int(axis.high), log=axis.is_log)
    return FloatDistribution(axis.low, axis.high, log=axis.is_log)


def make_sampler(
    name: str, axes: Sequence[Axis], *, whole: Mapping[str, bool], seed: int
) -> Sampler:
    """The sampler by its name, `tpe` or `random`."""
    kinds: dict[str, type[RandomSampler] | type[TpeSampler]]
    kinds = {"random": RandomSampler, "tpe": TpeSampler}
    return kinds[name](axes, whole=whole, seed=seed)
