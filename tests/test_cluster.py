"""Trials on two nodes of a cluster: each counts once, whatever ends in the middle."""

import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from cluster_world import ADDRESS, NODES, World, end, skip_without_namespaces
from fake_pipeline import call, experiments, trainings

from lesionseg.errors import INTERRUPTED
from lesionseg.results.layout import FINETUNED, RUNS

skip_without_namespaces()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two nodes and a server."""
    world = World(tmp_path_factory.mktemp("c"))
    try:
        world.start_server()
        world.start_head()
        world.start_node()
        yield world
    finally:
        world.close()


def sweep(values):
    return ("sweep", "--grid", f"model.dropout={values}", "--cluster", ADDRESS)


def num_running(world):
    return sum((stage, status) == (FINETUNED, "RUNNING") for stage, _, status in world.runs())


def wait_until_idle(world, *, seconds=300):
    """Return when no stage and no DVC runs in the namespace."""
    deadline = time.monotonic() + seconds
    while left := world.stages():
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def statuses(world, output, value):
    """How often each model's training of a trial has which status in MLflow."""
    name = re.search(rf"(sweep-\w{{8}}) +{value} ", output)[1]
    return Counter((stage, status) for stage, trial, status in world.runs() if trial == name)


@pytest.fixture(scope="module")
def with_a_killed_node(world):
    """Three trials, one of them failing by itself, one losing its node: status, output, errors."""
    world.hold(f"{FINETUNED}-0.2", f"{FINETUNED}-0.25")
    process = world.lesionseg(*sweep("0.2,0.25,0.6"))
    world.wait_for(lambda: num_running(world) == 2, process)
    before = len(world.stages())
    world.kill_node(NODES[1])
    # While the other node goes on with its own trial, nothing is left of this one's.
    world.wait_for(lambda: len(world.stages()) <= before / 2, process)
    world.hold()
    output, errors = process.communicate(timeout=600)
    return process.returncode, output, errors


def test_a_trial_whose_node_is_killed_is_run_on_another_node(world, with_a_killed_node):
    status, output, errors = with_a_killed_node
    assert "3 trials: 2 finished, 1 failed" in output
    assert len(re.findall(r"sweep-\w{8}: its node was lost \(\w+\), attempt 1", errors)) == 1
    assert status == 1  # for the third
    assert re.search(
        r"Take it over:  dvc exp pull origin (sweep-\w{8}) && dvc exp apply \1", output
    )


def test_it_is_one_experiment_and_each_of_its_trainings_one_finished_run(world, with_a_killed_node):
    _, output, _ = with_a_killed_node
    remote = experiments(world.folder / "remote.git")
    assert sorted(remote) == sorted(experiments(world.project))
    assert len(remote) == 2
    for value in ("0.2", "0.25"):
        found = statuses(world, output, value)
        assert {stage: found[stage, "FINISHED"] for stage in RUNS} == dict.fromkeys(RUNS, 1)
        assert not any(status == "RUNNING" for _, status in found)
    wait_until_idle(world)


def test_a_trials_own_error_is_not_tried_again(world, with_a_killed_node):
    _, output, _ = with_a_killed_node
    failed = re.search(r"FAILED sweep-\w{8}: model.dropout=0.6\n +(.*)\n +its log: (.*)", output)
    assert failed[1] == "so much dropout is too much"
    assert "error: so much dropout is too much" in Path(failed[2]).read_text()
    assert trainings(world.project).count("train_frozen 0.6") == 1


@pytest.mark.parametrize(("deadly", "value"), [(signal.SIGKILL, "0.3"), (signal.SIGINT, "0.32")])
def test_after_the_driver_was_ended_nothing_runs_and_the_same_command_goes_on(
    world, with_a_killed_node, deadly, value
):
    world.hold(f"{FINETUNED}-{value}")
    process = world.lesionseg(*sweep(f"0.2,{value}"))
    world.wait_for(lambda: num_running(world) == 1, process)
    end(process, deadly)
    _, errors = process.communicate()
    if deadly == signal.SIGINT:
        assert process.returncode == INTERRUPTED
        assert errors.splitlines()[-1] == "interrupted. Run the same command again to go on"
    wait_until_idle(world)
    world.hold()
    status, output, errors = world.run(sys.executable, "-m", "lesionseg", *sweep(f"0.2,{value}"))
    assert status == 0, errors
    assert "2 trials: 2 finished (1 before)" in output
    found = statuses(world, output, value)
    assert {stage: found[stage, "FINISHED"] for stage in RUNS} == dict.fromkeys(RUNS, 1)
    assert not any(status == "RUNNING" for _, status in found)


def test_a_hopeless_trial_is_stopped_on_its_node_and_its_run_ends(world):
    world.hold(f"{FINETUNED}-0.45")  # which no time would end
    options = ("--set", "train.epochs=2", "--jobs", "1", "--pruner", "asha")
    for finished in ("1 finished", "1 finished (1 before)"):
        process = world.lesionseg(*sweep("0.2,0.45"), *options)
        output, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        assert f"2 trials: {finished}, 1 stopped early" in output
        wait_until_idle(world)
    world.hold()
    assert re.search(r"after 1 of 2 epochs: best val jaccard 0.550; the best 1 of 2", output)
    name = re.search(r"STOPPED EARLY (\S+):", output)[1]
    found = [(stage, status) for stage, trial, status in world.runs() if trial == name]
    assert found == [(FINETUNED, "KILLED")]  # it is judged first: the other was never trained


def test_trials_finish_without_the_tracking_server(world, with_a_killed_node):
    away = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5999"}
    status, output, errors = world.run(sys.executable, "-m", "lesionseg", *sweep("0.35"), **away)
    assert (status, "1 trial: 1 finished" in output) == (0, True), errors


def test_without_a_token_there_is_one_line(world):
    command = ("env", "--unset=RAY_AUTH_TOKEN", f"HOME={world.folder}", sys.executable)
    status, _, errors = world.run(*command, "-m", "lesionseg", *sweep("0.2"))
    assert status == 1
    assert re.fullmatch(r"error: there is no token for the cluster.*docs/team.md\)\n", errors)


def test_a_commit_that_is_not_pushed_is_refused_before_work(world, with_a_killed_node):
    before = trainings(world.project)
    call(world.project, "git", "commit", "--quiet", "--allow-empty", "--message", "mine alone")
    try:
        status, _, errors = world.run(sys.executable, "-m", "lesionseg", *sweep("0.4"))
    finally:
        call(world.project, "git", "reset", "--quiet", "--hard", "HEAD~1")
    assert status == 1
    assert re.search(r"error: node 127.0.0.2: git fetch.*Push the commit", errors.splitlines()[-1])
    assert trainings(world.project) == before


def test_an_ablation_reads_its_scores_from_the_remote(world, with_a_killed_node):
    (world.project / "mine.yaml").write_text("small: {what: less, set: [model.dropout=0.15]}\n")
    ablation = ("ablation", "--file", "mine.yaml", "--seeds", "2", "--cluster", ADDRESS)
    status, output, errors = world.run(sys.executable, "-m", "lesionseg", *ablation)
    assert status == 0, errors
    assert re.search(r"\| `small` \|.*\| 0.845 ±0.007 \| 0.745 ±0.007 \|", output)


def test_a_learning_curve_reads_its_scores_from_the_remote(world, with_a_killed_node):
    call(world.project, "dvc", "repro", "preprocess")  # which says how many images there are
    curve = ("curve", "--sizes", "20,40", "--seeds", "2", "--cluster", ADDRESS)
    status, _, errors = world.run(sys.executable, "-m", "lesionseg", *curve)
    assert status == 0, errors
    table = (world.project / "results/curve/curve.csv").read_text()
    assert len(table.splitlines()) > 2 * 2 * 2  # of two sizes, two seeds and two models


def test_a_search_proposes_on_a_cluster_what_it_proposes_here(world, with_a_killed_node):
    search = ("sweep", "--search", "model.dropout=0.1..0.3", "--sampler", "random", "--trials", "2")
    planned = world.run(sys.executable, "-m", "lesionseg", *search, "--dry-run")[1]
    status, output, errors = world.run(
        sys.executable, "-m", "lesionseg", *search, "--cluster", ADDRESS
    )
    assert status == 0, errors
    assert "2 trials: 2 finished" in output
    names = set(re.findall(r"sweep-\w{8}", planned))
    assert len(names) == 2
    assert names <= set(re.findall(r"sweep-\w{8}", output))


def test_with_a_shared_folder_of_checkpoints_another_node_goes_on_with_the_same_run(
    world, with_a_killed_node
):
    """A training that had begun is not begun again: it stays one run."""
    world.start_node(3)
    shared = ("--checkpoints", str(world.folder / "checkpoints"))
    world.hold(f"{FINETUNED}-0.21", f"{FINETUNED}-0.22")
    process = world.lesionseg(*sweep("0.21,0.22"), *shared)
    world.wait_for(lambda: num_running(world) == 2, process)
    world.kill_node(NODES[2])
    world.wait_for(lambda: num_running(world) == 1, process)
    world.hold()
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert len(re.findall(r"its node was lost", errors)) == 1
    for value in ("0.21", "0.22"):
        assert statuses(world, output, value) == {(stage, "FINISHED"): 1 for stage in RUNS}


def test_where_the_head_is_lost_the_command_ends_with_one_line_and_no_orphan(
    world, with_a_killed_node
):
    """The last one: there is no cluster after it."""
    world.hold(f"{FINETUNED}-0.23")
    process = world.lesionseg(*sweep("0.23"))
    world.wait_for(lambda: num_running(world) == 1, process)
    world.kill_node(NODES[0])
    world.kill_head()
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("error: the cluster is gone")
    assert "Traceback" not in errors
    wait_until_idle(world)
    world.hold()
