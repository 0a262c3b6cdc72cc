"""A stage that DVC started ends with it, and no two processes write the same results."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from lesionseg import processes
from lesionseg.errors import LesionsegError
from lesionseg.processes import only_writer

# Says that it runs, and then whether it was asked to end.
CHILD = """
import os, sys, time
from lesionseg.processes import end_with_dvc
end_with_dvc(parent=os.getppid())
print(os.getpid(), flush=True)
try:
    time.sleep(30)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("behind_a_shell", [False, True])
@pytest.mark.parametrize("deadly", [signal.SIGTERM, signal.SIGKILL])
def test_a_stage_ends_soon_after_its_dvc(tmp_path, behind_a_shell, deadly):
    (tmp_path / "child.py").write_text(CHILD)
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
    (tmp_path / "child.py").write_text(CHILD)
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
