"""Results on disk, brought into MLflow: all at once by `lesionseg replay`, or by the stages.

After a server was away, or for results that came from DVC's cache or from a colleague. What a run
has already is left alone, so that any number of replays gives the same runs.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.config import RUNS
from lesionseg.data.dataset import Split, load_split
from lesionseg.data.images import resize_mask
from lesionseg.data.masks import read_mask
from lesionseg.errors import DataError, LesionsegError, MissingFileError
from lesionseg.files import made_by, read_json, require, sha256
from lesionseg.report.figures import draw_curves
from lesionseg.report.overlays import draw_overlay
from lesionseg.report.terms import METRICS
from lesionseg.results.tables import read_table
from lesionseg.tracking.runs import Run, complete_training, find_run
from lesionseg.tracking.store import patiently

SCOPES = ("test", "test_own_size")
EXAMPLES = ("best", "median", "worst")
_HISTORY = ("epoch", "train_loss", "val_loss", "val_jaccard", "val_dice")  # what is drawn
_log = logging.getLogger(__name__)


def replay(results_dir: Path, processed_dir: Path) -> int:
    """The number of trainings whose MLflow runs are now complete.

    Raises:
        MissingFileError: There is no training's result.
        DataError: A file is damaged.
        LesionsegError: MLflow was not available.
    """
    folders = list(training_folders(results_dir))
    if not folders:
        raise MissingFileError(f"{results_dir} holds no training. Run: dvc repro, or dvc pull")
    with patiently():
        runs = [complete_training(folder, name=name) for name, folder in folders]
        if (results_dir / "evaluate/comparison.json").exists():
            runs += complete_evaluation(results_dir, processed_dir)
        runs += attach_report(results_dir)
    errors = [run.error for run in runs if run.error]
    if errors:
        raise LesionsegError(f"not all is in MLflow: {errors[0]}")
    return len({run.run_id for run in runs if run.run_id})


def training_folders(results_dir: Path) -> Iterator[tuple[str, Path]]:
    """Stage and folder of every training whose results are there, all seeds."""
    for name in RUNS:
        seeds = sorted((results_dir / name / "seeds").glob("[0-9]*"))
        for folder in (results_dir / name, *seeds):
            if (folder / "run.json").exists():
                yield name, folder


def complete_evaluation(
    results_dir: Path, processed_dir: Path, *, redraw: bool = False
) -> list[Run]:
    """The runs of the evaluated models, with what the test split and the report say of them.

    Args:
        results_dir: Holds the trainings and `evaluate/`.
        processed_dir: Holds the test split.
        redraw: Whether figures that a run has already are drawn again.
    """
    evaluate_dir = results_dir / "evaluate"
    comparison = read_json(evaluate_dir / "comparison.json", stage="evaluate")
    test = load_split(processed_dir, "test")
    runs = []
    for name in RUNS:
        run = _find(results_dir / name, name=name)
        metrics = read_json(evaluate_dir / f"{name}.json", stage="evaluate")
        try:
            logged = test_metrics(name, metrics, comparison)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise DataError(
                f"{evaluate_dir}/{name}.json or comparison.json lacks something "
                f"({type(error).__name__}: {error}). Run: dvc repro -f evaluate"
            ) from error
        run.log_summary(logged)
        if not run.is_lost and (redraw or not _has_figures(run)):
            _log_figures(run, name, results_dir, test)
        runs.append(run)
    return runs + _complete_seeds(results_dir)


def _has_figures(run: Run) -> bool:
    """Whether a run has what `_log_figures` adds, and not the part of one that was killed."""
    return "curves.png" in run.artifacts() and len(run.artifacts("overlays")) == len(EXAMPLES)


def attach_report(results_dir: Path) -> list[Run]:
    """Add the report, where there is one, to the runs of both models, which are returned."""
    report = results_dir / "report/report.html"
    if not report.exists():
        return []
    runs = []
    digest = sha256(report)
    for name in RUNS:
        path = results_dir / name / "run.json"
        model_sha256 = read_json(path, stage=name).get("model_sha256")
        if not isinstance(model_sha256, str):
            raise DataError(f"{path} has no model_sha256. Run: dvc repro -f {name}")
        run = find_run(model_sha256=model_sha256, quiet=True)
        if run.tag("report_sha256") != digest:
            run.log_file(report)
            run.set_tags({"report_sha256": digest})
        runs.append(run)
    return runs


def test_metrics(
    name: str, metrics: Mapping[str, Mapping[str, float]], comparison: Mapping[str, Any]
) -> dict[str, float]:
    """A model's numbers on test under MLflow's names.

    `test/jaccard`, its interval `test/jaccard_low` and `_high`; for the fine-tuned model also
    `difference/test/jaccard`, what it has more than the frozen one, with its interval.
    """
    logged = {f"{scope}/{key}": value for scope in SCOPES for key, value in metrics[scope].items()}
    for scope in SCOPES:
        for metric, result in comparison[scope].items():
            logged |= _with_interval(f"{scope}/{metric}", result[name], result[f"{name}_interval"])
            if name == "train_finetuned":
                label = f"difference/{scope}/{metric}"
                logged |= _with_interval(label, result["difference"], result["interval"])
    return logged


def _with_interval(label: str, value: float, interval: list[float]) -> dict[str, float]:
    return {label: value, f"{label}_low": interval[0], f"{label}_high": interval[1]}


def _complete_seeds(results_dir: Path) -> list[Run]:
    """The runs of the further seeds, with their means on test."""
    path, numbers = results_dir / "evaluate/seeds.csv", ["seed", *METRICS]
    seeds = read_table(path, numbers, text=["run", "scope"], stage="evaluate")
    runs = []
    for name, folder in training_folders(results_dir):
        if folder.parent.name != "seeds":
            continue
        run = _find(folder, name=name)
        rows = seeds[(seeds["run"] == name) & (seeds["seed"] == int(folder.name))]
        for row in rows.drop(columns=["run", "seed"]).to_dict("records"):
            scope = row.pop("scope")
            run.log_summary({f"{scope}/{metric}": value for metric, value in row.items()})
        runs.append(run)
    return runs


def _find(folder: Path, *, name: str) -> Run:
    return find_run(model_sha256=sha256(require(folder / "model.pt", stage=name)))


def _log_figures(run: Run, name: str, results_dir: Path, test: Split) -> None:
    """Add the training's curves, and three test images with their outlines."""
    history = read_table(results_dir / name / "history.csv", _HISTORY, stage=name)
    run.log_figure(draw_curves({name: history}), "curves.png")
    path = results_dir / "evaluate/per_image.csv"
    per_image = read_table(path, ["jaccard"], text=["run", "scope"], stage="evaluate")
    finetuned = per_image[(per_image["run"] == RUNS[1]) & (per_image["scope"] == "test")]
    if len(finetuned) != len(test.ids):
        raise DataError(
            f"{path} has {len(finetuned)} rows of {RUNS[1]} on test, which has {len(test.ids)} "
            "images. Run: dvc repro -f evaluate"
        )
    for example, position in choose_examples(finetuned["jaccard"].to_numpy()).items():
        image, truth = test.images[position], test.masks[position]
        file_name = f"{test.ids[position]}_segmentation.png"
        path = require(results_dir / "evaluate/masks" / name / file_name, stage="evaluate")
        with made_by("evaluate"):
            prediction = resize_mask(read_mask(path), size=len(image))
        figure = draw_overlay(image, truth, {name: prediction})
        run.log_figure(figure, f"overlays/{example}_{test.ids[position]}.png")


def choose_examples(jaccard: NDArray[np.float64]) -> dict[str, int]:
    """Positions in the test split of the best, the median and the worst image."""
    order = np.argsort(-jaccard, kind="stable")
    return dict(zip(EXAMPLES, (order[0], order[len(order) // 2], order[-1]), strict=True))
