"""The model card of a registered version: what it is, how good, and what it is not for.

After Mitchell et al. 2019, Model Cards for Model Reporting, arXiv:1810.03993.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from lesionseg.errors import DataError
from lesionseg.files import require
from lesionseg.inference.threshold import DEFAULT_THRESHOLD
from lesionseg.results.evaluation import TABLES, Compared, Comparison
from lesionseg.results.layout import FINETUNED, RUNS, EvaluationFiles, Results, TrainingFiles
from lesionseg.results.training import BestEpoch, TrainingRecord, Value, history_table
from lesionseg.results.vocabulary import FAILURE_BELOW, FEW_IMAGES
from lesionseg.templates import load_template

MAX_CHARACTERS = 5000  # of a version's description in MLflow's database
SHOWN = ("jaccard", "dice", "sensitivity", "specificity")
_SCOPES = {"test": "test, at {size} px", "test_own_size": "test, at each image's own size"}
# What is known about each `download.source`, and the terms of its images.
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

# The terms of the encoder's initial weights; `none` is random, anything else the path of a file.
_TERMS = {
    "imagenet": " The encoder started with torchvision's weights, learnt on ImageNet, which have "
    "terms of their own.",
    "none": "",
}
_TERMS_OF_A_FILE = " The encoder started with weights that may have terms of their own."


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts on the card.

    Attributes:
        record: Where the model comes from.
        best: Its epoch, and scores on val.
        comparison: None if this model has not been evaluated.
        strata: Scores in groups of test images, likewise.
        external: The comparison on each external test set, by its name.
    """

    record: TrainingRecord
    best: BestEpoch
    comparison: Comparison | None
    strata: pd.DataFrame | None
    external: dict[str, Comparison]

    @property
    def run(self) -> str:
        """The model's name in `RUNS`."""
        return self.record.run

    @property
    def threshold(self) -> float:
        """A pixel is lesion above this probability, in (0, 1)."""
        return self.comparison.threshold if self.comparison else DEFAULT_THRESHOLD


def read_facts(results: Results) -> Facts:
    """What is known about the trained model with the larger val jaccard.

    Raises:
        MissingFileError: No model has been trained, or one of its files is missing.
        DataError: The files are damaged, or from different trainings.
    """
    trained = [run for run in RUNS if results.training(run).metrics.exists()] or [FINETUNED]
    best = {run: _read_best(results.training(run), run) for run in trained}
    run = max(trained, key=lambda run: best[run].val["jaccard"])
    files = results.training(run)
    require(files.model, stage=run)
    record = TrainingRecord.read(files, run=run)
    if unknown := [source for source in _sources(record) if source not in _SOURCES]:
        raise DataError(
            f"{files.record}: params: download.source is {unknown[0]!r}, which this version of "
            "the program does not know. Register with the version that trained it"
        )
    comparison = _read_comparison(results.evaluation, record)
    strata = _read_strata(results.evaluation, run, comparison) if comparison else None
    external = {
        name: found
        for name, files in results.evaluation.externals().items()
        if (found := _read_comparison(files, record))
    }
    return Facts(
        record=record, best=best[run], comparison=comparison, strata=strata, external=external
    )


def _sources(record: TrainingRecord) -> list[str]:
    """The sources of the training's images; the first one provided test."""
    return str(record.param("download.source")).split(", ")


def _read_best(files: TrainingFiles, run: str) -> BestEpoch:
    """The best epoch of a training.

    It is kept by git, while history.csv and the model are kept by DVC: comparing the two tells
    whether they belong together.
    """
    best = BestEpoch.read(files, run=run)
    if not files.history.exists():
        return best
    history = history_table(run).read(files.history).set_index("epoch")["val_jaccard"]
    if history.get(best.best_epoch) != best.val["jaccard"]:
        raise DataError(
            f"{files.metrics} is of another training than {files.history}. "
            "Run: dvc checkout; dvc repro"
        )
    return best


def _read_comparison(files: EvaluationFiles, record: TrainingRecord) -> Comparison | None:
    """The comparison, None if it is missing or of another model."""
    if not files.comparison.exists():
        return None
    comparison = Comparison.read(files)
    return comparison if comparison.models[record.run] == record.model_sha256 else None


def _read_strata(files: EvaluationFiles, run: str, comparison: Comparison) -> pd.DataFrame | None:
    """The rows of strata.csv, None if it is missing; like history.csv it is kept by DVC."""
    path = files.table("strata")
    if not path.exists():
        return None
    strata = TABLES["strata"].read(path)
    means = strata.loc[strata["stratum"] == "all", f"{run}_jaccard"].tolist()
    if len(means) != 1 or not math.isclose(means[0], comparison.test["jaccard"].mean(run)):
        raise DataError(
            f"{path} is of another evaluation than {files.comparison}. Run: dvc checkout; dvc repro"
        )
    return strata


def write_card(facts: Facts) -> str:
    """The card as Markdown, at most `MAX_CHARACTERS` long."""
    record = facts.record
    told = [_SOURCES[source] for source in _sources(record)]
    data = "\n".join(text.format(folder=record.param("download.folder")) for text, _ in told)
    weights = str(record.param("download.weights"))
    template = load_template("lesionseg.tracking", "card.md.jinja")
    text = template.render(
        record=record,
        param=lambda key: _say_value(record.param(key)),
        threshold=_say_threshold(facts),
        is_frozen=record.param("encoder_lr") == 0,
        size=record.param("preprocess.image_size"),
        data=data,
        licence="; ".join(dict.fromkeys(licence for _, licence in told)),
        terms=_TERMS.get(weights, _TERMS_OF_A_FILE),
        commit=_say_commit(record.commit),
        loss=_list_values(record.section("loss")),
        augment=_list_views(record.section("augment")),
        interval_note=_note_interval(facts.comparison),
        scores=_tabulate_scores(facts),
        failures=_list_failures(facts),
    )
    card = f"{text}\n"
    return card if len(card) <= MAX_CHARACTERS else f"{card[: MAX_CHARACTERS - 4]}...\n"


def _say_threshold(facts: Facts) -> str:
    value = _say_value(facts.threshold)
    return value if facts.comparison else f"{value} (the default; it was not evaluated)"


def _say_commit(commit: str) -> str:
    if commit == "unknown":
        return "an unknown commit"
    clean = commit.removesuffix("-dirty")
    return f"commit `{clean}`" + (" with changes in no commit" if clean != commit else "")


def _list_views(settings: Mapping[str, Value]) -> str:
    """The augmentation's settings that change an image, and how: `shift 0.05, padding border`."""
    amounts = [value for value in settings.values() if not isinstance(value, str)]
    return _list_values(settings if any(amounts) else {})


def _list_values(values: Mapping[str, Value]) -> str:
    """The values that are not 0, such as `bce 1, dice 1`."""
    used = [f"{name} {_say_value(value)}" for name, value in values.items() if value]
    return ", ".join(used) or "none"


def _say_value(value: Value) -> str:
    """A number as short as possible, anything else unchanged."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:g}" if is_number else str(value)


def _note_interval(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    return (
        f"; in brackets {comparison.confidence:.0%} bootstrap intervals over the "
        f"{comparison.num_images} test images"
    )


def _tabulate_scores(facts: Facts) -> str:
    val = facts.best.val
    size = facts.record.param("preprocess.image_size")
    lines = [
        f"| | {' | '.join(SHOWN)} |",
        f"|---{'|---' * len(SHOWN)}|",
        f"| val (chose the epoch) | {' | '.join(f'{val[name]:.3f}' for name in SHOWN)} |",
    ]
    if facts.comparison is None:
        return "\n".join([*lines, "", "Not evaluated on test images when it was registered."])
    for scope, label in _SCOPES.items():
        cells = _say_scores(facts.comparison.at(scope), facts.run)
        lines.append(f"| {label.format(size=size)} | {' | '.join(cells)} |")
    for name, comparison in facts.external.items():
        cells = _say_scores(comparison.test, facts.run)
        label = f"external test set {name}, {comparison.num_images} images, at {size} px"
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _say_scores(scores: Mapping[str, Compared], run: str) -> list[str]:
    """The mean and its interval of each of `SHOWN`."""
    cells = []
    for name in SHOWN:
        low, high = scores[name].mean_interval(run)
        cells.append(f"{scores[name].mean(run):.3f} ({low:.3f} to {high:.3f})")
    return cells


def _list_failures(facts: Facts) -> str:
    """The weakest group of each stratum, among those with enough images to tell."""
    if facts.strata is None:
        return "Not measured; results/evaluate/strata.csv was not there."
    strata = facts.strata.assign(name=facts.strata.apply(_say_group, axis=1))
    is_large = strata["num_images"] >= FEW_IMAGES
    lines = []
    for stratum, rows in strata[is_large].groupby("stratum", sort=False):
        if stratum == "all" or len(rows) > 1:
            weakest = rows.sort_values(f"{facts.run}_jaccard", kind="stable").iloc[0]
            lines.append(
                f"- {weakest['name']}: jaccard {weakest[f'{facts.run}_jaccard']:.3f}, "
                f"{weakest[f'{facts.run}_failure_rate']:.0%} of the {weakest['num_images']} images "
                f"below {FAILURE_BELOW}"
            )
    few = [f"{row['name']} ({row['num_images']})" for _, row in strata[~is_large].iterrows()]
    if few:
        lines.append(f"- Too few test images to tell: {', '.join(few)}")
    return "\n".join(lines)


def _say_group(row: "pd.Series[str]") -> str:
    if row["stratum"] == "all":
        return "all"
    return f"{row['stratum'].replace('_', ' ')} {row['group']}"
