"""The served model, behind a real `mlflow models serve`: right answers, and clear refusals."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import requests
from mlflow.exceptions import MlflowException
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lesionseg.inference.payloads import PROBABILITY_LEVELS
from lesionseg.inference.predictor import Predictor
from lesionseg.results.layout import Results
from lesionseg.tracking import registry, served
from lesionseg.tracking.served import ServedModel, answer
from tests.ports import free_port
from tests.trained_results import write_evaluation, write_run

pytestmark = [
    # One thread here as in the server: another number of them rounds sums in another way.
    pytest.mark.usefixtures("one_thread"),
    # Of MLflow 3.17's own classes, at the import of mlflow.pyfunc.
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    # MLflow 3.17 compares the columns of the input example with a range.
    pytest.mark.filterwarnings("ignore:Operation with range:DeprecationWarning:mlflow"),
]


def photograph(height, width, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encode(image, kind="PNG", **options):
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        stream, kind, **options
    )
    return stream.getvalue()


def to_text(content):
    return base64.b64encode(content).decode()


def declare_png(height, width):
    """A PNG of 8 by 8 pixels whose header declares more."""
    content = bytearray(encode(np.zeros((8, 8, 3), np.uint8)))
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def long_text():
    text = PngInfo()
    text.add_text("comment", "a" * 2_000_000, zip=True)
    return text


JPEG = encode(photograph(120, 90), "JPEG")
IMAGES = {
    "a JPEG": JPEG,
    "a JPEG that is decoded at reduced scale": encode(photograph(700, 900), "JPEG"),
    "a JPEG that EXIF turns": encode(photograph(100, 140), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\b"
                                     b"\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"),
    "a PNG": encode(photograph(33, 257)),
    "a transparent PNG": encode(Image.fromarray(photograph(64, 64)).convert("RGBA")),
    "a grey JPEG": encode(Image.fromarray(photograph(80, 60)).convert("L"), "JPEG"),
    "a CMYK JPEG": encode(Image.fromarray(photograph(60, 80)).convert("CMYK"), "JPEG"),
    "a JPEG with damaged EXIF": encode(photograph(50, 60), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff"),
    "a PNG that EXIF turns": encode(photograph(30, 40), exif=b"Exif\0\0MM\0*\0\0\0\b"
                                    b"\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"),
    "a PNG with a palette and transparency": encode(
        Image.fromarray(photograph(50, 50)).convert("P"), transparency=3
    ),
    "a 16-bit PNG": encode(photograph(70, 71)[..., 0].astype(np.uint16) * 257),
    "a PNG of one pixel": encode(photograph(1, 1)),
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory, encoder_state):
    """A project whose champion takes for lesion about half of an image."""
    root = tmp_path_factory.mktemp("project")
    write_run(root, "train_finetuned", val=0.8, encoder_state=encoder_state)
    predictor = Predictor.load(root / "results/train_finetuned/model.pt", device="cpu")
    threshold = float(np.median(predictor.predict([photograph(64, 64)])[0]))
    write_evaluation(root, threshold=threshold)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(root))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        registry.register(Results(root / "results"))
    return root


@pytest.fixture(scope="module")
def predictor(project):
    return Predictor.load(project / "results/train_finetuned/model.pt", device="cpu")


@pytest.fixture(scope="module")
def threshold(project):
    return json.loads((project / "results/evaluate/comparison.json").read_text())["threshold"]


@pytest.fixture(scope="module")
def url(project, tmp_path_factory):
    """The address of a server that was started away from the project, without our sources."""
    port = free_port()
    env = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{project}/mlruns/mlflow.db",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # it runs `uvicorn`
    }
    env.pop("PYTHONPATH", None)
    folder = tmp_path_factory.mktemp("elsewhere")
    model = f"models:/{registry.NAME}@{registry.ALIAS}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "mlflow",
                "models",
                "serve",
                "-m",
                model,
                "--env-manager",
                "local",
                "--port",
                str(port),
            ],
            cwd=folder,
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(address, process, folder / "log")
        yield f"{address}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(address, process, log):
    for _ in range(600):
        try:
            if requests.get(f"{address}/ping", timeout=5).ok:
                return
        except requests.ConnectionError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
    raise AssertionError(log.read_text())


def post(url, rows):
    return requests.post(url, json={"dataframe_records": rows}, timeout=60)


def to_array(text):
    return np.array(Image.open(io.BytesIO(base64.b64decode(text))))


def assert_is_of(given, probability, threshold):
    """The answer says just what the predictor says."""
    levels, mask = to_array(given["probability"]), to_array(given["mask"])
    assert (levels.dtype, mask.dtype) == (np.uint16, np.uint8)
    np.testing.assert_array_equal(levels, np.rint(probability * PROBABILITY_LEVELS))
    np.testing.assert_array_equal(mask, np.where(probability > threshold, 255, 0))
    assert (given["height"], given["width"]) == probability.shape
    assert given["lesion_fraction"] == pytest.approx((probability > threshold).mean(), abs=1e-12)


@pytest.mark.parametrize("content", IMAGES.values(), ids=list(IMAGES))
def test_an_encoded_image_gets_the_predictors_answer_at_its_own_size(
    url, predictor, threshold, content
):
    (given,) = post(url, [{"image": to_text(content)}]).json()["predictions"]
    (probability,) = predictor.predict_encoded([content])
    assert_is_of(given, probability, threshold)


@pytest.mark.parametrize(
    "write",
    [
        lambda text: f"data:image/jpeg;base64,{text}",
        lambda text: "\n".join(text[i : i + 76] for i in range(0, len(text), 76)),
    ],
    ids=["data URL", "line breaks"],
)
def test_base64_may_be_written_in_the_usual_ways(url, write):
    expected = post(url, [{"image": to_text(JPEG)}]).json()
    assert post(url, [{"image": write(to_text(JPEG))}]).json() == expected


def test_an_array_gets_the_predictors_answer(url, predictor, threshold):
    image = photograph(40, 50)
    (given,) = post(url, [{"array": image.tolist()}]).json()["predictions"]
    assert_is_of(given, predictor.predict([image])[0], threshold)


def test_an_image_gets_the_same_answer_in_any_company(url):
    rows = [{"image": to_text(content)} for content in IMAGES.values()]
    rows.insert(1, {"array": photograph(40, 50).tolist()})
    alone = [post(url, [row]).json()["predictions"][0] for row in rows]
    assert post(url, rows).json()["predictions"] == alone


def test_the_table_formats_of_mlflow_get_the_same_answer(url):
    row = {"image": to_text(JPEG)}
    expected = post(url, [row]).json()
    split = {"columns": ["image"], "data": [[row["image"]]]}
    for body in ({"dataframe_split": split}, {"inputs": [row]}, {"instances": [row]}):
        assert requests.post(url, json=body, timeout=60).json() == expected


GARBAGE = {
    "no base64": ([{"image": "this is none!"}], "row 0: image is not base64"),
    "no image": ([{"image": to_text(b"hello")}], "row 0: image is neither a JPEG nor a PNG"),
    "another format": (
        [{"image": to_text(encode(photograph(9, 9), "GIF"))}],
        "neither a JPEG nor a PNG",
    ),
    "a truncated JPEG": (
        [{"image": to_text(JPEG[: len(JPEG) // 2])}],
        "row 0: cannot be read as an image (image file is truncated",
    ),
    "a header alone": ([{"image": to_text(JPEG[:20])}], "neither a JPEG nor a PNG"),
    "a damaged PNG": (
        [{"image": to_text(encode(photograph(64, 64))[:500])}],
        "row 0: cannot be read as an image",
    ),
    "a decompression bomb": (
        [{"image": to_text(declare_png(2**31 - 1, 2**31 - 1))}],
        "row 0: this image declares more than 178956970 pixels",
    ),
    "90 megapixels in a hundred bytes": (
        [{"image": to_text(declare_png(9460, 9460))}],
        "a request may hold 89478485 pixels in all its images, got 89491600",
    ),
    "a PNG whose text unpacks to megabytes": (
        [{"image": to_text(encode(photograph(9, 9), pnginfo=long_text()))}],
        "row 0: cannot be read as an image (Decompressed data too large",
    ),
    "an empty text": ([{"image": ""}], "neither a JPEG nor a PNG"),
    "a number": ([{"image": 5}], "image must be base64 text, got int"),
    "nothing": ([{"image": None}], "must have either image"),
    "both": ([{"image": to_text(JPEG), "array": [[[1, 2, 3]]]}], "got image and array"),
    "a bad second row": ([{"image": to_text(JPEG)}, {"image": "?"}], "row 1: image is not base64"),
    "an unknown column": ([{"picture": to_text(JPEG)}], "no images. Send"),
    "no rows": ([], "no images. Send"),
    "a grey array": ([{"array": [[1, 2], [3, 4]]}], "got the shape (2, 2)"),
    "an uneven array": ([{"array": [[[1, 2, 3]], [[1, 2]]]}], "unequal lengths"),
    "fractions": ([{"array": [[[0.1, 0.2, 0.3]]]}], "got float64"),
    "too large a value": ([{"array": [[[0, 1, 256]]]}], "got 0 to 256"),
    "words": ([{"array": "abc"}], "whole numbers from 0 to 255"),
    "an empty array": ([{"array": []}], "whole numbers from 0 to 255"),
}


@pytest.mark.parametrize(("rows", "message"), GARBAGE.values(), ids=list(GARBAGE))
def test_garbage_is_refused_with_its_reason_and_the_server_goes_on(url, rows, message):
    refused = post(url, rows)
    assert refused.status_code == 400
    assert message in refused.json()["message"]
    assert "Traceback" not in refused.text
    assert post(url, [{"image": to_text(JPEG)}]).status_code == 200


@pytest.mark.parametrize("body", [b"{{{", b"", b"\xff\xfe\x00", b"[1]", b'{"foo": 1}'])
def test_a_body_that_is_no_request_is_refused(url, body):
    headers = {"Content-Type": "application/json"}
    assert requests.post(url, data=body, headers=headers, timeout=60).status_code == 400


def test_a_client_that_declares_a_gigabyte_and_leaves_does_no_harm(url):
    host, port = url.split("/")[2].split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(
            b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b'Content-Length: 1073741824\r\n\r\n{"dataframe'
        )
    assert post(url, [{"image": to_text(JPEG)}]).status_code == 200


def test_clients_at_once_get_no_wrong_answer(url):
    rows = [{"image": to_text(encode(photograph(90, 120, seed), "JPEG"))} for seed in range(10)]
    expected = [post(url, [row]).json() for row in rows]
    with ThreadPoolExecutor(4) as pool:
        given = list(pool.map(lambda number: post(url, [rows[number % 10]]).json(), range(40)))
    assert given == expected * 4


def test_it_computes_as_predict_does(project):
    import torch

    torch.use_deterministic_algorithms(False)
    served._load_pyfunc(str(project / "results/train_finetuned/model.pt"))
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)


def test_a_request_may_hold_so_many_pixels_and_no_more(predictor, monkeypatch):
    monkeypatch.setattr(served, "MAX_PIXELS", 2 * 64 * 64)
    model = ServedModel(predictor, threshold=0.5)
    row = {"image": to_text(encode(photograph(64, 64))), "array": None}
    assert len(model.predict(pd.DataFrame([row] * 2))) == 2
    pixel = {"image": None, "array": np.zeros((1, 1, 3), np.uint8)}
    with pytest.raises(MlflowException, match=r"8192 pixels in all its images, got 8193"):
        model.predict(pd.DataFrame([row, row, pixel]))


def test_a_pixel_is_lesion_above_the_threshold_and_not_at_it():
    probability = np.array([[0.0, 0.25, 0.5, 1.0]], np.float32)
    given = answer(probability, threshold=0.25)
    assert to_array(given["mask"]).tolist() == [[0, 0, 255, 255]]
    assert to_array(given["probability"]).tolist() == [[0, 16384, 32768, 65535]]
    assert (given["height"], given["width"], given["lesion_fraction"]) == (1, 4, 0.5)
