"""`make demo` says where it is, and ends with what came out and what to do next."""

import json
import re
from pathlib import Path

import pytest

from experiments import demo
from lesionseg.config import read_yaml
from lesionseg.files import sha256, write_bytes, write_json
from lesionseg.hardware import processor
from lesionseg.results.evaluation import Comparison
from lesionseg.results.layout import RUNS, Results
from tests.pages import ROOT
from tests.trained_results import write_evaluation

STAGES = {name: stage["desc"] for name, stage in read_yaml(ROOT / "dvc.yaml")["stages"].items()}


def test_before_each_stage_a_terminal_is_told_which_one_begins(capsys):
    progress = demo.Progress(STAGES, is_shown=True)
    for name in STAGES:
        progress.hear(f"Running stage '{name}':\n")
        progress.hear("> python -m stages\n")
    text = capsys.readouterr().out
    assert re.findall(r"Stage (\d) of (\d): ", text) == [
        (str(number), str(len(STAGES))) for number in range(1, len(STAGES) + 1)
    ]
    for name, what in STAGES.items():
        assert text.index(what) < text.index(f"Running stage '{name}':\n> python -m stages\n")
    assert progress.ran == list(STAGES)


def test_elsewhere_it_passes_on_what_dvc_says_and_no_more(capsys):
    progress = demo.Progress(STAGES, is_shown=False)
    lines = ["Running stage 'download':\n", "Stage 'preprocess' didn't change, skipping\n"]
    for line in lines:
        progress.hear(line)
    assert capsys.readouterr().out == "".join(lines)


def test_what_is_left_is_told_from_what_has_run_and_how_long_it_took():
    progress = demo.Progress(
        {"download": "Images.", "train_frozen": "Model 1.", "other": "More."}, is_shown=True
    )
    assert progress.heading("download", seconds=1) == "\nStage 1 of 3: Images.\n"
    progress.ran = ["download"]
    left = (demo.SHARES["train_frozen"] + demo.SHARE) / demo.SHARES["download"]
    assert progress.heading("train_frozen", seconds=60) == (
        f"\nStage 2 of 3: Model 1. About {left:.1f} minutes left.\n"
    )
    progress.ran = []  # it was up to date: nothing is known of this machine
    assert "left" not in progress.heading("train_frozen", seconds=60)


def test_the_share_of_each_stage_is_known():
    assert set(demo.SHARES) <= set(STAGES)


def write_models(folder):
    """Results with two files in the place of models."""
    results = Results(folder / "results")
    for run in RUNS:
        model = results.training(run).model
        model.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(model, run.encode())
    return results


def run_demo(folder, monkeypatch, *lines):
    """The demo where DVC says these lines; results lie there."""
    (folder / ".dvc").mkdir(exist_ok=True)
    write_models(folder)
    write_evaluation(folder)
    monkeypatch.setattr(demo, "copy_pipeline", lambda _: None)
    monkeypatch.setattr(demo, "DVC", ["printf", "".join(f"{line}\\n" for line in lines)])
    demo.main(["--dir", str(folder)])


def test_its_last_lines_are_the_report_and_three_next_steps(tmp_path, monkeypatch, capsys):
    run_demo(tmp_path, monkeypatch, "Running stage 'report':")
    said, _, end = capsys.readouterr().out.partition("\nOpen the report: ")
    assert end.startswith(f"{tmp_path}/results/report/report.html\n")
    assert re.findall(r"(?m)^  (\d)\. ", end) == ["1", "2", "3"]
    assert "mean over" not in said  # the stage `report` ends with that table


def test_the_table_is_shown_too_where_nothing_had_to_run(tmp_path, monkeypatch, capsys):
    run_demo(tmp_path, monkeypatch, "Data and pipelines are up to date.")
    table = Comparison.read(Results(tmp_path / "results").evaluation).lines()
    assert "\n".join(table) in capsys.readouterr().out


def test_the_steps_name_what_there_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = demo.ending(Results(tmp_path / ".demo/results"))
    assert "--model .demo/results/train_finetuned/model.pt" in text
    assert all((ROOT / page).exists() for page in re.findall(r"docs/\S+", text))
    assert demo.shown(Path("/elsewhere/model.pt")) == "/elsewhere/model.pt"


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, f"the same bytes as on {processor()} (docs/results.md)"),
        ({"torch": "1.0"}, "docs/results.md has those of torch 1.0, and this is "),
        ({"other": "code"}, "not those of docs/results.md, which says what they depend on"),
    ],
)
def test_its_last_line_compares_the_models_with_those_of_other_machines(
    tmp_path, monkeypatch, changes, verdict
):
    results = write_models(tmp_path)
    monkeypatch.setattr(demo, "KNOWN", tmp_path / "demo.json")
    write_json(demo.KNOWN, {"torch": "", "models": {}, "seen_on": ["of old"]})
    demo.record(results)
    known = json.loads(demo.KNOWN.read_text())
    assert known["seen_on"] == [processor()]
    if changes:
        write_json(demo.KNOWN, known | {"models": {}} | changes)
    text = demo.compared_models(results)
    assert f"SHA-256 of the models: {verdict}" in text
    for run in RUNS:
        assert sha256(results.training(run).model) in text


def test_a_processor_that_trained_the_same_joins_the_others(tmp_path, monkeypatch):
    results = write_models(tmp_path)
    monkeypatch.setattr(demo, "KNOWN", tmp_path / "demo.json")
    write_json(demo.KNOWN, {"models": demo.digests(results), "seen_on": ["Zilog Z80"]})
    demo.record(results)
    seen = json.loads(demo.KNOWN.read_text())["seen_on"]
    assert sorted(seen) == sorted(["Zilog Z80", processor()])


def test_the_table_has_both_means_their_difference_and_its_interval(tmp_path):
    write_evaluation(tmp_path)
    first, header, *rows = Comparison.read(Results(tmp_path / "results").evaluation).lines()
    assert first == "mean over 20 test images"
    assert header.split() == ["frozen", "fine-tuned", "difference", "95", "%", "interval"]
    assert rows[0].split() == ["jaccard", "0.710", "0.720", "+0.010", "+0.000", "to", "+0.020"]
    assert max(map(len, [header, *rows])) <= 100
