"""Results on disk, brought into MLflow: all at once by `lesionseg replay`, or by the stages.

For use after a server was unreachable, or for results from DVC's cache or from a colleague. What a
run already has is left alone, so that any number of replays gives the same runs.
"""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lesionseg.data.dataset import load_split
from lesionseg.data.images import resize_mask
from lesionseg.data.masks import read_mask
from lesionseg.errors import LesionsegError, MissingFileError
from lesionseg.files import made_by, require, sha256
from lesionseg.report.external import answer_elsewhere, read_external
from lesionseg.report.figures import draw_curves
from lesionseg.report.overlays import draw_overlay
from lesionseg.report.page import answer, answer_of_seeds
from lesionseg.report.style import RUN_COLORS
from lesionseg.results.evaluation import TABLES, Comparison, ModelScores, rows_of
from lesionseg.results.layout import FINETUNED, RUNS, Results
from lesionseg.results.records import unreadable
from lesionseg.results.training import TrainingRecord, history_table
from lesionseg.tracking.handle import Run
from lesionseg.tracking.parents import Training, find_scored, scored_run
from lesionseg.tracking.runs import complete_training, find_run
from lesionseg.tracking.scores import (
    evaluation_files,
    pipeline_scores,
    seed_scores,
    test_sets,
    training_scores,
)
from lesionseg.tracking.store import patiently
from lesionseg.tracking.views import NOTE, REPORT, report_link

COLOR = "mlflow.runColor"
EXAMPLES = ("best", "median", "worst")
# MLflow shows the first lines, and the rest on demand; it keeps line breaks.
_NOTE = """[Open the report]({report}). {sentences}

Its artefacts hold the rest:
- `report/report.html`: every image and case
- `evaluate/`: every score of every image, as tables
- `overlays/`: the best, the median and the worst image with both outlines
- `curves.png`: both trainings
"""


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
        num_trainings = len({run.run_id for run in runs if run.run_id})
        if results.evaluation.comparison.exists():
            runs += complete_evaluation(results, processed_dir)
        runs += attach_report(results)
    errors = [run.error for run in runs if run.error]
    if errors:
        raise LesionsegError(f"not all is in MLflow: {errors[0]}")
    return num_trainings


def complete_evaluation(results: Results, processed_dir: Path) -> list[Run]:
    """The pipeline run of the evaluated models and its trainings' runs, with their scores.

    Args:
        results: Holds the trainings and their evaluation.
        processed_dir: Holds the test split.

    Raises:
        MissingFileError: One of the files is missing.
        DataError: One of them is damaged.
    """
    for name in RUNS:
        require(results.training(name).record, stage=name)
    trainings = []
    for name, files in results.found():
        record = TrainingRecord.read(files, run=name)
        require(files.model, stage=name)
        run = find_run(model_sha256=record.model_sha256)
        if files == results.training(name):
            run.log_summary(training_scores(name, results))
        else:
            run.log_summary(seed_scores(name, int(files.folder.name), results))
        if not run.tag(COLOR):  # a user may have chosen another
            run.set_tags({COLOR: RUN_COLORS[name]})
        trainings.append(Training(record=record, run=run))
    parent = scored_run(trainings)
    parent.log_summary(pipeline_scores(results))
    _log_evaluation(parent, results, processed_dir)
    parent.finish()
    return [*(training.run for training in trainings), parent]


def _log_evaluation(parent: Run, results: Results, processed_dir: Path) -> None:
    """Add the evaluation's files and figures, unless the run already has them."""
    for files in test_sets(results).values():
        for name in RUNS:
            ModelScores.read(files, name)  # refuses a damaged file
    found = list(evaluation_files(results))
    digest = hashlib.sha256("".join(sha256(path) for _, path in found).encode()).hexdigest()
    if not parent.is_lost and parent.tag("evaluation_sha256") != digest:
        for folder, path in found:
            parent.log_file(path, folder)
        _log_figures(parent, results, processed_dir)
        note = _note(parent, results, processed_dir.with_name("external"))
        parent.set_tags({NOTE: note})
        parent.set_tags({"evaluation_sha256": digest})  # last, when everything is there


def _note(parent: Run, results: Results, external_dir: Path) -> str:
    """The note at the top of the pipeline run's page: its answer, and where to look."""
    comparison = Comparison.read(results.evaluation)
    external = []
    if results.evaluation.externals():
        external = read_external(results.evaluation, external_dir, models=comparison.models)
    elsewhere = answer_elsewhere(comparison, external)
    sentences = [answer(comparison), elsewhere, answer_of_seeds(comparison)]
    return _NOTE.format(
        sentences=" ".join(filter(None, sentences)),
        report=report_link(parent.experiment_id, parent.run_id),
    )


def attach_report(results: Results) -> list[Run]:
    """Add the report, if there is one, to its pipeline run, which is returned."""
    if not results.report.exists():
        return []
    records = [TrainingRecord.read(files, run=run) for run, files in results.found()]
    parent = find_scored(records)
    digest = sha256(results.report)
    if parent.tag("report_sha256") != digest:
        parent.log_file(results.report, REPORT)
        parent.set_tags({"report_sha256": digest})
    return [parent]


def _log_figures(parent: Run, results: Results, processed_dir: Path) -> None:
    """Add both trainings' curves, and three test images with both models' outlines."""
    histories = {run: history_table(run).read(results.training(run).history) for run in RUNS}
    parent.log_figure(draw_curves(histories), "curves.png")
    test = load_split(processed_dir, "test")
    path = results.evaluation.table("per_image")
    finetuned = rows_of(TABLES["per_image"].read(path), FINETUNED, "test")
    if len(finetuned) != len(test.ids):
        problem = (
            f"{path} has {len(finetuned)} rows of {FINETUNED} on test, which has {len(test.ids)} "
            "images"
        )
        raise unreadable(problem, stage="evaluate")
    for example, position in choose_examples(finetuned["jaccard"].to_numpy()).items():
        image, image_id = test.images[position], test.ids[position]
        predictions = {run: _read_prediction(results, run, image_id, len(image)) for run in RUNS}
        figure = draw_overlay(image, test.masks[position], predictions)
        parent.log_figure(figure, f"overlays/{example}_{image_id}.png")


def _read_prediction(results: Results, run: str, image_id: str, size: int) -> NDArray[np.uint8]:
    """A model's mask of a test image at the network's size in pixels."""
    path = require(results.evaluation.mask(run, image_id), stage="evaluate")
    with made_by("evaluate"):
        return resize_mask(read_mask(path), size=size)


def choose_examples(jaccard: NDArray[np.float64]) -> dict[str, int]:
    """Positions in the test split of the best, the median and the worst image."""
    order = np.argsort(-jaccard, kind="stable")
    return dict(zip(EXAMPLES, (order[0], order[len(order) // 2], order[-1]), strict=True))
