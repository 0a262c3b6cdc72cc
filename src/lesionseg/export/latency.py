"""How long an image takes, with torch and with onnxruntime, on this machine."""

import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxruntime import InferenceSession

BATCH_SIZES = (1, 32)
SECONDS = 0.5  # spent on each measurement, after a first pass
Engine = Callable[[NDArray[Any]], object]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Median milliseconds per image, from its pixels to its probabilities."""

    threads: int
    batch_size: int
    torch: float
    onnxruntime: float


def open_session(content: bytes, *, num_threads: int = 0) -> "InferenceSession":
    """An exported model on the CPU; 0 threads means as many as there are cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def measure(
    *,
    by_torch: Engine,
    make_session: Callable[[int], Engine],
    images: tuple[NDArray[Any], NDArray[Any]],
    seconds: float = SECONDS,
) -> list[Latency]:
    """The table of latencies: with one thread and with all, images one at a time and in batches.

    Args:
        by_torch: Runs a batch in torch.
        make_session: Given a number of threads, makes a function that runs a batch in onnxruntime.
        images: The first images, as torch takes them and as the exported model does.
        seconds: How long to repeat each measurement.
    """
    rows = []
    for threads in sorted({1, torch.get_num_threads()}):
        by_onnxruntime = make_session(threads)
        for batch_size in BATCH_SIZES:
            ours, theirs = (np.resize(given, (batch_size, *given.shape[1:])) for given in images)
            with _torch_threads(threads):
                torch_ms = _time(by_torch, ours, seconds)
            theirs_ms = _time(by_onnxruntime, theirs, seconds)
            rows.append(
                Latency(
                    threads=threads, batch_size=batch_size, torch=torch_ms, onnxruntime=theirs_ms
                )
            )
    return rows


def show(rows: Sequence[Latency]) -> str:
    """The latencies as a table for people to read."""
    head = "threads  batch  torch  onnxruntime   (milliseconds an image, median)"
    lines = [
        f"{row.threads:>7}  {row.batch_size:>5}  {row.torch:>5.2f}  {row.onnxruntime:>11.2f}"
        for row in rows
    ]
    return "\n".join([head, *lines]) + "\n"


def _time(engine: Engine, batch: NDArray[Any], seconds: float) -> float:
    """Milliseconds per image, without the first pass, which sets things up."""
    engine(batch)
    times: list[float] = []
    while not times or sum(times) < seconds:
        start = time.perf_counter()
        engine(batch)
        times.append(time.perf_counter() - start)
    return 1000 * median(times) / len(batch)


@contextmanager
def _torch_threads(number: int) -> "Iterator[None]":
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
