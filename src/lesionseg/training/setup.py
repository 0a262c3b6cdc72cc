"""A training assembled from params.yaml and the processed data, ready for its first epoch."""

from dataclasses import dataclass
from pathlib import Path

from lesionseg.config import Config
from lesionseg.data.dataset import Fold, Split, draw_subset, load_split, split_fold
from lesionseg.hardware import choose_device, choose_precision
from lesionseg.models.segmenter import build_segmenter, load_encoder_state
from lesionseg.training.distributed import ALONE, Group
from lesionseg.training.loop import Recipe, Training


@dataclass(frozen=True)
class Inputs:
    """The files that every training reads.

    Attributes:
        processed: Folder of the splits.
        encoder: The encoder's initial weights.
    """

    processed: Path = Path("data/processed")
    encoder: Path = Path("data/raw/encoder.pth")

    def files(self) -> list[Path]:
        """All of them, except the tables that only name the images."""
        arrays = ("images.npy", "masks.npy")
        splits = [self.processed / split / name for split in ("train", "val") for name in arrays]
        return [*splits, self.encoder]


def make_training(
    config: Config, run: str, *, seed: int, inputs: Inputs, group: Group = ALONE
) -> Training:
    """The training of one model with one seed.

    Raises:
        ConfigError: There is no such device, or there are fewer folds than seeds, or fewer images
            than `train.num_images`.
        MissingFileError: An input is missing.
        DataError: An input is damaged.
    """
    train, val = choose_images(config, inputs.processed, seed=seed)
    return assemble(
        config, run, seed=seed, encoder=inputs.encoder, train=train, val=val, group=group
    )


def assemble(
    config: Config,
    run: str,
    *,
    seed: int,
    encoder: Path,
    train: Split | Fold,
    val: Split | Fold,
    group: Group = ALONE,
) -> Training:
    """The training of one model on given images; otherwise as `make_training`."""
    device = group.device(choose_device(config.train.device_name))
    encoder_lr = config.encoder_lr(run)
    model = build_segmenter(
        encoder_state=load_encoder_state(encoder),
        decoder=config.model.decoder,
        dropout=config.model.dropout,
        frozen=encoder_lr == 0,
        seed=seed,
    )
    recipe = Recipe(
        run=run,
        train=config.train,
        encoder_lr=encoder_lr,
        seed=seed,
        precision=choose_precision(config.train.precision, device),
        loss=config.loss,
        augment=config.augment,
    )
    return Training(model=model, train=train, val=val, recipe=recipe, device=device, group=group)


def choose_images(
    config: Config, processed_dir: Path, *, seed: int
) -> tuple[Split | Fold, Split | Fold]:
    """What the training with one seed learns from, and what it validates on."""
    train, val = load_split(processed_dir, "train"), load_split(processed_dir, "val")
    if config.train.num_images:  # excludes folds
        return draw_subset(train, num_images=config.train.num_images, seed=seed), val
    if not config.train.cross_validate:
        return train, val
    return split_fold(
        train,
        val,
        fold=config.seeds().index(seed),
        num_folds=config.train.num_seeds,
        seed=config.train.seed,
    )
