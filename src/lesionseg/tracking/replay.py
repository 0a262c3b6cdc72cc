"""Results on disk, brought into MLflow: all at once by `lesionseg replay`, or by the stages.

After a server was away, or for results that came from DVC's cache or from a colleague. What a run
has already is left alone, so that any number of replays gives the same runs.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lesionseg.data.dataset import Split, load_split
from lesionseg.data.images import resize_mask
from lesionseg.data.masks import read_mask
from lesionseg.errors import LesionsegError, MissingFileError
from lesionseg.files import made_by, require, sha256
from lesionseg.report.figures import draw_curves
from lesionseg.report.overlays import draw_overlay
from lesionseg.results.evaluation import TABLES, Comparison, ModelScores, rows_of
from lesionseg.results.layout import FINETUNED, RUNS, EvaluationFiles, Results
from lesionseg.results.records import unreadable
from lesionseg.results.training import TrainingRecord, history_table
from lesionseg.results.vocabulary import METRICS, SCOPES
from lesionseg.tracking.runs import Run, complete_training, find_run
from lesionseg.tracking.store import patiently

EXAMPLES = ("best", "median", "worst")
_log = logging.getLogger(__name__)


def replay(results: Results, processed_dir: Path) -> int:
    """The number of trainings whose MLflow runs are now complete.

    Raises:
        MissingFileError: There is no training's result.
        DataError: A file is damaged.
        LesionsegError: MLflow was not available.
    """
    trainings = list(results.found())
    if not trainings:
        raise MissingFileError(f"{results.root} holds no training. Run: dvc repro, or dvc pull")
    with patiently():
        runs = [complete_training(files, run=run) for run, files in trainings]
        if results.evaluation.comparison.exists():
            runs += complete_evaluation(results, processed_dir)
        runs += attach_report(results)
    errors = [run.error for run in runs if run.error]
    if errors:
        raise LesionsegError(f"not all is in MLflow: {errors[0]}")
    return len({run.run_id for run in runs if run.run_id})


def complete_evaluation(
    results: Results, processed_dir: Path, *, redraw: bool = False
) -> list[Run]:
    """The runs of the evaluated models, with what the test split and the report say of them.

    Args:
        results: Holds the trainings and their evaluation.
        processed_dir: Holds the test split.
        redraw: Whether figures that a run has already are drawn again.
    """
    comparison = Comparison.read(results.evaluation)
    test = load_split(processed_dir, "test")
    runs = []
    for name in RUNS:
        scores = ModelScores.read(results.evaluation, name)
        run = _find(results.training(name).model, stage=name)
        run.log_summary(test_metrics(name, scores, comparison))
        for external, files in results.evaluation.externals().items():
            run.log_summary(external_metrics(name, external, files))
        if not run.is_lost and (redraw or not _has_figures(run)):
            _log_figures(run, name, results, test)
        runs.append(run)
    return runs + list(_complete_seeds(results))


def _has_figures(run: Run) -> bool:
    """Whether a run has what `_log_figures` adds, and not the part of one that was killed."""
    return "curves.png" in run.artifacts() and len(run.artifacts("overlays")) == len(EXAMPLES)


def attach_report(results: Results) -> list[Run]:
    """Add the report, where there is one, to the runs of both models, which are returned."""
    if not results.report.exists():
        return []
    runs = []
    digest = sha256(results.report)
    for name in RUNS:
        record = TrainingRecord.read(results.training(name), run=name)
        run = find_run(model_sha256=record.model_sha256, quiet=True)
        if run.tag("report_sha256") != digest:
            run.log_file(results.report)
            run.set_tags({"report_sha256": digest})
        runs.append(run)
    return runs


def test_metrics(name: str, scores: ModelScores, comparison: Comparison) -> dict[str, float]:
    """A model's numbers on test under MLflow's names.

    `test/jaccard`, its interval `test/jaccard_low` and `_high`; for the fine-tuned model also
    `difference/test/jaccard`, what it has more than the frozen one, with its interval.
    """
    logged = {
        f"{scope}/{key}": value for scope in SCOPES for key, value in scores.at(scope).items()
    }
    for scope in SCOPES:
        for metric, result in comparison.at(scope).items():
            label, interval = f"{scope}/{metric}", result.mean_interval(name)
            logged |= _with_interval(label, result.mean(name), interval)
            if name == FINETUNED:
                label = f"difference/{label}"
                logged |= _with_interval(label, result.difference, result.interval)
    return logged


def external_metrics(name: str, external: str, files: EvaluationFiles) -> dict[str, float]:
    """A model's numbers on an external test set: `external/<set>/jaccard` and so on.

    At the network's size; at own size the jaccard alone. All others are in the results' files.
    """
    scores, comparison = ModelScores.read(files, name), Comparison.read(files)
    jaccard = comparison.test["jaccard"]
    label = f"external/{external}"
    logged = {f"{label}/{key}": scores.test[key] for key in (*METRICS, "failure_rate")}
    logged[f"{label}/own_size/jaccard"] = scores.test_own_size["jaccard"]
    logged |= _with_interval(f"{label}/jaccard", jaccard.mean(name), jaccard.mean_interval(name))
    if name == FINETUNED:
        label = f"difference/{label}/jaccard"
        logged |= _with_interval(label, jaccard.difference, jaccard.interval)
    return logged


def _with_interval(label: str, value: float, interval: tuple[float, float]) -> dict[str, float]:
    low, high = interval
    return {label: value, f"{label}_low": low, f"{label}_high": high}


def _complete_seeds(results: Results) -> Iterator[Run]:
    """The runs of the further seeds, with their means on test."""
    seeds = TABLES["seeds"].read(results.evaluation.table("seeds"))
    for name, files in results.found():
        if files == results.training(name):
            continue
        run = _find(files.model, stage=name)
        for scope in SCOPES:
            rows = rows_of(seeds, name, scope)
            for row in rows[rows["seed"] == int(files.folder.name)].to_dict("records"):
                run.log_summary({f"{scope}/{metric}": row[metric] for metric in METRICS})
        yield run


def _find(model: Path, *, stage: str) -> Run:
    return find_run(model_sha256=sha256(require(model, stage=stage)))


def _log_figures(run: Run, name: str, results: Results, test: Split) -> None:
    """Add the training's curves, and three test images with their outlines."""
    history = history_table(name).read(results.training(name).history)
    run.log_figure(draw_curves({name: history}), "curves.png")
    path = results.evaluation.table("per_image")
    finetuned = rows_of(TABLES["per_image"].read(path), FINETUNED, "test")
    if len(finetuned) != len(test.ids):
        problem = (
            f"{path} has {len(finetuned)} rows of {FINETUNED} on test, which has {len(test.ids)} "
            "images"
        )
        raise unreadable(problem, stage="evaluate")
    for example, position in choose_examples(finetuned["jaccard"].to_numpy()).items():
        image, truth = test.images[position], test.masks[position]
        image_id = test.ids[position]
        mask_path = require(results.evaluation.mask(name, image_id), stage="evaluate")
        with made_by("evaluate"):
            prediction = resize_mask(read_mask(mask_path), size=len(image))
        figure = draw_overlay(image, truth, {name: prediction})
        run.log_figure(figure, f"overlays/{example}_{image_id}.png")


def choose_examples(jaccard: NDArray[np.float64]) -> dict[str, int]:
    """Positions in the test split of the best, the median and the worst image."""
    order = np.argsort(-jaccard, kind="stable")
    return dict(zip(EXAMPLES, (order[0], order[len(order) // 2], order[-1]), strict=True))
