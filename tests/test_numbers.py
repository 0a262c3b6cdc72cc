"""README is short, and the numbers of the pages are those of the files in docs/results/."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs import fill_numbers
from lesionseg.results.evaluation import Comparison
from lesionseg.results.layout import Results
from tests.report_inputs import write_report_inputs

ROOT = Path(__file__).parents[1]
ABOUT = ["--machine", "a machine", "--date", "2027-01-31"]
# A score: three digits behind the point. 0.65 is a threshold.
SCORE = r"\d\.\d{3}\b"
# What looks measured: a time, a size, a share, a factor, a score.
UNITS = r"(ms|s|min|minutes?|seconds?|hours?|[kKMG]i?B(/s)?|GFLOP/s|images/s|%|x|times)"
FIGURE = re.compile(
    rf"(?<![\w.,/-])\d[\d,.]*( to \d[\d,.]*)? ?{UNITS}(?!\w)|(?<![\w.])0\.\d\d+(?!\.?\d)"
)
# Figures that may be typed, each with its reason.
TYPED = {
    **dict.fromkeys(
        [("accuracy.md", figure) for figure in ("0.92", "0.87", "0.925", "0.015")],
        "the goals, which were set before anything was measured",
    ),
    **dict.fromkeys(
        [("accuracy.md", one) for one in ("0.850", "0.858", "0.914", "0.919", "15 %", "0.86")],
        "published by others, and what follows from it",
    ),
    **dict.fromkeys(
        [("data.md", "840 MB"), ("data.md", "10 GB")], "the size of ISIC's archives, as published"
    ),
    **dict.fromkeys(
        [("export.md", "0.999"), ("export.md", "0.98")],
        "the gate's bounds: tests/test_export.py compares",
    ),
    ("log.md", "0.99"): "a setting of what was tried",
    **dict.fromkeys(
        [
            ("accuracy.md", "0.65"),
            ("files.md", "0.65"),
            ("results.md", "0.65"),
            ("results.md", "95 %"),
            ("results.md", "1 %"),
        ],
        "how scores and intervals are defined",
    ),
    ("serving.md", "60 seconds"): "MLflow's own default",
    ("team.md", "50 MB"): "advice",
}


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A copy of docs/results/, and pages of which there are none."""
    store = tmp_path / "store"
    shutil.copytree(fill_numbers.STORE, store)
    monkeypatch.setattr(fill_numbers, "STORE", store)
    monkeypatch.setattr(fill_numbers, "PAGES", [])
    return store


def test_the_readme_has_at_most_1200_words():
    assert len((ROOT / "README.md").read_text().split()) <= 1200


@pytest.mark.parametrize("page", fill_numbers.PAGES, ids=lambda page: page.name)
def test_a_page_has_the_numbers_of_the_files(page):
    text = page.read_text(encoding="utf-8")
    assert fill_numbers.fill(text) == text, "Run: make docs-numbers"
    assert text.count("<!-- numbers: ") == text.count("<!-- /numbers -->")


@pytest.mark.parametrize("name", ["README.md", "docs/results.md"])
def test_no_score_is_typed_into_a_page_of_results(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert re.search(SCORE, text)
    assert re.findall(SCORE, fill_numbers.BLOCK.sub("", text)) == []


def figures(text):
    """What looks measured in the sentences and typed tables of a page."""
    text = re.sub(r"(?ms)^```.*?^```$", " ", fill_numbers.BLOCK.sub(" ", text))
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|<[^>]*>", " ", text)
    return [found[0] for found in FIGURE.finditer(text)]


@pytest.mark.parametrize("page", fill_numbers.PAGES, ids=lambda page: page.name)
def test_no_measured_figure_is_typed(page):
    typed = [one for one in figures(page.read_text("utf-8")) if (page.name, one) not in TYPED]
    assert typed == [], "take them from docs/results/ (docs/fill_numbers.py), or say it in words"


def test_each_figure_that_may_be_typed_is_there():
    found = {(page.name, one) for page in fill_numbers.PAGES for one in figures(page.read_text())}
    assert sorted(TYPED.keys() - found) == []


@pytest.mark.parametrize(
    "text",
    [
        "took 12 s",
        "of 0.853",
        "is 4.6x as fast",
        "38 MB",
        "17 %",
        "3 to 8 seconds",
        "1,757 MB",
        "+0.013",
    ],
)
def test_what_looks_measured_is_found(text):
    assert len(figures(f"It {text} here.")) == 1


@pytest.mark.parametrize(
    "text",
    [
        "Python 3.11",
        "128x128 pixels",
        "a 3x3 convolution",
        "`train.lr=0.003`",
        "in 18 of 305 images",
        "<!-- numbers: answer -->0.853<!-- /numbers -->",
        "```text\n0.853\n```",
        "[a link](https://example.org/0.853)",
    ],
)
def test_what_does_not_is_left_alone(text):
    assert figures(f"It says\n{text}\nhere.") == []


def test_it_needs_nothing_but_python():
    command = [sys.executable, "-I", "-S", ROOT / "docs/fill_numbers.py", "--help"]
    assert "docs/results/" in subprocess.check_output(command, text=True)


def test_a_run_takes_the_place_of_the_numbers(store, tmp_path):
    write_report_inputs(tmp_path, num_seeds=3, num_views=2)
    results = Results(tmp_path / "results")
    clinic = results.evaluation.folder / "external/clinic"
    clinic.mkdir(parents=True)
    shutil.copy(results.evaluation.comparison, clinic)
    fill_numbers.main(["results", str(results.root), "--data", "seven phantoms", *ABOUT])
    row = Comparison.read(results.evaluation).test["jaccard"]
    answer = fill_numbers.answer()
    assert f"on 7 test images: {row.train_frozen:.3f} frozen" in answer
    assert f"a difference of {row.difference:+.3f}**" in answer
    assert "Over 3 trainings" in answer
    assert f"({row.interval[0]:+.3f} to {row.interval[1]:+.3f})" in fill_numbers.metrics()
    assert "2027-01-31 at commit `0123456789abcdef" in fill_numbers.about("answer")
    assert "seven phantoms; a machine, bfloat16" in fill_numbers.about("answer")
    assert "| `ensemble+tta` | 3 | 2 |" in fill_numbers.variants()
    assert f"| `clinic` | 7 | {row.train_frozen:.3f} (" in fill_numbers.external()
    assert "| smooth | " in fill_numbers.outline()
    assert "of 7 frozen" in fill_numbers.beside()
    assert fill_numbers.read("ablation") == json.loads(
        (fill_numbers.ROOT / "docs/results/ablation.json").read_text()
    )


def test_a_run_of_one_seed_says_nothing_of_seeds(store, tmp_path):
    write_report_inputs(tmp_path, num_seeds=1)
    fill_numbers.main(["results", str(tmp_path / "results"), "--data", "phantoms", *ABOUT])
    assert "trainings" not in fill_numbers.answer()


def test_an_ablation_is_taken_over_with_differences_seed_by_seed(store, tmp_path):
    write_report_inputs(tmp_path)
    values = {"default": (0.80, 0.84), "plain": (0.78, 0.80)}
    lines = ["name,run,seed,val_jaccard,test_jaccard,test_dice,seconds"]
    for name, means in values.items():
        for run, mean in zip(fill_numbers.RUNS, means, strict=True):
            for seed in (0, 1):
                lines.append(f"{name},{run},{seed},{mean},{mean + seed / 100},{mean},{20 - seed}")
    (tmp_path / "results/ablation.csv").write_text("\n".join(lines))
    fill_numbers.main(["results", str(tmp_path / "results"), "--data", "phantoms", *ABOUT])
    default, plain = fill_numbers.read("ablation")["rows"]
    assert default["what"] == "nothing"  # as before: the values do not say it
    assert default["difference"]["jaccard"] == pytest.approx([0.04, 0.0])
    assert plain["train_finetuned"]["to_base"] == pytest.approx([-0.04, 0.0])
    assert plain["train_frozen"]["test_jaccard"] == pytest.approx([0.785, 0.00707], abs=1e-5)
    table = fill_numbers.decoders("plain,default")
    assert "| fine-tuned | 0.845 ±0.007 | 0.840 ±0.000 | 0.840 ±0.000 | 19 s |" in table
    assert "**+0.040 ±0.000**" in table


def test_a_table_that_a_command_printed_takes_the_place_of_one(store, tmp_path):
    printed = "load average 0.1\n\n| command | s |\n| --- | ---: |\n| dvc --version | 0.20 |\n"
    (tmp_path / "out.md").write_text(printed)
    command = ["table", "accuracy.val", str(tmp_path / "out.md"), "--commit", "c0ffee", *ABOUT]
    fill_numbers.main(command)
    assert f"\n\n{fill_numbers.table('accuracy.val')}\n" in printed
    assert "at commit `c0ffee`" in fill_numbers.about("tables/accuracy.val")
    with pytest.raises(SystemExit, match=r"no table is called other; there are accuracy"):
        fill_numbers.main(["table", "other", str(tmp_path / "out.md"), *ABOUT])


def test_benchmarks_take_the_place_of_those_of_their_kind(store, tmp_path):
    def measured(kind, **pages):
        content = {"machine": {"kind": kind}, "heading": f"{kind}, idle\n", "pages": pages}
        (tmp_path / "benchmarks.json").write_text(json.dumps(content))
        fill_numbers.main(["speed", str(tmp_path / "benchmarks.json")])

    fill_numbers.write("speed", {})
    measured("old", training=["| a |", "note"], startup=["| b |"])
    measured("new", training=["| c |"])
    measured("old", training=["| d |"])
    assert fill_numbers.speed("training") == "*old, idle*\n\n| d |\n\n*new, idle*\n\n| c |"
    assert fill_numbers.speed("startup") == "*old, idle*\n\n| b |"


def test_sentences_of_the_ablation_are_made_of_its_numbers(store):
    content = fill_numbers.read("ablation")
    plain, change = (
        next(row for row in content["rows"] if row["name"] == name) for name in ("plain", "lovasz")
    )
    plain["train_frozen"]["val_jaccard"] = [0.8, 0.01]
    fill_numbers.write("ablation", content)
    assert fill_numbers.score("plain,train_frozen,val_jaccard") == "0.800 ±0.010"
    assert "`lovasz` (frozen)" in fill_numbers.changes()
    for row in content["rows"]:
        for run in fill_numbers.RUNS:
            row[run]["val_jaccard"] = [0.5, 0.0]
            row[run]["seconds"] = 3600 / len(content["rows"])
    change["train_finetuned"]["to_base"] = [0.123, 0.0]
    fill_numbers.write("ablation", content)
    assert fill_numbers.changes().endswith("digits: none. The largest gain on test is +0.123.")
    assert fill_numbers.hours() == "6.0 hours"  # two models, three seeds


def test_sentences_of_the_answer_are_made_of_its_numbers(store):
    content = fill_numbers.read("answer")
    for row in content["variants"]:
        row["jaccard"] = {"single": 0.5, "tta": 0.75}.get(row["variant"], 0.9)
    content["limits"]["pixel_larger"] = 0.4321
    fill_numbers.write("answer", content)
    assert "frozen model by +0.250, and" in fill_numbers.views()
    assert fill_numbers.limit("pixel_larger") == "0.432"


def test_numbers_of_the_code_are_those_that_it_computes_with():
    from lesionseg.serving.limits import Limits
    from lesionseg.tracking import availability

    body = fill_numbers.code("src/lesionseg/serving/limits.py,max_body,1e6")
    assert float(body) * 1e6 == Limits().max_body
    both = "src/lesionseg/tracking/availability.py,_ALL_SECONDS"  # two in one line
    assert float(fill_numbers.code(both)) == availability._ALL_SECONDS
    with pytest.raises(KeyError, match="_NONE"):
        fill_numbers.code("src/lesionseg/tracking/availability.py,_NONE")


def test_recipes_say_when_and_how_long_they_ran(store):
    one = {"date": "2027-01-31", "commit": "c0ffee123456", "machine": "a machine"}
    records = {
        "page.a": {**one, "load_average": [0.4, 2.6], "seconds": 5.2, "commands": []},
        "page.b": {**one, "load_average": [9.7, 3.0], "seconds": 61.0, "commands": []},
        "other.c": {**one, "load_average": [50, 50], "seconds": 99.0, "commands": []},
    }
    records["page.a"]["commands"] = [
        {"command": "cd a", "output": ""},
        {"command": "ls", "output": "\nb"},
    ]
    fill_numbers.write("recipes", records)
    assert fill_numbers.recipe("page.a") == "```console\n$ cd a\n$ ls\n\nb\n```"
    assert fill_numbers.ran("page") == (
        "Run on 2027-01-31 at commit `c0ffee1`; a machine, load average 0 to 10; 5 to 61 seconds "
        "each."
    )


def test_what_trials_cost_in_the_large_is_computed(store):
    one = {"trial_mb": 2, "data_mb": 300, "requests": 240, "minutes": 30, "cache_entries": 3}
    fill_numbers.write("scale", {**one, "cases": [["two", 2, 1000]]})
    heading, _, *rows = fill_numbers.at_scale().splitlines()
    assert heading == "| | two, 1,000 trials |"
    # Samples of the machine every 5 s: 360 in half an hour, so 600 requests from each node.
    costs = ["2 GB", "0.6 GB", "1,000", "0.7", "3,000", "2"]
    assert [row.split(" | ")[-1].rstrip(" |") for row in rows] == costs
    assert fill_numbers.assumed("data_mb") == "300"


def test_a_block_is_written_where_it_stands():
    text = "It says: <!-- numbers: answer -->old<!-- /numbers --> And on."
    assert fill_numbers.fill(text) == text.replace("old", fill_numbers.answer())
    with pytest.raises(KeyError):
        fill_numbers.fill("<!-- numbers: unknown --><!-- /numbers -->")


def test_a_precision_that_the_gate_refuses_is_a_row_without_numbers(store):
    content = fill_numbers.read("export")
    content["onnx"]["int8"] = {"refused": "not written"}
    fill_numbers.write("export", content)
    heading, _, *rows = fill_numbers.exported("onnx").splitlines()
    assert rows[-1].startswith("| `int8` | refused by the gate |")
    assert {row.count("|") for row in rows} == {heading.count("|")}
