"""All scores of predicted masks, and summaries of a table of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.contrib.concurrent import thread_map

from lesionseg.data.dataset import Split
from lesionseg.data.masks import read_mask
from lesionseg.evaluation.boundaries import boundary_scores
from lesionseg.inference.payloads import mask_png
from lesionseg.inference.prediction import resize_probabilities
from lesionseg.metrics import (
    COUNTS,
    Scores,
    count_pixels,
    failure_rate,
    pool_scores,
    score_images,
)
from lesionseg.results.evaluation import ModelScores
from lesionseg.results.layout import mask_name
from lesionseg.results.tables import Row
from lesionseg.results.vocabulary import METRICS, SCOPES


def score_split(
    probabilities: Sequence[NDArray[np.float32]],
    split: Split,
    *,
    mask_paths: Sequence[Path],
    threshold: float,
    surface_tolerance: float,
    out_dir: Path | None = None,
) -> pd.DataFrame:
    """Scores of a model on every image, a row for each image and each of `SCOPES`.

    At own size the probabilities are interpolated, then thresholded; the truth is the mask's file
    itself, never resized.

    Args:
        probabilities: N arrays (H, W) float32 in [0, 1], one for each image of the split.
        split: The split at the network's size.
        mask_paths: The masks at their own size, in the split's order.
        threshold: A pixel is lesion above it, in (0, 1).
        surface_tolerance: Tolerance of `nsd`, in percent of the image's diagonal.
        out_dir: Where the predictions at own size go, in the challenge's format: 8-bit PNG, 0 and
            255, `<id>_segmentation.png`.
    """
    if out_dir:
        out_dir.mkdir(parents=True)

    def score(
        image_id: str, truth: NDArray[np.uint8], probability: NDArray[np.float32], mask_path: Path
    ) -> list[Row]:
        own_truth = read_mask(mask_path) > 0
        own_prediction = resize_probabilities(probability, own_truth.shape) > threshold
        if out_dir:
            (out_dir / mask_name(image_id)).write_bytes(mask_png(own_prediction))
        masks = {
            "test": (probability > threshold, truth > 0),
            "test_own_size": (own_prediction, own_truth),
        }
        return [
            {
                "id": image_id,
                "scope": scope,
                **score_mask(*masks[scope], surface_tolerance=surface_tolerance),
            }
            for scope in SCOPES
        ]

    pairs = thread_map(
        score,
        split.ids,
        split.masks,
        probabilities,
        mask_paths,
        total=len(split.ids),
        desc="scores",
        unit="image",
        disable=None,
        leave=False,
    )
    return pd.DataFrame([row for pair in pairs for row in pair])


def score_mask(
    prediction: NDArray[np.bool_], truth: NDArray[np.bool_], *, surface_tolerance: float
) -> Row:
    """Size, pixel counts and `METRICS` of one image.

    Args:
        prediction: (H, W) bool, True where lesion is predicted.
        truth: (H, W) bool, True in the lesion.
        surface_tolerance: Tolerance of `nsd`, in percent of the image's diagonal.
    """
    height, width = truth.shape
    counts = count_pixels(prediction[None], truth[None])
    return {
        "height": height,
        "width": width,
        **dict(zip(COUNTS, counts[0].tolist(), strict=True)),
        **{metric: float(values[0]) for metric, values in score_images(counts).items()},
        **boundary_scores(prediction, truth, tolerance=surface_tolerance),
    }


def at(table: pd.DataFrame, scope: str) -> pd.DataFrame:
    """The rows of one of `SCOPES`."""
    return table[table["scope"] == scope]


def scores_by_metric(rows: pd.DataFrame) -> dict[str, Scores]:
    """The column (N,) of each of `METRICS`."""
    return {metric: rows[metric].to_numpy(np.float64) for metric in METRICS}


def summarise(rows: pd.DataFrame) -> dict[str, float]:
    """The mean over images of each of `METRICS`, the failure rate, and the pooled scores.

    Args:
        rows: A row of `score_mask` for each image of one model at one size.
    """
    return {
        **{metric: float(rows[metric].mean()) for metric in METRICS},
        "failure_rate": failure_rate(rows["jaccard"].to_numpy(np.float64)),
        **pool_scores(rows[list(COUNTS)].to_numpy(np.int64)),
    }


def summarise_scopes(table: pd.DataFrame) -> ModelScores:
    """`summarise` of the rows of `score_split`, by scope."""
    return ModelScores(**{scope: summarise(at(table, scope)) for scope in SCOPES})


def per_image_rows(tables: Mapping[str, pd.DataFrame]) -> list[Row]:
    """Rows of per_image.csv: those of one model after those of the other."""
    return [
        {"id": row["id"], "run": name, **row}
        for name, table in tables.items()
        for row in cast("list[Row]", table.to_dict("records"))
    ]


def side_by_side(tables: Mapping[str, Sequence[Row]], *, on: Sequence[str]) -> list[Row]:
    """The models' rows side by side: columns `on` once, the others prefixed with the run's name."""
    return [
        {
            **{key: rows[0][key] for key in on},
            **{
                f"{name}_{key}": value
                for name, row in zip(tables, rows, strict=True)
                for key, value in row.items()
                if key not in on
            },
        }
        for rows in zip(*tables.values(), strict=True)
    ]
