"""Retake the screenshots of MLflow's pages in docs/, from the demo's runs: `make screenshots`.

Needs the demo (which it runs if necessary), and chromium or google-chrome on this machine.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import demo
from lesionseg.errors import LesionsegError, exit_status
from lesionseg.results.layout import Results
from lesionseg.tracking import pages

if TYPE_CHECKING:
    from playwright.sync_api import Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH = 1400  # pixels
PATIENCE = 120_000  # milliseconds for a page, on a busy machine
SETTLED = 3_000  # milliseconds, until bars and curves stop moving
# MLflow opens its assistant, a chat, on the first visit.
NO_ASSISTANT = "".join(
    f"localStorage.setItem('mlflow.assistant.{key}_v1', '{value}');"
    for key, value in (("panelOpen", "false"), ("fab.autoOpenedOnFirstLoad", "true"))
)
UNFOLD = "[data-component-id$='runnamecellrenderer.tsx_46']"  # the plus sign of a run with children


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo if necessary, and take the pictures."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.screenshots",
        description=__doc__,
        epilog="Example: python -m experiments.screenshots --to /tmp",
    )
    parser.add_argument("--to", type=Path, default=demo.ROOT / "docs", help="where they go")
    parser.add_argument("--dir", type=Path, default=demo.ROOT / ".demo", help="where the demo is")
    arguments = parser.parse_args(argv)
    if not Results(arguments.dir / "results").report.exists():
        demo.main(["--dir", str(arguments.dir)])
    for path in take(arguments.dir, arguments.to):
        sys.stdout.write(f"{path}\n")


def take(project: Path, folder: Path) -> list[Path]:
    """Take the pictures of a project's pages; their paths in `folder`.

    Raises:
        LesionsegError: There is no browser.
    """
    from playwright.sync_api import sync_playwright

    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        raise LesionsegError(f"none of {', '.join(BROWSERS)} is installed. Install one of them")
    site = pages.site_of(project)
    with pages.serve([site]) as (url,), sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 800})
        page.set_default_timeout(PATIENCE)
        page.add_init_script(NO_ASSISTANT)
        links = {name: f"{url}/{path}" for name, path in site.links().items()}
        return [
            _compare(page, links["frozen or fine-tuned"], folder / "mlflow.png"),
            _table(page, links["table"], folder / "mlflow-runs.png"),
            _run(page, links["newest report"], folder / "mlflow-run.png"),
        ]


def _compare(page: "Page", link: str, path: Path) -> Path:
    """Test jaccard of both models as bars."""
    page.goto(link)
    page.locator(".bars .point").first.wait_for()
    return _shoot(page, path)


def _table(page: "Page", link: str, path: Path) -> Path:
    """The table of pipeline runs, the first one unfolded."""
    page.goto(link)
    page.reload()  # MLflow keeps showing the previous view's content otherwise
    page.locator(UNFOLD).first.click()
    return _shoot(page, path, height=520)


def _run(page: "Page", link: str, path: Path) -> Path:
    """The page of a pipeline run: its answer, its metrics, its trainings."""
    run, _, rest = link.partition("/artifacts")
    page.goto(f"{run}?{rest.partition('?')[2]}")
    page.get_by_role("link", name="Open the report").wait_for()
    return _shoot(page, path)


def _shoot(page: "Page", path: Path, *, height: int = 800) -> Path:
    page.set_viewport_size({"width": WIDTH, "height": height})
    page.wait_for_timeout(SETTLED)
    page.screenshot(path=path)
    return path


if __name__ == "__main__":
    sys.exit(exit_status(main))
