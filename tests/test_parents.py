"""Trainings are children of their pipeline run, and a sweep's pipeline runs its children: once."""

import contextlib
import multiprocessing
import os
import uuid
from pathlib import Path

import pytest
from mlflow import MlflowClient

from lesionseg.results.layout import FINETUNED, FROZEN, RUNS
from lesionseg.results.training import TrainingRecord
from lesionseg.tracking import availability, database, parents, runs, store
from tests.mlflow_contents import client_of, runs_in

PARAMS = {
    "model.decoder": "pyramid",
    "train.seed": 0,
    "download.source": "phantom",
    "download.weights": "none",
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LRS = {FROZEN: 0.0, FINETUNED: 0.001}


@pytest.fixture(autouse=True)
def project(project_with_store, monkeypatch):
    """A project with an empty store, of ada's."""
    monkeypatch.setenv("USER", "ada")
    monkeypatch.setenv("LOGNAME", "ada")
    for name in ("MLFLOW_TRACKING_USERNAME", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(runs, "_started", {})
    return project_with_store


@pytest.fixture
def client(project):
    return client_of(project)


def params_of(run, lrs=LRS, **more):
    encoder = "fine-tuned" if lrs[run] else "frozen"
    return {**PARAMS, "encoder_lr": lrs[run], "encoder": encoder, **more}


def pipeline(lrs=LRS, num_seeds=1, **more):
    return parents.Pipeline(
        trainings={run: params_of(run, lrs, **more) for run in RUNS}, num_seeds=num_seeds
    )


def origin(experiment=""):
    facts = {"commit": COMMIT, "dvc_experiment": experiment, "data_sha256": "da7a" * 16}
    return {**facts, "device": "cpu", "precision": "float32"}


@contextlib.contextmanager
def training(run, lrs=LRS, experiment="", num_seeds=1):
    """The MLflow run of a training as the stage makes it."""
    with runs.training_run(
        run,
        params=params_of(run, lrs),
        tags={**origin(experiment), "dvc_stage": run},
        id_path=Path(os.environ["DVC_ROOT"]) / uuid.uuid4().hex,
        pipeline=pipeline(lrs, num_seeds),
    ) as logged:
        yield logged


def train(run, model, **options):
    """A training that ends with a model of this hash."""
    with training(run, **options) as logged:
        logged.set_tags({"model_sha256": model})
    return logged.run_id


def score(models, lrs=LRS, experiment=""):
    """The id of the pipeline run of these models, by run, as `evaluate` finds it."""
    found = [
        parents.Training(
            record=record(run, model, lrs, experiment), run=runs.find_run(model_sha256=model)
        )
        for run, model in models.items()
    ]
    logged = parents.scored_run(found)
    assert not logged.error
    logged.finish()
    return logged.run_id


def record(run, model, lrs, experiment):
    return TrainingRecord(
        run=run,
        model_sha256=model,
        dvc_stage=run,
        training_key=run,
        seconds=1.0,
        images_per_second=1.0,
        num_images=1,
        num_parameters=1,
        num_trained_parameters=1,
        versions={},
        params=params_of(run, lrs),
        **origin(experiment),
    )


def parent_of(client, run_id):
    return client.get_run(run_id).data.tags.get(parents.PARENT)


def pipelines(client):
    return {run.info.run_id for run in runs_in(client, "pipeline run")}


def test_both_trainings_join_one_pipeline_run_that_is_there_while_they_run(client):
    with training(FROZEN) as first:
        (parent,) = runs_in(client, "pipeline run")
        assert parent.info.status == "RUNNING"
        assert parent_of(client, first.run_id) == parent.info.run_id
    assert client.get_run(parent.info.run_id).info.status == "FINISHED"
    second = train(FINETUNED, "t")
    assert pipelines(client) == {parent.info.run_id} == {parent_of(client, second)}
    found = client.get_run(parent.info.run_id)
    assert found.info.run_name == "pyramid · frozen vs fine-tuned · seed 0"
    assert found.data.params["train_finetuned.encoder_lr"] == "0.001"
    assert client.get_run(second).info.run_name == "pyramid · fine-tuned · seed 0"


def test_a_run_says_who_made_it_and_what_it_started_from(client):
    expected = {
        "mlflow.user": "ada",
        "mlflow.source.git.commit": COMMIT,
        "data_source": "phantom",
        "encoder_start": "none",
        "device": "cpu",
        "precision": "float32",
    }
    found = client.get_run(train(FROZEN, "f")).data.tags
    of_parent = client.get_run(found[parents.PARENT]).data.tags
    assert expected.items() <= found.items()
    assert expected.items() <= of_parent.items()


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_pipeline_run_without_scores_ends_as_its_training_and_goes_on_with_it(
    client, error, status
):
    with pytest.raises(error), training(FROZEN):
        raise error
    (parent,) = runs_in(client, "pipeline run")
    assert parent.info.status == status
    train(FROZEN, "f")
    (parent,) = runs_in(client, "pipeline run")
    assert parent.info.status == "FINISHED"


def test_scores_go_to_the_pipeline_run_that_the_trainings_joined_any_number_of_times(client):
    first = train(FROZEN, "f")
    train(FINETUNED, "t")
    found = {score({FROZEN: "f", FINETUNED: "t"}) for _ in range(2)}
    assert found == pipelines(client) == {parent_of(client, first)}


def test_trainings_that_joined_none_get_their_pipeline_run_with_the_scores(client):
    """As after a server was away."""
    ids = []
    for run, model in ((FROZEN, "f"), (FINETUNED, "t")):
        tags = {**origin(), "model_sha256": model}
        root = Path(os.environ["DVC_ROOT"])
        with runs.training_run(run, params={}, tags=tags, id_path=root / run) as logged:
            ids.append(logged.run_id)
    parent = score({FROZEN: "f", FINETUNED: "t"})
    assert {parent_of(client, run_id) for run_id in ids} == {parent}
    found = client.get_run(parent)
    assert found.info.run_name == "pyramid · frozen vs fine-tuned · seed 0"
    assert found.info.status == "FINISHED"


def test_a_model_from_the_cache_stays_a_child_of_the_pipeline_run_that_scored_it_first(client):
    frozen = train(FROZEN, "f")
    train(FINETUNED, "t")
    before = score({FROZEN: "f", FINETUNED: "t"})
    lrs = {**LRS, FINETUNED: 0.01}
    other = train(FINETUNED, "t2", lrs=lrs)
    after = score({FROZEN: "f", FINETUNED: "t2"}, lrs=lrs)
    assert before != after
    assert parent_of(client, frozen) == before
    assert parent_of(client, other) == after
    assert client.get_run(after).data.params["train_finetuned.encoder_lr"] == "0.01"


def test_a_pair_that_was_never_trained_together_has_a_pipeline_run_of_its_own(client):
    grid = [(f, t) for f in (0.0, 0.1) for t in (0.001, 0.01)]
    names = {0.0: "f0", 0.1: "f1", 0.001: "t0", 0.01: "t1"}
    trained, found = set(), set()
    for frozen, finetuned in grid:
        lrs = {FROZEN: frozen, FINETUNED: finetuned}
        for run in RUNS:
            if names[lrs[run]] not in trained:
                trained.add(names[lrs[run]])
                train(run, names[lrs[run]], lrs=lrs)
        found.add(score({run: names[lrs[run]] for run in RUNS}, lrs=lrs))
    assert len(found) == 4
    assert pipelines(client) == found
    assert len(runs_in(client, "training")) == 4


def test_a_training_repeated_bit_by_bit_joins_the_pipeline_run_that_has_its_scores(client):
    train(FROZEN, "f")
    train(FINETUNED, "t")
    parent = score({FROZEN: "f", FINETUNED: "t"})
    ended = client.get_run(parent).info.end_time
    again = train(FINETUNED, "t")
    assert parent_of(client, again) == parent
    assert client.get_run(parent).info.end_time == ended
    assert score({FROZEN: "f", FINETUNED: "t"}) == parent
    assert pipelines(client) == {parent}


def test_other_models_of_the_same_parameters_are_another_pipeline_run_with_its_own_children(client):
    """As after a change of the code, or on another kind of machine."""
    old = [train(run, model) for run, model in ((FROZEN, "f"), (FINETUNED, "t"))]
    before = score({FROZEN: "f", FINETUNED: "t"})
    new = [train(run, model) for run, model in ((FROZEN, "f2"), (FINETUNED, "t2"))]
    after = score({FROZEN: "f2", FINETUNED: "t2"})
    assert {parent_of(client, run_id) for run_id in old} == {before}
    assert {parent_of(client, run_id) for run_id in new} == {after}
    assert before != after


def test_a_pipeline_run_that_was_never_scored_and_holds_nothing_more_is_gone(client):
    """The frozen model is trained, then the other model's parameters change."""
    frozen = train(FROZEN, "f")
    left = parent_of(client, frozen)
    lrs = {**LRS, FINETUNED: 0.01}
    train(FINETUNED, "t", lrs=lrs)
    found = score({FROZEN: "f", FINETUNED: "t"}, lrs=lrs)
    assert pipelines(client) == {found} == {parent_of(client, frozen)}
    assert left != found


def test_more_seeds_are_another_pipeline_run(client):
    train(FROZEN, "f")
    train(FROZEN, "f", num_seeds=3)
    names = {run.info.run_name for run in runs_in(client, "pipeline run")}
    one, three = "seed 0", "seeds 0 to 2"
    assert names == {f"pyramid · frozen vs fine-tuned · {seeds}" for seeds in (one, three)}


def test_a_parent_that_somebody_chose_by_hand_stays(client):
    own = client.create_run("1").info.run_id
    frozen = train(FROZEN, "f")
    client.set_tag(frozen, parents.PARENT, own)
    client.set_tag(own, "kind", "my favourites")
    train(FINETUNED, "t")
    score({FROZEN: "f", FINETUNED: "t"})
    assert parent_of(client, frozen) == own


def test_the_same_parameters_of_two_people_are_two_pipeline_runs(client, monkeypatch):
    train(FROZEN, "f")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "O'Brien")
    train(FROZEN, "f")
    train(FINETUNED, "t")
    users = [run.data.tags["mlflow.user"] for run in runs_in(client, "pipeline run")]
    assert sorted(users) == ["O'Brien", "ada"]


def test_trials_of_a_sweep_have_one_parent_and_their_trainings_are_within(client):
    for number in range(2):
        experiment = f"sweep-0000000{number}"
        lrs = {**LRS, FINETUNED: 0.001 * (number + 1)}
        child = train(FINETUNED, f"t{number}", lrs=lrs, experiment=experiment)
        trial = client.get_run(parent_of(client, child))
        assert trial.info.run_name.startswith(f"{experiment} · pyramid")
    (sweep,) = runs_in(client, "sweep")
    assert sweep.info.run_name == f"sweep · {COMMIT[:7]}"
    assert sweep.info.status == "FINISHED"
    assert {parent_of(client, run_id) for run_id in pipelines(client)} == {sweep.info.run_id}


def test_a_trial_that_is_scored_only_is_in_its_sweep_too(client, monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "ablation-plain-0123abcd")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", COMMIT)
    train(FROZEN, "f")
    train(FINETUNED, "t")
    found = score({FROZEN: "f", FINETUNED: "t"}, lrs={**LRS, FINETUNED: 0.01})
    (sweep,) = runs_in(client, "sweep")
    assert sweep.info.run_name == f"ablation · {COMMIT[:7]}"
    assert parent_of(client, found) == sweep.info.run_id


@pytest.mark.parametrize(
    ("experiment", "sweep"),
    [
        ("sweep-cbdcecb8", "sweep"),
        ("my-decoders-cbdcecb8", "my-decoders"),
        ("ablation-no-dice-cbdcecb8", "ablation"),
        ("ablation-cbdcecb8", "ablation"),
        ("curve-40-cbdcecb8", "curve"),
        ("puffy-daks", ""),
        ("", ""),
    ],
)
def test_the_name_of_an_experiment_says_of_which_sweep_it_is(experiment, sweep):
    assert parents.sweep_of(experiment) == sweep


def join(project: str, number: int) -> str:
    os.environ["DVC_ROOT"] = project
    database._LOCK_SECONDS = availability.CALL_SECONDS = 300  # however busy the machine is
    lrs = {**LRS, FINETUNED: 0.001 * (number % 2 + 1)}
    return train(FINETUNED, f"t{number}", lrs=lrs, experiment="sweep-01234567")


def test_processes_that_begin_at_once_meet_in_one_parent(project, client):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # loads MLflow once for all of them
    with context.Pool(3) as pool:
        ids = pool.starmap(join, [(str(project), number) for number in range(4)])
    assert len(set(ids) - {""}) == 4
    assert len(runs_in(client, "sweep")) == 1
    assert len(pipelines(client)) == 2


def test_of_two_machines_that_create_the_same_parent_at_once_one_gives_way(client, monkeypatch):
    """On a server there is no lock: the other one's is created between our question and ours."""
    monkeypatch.setattr(store, "alone", contextlib.nullcontext)
    create = MlflowClient.create_run

    def create_later(self, *arguments, **options):
        if options.get("tags", {}).get("kind") == "pipeline run":
            monkeypatch.setattr(MlflowClient, "create_run", create)
            first = {**options, "start_time": options["start_time"] - 5}
            create(self, *arguments, **first)
        return create(self, *arguments, **options)

    monkeypatch.setattr(MlflowClient, "create_run", create_later)
    child = train(FROZEN, "f")
    assert pipelines(client) == {parent_of(client, child)}


def test_a_parent_that_two_machines_created_all_the_same_becomes_one_with_the_scores(client):
    frozen = train(FROZEN, "f")
    other = client.get_run(parent_of(client, frozen))
    double = client.create_run("1", tags=other.data.tags)
    finetuned = train(FINETUNED, "t")
    assert parent_of(client, finetuned) == double.info.run_id
    found = score({FROZEN: "f", FINETUNED: "t"})
    assert pipelines(client) == {found}
    assert {parent_of(client, run_id) for run_id in (frozen, finetuned)} == {found}


def test_a_store_that_fails_at_the_parent_costs_one_warning_and_not_the_training(
    monkeypatch, caplog
):
    def fail(*_, **__):
        raise RuntimeError("no parents today")

    monkeypatch.setattr(parents._Parents, "one", fail)
    with training(FROZEN) as logged:
        logged.log_metrics({"val/jaccard": 0.5}, step=1)
    assert [line.levelname for line in caplog.records] == ["WARNING"]
