"""A moving average of a model's weights: a model of its own, steadier than the one that learns."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lesionseg.models.segmenter import Segmenter


class WeightAverage:
    """The exponential moving average of what a model learns, step by step.

    Averages of weights generalise better than the last of them (Polyak and Juditsky 1992,
    doi:10.1137/0330046; Izmailov et al. 2018, arXiv:1803.05407). The first update copies; the one
    after n others keeps min(decay, (1 + n) / (10 + n)) of the average, as TensorFlow's
    `ExponentialMovingAverage` does: in a short training a constant decay would keep the random
    start.

    Attributes:
        model: The averaged model. Parts that do not learn are the model's own, so that averaging
            cannot round them.
    """

    def __init__(self, *, model: Segmenter, learning: Sequence[str], decay: float) -> None:
        """Start to average.

        Args:
            model: The model that learns.
            learning: Names of its parts that do: `decoder`, and perhaps `encoder`.
            decay: Share of the average that a step keeps, in (0, 1).
        """
        self._learning = nn.ModuleDict({name: model.get_submodule(name) for name in learning})
        # Buffers are averaged too: weights averaged over the steps make features that the running
        # statistics of the last step's weights do not fit.
        self._average = AveragedModel(
            self._learning, multi_avg_fn=_warmed_up(decay), use_buffers=True
        )
        self.model = copy.deepcopy(model)
        for name, part in model.named_children():
            averaged = self._average.module.get_submodule(name) if name in learning else part
            setattr(self.model, name, averaged)

    def update(self) -> None:
        """Take in the model as it is after a step."""
        self._average.update_parameters(self._learning)

    def state_dict(self) -> dict[str, Any]:
        """The averages, and the number of updates."""
        return self._average.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict()`."""
        self._average.load_state_dict(state)


def _warmed_up(
    decay: float,
) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """What `AveragedModel` calls with averages and values of one dtype, and the updates so far."""

    def update(averages: Sequence[Tensor], values: Sequence[Tensor], num: Tensor | int) -> None:
        n = int(num)
        if averages[0].is_floating_point():
            get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averages, values, n)
        else:  # a batch norm's number of batches counts; its average, rounded, would not
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)

    return update
