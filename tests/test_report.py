import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from lesionseg.errors import DataError, MissingFileError
from lesionseg.report import figures
from lesionseg.report.page import answer, write_report
from stages import report
from tests.report_inputs import METRICS, RUNS, SCOPES, write_report_inputs

VOID = {"meta", "link", "br", "img", "hr"}
LEAK = {
    "id": "ISIC_0000001",
    "split": "train",
    "other_id": "ISIC_0000099",
    "other_split": "test",
    "kind": "identical",
    "distance": 0.0,
    "action": "removed from train",
}


def write_page(root: Path, *, title: str = "Which is better?", num_examples: int = 1) -> str:
    path = write_report(
        results_dir=root / "results",
        processed_dir=root / "data/processed",
        report_dir=root / "results/report",
        title=title,
        num_examples=num_examples,
    )
    return path.read_text(encoding="utf-8")


def edit_json(path: Path, *keys: str, value: object) -> None:
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content))


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
def fresh(tmp_path: Path) -> Path:
    """A project whose inputs a test may break."""
    write_report_inputs(tmp_path)
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
def test_the_answer_follows_the_interval(means, interval, expected):
    result = dict(zip(RUNS, means, strict=True))
    result |= {"difference": means[1] - means[0], "interval": list(interval)}
    comparison = {"num_images": 305, "confidence": 0.95, "test": {"jaccard": result}}
    assert answer(comparison) == expected


def test_the_page_opens_with_title_and_answer(root, html):
    comparison = json.loads((root / "results/evaluate/comparison.json").read_text())
    assert html.index("Which is better?</h1>") < html.index(answer(comparison)) < html.index("<svg")


def test_the_page_links_to_nothing_outside_itself(html):
    links = Page(html).links
    assert links
    assert all(link.startswith(("#", "data:image/")) for link in links)
    assert "<script" not in html
    assert not re.search(r"@import|url\((?!#)", html)


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


def test_every_score_is_on_the_page(root, html):
    comparison = json.loads((root / "results/evaluate/comparison.json").read_text())
    cells = " ".join(re.findall(r"<t[hd][^>]*>([^<]*)", html))
    for scope in SCOPES:
        for metric in METRICS:
            result = comparison[scope][metric]
            low, high = (f"{bound:+.3f}" for bound in result["interval"])
            scores = " ".join(f"{result[run]:.3f}" for run in RUNS)
            assert f"{metric} {scores} {result['difference']:+.3f} {low} to {high}" in cells


def test_provenance_and_parameters_are_on_the_page(html):
    for value in ("bfloat16", "2.13.0", "904,129", "2 min 21 s", "train.lr", "transposed", "168"):
        assert value in html
    assert "git checkout 0123456789abcdef0123456789abcdef01234567\ndvc exp apply shaky-clam" in html


def test_a_dirty_commit_is_checked_out_by_its_name_and_told(fresh):
    edit_json(fresh / "results/train_finetuned/run.json", "commit", value="abc-dirty")
    html = write_page(fresh)
    assert "git checkout abc\n" in html
    assert "files differed from that commit" in html


def test_examples_are_ranked_by_the_finetuned_jaccard(root, html):
    per_image = pd.read_csv(root / "results/evaluate/per_image.csv")
    chosen = per_image[(per_image["run"] == RUNS[1]) & (per_image["scope"] == "test")]
    ranked = chosen.sort_values(["jaccard", "id"], ascending=[False, True])["id"].tolist()
    shown = re.findall(r"<figcaption>(ISIC_\d+)<br>", html)
    assert shown == [*ranked[:2], *ranked[2:4], ranked[-1], ranked[-2]]


def test_no_leaks_are_reported_as_none_found(html):
    assert "<b>None found.</b>" in html
    assert "No patient ids exist for ISIC 2016" in html


def test_leaks_are_listed(tmp_path):
    write_report_inputs(tmp_path, leaks=[LEAK])
    html = write_page(tmp_path)
    assert "1 found." in html
    assert all(f">{value}</td>" in html for value in LEAK.values())


def test_titles_ids_and_parameters_are_escaped(tmp_path):
    hostile = "<script>alert('&')<b>"
    write_report_inputs(tmp_path, ids=(hostile.replace("/", ""), "007", "NA"))
    edit_json(tmp_path / "results/train_frozen/run.json", "params", hostile, value=hostile)
    html = write_page(tmp_path, title=hostile)
    assert hostile not in html
    assert Page(html).texts.count(hostile) >= 3
    assert {"007", "NA"} <= set(re.findall(r"<figcaption>(\w+)<br>", html))


def test_the_same_inputs_give_the_same_bytes(fresh):
    folder = fresh / "results/report"
    write_page(fresh)
    first = {path: path.read_bytes() for path in folder.rglob("*.*")}
    write_page(fresh)
    assert first == {path: path.read_bytes() for path in folder.rglob("*.*")}
    assert len(first) == 1 + 7 + 3


def test_figures_lie_beside_the_page_as_svg(root, html):
    for path in (root / "results/report/figures").iterdir():
        assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_more_examples_than_images_are_all_images(fresh):
    assert write_page(fresh, num_examples=24).count("<br>") == 3 * 7


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
    assert str(broken.value).endswith(f". Run: dvc repro -f {stage}")
    assert "\n" not in str(broken.value)
    assert not (fresh / "results/report").exists()


@pytest.mark.parametrize(
    ("name", "keys", "value", "expected"),
    [
        ("evaluate/comparison.json", ["num_images"], 8, "compares 8 images, the test split has 7"),
        ("evaluate/train_frozen.json", ["test", "dice"], 0.5, "test dice of train_frozen is"),
        ("evaluate/train_finetuned.json", ["test"], {}, "has no test.jaccard"),
        ("train_frozen/run.json", ["data_sha256"], "cd", "trained on different data"),
    ],
)
def test_files_of_different_ages_are_refused(fresh, name, keys, value, expected):
    edit_json(fresh / "results" / name, *keys, value=value)
    with pytest.raises(DataError, match=re.escape(expected)):
        write_page(fresh)


def test_scores_of_other_images_are_refused(fresh):
    path = fresh / "results/evaluate/per_image.csv"
    path.write_text(path.read_text().replace("ISIC_0000003", "ISIC_0000033"))
    with pytest.raises(DataError, match="ids of train_frozen in test are not those"):
        write_page(fresh)


def test_a_failure_leaves_the_last_page_as_it_was(fresh):
    html = write_page(fresh)
    (fresh / "results/train_frozen/run.json").unlink()
    with pytest.raises(MissingFileError):
        write_page(fresh)
    assert (fresh / "results/report/report.html").read_text(encoding="utf-8") == html
    assert not list((fresh / "results").glob(".*"))


def test_the_stage_writes_the_page_that_params_describe(fresh, monkeypatch):
    params = (Path(__file__).parents[1] / "params.yaml").read_text(encoding="utf-8")
    (fresh / "params.yaml").write_text(params, encoding="utf-8")
    monkeypatch.chdir(fresh)
    report.main([])
    assert "<h1>Frozen or fine-tuned?" in Path("results/report/report.html").read_text()


def overlay_of(mask):
    return figures.draw_overlay(
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
