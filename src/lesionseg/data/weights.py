"""The encoder's initial weights: the `features` of torchvision's MobileNetV2 (arXiv:1801.04381)."""

import argparse
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping
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

WRAPPERS = ("state_dict", "model_state_dict", "model")  # where checkpoints keep a state dict
COUNTER = ".num_batches_tracked"  # of batch norms
# Where the name of a tensor of `features` can begin: at a number after a dot, or at the start.
_NAME = re.compile(r"(?:(?<=\.)|^)\d+\.")
# First tensors of the MobileNetV2 of timm and of transformers.
_OTHER_NAMES = {"conv_stem.weight", "mobilenet_v2.conv_stem.first_conv.convolution.weight"}


def write_encoder(path: Path, *, weights: str, seed: int, archives_dir: Path) -> None:
    """Write the encoder's state dict: keys without `features.`, contiguous tensors on the CPU.

    Floating-point tensors are float32. The same weights give the same bytes.

    Args:
        path: The file to write.
        weights: `imagenet`, `none` (random), or the path, relative to the repository, of a file
            with the state dict of a MobileNetV2 named as in torchvision. It may be under one of
            `WRAPPERS`, and its names may have any prefix, such as `module.encoder.`.
        seed: Seed of the random weights.
        archives_dir: Where the downloaded ImageNet weights are kept.

    Raises:
        DownloadError: The ImageNet weights could not be downloaded.
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
    """The library's own initialisation; the global random state is unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(mobilenet_v2(weights=None).features.state_dict())


def _load(path: Path) -> dict[str, Tensor]:
    """The encoder's part of a file with a MobileNetV2's state dict."""
    if path.is_dir():
        raise _unfit(path, "is a folder, as a SavedModel of TensorFlow")
    if not path.is_file():
        raise MissingFileError(
            f"{path} is missing. Write imagenet, none or an existing file "
            "for download.weights in params.yaml"
        )
    if other := _other_format(path):
        raise _unfit(path, f"is {other}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # settings kept beside weights
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "is damaged or no file of weights, or holds a whole model or other objects"
        raise _unfit(path, reason) from error
    except Exception as error:  # torch's reader may raise anything for damaged bytes
        raise _unfit(path, "is damaged or no file of weights") from error
    return _encoder_state(path, _unwrap(path, content))


def _other_format(path: Path) -> str:
    """What a file that is not in torch's format is, if it can be recognised; else ""."""
    with path.open("rb") as stream:
        start = stream.read(16)
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return "an HDF5 file, as Keras writes them"
    if start[4:8] == b"TFL3":
        return "a file of TensorFlow Lite"
    if start[:2] == b"PK" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
        if {"config.json", "model.weights.h5"} & names:
            return "a Keras file"
        if "constants.pkl" in names:
            return "a TorchScript model"
    if start[8:10] == b'{"':
        return "a safetensors file"
    return ""


def _unwrap(path: Path, content: Any) -> Mapping[str, Any]:
    """The state dict in a file's content: that itself, or under one of the usual names."""
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise _unfit(path, f"must hold a state dict, got a {type(content).__name__}")
    inner = [content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)]
    return _unwrap(path, inner[0]) if inner else content


def _encoder_state(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of `features`, after checking that each is there with its shape."""
    with torch.device("meta"):
        reference = mobilenet_v2(weights=None).features.state_dict()
    prefix = _find_prefix(path, content, reference.keys())
    state = {}
    for name, expected in reference.items():
        key = prefix + name
        tensor = content.get(key)
        if tensor is None and name.endswith(COUNTER):  # never used, and often not saved
            tensor = torch.zeros(expected.shape, dtype=expected.dtype)
        if not isinstance(tensor, Tensor):
            raise _unfit(path, f"has no tensor {key}")
        if tensor.shape != expected.shape:
            shapes = f"{tuple(expected.shape)}, got {tuple(tensor.shape)}"
            width = ": another width, or other images than RGB"
            raise _unfit(path, f"must have {key} of shape {shapes}{width}")
        if not tensor.isfinite().all():
            raise _unfit(path, f"has values that are not finite in {key}")
        state[name] = (
            tensor.detach().to(expected.dtype).clone(memory_format=torch.contiguous_format)
        )
    return state


def _find_prefix(path: Path, content: Mapping[str, Any], names: Collection[str]) -> str:
    """The prefix of the names of the encoder's tensors, such as `module.encoder.features.`.

    Raises:
        DataError: No prefix leads to a tensor of the encoder, several lead to all of them, or the
            prefix also leads to unknown ones.
    """
    numbers = Counter(
        key.removesuffix(name)
        for key in content
        for name in (key[match.start() :] for match in _NAME.finditer(key))
        if name in names
    )
    if not numbers:
        known = "; it is a MobileNet of another package" if _OTHER_NAMES & content.keys() else ""
        raise _unfit(path, f"has no tensor of torchvision's mobilenet_v2{known}")
    most = max(numbers.values())
    prefixes = [prefix for prefix, number in numbers.items() if number == most]
    if len(prefixes) > 1:
        raise _unfit(path, f"holds several encoders: under {', '.join(map(repr, prefixes))}")
    for key in content:
        name = key.removeprefix(prefixes[0])
        if key.startswith(prefixes[0]) and name[:1].isdecimal() and name not in names:
            raise _unfit(path, f"has the unknown key {key}")
    return prefixes[0]


def _unfit(path: Path, problem: str) -> DataError:
    return DataError(
        f"{path} {problem}. Write imagenet, none or the path of a state dict of torchvision's "
        "mobilenet_v2 at width 1.0, saved by torch.save, for download.weights in params.yaml; it "
        f"may lie under {', '.join(WRAPPERS)}, and its names may have a prefix such as module., "
        "encoder. or features."
    )
