"""Shared by all tests: set before anything imports torch."""

import os
import shutil
import signal
import sys

import pytest

import lesionseg  # noqa: F401  (sets how threads wait)

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

# In the background, or under nohup, a shell has told its children to ignore these, and their
# children too: tests that send them would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


# They begin first, the longest at the head: a file that takes minutes must not begin last.
LONG_FILES = (
    "test_pipeline.py",
    "test_team.py",
    "test_distributed.py",
    "test_registry.py",
    "test_sweep.py",
    "test_curve.py",
    "test_real_data.py",
    "test_wheel.py",
    "test_segment_page.py",
    "test_report_browser.py",
    "test_training.py",
    "test_served.py",
    "test_replay.py",
)


def pytest_collection_modifyitems(items):
    """Bring the files that take longest to the front, each as a whole."""
    ranks = {name: rank for rank, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


@pytest.fixture(autouse=True)
def same_draws():
    """What a test draws from torch's own generator does not depend on the tests before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="module")
def one_thread():
    """Threads that wait for each other on a busy machine make tiny networks take minutes."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def encoder_state():
    import torch

    from lesionseg.mobilenet import mobilenet_v2

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return mobilenet_v2(weights=None).features.state_dict()


@pytest.fixture(scope="module")
def model_path(tmp_path_factory, encoder_state):
    from tests.trained_results import save_random_model

    path = tmp_path_factory.mktemp("model") / "model.pt"
    return save_random_model(path, encoder_state, decoder="transposed")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """The database of a store without runs: MLflow takes a second to make one, a copy nothing."""
    from lesionseg.tracking import store

    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("store")
        patch.setenv("DVC_ROOT", str(root))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store.connect()
    return root / "mlruns/mlflow.db"


@pytest.fixture
def bare_project(tmp_path, monkeypatch):
    """A project without a store, and a process that knows of none."""
    from lesionseg.tracking import store

    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(store, "_stores", {})
    return tmp_path


@pytest.fixture
def project_with_store(bare_project, empty_store):
    """A project with a store without runs."""
    (bare_project / "mlruns").mkdir()
    shutil.copy(empty_store, bare_project / "mlruns")
    return bare_project


@pytest.fixture(scope="session")
def browser():
    """A real browser, driven by playwright; what needs one skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs: pip install playwright")
    known = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, known)), None)
    if path is None:
        pytest.skip("needs chromium or google-chrome")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    arguments += ["--disable-component-update", "--disable-sync"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_file(browser):
    """Opens a page from disk; what went wrong or was asked of the network is in `complaints`.

    A script, if given, runs before the page's own.
    """
    contexts = []

    def open_file(path, *, script="", **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)  # the machine may have much else to do
        page.add_init_script(script)
        page.complaints = []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda request: page.complaints.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
