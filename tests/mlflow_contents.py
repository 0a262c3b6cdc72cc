"""What a user sees of a project's MLflow runs, to compare stores."""

from mlflow import MlflowClient


def client_of(project):
    return MlflowClient(f"sqlite:///{project}/mlruns/mlflow.db")


def contents(client):
    """All of the runs by name, but for times and for samples of the machine."""
    experiment = client.get_experiment_by_name("lesionseg")
    runs = client.search_runs([experiment.experiment_id])
    found = {run.info.run_name: _content(client, run) for run in runs}
    assert len(found) == len(runs), "a run stands twice"
    return found


def _content(client, run):
    return {
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
        "artifacts": sorted(
            file.path
            for folder in (None, "overlays")
            for file in client.list_artifacts(run.info.run_id, folder)
        ),
        "datasets": [entry.dataset.digest for entry in run.inputs.dataset_inputs],
        "status": run.info.status,
    }
