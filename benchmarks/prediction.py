"""`lesionseg predict` on photographs of a dermatoscope's size, beside decoding them alone."""

import resource
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import peak_mib
from benchmarks.startup import call
from lesionseg.config import load_config
from lesionseg.inference.decoding import NUM_THREADS, decode


def predict(*, folder: str, num_images: int, only_decode: bool = False) -> dict[str, Any]:
    """Wall time of `lesionseg predict` on some of the images, and until its first mask is written.

    Args:
        folder: Filled by `material.prepare_prediction`.
        num_images: How many of its images.
        only_decode: Measure decoding alone instead, as the command does it, but without starting a
            process.
    """
    paths = sorted(Path(folder).glob("raw/*/images/*"))[:num_images]
    return _decode(paths) if only_decode else _predict(paths, folder)


def _predict(paths: Sequence[Path], folder: str) -> dict[str, Any]:
    with TemporaryDirectory(dir=folder) as out_dir:
        options = ["--model", "model.pt", "--out", out_dir, "--device", "cpu"]
        before, start = time.time(), time.perf_counter()
        call("lesionseg", "predict", *map(str, paths), *options, folder=folder)
        seconds = time.perf_counter() - start
        written = [path.stat().st_mtime for path in Path(out_dir).rglob("*_segmentation.png")]
    return {
        "peak_mib": peak_mib(resource.RUSAGE_CHILDREN),
        "first_seconds": min(written) - before,
        **_rate(len(written), seconds),
    }


def _decode(paths: Sequence[Path]) -> dict[str, Any]:
    size = load_config(Path("params.yaml")).preprocess.image_size

    def decoded_at(path: Path) -> float:
        decode(path, image_size=size)
        return time.perf_counter()

    start = time.perf_counter()
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        times = list(pool.map(decoded_at, paths))
    return {"first_seconds": min(times) - start, **_rate(len(paths), max(times) - start)}


def _rate(num_images: int, seconds: float) -> dict[str, Any]:
    return {"num_images": num_images, "seconds": seconds, "images_per_second": num_images / seconds}
