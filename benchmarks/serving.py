"""Load a server: `lesionseg serve` with many clients at once, and then with bad ones.

Starts the server on this machine, which it shares with the clients, and prints tables in markdown.
Unless a model is given, its weights are random: its masks are noise, but its cost is the same.
"""

import argparse
import io
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import requests
from PIL import Image

from benchmarks.measure import SAMPLING_SECONDS
from lesionseg.errors import LesionsegError, exit_status
from lesionseg.processes import child_environment

TIMEOUT = 120.0  # seconds that a client waits
ALONE_SECONDS = 5.0  # for one client
SIZES = ((256, 256), (767, 1022))  # (H, W): as in isic2016-256, and the median of ISIC 2016
# (H, W) of photographs, by their megapixels.
LARGE = {12: (3024, 4032), 24: (4000, 6000)}


@dataclass
class Load:
    """The answers that clients got.

    Attributes:
        statuses: How often each status was answered; 0 means a broken connection.
        seconds: For each 200, the time until it arrived.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def percentile(self, percent: float) -> float:
        """Milliseconds within which this percentage of the masks arrived."""
        return 1000 * float(np.percentile(self.seconds, percent))


@contextmanager
def serving(model_path: Path, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """The address and the process of a server that was started for the block.

    Raises:
        LesionsegError: It did not start.
    """
    command = [sys.executable, "-m", "lesionseg", "serve", "--port", "0", "--model"]
    with subprocess.Popen(
        [*command, str(model_path), *options],
        env=child_environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            found = re.search(r"http://\S+/", process.stdout.readline())
            if not found:
                raise LesionsegError("the server did not start, as it says above")
            yield found[0], psutil.Process(process.pid)
        finally:
            process.terminate()


@contextmanager
def peak_of(process: psutil.Process) -> Iterator[list[float]]:
    """The most MB of RAM that a process has had since the block began, as a list of one value."""
    peak, done = [process.memory_info().rss / 1e6], threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLING_SECONDS):
            peak[0] = max(peak[0], process.memory_info().rss / 1e6)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def load(url: str, bodies: Sequence[bytes], *, num_clients: int, seconds: float) -> Load:
    """Ask for masks for some time, each client again as soon as it has its answer.

    Args:
        url: The server's URL, with a slash at its end.
        bodies: JPEG files, sent in turn.
        num_clients: Number of clients at once.
        seconds: Time after which no client asks again.
    """
    end = time.monotonic() + seconds

    def ask(number: int) -> Load:
        done = Load()
        with requests.Session() as session:
            while time.monotonic() < end:
                body = bodies[(number + sum(done.statuses.values())) % len(bodies)]
                begin = time.monotonic()
                status = post(session, f"{url}mask", body)
                done.statuses[status] += 1
                if status == 200:
                    done.seconds.append(time.monotonic() - begin)
        return done

    with ThreadPoolExecutor(num_clients) as pool:
        parts = list(pool.map(ask, range(num_clients)))
    statuses = sum((part.statuses for part in parts), Counter())
    return Load(statuses=statuses, seconds=[second for part in parts for second in part.seconds])


def post(session: requests.Session, address: str, body: bytes) -> int:
    """The status of an answer that is read to its end."""
    try:
        return session.post(
            address, body, headers={"Content-Type": "image/jpeg"}, timeout=TIMEOUT
        ).status_code
    except requests.RequestException:
        return 0


def abuse(url: str, *, num_clients: int) -> Load:
    """The answers to many clients at once that ask for too much."""
    twelve, more = photograph(*LARGE[12]), photograph(*LARGE[24])
    noise = np.random.default_rng(0).bytes(19_000_000)
    requests_ = [
        *[("predict?probability=true", twelve)] * 2,
        ("predict?probability=true", more),
        ("mask", photograph(5000, 6000)),  # too many pixels
        ("mask", noise),
        ("mask", noise * 2),  # too long
    ]

    def ask(number: int) -> int:
        route, body = requests_[number % len(requests_)]
        with requests.Session() as session:
            return post(session, f"{url}{route}", body)

    with ThreadPoolExecutor(num_clients) as pool:
        return Load(statuses=Counter(pool.map(ask, range(4 * num_clients))))


def photograph(height: int, width: int, *, seed: int = 0) -> bytes:
    """A JPEG file with as much detail as a photograph."""
    levels = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(levels).resize((width, height)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def draw_model(path: Path) -> Path:
    """Write a model with random weights."""
    from lesionseg.mobilenet import mobilenet_v2
    from lesionseg.models.segmenter import build_segmenter, save_model

    state = mobilenet_v2(weights=None).features.state_dict()
    model = build_segmenter(
        encoder_state=state, decoder="pyramid", dropout=0.1, frozen=False, seed=0
    )
    save_model(path, state=model.state_dict(), decoder="pyramid", image_size=128, frozen=False)
    return path


def main(argv: Sequence[str] | None = None) -> None:
    """Load a server, and print what it did."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description=__doc__,
        epilog="Example: python -m benchmarks.serving --clients 100 --seconds 30",
    )
    parser.add_argument("--model", type=Path, help="a model.pt (default: a random one)")
    parser.add_argument("--clients", type=int, default=100, help="at once (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30, help="(default: %(default)s)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        model_path = arguments.model or draw_model(Path(folder) / "model.pt")
        with serving(model_path) as (url, process):
            sys.stdout.write(_measure(url, process, arguments.clients, arguments.seconds))


def _measure(url: str, process: psutil.Process, num_clients: int, seconds: float) -> str:
    """The table."""
    rows = [
        "| clients | send | masks/s | median ms | p99 ms | CPU ms a mask | answers | peak MB |",
        "|---:|---|---:|---:|---:|---:|---|---:|",
    ]
    for num, size in ((1, SIZES[0]), *((num_clients, size) for size in SIZES)):
        bodies = [photograph(*size, seed=seed) for seed in range(8)]
        begin, used = time.monotonic(), sum(process.cpu_times()[:2])
        with peak_of(process) as peak:
            done = load(url, bodies, num_clients=num, seconds=seconds if num > 1 else ALONE_SECONDS)
        rate = len(done.seconds) / (time.monotonic() - begin)
        cost = 1000 * (sum(process.cpu_times()[:2]) - used) / len(done.seconds)
        times = f"{rate:.1f} | {done.percentile(50):.0f} | {done.percentile(99):.0f} | {cost:.1f}"
        shown = f"{size[0]}x{size[1]} | {times} | {_answers(done)} | {peak[0]:.0f}"
        rows.append(f"| {num} | {shown} |")
    with peak_of(process) as peak:
        done = abuse(url, num_clients=num_clients)
    rows.append(f"| {num_clients} | too much | | | | | {_answers(done)} | {peak[0]:.0f} |")
    return "\n".join([*rows, ""])


def _answers(done: Load) -> str:
    return ", ".join(f"{count} of {status}" for status, count in sorted(done.statuses.items()))


if __name__ == "__main__":
    sys.exit(exit_status(main))
