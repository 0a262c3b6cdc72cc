"""Distillation: models that are trained already teach another one, in training only."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lesionseg.errors import ConfigError, DataError, MissingFileError
from lesionseg.models.segmenter import load_model


class Teacher(nn.Module):
    """The mean probability of trained models, which another one is held to.

    Where a mask has 0 or 1, it also says how sure they are (Hinton et al. 2015, arXiv:1503.02531,
    here in each pixel and at temperature 1). They stand beside the network, which has the same
    weights and the same file with them and without.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        """Keep the models as they are: nothing in them learns, or counts batches.

        Args:
            models: `Segmenter`s of the student's image size, with any decoder.
        """
        super().__init__()
        self.models = nn.ModuleList(models).eval().requires_grad_(False)

    @torch.no_grad()  # not inference_mode, whose tensors no gradient can be computed with
    def forward(self, images: Tensor) -> Tensor:
        """Probabilities of the lesion, (N, 1, H, W) float32 in [0, 1].

        Args:
            images: (N, 3, H, W) float32 in [0, 1]: the very views that the student sees, as a
                teacher's answer to others is not theirs (Beyer et al. 2022, arXiv:2106.05237).
        """
        return torch.stack([model(images).float().sigmoid() for model in self.models]).mean(0)


def find_models(path: Path) -> list[Path]:
    """The files that teach: `path` itself, or all *.pt in it by name.

    Raises:
        MissingFileError: There is none.
    """
    files = sorted(path.glob("*.pt")) if path.is_dir() else [path]
    if not files or not path.exists():
        raise MissingFileError(
            f"params.yaml: train: teacher is {path}, which is neither a file nor a folder with a "
            "*.pt in it. Copy a model.pt there, or write another path"
        )
    return files


def load_teacher(files: Sequence[Path], *, image_size: int) -> Teacher:
    """The teacher that several `model.pt` make.

    Args:
        files: At least one.
        image_size: Height and width in pixels that the student is trained for.

    Raises:
        DataError: A file is not a model of this program.
        ConfigError: A model was trained for another image size.
    """
    models = []
    for path in files:
        try:
            model, own_size = load_model(path, stage="train_finetuned")
        except DataError as error:
            raise DataError(
                f"params.yaml: train: teacher: {path} is no model.pt of this program. "
                "Remove it from there, or write another path"
            ) from error
        if own_size != image_size:
            raise ConfigError(
                f"params.yaml: train: teacher: {path} is for images of {own_size} pixels, and "
                f"preprocess.image_size is {image_size}. Write another path, or that size"
            )
        models.append(model)
    return Teacher(models)
