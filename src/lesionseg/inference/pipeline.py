"""Many files through a model: threads decode ahead of the network and write behind it.

However many files there are, only about two batches of them are in memory at a time, at the
network's size; only the threads that read or write an image hold it at its own size.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lesionseg.errors import DISK_FULL, DataError, DiskSpaceError, first_line
from lesionseg.inference.decoding import NUM_THREADS, Decoded, decode, problem_of
from lesionseg.inference.outputs import Outputs, Summary
from lesionseg.inference.prediction import resize_probabilities
from lesionseg.inference.predictor import BATCH_SIZE, Predictor
from lesionseg.inference.sources import Source

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file that cannot be read, or whose outputs cannot be written."""

    source: Source
    reason: str


@dataclass(frozen=True, kw_only=True)
class _Read:
    source: Source
    decoded: Decoded


@dataclass(frozen=True, kw_only=True)
class _Prediction:
    """Probabilities (S, S) float32 of an image, and the (H, W) of the image itself."""

    source: Source
    probability: NDArray[np.float32]
    size: tuple[int, int]


def predict_files(
    sources: Iterable[Source],
    predictor: Predictor,
    outputs: Outputs,
    *,
    batch_size: int = BATCH_SIZE,
    num_threads: int = NUM_THREADS,
) -> Generator[Summary | Skipped, None, None]:
    """For each file in turn, the summary of what was written, or why nothing was.

    Args:
        sources: The files, taken from the iterable a few batches before their results are needed.
        predictor: The model.
        outputs: What to write for each image.
        batch_size: Images in a forward pass.
        num_threads: How many images are read or written at once.

    Raises:
        OSError: The disk is full.
    """

    def read(source: Source) -> _Read | Skipped:
        try:
            decoded = decode(source.path, image_size=predictor.image_size)
        except DataError as error:
            return Skipped(source=source, reason=problem_of(error))
        return _Read(source=source, decoded=decoded)

    def write(item: _Prediction | Skipped) -> Summary | Skipped:
        if isinstance(item, Skipped):
            return item
        try:
            probability = resize_probabilities(item.probability, item.size)
            return outputs.write(item.source, probability)
        except DataError as error:  # the overlay reads the file again
            return Skipped(source=item.source, reason=problem_of(error))
        except DiskSpaceError:
            raise  # no other output could be written either
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            reason = f"{item.source.path}: its outputs cannot be written ({_why(error)})."
            return Skipped(source=item.source, reason=reason)

    pool = ThreadPoolExecutor(num_threads)
    try:
        images = _map_ahead(pool, read, sources, ahead=batch_size)
        predictions = _predict(images, predictor, batch_size=batch_size)
        yield from _map_ahead(pool, write, predictions, ahead=batch_size)
    finally:
        pool.shutdown(cancel_futures=True)


def _why(error: Exception) -> str:
    """The cause without the path, which for a write is the temporary file's."""
    return (isinstance(error, OSError) and error.strerror) or first_line(error)


def _map_ahead(
    pool: Executor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    ahead: int,
) -> Iterator[Result]:
    """Like `Executor.map`, but taking at most `ahead` items before their results are asked for."""
    running: deque[Future[Result]] = deque()
    for item in items:
        running.append(pool.submit(function, item))
        if len(running) > ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _predict(
    items: Iterable[_Read | Skipped], predictor: Predictor, *, batch_size: int
) -> Iterator[_Prediction | Skipped]:
    """The predictions, in full batches; skipped files keep their places."""
    waiting: list[_Read | Skipped] = []
    num_images = 0
    for item in items:
        waiting.append(item)
        num_images += isinstance(item, _Read)
        if num_images == batch_size:
            yield from _predict_batch(waiting, predictor)
            waiting, num_images = [], 0
    yield from _predict_batch(waiting, predictor)


def _predict_batch(
    items: Iterable[_Read | Skipped], predictor: Predictor
) -> Iterator[_Prediction | Skipped]:
    pixels = [item.decoded.pixels for item in items if isinstance(item, _Read)]
    probabilities = iter(predictor.forward(np.stack(pixels)) if pixels else ())
    for item in items:
        if isinstance(item, Skipped):
            yield item
        else:
            size = item.decoded.size
            yield _Prediction(source=item.source, probability=next(probabilities), size=size)
