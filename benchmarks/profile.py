"""Where a fine-tuning step spends its time: by kind of operation, and by layer."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile

from benchmarks.contestants import config_in, make_training
from benchmarks.machine import matrix_rate, multiply_adds, wait
from lesionseg.data.dataset import load_split

WARM_UP, NUM_STEPS = 4, 8
BLOCK, NUM_BLOCKS = 2**28, 6  # bytes by which the heap may grow; larger ones are not kept
OTHERS = "all else"
# A part of a step, and what the names of its operations begin with; the first that fits counts.
PARTS = {
    "convolutions, backward": ("aten::convolution_backward",),
    "convolutions, forward": ("aten::mkldnn_convolution", "aten::cudnn_convolution", "aten::_conv"),
    "batch norms, backward": ("aten::native_batch_norm_backward", "aten::cudnn_batch_norm_back"),
    "batch norms, forward": ("aten::native_batch_norm", "aten::cudnn_batch_norm"),
    "ReLU6 and ReLU": ("aten::hardtanh", "aten::clamp", "aten::threshold", "aten::relu"),
    "copies, other layouts and precisions": ("aten::copy_",),
    "random views": ("aten::grid_sampler", "aten::bmm"),
    "upsampling": ("aten::upsample",),
    "optimiser": ("aten::_fused_adamw", "Optimizer"),
}


def step(*, folder: str, precision: str) -> dict[str, Any]:
    """Milliseconds of a fine-tuning step at the network's size, and where they go.

    Args:
        folder: Filled by `material`.
        precision: In the place of `train.precision`.
    """
    config = config_in(precision)
    train = load_split(Path(folder) / "processed", "train").first(config.train.batch_size)
    training = make_training(config, "train_finetuned", folder=folder, train=train, epochs=1)
    batch, generator = torch.arange(len(train.ids)), torch.Generator().manual_seed(0)
    image_size, device = train.masks.shape[1], training.device
    training.model.train()

    def take_steps(num: int) -> None:
        for _ in range(num):
            training.step(batch, generator, image_size=image_size)
        wait(device)

    take_steps(WARM_UP)
    # The profiler's records make the heap grow, and fresh pages would be charged to whatever
    # operation touches them first, some 70 ms to a large map: they are touched before.
    blocks = [torch.ones(BLOCK // 4) for _ in range(NUM_BLOCKS)]
    del blocks
    with profile(record_shapes=True) as recorded:  # of all kinds of devices that are there
        take_steps(NUM_STEPS)
    on = f"self_{'device' if device.type == 'cuda' else 'cpu'}_time_total"
    parts: dict[str, float] = dict.fromkeys([*PARTS, OTHERS], 0.0)
    layers: dict[str, float] = defaultdict(float)
    for event in recorded.key_averages(group_by_input_shape=True):
        milliseconds = getattr(event, on) / NUM_STEPS / 1e3
        parts[part_of(event.key)] += milliseconds
        maps = [shape for shape in event.input_shapes if len(shape) == 4]
        if maps:
            layers[f"{event.key.removeprefix('aten::')} {shape_of(maps)}"] += milliseconds
    cost = multiply_adds(training.model, image_size=image_size, device=device)["step"]
    rate = matrix_rate(training.recipe.precision, device)
    return {
        "num_images": len(batch),
        "milliseconds": sum(parts.values()),
        "convolutions_at_matrix_rate": 2 * cost * len(batch) / rate / 1e6,
        "parts": parts,
        "layers": dict(sorted(layers.items(), key=lambda item: -item[1])),
    }


def part_of(operation: str) -> str:
    """The part of a step that an operation of torch's profiler belongs to."""
    fitting = (part for part, starts in PARTS.items() if operation.startswith(starts))
    return next(fitting, OTHERS)


def shape_of(maps: list[list[int]]) -> str:
    """The maps that an operation takes, such as `96x64x64, 96x16x1x1`, without the batch."""
    first, *others = maps
    sizes = [first[1:], *(shape if shape[0] != first[0] else shape[1:] for shape in others)]
    return ", ".join("x".join(map(str, size)) for size in sizes)
