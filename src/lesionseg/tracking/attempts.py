"""Attempts at a trial on a cluster: cleaning up what lost ones leave in MLflow."""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lesionseg.errors import TrackingError
from lesionseg.tracking import store
from lesionseg.tracking.parents import PARENT

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

ATTEMPT = "attempt"  # the tag of a training's run
VARIABLE = "LESIONSEG_ATTEMPT"


def attempt_tag() -> dict[str, str]:
    """The tag of the attempt that this process belongs to; empty outside a cluster."""
    attempt = os.environ.get(VARIABLE)
    return {ATTEMPT: attempt} if attempt else {}


def end_lost(attempts: Sequence[str], *, finished: bool = False) -> None:
    """Mark RUNNING trainings of lost attempts, and their pipeline runs, as KILLED.

    Args:
        attempts: Values of the tag.
        finished: Whether to mark finished trainings as well, as another attempt's are kept.
    """

    def end(client: "MlflowClient", runs: "Sequence[MlflowRun]") -> None:
        for run in runs:
            if run.info.status == "RUNNING" or finished:
                client.set_terminated(run.info.run_id, "KILLED")
            parent = run.data.tags.get(PARENT)
            if parent and not finished and client.get_run(parent).info.status == "RUNNING":
                client.set_terminated(parent, "KILLED")

    _with_runs(attempts, end)


def keep_last(attempts: Sequence[str]) -> None:
    """If several attempts have finished one training, mark all but the last run as KILLED."""

    def end(client: "MlflowClient", runs: "Sequence[MlflowRun]") -> None:
        last: dict[tuple[str, str], MlflowRun] = {}
        for run in sorted(runs, key=lambda run: run.info.start_time):
            if run.info.status == "FINISHED":
                tags = run.data.tags
                key = tags.get("dvc_stage", ""), tags.get("params_sha256", "")
                if before := last.get(key):
                    client.set_terminated(before.info.run_id, "KILLED")
                last[key] = run

    _with_runs(attempts, end)


def _with_runs(
    attempts: Sequence[str], work: "Callable[[MlflowClient, Sequence[MlflowRun]], None]"
) -> None:
    """Do something with all runs of attempts; if the store fails, log the usual warning."""

    def find_and_work() -> None:
        queries = [f"tags.{ATTEMPT} = '{attempt}'" for attempt in attempts]
        work(client, [run for q in queries for run in client.search_runs([experiment_id], q)])

    try:
        client, experiment_id = store.connect()
        store.current().ask(find_and_work)
    except TrackingError as error:
        store.current().warn(error)
