"""The machine: what it is, how fast it multiplies, how many multiplications a network needs."""

import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from lesionseg.config import load_config
from lesionseg.hardware import (
    choose_device,
    choose_precision,
    multiplies_in_bfloat16,
    processor,
)
from lesionseg.provenance import git_commit, versions

LARGE, SMALL = 2048, 256  # sides of the matrices
LONGEST = 2.0  # seconds per product; a CPU without bfloat16 needs a minute for a large one
NUM_PRODUCTS = 5


def describe() -> dict[str, Any]:
    """What a reader must know about the machine to interpret the numbers."""
    config = load_config(Path("params.yaml")).train
    device = choose_device(config.device)
    is_cuda = device.type == "cuda"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "kind": torch.cuda.get_device_name(device) if is_cuda else _kind(),
        "cpu": _cpu_facts().get("model name", platform.processor()),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "num_cores": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],  # of the minute before: near 0 on an idle machine
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": dtype_name(choose_precision(config.precision, device)),
        "has_bfloat16": multiplies_in_bfloat16(device) and (is_cuda or not is_limited()),
        "matrix_gflops": {
            dtype_name(dtype): matrix_rate(dtype, device)
            for dtype in (torch.float32, torch.bfloat16)
        },
        "versions": versions(),
    }


def is_limited() -> bool:
    """Whether torch and oneDNN are told to use AVX2 on a CPU with wider instructions.

    So they compute in `train.reproducible: anywhere`, and nearly as on a CPU that has no more.
    """
    has_wider = bool(torch.cpu.get_capabilities().get("avx512_f"))
    is_told = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() == "AVX2"
    return has_wider and is_told and torch.backends.cpu.get_cpu_capability() == "AVX2"


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` or `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """GFLOP/s of square matrix products: 2048 x 2048, or smaller if that would take too long."""
    rate = _product_rate(SMALL, dtype, device)
    is_emulated = 2 * LARGE**3 / (1e9 * rate) > LONGEST
    return rate if is_emulated else _product_rate(LARGE, dtype, device)


def _product_rate(size: int, dtype: torch.dtype, device: torch.device) -> float:
    matrix = torch.rand(size, size, device=device).to(dtype)
    seconds = []
    for _ in range(NUM_PRODUCTS):
        wait(device)
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / median(seconds) / 1e9


def wait(device: torch.device) -> None:
    """Return when the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def multiply_adds(network: nn.Module, *, image_size: int, device: torch.device) -> dict[str, int]:
    """Multiply-adds of all convolutions for one image.

    `forward` is one forward pass; `step` a training step. There each convolution that is trained
    computes its products three times: forward, and for the gradients of its input and of its
    weights. One that is not trained computes them once.

    Args:
        network: Takes images (1, 3, H, W); it is left in evaluation mode.
        image_size: Height and width in pixels.
        device: Where the network is.
    """
    counts = {"forward": 0, "step": 0}

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            return
        # Each value of the output (transposed: of the input) takes one product with every weight
        # of its channel.
        pixels = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
        products = pixels[0].numel() * module.weight[0].numel()
        counts["forward"] += products
        counts["step"] += products * (3 if module.weight.requires_grad else 1)

    # For all modules, as a frozen encoder computes with a hidden, folded copy.
    hook = nn.modules.module.register_module_forward_hook(count)
    network.eval()(torch.zeros(1, 3, image_size, image_size, device=device))
    hook.remove()
    return counts


def _kind() -> str:
    """The kind of CPU, with its family, which tells generations of one name apart.

    Two machines with the name `AMD EPYC` and the same instructions differed by a factor of two in
    bfloat16 products.
    """
    family = _cpu_facts().get("cpu family")
    parts = [processor(), f"family {family}" if family else "", "limited to AVX2"]
    return ", ".join(filter(None, parts if is_limited() else parts[:2]))


def _cpu_facts() -> dict[str, str]:
    """What Linux says about the first CPU; nothing on other systems."""
    path = Path("/proc/cpuinfo")
    first = path.read_text().partition("\n\n")[0] if path.exists() else ""
    fields = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in fields}
