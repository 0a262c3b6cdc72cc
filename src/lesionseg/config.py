"""`params.yaml` as frozen, validated records: the only importer of yaml.

Every value stands in the file and none has a default here. Whatever is unknown, missing, mistyped
or out of range is refused before any work, with section, key, expected, got and what to write.
"""

import dataclasses
import difflib
import math
import re
import sys
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from lesionseg.errors import ConfigError, MissingFileError

RUNS = ("train_frozen", "train_finetuned")
SEED_BOUND = 2**32
_LARGEST = sys.float_info.max


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


def _matching(pattern: str, meaning: str) -> Any:
    """A field for text of a form."""
    return field(metadata={"pattern": pattern, "meaning": meaning})


def _seed() -> Any:
    return _number(at_least=0, below=SEED_BOUND)


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """Where images, masks and the encoder's weights come from."""

    source: str = _choice("isic2016", "folder", "phantom")
    folder: str
    archives: str = _matching(r".+", "a folder")
    weights: str = _matching(r".+", "imagenet, none or a path")
    phantom_num_train: int = _number(at_least=2)
    phantom_num_test: int = _number(at_least=2)
    phantom_size: int = _number(at_least=32, at_most=1024)
    phantom_seed: int = _seed()

    def __post_init__(self) -> None:
        if self.source == "folder" and not self.folder:
            raise ConfigError(
                "params.yaml: download: folder is empty, and source is folder. "
                "Write the folder that holds {train,test}/{images,masks}"
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

    epochs: int = _number(at_least=1)
    batch_size: int = _number(at_least=1)
    lr: float = _number(above=0)
    weight_decay: float = _number(at_least=0)
    warmup_fraction: float = _number(at_least=0, below=1)
    first_image_size: int = _number(at_least=64, at_most=1024, multiple_of=32)
    seed: int = _seed()
    num_seeds: int = _number(at_least=1)
    cross_validate: bool
    device: str = _matching(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:N")
    precision: str = _choice("auto", "float32", "bfloat16")

    def __post_init__(self) -> None:
        if self.cross_validate and self.num_seeds == 1:
            raise ConfigError(
                "params.yaml: train: cross_validate is true, and num_seeds is 1. "
                "Write num_seeds above 1: each further seed validates on other images"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The decoder."""

    decoder: str = _choice("bilinear", "transposed", "pyramid")
    dropout: float = _number(at_least=0, below=1)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of a sum of losses; 0 leaves one out."""

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
    batch_size: int = _number(at_least=1)
    confidence: float = _number(above=0, below=1)
    num_resamples: int = _number(at_least=100)
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
        """The seeds that each model is trained with; the first one's model is the one shown."""
        return range(self.train.seed, self.train.seed + self.train.num_seeds)

    def training_params(self, run: str, *, seed: int) -> dict[str, Any]:
        """What one training goes by, flat, as MLflow shows it; no other training has the same."""
        params = {
            **self.flat("download", "preprocess", "train", "model", "loss", "augment"),
            "train.seed": seed,
            "encoder_lr": self.encoder_lr(run),
            "encoder": "fine-tuned" if self.encoder_lr(run) else "frozen",
        }
        del params["train.num_seeds"]  # of no concern to a single training
        if self.train.cross_validate:  # the same seed has another fold after another first seed
            params["fold"] = self.seeds().index(seed)
        return params

    def flat(self, *sections: str) -> dict[str, Any]:
        """The values of some sections as `{"train.lr": 0.002, ...}`."""
        return {
            f"{section}.{key}": value
            for section in sections
            for key, value in dataclasses.asdict(getattr(self, section)).items()
        }


def load_config(path: Path) -> Config:
    """The validated records of a params.yaml.

    Raises:
        MissingFileError: The file is not there.
        ConfigError: Something in it cannot be; the message is one line.
    """
    if not path.is_file():
        raise MissingFileError(
            f"{path} is missing. Run from the repository's root; git restore {path} brings it back"
        )
    content = read_yaml(path)
    names = [section.name for section in fields(Config)]
    _check_keys(path.name, content, names, what="section")
    sections = {}
    for section in fields(Config):
        values = content[section.name]
        where = f"{path.name}: {section.name}"
        if not isinstance(values, dict):
            raise ConfigError(f"{where} must be a section of keys and values, got {values!r}")
        assert isinstance(section.type, type)
        sections[section.name] = _read_section(where, section.type, values)
    return Config(**sections)


def _read_section(where: str, record: type, values: Mapping[str, Any]) -> Any:
    _check_keys(where, values, [key.name for key in fields(record)], what="key")
    checked = {key.name: _check_value(where, key, values[key.name]) for key in fields(record)}
    return record(**checked)


def _check_keys(where: str, values: Mapping[str, Any], known: list[str], *, what: str) -> None:
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            raise ConfigError(f"{where}: unknown {what} {name!r}; {hint}")
    for name in known:
        if name not in values:
            raise ConfigError(
                f"{where}: {what} {name} is missing; add it, as in git show HEAD:params.yaml"
            )


def _check_value(where: str, key: "dataclasses.Field[Any]", value: Any) -> Any:
    choices = key.metadata.get("choices", ())
    fits = {int: _is_number, float: _is_number, bool: _is_bool, str: _is_text}
    assert isinstance(key.type, type)
    if not (_is_choice if choices else fits[key.type])(key, value):
        close = difflib.get_close_matches(str(value), map(str, choices), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"{where}: {key.name} must be {_expected(key)}, got {value!r}{hint}")
    return key.type(value)


def _is_choice(key: "dataclasses.Field[Any]", value: Any) -> bool:
    # True is equal to 1, and is no number that anyone would write.
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
        return "one of " + ", ".join(map(str, rules["choices"]))
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


class _Loader(yaml.SafeLoader):
    """YAML as DVC reads and writes it: `1e-4` is a number, and no key stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = []
        for key, _ in node.value:
            if key.value in seen:
                raise ConfigError(
                    f"{Path(self.name).name}: line {key.start_mark.line + 1}: "
                    f"key {key.value!r} stands twice; keep one"
                )
            seen.append(key.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the text that `_Loader` would take for a number."""


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: It is not YAML, or not a mapping.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            content = yaml.load(stream, Loader=_Loader)  # a SafeLoader
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or bytes that cannot be
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path.name}: {line}not YAML ({problem})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path.name} must hold sections of keys and values, got {content!r}")
    return content


def override(content: dict[str, Any], values: Mapping[str, Any]) -> str:
    """YAML text of sections with some values replaced, given as `{"train.lr": 0.001}`."""
    for name, value in values.items():
        section, key = name.split(".")
        content[section][key] = value
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False)
