"""The learning curve's figure and page: every number, nothing from elsewhere, any screen."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from matplotlib.colors import to_hex
from test_curve import make_curve

from lesionseg.curve.figure import draw_curve
from lesionseg.curve.page import render_page, write_page
from lesionseg.curve.text import cells, sentences
from lesionseg.report import style
from lesionseg.results.layout import RUNS


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("lesionseg.curve.power_law.NUM_RESAMPLES", 20)


def lines_of(axes, color):
    """The data of all lines of a colour, each as its x and y."""
    return [
        (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
        if to_hex(line.get_color()) == to_hex(color)
    ]


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_the_panels_have_every_mean_seed_interval_and_guess(num_seeds):
    curve = make_curve(num_seeds=num_seeds, sets=("test", "abroad"))
    figure = draw_curve(curve)
    for column, one in enumerate(curve.sets):
        upper, lower = figure.axes[column], figure.axes[2 + column]
        assert upper.get_title(loc="left") == f"{one.name}{', external' * column}: 305 images"
        sizes = [point.num_images for point in one.points]
        for run in RUNS:
            lines = lines_of(upper, style.RUN_COLORS[run])
            assert (sizes, [point.at(run).mean for point in one.points]) in lines
            for point in one.points:
                values = point.at(run).values
                assert ([point.num_images] * num_seeds, values) in lines
            assert any(y == [one.guess.at(run).jaccard.value] for _, y in lines)
        means = [point.difference.mean for point in one.points]
        assert (sizes, means) in lines_of(lower, style.INK)
        assert [len(axes.collections) for axes in (upper, lower)] == (
            [2, 1] if num_seeds > 1 else [0, 0]
        )
        assert lower.get_xscale() == "log"
        ticks = [label.get_text() for label in lower.get_xticklabels()]
        assert ticks == ["40", "80", "159", "318", "637", "1274"]


def test_a_band_is_the_interval():
    curve = make_curve()
    band = draw_curve(curve).axes[1].collections[0]
    corners = {(round(x), round(y, 9)) for x, y in band.get_paths()[0].vertices}
    for point in curve.sets[0].points:
        for end in point.difference.interval:
            assert (point.num_images, round(end, 9)) in corners


def test_many_sets_are_drawn_in_rows():
    curve = make_curve(num_seeds=1, sets=("test", "a", "b", "c"))
    figure = draw_curve(curve)
    assert len(figure.axes) == 2 * 4
    width, height = figure.get_size_inches()
    assert (width, height) == pytest.approx((3 * 4.1, 2 * 5.2))


def test_without_a_guess_nothing_is_dotted():
    curve = make_curve()
    bare = replace(curve, sets=[replace(curve.sets[0], guess=None)])
    for one, is_dotted in ((curve, True), (bare, False)):
        lines = [line for axes in draw_curve(one).axes for line in axes.lines]
        assert any(line.get_linestyle() == ":" for line in lines) == is_dotted


def test_the_page_has_every_number_and_asks_for_nothing(tmp_path):
    curve = make_curve(sets=("test", "abroad"))
    write_page(tmp_path, curve)
    page = (tmp_path / "curve.html").read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page)).replace("&#39;", "'")
    for one in curve.sets:
        for point in one.points:
            assert all(cell in text for cell in cells(point, curve))
        assert all(sentence in text for sentence in sentences(one, curve))
    assert page.count("<svg") == 2
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "lesionseg curve --sizes 40,80,159,318,637 --seeds 3 --set train.epochs=30" in text
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert all(name in ids for name in re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert ElementTree.fromstring((tmp_path / "curve.svg").read_bytes()).tag.endswith("svg")


def test_a_set_s_name_is_text_in_page_and_figure():
    curve = make_curve(sets=("test", "<b>$x$"))
    page = render_page(curve)
    assert "<b>$x$" not in page
    assert "&lt;b&gt;$x$, external" in page


def test_the_same_curve_gives_the_same_bytes():
    curve = make_curve()
    assert render_page(curve) == render_page(curve)


def test_the_page_fits_every_screen_and_is_dark_in_the_dark(open_file, tmp_path):
    write_page(tmp_path, make_curve(sets=("test", "abroad")))
    path = tmp_path / "curve.html"
    page = open_file(path)
    for width in (320, 390, 768, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for figure in page.locator(".chart svg").all():
            assert figure.bounding_box()["width"] <= width

    def colours():
        script = "(one) => [getComputedStyle(one).fill, getComputedStyle(one).stroke]"
        marks = page.locator('svg [style*="--frozen"]').first
        return marks.evaluate(script), page.locator("svg text").first.evaluate(script)

    light = colours()
    page.emulate_media(color_scheme="dark")
    dark = colours()
    assert all(before != after for before, after in zip(light, dark, strict=True))
    assert page.complaints == [path.as_uri()]
