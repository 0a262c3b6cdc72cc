import hashlib
import random
import shutil
import threading
from collections import namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lesionseg.data import fetch as fetch_module
from lesionseg.data.fetch import fetch
from lesionseg.errors import DiskSpaceError, DownloadError

CONTENT = random.Random(0).randbytes(400_000)
MD5 = hashlib.md5(CONTENT).hexdigest()
HALF = len(CONTENT) // 2


class Host(ThreadingHTTPServer):
    """A web server on this machine that gives CONTENT, or fails in one way."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.has_ranges = True
        self.status = 200
        self.num_breaks = 0  # so many answers end half-way
        self.ranges: list[str | None] = []  # one for each request
        self.num_sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/archive.zip"


class Handler(BaseHTTPRequestHandler):
    server: Host

    def do_GET(self) -> None:
        host = self.server
        wanted = self.headers["Range"]
        host.ranges.append(wanted)
        start = 0
        status = host.status
        if wanted and host.has_ranges and status == 200:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            status = 206 if start < len(host.content) else 416
        body = host.content[start:] if status < 400 else b"no"
        length = len(body)
        if host.num_breaks:
            host.num_breaks -= 1
            body = body[: length // 2]
        host.num_sent += len(body)  # before the client hears anything, after which it may go on
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def serve() -> Iterator[Host]:
    with Host() as host:
        thread = threading.Thread(target=host.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield host
        host.shutdown()
        thread.join()


@pytest.fixture(name="host")
def _host() -> Iterator[Host]:
    yield from serve()


@pytest.fixture(name="other_host")
def _other_host() -> Iterator[Host]:
    yield from serve()


@pytest.fixture(autouse=True)
def _no_pause_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "RETRY_SECONDS", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    return tmp_path / "archives" / "archive.zip"


def part_of(path: Path) -> Path:
    return path.with_name("archive.zip.part")


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


def test_a_file_is_downloaded_whole_and_no_part_stays(host: Host, path: Path) -> None:
    fetch([host.url], path, md5=MD5)
    assert path.read_bytes() == CONTENT
    assert not part_of(path).exists()


def test_the_first_digits_of_a_sha256_are_a_checksum_too(host: Host, path: Path) -> None:
    fetch([host.url], path, sha256_prefix=hashlib.sha256(CONTENT).hexdigest()[:8])
    assert path.read_bytes() == CONTENT


def test_a_wrong_sha256_is_refused(host: Host, path: Path) -> None:
    with pytest.raises(DownloadError, match=r"sha256 must be 00000000, got [0-9a-f]{8}[^0-9a-f]"):
        fetch([host.url], path, sha256_prefix="00000000")


def test_a_file_that_is_there_is_not_downloaded(host: Host, path: Path) -> None:
    put(path, CONTENT)
    fetch([host.url], path, md5=MD5)
    assert host.ranges == []


def test_a_file_that_is_there_and_wrong_is_named_and_left_alone(host: Host, path: Path) -> None:
    put(path, b"my own")
    with pytest.raises(DownloadError, match=f"{path} must have md5 {MD5}, got .*Delete it"):
        fetch([host.url], path, md5=MD5)
    assert path.read_bytes() == b"my own"
    assert host.ranges == []


def test_a_resumed_download_fetches_only_the_rest(host: Host, path: Path) -> None:
    put(part_of(path), CONTENT[:HALF])
    fetch([host.url], path, md5=MD5)
    assert path.read_bytes() == CONTENT
    assert host.ranges == [f"bytes={HALF}-"]
    assert host.num_sent == len(CONTENT) - HALF


def test_a_host_that_breaks_off_once_is_asked_for_the_rest(host: Host, path: Path) -> None:
    host.num_breaks = 1
    fetch([host.url], path, md5=MD5)
    assert path.read_bytes() == CONTENT
    assert len(host.ranges) == 2
    assert host.ranges[1] is not None


def test_a_host_that_keeps_breaking_off_leaves_a_part_for_the_next_run(
    host: Host, path: Path
) -> None:
    host.num_breaks = 2
    with pytest.raises(DownloadError, match="Run the same command again"):
        fetch([host.url], path, md5=MD5)
    kept = part_of(path).read_bytes()
    assert HALF // 2 < len(kept) < len(CONTENT)
    assert CONTENT.startswith(kept)
    fetch([host.url], path, md5=MD5)
    assert host.ranges[-1] == f"bytes={len(kept)}-"
    assert path.read_bytes() == CONTENT


def test_the_second_host_goes_on_where_the_first_broke_off(
    host: Host, other_host: Host, path: Path
) -> None:
    host.num_breaks = 2
    fetch([host.url, other_host.url], path, md5=MD5)
    assert path.read_bytes() == CONTENT
    assert other_host.num_sent < HALF


def test_a_server_without_ranges_sends_everything_again(host: Host, path: Path) -> None:
    host.has_ranges = False
    put(part_of(path), b"x" * HALF)
    fetch([host.url], path, md5=MD5)
    assert path.read_bytes() == CONTENT


def test_a_part_that_is_already_complete_is_taken(host: Host, path: Path) -> None:
    put(part_of(path), CONTENT)
    fetch([host.url], path, md5=MD5)
    assert path.read_bytes() == CONTENT
    assert host.num_sent == len(b"no")  # status 416


@pytest.mark.parametrize("size", [HALF, len(CONTENT), len(CONTENT) + 1])
def test_a_part_of_something_else_is_thrown_away(host: Host, path: Path, size: int) -> None:
    put(part_of(path), b"x" * size)
    fetch([host.url], path, md5=MD5)
    assert path.read_bytes() == CONTENT


def test_the_second_host_is_used_when_the_first_has_no_such_file(
    host: Host, other_host: Host, path: Path
) -> None:
    host.status = 404
    fetch([host.url, other_host.url], path, md5=MD5)
    assert path.read_bytes() == CONTENT


def test_the_second_host_is_used_when_the_first_sends_wrong_bytes(
    host: Host, other_host: Host, path: Path
) -> None:
    host.content = b"x" * len(CONTENT)
    fetch([host.url, other_host.url], path, md5=MD5)
    assert path.read_bytes() == CONTENT
    assert len(host.ranges) == 1


def test_wrong_bytes_from_every_host_leave_nothing_behind(
    host: Host, other_host: Host, path: Path
) -> None:
    host.content = other_host.content = b"other"
    got = hashlib.md5(b"other").hexdigest()
    with pytest.raises(DownloadError, match=f"md5 must be {MD5}, got {got}.*Run") as caught:
        fetch([host.url, other_host.url], path, md5=MD5)
    assert "\n" not in str(caught.value)
    assert not path.exists()
    assert not part_of(path).exists()


def test_every_host_and_its_failure_is_named(host: Host, path: Path) -> None:
    host.status = 503
    with pytest.raises(DownloadError) as caught:
        fetch([host.url, "http://127.0.0.1:1/archive.zip"], path, md5=MD5)
    message = str(caught.value)
    assert f"127.0.0.1:{host.server_port}: HTTP 503; 127.0.0.1:1: ConnectionError" in message
    assert f"put the file into {path.parent} yourself" in message
    assert "\n" not in message


Usage = namedtuple("Usage", "total used free")


def test_a_disk_without_room_is_found_before_the_first_byte(
    host: Host, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, 100_000))
    with pytest.raises(DiskSpaceError, match=r"needs 0\.4 MB more, 0\.1 MB are free\. Make room"):
        fetch([host.url], path, md5=MD5)
    assert not part_of(path).exists()


def test_only_the_rest_of_a_resumed_download_needs_room(
    host: Host, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(part_of(path), CONTENT[:HALF])
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, HALF))
    fetch([host.url], path, md5=MD5)
    assert path.read_bytes() == CONTENT
