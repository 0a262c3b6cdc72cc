"""`lesionseg serve`: the masks of `predict`, clear refusals, and no more at once than it bears."""

import base64
import io
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import requests
from PIL import Image

from benchmarks import serving as load_test
from lesionseg.cli import main
from lesionseg.inference.payloads import PROBABILITY_LEVELS
from lesionseg.inference.predictor import Predictor
from lesionseg.serving.app import make_app
from lesionseg.serving.limits import PIECE, Limits
from lesionseg.serving.server import address_of, listen, make_server
from lesionseg.serving.service import Served, Service
from tests.ports import free_port

# One thread here as in the server: another number of them rounds sums in another way.
pytestmark = pytest.mark.usefixtures("one_thread")

LIMITS = Limits(max_body=1_000_000, max_pixels=1_000_000, max_bytes=3_000_000)


def photograph(height, width, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encode(image, kind="JPEG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def declare_png(height, width):
    """A PNG of 8 by 8 pixels whose header declares more."""
    content = bytearray(encode(photograph(8, 8), "PNG"))
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


JPEG = encode(photograph(120, 90))
TURNED = encode(
    photograph(100, 140), exif=b"Exif\0\0MM\0*\0\0\0\b\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
)
IMAGES = {
    "JPEG": JPEG,
    "large JPEG": encode(photograph(700, 900)),
    "turned": TURNED,
    "PNG": encode(photograph(33, 257), "PNG"),
    "one pixel": encode(photograph(1, 1), "PNG"),
}


@pytest.fixture(scope="module")
def predictor(model_path):
    return Predictor.load(model_path, device="cpu")


@pytest.fixture(scope="module")
def served(predictor):
    """A threshold above which about half of an image is."""
    (probability,) = predictor.predict_encoded([JPEG])
    return Served(name="model.pt", sha256="a" * 64, threshold=float(np.median(probability)))


@contextmanager
def running(service, limits):
    """The address of a server in a thread."""
    server = make_server(make_app(service, limits))
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield address_of(listener)
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.fixture(scope="module")
def url(predictor, served):
    with running(Service(predictor, served, LIMITS), LIMITS) as url:
        yield url


WAYS = {
    "form": lambda content: {"files": {"image": ("a.jpg", content)}},
    "form without a name": lambda content: {"files": {"other": "x", "image": (None, content)}},
    "json": lambda content: {"json": {"image": base64.b64encode(content).decode()}},
    "data url": lambda content: {
        "json": {"image": f"data:image/png;base64,{base64.b64encode(content).decode()}"}
    },
    "as it is": lambda content: {"data": content, "headers": {"Content-Type": "image/png"}},
}


def post(url, route="predict", **how):
    return requests.post(f"{url}{route}", timeout=60, **how)


def to_array(content):
    return np.array(Image.open(io.BytesIO(content)))


@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_send_an_image_gets_its_mask(url, predictor, served, way):
    given = post(url, **WAYS[way](JPEG)).json()
    (probability,) = predictor.predict_encoded([JPEG])
    expected = probability > served.threshold
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(to_array(base64.b64decode(given.pop("mask"))) > 0, expected)
    assert given == {
        "height": 120,
        "width": 90,
        "lesion_fraction": pytest.approx(expected.mean(), abs=1e-12),
        "threshold": served.threshold,
    }


@pytest.mark.parametrize("content", IMAGES.values(), ids=list(IMAGES))
def test_the_mask_and_the_probability_are_those_of_predict_at_the_image_s_own_size(
    url, predictor, served, content
):
    (expected,) = predictor.predict_encoded([content])
    mask = post(url, "mask", files={"image": content})
    assert mask.headers["content-type"] == "image/png"
    levels = to_array(mask.content)
    np.testing.assert_array_equal(levels, np.where(expected > served.threshold, 255, 0))
    answer = post(url, "predict?probability=true", files={"image": content}).json()
    levels = to_array(base64.b64decode(answer["probability"]))
    np.testing.assert_array_equal(levels, np.rint(expected * PROBABILITY_LEVELS))


IMAGE = {"Content-Type": "image/jpeg"}
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
REFUSED = {
    "no image": (IMAGE, b"hello", 400, "image is neither a JPEG nor a PNG file"),
    "nothing": (IMAGE, b"", 400, "neither a JPEG nor a PNG"),
    "another format": (IMAGE, encode(photograph(9, 9), "GIF"), 400, "neither a JPEG nor a PNG"),
    "half an image": (
        IMAGE,
        JPEG[: len(JPEG) // 2],
        400,
        "the file cannot be read as an image (image file is truncated",
    ),
    "a bomb": (IMAGE, declare_png(2**31 - 1, 2**31 - 1), 400, "declares more than 178956970"),
    "a large image": (
        IMAGE,
        declare_png(1001, 1000),
        413,
        "an image may have 1000000 pixels, got 1001000. Send a smaller one",
    ),
    "a long body": (IMAGE, bytes(1_000_001), 413, "a request may have 1000000 bytes"),
    "a long body of unknown length": (IMAGE, iter([bytes(600_000)] * 2), 413, "may have 1000000"),
    "no JSON": (JSON, b"{{{", 400, "the body is not JSON"),
    "deep JSON": (JSON, b"[" * 100_000, 400, "the body is not JSON"),
    "other JSON": (JSON, b'["image"]', 400, 'send {"image": "BASE64"}'),
    "a number": (JSON, b'{"image": 5}', 400, 'send {"image": "BASE64"}'),
    "no base64": (JSON, b'{"image": "?"}', 400, "image is not base64"),
    "no form": (FORM, b"hello", 400, "the form cannot be read"),
    "half a form": (
        FORM,
        b"--x\r\nContent-Disposition: form-data; name=",
        400,
        "form cannot be read",
    ),
    "a form without a heading": (FORM, b"--x\r\n\r\nhello\r\n--x--", 400, "form cannot be read"),
    "another type": ({"Content-Type": "text/plain"}, JPEG, 415, "send multipart/form-data, "),
    "no type": ({}, JPEG, 415, "got no content type"),
}


@pytest.mark.parametrize(
    ("headers", "body", "status", "message"), REFUSED.values(), ids=list(REFUSED)
)
def test_what_cannot_be_answered_is_refused_in_one_line_and_the_server_goes_on(
    url, headers, body, status, message
):
    refused = post(url, data=body, headers=headers)
    assert refused.status_code == status
    assert message in refused.json()["detail"]
    assert len(refused.json()["detail"].splitlines()) == 1
    assert "dvc" not in refused.text
    assert post(url, files={"image": JPEG}).status_code == 200


def test_a_wrong_query_is_refused_in_one_line(url):
    refused = post(url, "predict?probability=perhaps", files={"image": JPEG})
    assert refused.status_code == 422
    assert re.fullmatch(r"probability: Input should be a valid bool.*", refused.json()["detail"])


def test_two_files_are_refused(url):
    refused = post(url, files=[("image", JPEG), ("image", JPEG)])
    assert (refused.status_code, refused.json()["detail"][-5:]) == (400, "got 2")


class Slow:
    """A service that answers when it may."""

    served = Served(name="slow", sha256="b" * 64, threshold=0.5)
    image_size = 64

    def __init__(self, size=1):
        self.may = threading.Event()
        self.num_computed = 0
        self._size = size

    def mask(self, content):
        assert self.may.wait(60)
        self.num_computed += 1
        return bytes(self._size)


@contextmanager
def slow_server(*, size=1, **limits):
    service = Slow(size)
    with running(service, Limits(**{"num_workers": 1, **limits})) as url:
        yield SimpleNamespace(url=url, service=service)
        service.may.set()


def num_requests(url):
    return requests.get(f"{url}health", timeout=10).json()["requests"]


def wait_until(is_so):
    end = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_one_request_more_than_may_wait_is_told_to_come_again(url):
    with slow_server(max_requests=3) as slow, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(post, slow.url, "mask", data=JPEG, headers=IMAGE) for _ in range(3)]
        wait_until(lambda: num_requests(slow.url) == 3)  # and /health answers all the same
        refused = post(slow.url, "mask", data=JPEG, headers=IMAGE)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert refused.json()["detail"] == "3 requests wait already. Try again in a second"
        slow.service.may.set()
        assert [future.result().status_code for future in waiting] == [200] * 3
        assert post(slow.url, "mask", data=JPEG, headers=IMAGE).status_code == 200


def test_few_requests_of_many_bytes_are_too_much_as_well():
    with slow_server(max_body=100, max_bytes=150) as slow, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, slow.url, "mask", data=bytes(100), headers=IMAGE)
        wait_until(lambda: num_requests(slow.url) == 1)
        assert post(slow.url, "mask", data=bytes(60), headers=IMAGE).status_code == 429
        slow.service.may.set()
        assert first.result().status_code == 200


def test_a_request_that_comes_too_slowly_is_given_up():
    with slow_server(body_seconds=0.2) as slow:
        with connection(slow.url) as client:
            client.sendall(heading(length=1000) + b"a few bytes")
            answer = client.recv(10_000)
            while not answer.endswith(b"}"):
                answer += client.recv(10_000)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"did not come within 0.2 seconds" in answer
        assert num_requests(slow.url) == 0


def test_an_answer_that_takes_too_long_is_given_up():
    with slow_server(seconds=0.2) as slow:
        refused = post(slow.url, "mask", data=JPEG, headers=IMAGE)
        assert (refused.status_code, "too long" in refused.json()["detail"]) == (429, True)


def test_nothing_is_computed_for_a_client_that_has_left():
    with slow_server() as slow, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, slow.url, "mask", data=JPEG, headers=IMAGE)
        wait_until(lambda: num_requests(slow.url) == 1)
        with connection(slow.url) as client:
            client.sendall(heading(length=3) + b"abc")
            wait_until(lambda: num_requests(slow.url) == 2)
        slow.service.may.set()
        assert first.result().status_code == 200
        wait_until(lambda: num_requests(slow.url) == 0)
        assert slow.service.num_computed == 1


def test_an_answer_that_nobody_fetches_loses_its_place():
    size = 200 * PIECE
    with slow_server(size=size, seconds=1.0, max_bytes=size + 1000) as slow:
        slow.service.may.set()
        with connection(slow.url) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(heading(length=3) + b"abc")
            wait_until(lambda: slow.service.num_computed == 1)
            assert num_requests(slow.url) == 1
            refused = post(slow.url, "mask", data=b"abc", headers=IMAGE)
            assert (refused.status_code, "not fetched" in refused.text) == (429, True)
            wait_until(lambda: num_requests(slow.url) == 0)
        assert len(post(slow.url, "mask", data=JPEG, headers=IMAGE).content) == size


@contextmanager
def connection(url):
    host, port = re.search(r"//(.+):(\d+)/", url).groups()
    with socket.create_connection((host, int(port)), timeout=30) as client:
        yield client


def heading(*, length):
    return (
        f"POST /mask HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\nContent-Length: {length}"
        "\r\n\r\n"
    ).encode()


def test_clients_at_once_get_no_wrong_answer(url):
    contents = [encode(photograph(90, 120, seed)) for seed in range(10)]
    expected = [post(url, "mask", files={"image": content}).content for content in contents]
    assert len(set(expected)) == 10
    with ThreadPoolExecutor(8) as pool:
        given = pool.map(lambda n: post(url, "mask", files={"image": contents[n % 10]}), range(40))
        assert [answer.content for answer in given] == expected * 4


def test_health_says_which_model_answers(url, served):
    assert requests.get(f"{url}health", timeout=10).json() == {
        "status": "ok",
        "model": "model.pt",
        "model_sha256": "a" * 64,
        "image_size": 64,
        "threshold": served.threshold,
        "requests": 0,
    }


def test_openapi_describes_every_way_and_every_refusal(url):
    schema = requests.get(f"{url}openapi.json", timeout=10).json()
    assert list(schema["paths"]) == ["/predict", "/mask", "/health"]
    for route in ("/predict", "/mask"):
        described = schema["paths"][route]["post"]
        assert list(described["requestBody"]["content"]) == [
            "multipart/form-data",
            "application/json",
            "image/jpeg",
            "image/png",
        ]
        assert {"200", "400", "408", "413", "415", "429"} <= set(described["responses"])


def test_the_page_shows_the_routes_and_loads_nothing_from_elsewhere(url):
    page = requests.get(url, timeout=10)
    for word in ("/predict", "/mask", "/health", "lesion_fraction", "not for diagnosis", url):
        assert word in page.text
    assert re.findall(r"(?:src|href)=\"(?!openapi\.json)[^\"]*", page.text) == []
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_a_browser_shows_the_mask_of_a_file(url, browser, tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    (tmp_path / "b.jpg").write_bytes(b"none")
    page = browser.new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(request.url))
    page.goto(url)
    page.set_input_files("#image", tmp_path / "a.jpg")
    page.wait_for_selector("#shown:not([hidden])")
    assert re.fullmatch(r"120 x 90 pixels .*, \d+\.\d % lesion", page.inner_text("#said"))
    page.set_input_files("#image", tmp_path / "b.jpg")
    page.wait_for_selector("#said:has-text('neither a JPEG nor a PNG')")
    page.close()
    assert problems == []


# The command.


def test_a_missing_model_and_a_taken_port_are_one_line_each(
    model_path, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["serve"]) == 1
    assert re.fullmatch(
        r"error: results/\S+ is missing\. Name another .*\n", capsys.readouterr().err
    )
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--model", str(model_path), "--port", str(port)]) == 1
    assert capsys.readouterr().err == (
        f"error: cannot listen on 127.0.0.1, port {port} (Address already in use). "
        "Choose others with --host and --port\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "argument --port: must be a whole number in [0, 65535]"),
        (["--max-requests", "0"], "must be a whole number in [1, 10000], got '0'"),
        (["--threshold", "1"], "must be a number above 0 and below 1"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["serve", *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 0)]
)
def test_it_stops_when_it_is_told_to(model_path, number, status):
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-m", "lesionseg", "serve", "--model", model_path, "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert f" is served at http://127.0.0.1:{port}/\n" in process.stdout.readline()
        assert requests.get(f"http://127.0.0.1:{port}/health", timeout=30).ok
        process.send_signal(number)
        assert process.wait(60) == status
        assert process.stderr.read() == ""


def test_a_hundred_clients_get_masks_and_nothing_else(model_path):
    """Of how fast it is, and of more clients that ask for too much, docs/serving.md tells."""
    bodies = [encode(photograph(256, 256, seed)) for seed in range(4)]
    with load_test.serving(model_path, "--device", "cpu") as (url, process):
        load_test.load(url, bodies, num_clients=1, seconds=0.2)
        with load_test.peak_of(process) as peak:
            before = peak[0]
            done = load_test.load(url, bodies, num_clients=100, seconds=2)
        refused = load_test.abuse(url, num_clients=2)
        assert requests.get(f"{url}health", timeout=30).ok
    assert set(done.statuses) == {200}
    assert 0 < done.percentile(50) <= done.percentile(99)
    assert peak[0] - before < 150
    assert set(refused.statuses) <= {200, 400, 408, 413, 429}


def test_the_table_of_a_load_says_who_was_answered_what_and_when(monkeypatch):
    done = load_test.Load(statuses=Counter({200: 2, 429: 1}), seconds=[0.1, 0.3])
    refused = load_test.Load(statuses=Counter({413: 5}))
    monkeypatch.setattr(load_test, "load", lambda url, bodies, **_: done)
    monkeypatch.setattr(load_test, "abuse", lambda url, **_: refused)
    monkeypatch.setattr(load_test, "photograph", lambda *_, **__: b"")
    table = load_test._measure("http://127.0.0.1/", psutil.Process(), 7, 1)
    heading, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
    )
    found = [dict(zip(heading, row, strict=True)) for row in rows]
    assert [(row["clients"], row["send"]) for row in found] == [
        ("1", "256x256"),
        ("7", "256x256"),
        ("7", "767x1022"),
        ("7", "too much"),
    ]
    assert (found[0]["median ms"], found[0]["p99 ms"]) == ("200", "298")
    assert [row["answers"] for row in found] == [*3 * ["2 of 200, 1 of 429"], "5 of 413"]
    assert all(int(row["peak MB"]) > 10 for row in found)
