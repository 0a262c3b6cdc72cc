"""What a user sees of a project's MLflow runs, to compare stores."""

import json
import shutil

from mlflow import MlflowClient

from lesionseg.files import sha256
from lesionseg.results.layout import RUNS
from tests.report_inputs import write_report_inputs


def client_of(project):
    return MlflowClient(f"sqlite:///{project}/mlruns/mlflow.db")


def runs_in(client, kind=None):
    """All of the runs, or those of a kind: `training`, `pipeline run` or `sweep`."""
    experiment = client.get_experiment_by_name("lesionseg")
    query = f"tags.kind = '{kind}'" if kind else ""
    return client.search_runs([experiment.experiment_id], query)


def contents(client):
    """All of the runs, but for times and for samples of the machine: by the name of a training's
    model, and the others by their own."""
    runs = runs_in(client)
    names = {run.info.run_id: run.info.run_name for run in runs}
    found = {
        run.data.tags.get("dvc_stage", run.info.run_name): _content(client, run, names)
        for run in runs
    }
    assert len(found) == len(runs), "a run stands twice"
    return found


def _content(client, run, names):
    return {
        "name": run.info.run_name,
        "parent": names.get(run.data.tags.get("mlflow.parentRunId")),
        "params": run.data.params,
        "metrics": {
            key: sorted(
                (value.step, value.value)
                for value in client.get_metric_history(run.info.run_id, key)
            )
            for key in run.data.metrics
            if not key.startswith("system/")
        },
        "tags": {
            key: value
            for key, value in run.data.tags.items()
            if not key.startswith("mlflow.") and key not in ("host", "folder")  # where it was run
        },
        "artifacts": sorted(artifacts_of(client, run.info.run_id)),
        "datasets": [entry.dataset.digest for entry in run.inputs.dataset_inputs],
        "status": run.info.status,
    }


def artifacts_of(client, run_id, folder=None):
    """The paths of a run's artefacts, folders opened."""
    for file in client.list_artifacts(run_id, folder):
        if file.is_dir:
            yield from artifacts_of(client, run_id, file.path)
        else:
            yield file.path


def write_project(root, empty_store, *, report="<!doctype html>", **options):
    """A project with all results and an empty store; options as of `write_report_inputs`."""
    write_report_inputs(root, **options)
    (root / "mlruns").mkdir()
    shutil.copy(empty_store, root / "mlruns")
    comparisons = list((root / "results/evaluate").rglob("comparison.json"))
    for run in RUNS:
        folder = root / "results" / run
        (folder / "model.pt").write_bytes(run.encode())
        digest = sha256(folder / "model.pt")
        edit_json(folder / "run.json", model_sha256=digest)
        for path in comparisons:
            models = json.loads(path.read_text())["models"]
            edit_json(path, models={**models, run: digest})
    path = root / "results/report/report.html"
    path.parent.mkdir()
    path.write_text(report)


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
