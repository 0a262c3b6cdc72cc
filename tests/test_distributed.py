"""A training in several processes: what one process would give, and all end where one does."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from experiments.demo import copy_pipeline
from lesionseg.config import load_config, override, read_yaml
from lesionseg.data.augmentation import augment
from lesionseg.errors import ConfigError
from lesionseg.files import sha256
from lesionseg.models.segmenter import build_segmenter
from lesionseg.processes import child_environment
from lesionseg.training import distributed
from lesionseg.training.distributed import ALONE, Group, in_processes
from lesionseg.training.setup import Inputs, make_training
from stages import download, preprocess
from tests import spread
from tests.damage import kill_at_second_checkpoint
from tests.mlflow_contents import client_of, runs_in
from tests.raw_data import phantoms
from tests.test_training import AUGMENT, assert_same

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
SECONDS = 15  # in which all have ended after one has, on a machine with much else to do
MODEL_FILES = ("model.pt", "history.csv", "metrics.json")
ENVIRONMENT = {**child_environment(), "OMP_NUM_THREADS": "2"}  # one for each of two processes
PARAMS = {
    **phantoms(num_train=20, num_test=2),
    "train.epochs": 3,
    "train.batch_size": 4,
    "train.num_seeds": 2,
    "train.device": "cpu",
    "train.num_processes": 2,
}


# In one process, as one of several sees it.


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("num_images", [1, 2, 4, 16, 17])
def test_each_image_of_a_batch_counts_once_and_parts_are_of_about_equal_size(size, num_images):
    parts = [Group(rank, size).part(num_images) for rank in range(size)]
    images = [list(range(num_images))[part.rows] for part in parts]
    assert all(images)
    counted = [row for part, rows in zip(parts, images, strict=True) for row in rows if part.weight]
    assert counted == list(range(num_images))
    lengths = [len(rows) * part.weight for part, rows in zip(parts, images, strict=True)]
    assert max(lengths) - min(lengths) <= 1


def test_the_views_of_a_part_are_those_of_the_whole_batch():
    images, masks = torch.rand(5, 3, 8, 8), torch.rand(5, 1, 8, 8).round()
    seeds = [torch.Generator().manual_seed(3) for _ in range(3)]
    whole = augment(images, masks, AUGMENT, generator=seeds[0])
    for rows, generator in ((slice(0, 2), seeds[1]), (slice(2, 5), seeds[2])):
        part = augment(
            images[rows], masks[rows], AUGMENT, generator=generator, batch_size=5, rows=rows
        )
        assert_same(part, tuple(one[rows] for one in whole))
    assert len({bytes(seed.get_state().numpy()) for seed in seeds}) == 1


def test_one_process_meets_nobody():
    assert Group() == ALONE
    assert list(ALONE.take([1, 2, 3])) == [1, 2, 3]
    assert ALONE.collect([1, 2]) == [1, 2]
    assert ALONE.share("state") == "state"
    seen = []
    in_processes(seen.append, command=["false"], num_processes=1, device="cuda:1")
    assert seen == [ALONE]


@pytest.mark.parametrize("frozen", [False, True])
def test_on_gpus_the_batch_norms_that_learn_see_whole_batches(encoder_state, frozen):
    model = build_segmenter(
        encoder_state=encoder_state, decoder="pyramid", dropout=0.1, frozen=frozen, seed=0
    )
    before = model.state_dict()
    learning = [p for p in model.parameters() if p.requires_grad]
    Group(0, 2).join_norms(model, torch.device("cpu"))
    ALONE.join_norms(model, torch.device("cuda"))
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
    Group(0, 2).join_norms(model, torch.device("cuda"))
    kinds = {
        part: {type(m) for m in getattr(model, part).modules() if "BatchNorm" in type(m).__name__}
        for part in ("encoder", "decoder")
    }
    assert kinds == {
        "encoder": {nn.BatchNorm2d} if frozen else {nn.SyncBatchNorm},
        "decoder": {nn.SyncBatchNorm},
    }
    assert_same(dict(model.state_dict()), dict(before))
    assert [id(p) for p in model.parameters() if p.requires_grad] == [id(p) for p in learning]


def test_each_process_has_a_gpu_of_its_own_and_all_share_the_cpu():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert [Group(rank, 2).device(gpu) for rank in (0, 1)] == [
        torch.device("cuda:0"),
        torch.device("cuda:1"),
    ]
    assert Group(1, 2).device(cpu) == cpu
    assert ALONE.device(torch.device("cuda:1")) == torch.device("cuda:1")


@pytest.mark.parametrize(
    ("device", "num_devices", "message"),
    [
        ("auto", 3, "4, and torch sees 3 CUDA devices. Write at most 3"),
        ("cuda", 3, "4, and torch sees 3 CUDA devices. Write at most 3"),
        ("cuda", 0, "4 on cuda, and torch sees no CUDA device. Write device auto or cpu"),
        (
            *("cuda:1", 8),
            "4, and device is cuda:1. Write device auto or cuda: each process takes a GPU of its "
            "own",
        ),
    ],
)
def test_more_processes_than_gpus_are_refused_in_one_line(
    monkeypatch, device, num_devices, message
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_devices)
    with pytest.raises(ConfigError) as caught:
        in_processes(pytest.fail, command=["false"], num_processes=4, device=device)
    assert str(caught.value) == f"params.yaml: train: num_processes is {message}"


@pytest.mark.parametrize(("device", "num_devices"), [("cpu", 1), ("auto", 0), ("auto", 4)])
def test_as_many_processes_as_there_are_gpus_or_any_number_on_cpus_may_start(
    monkeypatch, device, num_devices
):
    started = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_devices)
    monkeypatch.setattr(distributed, "_run_all", lambda *arguments: started.append(arguments))
    in_processes(pytest.fail, command=["train"], num_processes=4, device=device)
    assert started == [(["train"], 4)]


def test_the_threads_are_shared_and_nothing_of_dvc_is_watched_but_the_starter(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setenv("DVC_STAGE", "train_frozen")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    place = distributed._Place(rank=1, size=3, starter=5, folder="f")
    environment = distributed._environment(place)
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["MLFLOW_TRACKING_URI"] == "sqlite:///mlflow.db"
    assert "DVC_STAGE" not in environment
    assert json.loads(environment["LESIONSEG_PROCESS"])["rank"] == 1


@pytest.mark.parametrize(("debug", "level"), [("", "FATAL"), ("1", None)])
def test_gloo_does_not_log_that_another_is_gone(monkeypatch, debug, level):
    """As it does where one ends while they still find each other: a line above the error's own."""
    monkeypatch.delenv("TORCH_CPP_LOG_LEVEL", raising=False)
    monkeypatch.setenv("LESIONSEG_DEBUG", debug)
    place = distributed._Place(rank=0, size=2, starter=5, folder="f")
    assert distributed._environment(place).get("TORCH_CPP_LOG_LEVEL") == level


# In several, on a network that takes seconds.


def run_spread(case, folder):
    """The exit status, and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.spread", case, str(folder), "2"],
        cwd=ROOT,
        env=ENVIRONMENT | {"PYTHONPATH": f"{ROOT / 'src'}"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What each of two processes has of two trainings in the end."""
    folder = tmp_path_factory.mktemp("trained")
    assert run_spread("trains", folder) == (0, "")
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def assert_close(first, second):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-5, msg=name)


def test_without_batch_statistics_and_dropout_two_processes_give_what_one_gives(left):
    """Batches of 3, 3, 3 and 1: parts of unequal size, and one process without an image."""
    one, two = spread.steady(), [each["steady"] for each in left]
    assert_same(two[1]["model"], two[0]["model"])
    assert_close(dict(one["model"]), dict(two[0]["model"]))
    for each in two:
        for epoch, expected in zip(each["history"], one["history"], strict=True):
            assert epoch == pytest.approx(expected, rel=1e-4)


def test_two_processes_see_the_batches_and_views_of_one_and_drop_other_channels(left):
    one, two = spread.steady(), [each["steady"] for each in left]
    assert [len(batch) for batch in one["batches"]] == [3, 3, 3, 1] * 3
    for step, batch in enumerate(one["batches"]):
        parts = [Group(rank, 2).part(len(batch)) for rank in (0, 1)]
        seen = [each["batches"][step] for each, part in zip(two, parts, strict=True) if part.weight]
        assert torch.equal(torch.cat(seen), batch)
    assert two[0]["dropout"] == one["dropout"] != two[1]["dropout"]


def test_two_processes_learn_as_one_does_and_end_with_the_same_model(left):
    one, (first, second) = spread.real(), [each["real"] for each in left]
    assert_same(first, second)  # running statistics and all
    assert first["history"][-1]["train_loss"] < 0.7 * first["history"][0]["train_loss"]
    jaccards = [max(epoch["val_jaccard"] for epoch in each["history"]) for each in (one, first)]
    assert jaccards[1] == pytest.approx(jaccards[0], abs=0.1)


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("fails", "train/ISIC_7.jpg is damaged. Write another"),
        (
            "is_killed",
            "process 1 of the training's 2 was killed, as the system does where memory is full. "
            "Run the same command again to go on, or write fewer train.num_processes in "
            "params.yaml",
        ),
    ],
)
def test_what_ends_one_process_ends_all_and_is_told_once(tmp_path, case, line):
    status, words = run_spread(case, tmp_path)
    assert (status, words) == (1, f"error: {line}\n")
    (moment,) = tmp_path.iterdir()
    assert time.time() - moment.stat().st_mtime < SECONDS


@pytest.mark.parametrize(
    ("deadly", "words"),
    [
        (signal.SIGTERM, "interrupted. Run the same command again to go on\n"),
        (signal.SIGKILL, ""),
    ],
)
def test_whatever_ends_the_starter_ends_all(tmp_path, deadly, words):
    starter = subprocess.Popen(
        [sys.executable, "-m", "tests.spread", "lasts", str(tmp_path), "2"],
        cwd=ROOT,
        env=ENVIRONMENT | {"PYTHONPATH": f"{ROOT / 'src'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    found = [psutil.Process(int(starter.stdout.readline())) for _ in range(2)]
    heard = {one.laddr.ip for process in found for one in process.net_connections("inet")}
    assert heard == {"127.0.0.1"}  # nobody else on the network
    starter.send_signal(deadly)
    _, alive = psutil.wait_procs(found, timeout=SECONDS)
    assert not alive
    assert starter.communicate() == ("", words)
    assert starter.returncode == (130 if words else -signal.SIGKILL)


class Ending:
    """A process that is known to have ended with a status after some looks."""

    def __init__(self, status, looks=0):
        self.statuses = [None] * looks + [status]

    def poll(self):
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]


def test_whoever_lost_the_others_is_not_to_blame_even_where_its_end_is_known_first(monkeypatch):
    monkeypatch.setattr(distributed, "_POLL_SECONDS", 0.0)
    lost = distributed._ALONE
    assert distributed._await([Ending(lost), Ending(None), Ending(-9, looks=5)]) == 2
    assert distributed._await([Ending(0), Ending(0, looks=5)]) is None
    assert distributed._await([Ending(0), Ending(1, looks=5)]) == 1
    monkeypatch.setattr(distributed, "_CAUSE_SECONDS", 0.0)
    assert distributed._await([Ending(None), Ending(lost)]) == 1


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (-signal.SIGSEGV, "was ended by SIGSEGV. Run the same command again to go on"),
        (130, "was interrupted. Run the same command again to go on"),
        (
            distributed._ALONE,
            "has lost the others; LESIONSEG_DEBUG=1 shows how. Run the same command again to go on",
        ),
        (3, "ended with status 3; what it says is above. Run the same command again to go on"),
    ],
)
def test_a_process_without_last_words_is_told_of_by_its_status(tmp_path, status, line):
    place = distributed._Place(rank=1, size=2, starter=5, folder=str(tmp_path))
    assert str(distributed._failure(place, status)) == f"process 1 of the training's 2 {line}"


# The stage itself.


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A project with its data and nothing trained."""
    project = tmp_path_factory.mktemp("prepared") / "project"
    copy_pipeline(project)
    path = project / "params.yaml"
    path.write_text(override(read_yaml(path), PARAMS))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        download.main([])
        preprocess.main([])
    return project


def train(project, **environment):
    return subprocess.run(
        [sys.executable, "-m", "stages.train", "train_finetuned"],
        cwd=project,
        env=ENVIRONMENT | {"DVC_ROOT": str(project)} | environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def trained(prepared) -> Path:
    """The project, with one model trained by two processes."""
    project = Path(shutil.copytree(prepared, prepared.with_name("trained")))
    done = train(project)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("1 threads in each of 2 processes") == 2  # once for each seed
    assert len(re.findall(r"epoch \d/3: loss", done.stderr)) == 2 * 3
    return project


def test_results_and_runs_are_those_of_one_training_and_say_how_many_processes(trained):
    record = json.loads((trained / "results/train_finetuned/run.json").read_text())
    assert record["params"]["train.num_processes"] == 2
    runs = runs_in(client_of(trained), "training")
    assert [run.info.status for run in runs] == ["FINISHED"] * 2
    for run in [*runs, *runs_in(client_of(trained), "pipeline run")]:
        assert run.data.tags["num_processes"] == "2"
    history = client_of(trained).get_metric_history(runs[0].info.run_id, "val/jaccard")
    assert [metric.step for metric in history] == [1, 2, 3]


def test_another_number_of_processes_is_another_training(trained, monkeypatch):
    monkeypatch.chdir(trained)
    monkeypatch.setenv("DVC_ROOT", str(trained))
    config = load_config(Path("params.yaml"))
    training = make_training(config, "train_finetuned", seed=0, inputs=Inputs())
    names = set()
    for number in (1, 2, 3):
        changed = replace(config, train=replace(config.train, num_processes=number))
        names.add(distributed_key(changed, training))
    assert len(names) == 3


def distributed_key(config, training):
    from lesionseg.training.run import _checkpoints

    return _checkpoints(config, training, Inputs(), {}).name


def test_a_process_killed_ends_the_stage_which_then_goes_on_to_the_same_bytes(
    prepared, trained, tmp_path
):
    project = Path(shutil.copytree(prepared, tmp_path / "project"))
    kill_at_second_checkpoint(tmp_path)
    killed = train(project, PYTHONPATH=str(tmp_path))
    assert killed.returncode == 1
    assert killed.stderr.splitlines()[-1].startswith(
        "error: process 0 of the training's 2 was killed, as the system does where memory is full"
    )
    assert not list((project / "results").rglob("model.pt"))
    done = train(project)
    assert done.returncode == 0, done.stderr
    assert "goes on after epoch 1" in done.stderr
    for folder in ("", "seeds/1/"):
        for name in MODEL_FILES:
            path = f"results/train_finetuned/{folder}{name}"
            assert sha256(project / path) == sha256(trained / path)
    runs = runs_in(client_of(project), "training")
    assert [run.info.status for run in runs] == ["FINISHED"] * 2


def test_a_missing_input_is_told_once(prepared, tmp_path):
    project = Path(shutil.copytree(prepared, tmp_path / "project"))
    (project / "data/processed/val/masks.npy").unlink()
    done = train(project)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if "seed" not in line]
    assert errors == ["error: data/processed/val/masks.npy is missing. Run: dvc repro preprocess"]


def test_more_processes_than_images_in_a_batch_are_refused(prepared, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(override(read_yaml(prepared / "params.yaml"), {"train.num_processes": 5}))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == (
        "params.yaml: train: num_processes is 5, and batch_size is 4. Write num_processes of at "
        "most 4, or a larger batch_size: each process computes a part of every batch"
    )
