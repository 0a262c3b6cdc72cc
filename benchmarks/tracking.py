"""How many requests per second an MLflow server answers, by its store and its workers.

    python -m benchmarks.tracking --store sqlite --store postgresql+psycopg2://mlflow@/mlflow \
        > measured.md

Prints a table in Markdown. Each client has a run and logs the metrics of an epoch in one request,
again and again, as fast as it is answered. Clients are threads on the same machine as the server;
"CPU ms" is what a request costs the server only.
"""

import argparse
import json
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from experiments.recipes import is_there
from lesionseg.errors import LesionsegError, exit_status
from lesionseg.processes import child_environment, start, stop

NUM_METRICS = 8  # of an epoch, about as many as a training logs
HOST = "127.0.0.1"
HEADERS = {"Content-Type": "application/json"}
START_SECONDS = 120.0
HEAD = """\
| store | workers | clients | requests/s | metrics/s | median ms | p99 ms | CPU ms a request |
|---|---:|---:|---:|---:|---:|---:|---:|
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure each store with each number of workers and of clients, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--store", action="append", required=True, help="sqlite, or a database's URI (repeatable)")
    add("--workers", type=int, nargs="+", default=[1, 4])
    add("--clients", type=int, nargs="+", default=[1, 8])
    add("--seconds", type=float, default=15)
    arguments = parser.parse_args(argv)
    sys.stdout.write(HEAD)
    for store in arguments.store:
        for workers in arguments.workers:
            with TemporaryDirectory() as folder, _server(store, workers, Path(folder)) as server:
                for clients in arguments.clients:
                    row = _measured(*server, clients, arguments.seconds)
                    kind = store.split(":")[0].split("+")[0]
                    name = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}.get(kind, kind)
                    sys.stdout.write(f"| {name} | {workers} | {clients} | {row} |\n")
                    sys.stdout.flush()


@contextmanager
def _server(store: str, workers: int, folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """The port and the process of an MLflow server that answers; it ends with the block.

    Raises:
        LesionsegError: It does not start.
    """
    uri = f"sqlite:///{folder}/mlflow.db" if store == "sqlite" else store
    with socket.socket() as free:  # so that no server but ours is measured
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    command += ["--workers", str(workers), "--backend-store-uri", uri]
    log = folder / "server.log"
    with log.open("wb") as stream:
        # As in docs/team/server.env: without processes for jobs that are not used here.
        environment = {**child_environment(), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        process = start(command, cwd=folder, environment=environment, log=stream)
    try:
        end = time.monotonic() + START_SECONDS
        while not is_there(f"http://{HOST}:{port}/health"):
            if process.poll() is not None or time.monotonic() > end:
                said = log.read_text(errors="replace").strip() or "it said nothing"
                raise LesionsegError(f"the server does not start: {said.splitlines()[-1]}")
            time.sleep(1)
        yield port, psutil.Process(process.pid)
    finally:
        stop([process])


def _measured(port: int, server: psutil.Process, clients: int, seconds: float) -> str:
    """A row's figures."""
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(_client, [port] * clients, [0.5] * clients))  # lets it load what it needs
        before = _cpu_seconds(server)
        found = list(pool.map(_client, [port] * clients, [seconds] * clients))
        used = _cpu_seconds(server) - before
    latencies = sorted(each for one in found for each in one)
    rate = len(latencies) / seconds
    p99 = latencies[int(0.99 * (len(latencies) - 1))]
    return (
        f"{rate:.0f} | {rate * NUM_METRICS:.0f} | {1000 * statistics.median(latencies):.0f} | "
        f"{1000 * p99:.0f} | {1000 * used / len(latencies):.0f}"
    )


def _cpu_seconds(server: psutil.Process) -> float:
    """The processor time that the server and its workers have used so far."""
    times = [one.cpu_times() for one in [server, *server.children(recursive=True)]]
    return float(sum(one.user + one.system for one in times))


def _client(port: int, seconds: float) -> list[float]:
    """Seconds of each request, over one persistent connection like that of MLflow's own client."""
    with closing(HTTPConnection(HOST, port, timeout=START_SECONDS)) as connection:

        def ask(name: str, content: Mapping[str, object]) -> Any:
            path = f"/api/2.0/mlflow/runs/{name}"
            connection.request("POST", path, json.dumps(content), HEADERS)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != HTTPStatus.OK:
                raise LesionsegError(f"{name} was answered {answer.status}: {text[:200]!r}")
            return json.loads(text)

        run = ask("create", {"experiment_id": "0"})["run"]["info"]["run_id"]
        latencies = list[float]()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.monotonic()
            same = {"value": 0.5, "timestamp": int(1000 * time.time()), "step": len(latencies)}
            metrics = [{"key": f"m{number}", **same} for number in range(NUM_METRICS)]
            ask("log-batch", {"run_id": run, "metrics": metrics})
            latencies.append(time.monotonic() - began)
    return latencies


if __name__ == "__main__":
    sys.exit(exit_status(main))
