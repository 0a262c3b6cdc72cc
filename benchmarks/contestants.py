"""Our training as users get it, and two loops around the nearest peer.

The peer is `Unet("mobilenet_v2")` from segmentation_models.pytorch (smp). Its stock loop is that of
smp's examples: a DataLoader decodes, resizes and rotates one image after the other in every epoch,
Dice loss, Adam. Its tuned loop has everything that ours has: packed arrays, views of whole batches,
the same losses, channels-last. Both compute in the same precision as ours.
"""

import copy
import dataclasses
import importlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import dtype_name, matrix_rate, multiply_adds
from lesionseg.config import Config, load_config
from lesionseg.data.augmentation import augment
from lesionseg.data.batches import load_batch
from lesionseg.data.dataset import Split, load_split
from lesionseg.data.manifest import read_manifest
from lesionseg.errors import DataError
from lesionseg.hardware import choose_device, choose_precision, make_deterministic
from lesionseg.losses import weighted_sum
from lesionseg.memory import keep_freed_memory
from lesionseg.metrics import count_pixels, mean_scores, score_images
from lesionseg.models.segmenter import MEAN, STD, load_encoder_state
from lesionseg.results.layout import RUNS
from lesionseg.training.loop import Training
from lesionseg.training.setup import assemble

# After lesionseg, which makes torchvision importable with any torch.
from torchvision import tv_tensors  # isort: skip
from torchvision.transforms import v2  # isort: skip

WARM_UP = 3  # steps before the clock starts
NUM_WORKERS = os.cpu_count() or 1  # processes that load images, as in smp's examples
Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


def throughput(
    *, contestant: str, folder: str, num_images: int, precision: str = ""
) -> dict[str, Any]:
    """Training images per second, and what one image costs.

    Ours is a `Training` with two epochs at each of the image sizes that params.yaml lets it grow
    through; the second of each pair is timed, by its own `seconds`. These include scoring val, here
    one image, and keeping the best weights, which the peers do not do. As with the peers, the first
    steps do not count: in these the system clears each page of fresh memory, which takes a second
    of a training that lasts minutes.

    Args:
        contestant: One of `RUNS`, or `stock` or `tuned`.
        folder: Filled by `material`.
        num_images: Images of the epoch; all of them if there are fewer.
        precision: Overrides `train.precision`.

    Raises:
        DataError: There are too few images.
    """
    config = config_in(precision)
    train = load_split(Path(folder) / "processed", "train").first(num_images)
    if len(train.ids) < (WARM_UP + 1) * config.train.batch_size:
        raise DataError(
            f"{len(train.ids)} training images are fewer than {WARM_UP + 1} batches of "
            f"{config.train.batch_size}. Give more --images, or a larger --data folder"
        )
    if contestant in RUNS:
        first_size, own_size = config.train.first_image_size, train.masks.shape[1]
        epochs = 2 * len(range(min(first_size, own_size), own_size + 1, 32))
        training = make_training(config, contestant, folder=folder, train=train, epochs=epochs)
        network, dtype, device = training.model, training.recipe.precision, training.device
        sizes = [training.image_size(epoch) for epoch in range(2, epochs + 1, 2)]
        seconds = [epoch.seconds for epoch in training][1::2]
        images_per_second = len(seconds) * len(train.ids) / sum(seconds)
    else:
        sizes = [train.masks.shape[1]]
        loop = make_peer(config, contestant, folder=folder, train=train, epochs=1)
        network, dtype, device = loop.network, loop.precision, loop.device
        images_per_second = _time_epoch(loop)
    costs = [multiply_adds(network, image_size=size, device=device) for size in sizes]
    step = mean(cost["step"] for cost in costs)
    rate = 2 * step * images_per_second / 1e9  # a multiply-add is two operations, as in products
    return {
        "images_per_second": images_per_second,
        "num_images": len(train.ids),
        "precision": dtype_name(dtype),
        "image_sizes": sizes,
        "forward_gmacs": costs[-1]["forward"] / 1e9,
        "step_gmacs": step / 1e9,
        "matrix_percent": 100 * rate / matrix_rate(dtype, device),
    }


def config_in(precision: str) -> Config:
    """The parameters in params.yaml, in the given precision; in their own if it is empty."""
    config = load_config(Path("params.yaml"))
    train = dataclasses.replace(config.train, precision=precision or config.train.precision)
    return dataclasses.replace(config, train=train)


def quality(*, contestant: str, folder: str, seed_offset: int) -> dict[str, Any]:
    """A full-length training: `history` of seconds and val jaccard, and the test jaccard.

    Seconds run from the first step and include scoring val after each epoch. For all contestants,
    the epoch that is best on val is scored on test. Jaccard is per image at the network's size,
    then the mean; an empty mask predicted as empty counts as 1.
    """
    config = load_config(Path("params.yaml"))
    seed = config.train.seed + seed_offset
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
    train, val, test = (
        load_split(Path(folder) / "processed", name) for name in ("train", "val", "test")
    )
    epochs = config.train.epochs
    if contestant in RUNS:
        training = make_training(
            config, contestant, folder=folder, train=train, val=val, epochs=epochs
        )
        records = [(epoch.seconds, epoch.val_jaccard) for epoch in training]
        network, device, best = training.model, training.device, training.best["state"]
    else:
        loop = make_peer(config, contestant, folder=folder, train=train, epochs=epochs)
        records, best = _train_peer(loop, val, epochs=epochs)
        network, device = loop.network, loop.device
    network.load_state_dict(best)
    ends = np.cumsum([seconds for seconds, _ in records]).tolist()
    return {
        "history": [
            {"seconds": end, "val_jaccard": score}
            for end, (_, score) in zip(ends, records, strict=True)
        ],
        "test_jaccard": jaccard(network, test, device=device),
    }


def make_training(
    config: Config, run: str, *, folder: str, train: Split, epochs: int, val: Split | None = None
) -> Training:
    """Our training as the stage sets it up; without `val`, with one image of it."""
    make_deterministic()
    keep_freed_memory()
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=epochs))
    return assemble(
        config,
        run,
        seed=config.train.seed,
        encoder=Path(folder) / "raw/encoder.pth",
        train=train,
        val=val or load_split(Path(folder) / "processed", "val").first(1),
    )


@dataclass(frozen=True, kw_only=True)
class Loop:
    """A plain training loop around any network that takes images in [0, 1]."""

    network: nn.Module
    batches: Batches
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    scheduler: lr_scheduler.LRScheduler
    precision: torch.dtype
    device: torch.device

    def epoch(self) -> Iterator[int]:
        """Train for one epoch; the number of images after each step."""
        self.network.train()
        is_mixed = self.precision != torch.float32
        for images, masks in self.batches():
            images, masks = images.to(self.device), masks.to(self.device)
            with torch.autocast(self.device.type, self.precision, enabled=is_mixed):
                logits = self.network(images)
            loss = self.loss(logits, masks)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            loss.item()  # as in all loops that show their loss; it waits for the device
            yield len(images)


def make_peer(config: Config, kind: str, *, folder: str, train: Split, epochs: int) -> Loop:
    """Smp's network in its `stock` or `tuned` loop, with our encoder weights."""
    smp = importlib.import_module("segmentation_models_pytorch")  # the extra `bench`
    torch.manual_seed(config.train.seed)
    unet = smp.Unet("mobilenet_v2", encoder_weights=None, classes=1)
    unet.encoder.features.load_state_dict(load_encoder_state(Path(folder) / "raw/encoder.pth"))
    network = nn.Sequential(v2.Normalize(MEAN, STD), unet)
    if kind == "tuned":
        encoder = list(unet.encoder.parameters())
        return tuned_loop(config, network, encoder=encoder, train=train, epochs=epochs)
    device = choose_device(config.train.device)
    loader = DataLoader(
        Photographs(config, Path(folder) / "raw", train),
        batch_size=config.train.batch_size,
        shuffle=True,
        num_workers=NUM_WORKERS,
        pin_memory=device.type == "cuda",
    )
    optimizer = torch.optim.Adam(network.to(device).parameters(), lr=2e-4)
    return Loop(
        network=network,
        batches=lambda: loader,
        loss=smp.losses.DiceLoss(smp.losses.BINARY_MODE, from_logits=True),
        optimizer=optimizer,
        scheduler=lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader), eta_min=1e-5),
        precision=choose_precision(config.train.precision, device),
        device=device,
    )


def tuned_loop(
    config: Config, network: nn.Module, *, encoder: list[nn.Parameter], train: Split, epochs: int
) -> Loop:
    """A loop with our data path, losses, layout, precision and fine-tuning rates."""
    device = choose_device(config.train.device)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    known = {id(parameter) for parameter in encoder}
    decoder = [p for p in network.parameters() if id(p) not in known]
    rates = ((encoder, config.encoder_lr("train_finetuned")), (decoder, config.train.lr))
    groups: list[dict[str, Any]] = [
        {"params": [p for p in part if (p.ndim > 1) == decays], "lr": lr, "weight_decay": decay}
        for part, lr in rates
        for decays, decay in ((True, config.train.weight_decay), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, fused=True)
    weights = dataclasses.asdict(config.loss)
    total = epochs * math.ceil(len(train.ids) / config.train.batch_size)
    warmup = config.train.warmup_fraction

    def one_cycle(step: int) -> float:  # as Training's
        if step < warmup * total:
            return max(step / (warmup * total), 0.01)
        return (1 + math.cos(math.pi * (step / total - warmup) / (1 - warmup))) / 2

    return Loop(
        network=network,
        batches=packed_batches(config, train, device),
        loss=lambda logits, masks: weighted_sum(logits, masks, weights=weights).mean(),
        optimizer=optimizer,
        scheduler=lr_scheduler.LambdaLR(optimizer, one_cycle),
        precision=choose_precision(config.train.precision, device),
        device=device,
    )


def packed_batches(config: Config, train: Split, device: torch.device) -> Batches:
    """Shuffled batches of a packed split, as random views."""
    generator = torch.Generator().manual_seed(config.train.seed)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(train.ids), generator=generator)
        for batch in order.split(config.train.batch_size):
            images, masks = load_batch(train, batch.numpy(), device)
            images, masks = augment(images, masks, config.augment, generator=generator)
            yield images.contiguous(memory_format=torch.channels_last), masks

    return batches


class Photographs(Dataset[tuple[Tensor, Tensor]]):
    """Images and masks that are decoded, resized and rotated on each access."""

    def __init__(self, config: Config, raw_dir: Path, split: Split) -> None:
        rows = {row.id: row for row in read_manifest(raw_dir) if row.split == "train"}
        self.paths = [
            (raw_dir / rows[name].image_path, raw_dir / rows[name].mask_path) for name in split.ids
        ]
        self.size = (split.masks.shape[2], split.masks.shape[1])
        self.view = v2.Compose(
            [
                v2.RandomHorizontalFlip(config.augment.horizontal_flip),
                v2.RandomVerticalFlip(config.augment.vertical_flip),
                v2.RandomRotation(config.augment.rotation_degrees, v2.InterpolationMode.BILINEAR),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """A view (3, H, W) float32 in [0, 1] and its mask (1, H, W) float32 in {0, 1}."""
        image_path, mask_path = self.paths[index]
        image = Image.open(image_path).convert("RGB").resize(self.size, Image.Resampling.BILINEAR)
        mask = Image.open(mask_path).convert("L").resize(self.size, Image.Resampling.NEAREST)
        pixels, levels = self.view(
            v2.functional.to_image(image), tv_tensors.Mask(v2.functional.pil_to_tensor(mask))
        )
        return pixels.as_subclass(Tensor) / 255, (levels.as_subclass(Tensor) > 127).float()


@torch.inference_mode()
def jaccard(network: nn.Module, split: Split, *, device: torch.device) -> float:
    """The mean over images of their jaccard at the network's size, in float32."""
    network.eval()
    counts = []
    for batch in torch.arange(len(split.ids)).split(32):
        images, masks = load_batch(split, batch.numpy(), device)
        predictions = network(images.contiguous(memory_format=torch.channels_last)) > 0
        counts.append(count_pixels(predictions.cpu().numpy(), masks.bool().cpu().numpy()))
    return mean_scores(score_images(np.concatenate(counts)))["jaccard"]


def _time_epoch(loop: Loop) -> float:
    """Images per second of an epoch after its first steps."""
    steps = loop.epoch()
    for _ in range(WARM_UP):
        next(steps)
    start = time.perf_counter()
    return sum(steps) / (time.perf_counter() - start)


def _train_peer(
    loop: Loop, val: Split, *, epochs: int
) -> tuple[list[tuple[float, float]], dict[str, Any]]:
    """Seconds and val jaccard of each epoch, and the weights of the best."""
    records: list[tuple[float, float]] = []
    best, state = -math.inf, loop.network.state_dict()
    for _ in range(epochs):
        start = time.perf_counter()
        sum(loop.epoch())
        score = jaccard(loop.network, val, device=loop.device)
        if score > best:
            best, state = score, copy.deepcopy(loop.network.state_dict())
        records.append((time.perf_counter() - start, score))
    return records, state
