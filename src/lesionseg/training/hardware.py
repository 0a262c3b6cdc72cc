"""What to compute on, and in which precision."""

import torch

from lesionseg.errors import ConfigError


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


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The type to compute in; `auto` takes bfloat16 only where the hardware multiplies in it.

    A CPU without AVX-512 BF16 or AMX emulates bfloat16, hundreds of times slower than float32.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def make_deterministic() -> None:
    """The same numbers every time from the same inputs, at the price of some CUDA kernels."""
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    # Filling fresh memory with NaN finds bugs, and costs time in every step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
