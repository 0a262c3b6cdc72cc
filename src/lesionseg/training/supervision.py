"""Deep supervision: a decoder's coarser levels are held to the mask too, in training only."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lesionseg.models.decoders import PyramidDecoder


class LevelHeads(nn.Module):
    """Logits of a pyramid's levels at strides 8, 16 and 32, by a 1x1 convolution each.

    A loss on them reaches the deep layers without passing the others (Lee et al. 2015,
    arXiv:1409.5185). They stand beside the network, which has the same weights and the same file
    with them and without.
    """

    def __init__(self, *, decoder: nn.Module, seed: int) -> None:
        """Draw the heads from a seed; all that is drawn elsewhere stays as it is.

        Args:
            decoder: A `PyramidDecoder`.
            seed: Seed of the heads' weights.
        """
        super().__init__()
        assert isinstance(decoder, PyramidDecoder)  # as Config has seen to
        self._levels = list(decoder.smooths)[1:]  # in a list, which hides it from `state_dict()`
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = nn.ModuleList(nn.Conv2d(decoder.WIDTH, 1, 1) for _ in self._levels)

    @contextmanager
    def watch(self) -> Iterator[list[Tensor]]:
        """Logits of the network's forward pass within, (N, 1, H / stride, W / stride).

        Those at stride 32 are the first of the three. Outside, the network computes what it does
        without heads.
        """
        logits: list[Tensor] = []
        hooks = [
            level.register_forward_hook(
                lambda _level, _inputs, features, head=head: logits.append(head(features))
            )
            for level, head in zip(self._levels, self.heads, strict=True)
        ]
        try:
            yield logits
        finally:
            for hook in hooks:
                hook.remove()
