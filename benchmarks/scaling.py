"""How time and memory grow with the number of images."""

import time
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.contestants import tuned_loop
from benchmarks.measure import peak_mib
from lesionseg.config import load_config
from lesionseg.data.batches import load_batch
from lesionseg.data.dataset import load_split
from lesionseg.models.segmenter import build_segmenter, load_encoder_state


def large_split(*, folder: str, num_steps: int) -> dict[str, Any]:
    """Seconds until the first step is done, of a later step, of reading an epoch; and memory.

    `Training` cannot be stopped after a step, so our network, fine-tuned, runs in the tuned loop,
    which has the same data path. `peak_mib` is the peak after the steps; `epoch_peak_mib` the one
    after all batches of an epoch were read once, whose mapped pages the system may take back.
    """
    config = load_config(Path("params.yaml"))
    model = build_segmenter(
        encoder_state=load_encoder_state(Path(folder) / "raw/encoder.pth"),
        decoder=config.model.decoder,
        dropout=config.model.dropout,
        frozen=False,
        seed=config.train.seed,
    )
    times = [time.perf_counter()]
    train = load_split(Path(folder) / "processed", "train")
    encoder = list(model.encoder.parameters())
    loop = tuned_loop(config, model, encoder=encoder, train=train, epochs=1)
    for _ in islice(loop.epoch(), num_steps):
        times.append(time.perf_counter())
    steps = [after - before for before, after in pairwise(times)]
    peak = peak_mib()
    start = time.perf_counter()
    for batch in torch.randperm(len(train.ids)).split(config.train.batch_size):
        load_batch(train, batch.numpy(), loop.device)
    return {
        "first_step_seconds": steps[0],
        "step_seconds": median(steps[1:]),
        "epoch_reading_seconds": time.perf_counter() - start,
        "peak_mib": peak,
        "epoch_peak_mib": peak_mib(),
    }
