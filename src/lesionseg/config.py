"""`params.yaml` as frozen, validated records: the only importer of yaml.

Every value is in the file; none has a default here. Anything unknown, missing, of the wrong type or
out of range is refused before any work starts, with section, key, expected, got and what to write.
"""

import dataclasses
import difflib
import math
import re
import sys
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from lesionseg.errors import ConfigError, MissingFileError, first_line

SEED_BOUND = 2**32
# Far more than anybody needs, yet low enough that a typing error cannot make a run last for ever.
MOST_EPOCHS, MOST_IMAGES, MOST_IN_BATCH, MOST_PROCESSES = 10_000, 100_000, 4096, 64
_LARGEST = sys.float_info.max
_MOST_BYTES, _MOST_VALUES = 40_000, 20_000  # of a YAML file: takes over a second to read
_MOST_SHOWN = 200  # characters of a value in a message
_DEEPEST = 50  # nested brackets, which are slow to read
_MERGE = "<<"


def _number(
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
    multiple_of: int | None = None,
) -> Any:
    """A field for a number in a range."""
    bounds = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    return field(metadata={**bounds, "multiple_of": multiple_of})


def _choice(*choices: str | int) -> Any:
    """A field for one of a few words or numbers."""
    return field(metadata={"choices": choices})


def _choices(*choices: str) -> Any:
    """A field for one of a few words, or for a list of several of them."""
    return field(metadata={"choices": choices, "several": True})


def _matching(pattern: str, meaning: str) -> Any:
    """A field for text that matches a pattern."""
    return field(metadata={"pattern": pattern, "meaning": meaning})


def _seed() -> Any:
    return _number(at_least=0, below=SEED_BOUND)


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """Where images, masks and the encoder's weights come from."""

    source: str | tuple[str, ...] = _choices(
        "isic2016", "isic2017", "isic2018", "ph2", "ham10000", "folder", "phantom"
    )
    folder: str
    archives: str = _matching(r".+", "a folder")
    weights: str = _matching(r".+", "imagenet, none or a path")
    test_fraction: float = _number(above=0, below=1)
    seed: int = _seed()
    phantom_num_train: int = _number(at_least=2, at_most=MOST_IMAGES)
    phantom_num_test: int = _number(at_least=2, at_most=MOST_IMAGES)
    phantom_size: int = _number(at_least=32, at_most=1024)

    def __post_init__(self) -> None:
        if "folder" in self.sources and not self.folder:
            raise ConfigError(
                "params.yaml: download: folder is empty, and source is folder. "
                "Write the folder that holds your images and masks; docs/data.md shows how"
            )
        if "phantom" in self.sources and len(self.sources) > 1:
            raise ConfigError(
                "params.yaml: download: source joins phantom with others. "
                "Write phantom alone, or take it out of the list"
            )

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources, usually just one; the first one provides test."""
        return (self.source,) if isinstance(self.source, str) else self.source


@dataclass(frozen=True, kw_only=True)
class ExternalConfig:
    """A test set from elsewhere: never used for training or for choosing anything."""

    name: str = _matching(r"[A-Za-z0-9][A-Za-z0-9_-]{0,40}", "up to 41 letters, digits, - and _")
    source: str = _choice("isic2017", "isic2018", "ph2", "ham10000", "folder", "phantom")
    folder: str

    def __post_init__(self) -> None:
        if self.name.casefold() in ("train", "val", "test"):
            raise ConfigError(
                f"params.yaml: external: {self.name} is the name of a split. Write another name"
            )
        if self.source == "folder" and not self.folder:
            raise ConfigError(
                f"params.yaml: external: folder of {self.name} is empty, and its source is folder. "
                "Write the folder that holds its images and masks; docs/data.md shows how"
            )


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """The size the network sees, the validation split, the leak check."""

    image_size: int = _number(at_least=64, at_most=1024, multiple_of=32)
    val_fraction: float = _number(above=0, below=1)
    seed: int = _seed()
    near_duplicate_distance: float = _number(at_least=0, at_most=255)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What both trainings share."""

    epochs: int = _number(at_least=1, at_most=MOST_EPOCHS)
    num_images: int = _number(at_least=0, at_most=MOST_IMAGES)
    batch_size: int = _number(at_least=1, at_most=MOST_IN_BATCH)
    lr: float = _number(above=0)
    weight_decay: float = _number(at_least=0)
    warmup_fraction: float = _number(at_least=0, below=1)
    first_image_size: int = _number(at_least=64, at_most=1024, multiple_of=32)
    seed: int = _seed()
    num_seeds: int = _number(at_least=1, at_most=1000)
    cross_validate: bool
    device: str = _matching(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:N")
    precision: str = _choice("auto", "float32", "bfloat16")
    reproducible: str = _choice("machine", "anywhere")
    num_processes: int = _number(at_least=1, at_most=MOST_PROCESSES)

    @property
    def is_the_same_anywhere(self) -> bool:
        """Whether training must give the same bytes on every x86-64 CPU with AVX2."""
        return self.reproducible == "anywhere"

    @property
    def device_name(self) -> str:
        """The device to train on, in the notation of `device`."""
        return "cpu" if self.is_the_same_anywhere else self.device

    def __post_init__(self) -> None:
        for name, suited in (("device", ("auto", "cpu")), ("precision", ("auto", "float32"))):
            if self.is_the_same_anywhere and getattr(self, name) not in suited:
                raise ConfigError(
                    f"params.yaml: train: reproducible is anywhere, and {name} is "
                    f"{getattr(self, name)}. Write {name} {' or '.join(suited)}, or reproducible "
                    "machine: no two kinds of GPU, and not every CPU's bfloat16, give equal bytes"
                )
        if self.num_processes > self.batch_size:
            raise ConfigError(
                f"params.yaml: train: num_processes is {self.num_processes}, and batch_size is "
                f"{self.batch_size}. Write num_processes of at most {self.batch_size}, or a larger "
                "batch_size: each process computes a part of every batch"
            )
        if self.cross_validate and self.num_seeds == 1:
            raise ConfigError(
                "params.yaml: train: cross_validate is true, and num_seeds is 1. "
                "Write num_seeds above 1: each further seed validates on other images"
            )
        if self.cross_validate and self.num_images:
            raise ConfigError(
                f"params.yaml: train: num_images is {self.num_images}, and cross_validate is true. "
                "Write num_images 0, or cross_validate false: folds are of all images"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The decoder."""

    decoder: str = _choice("bilinear", "transposed", "pyramid")
    dropout: float = _number(at_least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of a sum of losses; 0 leaves a loss out."""

    bce: float = _number(at_least=0)
    dice: float = _number(at_least=0)
    iou: float = _number(at_least=0)
    focal: float = _number(at_least=0)
    tversky: float = _number(at_least=0)
    focal_tversky: float = _number(at_least=0)
    lovasz: float = _number(at_least=0)
    boundary: float = _number(at_least=0)

    def __post_init__(self) -> None:
        if not any(dataclasses.astuple(self)):
            raise ConfigError("params.yaml: loss: all weights are 0; write one above 0")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random views of the training images."""

    horizontal_flip: float = _number(at_least=0, at_most=1)
    vertical_flip: float = _number(at_least=0, at_most=1)
    rotation_degrees: float = _number(at_least=0, at_most=180)
    scale: float = _number(at_least=0, below=1)
    shift: float = _number(at_least=0, at_most=0.5)
    padding: str = _choice("zeros", "border", "reflection")
    brightness: float = _number(at_least=0, below=1)
    contrast: float = _number(at_least=0, below=1)
    saturation: float = _number(at_least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class FrozenConfig:
    """Model 1."""

    encoder_lr: float = _number(at_least=0, at_most=0)


@dataclass(frozen=True, kw_only=True)
class FinetunedConfig:
    """Model 2."""

    encoder_lr: float = _number(above=0)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How the test split is scored."""

    threshold: float = _number(above=0, below=1)
    surface_tolerance: float = _number(above=0, at_most=100)
    batch_size: int = _number(at_least=1, at_most=MOST_IN_BATCH)
    confidence: float = _number(above=0, below=1)
    num_resamples: int = _number(at_least=100, at_most=1_000_000)
    seed: int = _seed()
    tta_views: int = _choice(1, 2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What the page shows."""

    title: str = _matching(r".+", "a line of text")
    num_examples: int = _number(at_least=1, at_most=24)


@dataclass(frozen=True, kw_only=True)
class Config:
    """All of params.yaml."""

    download: DownloadConfig
    external: tuple[ExternalConfig, ...]
    preprocess: PreprocessConfig
    train: TrainConfig
    model: ModelConfig
    loss: LossConfig
    augment: AugmentConfig
    train_frozen: FrozenConfig
    train_finetuned: FinetunedConfig
    evaluate: EvaluateConfig
    report: ReportConfig

    def encoder_lr(self, run: str) -> float:
        """Learning rate of the encoder in one of `RUNS`; 0 freezes it."""
        return {
            "train_frozen": self.train_frozen.encoder_lr,
            "train_finetuned": self.train_finetuned.encoder_lr,
        }[run]

    def seeds(self) -> range:
        """The seeds that each model is trained with; the model of the first one is shown."""
        return range(self.train.seed, self.train.seed + self.train.num_seeds)

    def training_params(self, run: str, *, seed: int) -> dict[str, Any]:
        """The parameters of one training, flat, as MLflow shows them; unique to that training."""
        params = {
            **self.flat("download", "preprocess", "train", "model", "loss", "augment"),
            "train.seed": seed,
            "encoder_lr": self.encoder_lr(run),
            "encoder": "fine-tuned" if self.encoder_lr(run) else "frozen",
        }
        del params["train.num_seeds"]  # irrelevant to a single training
        if self.train.cross_validate:  # the fold of a seed depends on the first seed
            params["fold"] = self.seeds().index(seed)
        return params

    def flat(self, *sections: str) -> dict[str, Any]:
        """The values of some sections as `{"train.lr": 0.002, ...}`; lists become text."""
        return {
            f"{section}.{key}": ", ".join(value) if isinstance(value, tuple) else value
            for section in sections
            for key, value in dataclasses.asdict(getattr(self, section)).items()
        }


def load_config(path: Path) -> Config:
    """The validated records of a params.yaml.

    Raises:
        MissingFileError: The file is missing.
        ConfigError: Something in it is invalid; the message is one line.
    """
    if not path.is_file():
        raise MissingFileError(
            f"{path} is missing. Run from the repository's root; git restore {path} brings it back"
        )
    content = read_yaml(path)
    names = [section.name for section in fields(Config)]
    _check_keys(path.name, content, names, what="section")
    sections: dict[str, Any] = {}
    for section in fields(Config):
        values = content[section.name]
        where = f"{path.name}: {section.name}"
        if section.name == "external":
            sections[section.name] = _read_external(where, values)
            continue
        if not isinstance(values, dict):
            raise ConfigError(f"{where} must be a section of keys and values, got {_shown(values)}")
        assert isinstance(section.type, type)
        sections[section.name] = _read_section(where, section.type, values)
    return Config(**sections)


def _read_external(where: str, values: Any) -> tuple[ExternalConfig, ...]:
    """The external test sets, with distinct names."""
    if not isinstance(values, list) or not all(isinstance(one, dict) for one in values):
        raise ConfigError(
            f"{where} must be a list of test sets, each with name, source and folder, or [] for "
            f"none, got {_shown(values)}"
        )
    sets = tuple(
        _read_section(f"{where}: number {number}", ExternalConfig, one)
        for number, one in enumerate(values, start=1)
    )
    names = [one.name.casefold() for one in sets]  # they become folders; some disks ignore case
    for one in sets:
        if names.count(one.name.casefold()) > 1:
            raise ConfigError(f"{where}: {one.name} is there twice. Write another name")
    return sets


def _read_section(where: str, record: type, values: Mapping[str, Any]) -> Any:
    _check_keys(where, values, [key.name for key in fields(record)], what="key")
    checked = {key.name: _check_value(where, key, values[key.name]) for key in fields(record)}
    return record(**checked)


def _check_keys(where: str, values: Mapping[str, Any], known: list[str], *, what: str) -> None:
    for name in values:
        if name not in known:
            close = _close(name, known)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            raise ConfigError(f"{where}: unknown {what} {_shown(name)}; {hint}")
    for name in known:
        if name not in values:
            raise ConfigError(
                f"{where}: {what} {name} is missing; add it, as in git show HEAD:params.yaml"
            )


def _check_value(where: str, key: "dataclasses.Field[Any]", value: Any) -> Any:
    choices = key.metadata.get("choices", ())
    if not _fits(key, value):
        wrong = [one for one in value if one not in choices] if isinstance(value, list) else [value]
        close = _close(wrong[0], list(map(str, choices))) if wrong else []
        hint = f"; did you mean {close[0]}?" if close else ""
        if isinstance(value, date):  # or a time
            hint = "; text that looks like a date stands in quotes"
        raise ConfigError(
            f"{where}: {key.name} must be {_expected(key)}, got {_shown(value)}{hint}"
        )
    if isinstance(value, list):
        return tuple(value) if len(value) > 1 else value[0]
    return key.type(value) if isinstance(key.type, type) else value


def _fits(key: "dataclasses.Field[Any]", value: Any) -> bool:
    if key.metadata.get("several") and isinstance(value, list):
        known = all(isinstance(one, str) and _is_choice(key, one) for one in value)
        return known and 0 < len(value) == len(set(value))
    if "choices" in key.metadata:
        return _is_choice(key, value)
    assert isinstance(key.type, type)
    kinds = {int: _is_number, float: _is_number, bool: _is_bool, str: _is_text}
    return kinds[key.type](key, value)


def _close(value: Any, known: list[str]) -> list[str]:
    """The known word nearest to a value, or nothing if none is near."""
    text = value if isinstance(value, str) else _shown(value)
    return difflib.get_close_matches(text[:_MOST_SHOWN], known, n=1)


def _shown(value: Any) -> str:
    """A value as a message shows it, cut if too long."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print numbers with more digits
        return f"a number of more than {sys.get_int_max_str_digits()} digits"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _is_choice(key: "dataclasses.Field[Any]", value: Any) -> bool:
    # True equals 1, but nobody writes it as a number.
    return value in key.metadata["choices"] and not isinstance(value, bool)


def _is_bool(_key: "dataclasses.Field[Any]", value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(key: "dataclasses.Field[Any]", value: Any) -> bool:
    pattern = key.metadata.get("pattern", r".*")
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _is_number(key: "dataclasses.Field[Any]", value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        return False
    if key.type is int and value % 1:
        return False
    rules = key.metadata
    return bool(
        rules["at_least"] <= value <= rules["at_most"]
        and rules["above"] < value < rules["below"]
        and (rules["multiple_of"] is None or value % rules["multiple_of"] == 0)
    )


def _expected(key: "dataclasses.Field[Any]") -> str:
    """The rule for a key in words."""
    rules = key.metadata
    if "choices" in rules:
        known = "one of " + ", ".join(map(str, rules["choices"]))
        return f"{known}, or a list of different ones" if "several" in rules else known
    if key.type is bool:
        return "true or false"
    if key.type is str:
        return str(rules.get("meaning", "text"))
    if rules["at_least"] == rules["at_most"]:
        return f"{rules['at_least']:g}"
    words = {"above": "above", "at_least": "at least", "below": "below", "at_most": "at most"}
    limits = [
        f"{word} {rules[name]:.10g}" for name, word in words.items() if math.isfinite(rules[name])
    ]
    kind = "a whole number" if key.type is int else "a number"
    if rules["multiple_of"]:
        kind = f"a multiple of {rules['multiple_of']}"
    return " ".join([kind, " and ".join(limits)]).strip()


class _Refused(yaml.MarkedYAMLError):
    """Valid YAML that we refuse."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 as DVC reads it, by ruamel.yaml: 017 is 17, 1e-4 a number, and `no` is text.

    Repeated keys, self-references and references that grow without end are refused.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._flattened: set[int] = set()

    def fetch_flow_collection_start(self, TokenClass: type[yaml.Token]) -> None:  # noqa: N803
        if self.flow_level == _DEEPEST:
            raise _Refused(problem="nested too deeply; write sections of keys")
        super().fetch_flow_collection_start(TokenClass)

    def construct_document(self, node: yaml.Node) -> Any:
        if self.yaml_version not in (None, (1, 2)):
            raise _Refused(problem="%YAML other than 1.2 gives values another meaning; remove it")
        if _count(node, {}) > _MOST_VALUES:
            raise _Refused(problem=f"more than {_MOST_VALUES} values, with all references followed")
        return super().construct_document(node)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Resolve `<<`, after checking the mapping's own keys for duplicates."""
        if id(node) in self._flattened:  # several places refer to it
            return
        self._flattened.add(id(node))
        seen = set[Hashable]()
        for key_node, _ in node.value:
            is_merge = key_node.tag == "tag:yaml.org,2002:merge"
            key = (_MERGE,) if is_merge else self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # refused further on by the constructor
            if key in seen:
                problem = f"key {_shown(_MERGE if is_merge else key)} occurs twice; keep one"
                raise _Refused(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key)
        super().flatten_mapping(node)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node).replace("_", "")
        digits = text.lstrip("+-")
        base = {"0b": 2, "0o": 8, "0x": 16}.get(digits[:2], 10)
        value = int(digits if base == 10 else digits[2:], base)
        return -value if text.startswith("-") else value


_Loader.yaml_implicit_resolvers = {}  # drop those of YAML 1.1
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


class _Dumper(yaml.SafeDumper):
    """Quotes the text that YAML 1.1 or 1.2 would take for something else."""


# Copied from ruamel.yaml; a test compares the two.
_RESOLVERS = (
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", "tTfF"),
    (
        "float",
        r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.[0-9_]+(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    (
        "int",
        r"[-+]?0b[01_]+|[-+]?0o?[0-7_]+|[-+]?[0-9_]+|[-+]?0x[0-9a-fA-F_]+",
        "-+0123456789",
    ),
    ("merge", _MERGE, "<"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (
        "timestamp",
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}"
        r"(?:[Tt]|[ \t]+)[0-9]{1,2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]*)?"
        r"(?:[ \t]*(?:Z|[-+][0-9]{1,2}(?::[0-9]{2})?))?",
        "0123456789",
    ),
    ("value", "=", "="),
)
for _tag, _pattern, _first in _RESOLVERS:
    for _yaml in (_Loader, _Dumper):
        _yaml.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), list(_first)
        )


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values in a node, counting references wherever they occur.

    A node that contains itself counts more than `_MOST_VALUES`.

    Args:
        node: A node of a document.
        known: Counts of nodes by their identity; filled here.
    """
    if id(node) not in known:
        known[id(node)] = _MOST_VALUES + 1  # for a node that is met again inside itself
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            children = [one for pair in children for one in pair]
        known[id(node)] = 1 + sum(_count(child, known) for child in children)
    return known[id(node)]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, read as DVC reads it.

    Raises:
        ConfigError: It is not YAML, not a mapping, or so large that reading it takes long.
    """
    with path.open("rb") as stream:
        raw = stream.read(_MOST_BYTES + 1)
    if len(raw) > _MOST_BYTES:
        raise ConfigError(f"{path.name} must have at most {_MOST_BYTES} bytes; shorten it")
    try:
        content = yaml.load(raw.decode(), Loader=_Loader)  # a SafeLoader
    except RecursionError:
        raise ConfigError(f"{path.name}: nested too deeply; write sections of keys") from None
    except Exception as error:  # noqa: BLE001  (an invalid date, or invalid bytes, may raise anything)
        raise ConfigError(f"{path.name}: {_problem(error)}") from None
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path.name} must hold sections of keys and values, got {_shown(content)}"
        )
    return content


def _problem(error: Exception) -> str:
    """Where YAML is broken, and how, in one line."""
    mark = getattr(error, "problem_mark", None)
    line = f"line {mark.line + 1}: " if mark else ""
    problem = getattr(error, "problem", None) or first_line(error)
    problem = " ".join(str(problem).split())
    return f"{line}{problem if isinstance(error, _Refused) else f'not YAML ({problem})'}"


def override(content: dict[str, Any], values: Mapping[str, Any]) -> str:
    """YAML text of sections with some values replaced, given as `{"train.lr": 0.001}`.

    A name without a dot replaces a whole section.
    """
    for name, value in values.items():
        section, _, key = name.partition(".")
        if key:
            content[section][key] = value
        else:
            content[section] = value
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False)
