"""The training loop: a generator of epochs whose state can be saved and taken up again."""

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lesionseg.data.augmentation import augment
from lesionseg.data.batches import load_batch
from lesionseg.data.dataset import Fold, Split
from lesionseg.errors import TrainingError
from lesionseg.evaluation.metrics import count_pixels, mean_scores, score_images
from lesionseg.losses import bce, weighted_sum
from lesionseg.models.segmenter import Segmenter
from lesionseg.training.averaging import WeightAverage
from lesionseg.training.distillation import Teacher
from lesionseg.training.supervision import LevelHeads

_SUSPICIOUS = 100  # times the usual value
VAL_METRICS = ("jaccard", "dice", "accuracy", "sensitivity", "specificity")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train; see params.yaml for each value."""

    run: str
    epochs: int
    batch_size: int
    lr: float
    encoder_lr: float
    layer_decay: float
    weight_decay: float
    warmup_fraction: float
    first_image_size: int
    ema_decay: float
    deep_supervision: float
    distillation: float
    seed: int
    precision: torch.dtype
    loss: Mapping[str, float]
    augment: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch came to. `seconds` is the only value that two equal runs do not share.

    `train_loss` is all that is minimised, losses on coarser levels and on a teacher's probabilities
    included; `encoder_lr` is that of the encoder's top block.
    """

    epoch: int
    train_loss: float
    val_loss: float
    val_jaccard: float
    val_dice: float
    val_accuracy: float
    val_sensitivity: float
    val_specificity: float
    lr: float
    encoder_lr: float
    seconds: float


class Training:
    """A training that yields one `Epoch` after the other.

    Between two epochs `state_dict()` is all that the rest depends on: whatever is random is drawn
    from the seed and the epoch's number, so a training taken up again goes on to the same bytes.

    Attributes:
        pretraining_seconds: What the decoder's pretraining took; 0 without one.
    """

    def __init__(
        self,
        *,
        model: Segmenter,
        train: Split | Fold,
        val: Split | Fold,
        recipe: Recipe,
        device: torch.device,
        teacher: Teacher | None = None,
    ) -> None:
        # Channels last is the layout in which convolutions run fastest, on CPUs and on CUDA.
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.teacher = teacher
        if teacher:
            teacher.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.train, self.val = train, val
        self.recipe, self.device = recipe, device
        self.heads = None
        if recipe.deep_supervision:
            self.heads = LevelHeads(decoder=model.decoder, seed=recipe.seed).to(device)
        self.average = None
        if recipe.ema_decay:
            learning = ("decoder", "encoder") if recipe.encoder_lr else ("decoder",)
            self.average = WeightAverage(model=model, learning=learning, decay=recipe.ema_decay)
        self.validated = self.average.model if self.average else self.model
        self.optimizer = _make_optimizer(model, self.heads, recipe)
        self.peak_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.pretraining_seconds = 0.0
        self.history: list[Epoch] = []
        self.best: dict[str, Any] = {"epoch": 0, "jaccard": -math.inf, "state": {}}

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the training depends on."""
        return {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict() if self.heads else None,
            "average": self.average.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "pretraining_seconds": self.pretraining_seconds,
            "history": [dataclasses.asdict(epoch) for epoch in self.history],
            "best": self.best,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a training where `state_dict()` was called."""
        self.model.load_state_dict(state["model"])
        if self.heads:
            self.heads.load_state_dict(state["heads"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.pretraining_seconds = state["pretraining_seconds"]
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.best = state["best"]

    def __iter__(self) -> Iterator[Epoch]:
        """The epochs still to come, each trained when it is asked for.

        Raises:
            TrainingError: The loss is not finite.
        """
        while len(self.history) < self.recipe.epochs:
            start = time.perf_counter()
            epoch = len(self.history) + 1
            train_loss = self._train_epoch(epoch)
            scores = self._validate()
            if not math.isfinite(scores["val_loss"]):  # the last step destroyed the weights
                raise TrainingError(
                    f"{self.recipe.run}: val/loss is {scores['val_loss']} after epoch {epoch}. "
                    f"{_remedy(self.recipe)}"
                )
            lrs = [group["lr"] for group in self.optimizer.param_groups]
            record = Epoch(
                epoch=epoch,
                train_loss=train_loss,
                **scores,
                lr=lrs[0],
                encoder_lr=lrs[-1] if self.recipe.encoder_lr else 0.0,
                seconds=time.perf_counter() - start,
            )
            self.history.append(record)
            if record.val_jaccard > self.best["jaccard"]:
                state = {k: v.to("cpu", copy=True) for k, v in self.validated.state_dict().items()}
                self.best = {"epoch": epoch, "jaccard": record.val_jaccard, "state": state}
            yield record

    def _train_epoch(self, epoch: int) -> float:
        """Mean loss over the images of one epoch."""
        num_images = len(self.train.ids)
        seed = int(np.random.SeedSequence([self.recipe.seed, epoch]).generate_state(1)[0])
        torch.manual_seed(seed)  # dropout
        generator = torch.Generator().manual_seed(seed)  # order and views
        order = torch.randperm(num_images, generator=generator).split(self.recipe.batch_size)
        first_step = (epoch - 1) * len(order)
        image_size = self.image_size(epoch)
        self.model.train()
        total = 0.0
        label = f"{self.recipe.run} {epoch}/{self.recipe.epochs}"
        progress = tqdm(order, desc=label, unit="step", disable=None, leave=False)
        for step, batch in enumerate(progress):
            self._set_lr((first_step + step) / (self.recipe.epochs * len(order)))
            loss = self._step(batch, generator, image_size=image_size)
            if not math.isfinite(loss):
                has_learnt = first_step + step > 0 or self.pretraining_seconds > 0
                raise TrainingError(
                    f"{self.recipe.run}: the loss is {loss} in epoch {epoch}, step {step + 1}. "
                    f"{_remedy(self.recipe, has_learnt=has_learnt)}"
                )
            total += loss * len(batch)
            progress.set_postfix(loss=f"{loss:.3f}")
        return total / num_images

    def image_size(self, epoch: int) -> int:
        """Height and width in pixels of what the network sees in an epoch, the first being 1.

        They grow from the recipe's first size to the data's own in multiples of 32, each for an
        equal share of the epochs: coarse views teach the rough shape in a fraction of the time
        (Howard 2018 for DAWNBench; Tan and Le 2021, arXiv:2104.00298).
        """
        own_size = self.train.image_size
        sizes = range(min(self.recipe.first_image_size, own_size), own_size + 1, 32)
        return sizes[(epoch - 1) * len(sizes) // self.recipe.epochs]

    def _step(self, batch: Tensor, generator: torch.Generator, *, image_size: int) -> float:
        images, masks = load_batch(self.train, batch.numpy(), self.device)
        images, masks = resize(images, masks, image_size=image_size)  # first: then less is turned
        images, masks = augment(images, masks, generator=generator, **self.recipe.augment)
        images = images.contiguous(memory_format=torch.channels_last)
        loss = self._loss(images, masks)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.average:
            self.average.update()
        return loss.item()

    def _loss(self, images: Tensor, masks: Tensor) -> Tensor:
        """Mean loss of a batch, with that of the coarser levels where these are supervised."""
        if not self.heads:
            return self._fine_loss(images, masks)
        with self.heads.watch() as levels:
            loss = self._fine_loss(images, masks)
        coarser = [
            weighted_sum(
                logits,
                resize_masks(masks, image_size=logits.shape[-1]),
                weights=self.recipe.loss,
            )
            for logits in levels
        ]
        return loss + self.recipe.deep_supervision * torch.stack(coarser).mean()

    def _fine_loss(self, images: Tensor, masks: Tensor) -> Tensor:
        """Mean loss of a batch's logits, a share of it on the teacher's probabilities.

        That share is cross-entropy alone: unlike it, soft Dice and Jaccard are not smallest where
        the student agrees with a probability (Wang et al. 2023, arXiv:2303.16296).
        """
        logits = self._forward(self.model, images)
        loss = weighted_sum(logits, masks, weights=self.recipe.loss).mean()
        if not self.teacher:
            return loss
        probabilities = self._forward(self.teacher, images)
        share = self.recipe.distillation
        return (1 - share) * loss + share * bce(logits.float(), probabilities).mean()

    def _forward(self, model: nn.Module, images: Tensor) -> Tensor:
        with torch.autocast(
            self.device.type, self.recipe.precision, enabled=self.recipe.precision != torch.float32
        ):
            output: Tensor = model(images)
        return output

    @torch.inference_mode()
    def _validate(self) -> dict[str, float]:
        """Loss and scores on val: per image at the network's size, then the mean."""
        model = self.validated.eval()
        losses, counts = [], []
        num_images = len(self.val.ids)
        for batch in torch.arange(num_images).split(2 * self.recipe.batch_size):
            images, masks = load_batch(self.val, batch.numpy(), self.device)
            logits = self._forward(model, images.contiguous(memory_format=torch.channels_last))
            losses.append(weighted_sum(logits, masks, weights=self.recipe.loss).cpu())
            counts.append(count_pixels((logits > 0).cpu().numpy(), masks.bool().cpu().numpy()))
        scores = mean_scores(score_images(np.concatenate(counts)))
        means = {f"val_{name}": scores[name] for name in VAL_METRICS}
        return {"val_loss": torch.cat(losses).mean().item(), **means}

    def _set_lr(self, progress: float) -> None:
        """One cycle: linear warm-up, then a cosine down to 0 (Smith 2018, arXiv:1803.09820)."""
        warmup = self.recipe.warmup_fraction
        if progress < warmup:
            factor = max(progress / warmup, 0.01)
        else:
            factor = (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2
        for group, peak in zip(self.optimizer.param_groups, self.peak_lrs, strict=True):
            group["lr"] = peak * factor


def _remedy(recipe: Recipe, *, has_learnt: bool = True) -> str:
    """What to change where a loss is not finite: what is largest beside its usual value.

    Before the first step no rate has done anything.
    """
    weights = {f"loss.{name}": (weight, 1.0) for name, weight in recipe.loss.items()}
    weights["train.deep_supervision"] = (recipe.deep_supervision, 1.0)
    rates = {"train.lr": (recipe.lr, 2e-3), f"{recipe.run}.encoder_lr": (recipe.encoder_lr, 1e-3)}
    in_play = {
        name: (value, value / usual)
        for name, (value, usual) in ({**rates, **weights} if has_learnt else weights).items()
        if value
    }
    worst = max(in_play, key=lambda name: in_play[name][1])
    if not has_learnt and in_play[worst][1] <= _SUSPICIOUS:
        return (
            "Nothing has been learnt yet, and no weight of the loss is large: the encoder's first "
            "weights are. Write another download.weights in params.yaml"
        )
    others = ", ".join(f"{name} {value:g}" for name, (value, _) in in_play.items() if name != worst)
    return f"Write a smaller {worst} than {in_play[worst][0]:g} in params.yaml" + (
        f" (others that may be too large: {others})" if others else ""
    )


def resize(images: Tensor, masks: Tensor, *, image_size: int) -> tuple[Tensor, Tensor]:
    """Images and masks at `image_size`, as they are where that is their own.

    A smaller image's pixel is a weighted mean.
    """
    if images.shape[-1] == image_size:
        return images, masks
    size = (image_size, image_size)
    images = F.interpolate(images, size, mode="bilinear", antialias=True)
    return images, resize_masks(masks, image_size=image_size)


def resize_masks(masks: Tensor, *, image_size: int) -> Tensor:
    """Masks at `image_size`, (N, 1, H, W) in {0, 1}: lesion where most of a pixel's area was."""
    return (F.interpolate(masks, (image_size, image_size), mode="area") > 0.5).float()


def _make_optimizer(
    model: Segmenter, heads: LevelHeads | None, recipe: Recipe
) -> torch.optim.AdamW:
    """AdamW with the decoder's groups first, then the encoder's from its lowest block to its top.

    The heads learn with the decoder. Weights of convolutions decay, nothing else does.
    """
    decoder = [*model.decoder.parameters(), *(heads.parameters() if heads else ())]
    parts = [(decoder, recipe.lr)]
    if recipe.encoder_lr:
        parts += _encoder_parts(model, recipe)
    groups = []
    for parameters, lr in parts:
        decaying = [p for p in parameters if p.ndim > 1]
        others = [p for p in parameters if p.ndim <= 1]
        groups.append({"params": decaying, "lr": lr, "weight_decay": recipe.weight_decay})
        groups.append({"params": others, "lr": lr, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, fused=True)


def _encoder_parts(model: Segmenter, recipe: Recipe) -> list[tuple[list[nn.Parameter], float]]:
    """The encoder's parameters and their learning rates, a block's `layer_decay` times the next's.

    Low layers hold what all images share and need to change least (Howard and Ruder 2018,
    arXiv:1801.06146).
    """
    if recipe.layer_decay == 1:  # one rate: one group
        return [(list(model.encoder.parameters()), recipe.encoder_lr)]
    blocks = list(model.encoder.features)
    return [
        (list(block.parameters()), recipe.encoder_lr * recipe.layer_decay**num_above)
        for num_above, block in zip(reversed(range(len(blocks))), blocks, strict=True)
    ]
