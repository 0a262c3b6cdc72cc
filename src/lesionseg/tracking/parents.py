"""Parents in MLflow: a pipeline run holds the trainings of both models, a sweep its pipeline runs.

Stages know nothing of each other, so a parent is found by its tags, or made by who comes first. A
training that begins joins the pipeline run of its user, data and parameters (`pipeline_key`). The
same parameters give other models where the code or the machine is another: scored, a pipeline run
belongs to its models (`models`), and a training to the pipeline run that scored it first.
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
# What is known of both trainings alike, and so of their pipeline run.
SHARED = ("commit", "data_sha256", "dvc_experiment", "device", "precision")


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """What makes a pipeline run, known before anything is trained.

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
        """What tells it from others on any data."""
        return _hash(json.dumps({**self.params, "data_sha256": data_sha256}, sort_keys=True))

    def name(self, experiment: str) -> str:
        """`puffy-daks · pyramid · frozen vs fine-tuned · seed 0`, without DVC's experiment if none.

        Args:
            experiment: DVC's name of it, or nothing.
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
    """Tags of what a training, or a pipeline run, starts from."""
    named = {
        "data_source": "download.source",
        "encoder_start": "download.weights",
        "num_processes": "train.num_processes",
    }
    return {tag: str(params[name]) for tag, name in named.items() if name in params}


def origin(*, source: str, commit: str) -> dict[str, str]:
    """MLflow's own tags of where a run comes from: user, program and commit."""
    commit = commit.removesuffix("-dirty")
    is_known = re.fullmatch(r"[0-9a-f]{40}", commit)
    return {
        "mlflow.user": user(),
        "mlflow.source.name": source,
        "mlflow.source.type": "LOCAL",
        **({"mlflow.source.git.commit": commit} if is_known else {}),
    }


def user() -> str:
    """Whoever the server knows, or the machine."""
    if account := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        return account
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"


def sweep_of(experiment: str) -> str:
    """The sweep that an experiment is a trial of, or nothing: `sweep` of `sweep-cbdcecb8`.

    All of `ablation-NAME-HASH` are of `ablation`, and all of `curve-SIZE-HASH` of `curve`.
    """
    found = re.fullmatch(r"((?:ablation|curve)(?=-.+-)|.+)(-.+)?-[0-9a-f]{8}", experiment)
    return found[1] if found else ""


@contextmanager
def joined(pipeline: Pipeline | None, *, tags: Mapping[str, str]) -> Iterator[str]:
    """The id of the pipeline run that a training joins, or nothing where the store fails.

    As long as it has no scores, its status is that of the training.

    Args:
        pipeline: None for a training that is of none.
        tags: The training's.
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
    """The pipeline run that a training joins, and whether it has scores already."""

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
        run: Its MLflow run, or nothing.
    """

    record: TrainingRecord
    run: Run


def models_key(records: Sequence[TrainingRecord]) -> str:
    """What the pipeline run of these trainings is found by once it has scores."""
    return _hash(" ".join(record.model_sha256 for record in records))


def scored_run(trainings: Sequence[Training]) -> Run:
    """The pipeline run of trainings that are scored; from now on they are its children.

    It is the one that they joined, or that has had these models, or a new one. A training stays in
    the pipeline run that scored it first: DVC may have taken it from its cache.

    Args:
        trainings: Of both models and all seeds, in the order of `Results.found`.
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
        for run in (FINETUNED, FROZEN):  # the one that was trained last comes first
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
    """The pipeline run with the scores of these trainings' models; a `Run` of nothing if none has.

    Args:
        records: As of `scored_run`.
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
    """Tags that a training and its pipeline run share; in an experiment of DVC, its name."""
    known = {name: str(getattr(record, name)) for name in SHARED}
    if os.environ.get("DVC_EXP_NAME"):
        now = provenance.tags(stage="")
        known |= {name: now[name] for name in ("commit", "dvc_experiment")}
    return known


class _Parents:
    """The experiment's runs, among which parents are looked for, in calls of the store."""

    def __init__(self, client: "MlflowClient", experiment_id: str) -> None:
        self._client, self._experiment_id = client, experiment_id

    def one(
        self, tag: str, value: str, create: Callable[[], str], *, user: str = ""
    ) -> "MlflowRun":
        """The latest run with a tag, created where there is none.

        A store in a file is asked by one process at a time. On a server another machine may create
        one in the same moment: both look again, and the first of them stays.

        Args:
            tag: Its name.
            value: What it must be, without quotes.
            create: Makes such a run; its id.
            user: Whose run it must be; nothing for anybody's.
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
        """Runs with a tag, the first one first."""
        found = self._client.search_runs([self._experiment_id], f"tags.`{tag}` = '{value}'")
        ours = [run for run in found if user in ("", run.data.tags.get("mlflow.user"))]
        return sorted(ours, key=lambda run: (run.info.start_time, run.info.run_id))

    def create(
        self, pipeline: Pipeline, tags: Mapping[str, str], *, parent: str, seconds: float = 0
    ) -> str:
        """The id of a new pipeline run.

        Args:
            pipeline: What makes it.
            tags: `SHARED`, and what else it is to be found by.
            parent: The id of its sweep's run, or nothing.
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
        """The id of the run that holds a sweep's pipeline runs; nothing outside of a sweep.

        There is one for each user and commit.

        Args:
            tags: Those of one of its pipeline runs.
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
        """A run's parent, if it has one that nobody has deleted."""
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
            run_id: The training's.
            parent_id: The pipeline run's.
            model: One of `RUNS`.
            model_sha256: Of the first seed's model.
        """
        before = self.parent_of(run_id)
        tags = before.data.tags if before else {}
        is_ours = tags.get("kind", PIPELINE) == PIPELINE  # and not somebody's own
        if not is_ours or tags.get(model) == model_sha256:
            return
        self._client.set_tag(run_id, PARENT, parent_id)
        if before and "models" not in tags and not self.find(PARENT, before.info.run_id):
            self._client.delete_run(before.info.run_id)  # nothing is left in it


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
