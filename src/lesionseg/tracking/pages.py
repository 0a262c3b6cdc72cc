"""MLflow's pages for the runs of this project and its demos, and links into them."""

import os
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lesionseg.errors import LesionsegError, MissingFileError, TrackingError
from lesionseg.files import project_root
from lesionseg.processes import (
    Process,
    child_environment,
    deferred,
    start,
    stop,
    stopped_like_ctrl_c,
)
from lesionseg.tracking import parents, store, views

FIRST_PORT = 5000  # MLflow's own
DEMOS = {".demo": "The demo", ".sweep": "The small sweep"}  # folders of `make demo`, `make sweep`
_START_SECONDS = 120.0  # for a server on a busy machine
_MOST_PORTS = 20


@dataclass(frozen=True, kw_only=True)
class Site:
    """A store of runs whose pages can be viewed.

    Attributes:
        name: Whose runs they are, for a heading.
        address: The store's address, for `mlflow server`.
        experiment_id: MLflow's id of the experiment.
        runs: The number of pipeline runs and of trainings.
        newest: The path of the page of the newest pipeline run with a report, or "".
    """

    name: str
    address: str
    experiment_id: str
    runs: tuple[int, int]
    newest: str

    @property
    def is_served(self) -> bool:
        """Whether it is on a server, which serves the pages itself."""
        return self.address.startswith(("http://", "https://"))

    def links(self) -> dict[str, str]:
        """What can be viewed, and its path on the pages."""
        found = views.links(self.experiment_id)
        shown = {
            "frozen or fine-tuned": found["models"],
            "differences": found["differences"],
            "table": found["table"],
            "newest report": self.newest,
        }
        return {name: path for name, path in shown.items() if path}

    def lines(self, url: str) -> list[str]:
        """A heading, and a link for everything to view.

        Args:
            url: Where the pages are served.
        """
        kinds = zip(self.runs, ("pipeline run", "training"), strict=True)
        counted = (f"{number} {kind}{'' if number == 1 else 's'}" for number, kind in kinds)
        heading = f"{self.name}: {', '.join(counted)}"
        return [heading, *(f"  {name:22}{url}/{path}" for name, path in self.links().items())]


def find_sites(root: Path) -> list[Site]:
    """The project's store and those of its demos, if there are any.

    Raises:
        MissingFileError: There is no store.
        LesionsegError: One cannot be used.
    """
    sites = []
    is_elsewhere = bool(os.environ.get("MLFLOW_TRACKING_URI"))
    try:
        if is_elsewhere or (root / "mlruns/mlflow.db").exists():
            sites.append(_open("This project"))
        for folder, name in DEMOS.items():
            if (root / folder / "mlruns/mlflow.db").exists():
                sites.append(site_of(root / folder, name))
    except TrackingError as error:
        remedy = error.mend and f"{error.mend} run: lesionseg ui"
        raise LesionsegError(error.problem, remedy) from error
    if not sites:
        raise MissingFileError(f"{root / 'mlruns'} holds no runs. Run: dvc repro")
    return sites


def site_of(project: Path, name: str = "") -> Site:
    """Another project's own store, whatever MLFLOW_TRACKING_URI is.

    Raises:
        TrackingError: It cannot be used.
    """
    with _inside(project):
        return _open(name)


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """A block in which a folder is the project, and its own store is used."""
    before = {name: os.environ.pop(name, None) for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI")}
    os.environ["DVC_ROOT"] = str(folder)
    try:
        yield
    finally:
        del os.environ["DVC_ROOT"]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _open(name: str) -> Site:
    client, experiment_id = store.connect()

    def count(kind: str) -> int:
        query = f"tags.kind = '{kind}'"
        return len(client.search_runs([experiment_id], query, max_results=10_000))

    def newest() -> str:
        found = client.search_runs([experiment_id], "tags.report_sha256 != ''", max_results=1)
        return views.report_link(experiment_id, found[0].info.run_id) if found else ""

    ask = store.current().ask
    return Site(
        name=name,
        address=store.uri(),
        experiment_id=experiment_id,
        runs=(ask(lambda: count(parents.PIPELINE)), ask(lambda: count("training"))),
        newest=ask(newest),
    )


def show(root: Path, *, port: int = FIRST_PORT) -> None:
    """Serve the pages of a project's runs and print links to them, until we are interrupted.

    Args:
        root: The project.
        port: The first port to try.

    Raises:
        LesionsegError: There are no runs, or their pages cannot be served.
    """
    sites = find_sites(root)
    with stopped_like_ctrl_c(), serve(sites, port=port) as urls:
        lines = [line for site, url in zip(sites, urls, strict=True) for line in site.lines(url)]
        is_ours = any(not site.is_served for site in sites)
        end = ["Ctrl-C ends the pages"] if is_ours else []
        sys.stdout.write("\n".join([*lines, *end, ""]))
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):
            while is_ours:
                time.sleep(1)


@contextmanager
def serve(sites: Sequence[Site], *, port: int = FIRST_PORT) -> Iterator[list[str]]:
    """The address of each site's pages, for as long as the block takes.

    Args:
        sites: As from `find_sites`. For a site on a server, none is started.
        port: The first port to try.

    Raises:
        LesionsegError: A server does not start.
    """
    with ExitStack() as servers:
        urls = []
        for site in sites:
            if site.is_served:
                urls.append(site.address.rstrip("/"))
                continue
            port = _free_port(port)
            urls.append(servers.enter_context(_server(site.address, port)))
            port += 1
        yield urls


@contextmanager
def _server(address: str, port: int) -> Iterator[str]:
    """The URL of an MLflow server for a store, once it answers."""
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", address]
    # Without the processes for jobs that evaluate language models.
    environment = {**child_environment(), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    processes: list[Process] = []
    with tempfile.TemporaryFile() as log:
        try:
            with deferred():
                processes.append(
                    start(command, cwd=project_root(), environment=environment, log=log)
                )
            if not _answers(url, processes[0]):
                log.seek(0)
                lines = log.read().decode(errors="replace").split("\n")
                last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
                raise LesionsegError(
                    f"MLflow's server does not start ({last.strip()[:200]}). Run again, or with "
                    f"another port: lesionseg ui --port {port + 1000}"
                )
            yield url
        finally:
            stop(processes)


def _answers(url: str, process: Process) -> bool:
    """Whether a server answers in time, and before its process ends."""
    end = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
        time.sleep(0.2)
    return False


def _free_port(first: int) -> int:
    """The first free port from `first` on.

    Raises:
        LesionsegError: The next `_MOST_PORTS` are all taken.
    """
    for port in range(first, first + _MOST_PORTS):
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                taken.bind(("127.0.0.1", port))
                return port
    raise LesionsegError(
        f"ports {first} to {first + _MOST_PORTS - 1} are taken. Name another: lesionseg ui --port N"
    )
