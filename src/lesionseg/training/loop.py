"""The training loop: a generator of epochs whose state can be saved and taken up again."""

import dataclasses
import math
import operator
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from lesionseg.config import AugmentConfig, LossConfig, TrainConfig
from lesionseg.data.augmentation import augment
from lesionseg.data.batches import keep_on, load_batch
from lesionseg.data.dataset import Fold, Split
from lesionseg.errors import TrainingError
from lesionseg.losses import weighted_sum
from lesionseg.metrics import count_pixels, mean_scores, score_images
from lesionseg.models.segmenter import Segmenter
from lesionseg.results.training import VAL_SCORES
from lesionseg.training.distributed import ALONE, Group

STEPS_UNREAD = 20  # steps after which their losses are read: a GPU goes on computing meanwhile
_SUSPICIOUS = 100  # times the usual value


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one model is trained.

    Attributes:
        run: Its name in `RUNS`.
        train: What both models share, as in params.yaml, but for the seed.
        encoder_lr: Peak learning rate of the encoder; 0 freezes it.
        seed: Of decoder weights, batches, augmentation and dropout.
        precision: To compute in.
        loss: Weights of the losses.
        augment: The random views.
    """

    run: str
    train: TrainConfig
    encoder_lr: float
    seed: int
    precision: torch.dtype
    loss: LossConfig
    augment: AugmentConfig


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch came to. `seconds` is the only value that two equal runs do not share."""

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
    """

    def __init__(
        self,
        *,
        model: Segmenter,
        train: Split | Fold,
        val: Split | Fold,
        recipe: Recipe,
        device: torch.device,
        group: Group = ALONE,
    ) -> None:
        group.join_norms(model, device)
        # Channels last is the layout in which convolutions run fastest, on CPUs and on CUDA.
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.train, self.val = keep_on(device, train, val)
        self.recipe, self.device, self.group = recipe, device, group
        self.optimizer = _make_optimizer(model, recipe)
        self.peak_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self._weights = dataclasses.asdict(recipe.loss)
        self.history: list[Epoch] = []
        self.best: dict[str, Any] = {"epoch": 0, "jaccard": -math.inf, "state": {}}

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the training depends on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": [dataclasses.asdict(epoch) for epoch in self.history],
            "best": self.best,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a training where `state_dict()` was called."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.best = state["best"]

    def __iter__(self) -> Iterator[Epoch]:
        """The epochs still to come, each trained when it is asked for.

        Raises:
            TrainingError: The loss is not finite.
        """
        while len(self.history) < self.recipe.train.epochs:
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
                state = {k: v.to("cpu", copy=True) for k, v in self.model.state_dict().items()}
                self.best = {"epoch": epoch, "jaccard": record.val_jaccard, "state": state}
            yield record

    def _train_epoch(self, epoch: int) -> float:
        """Mean loss over the images that one epoch shows."""
        num_images = self.train.images_per_epoch
        seed = _draw_seed(self.recipe.seed, epoch)
        generator = torch.Generator().manual_seed(seed)  # order and views
        rank = self.group.rank
        torch.manual_seed(_draw_seed(self.recipe.seed, epoch, rank) if rank else seed)  # dropout
        order = self._order(generator).split(self.recipe.train.batch_size)
        first_step = (epoch - 1) * len(order)
        image_size = self.image_size(epoch)
        self.model.train()
        unread: list[Tensor] = []
        losses: list[float] = []
        label = f"{self.recipe.run} {epoch}/{self.recipe.train.epochs}"
        disable = True if rank else None  # None shows it at a terminal
        progress = tqdm(order, desc=label, unit="step", disable=disable, leave=False)
        for step, batch in enumerate(progress):
            self._set_lr((first_step + step) / (self.recipe.train.epochs * len(order)))
            unread.append(self.step(batch, generator, image_size=image_size))
            if len(unread) == STEPS_UNREAD or step + 1 == len(order):
                losses += torch.stack(unread).tolist()
                unread = []
                self._check(losses, epoch=epoch)
                progress.set_postfix(loss=f"{losses[-1]:.3f}")
        self.group.average_statistics(self.model)
        sizes = map(len, order)
        return math.fsum(map(operator.mul, losses, sizes)) / num_images

    def _check(self, losses: Sequence[float], *, epoch: int) -> None:
        """Return when the losses of an epoch's steps so far are numbers.

        Raises:
            TrainingError: One is not.
        """
        for step, loss in enumerate(losses, start=1):
            if not math.isfinite(loss):
                raise TrainingError(
                    f"{self.recipe.run}: the loss is {loss} in epoch {epoch}, step {step}. "
                    f"{_remedy(self.recipe, has_learnt=epoch > 1 or step > 1)}"
                )

    def _order(self, generator: torch.Generator) -> Tensor:
        """Rows of the training images in the order in which an epoch shows them.

        Each comes once before any comes again; the last pass may end before its end.
        """
        length, num_images = self.train.images_per_epoch, len(self.train.ids)
        num_passes = math.ceil(length / num_images)
        passes = [torch.randperm(num_images, generator=generator) for _ in range(num_passes)]
        return torch.cat(passes)[:length]

    def image_size(self, epoch: int) -> int:
        """Height and width in pixels of what the network sees in an epoch, the first being 1.

        They grow from the recipe's first size to the data's own in multiples of 32, each for an
        equal share of the epochs: coarse views teach the rough shape in a fraction of the time
        (Howard 2018 for DAWNBench; Tan and Le 2021, arXiv:2104.00298).
        """
        own_size = self.train.image_size
        sizes = range(min(self.recipe.train.first_image_size, own_size), own_size + 1, 32)
        return sizes[(epoch - 1) * len(sizes) // self.recipe.train.epochs]

    def step(self, batch: Tensor, generator: torch.Generator, *, image_size: int) -> Tensor:
        """One optimiser step on a batch, of which this process computes its part.

        Args:
            batch: Rows of the training images, (N,) int64.
            generator: Of the random views, on the CPU.
            image_size: Height and width in pixels at which they are shown.

        Returns:
            The mean loss of the whole batch, a scalar left on the device: reading it would wait
            for all work queued there.
        """
        part = self.group.part(len(batch))
        images, masks = load_batch(self.train, batch[part.rows].numpy(), self.device)
        images, masks = resize(images, masks, image_size=image_size)  # first: then less is turned
        images, masks = augment(
            images,
            masks,
            self.recipe.augment,
            generator=generator,
            batch_size=len(batch),
            rows=part.rows,
        )
        images = images.contiguous(memory_format=torch.channels_last)
        losses = weighted_sum(self._forward(images), masks, weights=self._weights)
        loss = losses.sum() * part.weight / len(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        loss = self.group.add_up_gradients(self.model, loss)
        self.optimizer.step()
        return loss.detach()

    def _forward(self, images: Tensor) -> Tensor:
        """The model's logits, computed in the recipe's precision."""
        with torch.autocast(
            self.device.type, self.recipe.precision, enabled=self.recipe.precision != torch.float32
        ):
            logits: Tensor = self.model(images)
        return logits

    @torch.inference_mode()
    def _validate(self) -> dict[str, float]:
        """Loss and scores on val: per image at the network's size, then the mean."""
        self.model.eval()
        found = []
        batches = torch.arange(len(self.val.ids)).split(2 * self.recipe.train.batch_size)
        for batch in self.group.take(batches):
            images, masks = load_batch(self.val, batch.numpy(), self.device)
            logits = self._forward(images.contiguous(memory_format=torch.channels_last))
            loss = weighted_sum(logits, masks, weights=self._weights).cpu()
            counted = count_pixels((logits > 0).cpu().numpy(), masks.bool().cpu().numpy())
            found.append((loss, counted))
        losses, counts = zip(*self.group.collect(found), strict=True)
        scores = mean_scores(score_images(np.concatenate(counts)))
        means = {f"val_{name}": scores[name] for name in VAL_SCORES}
        return {"val_loss": torch.cat(losses).mean().item(), **means}

    def _set_lr(self, progress: float) -> None:
        """One cycle: linear warm-up, then a cosine down to 0 (Smith 2018, arXiv:1803.09820)."""
        warmup = self.recipe.train.warmup_fraction
        if progress < warmup:
            factor = max(progress / warmup, 0.01)
        else:
            factor = (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2
        for group, peak in zip(self.optimizer.param_groups, self.peak_lrs, strict=True):
            group["lr"] = peak * factor


def _draw_seed(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _remedy(recipe: Recipe, *, has_learnt: bool = True) -> str:
    """What to change where a loss is not finite: what is largest beside its usual value.

    Before the first step no rate has done anything.
    """
    weights = {f"loss.{k}": (weight, 1.0) for k, weight in dataclasses.asdict(recipe.loss).items()}
    rates = {
        "train.lr": (recipe.train.lr, 2e-3),
        f"{recipe.run}.encoder_lr": (recipe.encoder_lr, 1e-3),
    }
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

    A smaller image's pixel is a weighted mean; a mask's is lesion where most of its area was.
    """
    if images.shape[-1] == image_size:
        return images, masks
    size = (image_size, image_size)
    images = F.interpolate(images, size, mode="bilinear", antialias=True)
    return images, (F.interpolate(masks, size, mode="area") > 0.5).float()


def _make_optimizer(model: Segmenter, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with the decoder's groups first, then the encoder's where that learns.

    Weights of convolutions decay, nothing else does.
    """
    parts = [(model.decoder, recipe.train.lr)]
    if recipe.encoder_lr:
        parts.append((model.encoder, recipe.encoder_lr))
    groups = []
    for part, lr in parts:
        decaying = [p for p in part.parameters() if p.ndim > 1]
        others = [p for p in part.parameters() if p.ndim <= 1]
        groups.append({"params": decaying, "lr": lr, "weight_decay": recipe.train.weight_decay})
        groups.append({"params": others, "lr": lr, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, fused=True)
