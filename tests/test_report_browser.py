"""The report in a real browser: what its script does, and how it looks at any size."""

import functools
import itertools
from pathlib import Path

import pandas as pd
import pytest

from lesionseg.report.page import write_report
from lesionseg.results.layout import RUNS, Results
from tests.report_inputs import GROUPS, write_report_inputs

IDS = tuple(f"ISIC_{number:07d}" for number in range(14))
NUM_EXAMPLES = 2


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A project with its report."""
    root = tmp_path_factory.mktemp("project")
    write_report_inputs(root, ids=IDS)
    write_report(
        Results(root / "results"),
        root / "data",
        report_dir=root / "results/report",
        title="Which is better?",
        num_examples=NUM_EXAMPLES,
    )
    return root


@pytest.fixture(scope="module")
def scores(root) -> pd.DataFrame:
    """The test jaccard of each id (row) and run (column), and the gain."""
    table = pd.read_csv(root / "results/evaluate/per_image.csv").query("scope == 'test'")
    table = table.pivot(index="id", columns="run", values="jaccard")
    return table.assign(gain=table["train_finetuned"] - table["train_frozen"])


@pytest.fixture
def open_page(open_file, root):
    """Opens the report; whatever went wrong or was asked of the network is in `page.complaints`."""
    return functools.partial(open_file, root / "results/report/report.html")


@pytest.fixture
def page(open_page):
    return open_page(viewport={"width": 1280, "height": 900})


def shown_id(page) -> str:
    return page.locator("#shown .case").get_attribute("data-id")


def ids_of_rows(page) -> dict[str, list[str]]:
    """The ids in each visible row of the gallery."""
    rows = page.locator("#gallery .rows:visible")
    return {
        row.get_attribute("data-row"): row.locator(".case").evaluate_all(
            "cards => cards.map((card) => card.dataset.id)"
        )
        for row in rows.all()
    }


def expected_rows(ranked: list[str]) -> dict[str, list[str]]:
    middle = (len(ranked) - NUM_EXAMPLES) // 2
    return {
        "best": ranked[:NUM_EXAMPLES],
        "median": ranked[middle : middle + NUM_EXAMPLES],
        "worst": ranked[::-1][:NUM_EXAMPLES],
    }


def rank(scores: pd.DataFrame, key: str) -> list[str]:
    table = scores.reset_index().sort_values([key, "id"], ascending=[False, True])
    return table["id"].tolist()


def alone(scores: pd.DataFrame) -> str:
    """An id whose point has no other one on top of it."""
    distances = [
        ((scores[list(RUNS)] - scores.loc[name, list(RUNS)]) ** 2).sum(axis=1).nsmallest(2).max()
        for name in scores.index
    ]
    return scores.index[distances.index(max(distances))]


def point(page, name: str):
    return page.locator(f'.point[data-id="{name}"]')


def center(locator) -> tuple[float, float]:
    locator.scroll_into_view_if_needed()
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_the_page_complains_of_nothing_and_asks_nothing_of_the_network(page):
    page.locator(".point").first.focus()
    page.locator("#ranking").select_option("gain")
    page.pdf()
    urls = [text for text in page.complaints if not text.startswith(("file:", "data:"))]
    assert urls == []
    assert sum(text.startswith("file:") for text in page.complaints) == 1


def test_the_policy_lets_no_other_script_run(page):
    page.evaluate(
        "const other = document.createElement('script'); other.text = 'hacked = 1';"
        " document.body.append(other)"
    )
    assert page.evaluate("typeof hacked") == "undefined"
    assert any("Content Security Policy" in text for text in page.complaints)


def test_pointing_at_a_point_shows_its_image_with_three_outlines(page, scores):
    name = alone(scores)
    page.mouse.move(*center(point(page, name)))
    assert shown_id(page) == name
    assert name in page.locator("#shown figcaption").inner_text()
    card = page.locator(f'#gallery .case[data-id="{name}"]')
    for of in ("truth", *RUNS):
        outline = page.locator(f"#shown .contour.{of} path").first
        expected = card.locator(f".contour.{of} path").first
        assert outline.is_visible()
        assert outline.get_attribute("d") == expected.get_attribute("d") != ""


def test_the_image_beside_the_plot_has_the_scores_of_both_models(page, scores):
    name = alone(scores)
    page.mouse.move(*center(point(page, name)))
    row = page.locator("#shown table tr", has_text="jaccard")
    cells = row.locator("td").all_inner_texts()
    assert cells == [f"{scores.loc[name, run]:.3f}" for run in RUNS]
    assert page.locator("#shown").get_by_text("lesion size:").is_visible()


def test_a_click_pins_until_the_next_click(page, scores):
    name = alone(scores)
    other = next(other for other in rank(scores, "gain") if other != name)
    page.mouse.click(*center(point(page, name)))
    page.mouse.move(*center(point(page, other)))
    assert shown_id(page) == name
    assert point(page, name).get_attribute("aria-pressed") == "true"
    page.mouse.click(*center(point(page, name)))
    assert point(page, name).get_attribute("aria-pressed") == "false"


def test_a_finger_need_not_hit_a_point_exactly(open_page, scores):
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    name = alone(scores)
    x, y = center(point(page, name))
    page.touchscreen.tap(x + 4, y - 4)
    assert shown_id(page) == name
    assert point(page, name).get_attribute("aria-pressed") == "true"


def test_one_tab_stop_and_the_arrow_keys_reach_every_point(page, scores):
    page.evaluate("document.querySelector('[data-contour=train_finetuned]').focus()")
    page.keyboard.press("Tab")
    page.keyboard.press("Home")
    seen = [shown_id(page)]
    for _ in IDS[1:]:
        page.keyboard.press("ArrowRight")
        seen.append(shown_id(page))
    assert seen == rank(scores, "gain")
    page.keyboard.press("Enter")
    assert point(page, seen[-1]).get_attribute("aria-pressed") == "true"
    page.keyboard.press("Escape")
    assert page.locator(".point[aria-pressed=true]").count() == 0


def test_the_script_leaves_the_first_rows_as_they_were(page, scores, root):
    assert ids_of_rows(page) == expected_rows(rank(scores, "train_finetuned"))
    html = (root / "results/report/report.html").read_text()
    gallery = html[html.index('id="gallery"') : html.index('id="rest"')]
    written = [name for name in IDS if f'data-id="{name}"' in gallery]
    assert sorted(itertools.chain(*ids_of_rows(page).values())) == written


@pytest.mark.parametrize("ranking", ["train_finetuned", "train_frozen", "gain"])
def test_the_gallery_is_ranked_as_chosen(page, scores, ranking):
    page.locator("#ranking").select_option(ranking)
    assert ids_of_rows(page) == expected_rows(rank(scores, ranking))


def test_a_group_fills_the_gallery_and_dims_the_other_points(page, scores):
    inside = [name for number, name in enumerate(IDS) if number % len(GROUPS["size"]) == 1]
    page.locator("#group").select_option(label=f"lesion size: medium ({len(inside)})")
    ranked = [name for name in rank(scores, "train_finetuned") if name in inside]
    assert ids_of_rows(page) == {"best": ranked}
    dimmed = page.locator(".point.dim").evaluate_all("all => all.map((one) => one.dataset.id)")
    assert sorted(dimmed) == sorted(set(IDS) - set(inside))
    assert shown_id(page) in inside
    assert page.locator("#count").inner_text() == f"{len(inside)} of {len(IDS)} images"


def test_leaving_a_group_brings_all_images_back(page):
    before = ids_of_rows(page)
    page.locator("#group").select_option(index=1)
    assert ids_of_rows(page) != before
    page.locator("#group").select_option(index=0)
    assert ids_of_rows(page) == before
    assert page.locator(".point.dim").count() == 0


@pytest.mark.parametrize("of", ["truth", *RUNS])
def test_an_outline_can_be_hidden_and_shown_again(page, of):
    box = page.locator(f"[data-contour={of}]")
    outlines = page.locator(f"#gallery .rows .contour.{of}, #shown .contour.{of}")
    num_outlines = outlines.count()
    assert num_outlines == 3 * NUM_EXAMPLES + 1
    box.uncheck()
    assert not any(outline.is_visible() for outline in outlines.all())
    others = page.locator(f"#shown .contour:not(.{of})")
    assert all(outline.is_visible() for outline in others.all())
    box.check()
    assert all(outline.is_visible() for outline in outlines.all())


def test_the_page_never_scrolls_sideways(page):
    for width in (320, 390, 768, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_dark_page_has_other_colours(page):
    def colours(selector: str) -> list[str]:
        return page.locator(selector).first.evaluate(
            "(one) => { const {color, backgroundColor, fill} = getComputedStyle(one);"
            " return [color, backgroundColor, fill] }"
        )

    selectors = ["body", ".card", "h1", ".mark.train_finetuned"]
    light = list(map(colours, selectors))
    page.emulate_media(color_scheme="dark")
    dark = list(map(colours, selectors))
    assert all(before != after for before, after in zip(light, dark, strict=True))


def test_paper_has_no_controls_and_light_colours_also_in_the_dark(open_page):
    page = open_page(color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert not page.locator("#group").is_visible()
    background = page.locator("body").evaluate("(one) => getComputedStyle(one).backgroundColor")
    assert background == "rgb(255, 255, 255)"


def test_without_script_the_gallery_and_the_plot_are_there(open_page):
    page = open_page(java_script_enabled=False)
    assert page.locator("#gallery .case:visible").count() == 3 * NUM_EXAMPLES
    assert page.locator(".point").count() == len(IDS)
    assert not page.locator("#group").is_visible()
    assert not page.locator("#detail").is_visible()
