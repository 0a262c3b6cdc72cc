"""What we start ends with us, a stage ends with its DVC, and no two write the same results."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from experiments import demo, sweep_demo
from lesionseg import processes
from lesionseg.errors import INTERRUPTED, LesionsegError, exit_status
from lesionseg.processes import (
    child_environment,
    deferred,
    git_identity,
    only_writer,
    run_to_end,
    start,
    stop,
    stopped_like_ctrl_c,
)
from lesionseg.sweep import workspaces
from lesionseg.sweep.workspaces import Pool, Repository

ENDINGS = ("INT", "TERM", "HUP")
# A child with a child of its own, both noted down, that then ends us in some way.
CHILD = "echo $$ > pids; {trap} sleep 300 & echo $! >> pids; kill -{signal} $PPID; wait; sleep 300"
# Says that it runs, and then whether it was asked to end.
STAGE = """
import os, sys, time
from lesionseg.processes import end_with_dvc
end_with_dvc(parent=os.getppid())
try:
    print(os.getpid(), flush=True)  # from now on its parent may be gone at any time
    time.sleep(30)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def shell(ending, trap=""):
    return ["sh", "-c", CHILD.format(signal=ending, trap=trap)]


def pids(folder):
    return [int(line) for line in (folder / "pids").read_text().split()]


def assert_ended(folder):
    """Both the child and its child are gone; one that nobody waits for may be a zombie."""
    assert len(pids(folder)) == 2
    deadline = time.monotonic() + 10  # of an orphan, whose end nobody tells us
    for pid in pids(folder):
        while is_alive(pid):
            assert time.monotonic() < deadline, pid
            time.sleep(0.01)


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(autouse=True)
def no_child_is_left(tmp_path):
    yield
    for path in tmp_path.rglob("pids"):
        for pid in pids(path.parent):
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("ending", ENDINGS)
def test_whatever_ends_us_ends_what_we_started_and_its_children(tmp_path, ending):
    with pytest.raises(KeyboardInterrupt), stopped_like_ctrl_c():
        run_to_end(shell(ending), cwd=tmp_path, environment=os.environ)
    assert_ended(tmp_path)


def test_what_ignores_being_asked_is_ended_by_force(tmp_path):
    command = shell("TERM", trap="trap '' INT TERM;")
    with pytest.raises(KeyboardInterrupt), stopped_like_ctrl_c():
        run_to_end(command, cwd=tmp_path, environment=os.environ, patience=0.1)
    assert_ended(tmp_path)


def test_a_second_ctrl_c_leaves_nothing_behind(tmp_path):
    again = "trap 'kill -INT $PPID; kill -TERM $PPID' INT; trap '' TERM;"
    command = shell("INT", trap=again)
    with pytest.raises(KeyboardInterrupt), stopped_like_ctrl_c():
        run_to_end(command, cwd=tmp_path, environment=os.environ, patience=0.2)
    assert_ended(tmp_path)


def test_ctrl_c_while_one_of_several_is_stopped_interrupts_us_at_the_end(tmp_path):
    note = "echo $$ > pids; sleep 300 & echo $! >> pids; touch ready"
    command = ["sh", "-c", f"trap 'kill -INT $PPID; exit' INT; {note}; wait"]
    process = start(command, cwd=tmp_path, environment=os.environ)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    with pytest.raises(KeyboardInterrupt):
        stop([process], go_on=True)
    assert_ended(tmp_path)


def test_signals_have_their_own_handlers_again_afterwards(tmp_path):
    before = [signal.getsignal(getattr(signal, f"SIG{name}")) for name in ENDINGS]
    with pytest.raises(KeyboardInterrupt), stopped_like_ctrl_c():
        run_to_end(shell("TERM"), cwd=tmp_path, environment=os.environ)
    assert [signal.getsignal(getattr(signal, f"SIG{name}")) for name in ENDINGS] == before


def test_what_has_ended_by_itself_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_send", lambda *_: pytest.fail("a signal was sent"))
    assert run_to_end(["sh", "-c", "exit 3"], cwd=tmp_path, environment=os.environ) == 3


def test_an_interruption_waits_until_the_process_is_known(tmp_path):
    steps = []

    def work():
        with deferred():
            signal.raise_signal(signal.SIGINT)
            steps.append("known")
        steps.append("not here")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["known"]


def test_the_output_goes_to_the_log(tmp_path):
    with (tmp_path / "log").open("wb") as log:
        command = ["sh", "-c", "echo out; echo err >&2"]
        assert run_to_end(command, cwd=tmp_path, environment=os.environ, log=log) == 0
    assert (tmp_path / "log").read_text() == "out\nerr\n"


def test_each_line_of_standard_output_is_heard_and_errors_go_where_ours_go(tmp_path, capfd):
    heard = []
    command = ["sh", "-c", "echo one; echo err >&2; printf two; exit 3"]
    status = run_to_end(command, cwd=tmp_path, environment=os.environ, on_line=heard.append)
    assert (status, heard) == (3, ["one\n", "two"])
    assert capfd.readouterr() == ("", "err\n")


def end_demo(folder, monkeypatch, ending):
    (folder / ".dvc").mkdir()
    monkeypatch.setattr(demo, "copy_pipeline", lambda _: None)
    monkeypatch.setattr(demo, "DVC", shell(ending))
    demo.main(["--dir", str(folder)])


def end_sweep_demo(folder, monkeypatch, ending):
    monkeypatch.setattr(sweep_demo, "make_repository", lambda *_: None)
    monkeypatch.setattr(sweep_demo, "COMMAND", shell(ending))
    sweep_demo.main(["--dir", str(folder)])


def end_preparation(folder, monkeypatch, ending):
    """Of a sweep or an ablation, whose trials are tested where they run."""
    monkeypatch.setattr(workspaces, "DVC", shell(ending))
    monkeypatch.setattr(workspaces.Workspace, "create", lambda self: self.path.mkdir(parents=True))
    monkeypatch.setattr(workspaces.Workspace, "reset", lambda *_: None)
    monkeypatch.setattr(workspaces, "HOME", Path("home"))
    repository = Repository(folder, "c0ffee", dict(os.environ))
    with (folder / "lock").open("w") as lock, stopped_like_ctrl_c():
        Pool(repository, jobs=1, archives="a", keep_open=lock.fileno()).prepare()


@pytest.mark.parametrize("ending", ["INT", "TERM"])
@pytest.mark.parametrize("end", [end_demo, end_sweep_demo, end_preparation])
def test_a_command_that_is_ended_says_one_line_and_leaves_nothing(
    tmp_path, monkeypatch, capsys, end, ending
):
    monkeypatch.chdir(tmp_path)
    assert exit_status(lambda: end(tmp_path, monkeypatch, ending)) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted. Run the same command again to go on\n"
    (noted,) = tmp_path.rglob("pids")
    assert_ended(noted.parent)


@pytest.mark.parametrize("behind_a_shell", [False, True])
@pytest.mark.parametrize("deadly", [signal.SIGTERM, signal.SIGKILL])
def test_a_stage_ends_soon_after_its_dvc(tmp_path, behind_a_shell, deadly):
    (tmp_path / "child.py").write_text(STAGE)
    command = f"{sys.executable} {tmp_path / 'child.py'}" + ("; true" if behind_a_shell else "")
    dvc = f"import subprocess; subprocess.run(['/bin/sh', '-c', {command!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", dvc],
        env={**os.environ, "DVC_STAGE": "train_frozen"},
        stdout=subprocess.PIPE,
        text=True,
    )
    child = psutil.Process(int(process.stdout.readline()))
    process.send_signal(deadly)
    process.wait()
    child.wait(timeout=60)  # it looks once in a second, and ends unasked after thirty
    assert process.stdout.read() == "interrupted\n"
    process.stdout.close()


def test_what_dvc_did_not_start_outlives_its_parent(tmp_path):
    (tmp_path / "child.py").write_text(STAGE)
    command = f"import subprocess; subprocess.run(['{sys.executable}', '{tmp_path / 'child.py'}'])"
    environment = {key: value for key, value in os.environ.items() if key != "DVC_STAGE"}
    process = subprocess.Popen(
        [sys.executable, "-c", command], env=environment, stdout=subprocess.PIPE, text=True
    )
    child = psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.wait()
    time.sleep(1.5 * processes.POLL_SECONDS)  # a stage of DVC's would look in the meantime
    assert child.is_running()
    child.kill()
    assert process.stdout.read() == ""
    process.stdout.close()


def test_a_guarded_process_ends_with_whoever_started_it_however_that_ended():
    """Killed, its starter can tell it nothing; what ignores the interruption is ended too."""
    starter = """
import os, sys, time
from pathlib import Path
from lesionseg import processes
processes.GRACE_SECONDS = 1.0
command = ["sh", "-c", "trap '' INT; sleep 60 & sleep 60"]
process = processes.start(command, cwd=Path.cwd(), environment=os.environ, guarded=True)
print(process.pid, flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True)
    guarded = psutil.Process(int(process.stdout.readline()))
    while len(family := [guarded, *guarded.children(recursive=True)]) < 4:
        time.sleep(0.05)
    process.kill()
    process.wait()
    process.stdout.close()
    assert psutil.wait_procs(family, timeout=30)[1] == []


def group(pid):
    for one in psutil.process_iter():
        with suppress(ProcessLookupError):
            if os.getpgid(one.pid) == pid:
                yield one


def test_a_guarded_process_that_has_ended_leaves_no_guard(tmp_path):
    command = ["sh", "-c", "exit 3"]
    process = processes.start(command, cwd=tmp_path, environment=os.environ, guarded=True)
    assert process.wait() == 3
    left = list(group(process.pid))
    processes.release(process)
    assert psutil.wait_procs(left, timeout=10)[1] == []


def test_a_second_writer_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "LOCK_SECONDS", 0.1)
    with only_writer(tmp_path / "train_frozen"):
        with pytest.raises(LesionsegError) as caught, only_writer(tmp_path / "train_frozen"):
            pass
        with only_writer(tmp_path / "train_finetuned"):
            pass
    assert "another process is writing" in str(caught.value)
    assert "\n" not in str(caught.value)
    with only_writer(tmp_path / "train_frozen"):
        pass


def test_a_child_has_this_python_first_and_nothing_of_a_tracking_server_or_a_dvc(monkeypatch):
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI", "OTHER"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("PATH", "/somewhere")
    child = child_environment()
    assert {name for name in child if name.startswith(("DVC_", "MLFLOW_"))} == {
        "DVC_NO_ANALYTICS",
        "MLFLOW_DISABLE_TELEMETRY",
    }
    assert child["OTHER"] == "x"
    assert child["PATH"] == os.pathsep.join([str(Path(sys.executable).parent), "/somewhere"])
    child = child_environment(without=["DVC_EXP", "OTHER"])
    assert child["DVC_ROOT"] == child["MLFLOW_TRACKING_URI"] == "x"
    assert not {"DVC_EXP_NAME", "OTHER"} & child.keys()


def test_who_commits_is_said_by_the_environment_or_by_git_or_else_is_a_stranger(
    tmp_path, monkeypatch
):
    for role in ("AUTHOR", "COMMITTER"):
        for key in ("NAME", "EMAIL"):
            monkeypatch.delenv(f"GIT_{role}_{key}", raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    with pytest.raises(LesionsegError, match=r"does not know your name.*git config user.name"):
        git_identity(tmp_path)
    assert set(git_identity(tmp_path, stranger="me").values()) == {"me", "me@localhost"}
    (tmp_path / "gitconfig").write_text("[user]\nname = Ada\nemail = ada@example.org\n")
    monkeypatch.setenv("GIT_COMMITTER_NAME", "Ben")
    assert git_identity(tmp_path, stranger="me") == {
        "GIT_AUTHOR_NAME": "Ada",
        "GIT_AUTHOR_EMAIL": "ada@example.org",
        "GIT_COMMITTER_NAME": "Ben",
        "GIT_COMMITTER_EMAIL": "ada@example.org",
    }
