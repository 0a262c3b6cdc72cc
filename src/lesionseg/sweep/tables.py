"""The outcome of a sweep or an ablation, as text."""

import statistics
from collections.abc import Mapping, Sequence

import pandas as pd

from lesionseg.results.layout import FINETUNED, FROZEN
from lesionseg.sweep.configurations import DEFAULT, Configuration
from lesionseg.sweep.space import Settings
from lesionseg.sweep.trials import Outcome, Row, rank

_NUM_TEXTS = 3  # columns of text, before those of numbers


def summary(
    outcomes: Sequence[Outcome], left_out: Sequence[str], *, is_remote: bool = False
) -> str:
    """The table, best first, then what was stopped, failed or left out, and the next step.

    Args:
        outcomes: One for each trial.
        left_out: Combinations that did not become trials, and why.
        is_remote: Whether the experiments' files are only in DVC's remote.
    """
    failed = [outcome for outcome in outcomes if outcome.has_failed]
    finished = [outcome for outcome in outcomes if outcome.scores]
    stopped = [outcome for outcome in outcomes if outcome.stop]
    known = sum(1 for outcome in finished if not outcome.seconds)
    counts = [f"{len(finished)} finished" + (f" ({known} before)" if known else "")]
    counts += [f"{len(stopped)} stopped early"] if stopped else []
    counts += [f"{len(failed)} failed"] if failed else []
    counts += [f"{len(left_out)} left out"] if left_out else []
    plural = "" if len(outcomes) == 1 else "s"
    lines = ["", f"{len(outcomes)} trial{plural}: {', '.join(counts)}", ""]
    rows = rank(outcomes)
    if rows:
        lines += [*_table(rows), ""]
    for outcome in stopped:
        lines += [
            f"STOPPED EARLY {outcome.trial.name}: {words(outcome.trial.settings)}",
            f"       {outcome.stop.reason}" if outcome.stop else "",
        ]
    lines += failures(failed)
    lines += [f"LEFT OUT {reason}" for reason in left_out]
    if rows:
        lines += _next_steps(rows[0], is_remote=is_remote)
    return "\n".join([*lines, ""])


def outcome_line(outcome: Outcome) -> str:
    """The outcome of one trial, as a line of the log."""
    trial = outcome.trial
    if outcome.stop:
        return f"{trial.name} stopped early {outcome.stop.reason} ({words(trial.settings)})"
    if not outcome.scores:
        return f"{trial.name} failed: {outcome.error} ({words(trial.settings)})"
    fine, frozen = (score_text(outcome.scores[name]) for name in (FINETUNED, FROZEN))
    return (
        f"{trial.name}: val jaccard {fine} fine-tuned, {frozen} frozen; {outcome.seconds:.0f} s "
        f"({words(trial.settings)})"
    )


def failures(outcomes: Sequence[Outcome]) -> list[str]:
    """For each failed trial its settings, its error and where its log is."""
    return [
        line
        for outcome in outcomes
        for line in (
            f"FAILED {outcome.trial.name}: {words(outcome.trial.settings)}",
            f"       {outcome.error}",
            f"       its log: {outcome.log}",
        )
    ]


def _table(rows: Sequence[Row]) -> list[str]:
    """One line for each setting; val jaccards with their standard deviation over seeds."""
    names = list(dict.fromkeys(name for row in rows for name in row.settings))
    header = ["trial", *names, "fine-tuned", "frozen"]
    if any(len(row.scores[FINETUNED]) > 1 for row in rows):
        header.append("seeds")
    cells = [header]
    for row in rows:
        values = [str(row.settings.get(name, "")) for name in names]
        scores = [score_text(row.scores[run]) for run in (FINETUNED, FROZEN)]
        cells.append([row.name, *values, *scores, str(len(row.scores[FINETUNED]))][: len(header)])
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    text = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    before = sum(widths[: 1 + len(names)]) + 2 * (1 + len(names))
    return [" " * before + "best val jaccard", text[0], "-" * len(text[0]), *text[1:]]


def score_text(scores: Sequence[float], *, sign: str = "") -> str:
    """Mean of one or more scores; if several, with their standard deviation.

    Args:
        scores: At least one.
        sign: `+` to write it before positive means too, for differences.
    """
    spread = f" ±{statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
    return f"{statistics.fmean(scores):{sign}.3f}{spread}"


def words(settings: Settings) -> str:
    """Settings in DVC's notation."""
    return " ".join(f"{name}={value}" for name, value in settings.items())


def _next_steps(best: Row, *, is_remote: bool) -> list[str]:
    """What to do with the best row."""
    pull = f"dvc exp pull origin {best.name} && " if is_remote else ""
    keep = "|".join(["Experiment", "tuned.val", *best.settings])
    return [
        f"Best by the fine-tuned model's val jaccard: {best.name} ({words(best.settings)})",
        f"Take it over:  {pull}dvc exp apply {best.name} && dvc repro",
        f"See them all:  dvc exp show --no-pager --drop '.*' --keep '{keep}'",
    ]


def ablation_tables(results: pd.DataFrame, configurations: Sequence[Configuration]) -> str:
    """Markdown for each model: a row for each configuration that has results, in their order.

    Mean and standard deviation (of the sample, N - 1) are over seeds. The difference from the base
    is of test jaccards, taken within each seed first: the same seed is the same order of images.

    Args:
        results: `name`, `run`, `seed`, `val_jaccard`, `test_jaccard`, `test_dice` and `seconds`.
        configurations: All that may occur in it.
    """
    texts = []
    for title, run in (("Fine-tuned", FINETUNED), ("Frozen", FROZEN)):
        groups = results[results["run"] == run].groupby("name")
        scores = {str(name): rows.set_index("seed") for name, rows in groups}
        rows = [_cells(one, scores) for one in configurations if one.name in scores]
        texts.append(f"{title}:\n\n{_markdown(rows)}\n")
    return "\n".join(texts)


def _cells(configuration: Configuration, scores: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """One row by its headings; `scores` has a table by seed for each configuration."""
    own = scores[configuration.name]
    difference = ""
    base = configuration.base if configuration.name != DEFAULT else ""
    if base in scores:
        paired = (own["test_jaccard"] - scores[base]["test_jaccard"]).dropna()
        difference = score_text(list(paired), sign="+") if len(paired) else ""
    return {
        "": f"`{configuration.name}`",
        "base": f"`{base}`" if base else "",
        "what it changes": configuration.what,
        "val jaccard": score_text(list(own["val_jaccard"])),
        "test jaccard": score_text(list(own["test_jaccard"])),
        "test dice": score_text(list(own["test_dice"])),
        "test jaccard - base's": difference,
        "training, s": f"{own['seconds'].mean():.0f}",
    }


def _markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A table whose first columns are text and the others numbers."""
    headings = list(rows[0])
    alignment = ["---"] * _NUM_TEXTS + ["---:"] * (len(headings) - _NUM_TEXTS)
    lines = [headings, alignment, *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
