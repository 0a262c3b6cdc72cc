"""A decoder that has learnt on synthetic lesions before it sees a real one."""

import dataclasses
import logging
import time

import numpy as np
from tqdm import tqdm

from lesionseg.data.dataset import Split
from lesionseg.data.phantom import draw_phantom
from lesionseg.models.encoder import Encoder
from lesionseg.models.segmenter import Segmenter
from lesionseg.training.loop import Training

_log = logging.getLogger(__name__)


def pretrain_decoder(training: Training, *, epochs: int, num_phantoms: int) -> None:
    """The training's decoder after `epochs` on phantoms, with its last weights and statistics.

    Synthetic images first and real ones then can do better than real ones alone (Tremblay et al.
    2018, arXiv:1804.06516). The encoder is frozen, as it has learnt on real images and would
    unlearn them (Hinterstoisser et al. 2017, arXiv:1710.10710). So both models start from the same
    decoder to the byte, whatever they do with their encoder.

    The recipe is the training's own, with a learning-rate cycle for the phantoms alone, and
    without a weight average or losses on coarser levels.

    Args:
        training: A training before its first epoch. Its decoder learns in place, its
            `pretraining_seconds` are set, and all else stays as it is.
        epochs: Passes over the phantoms, at least 1.
        num_phantoms: How many there are, at least 2.

    Raises:
        TrainingError: The loss is not finite.
    """
    assert not training.history
    start = time.perf_counter()
    image_size = training.train.image_size
    phantoms = draw_split(
        num_phantoms=num_phantoms, image_size=image_size, seed=training.recipe.seed
    )
    recipe = dataclasses.replace(
        training.recipe,
        run=f"{training.recipe.run} on phantoms",
        epochs=epochs,
        encoder_lr=0.0,
        layer_decay=1.0,
        ema_decay=0.0,
        deep_supervision=0.0,
    )
    # Another encoder of the same weights around the same decoder, which then learns in place.
    state = training.model.encoder.features.state_dict()
    model = Segmenter(encoder=Encoder(state=state, frozen=True), decoder=training.model.decoder)
    history = list(
        Training(
            model=model,
            train=phantoms,
            val=phantoms.first(2),  # no epoch is chosen, so it may cost next to nothing
            recipe=recipe,
            device=training.device,
        )
    )
    training.pretraining_seconds = time.perf_counter() - start
    _log.info(
        "%s: %d phantoms, %d epochs, loss %.3f in the first and %.3f in the last; %.0f s",
        *(recipe.run, num_phantoms, epochs, history[0].train_loss, history[-1].train_loss),
        training.pretraining_seconds,
    )


def draw_split(*, num_phantoms: int, image_size: int, seed: int) -> Split:
    """Phantoms as a split in memory, the same for the same arguments.

    Args:
        num_phantoms: How many, at least 1.
        image_size: Height and width in pixels.
        seed: Seed of them all. They are other scenes than the images that the download stage draws
            with the same seed, so that no image of a test split of phantoms is among them.
    """
    images = np.empty((num_phantoms, image_size, image_size, 3), np.uint8)
    masks = np.empty((num_phantoms, image_size, image_size), np.uint8)
    seeds = np.random.SeedSequence(seed).spawn(num_phantoms)
    for i, one in enumerate(tqdm(seeds, "phantoms", unit="image", disable=None, leave=False)):
        scene = int(one.generate_state(1, np.uint64)[0])
        image, mask = draw_phantom(size=image_size, seed=scene)
        images[i], masks[i] = image, mask // 255
    return Split(
        name="phantoms", images=images, masks=masks, ids=tuple(map(str, range(num_phantoms)))
    )
