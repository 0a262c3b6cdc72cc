"""What an ablation compares, and its tables: scores of each configuration beside its base's."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lesionseg.config import read_yaml
from lesionseg.errors import ConfigError
from lesionseg.results.layout import FINETUNED, FROZEN
from lesionseg.sweep.space import Settings, parse_settings
from lesionseg.sweep.table import score_text

DEFAULT = "default"
NUM_TEXTS = 3  # columns of text, before those of numbers


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One row of the tables.

    Attributes:
        name: Of letters, digits, - and _.
        base: Name of the configuration that it changes.
        what: What it changes in that, in a few words.
        settings: What it and its base set; all else is as in params.yaml.
    """

    name: str
    base: str
    what: str
    settings: Settings


def read_configurations(path: Path) -> list[Configuration]:
    """The configurations in a YAML file, in its order.

    Raises:
        ConfigError: A name, or what stands under it, is not of the form.
    """
    configurations: dict[str, Configuration] = {}
    for name, entry in read_yaml(path).items():
        if not re.fullmatch(r"[\w-]+", str(name)):
            raise ConfigError(f"{path}: name {name!r} must be letters, digits, - and _")
        if not isinstance(entry, dict) or entry.keys() - {"from"} != {"what", "set"}:
            raise ConfigError(
                f"{path}: {name} must have `what` and `set`, and may have `from`, got {entry!r}"
            )
        if not isinstance(entry["set"], list):
            raise ConfigError(f"{path}: {name}: set must be a list, got {entry['set']!r}")
        base = entry.get("from", DEFAULT)
        if base != DEFAULT and base not in configurations:
            raise ConfigError(f"{path}: {name}: from must name an entry above it, got {base!r}")
        inherited = configurations[base].settings if base in configurations else {}
        try:
            own = parse_settings([str(text) for text in entry["set"]])
        except ConfigError as error:
            raise ConfigError(f"{path}: {name}: {error}") from None
        configurations[str(name)] = Configuration(
            name=str(name), base=base, what=str(entry["what"]), settings={**inherited, **own}
        )
    return list(configurations.values())


def tables(results: pd.DataFrame, configurations: Sequence[Configuration]) -> str:
    """Markdown for each model: a row for each configuration that has results, in their order.

    Mean and standard deviation (of the sample, N - 1) are over seeds. The difference to the base
    is of test jaccards, and taken seed by seed first: the same seed is the same order of images.

    Args:
        results: `name`, `run`, `seed`, `val_jaccard`, `test_jaccard`, `test_dice` and `seconds`.
        configurations: All that there may be in it.
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
    alignment = ["---"] * NUM_TEXTS + ["---:"] * (len(headings) - NUM_TEXTS)
    lines = [headings, alignment, *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
