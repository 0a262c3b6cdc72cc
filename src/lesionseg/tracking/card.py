"""The model card of a registered version: what it is, how good, and what it is not for.

After Mitchell et al. 2019, Model Cards for Model Reporting, arXiv:1810.03993.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_CHARACTERS = 5000  # of a version's description in MLflow's database
FEW_IMAGES = 10  # the numbers of a group with fewer hang on single images
Kinds = Mapping[str, type | tuple[type, ...]]
NUMBER = (int, float)
# What is told of a training, from its run.json and from the `params` and scores in its files.
RECORDED: Kinds = {
    **dict.fromkeys(["run", "commit", "data_sha256", "device", "precision"], str),
    **dict.fromkeys(["num_parameters", "num_images"], int),
    "params": dict,
}
PARAMS: Kinds = {
    **dict.fromkeys(["download.source", "download.folder", "download.weights"], str),
    **dict.fromkeys(["preprocess.image_size", "train.epochs", "train.batch_size"], int),
    **dict.fromkeys(["train.lr", "train.seed", "encoder_lr"], NUMBER),
    "model.decoder": str,
}
SHOWN = ("jaccard", "dice", "sensitivity", "specificity")
_SCOPES = {"test": "test, at {size} px", "test_own_size": "test, at each image's own size"}

_CARD = """\
# lesionseg, {run}

Marks the lesion in a photograph of skin: the probability of lesion in each pixel, and the mask
where it is above {threshold}. MobileNetV2 encoder{frozen}, `{decoder}` decoder,
{num_parameters:,} parameters; it sees the image at {size}x{size} px.

## Use
For research and teaching on segmentation, on images like those it was trained on.
**Not for diagnosis.** It is no medical device, nobody has tested it on patients, and an outline
says nothing about whether a lesion is harmless. Where it finds nothing there may be one all the
same.

## Data
{data}
{num_train} images to train on; others of the same source chose the best epoch (val), and no test
image had a part in either. SHA-256 of the training images' index: `{data_sha256:.12}`.

## Training
{epochs} epochs of AdamW (peak lr {lr:g}, encoder {encoder_lr:g}), {batch_size} images a step, seed
{seed}, on {device} in {precision}. Loss: {loss}. Random views: {augment}. Encoder's weights at the
start: `{weights}`.

## Scores
Means over images{interval_note}.

{scores}

## Where it fails
{failures}

## Limits
- Both sides are scaled to {size} px: what is finer than 1/{size} of the image is lost.
- Other cameras, skin tones or body sites, several lesions in an image: unknown. Look at the mask.
- The images are split without regard to patients: lesions of one can be in training and in test.

## Where it comes from
Trained at {commit}. Model SHA-256 `{model_sha256}`.
Licence of the code: MIT; {licence}.{terms}
"""

_SOURCES = {
    "isic2016": (
        "ISIC 2016 challenge, Part 1 (Gutman et al. 2016, arXiv:1605.01397): dermoscopic images "
        "with masks by experts, published under CC-0.",
        "of the images: CC-0",
    ),
    "isic2017": (
        "ISIC 2017 challenge, Part 1 (Codella et al. 2017, arXiv:1710.05006): dermoscopic images "
        "with masks by experts, published under CC-0.",
        "of the images: CC-0",
    ),
    "isic2018": (
        "ISIC 2018 challenge, Task 1 (Codella et al. 2019, arXiv:1902.03368): dermoscopic images "
        "with masks, published under CC BY-NC 4.0.",
        "of the images: CC BY-NC 4.0, not for commercial use",
    ),
    "ph2": (
        "PH2 (Mendonca et al. 2013, doi:10.1109/EMBC.2013.6610779): dermoscopic images of one "
        "hospital with masks, for research and education.",
        "of the images: that of PH2, for research and education",
    ),
    "ham10000": (
        "HAM10000 (Tschandl et al. 2018, arXiv:1803.10417): dermoscopic images with masks, "
        "published under CC BY-NC 4.0.",
        "of the images: CC BY-NC 4.0, not for commercial use",
    ),
    "folder": (
        "Images and masks of a folder, `{folder}`; where they come from, its owner knows.",
        "of the images: their owner's",
    ),
    "phantom": (
        "**Synthetic phantoms, no photographs**: for trying the program out. On real skin its "
        "masks mean nothing.",
        "the images are made by this program",
    ),
}

# What the encoder brought along; `none` is random, and anything else the path of a file.
_TERMS = {
    "imagenet": " The encoder started with torchvision's weights, learnt on ImageNet, which have "
    "terms of their own.",
    "none": "",
}
_TERMS_OF_A_FILE = " The encoder started with weights that may have terms of their own."


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the card tells.

    Attributes:
        details: The content of the run's run.json.
        metrics: That of its metrics.json.
        model_sha256: Of its model.pt.
        threshold: A pixel is lesion above this probability, in (0, 1): that of `comparison`, or
            the default.
        comparison: That of evaluate/comparison.json; None if this model has not been evaluated.
        strata: Rows of evaluate/strata.csv, likewise.
    """

    details: Mapping[str, Any]
    metrics: Mapping[str, Any]
    model_sha256: str
    threshold: float
    comparison: Mapping[str, Any] | None
    strata: Sequence[Mapping[str, str]]

    @property
    def run(self) -> str:
        """The model's name in `RUNS`."""
        return str(self.details["run"])


def write_card(facts: Facts) -> str:
    """The card as Markdown, at most `MAX_CHARACTERS` long."""
    details, params = facts.details, facts.details["params"]
    sources = [_SOURCES[name] for name in params["download.source"].split(", ")]
    data = " ".join(dict.fromkeys(text for text, _ in sources))
    licence = "; ".join(dict.fromkeys(text for _, text in sources))
    card = _CARD.format(
        run=facts.run,
        threshold=_say_threshold(facts),
        frozen=" (frozen)" if params["encoder_lr"] == 0 else "",
        decoder=params["model.decoder"],
        num_parameters=details["num_parameters"],
        size=params["preprocess.image_size"],
        data=data.format(folder=params["download.folder"]),
        licence=licence,
        num_train=details["num_images"],
        terms=_TERMS.get(params["download.weights"], _TERMS_OF_A_FILE),
        commit=_say_commit(details["commit"]),
        **{key: details[key] for key in ("data_sha256", "device", "precision")},
        **{key: params[f"train.{key}"] for key in ("epochs", "lr", "batch_size", "seed")},
        encoder_lr=params["encoder_lr"],
        loss=_list_losses(params),
        augment=_list_views(params),
        weights=params["download.weights"],
        interval_note=_note_interval(facts.comparison),
        scores=_tabulate_scores(facts),
        failures=_list_failures(facts),
        model_sha256=facts.model_sha256,
    )
    return card if len(card) <= MAX_CHARACTERS else f"{card[: MAX_CHARACTERS - 4]}...\n"


def knows(source: str) -> bool:
    """Whether a card can tell of data from this `download.source`, joined by commas if several."""
    return all(name in _SOURCES for name in source.split(", "))


def _say_threshold(facts: Facts) -> str:
    value = _say_value(facts.threshold)
    return value if facts.comparison else f"{value} (the default; it was not evaluated)"


def _say_commit(commit: str) -> str:
    if commit == "unknown":
        return "an unknown commit"
    clean = commit.removesuffix("-dirty")
    return f"commit `{clean}`" + (" with changes in no commit" if clean != commit else "")


def _list_losses(params: Mapping[str, Any]) -> str:
    """The weights of the loss that are not 0, such as `bce 1, dice 1`."""
    return _list_values(_section(params, "loss"))


def _list_views(params: Mapping[str, Any]) -> str:
    """The augmentation's settings that change an image, and how: `shift 0.05, padding border`."""
    settings = _section(params, "augment")
    amounts = [value for value in settings.values() if not isinstance(value, str)]
    return _list_values(settings if any(amounts) else {})


def _section(params: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The parameters of a section of params.yaml, without its name."""
    prefix = f"{name}."
    return {
        key.removeprefix(prefix): value for key, value in params.items() if key.startswith(prefix)
    }


def _list_values(values: Mapping[str, Any]) -> str:
    used = [f"{name} {_say_value(value)}" for name, value in values.items() if value]
    return ", ".join(used) or "none"


def _say_value(value: object) -> str:
    """A number as briefly as can be, anything else as it is."""
    is_number = isinstance(value, NUMBER) and not isinstance(value, bool)
    return f"{value:g}" if is_number else str(value)


def _note_interval(comparison: Mapping[str, Any] | None) -> str:
    if comparison is None:
        return ""
    return (
        f"; in brackets {comparison['confidence']:.0%} bootstrap intervals over the "
        f"{comparison['num_images']} test images"
    )


def _tabulate_scores(facts: Facts) -> str:
    val = facts.metrics["val"]
    size = facts.details["params"]["preprocess.image_size"]
    lines = [
        f"| | {' | '.join(SHOWN)} |",
        f"|---{'|---' * len(SHOWN)}|",
        f"| val (chose the epoch) | {' | '.join(f'{val[name]:.3f}' for name in SHOWN)} |",
    ]
    if facts.comparison is None:
        return "\n".join([*lines, "", "Not evaluated on test images when it was registered."])
    for scope, label in _SCOPES.items():
        cells = []
        for name in SHOWN:
            score = facts.comparison[scope][name]
            low, high = score[f"{facts.run}_interval"]
            cells.append(f"{score[facts.run]:.3f} ({low:.3f} to {high:.3f})")
        lines.append(f"| {label.format(size=size)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _list_failures(facts: Facts) -> str:
    """The weakest group of each stratum that is large enough to tell."""
    jaccard, failures = f"{facts.run}_jaccard", f"{facts.run}_failure_rate"
    groups: dict[str, list[Mapping[str, str]]] = {}
    for row in facts.strata:
        if int(row["num_images"]) >= FEW_IMAGES:
            groups.setdefault(row["stratum"], []).append(row)
    lines = [
        f"- {_say(row)}: jaccard {float(row[jaccard]):.3f}, {float(row[failures]):.0%} of the "
        f"{row['num_images']} images below 0.65"
        for stratum, rows in groups.items()
        for row in [min(rows, key=lambda row: float(row[jaccard]))]
        if stratum == "all" or len(rows) > 1
    ]
    few = [
        f"{_say(row)} ({row['num_images']})"
        for row in facts.strata
        if int(row["num_images"]) < FEW_IMAGES
    ]
    if few:
        lines.append(f"- Too few test images to tell: {', '.join(few)}")
    return "\n".join(lines) or "Not measured; results/evaluate/strata.csv was not there."


def _say(row: Mapping[str, str]) -> str:
    if row["stratum"] == "all":
        return "all"
    return f"{row['stratum'].replace('_', ' ')} {row['group']}"
