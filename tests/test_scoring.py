"""A split's scores at both sizes: what is read, resized, cut and written, and how it adds up."""

import numpy as np
import pytest
from PIL import Image

from lesionseg.data.dataset import Split
from lesionseg.evaluation.scoring import (
    score_mask,
    score_split,
    scores_by_metric,
    summarise,
)
from lesionseg.inference.prediction import resize_probabilities
from lesionseg.metrics import COUNTS
from lesionseg.results.vocabulary import METRICS, SCOPES

SIZE = 32
OWN_SIZES = ((48, 64), (30, 20), (32, 32))


def disk(height, width, *, radius):
    rows, columns = np.mgrid[:height, :width]
    return np.hypot(rows / height - 0.5, columns / width - 0.45) < radius


@pytest.fixture
def scored(tmp_path):
    """A table, its inputs, and the folder of its predictions."""
    paths = []
    for number, (height, width) in enumerate(OWN_SIZES):
        paths.append(tmp_path / f"{number}.png")
        mask = disk(height, width, radius=0.3).astype(np.uint8) * 255
        Image.fromarray(mask).save(paths[-1])
    rng = np.random.default_rng(0)
    masks = np.stack([disk(SIZE, SIZE, radius=0.3)] * 3).astype(np.uint8)
    probabilities = [
        (0.7 * disk(SIZE, SIZE, radius=0.28) + 0.2 * rng.random((SIZE, SIZE))).astype(np.float32)
        for _ in OWN_SIZES
    ]
    images = np.zeros((3, SIZE, SIZE, 3), np.uint8)
    split = Split(name="test", images=images, masks=masks, ids=("a", "b", "c"))
    table = score_split(
        probabilities,
        split,
        mask_paths=paths,
        threshold=0.6,
        surface_tolerance=1.0,
        out_dir=tmp_path / "out",
    )
    return table, probabilities, split, tmp_path


def test_every_image_has_a_row_at_each_size_in_the_order_of_the_split(scored):
    table, _, split, _ = scored
    pairs = [(image_id, scope) for image_id in split.ids for scope in SCOPES]
    assert list(zip(table["id"], table["scope"], strict=True)) == pairs
    own = table[table["scope"] == "test_own_size"]
    assert list(zip(own["height"], own["width"], strict=True)) == list(OWN_SIZES)
    assert set(table) == {"id", "scope", "height", "width", *COUNTS, *METRICS}


def test_at_the_network_s_size_the_split_s_masks_are_the_truth(scored):
    table, probabilities, split, _ = scored
    rows = table[table["scope"] == "test"].to_dict("records")
    for row, probability, truth in zip(rows, probabilities, split.masks, strict=True):
        expected = score_mask(probability > 0.6, truth > 0, surface_tolerance=1.0)
        assert {key: row[key] for key in expected} == expected


def test_at_own_size_the_probabilities_are_resized_and_the_files_are_the_truth(scored):
    table, probabilities, split, folder = scored
    rows = table[table["scope"] == "test_own_size"].to_dict("records")
    for number, (row, probability) in enumerate(zip(rows, probabilities, strict=True)):
        truth = np.asarray(Image.open(folder / f"{number}.png")) > 128
        prediction = resize_probabilities(probability, truth.shape) > 0.6
        expected = score_mask(prediction, truth, surface_tolerance=1.0)
        assert {key: row[key] for key in expected} == expected
        written = Image.open(folder / f"out/{split.ids[number]}_segmentation.png")
        assert written.mode == "L"
        np.testing.assert_array_equal(np.asarray(written), prediction * np.uint8(255))


def test_a_summary_has_means_failures_and_pooled_scores(scored):
    rows = scored[0][scored[0]["scope"] == "test"]
    summary = summarise(rows)
    for metric, values in scores_by_metric(rows).items():
        assert summary[metric] == pytest.approx(values.mean())
    assert summary["failure_rate"] == (rows["jaccard"] < 0.65).mean()
    total = rows[list(COUNTS)].sum()
    pooled = total["tp"] / (total["tp"] + total["fp"] + total["fn"])
    assert summary["pooled_jaccard"] == pytest.approx(pooled)


def test_without_a_folder_no_mask_is_written(scored):
    _, probabilities, split, folder = scored
    before = sorted(folder.rglob("*"))
    score_split(
        probabilities,
        split,
        mask_paths=[folder / f"{number}.png" for number in range(3)],
        threshold=0.5,
        surface_tolerance=1.0,
    )
    assert sorted(folder.rglob("*")) == before
