"""The seven benchmarks: the contestants, their arguments, and the tables."""

import importlib.util
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.rounds import alternate, measure
from benchmarks.tables import Raw, common_jaccard, parts_table, seconds_to, table
from lesionseg.config import load_config
from lesionseg.errors import ConfigError

OURS = {"ours, fine-tuned": "train_finetuned", "ours, frozen": "train_frozen"}
PEERS = {"smp, stock loop": "stock", "smp, tuned loop": "tuned"}
PEER_PACKAGE = "segmentation_models_pytorch"
NUM_TRAINED, NUM_PREPROCESSED, NUM_STEPS = 256, 160, 20
NUM_LAYERS = 10  # the slowest ones of a profile
NUM_PREDICTED, FEW = 16, 4
IMAGE_SIZES = (128, 192, 256, 384)
NUMBERS = (100, 1000, 10_000, 50_000)
SMALL_WIDTH = 192  # pixels; small enough for all files to fit on the disk
MAPPED = "Peak memory counts pages of memory-mapped arrays, which the system may take back"
PEAK = {"peak MiB": ("peak_mib", 0)}
OWN_PEAK = PEAK | {"without pages of files": ("own_peak_mib", 0)}

Result = tuple[list[str], dict[str, Any]]  # paragraphs of markdown, the raw values behind them


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command line; `data` and `weights` are absolute paths."""

    data: str | None = None
    weights: str = "none"
    num_rounds: int = 3
    num_images: int | None = None
    has_dvc: bool = True
    has_bfloat16: bool = False


def training(options: Options, folder: str) -> Result:
    """Training images per second, their share of the machine's matrix rate, and memory.

    In float32, and in bfloat16 if the machine has instructions for it.
    """
    num_images = options.num_images or NUM_TRAINED
    _prepare(options, folder, num_images=num_images)
    precisions = _precisions(options)
    shared = {"folder": folder, "num_images": num_images}
    raw = alternate(
        "contestants.throughput",
        {
            f"{name}, {precision}": {"contestant": contestant, "precision": precision, **shared}
            for name, contestant in {**OURS, **present_peers()}.items()
            for precision in precisions
        },
        num_rounds=options.num_rounds,
    )
    columns = {
        "images/s": ("images_per_second", 1),
        "10^9 multiply-adds, forward": ("forward_gmacs", 3),
        "a training step": ("step_gmacs", 3),
        "% of matrix rate": ("matrix_percent", 1),
    }
    note = (
        "Multiply-adds are of one image: a forward pass at the "
        "network's own size; a training step as the mean over the sizes that images have in "
        "training. The matrix rate is that of 2048 x 2048 products in the same precision, just "
        "after. Memory is the training process's, without the workers that load images."
    )
    tables = [
        table("network and loop", of_precision, columns | PEAK, ratio="images/s")
        for precision in precisions
        if (of_precision := {name: rows for name, rows in raw.items() if precision in name})
    ]
    return [*tables, note, *left_out()], raw


def profile(options: Options, folder: str) -> Result:
    """Where a fine-tuning step spends its time, and a lower bound for its convolutions."""
    config = load_config(Path("params.yaml"))
    _prepare(options, folder, num_images=2 * config.train.batch_size)
    raw = alternate(
        "profile.step",
        {name: {"folder": folder, "precision": name} for name in _precisions(options)},
        num_rounds=options.num_rounds,
    )
    num_images = next(iter(raw.values()))[0]["num_images"]
    tables = [
        parts_table("part of a fine-tuning step", raw, "parts"),
        parts_table("operation, and the maps and weights it takes", raw, "layers", num=NUM_LAYERS),
    ]
    bounds = (
        f"{median(found['convolutions_at_matrix_rate'] for found in rounds):.0f} ms in {name}"
        for name, rounds in raw.items()
    )
    size = config.preprocess.image_size
    note = (
        f"Milliseconds of a step on {num_images} images of {size} px, under torch's profiler, which"
        " slows it a little. Below, each row is the sum of all operations on maps of its sizes,"
        " without the batch. At the rate of large matrix products, the step's convolutions would"
        f" take {' and '.join(bounds)}."
    )
    return [*tables, note], raw


def _precisions(options: Options) -> tuple[str, ...]:
    return ("float32", "bfloat16") if options.has_bfloat16 else ("float32",)


def quality(options: Options, folder: str) -> Result:
    """Seconds of training until a jaccard that all reach, and the test jaccard at the end."""
    if options.data is None:
        raise ConfigError("quality needs images that are worth learning. Give --data FOLDER")
    _prepare(options, folder, num_images=0)
    names = {**OURS, **present_peers()}
    raw: Raw = {name: [] for name in names}
    for offset in range(options.num_rounds):  # a round is a seed, the same for all contestants
        contestants = {
            name: {"contestant": contestant, "folder": folder, "seed_offset": offset}
            for name, contestant in names.items()
        }
        for name, rounds in alternate("contestants.quality", contestants, num_rounds=1).items():
            raw[name] += rounds
    target = common_jaccard(raw)
    for measured in itertools.chain(*raw.values()):
        measured["seconds_to_target"] = seconds_to(measured["history"], target)
        measured["seconds"] = measured["history"][-1]["seconds"]
    columns = {
        (to_target := f"s to val jaccard {target:.3f}"): ("seconds_to_target", 0),
        "s in all": ("seconds", 0),
        "test jaccard": ("test_jaccard", 3),
    }
    note = (
        f"Seconds include scoring val after each epoch; {target:.3f} is the highest val jaccard "
        "that every training reaches. Jaccard is the mean over images at the network's size; "
        "test is scored with the epoch best on val."
    )
    scores = table("network and loop", raw, columns | PEAK, ratio=to_target)
    return [scores, note, *left_out()], raw


def preprocessing(options: Options, folder: str) -> Result:
    """Images per second, and whether memory grows with their number."""
    num_images = options.num_images or NUM_PREPROCESSED
    found = measure(
        "preprocessing.prepare", folder=folder, data=options.data, num_images=num_images
    )
    numbers = [math.ceil(found["num_images"] / part) for part in (4, 2, 1)]
    raw = alternate(
        "preprocessing.preprocess_some",
        {f"{num} images": {"folder": folder, "num_images": num} for num in numbers},
        num_rounds=options.num_rounds,
    )
    columns = {"images/s": ("images_per_second", 1)}
    what = f"{_images(options)} with PNG masks. {MAPPED}."
    return [table("preprocessing", raw, columns | OWN_PEAK), what], raw


def prediction(options: Options, folder: str) -> Result:
    """How soon `lesionseg predict` writes masks, and how many a second, beside decoding alone."""
    num_images = options.num_images or NUM_PREDICTED
    settings = {"data": options.data, "num_images": num_images}
    found = measure("material.prepare_prediction", folder=folder, **settings)
    numbers = sorted({min(FEW, found["num_images"]), found["num_images"]})
    contestants = {f"predict, {num}": {"folder": folder, "num_images": num} for num in numbers}
    decoding = {"folder": folder, "num_images": numbers[-1], "only_decode": True}
    contestants[f"decoding alone, {numbers[-1]}"] = decoding
    raw = alternate("prediction.predict", contestants, num_rounds=options.num_rounds)
    columns = {
        "s to the first": ("first_seconds", 2),
        "s in all": ("seconds", 2),
        "images/s": ("images_per_second", 1),
    }
    note = (
        f"{_images(options)}, in the disk's cache; an untrained model. Of predict the whole "
        "process is measured, which ends after torch is loaded and all masks are written; of "
        "decoding only that, at the scale and in the threads of predict."
    )
    return [table("images", raw, columns | PEAK), note], raw


def _images(options: Options) -> str:
    named = f"The images of {Path(options.data).name}" if options.data else ""
    return named or "Phantoms of 2000 x 3000 pixels, JPEG"


def startup(options: Options, folder: str) -> Result:
    """Seconds of commands with nothing to do."""
    commands = {"lesionseg --help": {"command": ["lesionseg", "--help"], "expected": "usage"}}
    if options.has_dvc:
        measure("startup.prepare_project", folder=folder)
        commands["dvc --version"] = {"command": ["dvc", "--version"], "expected": ""}
        commands["dvc repro"] = {"command": ["dvc", "repro"], "expected": "up to date"}
    contestants = {name: {"folder": folder, **command} for name, command in commands.items()}
    raw = alternate("startup.seconds", contestants, num_rounds=options.num_rounds)
    note = "dvc repro finds all six stages up to date." if options.has_dvc else "Left out: dvc."
    return [table("command", raw, {"s": ("seconds", 2)}), note], raw


def scaling(options: Options, folder: str) -> Result:
    """Image sizes and numbers of images, on random bytes; preprocessing, on small phantoms."""
    config = load_config(Path("params.yaml"))
    by_size, by_number = {}, {}
    for size in IMAGE_SIZES:
        # About the same number of pixels at each size, and more batches than the warm-up needs.
        num = round((options.num_images or NUM_TRAINED) * (IMAGE_SIZES[0] / size) ** 2)
        num = config.train.batch_size * max(4, num // config.train.batch_size)
        where = _prepare_random(f"{folder}/size-{size}", num_images=num, image_size=size)
        for name, contestant in OURS.items():
            by_size[f"{size}, {name}"] = {"contestant": contestant, "num_images": num, **where}
    for num in NUMBERS:
        size = config.preprocess.image_size
        where = _prepare_random(f"{folder}/number-{num}", num_images=num, image_size=size)
        by_number[f"{num:,}"] = {"num_steps": NUM_STEPS, **where}
    sizes = alternate("contestants.throughput", by_size, num_rounds=options.num_rounds)
    numbers = alternate("scaling.large_split", by_number, num_rounds=options.num_rounds)
    columns = {
        "s to the first step": ("first_step_seconds", 2),
        "s a step": ("step_seconds", 3),
        "s to read an epoch": ("epoch_reading_seconds", 2),
        f"peak MiB, {NUM_STEPS} steps": ("peak_mib", 0),
        "an epoch": ("epoch_peak_mib", 0),
    }
    size_table = table("image size", sizes, {"images/s": ("images_per_second", 1)} | PEAK)
    number_table = table("training images", numbers, columns)
    preprocessed = _preprocess_numbers(options, f"{folder}/small")
    columns = {"s": ("seconds", 1), "images/s": ("images_per_second", 1)}
    small_table = table("images preprocessed", preprocessed, columns | OWN_PEAK)
    height = 2 * SMALL_WIDTH // 3
    return (
        [size_table, number_table, small_table, f"{height} x {SMALL_WIDTH} pixels. {MAPPED}."],
        {"sizes": sizes, "numbers": numbers, "preprocessed": preprocessed},
    )


def _preprocess_numbers(options: Options, folder: str) -> Raw:
    """Preprocessing of each of NUMBERS images, small ones."""
    measure("preprocessing.prepare", folder=folder, num_images=max(NUMBERS), width=SMALL_WIDTH)
    contestants = {f"{num:,}": {"folder": folder, "num_images": num} for num in NUMBERS}
    return alternate("preprocessing.preprocess_some", contestants, num_rounds=options.num_rounds)


def _prepare(options: Options, folder: str, *, num_images: int) -> None:
    settings = {"data": options.data, "weights": options.weights, "num_images": num_images}
    measure("material.prepare", folder=folder, **settings)


def _prepare_random(folder: str, *, num_images: int, image_size: int) -> dict[str, str]:
    settings = {"num_images": num_images, "image_size": image_size}
    measure("material.prepare_random", folder=folder, **settings)
    return {"folder": folder}


def present_peers() -> dict[str, str]:
    """The peers whose package is installed."""
    return PEERS if importlib.util.find_spec(PEER_PACKAGE) else {}


def left_out() -> list[str]:
    """A sentence on the peers that are not installed, if any."""
    names = "; ".join(name for name in PEERS if name not in present_peers())
    text = f"Left out, not installed: {names}. Run: pip install -e '.[bench]'"
    return [text] if names else []


SUITES: dict[str, Callable[[Options, str], Result]] = {
    "training": training,
    "profile": profile,
    "quality": quality,
    "preprocessing": preprocessing,
    "startup": startup,
    "prediction": prediction,
    "scaling": scaling,
}
DEFAULT = ("training", "profile", "preprocessing", "startup", "prediction")
