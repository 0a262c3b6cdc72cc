"""The benchmarks' own arithmetic, and their command at sizes that measure nothing."""

import json
import mmap
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from benchmarks import (
    contestants,
    machine,
    prediction,
    preprocessing,
    profile,
    suites,
    tracking,
)
from benchmarks.__main__ import main
from benchmarks.machine import multiply_adds
from benchmarks.material import prepare, prepare_prediction, prepare_random
from benchmarks.measure import peak_mib, sampled_own_mib
from benchmarks.tables import (
    common_jaccard,
    median_ratio,
    parts_table,
    seconds_to,
    spread,
    table,
)
from lesionseg.config import override, read_yaml
from lesionseg.data.dataset import load_split
from lesionseg.errors import ConfigError, DataError, MissingFileError
from lesionseg.hardware import processor
from lesionseg.mobilenet import mobilenet_v2
from lesionseg.models.segmenter import build_segmenter

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
SMALL = {
    "preprocess.image_size": 64,
    "train.batch_size": 2,
    "train.epochs": 1,
    "train.device": "cpu",
    "download.phantom_size": 64,
}


@pytest.fixture
def small_project(tmp_path, monkeypatch):
    """The working directory, with parameters for tiny networks; one thread for each process."""
    text = override(read_yaml(ROOT / "params.yaml"), SMALL)
    (tmp_path / "params.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'src'}", prepend=":")
    return tmp_path


@pytest.fixture
def in_process(monkeypatch, one_thread):
    """Measurements without processes of their own, and small matrices."""

    def measure(function, **arguments):
        module, name = function.split(".")
        measurement = getattr(import_module(f"benchmarks.{module}"), name)
        return {"peak_mib": 1.0, **measurement(**arguments)}

    for module in ("rounds", "suites", "__main__"):
        monkeypatch.setattr(f"benchmarks.{module}.measure", measure)
    monkeypatch.setattr(machine, "LARGE", 64)
    yield
    torch.use_deterministic_algorithms(False)


def forward(network, image_size=8):
    return multiply_adds(network, image_size=image_size, device=CPU)["forward"]


def test_a_convolution_multiplies_each_output_pixel_with_its_weights():
    # 4 x 4 pixels of 5 channels, each from 3 x 3 pixels of 3 channels.
    assert forward(nn.Conv2d(3, 5, 3, stride=2, padding=1)) == 4 * 4 * 5 * 27


def test_a_depthwise_convolution_sees_one_channel_at_a_time():
    assert forward(nn.Conv2d(3, 6, 3, padding=1, groups=3)) == 8 * 8 * 6 * 9


def test_a_transposed_convolution_multiplies_each_input_pixel_with_its_weights():
    # 8 x 8 pixels of 3 channels, each to 2 x 2 pixels of 5 channels.
    assert forward(nn.ConvTranspose2d(3, 5, 2, stride=2)) == 8 * 8 * 3 * 20


def test_a_training_step_costs_three_passes_of_what_learns_and_one_of_what_is_frozen():
    frozen, learning = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 1, 1)
    counts = multiply_adds(
        nn.Sequential(frozen.requires_grad_(False), learning), image_size=8, device=CPU
    )
    assert counts == {"forward": 64 * (6 + 2), "step": 64 * (6 + 3 * 2)}


def test_freezing_the_encoder_saves_no_forward_multiply_adds_and_most_of_a_step_s():
    state = mobilenet_v2(weights=None).features.state_dict()
    frozen, learning = (
        multiply_adds(
            build_segmenter(
                encoder_state=state, decoder="pyramid", dropout=0.0, frozen=is_frozen, seed=0
            ),
            image_size=64,
            device=CPU,
        )
        for is_frozen in (True, False)
    )
    assert frozen["forward"] == learning["forward"]
    assert learning["step"] == 3 * learning["forward"]
    assert frozen["forward"] < frozen["step"] < 2 * frozen["forward"]


def test_ratios_are_taken_within_a_round():
    # The machine is twice as slow in the second round; the medians' ratio would be 2.25.
    assert median_ratio([80, 40, 90], [40, 20, 30]) == 2


def test_a_spread_shows_the_median_between_the_extremes():
    assert spread([3.0, 1.0, 2.0], 1) == "2.0 (1.0 to 3.0)"
    assert spread([1234.5], 0) == "1,234"


def test_parts_are_shown_as_medians_and_as_shares_of_the_whole():
    raw = {
        "float32": [
            {"milliseconds": 10.0, "parts": {"views": 4.0, "all else": 6.0}},
            {"milliseconds": 12.0, "parts": {"views": 3.0, "all else": 9.0}},
            {"milliseconds": 20.0, "parts": {"views": 2.0, "all else": 18.0}},
        ]
    }
    assert parts_table("part", raw, "parts").splitlines() == [
        "| part | ms, float32 | % |",
        "| --- | ---: | ---: |",
        "| views | 3.0 | 25 |",
        "| all else | 9.0 | 75 |",
        "| all | 12.0 | 100 |",
    ]
    assert parts_table("part", raw, "parts", num=1).splitlines()[2:] == ["| all else | 9.0 | 75 |"]


@pytest.mark.parametrize(
    ("operation", "part"),
    [
        ("aten::convolution_backward", "convolutions, backward"),
        ("aten::mkldnn_convolution", "convolutions, forward"),
        ("aten::native_batch_norm_backward", "batch norms, backward"),
        ("aten::native_batch_norm", "batch norms, forward"),
        ("aten::hardtanh_backward", "ReLU6 and ReLU"),
        ("aten::copy_", "copies, other layouts and precisions"),
        ("Optimizer.step#AdamW.step", "optimiser"),
        ("aten::add", profile.OTHERS),
    ],
)
def test_an_operation_belongs_to_one_part_of_a_step(operation, part):
    assert profile.part_of(operation) == part


def test_a_profile_gives_each_part_of_a_step_and_layers_their_shapes(
    small_project, in_process, monkeypatch, capsys
):
    monkeypatch.setattr(profile, "BLOCK", 2**20)  # this process's memory counts in other tests
    monkeypatch.setattr(profile, "NUM_STEPS", 1)
    main(["profile", "--rounds", "1", "--out", "raw.json"])
    assert "Milliseconds of a step on 2 images of 64 px" in capsys.readouterr().out
    (found,) = json.loads(Path("raw.json").read_text())["raw"]["profile"]["float32"]
    assert list(found["parts"]) == [*profile.PARTS, profile.OTHERS]
    assert all(milliseconds > 0 for milliseconds in found["parts"].values())
    assert sum(found["parts"].values()) == pytest.approx(found["milliseconds"])
    assert "convolution_backward 96x16x16, 96x32x32, 96x1x3x3" in found["layers"]


def test_a_table_has_a_row_for_each_contestant_and_the_first_over_each():
    raw = {"ours": [{"rate": 80.0}, {"rate": 90.0}], "peer": [{"rate": 40.0}, {"rate": 30.0}]}
    assert table("loop", raw, {"images/s": ("rate", 0)}, ratio="images/s").splitlines() == [
        "| loop | images/s | ours / this |",
        "| --- | ---: | ---: |",
        "| ours | 85 (80 to 90) | 1.00 |",
        "| peer | 35 (30 to 40) | 2.50 |",
    ]


def test_the_jaccard_to_reach_is_one_that_all_trainings_reach():
    def history(*scores):
        epochs = enumerate(scores, start=1)
        return {"history": [{"seconds": 10.0 * n, "val_jaccard": score} for n, score in epochs]}

    raw = {"ours": [history(0.5, 0.8, 0.7)], "peer": [history(0.1, 0.2, 0.6)]}
    assert common_jaccard(raw) == 0.6
    assert seconds_to(raw["ours"][0]["history"], 0.6) == 20
    assert seconds_to(raw["peer"][0]["history"], 0.6) == 30


def test_random_material_is_a_split_of_the_size_asked_for(tmp_path):
    prepare_random(folder=str(tmp_path), num_images=300, image_size=8)
    train = load_split(tmp_path / "processed", "train")
    assert train.images.shape == (300, 8, 8, 3)
    assert train.images[-1].std() > 0
    assert set(train.masks[-1].flatten().tolist()) == {0, 1}


def test_preprocessing_takes_as_many_images_as_it_says(small_project):
    made = preprocessing.prepare(folder=str(small_project), num_images=12, width=96)
    assert made == {"num_images": 12}
    for num in (8, 8, 12):  # a second round uses the same folder
        measured = preprocessing.preprocess_some(folder=str(small_project), num_images=num)
        assert measured["num_images"] == num
        assert 0 < measured["own_peak_mib"] <= peak_mib()


def test_own_memory_is_sampled_while_the_body_runs():
    with sampled_own_mib() as samples:
        taken = mmap.mmap(-1, 64 * 2**20, flags=mmap.MAP_PRIVATE)  # malloc may have some left over
        np.frombuffer(taken, np.uint8)[:] = 1
        num_before = len(samples)
        while len(samples) < num_before + 2:  # the first may have begun before
            time.sleep(0.01)
    assert max(samples) - samples[0] > 60


def test_the_command_measures_ours_and_names_the_peers_that_are_not_there(
    small_project, capsys, monkeypatch, in_process
):
    monkeypatch.setattr(suites, "PEER_PACKAGE", "a_package_that_is_not_there")
    main(["training", "--rounds", "1", "--images", "8", "--out", "raw.json"])
    output = capsys.readouterr().out
    assert "| ours, fine-tuned, float32 | " in output
    assert (
        "Left out, not installed: smp, stock loop; smp, tuned loop. Run: pip install -e '.[bench]'"
    ) in output
    written = json.loads(Path("raw.json").read_text())
    assert written["machine"]["num_threads"] == 1
    assert output.startswith(f"{processor()}")
    precisions = ["float32", *["bfloat16"] * written["machine"]["has_bfloat16"]]
    names = [f"{name}, {precision}" for name in suites.OURS for precision in precisions]
    assert list(written["raw"]["training"]) == names
    for name in names:
        (measured,) = written["raw"]["training"][name]
        assert name.endswith(measured["precision"])
        assert measured["num_images"] == 8
        assert measured["images_per_second"] > 0


@pytest.mark.parametrize(
    ("capabilities", "capability", "told", "is_limited"),
    [
        ({"avx512_f": True, "avx512_bf16": True}, "AVX2", "AVX2", True),
        ({"avx512_f": True, "avx512_bf16": True}, "AVX512", "", False),
        ({"avx512_f": True, "avx512_bf16": True}, "AVX2", "", False),  # oneDNN is not limited
        ({"avx2": True}, "AVX2", "AVX2", False),
    ],
)
def test_a_cpu_limited_to_avx2_is_a_kind_of_its_own(
    small_project, monkeypatch, capabilities, capability, told, is_limited
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": "Z80", **capabilities})
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", told)
    monkeypatch.setattr(machine, "_cpu_facts", lambda: {"cpu family": "26"})
    found = machine.describe()
    assert ", family 26" in found["kind"]
    assert found["kind"].endswith(", limited to AVX2") == is_limited
    assert found["has_bfloat16"] == (bool(capabilities.get("avx512_bf16")) and not is_limited)


@pytest.mark.parametrize("contestant", ["stock", "tuned"])
def test_a_peer_trains_on_the_same_images_and_is_scored_on_the_same_splits(
    small_project, monkeypatch, in_process, contestant
):
    pytest.importorskip(suites.PEER_PACKAGE)
    monkeypatch.setattr(contestants, "NUM_WORKERS", 0)
    folder = str(small_project)
    prepare(folder=folder, data=None, weights="none", num_images=8)
    measured = contestants.throughput(contestant=contestant, folder=folder, num_images=8)
    assert measured["num_images"] == 8
    assert measured["images_per_second"] > 0
    scores = contestants.quality(contestant=contestant, folder=folder, seed_offset=1)
    assert len(scores["history"]) == 1
    assert 0 <= scores["test_jaccard"] <= 1


def test_too_few_images_for_a_measurement_are_refused(small_project):
    prepare_random(folder=str(small_project), num_images=7, image_size=64)
    with pytest.raises(DataError, match="7 training images are fewer than 4 batches of 2"):
        contestants.throughput(contestant="tuned", folder=str(small_project), num_images=8)


def test_starting_up_is_measured_for_each_round(small_project, capsys):
    main(["startup", "--skip-dvc", "--rounds", "2", "--out", "raw.json"])
    assert re.search(r"^\| lesionseg --help \| \d", capsys.readouterr().out, re.MULTILINE)
    raw = json.loads(Path("raw.json").read_text())["raw"]["startup"]
    assert len(raw["lesionseg --help"]) == 2
    assert all(10 < measured["peak_mib"] < 2000 for measured in raw["lesionseg --help"])


def test_prediction_is_measured_from_its_start_beside_decoding(small_project):
    folder = str(small_project)
    assert prepare_prediction(folder=folder, num_images=3, width=96) == {"num_images": 3}
    predicted = prediction.predict(folder=folder, num_images=2)
    decoded = prediction.predict(folder=folder, num_images=2, only_decode=True)
    for measured in (predicted, decoded):
        assert measured["num_images"] == 2
        assert 0 < measured["first_seconds"] <= measured["seconds"]
    assert decoded["seconds"] < predicted["seconds"]
    assert 100 < predicted["peak_mib"] < 2000
    assert not list(small_project.rglob("*_segmentation.png"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["trainin"], ConfigError, "did you mean training"),
        (["--rounds", "0"], ConfigError, "--rounds must be at least 1, got 0"),
        (["--data", "nowhere"], MissingFileError, "nowhere is missing"),
    ],
)
def test_a_mistake_is_said_before_any_work(arguments, error, message):
    with pytest.raises(error, match=message):
        main(arguments)


def test_quality_asks_for_images(tmp_path):
    with pytest.raises(ConfigError, match="--data"):
        suites.quality(suites.Options(), str(tmp_path))


BATCHES = []


class SlowStore(BaseHTTPRequestHandler):
    """What stands for MLflow's server; each batch of metrics takes it 20 ms."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("log-batch"):
            BATCHES.append(content)
            time.sleep(0.02)
        text = json.dumps({"run": {"info": {"run_id": "r"}}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


def test_requests_to_a_tracking_server_are_counted_and_timed():
    with ThreadingHTTPServer(("127.0.0.1", 0), SlowStore) as server:
        threading.Thread(target=server.serve_forever).start()
        row = tracking._measured(server.server_port, psutil.Process(), 2, 0.5)
        server.shutdown()
    rate, metrics, median, slowest, used = (float(cell) for cell in row.split(" | "))
    assert all(len(one["metrics"]) == tracking.NUM_METRICS for one in BATCHES)
    assert 0 < rate * 0.5 <= len(BATCHES)  # which also has those before the clock ran
    assert metrics == pytest.approx(rate * tracking.NUM_METRICS, abs=tracking.NUM_METRICS)
    assert 20 <= median <= slowest
    assert 0 <= used < 20  # it sleeps
