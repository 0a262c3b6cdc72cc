"""The encoder's first weights: the `features` of torchvision's MobileNetV2 (arXiv:1801.04381)."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lesionseg.data.fetch import fetch
from lesionseg.errors import DataError, MissingFileError
from lesionseg.files import project_root, write_bytes
from lesionseg.mobilenet import mobilenet_v2

# torchvision's IMAGENET1K_V2; the name carries the first digits of its SHA-256.
IMAGENET_URL = "https://download.pytorch.org/models/mobilenet_v2-7ebf99e0.pth"
IMAGENET_SHA256_PREFIX = "7ebf99e0"

PREFIX = "features."


def write_encoder(path: Path, *, weights: str, seed: int, archives_dir: Path) -> None:
    """Write the encoder's state dict: keys without `features.`, contiguous tensors on the CPU.

    Floating-point tensors are float32. The same weights give the same bytes.

    Args:
        path: The file to write.
        weights: `imagenet`, `none` (random), or the path of a state dict of torchvision's
            mobilenet_v2, relative to the repository.
        seed: Of the random weights.
        archives_dir: Where the downloaded ImageNet weights are kept.

    Raises:
        DownloadError: The ImageNet weights could not be had.
        MissingFileError: There is no file of weights.
        DataError: It is damaged, or holds something else.
    """
    if weights == "none":
        state = _random_state(seed)
    elif weights == "imagenet":
        source = archives_dir / IMAGENET_URL.rpartition("/")[2]
        fetch([IMAGENET_URL], source, sha256_prefix=IMAGENET_SHA256_PREFIX)
        state = _load(source)
    else:
        state = _load(project_root() / weights)
    # In memory: in a file of its own, the archive's root folder would carry the file's name.
    stream = BytesIO()
    torch.save(state, stream)
    write_bytes(path, stream.getvalue())


def _random_state(seed: int) -> dict[str, Tensor]:
    """The library's own initialisation; the global random state stays what it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(mobilenet_v2(weights=None).features.state_dict())


def _load(path: Path) -> dict[str, Tensor]:
    """The encoder's part of a file with mobilenet_v2's state dict."""
    if not path.is_file():
        raise MissingFileError(
            f"{path} is missing. Write imagenet, none or an existing file "
            "for download.weights in params.yaml"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes lead torch's reader into errors of any kind
        raise _unfit(path, "is damaged or no file of weights") from error
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise _unfit(path, f"must hold a state dict, got a {type(content).__name__}")
    return _encoder_state(path, content)


def _encoder_state(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of `features`, once each is known to be there with its shape."""
    with torch.device("meta"):
        reference = mobilenet_v2(weights=None).features.state_dict()
    for key in content:
        if key.startswith(PREFIX) and key.removeprefix(PREFIX) not in reference:
            raise _unfit(path, f"has the unknown key {key}")
    state = {}
    for name, expected in reference.items():
        tensor = content.get(PREFIX + name)
        if not isinstance(tensor, Tensor):
            raise _unfit(path, f"has no tensor {PREFIX}{name}")
        if tensor.shape != expected.shape:
            shapes = f"{tuple(expected.shape)}, got {tuple(tensor.shape)}"
            raise _unfit(path, f"must have {PREFIX}{name} of shape {shapes}")
        if not tensor.isfinite().all():
            raise _unfit(path, f"has values that are not finite in {PREFIX}{name}")
        state[name] = (
            tensor.detach().to(expected.dtype).clone(memory_format=torch.contiguous_format)
        )
    return state


def _unfit(path: Path, problem: str) -> DataError:
    return DataError(
        f"{path} {problem}. Write imagenet, none or the path of a state dict of torchvision's "
        "mobilenet_v2 for download.weights in params.yaml"
    )
