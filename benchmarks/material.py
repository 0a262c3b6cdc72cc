"""The data that trainings are measured on: a folder with `raw` and `processed`, as from stages."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from benchmarks import preprocessing
from lesionseg.config import load_config
from lesionseg.data.folder import list_folder
from lesionseg.data.manifest import write_manifest
from lesionseg.data.pairs import write_pairs
from lesionseg.data.phantom import write_phantoms
from lesionseg.data.preprocessing import preprocess
from lesionseg.data.weights import write_encoder
from lesionseg.files import check_free_space, write_csv
from lesionseg.models.segmenter import build_segmenter, load_encoder_state, save_model

CHUNK = 256  # images drawn at once


def prepare(*, folder: str, data: str | None, weights: str, num_images: int) -> dict[str, Any]:
    """Fill `folder` from `data` or with phantoms; the numbers of images of the splits.

    Args:
        folder: The folder to fill.
        data: A folder with {train,test}/{images,masks}; None draws phantoms.
        weights: `none` or a file, as in download.weights of params.yaml.
        num_images: Number of training images if they are phantoms; a few more are drawn.
    """
    config = load_config(Path("params.yaml"))
    raw_dir = Path(folder) / "raw"
    if data is None:
        # Validation takes its share, and the leak check may drop one or two.
        num_train = math.ceil(1.02 * num_images / (1 - config.preprocess.val_fraction)) + 2
        size, seed = config.download.phantom_size, config.download.seed
        write_phantoms(raw_dir, num_train=num_train, num_test=2, size=size, seed=seed)
    else:
        write_pairs(raw_dir, list_folder(Path(data)))
    write_encoder(raw_dir / "encoder.pth", weights=weights, seed=0, archives_dir=raw_dir)
    write_manifest(raw_dir)
    summary = preprocess(
        raw_dir, Path(folder) / "processed", source="folder", **asdict(config.preprocess)
    )
    return {f"num_{split.name}": split.num_images for split in summary.splits}


def prepare_random(*, folder: str, num_images: int, image_size: int) -> dict[str, Any]:
    """Fill `folder` with training images of random bytes, one for validation and a random encoder.

    Raises:
        DiskSpaceError: The disk cannot hold them.
    """
    rng = np.random.default_rng(0)
    write_encoder(Path(folder) / "raw/encoder.pth", weights="none", seed=0, archives_dir=Path())
    for split, num in (("train", num_images), ("val", 1)):
        split_dir = Path(folder) / "processed" / split
        split_dir.mkdir(parents=True)
        check_free_space(split_dir, 4 * num * image_size**2)
        shape = (num, image_size, image_size)
        images = open_memmap(split_dir / "images.npy", "w+", np.uint8, (*shape, 3))
        masks = open_memmap(split_dir / "masks.npy", "w+", np.uint8, shape)
        for start in range(0, num, CHUNK):
            chunk = slice(start, min(start + CHUNK, num))
            images[chunk] = rng.integers(0, 256, images[chunk].shape, np.uint8)
            masks[chunk] = rng.integers(0, 2, masks[chunk].shape, np.uint8)
        write_csv(split_dir / "index.csv", [{"id": f"RANDOM_{i:07d}"} for i in range(num)])
    return {"num_train": num_images}


def prepare_prediction(
    *, folder: str, data: str | None = None, num_images: int, width: int = preprocessing.WIDTH
) -> dict[str, Any]:
    """Fill `folder` with images as for preprocessing, and the default model, untrained."""
    config, where = load_config(Path("params.yaml")), Path(folder)
    found = preprocessing.prepare(folder=folder, data=data, num_images=num_images, width=width)
    write_encoder(where / "encoder.pth", weights="none", seed=0, archives_dir=where)
    state, decoder = load_encoder_state(where / "encoder.pth"), config.model.decoder
    model = build_segmenter(
        encoder_state=state, decoder=decoder, dropout=0.0, frozen=True, seed=0
    ).state_dict()
    size = config.preprocess.image_size
    save_model(where / "model.pt", state=model, decoder=decoder, image_size=size, frozen=True)
    return found
