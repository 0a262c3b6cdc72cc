"""One training in several processes, each with a part of every batch (`train.num_processes`).

The stage starts itself that many times and waits: the processes find each other, and if one of them
ends, all do. The first process is the visible training, with its checkpoints, results and MLflow
run; the others only compute.

Gradients are added up by one `all_reduce` of a single buffer, and not by torch's
`DistributedDataParallel`. From its second step on, that arranges its buffers in another order, so a
resumed training rounds its sums differently from one that was never interrupted (with three or more
processes, measured with gloo). It also requires an image for each process in each batch.
"""

import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lesionseg.errors import (
    FAILED,
    GOES_ON,
    INTERRUPTED,
    LesionsegError,
    explain,
)
from lesionseg.hardware import check_devices
from lesionseg.processes import (
    Process,
    child_environment,
    deferred,
    end_with_starter,
    start,
    stop,
    stopped_like_ctrl_c,
)

T = TypeVar("T")
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_VARIABLE = "LESIONSEG_PROCESS"  # set in each of several processes
_ALONE = 4  # exit status of a process that has lost the others
_POLL_SECONDS = 0.1
_CAUSE_SECONDS = 2.0  # until a killed process is known to be dead
_PATIENCE = 6.0  # seconds for the others to end by themselves and tell MLflow
# Longer than any wait for the others: that one of them has ended is noticed elsewhere.
_TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True)
class Part:
    """The part of a batch that one process computes.

    Attributes:
        rows: Its images, at least one, as all processes have to call the network.
        weight: 1, or 0 if the image belongs to another process, where it counts.
    """

    rows: slice
    weight: float


@dataclass(frozen=True)
class Group:
    """The processes of a training, from the view of one of them; by default it is alone.

    All of them must call each method, in the same order.

    Attributes:
        rank: Its number, counted from 0.
        size: The number of processes.
    """

    rank: int = 0
    size: int = 1

    def device(self, chosen: torch.device) -> torch.device:
        """The device of this process: each has its own GPU, or all share the CPU."""
        is_gpu = self.size > 1 and chosen.type == "cuda"
        return torch.device("cuda", self.rank) if is_gpu else chosen

    def part(self, num_images: int) -> Part:
        """The part of a batch for this process; the sizes of all parts differ by at most one."""
        first, end = (num_images * rank // self.size for rank in (self.rank, self.rank + 1))
        return Part(slice(first, end), 1.0) if end > first else Part(slice(0, 1), 0.0)

    def take(self, items: Sequence[T]) -> Sequence[T]:
        """Those items that this process works on."""
        return items[self.rank :: self.size]

    def collect(self, own: list[T]) -> list[T]:
        """The results of all processes for the items they got from `take`, in the items' order."""
        if self.size == 1:
            return own
        lists: list[list[T]] = [[] for _ in range(self.size)]
        with _together():
            dist.all_gather_object(lists, own)
        return [one[i] for i in range(len(lists[0])) for one in lists if i < len(one)]

    def share(self, value: T) -> T:
        """The first process's value."""
        if self.size == 1:
            return value
        values = [value]
        with _together():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, the same bytes in each of them."""
        if self.size == 1:
            return
        # One buffer, always with the same layout, so that sums are always rounded in the same way.
        buffer = torch.cat([tensor.flatten() for tensor in tensors])
        with _together():
            dist.all_reduce(buffer)
        for tensor, total in zip(
            tensors, buffer.split([tensor.numel() for tensor in tensors]), strict=True
        ):
            tensor.copy_(total.view(tensor.shape))

    def add_up_gradients(self, model: nn.Module, loss: Tensor) -> Tensor:
        """Add up the gradients of all parts, and return the sum of their losses.

        Args:
            model: After `backward`.
            loss: A single value, float32.
        """
        if self.size == 1:
            return loss
        loss = loss.detach().clone()
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        self.add_up([loss, *gradients])
        return loss

    def average_statistics(self, model: nn.Module) -> None:
        """Set the running statistics of training batch norms to their mean over all processes.

        Each process has seen its own parts. The expected mean and variance over parts are those
        over whole batches; the buffers that count batches are equal anyway.
        """
        if self.size == 1:
            return
        norms = [m for m in model.modules() if isinstance(m, _NORMS) and m.training]
        found = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
        if buffers := [buffer for buffer in found if buffer is not None]:
            self.add_up(buffers)
            for buffer in buffers:
                buffer /= self.size

    def join_norms(self, model: nn.Module, device: torch.device) -> None:
        """Let trained batch norms see whole batches, which torch supports only on GPUs.

        Those of a frozen encoder stay as they are.
        """
        if self.size == 1 or device.type != "cuda":
            return
        for name, part in model.named_children():
            if part.training:
                setattr(model, name, nn.SyncBatchNorm.convert_sync_batchnorm(part))


ALONE = Group()


class _LostError(Exception):
    """Another process of the training has ended, however that happened."""


@contextmanager
def _together() -> Iterator[None]:
    """A block of collective operations, which raises `_LostError` if a process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise _LostError from error


def in_processes(
    train: Callable[[Group], None], *, command: Sequence[str], num_processes: int, device: str
) -> None:
    """Train in this process, or in several.

    Args:
        train: The training, as run by each process.
        command: The command that started this process, and will start each of several.
        num_processes: How many.
        device: As in params.yaml.

    Raises:
        LesionsegError: The training raised one, or one of its processes was killed.
    """
    if num_processes == 1:
        train(ALONE)
    elif place := os.environ.get(_VARIABLE):
        _work(train, _Place(**json.loads(place)), device)
    else:
        check_devices(device, num_processes=num_processes)
        _run_all(command, num_processes)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A process's place among those of its training.

    Attributes:
        rank: Its number.
        size: The number of processes.
        starter: The id of the process that started all of them.
        folder: Where they find each other, and leave messages about errors.
    """

    rank: int
    size: int
    starter: int
    folder: str

    @property
    def word(self) -> Path:
        """The file for its error message."""
        return Path(self.folder) / f"{self.rank}.txt"


def _run_all(command: Sequence[str], size: int) -> None:
    """Start all processes and return when all have succeeded.

    Raises:
        LesionsegError: One has failed; the others were ended.
    """
    processes: list[Process] = []
    # Only we can read the folder, and without its file no other process can join.
    with tempfile.TemporaryDirectory(prefix="lesionseg-") as folder, stopped_like_ctrl_c():
        places = [
            _Place(rank=rank, size=size, starter=os.getpid(), folder=folder) for rank in range(size)
        ]
        try:
            for place in places:
                with deferred():
                    environment = _environment(place)
                    processes.append(start(command, cwd=Path.cwd(), environment=environment))
            failed = _await(processes)
        finally:
            stop(processes, patience=_PATIENCE)
        if failed is not None:
            raise _failure(places[failed], processes[failed].returncode)


def _environment(place: _Place) -> dict[str, str]:
    """The variables of one process: its place, and its share of the threads.

    It ends with the process that started it, whether started by DVC or not. What gloo logs when
    another process is gone is suppressed, as the cause is reported once, at the end.
    """
    quiet = {} if os.environ.get("LESIONSEG_DEBUG") else {"TORCH_CPP_LOG_LEVEL": "FATAL"}
    interfaces = psutil.net_if_addrs().items()
    local = [name for name, found in interfaces if any(a.address == "127.0.0.1" for a in found)]
    return {
        **quiet,
        **({"GLOO_SOCKET_IFNAME": local[0]} if local else {}),  # nothing listens to the network
        **child_environment(without=["DVC_STAGE"]),
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // place.size)),
        _VARIABLE: json.dumps(asdict(place)),
    }


def _await(processes: Sequence[Process]) -> int | None:
    """The rank of the first process that failed, as soon as it did; None if all have succeeded.

    A process that has lost another did not fail first, even if its end is noticed earlier.
    """
    end = None
    while True:
        statuses = [process.poll() for process in processes]
        failed = [rank for rank, status in enumerate(statuses) if status]
        if causes := [rank for rank in failed if statuses[rank] != _ALONE]:
            return causes[0]
        if failed:
            end = end or time.monotonic() + _CAUSE_SECONDS
            if time.monotonic() > end:
                return failed[0]
        elif all(status == 0 for status in statuses):
            return None
        time.sleep(_POLL_SECONDS)


def _failure(place: _Place, status: int) -> LesionsegError:
    """The error for a process that has failed: its own message, if it has left one."""
    with suppress(FileNotFoundError):
        return LesionsegError(place.word.read_text(encoding="utf-8"))
    who = f"process {place.rank} of the training's {place.size}"
    if status == -signal.SIGKILL:
        return LesionsegError(
            f"{who} was killed, as the system does where memory is full",
            f"{GOES_ON}, or write fewer train.num_processes in params.yaml",
        )
    if status < 0:
        return LesionsegError(f"{who} was ended by {signal.Signals(-status).name}", GOES_ON)
    if status == INTERRUPTED:
        return LesionsegError(f"{who} was interrupted", GOES_ON)
    if status == _ALONE:
        return LesionsegError(f"{who} has lost the others; LESIONSEG_DEBUG=1 shows how", GOES_ON)
    return LesionsegError(f"{who} ended with status {status}; what it says is above", GOES_ON)


def _work(train: Callable[[Group], None], place: _Place, device: str) -> None:
    """Be one of several processes, and write down an error that the user can fix.

    The process that started all of them reports it once, whichever of them it occurred in.
    """
    end_with_starter(parent=place.starter)
    if place.rank:
        logging.getLogger().setLevel(logging.WARNING)
    try:
        with _joined(place, on_gpu=device != "cpu" and torch.cuda.is_available()):
            train(Group(place.rank, place.size))
    except BaseException as error:  # noqa: BLE001  (whatever it is, this process ends)
        status = _leave_word(error, place)
        sys.stdout.flush()
        sys.stderr.flush()
        # At once: gloo's threads may still wait for the others, and would abort a normal exit.
        os._exit(status)


def _leave_word(error: BaseException, place: _Place) -> int:
    """The exit status of a process after an error, which it writes down or, if a bug, prints."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    known = isinstance(error, LesionsegError | OSError | _LostError)
    if not known or os.environ.get("LESIONSEG_DEBUG"):
        traceback.print_exception(error)
    if isinstance(error, LesionsegError | OSError):
        place.word.write_text(explain(error), encoding="utf-8")
    return _ALONE if isinstance(error, _LostError) else FAILED


@contextmanager
def _joined(place: _Place, *, on_gpu: bool) -> Iterator[None]:
    """A block in which this process and the others know each other."""
    if on_gpu:
        torch.cuda.set_device(place.rank)
    with _together():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            init_method=(Path(place.folder) / "store").as_uri(),
            rank=place.rank,
            world_size=place.size,
            timeout=_TIMEOUT,
        )
    yield
    dist.destroy_process_group()  # not after an error, when others may no longer answer
