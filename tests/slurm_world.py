"""A SLURM of this machine alone: its commands as far as submitit and we call them.

A job is a tree of processes. What ends one signals all of it at once, as SLURM does.
"""

import os
import sys
from pathlib import Path

import psutil

COMMANDS = ("sbatch", "srun", "scancel", "squeue", "sacct")
SCRIPT = """#!{python}
import os, psutil, subprocess, sys
from pathlib import Path

command, arguments = Path(sys.argv[0]).name, sys.argv[1:]
jobs = Path(__file__).with_name("jobs")

def tree(job):
    try:
        process = psutil.Process(int(job))
        found = [process, *process.children(recursive=True)]
        return [one for one in found if one.status() != psutil.STATUS_ZOMBIE]
    except psutil.NoSuchProcess:
        return []

known = [path.name for path in sorted(jobs.glob("*"))]
if command == "sbatch":
    text = 'export SLURM_JOB_ID=$$; exec sh "$0"'
    job = subprocess.Popen(["sh", "-c", text, arguments[0]], start_new_session=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (jobs / str(job.pid)).write_text(Path(arguments[0]).read_text())
    print(f"Submitted batch job {{job.pid}}")
elif command == "srun":
    number = next(n for n, word in enumerate(arguments) if word.startswith(sys.exec_prefix))
    options = dict(zip(arguments, arguments[1:number]))
    for option, target in (("--output", 1), ("--error", 2)):
        path = options[option].replace("%j", os.environ["SLURM_JOB_ID"]).replace("%t", "0")
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), target)
    os.execv(arguments[number], arguments[number:])
elif command == "scancel":
    for job in known:
        for process in tree(job):
            process.terminate()
elif command == "squeue":
    print("\\n".join(job for job in known if tree(job)))
elif command == "sacct":
    states = ["RUNNING" if tree(job) else "CANCELLED" for job in known]
    print("\\n".join(["JobID|State", *(f"{{job}}|{{state}}" for job, state in zip(known, states))]))
"""


def install(folder: Path) -> dict[str, str]:
    """Put the commands into a new folder; the variables with which a process finds them."""
    (folder / "jobs").mkdir(parents=True)
    for name in COMMANDS:
        (folder / name).write_text(SCRIPT.format(python=sys.executable))
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def scripts(folder: Path) -> list[str]:
    """What was submitted, in the order of the jobs' numbers."""
    return [path.read_text() for path in sorted((folder / "jobs").iterdir())]


def end_all(folder: Path) -> None:
    """Kill what is left."""
    for path in (folder / "jobs").iterdir():
        if psutil.pid_exists(int(path.name)):
            process = psutil.Process(int(path.name))
            for one in [*process.children(recursive=True), process]:
                one.kill()
