"""What to compute on, and in which precision."""

import logging
import os
import platform

import torch

from lesionseg.errors import ConfigError

_log = logging.getLogger("lesionseg.hardware")

# Torch, oneDNN and MKL choose their kernels by the processor, and different kernels round sums
# differently. MKL also looks at the vendor; COMPATIBLE is its setting for all of them.
_SAME_ANYWHERE = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
}


def choose_device(name: str) -> torch.device:
    """The device that `train.device` names; `auto` takes CUDA if available.

    Raises:
        ConfigError: There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"params.yaml: train: device is {name}, and torch sees "
            f"{torch.cuda.device_count()} CUDA devices; write auto or cpu"
        )
    return device


def check_devices(name: str, *, num_processes: int) -> None:
    """Return if `train.device` provides a device for each of several processes.

    Raises:
        ConfigError: It does not.
    """
    where = f"params.yaml: train: num_processes is {num_processes}"
    if ":" in name:
        raise ConfigError(
            f"{where}, and device is {name}. Write device auto or cuda: each process takes a GPU "
            "of its own"
        )
    num_devices = torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and not num_devices):
        return
    if num_processes > num_devices:
        raise ConfigError(
            f"{where}, and torch sees {num_devices} CUDA devices. Write at most {num_devices}"
            if num_devices
            else f"{where} on {name}, and torch sees no CUDA device. Write device auto or cpu"
        )


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The type to compute in; `auto` takes bfloat16 on a CUDA device that multiplies in it.

    On a CPU `auto` is float32, whatever the CPU can do, so that a result does not depend on the
    kind of processor that happens to compute it. On a CPU, bfloat16 must be asked for.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda" and multiplies_in_bfloat16(device):
        return torch.bfloat16
    return torch.float32


def describe(device: torch.device, precision: torch.dtype) -> str:
    """Device, precision and threads in one line, such as `cpu (AVX512), float32, 2 threads`."""
    if device.type == "cuda":
        kind = f"{device} ({torch.cuda.get_device_name(device)})"
    else:
        kind = f"{device} ({torch.backends.cpu.get_cpu_capability()})"
    return f"{kind}, {str(precision).removeprefix('torch.')}, {torch.get_num_threads()} threads"


def processor() -> str:
    """The kind of processor, such as `Intel Xeon with AVX-512 BF16`."""
    can = torch.cpu.get_capabilities()
    kinds = {"avx512_bf16": "AVX-512 BF16", "avx512_f": "AVX-512", "avx2": "AVX2"}
    widest = next((label for name, label in kinds.items() if can.get(name)), "no AVX2")
    return f"{can.get('cpu_name', platform.machine())} with {widest}"


def multiplies_in_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for products in bfloat16; others emulate them, slowly."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    can = torch.cpu.get_capabilities()
    return any(can.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def make_deterministic() -> None:
    """Make the same inputs give the same numbers every time, forgoing some faster CUDA kernels."""
    # Like `use_deterministic_algorithms`, which also loads torch's compiler, taking a second.
    torch.set_deterministic_debug_mode("warn" if torch.cuda.is_available() else "error")
    # Filling fresh memory with NaN finds bugs, and costs time in every step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def compute_as_anywhere() -> None:
    """Make the CPU compute, on one thread, the same bytes as any x86-64 CPU with AVX2 should.

    Call it before torch computes anything in this process; afterwards it is too late. On another
    kind of CPU it only logs a warning, and that CPU computes in its own way.
    """
    torch.set_num_threads(1)
    # Asks the CPU itself: torch makes its own choice once, when it is first asked for.
    if not torch.cpu.get_capabilities().get("avx2"):
        _log.warning(
            "train.reproducible is anywhere, and this CPU is not an x86-64 one with AVX2: the "
            "models' bytes are specific to this kind of CPU"
        )
        return
    os.environ.update(_SAME_ANYWHERE)
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        raise RuntimeError("torch has already computed in this process, with other instructions")
