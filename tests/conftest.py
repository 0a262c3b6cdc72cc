"""Shared by all tests: set before anything imports torch."""

import os
import sys

import pytest

import lesionseg  # noqa: F401  (sets how threads wait)

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


# They begin first, the longest at the head: a file that takes minutes must not begin last.
LONG_FILES = (
    "test_pipeline.py",
    "test_team.py",
    "test_registry.py",
    "test_sweep.py",
    "test_curve.py",
    "test_real_data.py",
    "test_wheel.py",
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
