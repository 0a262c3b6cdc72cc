import base64
import hashlib
import io
import json
import os
import re
import shlex
import shutil
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from dvc.utils.hydra import apply_overrides
from PIL import Image

from lesionseg.cli import _make_parser
from lesionseg.config import load_config, override, read_yaml
from lesionseg.errors import DataError, MissingFileError, rerun
from lesionseg.report import figures
from lesionseg.report.gallery import Case, read_cases, svg_path
from lesionseg.report.inputs import Inputs, read_inputs
from lesionseg.report.overlays import draw_overlay
from lesionseg.report.page import (
    answer,
    answer_of_seeds,
    draw_figures,
    render_page,
    write_report,
)
from lesionseg.report.scatter import place_points
from lesionseg.results.evaluation import Comparison, DifferenceSpread
from lesionseg.results.layout import RUNS, EvaluationFiles, Results
from lesionseg.results.vocabulary import METRICS, POOLED, RUN_LABELS, SCOPES
from stages import report
from tests.report_inputs import GROUPS, write_report_inputs

ROOT = Path(__file__).parents[1]
VOID = {"meta", "link", "br", "img", "hr", "input"}
LEAK = {
    "id": "ISIC_0000001",
    "split": "train",
    "other_id": "ISIC_0000099",
    "other_split": "test",
    "kind": "identical",
    "distance": 0.0,
    "action": "removed from train",
}


def write_page(root: Path, *, report_dir: Path | None = None, num_examples: int = 1) -> str:
    """The page as the stage writes it, every figure drawn: for tests of figures and files."""
    path = write_report(
        Results(root / "results"),
        root / "data",
        report_dir=report_dir or root / "results/report",
        title="Which is better?",
        num_examples=num_examples,
    )
    return path.read_text(encoding="utf-8")


def read(root: Path) -> Inputs:
    return read_inputs(
        Results(root / "results"),
        root / "data",
    )


def words_of(root: Path, *, title: str = "Which is better?", num_examples: int = 1) -> str:
    """The page with an empty element for each figure: for tests of words and tables."""
    inputs = read(root)
    svgs = dict.fromkeys(FIGURES, '<svg xmlns="http://www.w3.org/2000/svg"></svg>')
    return render_page(inputs, read_cases(inputs), svgs, title=title, num_examples=num_examples)


def edit_json(path: Path, *keys: str, value: object) -> None:
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content))


FIGURES = {
    "differences",
    "scatter",
    "samples",
    "strata",
    "reliability",
    "thresholds",
    "seeds",
    "curves_loss",
    "curves_jaccard",
    "curves_dice",
}


def edit_csv(path: Path, column: str, value: object, *, row: int = 0) -> None:
    table = pd.read_csv(path, dtype=object, keep_default_na=False)
    table.loc[row, column] = value
    table.to_csv(path, index=False)


class Page(HTMLParser):
    """Collects what a page links to and checks that its elements are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.open += [] if tag in VOID else [tag]
        self.note(tag, attributes)

    def handle_startendtag(self, tag, attributes):
        self.note(tag, attributes)

    def note(self, tag, attributes):
        for name, value in attributes:
            if name in {"src", "srcset", "href", "xlink:href", "data", "action"}:
                self.links.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with all inputs, read only."""
    root = tmp_path_factory.mktemp("project")
    write_report_inputs(root)
    return root


@pytest.fixture(scope="module")
def html(root: Path) -> str:
    return write_page(root, num_examples=2)


@pytest.fixture
def fresh(root: Path, tmp_path: Path) -> Path:
    """A project whose inputs a test may break."""
    without_report = shutil.ignore_patterns("report")
    shutil.copytree(root, tmp_path, ignore=without_report, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize(
    ("means", "interval", "expected"),
    [
        (
            (0.8334, 0.8531),
            (0.012, 0.028),
            "Fine-tuning raises the mean test jaccard from 0.833 to 0.853, a difference of +0.020 "
            "(95 % interval +0.012 to +0.028 over 305 images): fine-tuning is better on this data.",
        ),
        (
            (0.8531, 0.8334),
            (-0.028, -0.0002),
            "Fine-tuning lowers the mean test jaccard from 0.853 to 0.833, a difference of -0.020 "
            "(95 % interval -0.028 to -0.0002 over 305 images): "
            "the frozen encoder is better on this data.",
        ),
        (
            (0.833, 0.836),
            (-0.004, 0.010),
            "Fine-tuning changes the mean test jaccard from 0.833 to 0.836, a difference of +0.003 "
            "(95 % interval -0.004 to +0.010 over 305 images): "
            "the interval contains 0, so no difference is shown on this data.",
        ),
        (
            (0.8, 0.8),
            (0.0, 0.0),
            "Fine-tuning changes the mean test jaccard from 0.800 to 0.800, a difference of +0.000 "
            "(95 % interval +0.000 to +0.000 over 305 images): "
            "the interval contains 0, so no difference is shown on this data.",
        ),
    ],
    ids=["finetuned", "frozen", "neither", "equal"],
)
def test_the_answer_follows_the_interval(root, means, interval, expected):
    frozen, finetuned = means
    known = Comparison.read(Results(root / "results").evaluation)
    jaccard = replace(
        known.test["jaccard"],
        train_frozen=frozen,
        train_finetuned=finetuned,
        difference=finetuned - frozen,
        interval=interval,
    )
    assert answer(replace(known, num_images=305, test={"jaccard": jaccard})) == expected


def test_the_answer_over_seeds_is_a_sentence_of_its_own(root):
    known = Comparison.read(Results(root / "results").evaluation)
    difference = DifferenceSpread(mean=0.0123, sd=0.0041, num_better=4)
    jaccard = replace(known.seeds.test["jaccard"], difference=difference)
    seeds = replace(known.seeds, num_seeds=5, test={"jaccard": jaccard})
    assert answer_of_seeds(replace(known, seeds=seeds)) == (
        "Over 5 training seeds the difference is +0.012 on average (standard deviation 0.004), "
        "and fine-tuning is better in 4 of 5."
    )


def test_the_answer_of_a_single_training_says_that_it_is_one(root):
    known = Comparison.read(Results(root / "results").evaluation)
    assert answer_of_seeds(replace(known, seeds=None)).startswith("Each model was trained once")


def test_the_page_opens_with_title_and_answer(root, html):
    comparison = Comparison.read(Results(root / "results").evaluation)
    places = ["Which is better?</h1>", answer(comparison), answer_of_seeds(comparison), "<svg"]
    body = html[html.index("<body>") :]
    assert [body.index(text) for text in places] == sorted(body.index(text) for text in places)


def test_the_page_links_to_nothing_outside_itself_but_the_page_that_segments(html):
    links = Page(html).links
    others = [link for link in links if not link.startswith(("#", "data:image/"))]
    assert len(links) > len(others) == 1
    target = os.path.normpath(Results().report.parent / others[0])
    assert target == str(Results().segment_page)
    assert "lesionseg export html\n" in html  # which makes it there, by default
    default = _make_parser().parse_args(["export", "html"]).out
    assert default == Results().segment_page
    assert not re.search(r"@import|url\((?!#)|https?://(?!www\.w3\.org)", html)


def test_only_the_page_s_own_script_may_run(html):
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert html.count("<script") == 1
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; script-src 'sha256-{digest}'; style-src" in html


def test_every_element_is_closed_in_order(html):
    assert Page(html).open == []


def test_links_and_references_find_their_one_target(html):
    page = Page(html)
    targets = {link[1:] for link in page.links if link.startswith("#")}
    targets |= set(re.findall(r"url\(#([^)]+)\)", html))
    assert targets <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)


def test_no_placeholder_is_left(html):
    assert not re.search(r"{{|}}|{%|%}|\bNone\b(?! found)|\bnan\b|Undefined", html)


def cells_of(html: str) -> str:
    """All table cells as one text, single spaces between their words."""
    cells = re.findall(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", html, re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", " ".join(cells)).split())


def test_every_score_is_on_the_page_with_its_interval_and_test(root, html):
    comparison = json.loads((root / "results/evaluate/comparison.json").read_text())
    cells = cells_of(html)
    for scope in SCOPES:
        for metric in METRICS:
            result = comparison[scope][metric]
            digits = 2 if metric == "hd95" else 3
            low, high = (f"{bound:+.{digits}f}" for bound in result["interval"])
            parts = [f"{result['difference']:+.{digits}f} {low} to {high} 0.012 +0.45"]
            for run in RUNS:
                mean, *interval = (
                    f"{value:.{digits}f}" for value in (result[run], *result[f"{run}_interval"])
                )
                parts.append(f"{mean} {' to '.join(interval)}")
            assert all(part in cells for part in parts), (scope, metric)
            assert f"{result['wins']} / {result['ties']} / {result['losses']}" in cells


def test_pooled_scores_are_kept_apart_from_means(root, html):
    assert "Pooled over pixels: not the means above</h3>" in html.replace("&#39;", "'")
    scores = {run: json.loads((root / f"results/evaluate/{run}.json").read_text()) for run in RUNS}
    for metric in POOLED:
        values = [f"{scores[r][s][f'pooled_{metric}']:.3f}" for s in SCOPES for r in RUNS]
        assert f"pooled {metric} {' '.join(values)}" in cells_of(html)


def test_failures_are_counted(root, html):
    table = pd.read_csv(root / "results/evaluate/per_image.csv").query("scope == 'test'")
    for run in RUNS:
        num = (table.loc[table["run"] == run, "jaccard"] < 0.65).sum()
        assert f"{100 * num / 7:.1f} % {num} of 7" in cells_of(html)


def test_seeds_have_a_section_where_there_are_several(root, html):
    seeds = json.loads((root / "results/evaluate/comparison.json").read_text())["seeds"]
    mean, sd = seeds["test"]["dice"]["train_frozen"].values()
    assert f"{mean:.3f} ± {sd:.3f}" in cells_of(html)
    assert 'id="seeds"' in html
    assert (root / "results/report/figures/seeds.svg").exists()


def test_a_single_seed_has_no_section(tmp_path):
    write_report_inputs(tmp_path, num_seeds=1)
    html = words_of(tmp_path)
    assert "Training seeds" not in html
    assert "Each model was trained once" in html
    inputs = read(tmp_path)
    assert "seeds" not in draw_figures(inputs, read_cases(inputs), num_examples=1)


def test_a_cross_validation_is_told_and_nothing_of_it_otherwise(fresh, html):
    assert "cross-validation" not in html
    for run in RUNS:
        edit_json(fresh / f"results/{run}/run.json", "params", "train.cross_validate", value=True)
    told = words_of(fresh)
    assert "with the training and with the images it learns from." in told
    assert "This is a cross-validation: each training after the first" in told
    assert "they are the folds of a cross-validation." in told


def test_other_ways_to_predict_stand_beside_the_main_number(tmp_path):
    write_report_inputs(tmp_path, num_seeds=3, num_views=8)
    html = words_of(tmp_path)
    assert "They are not the main number" in html
    table = pd.read_csv(tmp_path / "results/evaluate/variants.csv")
    names = {"single": "1 model, 1 view", "tta": "1 model, 8 views"}
    names |= {"ensemble": "3 models, 1 view", "ensemble+tta": "3 models, 8 views"}
    cells = cells_of(html[html.index("Other ways to predict") :])
    for run, label in RUN_LABELS.items():
        assert f"{label} single" in cells
        for name, numbers in names.items():
            rows = table[(table["run"] == run) & (table["variant"] == name)]
            scores = rows.set_index("scope").loc[list(SCOPES), ["jaccard", "dice"]].to_numpy()
            values = " ".join(f"{value:.3f}" for value in scores.ravel())
            assert f"{name} {numbers} {values}" in cells
    assert all(f"<dt>{name}</dt>" in html for name in names)


def test_the_page_says_what_a_perfect_mask_and_a_pixel_more_or_less_would_score(html):
    note = re.search(r"For scale: .*?</p>", html, re.DOTALL).group()
    assert re.findall(r"<b>(.*?)</b>", note) == ["0.981", "0.934", "0.929"]


def test_only_the_variants_that_there_are_are_explained(html):
    assert "<dt>ensemble</dt>" in html
    assert "<dt>tta</dt>" not in html


def test_a_single_way_to_predict_has_no_table(tmp_path):
    write_report_inputs(tmp_path, num_seeds=1)
    assert "Other ways to predict" not in words_of(tmp_path)


def test_every_group_is_in_the_table_and_a_small_one_is_marked(html):
    cells = cells_of(html)
    for groups in GROUPS.values():
        assert all(f"{group} few images" in cells for group in groups)
    assert "all few images" in cells  # seven images are few as well
    assert "rough estimate of skin tone, not a clinical label" in html


def test_a_group_of_one_image_has_no_interval(tmp_path):
    write_report_inputs(tmp_path, ids=("a", "b"))
    assert "no interval" in words_of(tmp_path)


def test_calibration_and_the_thresholds_that_val_prefers_are_told(html):
    text = " ".join(re.sub(r"<[^>]*>", " ", html[html.index('id="calibration"') :]).split())
    assert "0.030 frozen , 0.020 fine-tuned" in text
    assert "chosen on val, never on test" in text
    assert "Val prefers 0.4 for the frozen model and 0.5 for the fine-tuned model" in text


def test_each_test_image_is_one_point_and_one_card(root, html):
    ids = pd.read_csv(root / "data/processed/test/index.csv")["id"].tolist()
    points = re.findall(r'<g class="point"[^>]*data-id="([^"]*)"', html)
    cards = re.findall(r'<figure class="case" data-id="([^"]*)"', html)
    assert sorted(points) == sorted(cards) == ids


def test_points_stand_where_their_scores_are(root, html):
    table = pd.read_csv(root / "results/evaluate/per_image.csv").query("scope == 'test'")
    scores = table.pivot(index="id", columns="run", values="jaccard")
    pattern = r'data-id="([^"]*)" transform="translate\(([\d.]+) ([\d.]+)\)"'
    places = {name: (float(x), 400 - float(y)) for name, x, y in re.findall(pattern, html)}
    for axis, run in enumerate(RUNS):
        expected = np.array([scores.loc[name, run] for name in places])
        got = np.array([place[axis] for place in places.values()])
        missing = np.sqrt(1 - expected)  # to 1, which is the end of the axis
        slope = np.polyfit(missing, got, 1)[0]
        assert got == pytest.approx(400 + slope * missing, abs=0.2)  # rounded to tenths


@pytest.mark.parametrize(
    ("lowest", "ticks"),
    [
        (0.0, [0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0]),
        (0.68, [0.7, 0.8, 0.9, 0.95, 1.0]),
        (0.97, [0.9, 0.95, 1.0]),
        (1.0, [0.9, 0.95, 1.0]),
    ],
)
def test_the_axes_give_most_room_to_good_masks(lowest, ticks):
    scores = {"jaccard": dict.fromkeys(RUNS, lowest)}
    case = Case(id="a", width=1, height=1, photograph="", contours={}, scores=scores, groups={})
    scatter = place_points([case])
    assert [value for value, _ in scatter.ticks] == ticks
    places = [place for _, place in scatter.ticks]
    assert min(np.diff(places)) >= 30
    assert places[-1] == 400
    assert 0 <= scatter.points[0].x <= 400


def test_photographs_keep_their_shape_and_are_small(html):
    card = html[html.index('<figure class="case"') :]
    pattern = r'<image href="data:image/jpeg;base64,([^"]+)" width="(\d+)" height="(\d+)"'
    uri = re.search(pattern, card)
    image = Image.open(io.BytesIO(base64.b64decode(uri[1])))
    assert image.size == (int(uri[2]), int(uri[3])) == (256, 192)


def test_provenance_and_parameters_are_on_the_page(html):
    for value in ("bfloat16", "2.13.0", "904,129", "2 min 21 s", "train.lr", "pyramid", "168"):
        assert value in html
    assert "git checkout 0123456789abcdef0123456789abcdef01234567\ndvc exp apply shaky-clam" in html


def test_the_command_on_the_page_sets_every_parameter_as_it_was(fresh, tmp_path):
    params = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", params)
    changed = {"download.source": "ham10000, isic2016", "download.folder": "../our data"}
    changed |= {"download.weights": "a-b/c_1.pth", "train.cross_validate": True, "train.lr": 1e-05}
    for run in RUNS:
        path = fresh / f"results/{run}/run.json"
        for name, value in changed.items():
            edit_json(path, "params", name, value=value)
    command = words_of(fresh).partition("dvc exp run \\\n")[2].partition("</pre>")[0]
    words = shlex.split(unescape(command).replace("\\\n", " "))
    assert words[::2] == ["-S"] * (len(words) // 2)
    apply_overrides(params, words[1::2])
    config = load_config(params)
    for run in RUNS:
        known = json.loads((fresh / f"results/{run}/run.json").read_text())["params"]
        assert config.training_params(run, seed=0) | {"fold": 0} == known | {"fold": 0}
    assert config.train.num_seeds == 3


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"download.source": "isic2016"}, "Data: isic2016, 7 train, 7 val, 7 test images."),
        (
            {"download.source": "folder", "download.folder": "../ours"},
            "Data: the folder ../ours, 7 train, 7 val, 7 test images.",
        ),
        ({"train.num_images": 100}, "Data: isic2016, 100 of 7 train, 7 val, 7 test images."),
        ({"download.weights": "none"}, "The encoder starts with random weights; decoder"),
        ({"download.weights": "imagenet"}, "The encoder starts with ImageNet weights; decoder"),
        ({"download.weights": "our.pth"}, "starts with the weights of our.pth; decoder"),
    ],
)
def test_the_top_says_which_data_and_which_start(fresh, params, words):
    for run in RUNS:
        for name, value in params.items():
            edit_json(fresh / f"results/{run}/run.json", "params", name, value=value)
    html = words_of(fresh)
    assert words in html
    assert "For research, not for diagnosis." in html
    assert ("ISIC archive" in html) == (params.get("download.source") != "folder")


def test_external_test_sets_are_in_a_table_a_figure_and_the_first_sentence(tmp_path):
    write_report_inputs(tmp_path, external=("ph2", "our-clinic"))
    page = write_page(tmp_path)
    for name in ("ph2", "our-clinic"):
        assert f"{name} <small>7 images, source: folder; 2 more were left out" in page
    answer = page.partition('class="answer">')[2].partition("</p>")[0]
    assert "That is also so on ph2 (" in answer
    assert "our-clinic" in (tmp_path / "results/report/figures/sets.svg").read_text()


def test_all_but_the_heading_is_in_one_main_landmark(html):
    before, main = html.split("<main>")
    assert before.rstrip().endswith("</header>")
    assert main.partition("</main>")[2].lstrip().startswith("<script>")


def test_without_external_test_sets_nothing_speaks_of_them(html):
    assert "Other test sets" not in html


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"models": {"train_frozen": "0", "train_finetuned": "1"}}, "it is about other models"),
        ({"num_images": 8}, "it compares 8 images, ph2 has 7"),
    ],
)
def test_scores_of_an_external_set_that_are_stale_are_refused(tmp_path, change, problem):
    write_report_inputs(tmp_path, external=("ph2",))
    files = EvaluationFiles(tmp_path / "results/evaluate/external/ph2")
    replace(Comparison.read(files), **change).write(files)
    with pytest.raises(DataError, match=problem):
        read(tmp_path)


def test_a_dirty_commit_is_checked_out_by_its_name_and_told(fresh):
    edit_json(fresh / "results/train_finetuned/run.json", "commit", value="abc-dirty")
    html = words_of(fresh)
    assert "git checkout abc\n" in html
    assert "files differed from that commit" in html


def test_examples_are_ranked_by_the_finetuned_jaccard(root, html):
    per_image = pd.read_csv(root / "results/evaluate/per_image.csv")
    chosen = per_image[(per_image["run"] == RUNS[1]) & (per_image["scope"] == "test")]
    ranked = chosen.sort_values(["jaccard", "id"], ascending=[False, True])["id"].tolist()
    shown = re.findall(r'class="case" data-id="([^"]*)"', html[: html.index('id="rest"')])
    assert shown == [*ranked[:2], *ranked[2:4], ranked[-1], ranked[-2]]


def test_no_leaks_are_reported_as_none_found(html):
    assert "<b>None found.</b>" in html


UNKNOWN_PATIENTS = "Nothing says which images are of the same patient"
KNOWN_GROUPS = "none of these groups is in two splits"


@pytest.mark.parametrize(
    ("source", "has_groups", "expected"),
    [
        ("isic2016", False, [UNKNOWN_PATIENTS]),
        ("folder", True, [KNOWN_GROUPS]),
        ("phantom", False, []),
    ],
)
def test_the_page_says_of_patients_what_the_data_say(fresh, source, has_groups, expected):
    for run in RUNS:
        path = fresh / f"results/{run}/run.json"
        edit_json(path, "params", "download.source", value=source)
    for path in (fresh / "data/processed").glob("*/index.csv") if has_groups else ():
        pd.read_csv(path).assign(group="a").to_csv(path, index=False)
    text = " ".join(words_of(fresh).split())
    assert [words for words in (UNKNOWN_PATIENTS, KNOWN_GROUPS) if words in text] == expected


def test_leaks_are_listed(tmp_path):
    write_report_inputs(tmp_path, leaks=[LEAK])
    html = words_of(tmp_path)
    assert "1 found." in html
    assert all(f">{value}</td>" in html for value in LEAK.values())


def test_titles_ids_and_parameters_are_escaped(tmp_path):
    hostile = "<script>alert('&\"')<b>"
    write_report_inputs(tmp_path, ids=("007", hostile, "NA"))
    edit_json(tmp_path / "results/train_frozen/run.json", "params", hostile, value=hostile)
    html = words_of(tmp_path, title=hostile)
    assert hostile not in html
    assert Page(html).texts.count(hostile) >= 3
    assert {"007", "NA"} <= set(re.findall(r"<figcaption><b>(\w+)</b>", html))


def test_the_same_inputs_give_the_same_bytes(root, html, tmp_path):
    write_page(root, report_dir=tmp_path / "report", num_examples=2)
    first, second = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}
        for folder in (root / "results/report", tmp_path / "report")
    )
    assert first == second
    assert len(first) == 1 + len(FIGURES) + 3 * 2


def test_figures_lie_beside_the_page_as_svg(root, html):
    paths = list((root / "results/report/figures").iterdir())
    assert {path.stem for path in paths} > FIGURES
    for path in paths:
        assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_more_examples_than_images_are_all_images_once(fresh):
    html = words_of(fresh, num_examples=24)
    assert html[: html.index('id="rest"')].count('class="case"') == 7
    assert "All, best first</h3>" in html


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("results/train_frozen/history.csv", "train_frozen"),
        ("results/train_finetuned/metrics.json", "train_finetuned"),
        ("results/train_finetuned/run.json", "train_finetuned"),
        ("results/evaluate/train_frozen.json", "evaluate"),
        ("results/evaluate/comparison.json", "evaluate"),
        ("results/evaluate/per_image.csv", "evaluate"),
        ("results/evaluate/masks/train_frozen/ISIC_0000003_segmentation.png", "evaluate"),
        ("results/evaluate/attributes.csv", "evaluate"),
        ("results/evaluate/strata.csv", "evaluate"),
        ("results/evaluate/calibration.csv", "evaluate"),
        ("results/evaluate/thresholds.csv", "evaluate"),
        ("results/evaluate/seeds.csv", "evaluate"),
        ("results/evaluate/variants.csv", "evaluate"),
        ("data/raw/manifest.csv", "download"),
        ("data/raw/test/images/3.png", "download"),
        ("data/raw/test/masks/3.png", "download"),
        ("data/processed/test/images.npy", "preprocess"),
        ("data/processed/leaks.csv", "preprocess"),
    ],
)
def test_a_missing_or_broken_input_names_file_and_stage(fresh, name, stage):
    (fresh / name).write_bytes(b"")
    with pytest.raises(DataError) as broken:
        write_page(fresh, num_examples=2)
    (fresh / name).unlink()
    with pytest.raises(MissingFileError) as missing:
        write_page(fresh, num_examples=2)
    assert str(missing.value) == f"{fresh / name} is missing. Run: dvc repro {stage}"
    assert str(broken.value).startswith(str(fresh / name))
    assert str(broken.value).endswith(f" {rerun(stage)}")
    assert "\n" not in str(broken.value)
    assert not (fresh / "results/report").exists()


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("train_frozen/history.csv", "train_frozen"),
        ("evaluate/seeds.csv", "evaluate"),
        ("evaluate/thresholds.csv", "evaluate"),
        ("evaluate/variants.csv", "evaluate"),
        ("evaluate/per_image.csv", "evaluate"),
        ("evaluate/strata.csv", "evaluate"),
        ("evaluate/calibration.csv", "evaluate"),
    ],
)
def test_a_table_that_ends_below_its_heading_names_file_and_stage(fresh, name, stage):
    path = fresh / "results" / name
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(DataError) as caught:
        write_page(fresh, num_examples=2)
    assert str(caught.value) == f"{path} has no rows. Run: {rerun(stage)}"


@pytest.mark.parametrize(
    ("name", "keys", "value", "expected"),
    [
        ("evaluate/comparison.json", ["num_images"], 8, "compares 8 images, the test split has 7"),
        ("evaluate/comparison.json", ["seeds"], None, "it compares 1 seeds, seeds.csv has 3"),
        ("evaluate/train_frozen.json", ["test", "dice"], 0.5, "test dice of train_frozen is"),
        (
            "evaluate/train_frozen.json",
            ["test", "failure_rate"],
            0.9,
            "test failure_rate of train_frozen is 0.9000",
        ),
        ("evaluate/train_finetuned.json", ["test"], {}, "has no test.jaccard"),
        (
            "evaluate/comparison.json",
            ["test", "nsd", "interval"],
            [0.1, None],
            "test.nsd.interval.1 must be a number, got None",
        ),
        (
            "evaluate/train_frozen.json",
            ["test", "ece"],
            "small",
            "test.ece must be a number, got 'small'",
        ),
        ("train_frozen/run.json", ["data_sha256"], "cd", "trained on different data"),
    ],
)
def test_files_of_different_ages_are_refused(fresh, name, keys, value, expected):
    edit_json(fresh / "results" / name, *keys, value=value)
    with pytest.raises(DataError, match=re.escape(expected)):
        write_page(fresh)


@pytest.mark.parametrize(
    ("name", "column", "value", "expected"),
    [
        ("attributes.csv", "id", "other", "its ids are not those of the test split, in order"),
        (
            "attributes.csv",
            "size",
            "medium",
            "strata.csv is stale: size small has 3 images, 2 in attributes.csv",
        ),
        ("attributes.csv", "hair", "lots", "('hair', 'lots') is in one only"),
        ("strata.csv", "train_frozen_jaccard", 0.5, "train_frozen in all all is 0.5000, but"),
        ("calibration.csv", "train_frozen_num_pixels", 1, "pixels for train_frozen, the test"),
        ("seeds.csv", "nsd", 0.25, "test nsd of train_frozen is 0.2500 in its first seed"),
        ("seeds.csv", "seed", 7, "the seeds of train_frozen in test are not those"),
        ("variants.csv", "nsd", 0.25, "test nsd of train_frozen is 0.2500 in single, but"),
        ("variants.csv", "variant", "tta", "variants of train_frozen in test are not those"),
        ("variants.csv", "variant", "best", "variants.csv is stale: its variants are best, single"),
        ("variants.csv", "num_views", "", "num_views in line 2 must be a number, got nothing"),
        ("seeds.csv", "nsd", "high", "nsd in line 2 must be a number, got 'high'"),
        ("thresholds.csv", "threshold", "", "threshold in line 2 must be a number, got nothing"),
        ("strata.csv", "group", "", "group in line 2 must be text, got nothing"),
    ],
)
def test_tables_of_different_ages_are_refused(fresh, name, column, value, expected):
    edit_csv(fresh / "results/evaluate" / name, column, value)
    with pytest.raises(DataError, match=re.escape(expected)) as caught:
        write_page(fresh)
    assert str(caught.value).startswith(str(fresh / "results/evaluate"))
    assert str(caught.value).endswith(f"Run: {rerun('evaluate')}")


def test_scores_of_a_model_that_was_trained_again_are_refused(fresh):
    edit_json(fresh / "results/train_frozen/run.json", "model_sha256", value="99" * 32)
    with pytest.raises(DataError, match=r"about the model of train_frozen .* dvc repro evaluate$"):
        write_page(fresh)


def test_a_test_image_that_the_manifest_does_not_know_is_refused(fresh):
    path = fresh / "data/raw/manifest.csv"
    path.write_text(path.read_text().replace("ISIC_0000003", "ISIC_0000033"))
    with pytest.raises(DataError, match="has no test image ISIC_0000003, which the test split has"):
        write_page(fresh)


def test_a_prediction_of_another_size_than_its_image_is_refused(fresh):
    path = fresh / "results/evaluate/masks/train_frozen/ISIC_0000003_segmentation.png"
    Image.fromarray(np.zeros((10, 12), np.uint8)).save(path)
    expected = "must be 60 x 80 pixels as its image is (height x width), got 10 x 12. Run: dvc"
    with pytest.raises(DataError, match=re.escape(expected)):
        write_page(fresh)


def test_an_empty_prediction_is_said_in_words(fresh):
    path = fresh / "results/evaluate/masks/train_frozen/ISIC_0000003_segmentation.png"
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(path)
    html = words_of(fresh)
    assert html.count("<em>frozen: no lesion found</em>") == 1
    assert html.count("no lesion in the truth") == 0


def test_scores_of_other_images_are_refused(fresh):
    path = fresh / "results/evaluate/per_image.csv"
    path.write_text(path.read_text().replace("ISIC_0000003", "ISIC_0000033"))
    with pytest.raises(DataError, match="ids of train_frozen in test are not those"):
        write_page(fresh)


def test_a_failure_leaves_the_last_page_as_it_was(root, html, fresh):
    shutil.copytree(root / "results/report", fresh / "results/report")
    (fresh / "results/train_frozen/run.json").unlink()
    with pytest.raises(MissingFileError):
        write_page(fresh)
    assert (fresh / "results/report/report.html").read_text(encoding="utf-8") == html
    assert not list((fresh / "results").glob(".*"))


def test_the_stage_writes_the_page_that_params_describe(fresh, empty_store, monkeypatch):
    content = read_yaml(Path(__file__).parents[1] / "params.yaml")
    assert content["report"]["title"].startswith("Frozen or fine-tuned?")
    values = {"report.title": "Another title", "report.num_examples": 1}
    (fresh / "params.yaml").write_text(override(content, values), encoding="utf-8")
    (fresh / "mlruns").mkdir()
    shutil.copy(empty_store, fresh / "mlruns")
    monkeypatch.setenv("DVC_ROOT", str(fresh))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(fresh)
    report.main([])
    html = Path("results/report/report.html").read_text(encoding="utf-8")
    assert "<h1>Another title</h1>" in html
    assert html[: html.index('id="rest"')].count('class="case"') == 3


def test_a_path_has_columns_before_rows_and_is_closed():
    outlines = [np.array([[1, 2.04], [3.5, 4], [1, 2.04]]), np.array([[0, 0.0], [1, 1], [0, 0]])]
    assert svg_path(outlines) == "M2 1L4 3.5ZM0 0L1 1Z"
    assert svg_path([]) == ""


def test_the_outline_of_the_truth_encloses_as_much_as_its_mask(root, html):
    area = np.asarray(Image.open(root / "data/raw/test/masks/3.png")).astype(bool).mean()
    card = html[html.index('<figure class="case" data-id="ISIC_0000003"') :]
    path = re.search(r'class="contour truth">.*? d="M([^Z]*)Z"', card)[1]
    x, y = np.array([corner.split() for corner in path.split("L")], float).T
    enclosed = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2 / (256 * 192)
    assert enclosed == pytest.approx(area, rel=0.03)


def overlay_of(mask):
    return draw_overlay(
        np.zeros((10, 10, 3), np.uint8), mask, {"train_frozen": mask, "train_finetuned": mask}
    )


def test_the_overlay_explains_its_colours():
    texts = [text.get_text() for text in overlay_of(np.eye(10)).legends[0].get_texts()]
    assert texts == ["truth", "frozen", "fine-tuned"]


@pytest.mark.parametrize("scale", [1, 3])
def test_an_outline_of_any_size_lies_on_the_edge_of_its_pixels(scale):
    mask = np.zeros((10, 10))
    mask[2:6, 3:8] = 1
    (line, *_) = overlay_of(mask.repeat(scale, axis=0).repeat(scale, axis=1)).axes[0].lines
    columns, rows = line.get_data()
    assert (columns.min(), columns.max()) == pytest.approx((2.5, 7.5))
    assert (rows.min(), rows.max()) == pytest.approx((1.5, 5.5))


def test_a_mask_of_the_whole_image_has_a_closed_outline_and_an_empty_one_none():
    assert len(overlay_of(np.ones((10, 10))).axes[0].lines) == 3
    assert len(overlay_of(np.zeros((10, 10))).axes[0].lines) == 0


def test_the_best_epoch_is_marked():
    history = pd.DataFrame({"epoch": [1, 2, 3], "train_loss": [3.0, 2.0, 1.0]})
    history = history.assign(val_loss=[3.0, 1.0, 2.0], val_jaccard=[0.1, 0.7, 0.5], val_dice=0.5)
    figure = figures.draw_curves({"train_frozen": history})
    marks = [
        [tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() == "o"]
        for axes in figure.axes
    ]
    assert marks == [[(2, 1.0)], [(2, 0.7)], [(2, 0.5)]]
