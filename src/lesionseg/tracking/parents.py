"""Parents in MLflow: a pipeline run holds the trainings of both models, a sweep its pipeline runs.

Stages know nothing of each other, so a parent is found by its tags, or made by the first to need
it. A training that begins joins the pipeline run of its user, data and parameters (`pipeline_key`).
The same parameters give different models if the code or the machine differs. So, once scored, a
pipeline run belongs to its models (`models`), and a training to the pipeline run that scored it
first.
"""

import functools
import getpass
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lesionseg import provenance
from lesionseg.errors import TrackingError
from lesionseg.results.layout import FINETUNED, FROZEN, RUNS
from lesionseg.results.training import TrainingRecord
from lesionseg.results.vocabulary import RUN_LABELS
from lesionseg.tracking import store
from lesionseg.tracking.handle import MAX_TAG, Run, lost_run, shorten

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

PARENT, PIPELINE = "mlflow.parentRunId", "pipeline run"
_OF_ONE_TRAINING = ("encoder", "encoder_lr", "train.num_seeds")
# Facts that both trainings share, and so their pipeline run has too.
SHARED = ("commit", "data_sha256", "dvc_experiment", "device", "precision")


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """What defines a pipeline run, known before anything is trained.

    Attributes:
        trainings: The parameters of each model's training with the first seed, flat.
        num_seeds: Trainings of each model.
    """

    trainings: Mapping[str, Mapping[str, Any]]
    num_seeds: int

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of both trainings, flat: `train_finetuned.encoder_lr`."""
        shared = {k: v for k, v in self.trainings[FROZEN].items() if k not in _OF_ONE_TRAINING}
        own = {f"{run}.encoder_lr": self.trainings[run].get("encoder_lr") for run in RUNS}
        return {**shared, **own, "train.num_seeds": self.num_seeds}

    def key(self, data_sha256: str) -> str:
        """What distinguishes it, on this data, from all other pipeline runs."""
        return _hash(json.dumps({**self.params, "data_sha256": data_sha256}, sort_keys=True))

    def name(self, experiment: str) -> str:
        """`puffy-daks · pyramid · frozen vs fine-tuned · seed 0`, without DVC's experiment if none.

        Args:
            experiment: DVC's name of the experiment, or "".
        """
        first = self.params.get("train.seed")
        seeds = f"seed {first}"
        if self.num_seeds > 1 and isinstance(first, int):
            seeds = f"seeds {first} to {first + self.num_seeds - 1}"
        models = f"{RUN_LABELS[FROZEN]} vs {RUN_LABELS[FINETUNED]}"
        parts = [experiment, self.params.get("model.decoder"), models]
        return " · ".join(str(part) for part in [*parts, first is not None and seeds] if part)


def training_name(run: str, params: Mapping[str, Any]) -> str:
    """`pyramid · fine-tuned · seed 0`, with the fold in a cross-validation."""
    numbers = {"seed": params.get("train.seed"), "fold": params.get("fold")}
    parts = [params.get("model.decoder"), RUN_LABELS.get(run, run)]
    parts += [f"{what} {number}" for what, number in numbers.items() if number is not None]
    return " · ".join(str(part) for part in parts if part)


def facts_of(params: Mapping[str, Any]) -> dict[str, str]:
    """Tags for what a training, or a pipeline run, starts from."""
    named = {
        "data_source": "download.source",
        "encoder_start": "download.weights",
        "num_processes": "train.num_processes",
    }
    return {tag: str(params[name]) for tag, name in named.items() if name in params}


def origin(*, source: str, commit: str) -> dict[str, str]:
    """MLflow's own tags for where a run comes from: user, program and commit."""
    commit = commit.removesuffix("-dirty")
    is_known = re.fullmatch(r"[0-9a-f]{40}", commit)
    return {
        "mlflow.user": user(),
        "mlflow.source.name": source,
        "mlflow.source.type": "LOCAL",
        **({"mlflow.source.git.commit": commit} if is_known else {}),
    }


def user() -> str:
    """The user's name on the server, or else on this machine."""
    if account := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        return account
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"


def sweep_of(experiment: str) -> str:
    """The sweep that an experiment is a trial of, or "": `sweep` for `sweep-cbdcecb8`.

    All `ablation-NAME-HASH` belong to `ablation`, and all `curve-SIZE-HASH` to `curve`.
    """
    found = re.fullmatch(r"((?:ablation|curve)(?=-.+-)|.+)(-.+)?-[0-9a-f]{8}", experiment)
    return found[1] if found else ""


@contextmanager
def joined(pipeline: Pipeline | None, *, tags: Mapping[str, str]) -> Iterator[str]:
    """The id of the pipeline run that a training joins, or "" if the store fails.

    As long as it has no scores, its status is that of the training.

    Args:
        pipeline: None for a training without a pipeline run.
        tags: The training's tags.
    """
    run, is_scored = _join(pipeline, tags) if pipeline else (Run(None, ""), True)
    try:
        yield run.run_id
    except BaseException as error:
        if not is_scored:
            run.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    if not is_scored:
        run.finish()


def _join(pipeline: Pipeline, tags: Mapping[str, str]) -> tuple[Run, bool]:
    """The pipeline run that a training joins, and whether it already has scores."""

    def find_or_create() -> tuple[str, bool]:
        runs = _Parents(client, experiment_id)
        key = pipeline.key(tags["data_sha256"])
        create = functools.partial(runs.create, pipeline, tags, parent=runs.sweep(tags))
        found = runs.one("pipeline_key", key, create, user=user())
        is_scored = "models" in found.data.tags
        if not is_scored:
            client.update_run(found.info.run_id, status="RUNNING")
        return found.info.run_id, is_scored

    try:
        client, experiment_id = store.connect()
        run_id, is_scored = store.current().ask(find_or_create)
    except TrackingError as error:
        return lost_run(error), True
    run = Run(client, run_id)
    run.log_params(pipeline.params)
    return run, is_scored


@dataclass(frozen=True, kw_only=True)
class Training:
    """A finished training.

    Attributes:
        record: Where its model comes from.
        run: Its MLflow run, or a `Run` without id.
    """

    record: TrainingRecord
    run: Run


def models_key(records: Sequence[TrainingRecord]) -> str:
    """The tag value by which the pipeline run of these trainings is found once it has scores."""
    return _hash(" ".join(record.model_sha256 for record in records))


def scored_run(trainings: Sequence[Training]) -> Run:
    """The pipeline run of trainings that have been scored; from now on they are its children.

    It is the one that they joined, or one that already had these models, or a new one. A training
    stays in the pipeline run that scored it first: DVC may have taken it from its cache.

    Args:
        trainings: Those of both models and all seeds, in the order of `Results.found`.
    """
    records = [one.record for one in trainings]
    first = {run: next(one for one in trainings if one.record.run == run) for run in RUNS}
    pipeline = Pipeline(
        trainings={run: one.record.params for run, one in first.items()},
        num_seeds=sum(record.run == FROZEN for record in records),
    )
    hashes = {run: one.record.model_sha256 for run, one in first.items()}
    tags = {**_origin_of(first[FINETUNED].record), "models": models_key(records)}

    def find_or_create() -> str:
        runs = _Parents(client, experiment_id)
        for run in (FINETUNED, FROZEN):  # the one trained last comes first
            parent = runs.parent_of(first[run].run.run_id)
            if parent and _can_score(parent, pipeline.key(tags["data_sha256"]), tags["models"]):
                if "models" not in parent.data.tags:  # until its scores are there
                    client.update_run(parent.info.run_id, status="RUNNING")
                return str(parent.info.run_id)
        create = functools.partial(
            runs.create,
            pipeline,
            tags,
            parent=runs.sweep(tags),
            seconds=sum(record.seconds for record in records),
        )
        return str(runs.one("models", tags["models"], create).info.run_id)

    def adopt(training: Training) -> None:
        run = training.record.run
        _Parents(client, experiment_id).adopt(training.run.run_id, parent.run_id, run, hashes[run])

    try:
        client, experiment_id = store.connect()
        parent = Run(client, store.current().ask(find_or_create))
        parent.log_params(pipeline.params)
        parent.set_tags({"models": tags["models"], **hashes})
        for training in trainings:
            if training.run.run_id:
                store.current().ask(functools.partial(adopt, training))
    except TrackingError as error:
        return lost_run(error)
    return parent


def find_scored(records: Sequence[TrainingRecord]) -> Run:
    """The pipeline run with the scores of these trainings' models; a `Run` without id if none.

    Args:
        records: In the order of `scored_run`'s trainings.
    """
    try:
        client, experiment_id = store.connect()
        parents = _Parents(client, experiment_id)
        found = store.current().ask(lambda: parents.find("models", models_key(records)))
    except TrackingError as error:
        return lost_run(error)
    return Run(client, found[-1].info.run_id) if found else Run(None, "")


def _can_score(parent: "MlflowRun", key: str, models: str) -> bool:
    """Whether scores of these models belong to a pipeline run."""
    tags = parent.data.tags
    if "models" in tags:
        return bool(tags["models"] == models)
    return bool(tags.get("pipeline_key") == key)


def _origin_of(record: TrainingRecord) -> dict[str, str]:
    """Tags shared by a training and its pipeline run; in a DVC experiment, its commit and name."""
    known = {name: str(getattr(record, name)) for name in SHARED}
    if os.environ.get("DVC_EXP_NAME"):
        now = provenance.tags(stage="")
        known |= {name: now[name] for name in ("commit", "dvc_experiment")}
    return known


class _Parents:
    """The experiment's runs, among which parents are found; to be used in calls of the store."""

    def __init__(self, client: "MlflowClient", experiment_id: str) -> None:
        self._client, self._experiment_id = client, experiment_id

    def one(
        self, tag: str, value: str, create: Callable[[], str], *, user: str = ""
    ) -> "MlflowRun":
        """The latest run with a tag, created if there is none.

        A store in a file is used by one process at a time. On a server another machine may create
        one at the same moment: both look again, and the first run stays.

        Args:
            tag: The tag's name.
            value: The tag's value, without quotes.
            create: Creates such a run and returns its id.
            user: Whose run it must be; "" for anybody's.
        """
        with store.alone():
            if found := self.find(tag, value, user):
                return found[-1]
            run_id = create()
            first = (self.find(tag, value, user) or [self._client.get_run(run_id)])[0]
            if first.info.run_id != run_id:
                self._client.delete_run(run_id)
            return first

    def find(self, tag: str, value: str, user: str = "") -> "list[MlflowRun]":
        """Runs with a tag, the oldest first."""
        found = self._client.search_runs([self._experiment_id], f"tags.`{tag}` = '{value}'")
        ours = [run for run in found if user in ("", run.data.tags.get("mlflow.user"))]
        return sorted(ours, key=lambda run: (run.info.start_time, run.info.run_id))

    def create(
        self, pipeline: Pipeline, tags: Mapping[str, str], *, parent: str, seconds: float = 0
    ) -> str:
        """The id of a new pipeline run.

        Args:
            pipeline: What defines it.
            tags: `SHARED`, and other tags by which to find it.
            parent: The id of its sweep's run, or "".
            seconds: How long ago it began.
        """
        own = {
            **{name: tags[name] for name in (*SHARED, "models") if name in tags},
            **facts_of(pipeline.params),
            **origin(source="dvc repro", commit=tags["commit"]),
            "kind": PIPELINE,
            "pipeline_key": pipeline.key(tags["data_sha256"]),
        }
        if parent:
            own |= {PARENT: parent, "sweep": sweep_of(tags["dvc_experiment"])}
        created = self._client.create_run(
            self._experiment_id,
            start_time=int((time.time() - seconds) * 1000),
            run_name=pipeline.name(tags["dvc_experiment"]),
            tags={name: shorten(value, MAX_TAG) for name, value in own.items()},
        )
        return str(created.info.run_id)

    def sweep(self, tags: Mapping[str, str]) -> str:
        """The id of the run that holds a sweep's pipeline runs; "" outside a sweep.

        There is one for each user and commit.

        Args:
            tags: The tags of one of its pipeline runs.
        """
        name, commit = sweep_of(tags["dvc_experiment"]), tags["commit"]
        if not name:
            return ""
        own = {
            **origin(source=f"lesionseg {name}", commit=commit),
            "commit": commit,
            "kind": "sweep",
            "sweep": name,
            "sweep_key": _hash(f"{name} {commit} {user()}"),
        }

        def create() -> str:
            run_name = f"{name} · {commit[:7]}"
            created = self._client.create_run(self._experiment_id, run_name=run_name, tags=own)
            self._client.set_terminated(created.info.run_id)  # nothing works on it
            return str(created.info.run_id)

        return str(self.one("sweep_key", own["sweep_key"], create).info.run_id)

    def parent_of(self, run_id: str) -> "MlflowRun | None":
        """A run's parent, if it has one that has not been deleted."""
        child = self._get(run_id)
        return self._get(child.data.tags.get(PARENT, "")) if child else None

    def _get(self, run_id: str) -> "MlflowRun | None":
        from mlflow.exceptions import MlflowException

        if not run_id:
            return None
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def adopt(self, run_id: str, parent_id: str, model: str, model_sha256: str) -> None:
        """Make a training the child of a pipeline run, unless another one has scored its model.

        Args:
            run_id: The training's id.
            parent_id: The pipeline run's id.
            model: One of `RUNS`.
            model_sha256: SHA-256 of the first seed's model.
        """
        before = self.parent_of(run_id)
        tags = before.data.tags if before else {}
        is_ours = tags.get("kind", PIPELINE) == PIPELINE  # not a parent that a user has set
        if not is_ours or tags.get(model) == model_sha256:
            return
        self._client.set_tag(run_id, PARENT, parent_id)
        if before and "models" not in tags and not self.find(PARENT, before.info.run_id):
            self._client.delete_run(before.info.run_id)  # nothing is left in it


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
