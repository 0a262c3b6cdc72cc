"""A learning curve in words and Markdown tables."""

from collections.abc import Sequence

from lesionseg.curve.record import FEWEST_SIZES, Curve, Guess, Interval, Point, SetCurve
from lesionseg.results.layout import FINETUNED, FROZEN
from lesionseg.results.vocabulary import RUN_LABELS

HEADINGS = (
    "training images",
    "frozen",
    "fine-tuned",
    "fine-tuned minus frozen",
    "fine-tuned better in",
)


def curve_text(curve: Curve) -> str:
    """The whole curve as Markdown: how it was made, then the table and sentences of each set."""
    parts = [describe(curve)]
    for one in curve.sets:
        parts += [f"**{title(one)}**", table(one, curve), *sentences(one, curve)]
    return "\n\n".join(parts) + "\n"


def title(one: SetCurve) -> str:
    """A set's name and number of images."""
    kind = "" if one.name == "test" else ", external"
    return f"{one.name}{kind}: {one.num_images} images"


def describe(curve: Curve) -> str:
    """What the numbers are, in a few sentences."""
    setting = curve.setting
    changed = ", ".join(f"{name}={value}" for name, value in curve.changed.items())
    return (
        f"Jaccard at {setting.image_size}x{setting.image_size}: the mean over the test images, "
        f"then over {len(curve.seeds)} training seed{'s' * (len(curve.seeds) > 1)}"
        f"{_with_intervals(curve)}. Each seed draws its own training images, the fewer among the "
        f"more, the same for both models. Every training has {setting.num_steps} steps, as "
        f"{setting.epochs} epochs of all {setting.num_train} images have; {setting.num_val} "
        "further labelled images (val) choose its best epoch. "
        f"Data: {setting.source}. {setting.precision} on {setting.device}, commit "
        f"{curve.commit[:7]}{f', {changed}' if changed else ''}."
    )


def _with_intervals(curve: Curve) -> str:
    if len(curve.seeds) == 1:
        return ", which has no interval"
    return (
        f" with {100 * curve.confidence:g} % intervals (Student's t), which say how the answer "
        "varies with the images learnt from and with chance in training, not with the test images"
    )


def table(one: SetCurve, curve: Curve) -> str:
    """A row for each number of training images, as Markdown."""
    rows = [HEADINGS, ("---:",) * len(HEADINGS), *(cells(point, curve) for point in one.points)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cells(point: Point, curve: Curve) -> tuple[str, ...]:
    """A row's cells, under `HEADINGS`."""
    return (
        str(point.num_images),
        *(with_interval(one.mean, one.interval) for one in map(point.at, (FROZEN, FINETUNED))),
        with_interval(point.difference.mean, point.difference.interval, sign="+"),
        f"{point.num_better} of {len(curve.seeds)} seeds",
    )


def with_interval(value: float, interval: Interval | None, *, sign: str = "") -> str:
    """A number with its interval, if it has one; `sign` "+" shows the sign of positive numbers."""
    if interval is None:
        return f"{value:{sign}z.3f}"
    low, high = interval
    return f"{value:{sign}z.3f} ({low:{sign}z.3f} to {high:{sign}z.3f})"


def sentences(one: SetCurve, curve: Curve) -> list[str]:
    """What the curve says on one set: which model is better where, crossings, and the guess."""
    return [
        " ".join(_which_is_better(one.points)),
        " ".join(_where_they_cross(one, curve)),
        _guess_text(one) if one.guess else _no_guess_text(one),
    ]


def _which_is_better(points: Sequence[Point]) -> list[str]:
    """The sizes at which the interval of the difference excludes 0, by the better model."""
    if points[0].difference.interval is None:
        return ["With one seed nothing is known of chance: no difference is shown."]
    found: dict[str, list[int]] = {FINETUNED: [], FROZEN: [], "": []}
    for point in points:
        assert point.difference.interval
        low, high = point.difference.interval
        found[FINETUNED if low > 0 else FROZEN if high < 0 else ""].append(point.num_images)
    better = [
        f"{RUN_LABELS[run].capitalize()} is better with {_listed(found[run])} training images: the "
        "interval of the difference excludes 0."
        for run in (FINETUNED, FROZEN)
        if found[run]
    ]
    if found[""]:
        better.append(
            f"With {_listed(found[''])} training images no difference is shown: the interval "
            "contains 0."
        )
    return better


def _where_they_cross(one: SetCurve, curve: Curve) -> list[str]:
    first, last = one.points[0], one.points[-1]
    if len(one.points) == 1:
        return ["Where the curves cross takes two numbers of images or more."]
    if not one.crossings:
        above = RUN_LABELS[FINETUNED if last.difference.mean > 0 else FROZEN]
        return [
            f"The curves do not cross between {first.num_images} and {last.num_images} images: the "
            f"{above} model's mean is above throughout."
        ]
    texts = []
    for crossing in one.crossings:
        low, high = crossing.between
        texts.append(
            f"The curves cross between {low} and {high} images, at about "
            f"{crossing.num_images:.0f}: with more, the {RUN_LABELS[crossing.better_after]} "
            f"model's mean is above. So it is in {crossing.num_seeds} of {len(curve.seeds)} seeds."
        )
        if crossing.surely_between:
            near, far = crossing.surely_between
            texts.append(f"That is sure: at {near} and at {far} the intervals exclude 0.")
        else:
            texts.append("It may be chance: not on both sides of it an interval excludes 0.")
    return texts


def _guess_text(one: SetCurve) -> str:
    guess, last = one.guess, one.points[-1]
    assert guess
    models = " and ".join(_law_text(guess, run) for run in (FROZEN, FINETUNED))
    difference = with_interval(guess.difference.value, guess.difference.interval, sign="+")
    text = (
        f"A guess for {guess.num_images} images, twice as many, if errors go on to shrink as a "
        f"power law: {models}; the difference {difference}."
    )
    checked = [guess.at(run).checked for run in (FROZEN, FINETUNED)]
    if None in checked:
        return text
    guessed = " and ".join(f"{value:.3f}" for value in checked if value is not None)
    measured = " and ".join(f"{last.at(run).mean:.3f}" for run in (FROZEN, FINETUNED))
    return (
        f"{text} How good such guesses are: without the last size it would have been {guessed} for "
        f"{last.num_images} images, where {measured} were measured."
    )


def _law_text(guess: Guess, run: str) -> str:
    law = guess.at(run)
    value = with_interval(law.jaccard.value, law.jaccard.interval)
    gain = with_interval(law.gain.value, law.gain.interval, sign="+")
    return f"{RUN_LABELS[run]} {value}, a gain of {gain}"


def _no_guess_text(one: SetCurve) -> str:
    return (
        f"What twice as many labels would bring is not guessed from {len(one.points)} sizes; a "
        f"power law takes {FEWEST_SIZES} or more."
    )


def _listed(sizes: Sequence[int]) -> str:
    words = [str(size) for size in sizes]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
