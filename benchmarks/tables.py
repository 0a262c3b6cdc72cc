"""Raw values as medians, ratios and markdown tables."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

Raw = dict[str, list[dict[str, Any]]]  # what each contestant measured, round by round


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the ratios within each round."""
    pairs = zip(numerators, denominators, strict=True)
    return float(median(above / below for above, below in pairs))


def spread(values: Sequence[float], digits: int) -> str:
    """A median with the lowest and the highest value, such as `80.0 (78.5 to 81.0)`."""
    low, high = min(values), max(values)
    text = f"{median(values):,.{digits}f}"
    return text if len(values) == 1 else f"{text} ({low:,.{digits}f} to {high:,.{digits}f})"


def common_jaccard(raw: Raw) -> float:
    """The highest val jaccard that every training of every contestant reaches."""
    trainings = [measured["history"] for rounds in raw.values() for measured in rounds]
    return min(max(float(epoch["val_jaccard"]) for epoch in history) for history in trainings)


def seconds_to(history: Sequence[Mapping[str, float]], jaccard: float) -> float:
    """Seconds of training after which `val_jaccard` was first at least `jaccard`."""
    return next(epoch["seconds"] for epoch in history if epoch["val_jaccard"] >= jaccard)


def parts_table(label: str, raw: Raw, key: str, *, num: int | None = None) -> str:
    """A markdown table with a row for each part, and each contestant's median and share of it.

    Args:
        label: Heading of the parts' names.
        raw: The measured values.
        key: Key of the measured parts, a mapping from names to milliseconds; shares are of the
            value `milliseconds`.
        num: How many parts of the first contestant to show, the largest first; None shows all, in
            their order, and their sum.
    """
    wholes = {
        name: median(found["milliseconds"] for found in rounds) for name, rounds in raw.items()
    }
    medians = {
        name: {
            part: median(found[key].get(part, 0.0) for found in rounds) for part in rounds[0][key]
        }
        for name, rounds in raw.items()
    }
    first = next(iter(medians.values()))
    parts = list(first) if num is None else sorted(first, key=first.__getitem__)[: -num - 1 : -1]
    if num is None:
        parts.append("all")
        for name, whole in wholes.items():
            medians[name]["all"] = whole
    lines = [[label], ["---"], *([part] for part in parts)]
    for name, whole in wholes.items():
        lines[0] += [f"ms, {name}", "%"]
        lines[1] += ["---:", "---:"]
        for line, part in zip(lines[2:], parts, strict=True):
            found = medians[name].get(part, 0.0)
            line += [f"{found:.1f}", f"{100 * found / whole:.0f}"]
    return _lines(lines)


def table(label: str, raw: Raw, columns: Mapping[str, tuple[str, int]], *, ratio: str = "") -> str:
    """A markdown table with a row for each contestant.

    Args:
        label: Heading of the contestants' names.
        raw: The measured values.
        columns: Heading -> key of the measured value, and its number of digits.
        ratio: One of the headings; next to it, the first contestant's value is divided by each.
    """
    first = next(iter(raw))
    rows = []
    for name, rounds in raw.items():
        row = {label: name}
        for heading, (key, digits) in columns.items():
            values = [measured[key] for measured in rounds]
            row[heading] = spread(values, digits)
            if heading == ratio:
                firsts = [measured[key] for measured in raw[first]]
                row[f"{first} / this"] = f"{median_ratio(firsts, values):.2f}"
        rows.append(row)
    lines = [list(rows[0]), ["---", *["---:"] * (len(rows[0]) - 1)], *(r.values() for r in rows)]
    return _lines(lines)


def _lines(lines: Sequence[Iterable[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
