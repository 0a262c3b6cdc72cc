"""Trials as jobs of SLURM, one each: submitit submits them, `driver` follows them.

All machines share the folder of the repository and DVC's cache. `sbatch` takes whatever else a site
requires from its own variables, such as SBATCH_PARTITION; they override what is asked for here.
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lesionseg.errors import LesionsegError
from lesionseg.files import write_bytes
from lesionseg.processes import stopped_like_ctrl_c
from lesionseg.sweep import node
from lesionseg.sweep.driver import Driver, Lost, Said, make_project
from lesionseg.sweep.executor import Placement
from lesionseg.sweep.trials import Curve, Trial
from lesionseg.sweep.workspaces import HOME, Pool, Repository, only_one, output
from lesionseg.tracking import store


@contextmanager
def open_slurm(repository: Repository, where: Placement, *, archives: str) -> Iterator[Driver]:
    """The executor of a SLURM cluster, alone in its repository; no job outlives the block.

    Raises:
        LesionsegError: SLURM or submitit is not usable, or `where` has no number of jobs.
    """
    if not where.jobs:
        raise LesionsegError("SLURM queues any number of jobs. Say how many at once: --jobs N")
    project = make_project(repository, where)
    with only_one(repository.root) as keep_open:
        slurm = _Slurm(repository.root, where)
        store.prepare()
        try:
            with Pool(repository, jobs=1, archives=archives, keep_open=keep_open) as pool:
                yield Driver(slurm, repository, project, pool, jobs=where.jobs)
        finally:
            slurm.cancel()


class _Slurm:
    """The scheduler; its jobs' names contain the repository."""

    def __init__(self, root: Path, where: Placement) -> None:
        try:
            import submitit
        except ImportError:
            remedy = "Run: pip install -e '.[slurm]'"
            raise LesionsegError("submitit is not installed", remedy) from None
        if not shutil.which("srun"):
            raise LesionsegError("there is no srun here. Give the command on a login node of SLURM")
        self._root, self._name, self._errors = root, f"lesionseg:{root}", submitit.core.utils
        os.environ.pop("SBATCH_JOB_NAME", None)  # it would override ours
        self._call("sacct", "--noheader")  # must work, or a lost job would go unnoticed
        self.cancel()  # the jobs of a driver that was killed
        shutil.rmtree(root / HOME / "slurm", ignore_errors=True)
        self._executor = submitit.SlurmExecutor(root / HOME / "slurm")
        self._executor.update_parameters(
            job_name=self._name,
            cpus_per_task=where.num_cpus,
            gpus_per_node=where.num_gpus or None,
            srun_args=[f"--cpus-per-task={where.num_cpus}"],  # not inherited since SLURM 22.05
            time=None,
            wckey=None,
            # SIGTERM a minute before the limit; and no restart without the driver's knowledge.
            additional_parameters={"signal": "TERM@60", "no_requeue": True},
        )

    def _call(self, *command: str) -> str:
        return output(command, self._root, os.environ)

    def start(
        self, project: node.Project, trial: Trial, attempt: str, known: str, is_judged: bool
    ) -> Any:
        words = project, trial, attempt, known, is_judged, self._executor.folder
        try:
            return self._executor.submit(_work, *words)
        except self._errors.FailedJobError as error:
            reason = str(error).strip().splitlines()[-1]
            raise LesionsegError(reason, "Ask for less, or set SBATCH_* (docs/team.md)") from None

    def ended(self, tasks: Sequence[Any]) -> Sequence[Any]:
        time.sleep(1)
        return [job for job in tasks if job.done()]

    def report(self, task: Any) -> node.Report:
        try:
            report: node.Report | None = task.result()
        except self._errors.UncompletedJobError as error:
            raise Lost(f"its job {task.job_id} was lost", str(error)) from None
        if report is None:
            raise Lost(f"its job {task.job_id} was ended")
        return report

    def progress(self) -> Mapping[str, Said]:
        paths = self._executor.folder.glob("*.said")
        found = {path.stem: json.loads(path.read_text()) for path in paths}
        return {name: Said(text, dict(curve)) for name, (text, curve) in found.items()}

    def stop(self, trial: Trial) -> None:
        (self._executor.folder / f"{trial.name}.stop").touch()

    def cancel(self) -> None:
        """Remove all jobs of this repository from the queue."""
        self._call("scancel", f"--name={self._name}")
        while self._call("squeue", "--noheader", f"--name={self._name}"):
            time.sleep(1)


def _work(
    project: node.Project, trial: Trial, attempt: str, known: str, is_judged: bool, folder: Path
) -> Any:
    """The report of a trial, called in a job; None if SLURM ends it."""
    last = None

    def tell(text: str, curve: Curve) -> bool:
        nonlocal last
        said = json.dumps([f"{socket.gethostname()}  {text}", list(curve.items())])
        if said != last:
            write_bytes(folder / f"{trial.name}.said", said.encode())
        last = said
        return (folder / f"{trial.name}.stop").exists()

    try:
        with stopped_like_ctrl_c():
            return node.run_trial(
                project, trial, attempt=attempt, known=known, tell=tell, is_judged=is_judged
            )
    except KeyboardInterrupt:
        return None
