"""A cluster on one machine: nodes, an MLflow server and remotes in a network of their own.

Ray listens on all interfaces, so it is given a network namespace with nothing but the loopback; in
a namespace of processes nothing outlives the test.
"""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
from fake_pipeline import FAKE_STAGE, call, environment, fake_repository

ROOT = Path(__file__).parents[1]
NODES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
PORT, CLIENT_PORT, SERVER = 6379, 10001, "http://127.0.0.1:5000"
ADDRESS = f"ray://{NODES[0]}:{CLIENT_PORT}"
TOKEN = "a" * 64
UNSHARE = ("unshare", "--net", "--pid", "--fork", "--mount-proc")
# What a training of the fake pipeline does beside: it is a run in MLflow, lasts as long as a file
# names it, and ends with its DVC, as stages do.
LOGGED = """
import json, os, sys, time
from pathlib import Path
parent = os.getppid()
name = sys.argv[1]
if name.startswith("train_") and os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"):
    import yaml
    from lesionseg.processes import end_with_dvc
    from lesionseg.tracking.runs import training_run
    end_with_dvc(parent=parent)
    dropout = yaml.safe_load(Path("params.yaml").read_text())["model"]["dropout"]
    key = f"{name}-{dropout}"
    tags = {"dvc_stage": name, "dvc_experiment": os.environ["DVC_EXP_NAME"], "commit": "0" * 40,
            "training_key": key, "params_sha256": key, "data_sha256": "-"}
    folder = Path(".checkpoints") / key
    folder.mkdir(parents=True, exist_ok=True)
    slow = Path(os.environ["FAKE_RUNS"]).parent / "slow.json"
    with training_run(name, params={}, tags=tags, id_path=folder / "run_id"):
        words = f"val jaccard {1 - dropout:.3f}, x; 1 s, about 0.1 min left"
        print(f"{name} epoch 1/2: {words}", flush=True)
        while key in json.loads(slow.read_text()):
            time.sleep(0.2)
"""


def skip_without_namespaces():
    """Skip where a cluster cannot be had, with the reason."""
    pytest.importorskip("ray", reason="ray is missing: pip install -e '.[cluster]'")
    pytest.importorskip("grpc", reason="grpcio is missing: pip install -e '.[cluster]'")
    if not (shutil.which("unshare") and shutil.which("nsenter") and shutil.which("ip")):
        pytest.skip("needs unshare, nsenter and ip")
    done = subprocess.run([*UNSHARE, "ip", "link", "set", "lo", "up"], capture_output=True)
    if done.returncode:
        pytest.skip(f"no namespace can be made: {done.stderr.decode().strip()}")


class World:
    """The cluster, with a project whose remotes all nodes reach."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started = []
        self.project = self._make_project()
        command = "ip link set lo up && echo ready && exec sleep 3600"
        self._holder = subprocess.Popen(
            [*UNSHARE, "sh", "-c", command], stdout=subprocess.PIPE, text=True
        )
        assert self._holder.stdout.readline() == "ready\n"
        (self._init,) = psutil.Process(self._holder.pid).children()

    def _make_project(self) -> Path:
        project = fake_repository(self.folder / "project")
        (project / "fake.py").write_text(LOGGED + FAKE_STAGE)
        remote = self.folder / "remote.git"
        call(self.folder, "git", "init", "--quiet", "--bare", str(remote))
        call(project, "git", "remote", "add", "origin", str(remote))
        call(project, "dvc", "remote", "add", "--default", "team", str(self.folder / "data"))
        call(project, "git", "commit", "--quiet", "--all", "--message", "remotes")
        call(project, "git", "push", "--quiet", "origin", "HEAD:main")
        self.hold()
        return project

    def hold(self, *trainings: str) -> None:
        """Let these trainings not end, and no others: `train_frozen-0.2`, its run and dropout."""
        path = self.folder / "slow.json.new"
        path.write_text(json.dumps(trainings))
        path.replace(self.folder / "slow.json")

    def environment(self, **more: str) -> dict[str, str]:
        return {
            **environment(self.project),
            "MLFLOW_TRACKING_URI": SERVER,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_USAGE_STATS_ENABLED": "0",
            # The machine may have much else to do.
            "RAY_raylet_start_wait_time_s": "600",
            "RAY_health_check_failure_threshold": "10",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
            **more,
        }

    def start(self, *command: str, log: str = "", **more: str):
        """A command in the namespace, its output in pipes, or in a file of `folder`."""
        inside = ["nsenter", "--target", str(self._init.pid), "--net", "--pid", "--mount", "--"]
        enter = ["sh", "-c", 'cd "$0" && exec "$@"', str(self.project)]
        output = (self.folder / log).open("w") if log else subprocess.PIPE
        process = subprocess.Popen(
            [*inside, *enter, *command],
            env=self.environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=True,
        )
        if log:
            output.close()
        self._started.append(process)
        return process

    def run(self, *command: str, **more: str) -> tuple[int, str, str]:
        process = self.start(*command, **more)
        output, errors = process.communicate(timeout=600)
        return process.returncode, output, errors

    def lesionseg(self, *arguments: str, **more: str):
        return self.start(sys.executable, "-m", "lesionseg", *arguments, **more)

    def ray(self, *arguments: str, **more: str) -> None:
        code = "from ray.scripts.scripts import main; main()"
        status, _, errors = self.run(sys.executable, "-c", code, *arguments, **more)
        assert status == 0, errors

    def start_head(self, **more: str) -> None:
        """The first node."""
        address, short = f"--node-ip-address={NODES[0]}", self.folder / "r"
        options = ["--include-dashboard=false", "--object-store-memory=80000000"]
        client = f"--ray-client-server-port={CLIENT_PORT}"
        options += [f"--port={PORT}", client, "--num-cpus=1", f"--temp-dir={short}"]
        cache = str(self.folder / "node-1")
        self.ray("start", "--head", address, *options, XDG_CACHE_HOME=cache, **more)

    def start_node(self, number: int = 2, **more: str) -> None:
        """A further node, a number counting from 1."""
        address = f"--node-ip-address=127.0.0.{number + 1}"
        options = ["--object-store-memory=80000000", "--num-cpus=1"]
        cache = str(self.folder / f"node-{number}")
        to = f"--address={NODES[0]}:{PORT}"
        self.ray("start", to, address, *options, XDG_CACHE_HOME=cache, **more)

    def start_server(self) -> None:
        """The MLflow server; it answers when this returns."""
        command = [*("mlflow", "server", "--host", "127.0.0.1", "--port", "5000", "--workers", "1")]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        options = {"log": "server.log", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        server, log = self.start(*command, **options), self.folder / "server.log"
        self.wait_for(lambda: "Application startup complete" in log.read_text(), server)

    def kill_node(self, address: str) -> None:
        """End a node by force: Ray's own process there, whose workers then end by themselves."""
        for process in self.processes():
            words = self._words(process)
            is_raylet = bool(words) and words[0].endswith("raylet/raylet")
            if is_raylet and f"--node_ip_address={address}" in words:
                process.kill()

    def kill_head(self) -> None:
        """End by force what all nodes and clients ask: the control service and its client's."""
        for process in self.processes():
            words = " ".join(self._words(process))
            if "gcs_server" in words or "ray.util.client.server" in words:
                process.kill()

    def processes(self) -> list[psutil.Process]:
        """All that run in the namespace."""
        found, space = [], Path(f"/proc/{self._init.pid}/ns/pid").readlink()
        for process in psutil.process_iter():
            with suppress(OSError):
                if Path(f"/proc/{process.pid}/ns/pid").readlink() == space:
                    found.append(process)
        return found

    @staticmethod
    def _words(process: psutil.Process) -> list[str]:
        try:
            return process.cmdline()
        except psutil.Error:
            return []

    def stages(self) -> list[str]:
        """What trials run now: the stages' command lines."""
        lines = {one.pid: " ".join(self._words(one)) for one in self.processes()}
        return [line for line in lines.values() if "fake.py" in line or "dvc exp run" in line]

    def wait_for(self, condition, process, *, seconds: float = 600) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert process.poll() is None, process.stderr and process.communicate()
            assert time.monotonic() < deadline, "it takes too long"
            time.sleep(0.2)

    def runs(self) -> list[tuple[str, str, str]]:
        """The trainings that MLflow knows: stage, experiment and status, sorted."""
        query = """
            select stage.value, experiment.value, status from runs
            join tags as stage on stage.run_uuid = runs.run_uuid and stage.key = 'dvc_stage'
            join tags as kind on kind.run_uuid = runs.run_uuid and kind.key = 'kind'
            join tags as experiment on experiment.run_uuid = runs.run_uuid
                and experiment.key = 'dvc_experiment' where kind.value = 'training'
        """
        path = self.folder / "server.db"
        address = f"file:{path}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=30)) as connection:
            return sorted(connection.execute(query).fetchall())

    def close(self) -> None:
        self._init.send_signal(signal.SIGKILL)
        for process in [self._holder, *self._started]:
            process.wait()
            for stream in filter(None, (process.stdout, process.stderr)):
                stream.close()


def end(process, number: signal.Signals) -> None:
    """Signal the command in the namespace, not the program that brought it there."""
    for child in psutil.Process(process.pid).children():
        child.send_signal(number)
