"""What MLflow's pages show first: the experiment's note, its saved views, and links to both.

A saved view is a tag of the experiment: the columns, filters and charts of its page of runs, as
MLflow 3.17 writes them for its button 'Views'. A link opens a view directly.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from lesionseg.tracking.scores import MAIN

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

NOTE = "mlflow.note.content"
_VIEW, _KIND = "mlflow.sharedViewState.", "mlflow.experimentKind"
# In milliseconds since 1970. A view with an earlier date is rewritten, one with a later date stays.
_WRITTEN = 1_795_910_400_000
_TEST, _DIFFERENCE = f"test/{MAIN}", f"difference/{MAIN}"
_TABLE = "table"
_WORKFLOW = {"workflowType": "machine_learning"}  # rather than the pages for language models
REPORT = "report"  # the folder of a pipeline run's artefacts that holds its page
# The name and the meaning of each view.
_VIEWS = {
    "models": (
        "Frozen or fine-tuned",
        "test jaccard of every training, in the colour of its model",
    ),
    "means": (
        "Means by decoder",
        "the same, averaged over the trainings of each decoder and model",
    ),
    "differences": (
        "Differences",
        "fine-tuned minus frozen, of every pipeline run",
    ),
    _TABLE: (
        "Table of pipeline runs",
        "the same with intervals; unfold a run for the trainings of both models",
    ),
}
_ELSEWHERE = """The page of a pipeline run begins with a link to its report, and its answer.
Few numbers are metrics here; all others are in the artefacts, as files."""


def describe(client: "MlflowClient", experiment: "Experiment") -> None:
    """Give an experiment its note, unless it has one, and its views, unless they are newer."""
    experiment_id, tags = str(experiment.experiment_id), experiment.tags
    wanted = {NOTE: note(experiment_id), _KIND: "custom_model_development"}
    new = {key: value for key, value in wanted.items() if key not in tags}
    for name, state in _states().items():
        key = _VIEW + _key(name)
        if _written(tags.get(key)) < _WRITTEN:
            new[key] = _view(_VIEWS[name][0], state)
    for key, value in new.items():
        client.set_experiment_tag(experiment_id, key, value)


def note(experiment_id: str) -> str:
    """The experiment's note as Markdown: where to look.

    MLflow shows its first line, and the rest on demand; it keeps line breaks.
    """
    addresses = links(experiment_id)
    first = " · ".join(f"[{title}]({addresses[name]})" for name, (title, _) in _VIEWS.items())
    rest = [f"- **{title}**: {meaning}" for title, meaning in _VIEWS.values()]
    return "\n".join([first, "", *rest, "", _ELSEWHERE])


def links(experiment_id: str) -> dict[str, str]:
    """Addresses of the views within MLflow's pages: `models`, `means`, `differences`, `table`."""
    return {name: link(experiment_id, viewStateShareKey=_key(name)) for name in _VIEWS}


def report_link(experiment_id: str, run_id: str) -> str:
    """The address of a pipeline run's report within MLflow's pages."""
    run = f"#/experiments/{experiment_id}/runs/{run_id}"
    return f"{run}/artifacts/{REPORT}/report.html?{urlencode(_WORKFLOW)}"


def link(experiment_id: str, **query: str) -> str:
    """The address of the experiment's runs within MLflow's pages: charts, except for the table."""
    is_table = query.get("viewStateShareKey") == _key(_TABLE)
    mode = {} if is_table else {"compareRunsMode": "CHART"}
    parts = urlencode({**_WORKFLOW, **mode, **query})
    return f"#/experiments/{experiment_id}/runs?{parts}"


def _key(name: str) -> str:
    return f"lesionseg-{name}"


def _written(value: str | None) -> int:
    """When a view was written; 0 if missing or unreadable."""
    try:
        return int(json.loads(value or "")["createdAt"])
    except (ValueError, KeyError, TypeError):
        return 0


def _view(name: str, state: Mapping[str, Any]) -> str:
    """The tag's value: JSON with the state as JSON text inside."""
    written = {"name": name, "createdAt": _WRITTEN, "updatedAt": _WRITTEN}
    return json.dumps({**written, "state": json.dumps(state, separators=(",", ":"))})


def _states() -> dict[str, dict[str, Any]]:
    """The page's state in each of `_VIEWS`."""
    trainings = _search("tags.kind = 'training'", order=_TEST)
    pipelines = _search("tags.kind = 'pipeline run'", order=_DIFFERENCE)
    of_models = [_bars(_TEST), _bars(f"test_own_size/{MAIN}"), _lines(f"val/{MAIN}")]
    groups = [{"mode": "param", "groupByData": name} for name in ("model.decoder", "encoder")]
    return {
        "models": {**trainings, **_charts("Frozen or fine-tuned?", of_models)},
        "means": {
            **trainings,
            **_charts("Means by decoder and model", of_models),
            "groupBy": {"aggregateFunction": "average", "groupByKeys": groups},
        },
        "differences": {
            **pipelines,
            **_charts("Fine-tuned minus frozen", [_bars(_DIFFERENCE), _against_each_other()]),
        },
        # Sorted by time, MLflow leaves trainings within their pipeline runs.
        _TABLE: {**_search("", order=""), **_columns()},
    }


def _search(query: str, *, order: str) -> dict[str, Any]:
    """Which runs to show, and the metric to sort them by; without one, they are sorted by time."""
    key = f"metrics.`{order}`" if order else "attributes.start_time"
    return {"searchFilter": query, "orderByKey": key, "orderByAsc": False}


def _charts(title: str, charts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A section of charts, above those that MLflow makes for all metrics."""
    section = {"uuid": "lesionseg", "name": title, "display": True, "isReordered": True}
    common = {"metricSectionId": "lesionseg", "deleted": False, "isGenerated": False}
    return {
        "compareRunSections": [{**section, "deleted": False, "isGenerated": False}],
        "compareRunCharts": [
            {"uuid": f"lesionseg-{number}", **common, **chart}
            for number, chart in enumerate(charts)
        ],
        "isAccordionReordered": True,
        "runsHiddenMode": "FIRST_20_RUNS",
    }


def _bars(metric: str) -> dict[str, Any]:
    return {"type": "BAR", "metricKey": metric, "displayName": metric, "runsCountToCompare": 20}


def _lines(metric: str) -> dict[str, Any]:
    chart = {"type": "LINE", "metricKey": metric, "selectedMetricKeys": [metric]}
    axes = {"xAxisKey": "step", "yAxisKey": "metric", "useGlobalXaxisKey": True}
    scale = {"scaleType": "linear", "xAxisScaleType": "linear", "ignoreOutliers": False}
    smooth = {"lineSmoothness": 0, "useGlobalLineSmoothing": True}
    keys = {"selectedXAxisMetricKey": "", "selectedYAxisMetricKey": ""}
    return {**chart, **axes, **scale, **smooth, **keys, "displayName": metric}


def _against_each_other() -> dict[str, Any]:
    """Each pipeline run as a point: test jaccard of the frozen and of the fine-tuned model."""
    return {
        "type": "SCATTER",
        "xaxis": {"key": f"frozen/{MAIN}", "type": "METRIC"},
        "yaxis": {"key": f"fine-tuned/{MAIN}", "type": "METRIC"},
        "runsCountToCompare": 100,
    }


def _columns() -> dict[str, Any]:
    """The table's columns in their order, with the name wide enough to read."""
    metrics = [_DIFFERENCE, f"{_DIFFERENCE}_low", f"{_DIFFERENCE}_high"]
    metrics += [f"frozen/{MAIN}", f"fine-tuned/{MAIN}", _TEST]
    shown = [f"metrics.`{metric}`" for metric in metrics]
    shown += ["tags.`data_source`", "tags.`encoder_start`", "attributes.`User`"]
    name = "attributes.`Run Name`"
    return {
        "selectedColumns": shown,
        "columnOrder": [name, "runDateAndNestInfo", *shown],
        "columnWidths": {name: 330, "runDateAndNestInfo": 150, **dict.fromkeys(shown, 165)},
    }
