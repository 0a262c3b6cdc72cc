"""The set-up of docs/team.md, run for real: PostgreSQL, an S3 server and the MLflow server.

All of them on free ports of this machine, from the files in docs/team/.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from experiments.demo import ROOT, copy_pipeline
from lesionseg.config import override, read_yaml
from lesionseg.processes import child_environment, git_identity
from lesionseg.results.layout import RUNS
from tests.ports import free_port
from tests.raw_data import phantoms

for package in ("psycopg2", "boto3", "dvc_s3", "moto.server", "flask_wtf"):
    pytest.importorskip(package, reason=f"{package} is missing: pip install -e '.[dev,team]'")
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
if not POSTGRES:
    pytest.skip(
        "no PostgreSQL in /usr/lib/postgresql: apt-get install postgresql", allow_module_level=True
    )
BIN = POSTGRES[-1].parent
TEAM = ROOT / "docs/team"
PARAMS = {
    **phantoms(num_train=12, num_test=4),
    "train.epochs": 2,
    "train.batch_size": 4,
    "train.device": "cpu",
    "train_finetuned.encoder_lr": 0.001,
    "evaluate.num_resamples": 200,
}
PASSWORDS = {
    "<database-password>": "of-the-database",
    "<admin-password>": "of-the-administrator",
    "<flask-secret>": "of-the-forms",
    "<s3-key>": "a-key",
    "<s3-secret>": "a-secret",
}
PEOPLE = {"ada": "first-of-the-team", "ben": "second-of-the-team"}
# The servers must not outlive the tests, not even killed ones: when our end of the pipe is closed,
# all of the server's process group stops (PostgreSQL at once only on SIGQUIT).
UNTIL_STDIN_ENDS = """
exec 3<&0 </dev/null
(trap "" TERM QUIT; read -r _ <&3; kill -TERM 0; kill -QUIT 0) &
exec "$@" 3<&-
"""
INHERITED = {
    **child_environment(without=["DVC_", "MLFLOW_", "AWS_", "PG"]),
    **git_identity(ROOT, stranger="Team"),
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}
INHERITED["PATH"] = os.pathsep.join([str(BIN), INHERITED["PATH"]])


def run(command: list[str], *, folder: Path, env: dict[str, str]) -> str:
    """Standard output and error of a command that succeeds."""
    done = subprocess.run(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


@contextmanager
def server(
    command: list[str],
    *,
    ready: list[str] | str,
    folder: Path,
    env: dict[str, str],
    user: str | None = None,
) -> Iterator[None]:
    """A server that answers, for as long as the block takes; then nothing of its process group.

    Args:
        ready: Address that answers, or command that succeeds, once the server is there.
    """
    log = folder / f"{len(list(folder.iterdir()))}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            ["sh", "-c", UNTIL_STDIN_ENDS, "sh", *command],
            cwd=folder,
            env=env,
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=stream,
            user=user,
            process_group=0,
        )
    try:
        deadline = time.monotonic() + 90
        while not answers(ready, env=env):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{command} does not answer:\n{log.read_text()[-4000:]}")
            time.sleep(0.2)
        yield
    finally:
        process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(ready: list[str] | str, *, env: dict[str, str]) -> bool:
    if isinstance(ready, list):
        return subprocess.run(ready, env=env, capture_output=True).returncode == 0
    try:
        with urllib.request.urlopen(ready, timeout=5):
            return True
    except OSError:
        return False


@contextmanager
def postgres(folder: Path) -> Iterator[dict[str, str]]:
    """PostgreSQL in `folder`; the environment in which its clients are its administrator."""
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    if user:
        shutil.chown(folder, user)
    client = {**INHERITED, "PGHOST": str(folder), "PGPORT": str(free_port()), "PGUSER": "postgres"}
    initdb = [BIN / "initdb", "-D", folder / "data", "-U", "postgres", "--no-sync"]
    initdb += ["--auth-local=trust", "--auth-host=scram-sha-256", "--locale=C.UTF-8"]
    subprocess.run(initdb, check=True, capture_output=True, cwd=folder, env=INHERITED, user=user)
    command = [str(BIN / "postgres"), "-D", str(folder / "data"), "-k", str(folder)]
    command += ["-h", "127.0.0.1", "-p", client["PGPORT"], "-c", "fsync=off"]
    ready = [str(BIN / "pg_isready")]
    with server(command, ready=ready, folder=folder, env=client, user=user):
        yield client


def filled_in(name: str, values: dict[str, str]) -> str:
    """A file of docs/team/ with its placeholders replaced."""
    text = (TEAM / name).read_text()
    for placeholder, value in values.items():
        assert placeholder in text or name != "server.env", placeholder
        text = text.replace(placeholder, value)
    return text


class Team:
    """What the three servers are reached by."""

    def __init__(self, folder: Path, database: dict[str, str], s3_url: str, url: str) -> None:
        self.folder, self.database, self.s3_url, self.url = folder, database, s3_url, url
        self.keys = {
            "AWS_ENDPOINT_URL_S3": s3_url,
            "AWS_ACCESS_KEY_ID": PASSWORDS["<s3-key>"],
            "AWS_SECRET_ACCESS_KEY": PASSWORDS["<s3-secret>"],
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def environment(self, person: str) -> dict[str, str]:
        """A member's: the server's address and an account, but no key of the artefact store."""
        return {
            **INHERITED,
            "MLFLOW_TRACKING_URI": self.url,
            "MLFLOW_TRACKING_USERNAME": person,
            "MLFLOW_TRACKING_PASSWORD": PEOPLE[person],
        }

    def psql(self, query: str, *, database: str = "mlflow") -> list[str]:
        """Rows, their columns separated by |."""
        command = ["psql", "-X", "-A", "-t", "-d", database, "-c", query]
        return run(command, folder=self.folder, env=self.database).split()

    def objects(self, bucket: str) -> dict[str, int]:
        """Sizes in bytes by key."""
        code = (
            "import boto3, json; pages = boto3.client('s3').get_paginator('list_objects_v2')"
            f".paginate(Bucket='{bucket}'); print(json.dumps({{o['Key']: o['Size'] for page in "
            "pages for o in page.get('Contents', [])}))"
        )
        command = [sys.executable, "-c", code]
        return json.loads(run(command, folder=self.folder, env={**INHERITED, **self.keys}))


@pytest.fixture(scope="module")
def team() -> Iterator[Team]:
    """Steps 1 and 2 of the guide."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lesionseg-team-")))
        folder.chmod(0o755)
        (folder / "postgres").mkdir()
        database = stack.enter_context(postgres(folder / "postgres"))
        command = ["psql", "-X", "--variable", f"password={PASSWORDS['<database-password>']}"]
        command += ["--set", "ON_ERROR_STOP=1", "--file", str(TEAM / "database.sql")]
        run(command, folder=folder, env=database)

        port, s3_port = free_port(), free_port()
        result = Team(folder, database, f"http://127.0.0.1:{s3_port}", f"http://127.0.0.1:{port}")
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(s3_port)]
        ready = f"{result.s3_url}/moto-api/"
        stack.enter_context(server(command, ready=ready, folder=folder, env=INHERITED))
        buckets = [sys.executable, str(TEAM / "buckets.py")]
        for _ in range(2):  # running it again changes nothing
            run(buckets, folder=folder, env={**INHERITED, **result.keys})

        places = {
            "127.0.0.1:5432": f"127.0.0.1:{database['PGPORT']}",
            "https://s3.example.org": result.s3_url,
            "MLFLOW_PORT=5000": f"MLFLOW_PORT={port}",
            "127.0.0.1:5000": f"127.0.0.1:{port}",
            "/etc/mlflow": str(folder),
        }
        settings = dict(
            line.split("=", 1)
            for line in filled_in("server.env", {**PASSWORDS, **places}).splitlines()
            if not line.startswith("#")
        )
        accounts = filled_in("basic_auth.ini", {**PASSWORDS, **places})
        (folder / "basic_auth.ini").write_text(accounts)
        unit = (TEAM / "mlflow.service").read_text()
        command = shlex.split(re.findall(r"(?m)^ExecStart=/opt/mlflow/bin/mlflow (.*)$", unit)[0])
        command = [
            sys.executable,
            "-m",
            "mlflow",
            *command,
            "--workers",
            "1",
        ]  # the last one counts
        env = {**INHERITED, **settings}
        ready = f"{result.url}/health"
        stack.enter_context(server(command, ready=ready, folder=folder, env=env))
        administrator = {
            "MLFLOW_TRACKING_URI": result.url,
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": PASSWORDS["<admin-password>"],
        }
        for person, password in [*PEOPLE.items(), *PEOPLE.items()]:  # again: a new password
            run(
                [sys.executable, str(TEAM / "account.py"), person],
                folder=folder,
                env={**INHERITED, **administrator, "NEW_PASSWORD": password},
            )
        yield result


def block(name: str) -> str:
    """The commands of the guide that stand below `<!-- tested: NAME -->`."""
    (found,) = re.findall(
        rf"<!-- tested: {name} -->\n```bash\n(.*?)```",
        (ROOT / "docs/team.md").read_text(),
        re.DOTALL,
    )
    return found


def follow(name: str, *, folder: Path, env: dict[str, str]) -> str:
    """What a block of the guide prints."""
    return run(["bash", "-euo", "pipefail", "-c", block(name)], folder=folder, env=env)


def stages_run(output: str) -> list[str]:
    return re.findall(r"Running stage '(\w+)'", output)


@pytest.fixture(scope="module")
def ada(team) -> Path:
    """The project of the team's first member after her training, step 3 of the guide."""
    env, project = team.environment("ada"), team.folder / "ada"
    copy_pipeline(project)
    (project / "params.yaml").write_text(override(read_yaml(ROOT / "params.yaml"), PARAMS))
    origin = team.folder / "origin.git"
    run(
        ["git", "init", "--quiet", "--bare", "--initial-branch=main", origin],
        folder=team.folder,
        env=env,
    )
    run(["git", "init", "--quiet", "--initial-branch=main"], folder=project, env=env)
    run(["git", "remote", "add", "origin", origin], folder=project, env=env)
    remote = {
        "S3_ENDPOINT": team.s3_url,
        "DVC_KEY": PASSWORDS["<s3-key>"],
        "DVC_SECRET": PASSWORDS["<s3-secret>"],
    }
    run(["dvc", "init", "--quiet", "--force"], folder=project, env=env)
    for name in (".gitignore", ".dvc/config"):
        shutil.copyfile(ROOT / name, project / name)
    follow("remote", folder=project, env={**env, **remote})
    follow("keys", folder=project, env={**env, **remote})
    output = run(["dvc", "repro"], folder=project, env=env)
    assert "MLflow is not available" not in output, output
    assert stages_run(output) == ["download", "preprocess", *RUNS, "evaluate", "report"]
    run(["git", "add", "."], folder=project, env=env)
    run(["git", "commit", "--quiet", "-m", "First results"], folder=project, env=env)
    run(["git", "push", "--quiet", "origin", "main"], folder=project, env=env)
    run(["dvc", "push"], folder=project, env=env)
    return project


@pytest.fixture(scope="module")
def ben(team, ada) -> Path:
    """A colleague's clone, with his keys and nothing else."""
    env, project = team.environment("ben"), team.folder / "ben"
    run(
        ["git", "clone", "--quiet", team.folder / "origin.git", project],
        folder=team.folder,
        env=env,
    )
    remote = {"DVC_KEY": PASSWORDS["<s3-key>"], "DVC_SECRET": PASSWORDS["<s3-secret>"]}
    follow("keys", folder=project, env={**env, **remote})
    return project


def test_both_trainings_are_in_the_database_and_their_artefacts_in_the_bucket(team, ada):
    query = (
        "SELECT run_uuid, value, status, artifact_uri FROM runs JOIN tags USING (run_uuid) "
        "WHERE key = 'dvc_stage'"
    )
    rows = team.psql(query)
    runs = {name: (key, status, uri) for key, name, status, uri in (row.split("|") for row in rows)}
    assert sorted(runs) == sorted(RUNS)
    assert len(rows) == len(RUNS)
    parents = "SELECT DISTINCT value FROM tags WHERE key = 'mlflow.parentRunId'"
    pipelines = "SELECT run_uuid FROM tags WHERE value = 'pipeline run'"
    assert team.psql(parents) == team.psql(pipelines)
    objects = team.objects("lesionseg-mlflow")
    for name, (key, status, uri) in runs.items():
        assert status == "FINISHED"
        assert (
            uri == f"mlflow-artifacts:/1/{key}/artifacts"
        )  # through the server, not to the bucket
        stored = {k.split("artifacts/")[1]: size for k, size in objects.items() if key in k}
        assert {"model.pt", "history.csv", "metrics.json", "run.json"} <= set(stored)
        assert stored["model.pt"] == (ada / f"results/{name}/model.pt").stat().st_size
        steps = f"SELECT step FROM metrics WHERE run_uuid = '{key}' AND key = 'val/jaccard'"
        assert sorted(team.psql(steps)) == ["1", "2"]


def test_the_keys_are_in_no_file_that_git_knows(team, ada):
    found = subprocess.run(
        ["git", "grep", "-l", PASSWORDS["<s3-secret>"]], cwd=ada, capture_output=True
    )
    assert found.stdout == b""
    assert PASSWORDS["<s3-secret>"] in (ada / ".dvc/config.local").read_text()
    assert team.s3_url in (ada / ".dvc/config").read_text()


def test_a_colleague_pulls_everything_and_repro_runs_nothing(team, ada, ben):
    env = team.environment("ben")
    output = follow("pull", folder=ben, env=env)
    assert stages_run(output) == []
    assert "Data and pipelines are up to date." in output
    for name in RUNS:
        path = f"results/{name}/model.pt"
        assert (ben / path).read_bytes() == (ada / path).read_bytes()


def test_a_colleague_gets_an_experiment_without_running_it(team, ada, ben):
    env = team.environment("ada")
    command = ["dvc", "exp", "run", "--name", "other-title", "-S", "report.title=Another title"]
    assert stages_run(run(command, folder=ada, env=env)) == ["report"]
    follow("exp push", folder=ada, env=env)
    follow("exp pull", folder=ben, env=team.environment("ben"))
    assert "Another title" in (ben / "results/report/report.html").read_text()


LOG_A_RUN = """
import sys
from pathlib import Path
from mlflow import MlflowClient
from lesionseg.tracking import runs, store

MlflowClient().search_experiments(max_results=1)  # all that is slow the first time
print("ready", flush=True)
sys.stdin.readline()
store.EXPERIMENT = "fresh"
with runs.training_run("train_frozen", params={}, tags={}, id_path=Path("id")) as run:
    run.log_file(Path("hello.txt"))
"""


def test_members_who_start_at_once_all_get_their_run_in_one_experiment(team):
    members = {}
    for person in PEOPLE:
        folder = team.folder / f"at-once-{person}"
        folder.mkdir()
        (folder / "hello.txt").write_text(person)
        members[folder] = subprocess.Popen(
            [sys.executable, "-c", LOG_A_RUN],
            cwd=folder,
            env={**team.environment(person), "DVC_ROOT": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    for process in members.values():
        assert process.stdout.readline() == "ready\n"
    for process in members.values():
        process.stdin.write("go\n")
        process.stdin.flush()
    output = [process.communicate(timeout=60)[0] for process in members.values()]
    assert not any("MLflow is not available" in text for text in output), "".join(output)
    stored = team.objects("lesionseg-mlflow")
    for folder in members:
        run_id = (folder / "id").read_text()
        assert team.psql(
            f"SELECT e.name FROM experiments e JOIN runs r USING (experiment_id) "
            f"WHERE r.run_uuid = '{run_id}'"
        ) == ["fresh"]
        assert [key for key in stored if key.endswith(f"/{run_id}/artifacts/hello.txt")]


@pytest.mark.parametrize(
    ("headers", "status"), [({}, 401), ({"Host": "elsewhere.example.com"}, 403)]
)
def test_the_server_turns_away(team, headers, status):
    request = urllib.request.Request(
        f"{team.url}/api/2.0/mlflow/experiments/get-by-name?experiment_name=lesionseg",
        headers=headers,
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    caught.value.close()
    assert caught.value.code == status


def test_a_backup_of_the_database_can_be_restored(team, ada):
    follow("backup", folder=team.folder, env=team.database)
    count = "SELECT count(*) FROM metrics"
    assert team.psql(count, database="restored") == team.psql(count)
    assert team.psql("SELECT count(*) FROM users", database="mlflow_auth") == ["3"]


def test_upgrading_a_database_that_is_up_to_date_changes_nothing(team, ada):
    env = {
        **INHERITED,
        "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg2://mlflow:{PASSWORDS['<database-password>']}"
        f"@127.0.0.1:{team.database['PGPORT']}/mlflow",
    }
    before = team.psql("SELECT version_num FROM alembic_version")
    follow("upgrade", folder=team.folder, env=env)
    assert team.psql("SELECT version_num FROM alembic_version") == before
