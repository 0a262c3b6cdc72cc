"""Image by image, one model against the other: where the page's plot has its points."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lesionseg.report.gallery import Case

SIDE = 400  # of the plot's square, in its own units
_STEPS = (0.05, 0.1, 0.2)  # between ticks


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

    Attributes:
        low: Of both axes; a multiple of the step between ticks.
        ticks: Values and their distance from the plot's left or lower edge.
        points: From the largest gain to the largest loss: the order of the arrow keys.
    """

    low: float
    ticks: list[tuple[float, float]]
    points: list[Point]

    def count(self, winner: str) -> int:
        """Images where `winner` is the better run."""
        return sum(point.winner == winner for point in self.points)


def place_points(cases: Sequence[Case]) -> Scatter:
    """The plot of all cases, its axes no longer than the scores need."""
    lowest = min(min(case.scores["jaccard"].values()) for case in cases)
    step = next((step for step in _STEPS if (1 - lowest) / step <= 6), _STEPS[-1])
    num_steps = max(1, math.ceil(round((1 - lowest) / step, 6)))
    low = max(0.0, round(1 - num_steps * step, 2))
    values = [round(low + step * number, 2) for number in range(num_steps + 1)]

    def place(value: float) -> float:
        return round(SIDE * (value - low) / (1 - low), 1)

    points = [
        Point(
            case=case,
            x=place(case.scores["jaccard"]["train_frozen"]),
            y=SIDE - place(case.scores["jaccard"]["train_finetuned"]),
            winner=_winner(case),
        )
        for case in sorted(cases, key=lambda case: (-case.gain, case.id))
    ]
    return Scatter(low=low, ticks=[(value, place(value)) for value in values], points=points)


def _winner(case: Case) -> str:
    if case.gain == 0:
        return "equal"
    return "train_finetuned" if case.gain > 0 else "train_frozen"
