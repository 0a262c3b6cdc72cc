"""Every test image as the page shows it: a small photograph with outlines, scores and groups."""

import base64
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from lesionseg import files
from lesionseg.data.images import read_image
from lesionseg.data.masks import read_mask
from lesionseg.errors import DataError, rerun
from lesionseg.outlines import Points, find_outlines
from lesionseg.report.inputs import Inputs, scores_by_run
from lesionseg.results.layout import RUNS
from lesionseg.results.vocabulary import STRATA

SIDE = 256  # pixels of a photograph's longer side on the page
_QUALITY = 80  # of its JPEG
_TOLERANCE = 0.5  # pixels by which an outline on the page may differ from the mask's
SHOWN_METRICS = ("jaccard", "dice", "hd95")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A test image and what is known about it.

    Attributes:
        id: Its id.
        width: Width of the photograph on the page, in pixels.
        height: Likewise.
        photograph: A data URI.
        contours: Paths in pixels of the photograph by `truth` and run, empty for an empty mask.
        scores: Scores by metric and run, at the size the network sees.
        groups: The image's group by stratum.
    """

    id: str
    width: int
    height: int
    photograph: str
    contours: dict[str, str]
    scores: dict[str, dict[str, float]]
    groups: dict[str, str]

    @property
    def gain(self) -> float:
        """Jaccard of the fine-tuned model minus that of the frozen one."""
        return self.scores["jaccard"]["train_finetuned"] - self.scores["jaccard"]["train_frozen"]


@dataclass(frozen=True, kw_only=True)
class _Picture:
    width: int
    height: int
    photograph: str
    contours: dict[str, str]


def read_cases(inputs: Inputs) -> list[Case]:
    """All test images in the order of the test split.

    Raises:
        MissingFileError: An image or a mask is missing.
        DataError: It is damaged, or a prediction differs in size from its image.
    """
    ids = inputs.attributes["id"].tolist()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda name: _read_picture(inputs, name), ids)
        pictures = list(tqdm(found, "Images", len(ids), unit="image", disable=None))
    tables = {
        metric: scores_by_run(inputs.per_image, scope="test", metric=metric).loc[ids]
        for metric in SHOWN_METRICS
    }
    return [
        Case(
            id=name,
            width=picture.width,
            height=picture.height,
            photograph=picture.photograph,
            contours=picture.contours,
            scores={
                metric: {run: float(table[run].iloc[number]) for run in RUNS}
                for metric, table in tables.items()
            },
            groups={stratum: str(inputs.attributes[stratum].iloc[number]) for stratum in STRATA},
        )
        for number, (name, picture) in enumerate(zip(ids, pictures, strict=True))
    ]


def choose_rows(cases: Sequence[Case], *, num_examples: int) -> dict[str, list[Case]]:
    """The best, the middle and the worst cases by the fine-tuned jaccard; ties by id.

    If these would be all images or more, there is just one row, `best`. page.js chooses likewise.
    """
    ranked = sorted(cases, key=lambda case: (-case.scores["jaccard"]["train_finetuned"], case.id))
    if len(ranked) <= 3 * num_examples:
        return {"best": ranked, "median": [], "worst": []}
    middle = (len(ranked) - num_examples) // 2
    return {
        "best": ranked[:num_examples],
        "median": ranked[middle : middle + num_examples],
        "worst": ranked[: -num_examples - 1 : -1],
    }


def read_prediction(path: Path, *, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A predicted mask, (H, W) uint8 in {0, 1}, of its image's size.

    Raises:
        MissingFileError: It is missing.
        DataError: It is damaged or has another size.
    """
    files.require(path, stage="evaluate")
    with files.made_by("evaluate"):
        mask = read_mask(path)
    if mask.shape != size:
        raise DataError(
            f"{path} must be {size[0]} x {size[1]} pixels as its image is (height x width), got "
            f"{mask.shape[0]} x {mask.shape[1]}",
            remedy=f"Run: {rerun('evaluate')}",
        )
    return mask


def _read_picture(inputs: Inputs, name: str) -> _Picture:
    row = inputs.test_rows[name]
    size = (row.height, row.width)
    scale = SIDE / max(size)
    height, width = (max(1, round(scale * side)) for side in size)
    image_path, mask_path = (
        files.require(inputs.raw_dir / path, stage="download")
        for path in (row.image_path, row.mask_path)
    )
    photograph = Image.fromarray(read_image(image_path, at_least=min(height, width)))
    masks = {"truth": read_mask(mask_path)} | {
        run: read_prediction(inputs.evaluation.mask(run, name), size=size) for run in RUNS
    }
    return _Picture(
        width=width,
        height=height,
        photograph=_data_uri(photograph.resize((width, height), Image.Resampling.LANCZOS)),
        contours={
            of: svg_path(find_outlines(_shrink(mask, (height, width)), tolerance=_TOLERANCE))
            for of, mask in masks.items()
        },
    )


def _shrink(mask: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float64]:
    """The share of lesion in each pixel of a photograph on the page: (h, w) in [0, 1]."""
    levels = Image.fromarray(255 * mask)
    small = levels.resize(size[::-1], Image.Resampling.BOX)
    return np.asarray(small) / 255


def svg_path(outlines: Sequence[Points]) -> str:
    """The outlines as the `d` of an SVG path, to a tenth of a pixel; empty without outlines."""
    return "".join(
        "M" + "L".join(f"{column:.1f} {row:.1f}" for row, column in outline[:-1]) + "Z"
        for outline in outlines
    ).replace(".0", "")


def _data_uri(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
