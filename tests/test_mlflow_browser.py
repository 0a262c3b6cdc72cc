"""MLflow's own pages in a real browser: a link leads straight to the comparison and to the report.

They are MLflow's, and what the views are made of is not documented: this is what an upgrade breaks.
"""

import urllib.error
import urllib.request

import pytest

from lesionseg.results.layout import Results
from lesionseg.tracking import pages
from lesionseg.tracking.replay import replay
from tests.mlflow_contents import write_project

MILLISECONDS = 120_000  # for a busy machine
NO_ASSISTANT = "localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false')"


@pytest.fixture(scope="module")
def site(browser, tmp_path_factory, empty_store):
    """A project with one pipeline run, the address of its pages, and its links by name."""
    root = tmp_path_factory.mktemp("project")
    page = "<!doctype html><title>The page</title><h1>Which is better?</h1>"
    write_project(root, empty_store, report=page)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(root))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        replay(Results(root / "results"), root / "data/processed")
        sites = pages.find_sites(root)
        with pages.serve(sites, port=5600) as (url,):
            yield url, dict(line.strip().rsplit("  ", 1) for line in sites[0].lines(url)[1:])
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=5)


@pytest.fixture
def links(site):
    return {name.strip(): link for name, link in site[1].items()}


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1800, "height": 900})
    page = context.new_page()
    page.set_default_timeout(MILLISECONDS)
    page.add_init_script(NO_ASSISTANT)
    yield page
    context.close()


def test_the_first_link_leads_straight_to_the_chart_of_both_models(page, links):
    page.goto(links["frozen or fine-tuned"])
    page.get_by_text("Frozen or fine-tuned?").first.wait_for()
    chart = page.get_by_test_id("experiment-view-compare-runs-card").filter(has_text="test/jaccard")
    for name in ("pyramid · frozen · seed 0", "pyramid · fine-tuned · seed 0"):
        chart.first.get_by_text(name).first.wait_for()
    assert page.locator(".bars .point").count() >= 4  # of two charts with two bars each
    assert page.get_by_text("share key is invalid").count() == 0


def test_the_table_has_a_line_for_each_pipeline_run_with_its_difference(page, links):
    page.goto(links["table"])
    page.get_by_role("link", name="frozen vs fine-tuned · seed 0").wait_for()
    heads = page.get_by_role("columnheader").all_inner_texts()
    assert {"difference/jaccard", "difference/jaccard_low", "frozen/jaccard"} <= set(heads)
    assert page.locator(".ag-center-cols-container [role=row]").count() == 1


def test_the_differences_are_a_chart(page, links):
    page.goto(links["differences"])
    page.get_by_text("Fine-tuned minus frozen").first.wait_for()
    page.locator(".bars .point").first.wait_for()


def test_the_note_of_a_pipeline_run_leads_to_its_report(page, links):
    page.goto(links["newest report"].partition("/artifacts")[0])
    link = page.get_by_role("link", name="Open the report")
    assert links["newest report"].endswith(link.get_attribute("href"))
    page.goto(links["newest report"])
    page.frame_locator("iframe").get_by_text("Which is better?").wait_for()
