"""Image by image, one model against the other: the points of the page's plot."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lesionseg.report.gallery import Case

SIDE = 400  # of the plot's square, in its own units
_VALUES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)  # possible ticks
_STEP = 0.05  # the axes start at a multiple of it
_GAP = 30  # smallest gap between two ticks, in the plot's units


@dataclass(frozen=True, kw_only=True)
class Point:
    """Where a test image is; `winner` is the better run, or `equal`."""

    case: Case
    x: float
    y: float
    winner: str


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """A square plot of the jaccard from `low` to 1, frozen to the right, fine-tuned upwards.

    Both axes are scaled by the square root of the distance from 1, so that the many good images can
    be told apart and the few bad ones fit in too.

    Attributes:
        low: Lower end of both axes.
        ticks: Values and their distance from the plot's left or lower edge.
        points: From the largest gain to the largest loss: the order for the arrow keys.
    """

    low: float
    ticks: list[tuple[float, float]]
    points: list[Point]

    def count(self, winner: str) -> int:
        """Images where `winner` is the better run."""
        return sum(point.winner == winner for point in self.points)


def place_points(cases: Sequence[Case]) -> Scatter:
    """The plot of all cases, its axes no longer than the scores require."""
    lowest = min(min(case.scores["jaccard"].values()) for case in cases)
    low = min(0.9, max(0.0, round(_STEP * math.floor(round(lowest / _STEP, 6)), 2)))

    def place(value: float) -> float:
        return round(SIDE * (1 - math.sqrt((1 - value) / (1 - low))), 1)

    values: list[float] = []
    for value in _VALUES:
        is_clear = not values or place(values[-1]) - place(value) >= _GAP
        if value >= low and is_clear:
            values.append(value)

    points = [
        Point(
            case=case,
            x=place(case.scores["jaccard"]["train_frozen"]),
            y=SIDE - place(case.scores["jaccard"]["train_finetuned"]),
            winner=_winner(case),
        )
        for case in sorted(cases, key=lambda case: (-case.gain, case.id))
    ]
    return Scatter(
        low=low, ticks=[(value, place(value)) for value in reversed(values)], points=points
    )


def _winner(case: Case) -> str:
    if case.gain == 0:
        return "equal"
    return "train_finetuned" if case.gain > 0 else "train_frozen"
