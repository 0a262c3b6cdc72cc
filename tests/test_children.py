"""What a sweep or a demo has started ends with it, whatever ends it."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from experiments import demo, sweep_demo
from lesionseg import children
from lesionseg.children import deferred, run_to_end, stopped_like_ctrl_c
from lesionseg.sweep import workspaces
from lesionseg.sweep.workspaces import Pool, Repository
from stages import run

ENDINGS = ("INT", "TERM", "HUP")
# A child with a child of its own, both noted down, that then ends us in some way.
CHILD = "echo $$ > pids; {trap} sleep 300 & echo $! >> pids; kill -{signal} $PPID; wait; sleep 300"


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


def test_signals_have_their_own_handlers_again_afterwards(tmp_path):
    before = [signal.getsignal(getattr(signal, f"SIG{name}")) for name in ENDINGS]
    with pytest.raises(KeyboardInterrupt), stopped_like_ctrl_c():
        run_to_end(shell("TERM"), cwd=tmp_path, environment=os.environ)
    assert [signal.getsignal(getattr(signal, f"SIG{name}")) for name in ENDINGS] == before


def test_what_has_ended_by_itself_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(children, "_send", lambda *_: pytest.fail("a signal was sent"))
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


def end_demo(folder, monkeypatch, ending):
    (folder / ".dvc").mkdir()
    monkeypatch.setattr(demo, "copy_pipeline", lambda _: None)
    monkeypatch.setattr(demo, "DVC", shell(ending))
    run(lambda: demo.main(["--dir", str(folder)]))


def end_sweep_demo(folder, monkeypatch, ending):
    monkeypatch.setattr(sweep_demo, "make_repository", lambda *_: None)
    monkeypatch.setattr(sweep_demo, "COMMAND", shell(ending))
    run(lambda: sweep_demo.main(["--dir", str(folder)]))


def end_preparation(folder, monkeypatch, ending):
    """Of a sweep or an ablation, whose trials are tested where they run."""
    monkeypatch.setattr(workspaces, "DVC", shell(ending))
    monkeypatch.setattr(workspaces.Workspace, "create", lambda self: self.path.mkdir(parents=True))
    monkeypatch.setattr(workspaces.Workspace, "reset", lambda *_: None)
    monkeypatch.setattr(workspaces, "HOME", Path("home"))

    def main():
        repository = Repository(folder, "c0ffee", dict(os.environ))
        with (folder / "lock").open("w") as lock, stopped_like_ctrl_c():
            Pool(repository, jobs=1, archives="a", keep_open=lock.fileno()).prepare()

    run(main)


@pytest.mark.parametrize("ending", ["INT", "TERM"])
@pytest.mark.parametrize("end", [end_demo, end_sweep_demo, end_preparation])
def test_a_stage_that_is_ended_says_one_line_and_leaves_nothing(
    tmp_path, monkeypatch, capsys, end, ending
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        end(tmp_path, monkeypatch, ending)
    assert str(caught.value) == "interrupted. Run the same command again to go on"
    (noted,) = tmp_path.rglob("pids")
    assert_ended(noted.parent)
