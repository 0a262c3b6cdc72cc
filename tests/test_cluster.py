"""Trials on two nodes of a cluster: each is run once, whatever ends in the middle."""

import signal

import pytest
from cluster_world import ADDRESS, NODES, World, end, skip_without_namespaces
from fake_pipeline import call, experiments, trainings

from lesionseg.results.layout import RUNS

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


def sweep(values, *options):
    return ("sweep", "--grid", f"model.dropout={values}", "--cluster", ADDRESS, *options)


def test_a_trial_whose_node_is_killed_is_run_on_another_and_counts_once(world):
    world.slow({"train_finetuned-0.2": 40, "train_finetuned-0.25": 40})
    process = world.lesionseg(*sweep("0.2,0.25"))
    running = ("RUNNING", "RUNNING")
    world.wait_for(
        lambda: tuple(s for stage, _, s in runs_of(world) if stage == RUNS[1]) == running, process
    )
    world.slow({})
    world.kill_node(NODES[1])
    output, errors = process.communicate(timeout=300)
    print(output, errors)
    assert process.returncode == 0, errors
    assert "2 trials: 2 finished" in output


def runs_of(world):
    try:
        return world.runs()
    except Exception:
        return []
