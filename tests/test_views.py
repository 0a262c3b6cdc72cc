"""MLflow's pages lead to the answer: the experiment's note, its views, links to both."""

import dataclasses
import json
import re
import shutil
import socket

import pytest
from mlflow.exceptions import MlflowException

from lesionseg.errors import LesionsegError, MissingFileError
from lesionseg.results.layout import RUNS, Results
from lesionseg.tracking import pages, runs, scores, store, views
from tests.mlflow_contents import client_of
from tests.report_inputs import write_report_inputs

pytestmark = pytest.mark.usefixtures("bare_project")


def tags_of(project):
    return client_of(project).get_experiment("1").tags


def states_of(project):
    """The state of each view by its key, and their names."""
    found = {
        key.removeprefix("mlflow.sharedViewState."): json.loads(value)
        for key, value in tags_of(project).items()
        if key.startswith("mlflow.sharedViewState.")
    }
    return {key: json.loads(view["state"]) for key, view in found.items()}


def test_a_new_experiment_has_a_note_whose_links_lead_to_its_views(project_with_store):
    note = tags_of(project_with_store)["mlflow.note.content"]
    linked = re.findall(r"viewStateShareKey=([\w-]+)", note.splitlines()[0])
    assert set(linked) == set(states_of(project_with_store))
    assert len(linked) == 4


def test_what_is_written_fits_into_a_tag(project_with_store):
    assert max(len(value) for value in tags_of(project_with_store).values()) < 5000


def test_a_note_of_somebodys_own_and_a_later_view_stay_and_an_earlier_view_goes(project_with_store):
    client = client_of(project_with_store)
    earlier, later, *_ = (f"mlflow.sharedViewState.{key}" for key in states_of(project_with_store))
    own = {
        "mlflow.note.content": "ours",
        later: json.dumps({"name": "later", "createdAt": views._WRITTEN + 1, "state": "{}"}),
        earlier: json.dumps({"name": "earlier", "createdAt": 1, "state": "{}"}),
    }
    for key, value in own.items():
        client.set_experiment_tag("1", key, value)
    store.connect()
    tags = tags_of(project_with_store)
    assert tags["mlflow.note.content"] == "ours"
    assert json.loads(tags[later])["name"] == "later"
    assert json.loads(tags[earlier])["name"] != "earlier"


def test_who_may_not_describe_the_experiment_gets_runs_all_the_same(
    project_with_store, monkeypatch, caplog
):
    def refuse(*_):
        raise MlflowException("no permission")

    monkeypatch.setattr(views, "describe", refuse)
    with runs.training_run("r", params={}, tags={}, id_path=project_with_store / "id") as run:
        pass
    assert run.run_id
    assert not caplog.records


def test_the_views_show_metrics_that_are_logged(project_with_store):
    write_report_inputs(project_with_store)
    results = Results(project_with_store / "results")
    logged = set(scores.pipeline_scores(results)) | set(scores.training_scores(RUNS[0], results))
    logged |= set(runs.epoch_metrics(dict.fromkeys(runs.EPOCH_METRICS, 0.0)))
    shown = set(re.findall(r"metrics\.`([^`]+)`", json.dumps(states_of(project_with_store))))
    for state in states_of(project_with_store).values():
        for chart in state.get("compareRunCharts", []):
            axes = (chart.get(axis, {}).get("key") for axis in ("xaxis", "yaxis"))
            shown |= {key for key in (chart.get("metricKey"), *axes) if key}
    assert shown <= logged
    assert {"test/jaccard", "difference/jaccard", "val/jaccard"} <= shown


def test_without_runs_the_next_step_is_named(bare_project):
    with pytest.raises(MissingFileError, match=r"holds no runs\. Run: dvc repro$"):
        pages.find_sites(bare_project)


def test_the_demos_runs_are_found_beside_the_projects(project_with_store, monkeypatch):
    with runs.training_run("r", params={}, tags={}, id_path=project_with_store / "id"):
        pass
    (project_with_store / ".demo").mkdir()
    shutil.copytree(project_with_store / "mlruns", project_with_store / ".demo/mlruns")
    with runs.training_run("r", params={}, tags={}, id_path=project_with_store / "other"):
        pass
    before = store.uri()
    own, demo = pages.find_sites(project_with_store)
    assert own.runs == (0, 2)
    assert demo.runs == (0, 1)
    assert store.uri() == before == own.address
    assert demo.address == f"sqlite:///{project_with_store}/.demo/mlruns/mlflow.db"
    assert demo.lines("http://here")[0] == "The demo: 0 pipeline runs, 1 training"
    assert "http://here/#/experiments/1/runs?" in demo.lines("http://here")[1]


def test_the_newest_report_has_a_link(project_with_store):
    client = client_of(project_with_store)
    for number in (1, 2):
        run = client.create_run("1", start_time=number, tags={"report_sha256": "ab"})
    client.create_run("1", start_time=5)
    (site,) = pages.find_sites(project_with_store)
    expected = f"#/experiments/1/runs/{run.info.run_id}/artifacts/report/report.html"
    assert site.newest.partition("?")[0] == expected


def test_a_store_that_cannot_be_used_is_one_line_with_the_command_to_run_again(project_with_store):
    (project_with_store / "mlruns/mlflow.db").write_text("no database " * 999)
    with pytest.raises(LesionsegError, match=r"Move it away .*, then run: lesionseg ui") as caught:
        pages.find_sites(project_with_store)
    assert len(str(caught.value).splitlines()) == 1


def test_runs_on_a_server_need_no_pages_of_ours(project_with_store, monkeypatch, capsys):
    (site,) = pages.find_sites(project_with_store)
    there = dataclasses.replace(site, address="https://mlflow.example.org/")
    monkeypatch.setattr(pages, "find_sites", lambda root: [there])
    pages.show(project_with_store)
    lines = capsys.readouterr().out.splitlines()
    assert "https://mlflow.example.org/#/experiments/1/runs?" in lines[1]
    assert "Ctrl-C" not in lines[-1]


def test_a_server_that_does_not_start_is_one_line(project_with_store):
    (site,) = pages.find_sites(project_with_store)
    broken = dataclasses.replace(site, address="none://")
    with (
        pytest.raises(LesionsegError, match="server does not start") as caught,
        pages.serve([broken], port=5700),
    ):
        pass
    assert len(str(caught.value).splitlines()) == 1


def test_a_port_that_is_taken_is_passed_over():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert pages._free_port(port) > port
