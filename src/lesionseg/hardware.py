"""What to compute on, and in which precision."""

import logging
import os
import platform

import torch

from lesionseg.errors import ConfigError

_log = logging.getLogger("lesionseg.hardware")

# Torch, oneDNN and MKL choose their kernels by the processor, and other kernels round sums in
# another way. MKL does so by the maker too; COMPATIBLE is what it offers for all of them.
_SAME_ANYWHERE = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
}


def choose_device(name: str) -> torch.device:
    """The device that `train.device` names; `auto` takes CUDA where there is one.

    Raises:
        ConfigError: The device is not there.
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
    """Return when `train.device` names one for each of several processes.

    Raises:
        ConfigError: There is not.
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

    On a CPU `auto` is float32, whatever the CPU can do: so a result does not change with the kind
    of processor that happens to compute it. bfloat16 is a value to ask for there.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda" and multiplies_in_bfloat16(device):
        return torch.bfloat16
    return torch.float32


def describe(device: torch.device, precision: torch.dtype) -> str:
    """Device, precision and threads in a line, such as `cpu (AVX512), float32, 2 threads`."""
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
    """The same numbers every time from the same inputs, at the price of some CUDA kernels."""
    # As `use_deterministic_algorithms`, which also loads torch's compiler and so takes a second.
    torch.set_deterministic_debug_mode("warn" if torch.cuda.is_available() else "error")
    # Filling fresh memory with NaN finds bugs, and costs time in every step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def compute_as_anywhere() -> None:
    """From now on the CPU computes as any x86-64 CPU with AVX2 should: to the byte, on one thread.

    Call it before torch computes anything in this process; later it is too late. A CPU of another
    kind computes in its own way, and says so.
    """
    torch.set_num_threads(1)
    # Asked of the CPU itself: torch's own choice is made once, when it is first asked for.
    if not torch.cpu.get_capabilities().get("avx2"):
        _log.warning(
            "train.reproducible is anywhere, and this CPU is none of x86-64 with AVX2: the models' "
            "bytes are those of its own kind"
        )
        return
    os.environ.update(_SAME_ANYWHERE)
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        raise RuntimeError("torch has computed before in this process, with other instructions")
