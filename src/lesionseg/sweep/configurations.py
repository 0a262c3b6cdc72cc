"""What an ablation compares: the configurations in a YAML file."""

import re
from dataclasses import dataclass
from pathlib import Path

from lesionseg.config import read_yaml
from lesionseg.errors import ConfigError, MissingFileError
from lesionseg.sweep.space import Settings, parse_settings

DEFAULT = "default"


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One row of the tables.

    Attributes:
        name: Letters, digits, - and _.
        base: Name of the configuration that it changes.
        what: What it changes there, in a few words.
        settings: What it and its base set; everything else is as in params.yaml.
    """

    name: str
    base: str
    what: str
    settings: Settings


def read_configurations(path: Path) -> list[Configuration]:
    """The configurations in a YAML file, in its order.

    Raises:
        MissingFileError: The file is missing.
        ConfigError: A name, or its entry, is malformed.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is missing. Name a file of configurations with --file")
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
