"""Scores per image, then their mean: against values by hand, loops and the official scorer."""

import numpy as np
import pytest
from PIL import Image

from lesionseg.metrics import (
    count_pixels,
    failure_rate,
    mean_scores,
    pool_scores,
    score_images,
)

NAMES = ("jaccard", "threshold_jaccard", "dice", "accuracy", "sensitivity", "specificity")
LAST_BATCH = 4


def draw_disk(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    y, x = np.ogrid[:height, :width]
    centre_y, centre_x = rng.uniform(0.35, 0.65, 2) * (height, width)
    radius = rng.uniform(0.06, 0.4) * min(height, width)
    return (y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2


@pytest.fixture(scope="module")
def pairs():
    """Predictions and truths (H, W) bool of varied sizes: good, poor, empty, full."""
    rng = np.random.default_rng(0)
    pairs = []
    for i in range(18):
        height, width = rng.integers(20, 60, 2)
        truth = draw_disk(rng, height, width)
        noise = rng.random((height, width)) < 0.02
        near = np.roll(truth, rng.integers(-4, 5, 2), (0, 1)) ^ noise
        pairs.append((near if i % 9 else draw_disk(rng, height, width), truth))
    shape = (24, 31)
    empty, full = np.zeros(shape, bool), np.ones(shape, bool)
    disk = draw_disk(rng, *shape)
    pairs += [
        (empty, empty),
        (disk, empty),
        (empty, disk),
        (full, full),
        (full, disk),
        (disk, full),
    ]
    return pairs


@pytest.fixture(scope="module")
def scores(pairs):
    counts = np.concatenate([count_pixels(p[None], t[None]) for p, t in pairs])
    return score_images(counts)


def test_counts_and_scores_of_a_small_image_are_those_by_hand():
    predictions = np.array([[[1, 1, 0], [1, 0, 0]]], bool)
    truths = np.array([[[1, 1, 1], [0, 0, 0]]], bool)
    counts = count_pixels(predictions, truths)
    assert counts.tolist() == [[2, 1, 1, 2]]
    scores = score_images(counts)
    assert set(scores) == set(NAMES)
    expected = {
        "jaccard": 2 / 4,
        "threshold_jaccard": 0.0,
        "dice": 4 / 6,
        "accuracy": 4 / 6,
        "sensitivity": 2 / 3,
        "specificity": 2 / 3,
    }
    assert {name: values.tolist() for name, values in scores.items()} == {
        name: pytest.approx([value]) for name, value in expected.items()
    }


def test_sensitivity_and_specificity_are_not_confused():
    scores = score_images(np.array([[3, 2, 1, 14]]))
    assert scores["sensitivity"][0] == pytest.approx(3 / 4)
    assert scores["specificity"][0] == pytest.approx(14 / 16)


def test_threshold_jaccard_is_0_below_065_and_jaccard_from_there_on():
    scores = score_images(np.array([[65, 35, 0, 0], [64, 36, 0, 0], [90, 5, 5, 0]]))
    assert scores["threshold_jaccard"].tolist() == [0.65, 0.0, 0.9]


def test_empty_against_empty_is_perfect():
    empty = np.zeros((1, 4, 5), bool)
    scores = score_images(count_pixels(empty, empty))
    assert all(values.tolist() == [1.0] for values in scores.values())


@pytest.mark.parametrize("flipped", [False, True])
def test_empty_against_something_has_no_overlap(flipped):
    empty, some = np.zeros((1, 4, 5), bool), np.zeros((1, 4, 5), bool)
    some[0, 1, 1:3] = True
    pair = (empty, some) if flipped else (some, empty)
    scores = score_images(count_pixels(*pair))
    for name in ("jaccard", "threshold_jaccard", "dice"):
        assert scores[name].tolist() == [0.0]
    assert scores["sensitivity"].tolist() == [0.0 if flipped else 1.0]


def test_scores_are_float64_between_0_and_1(scores):
    for values in scores.values():
        assert values.dtype == np.float64
        assert values.min() >= 0
        assert values.max() <= 1


def test_dice_is_2j_over_1_plus_j(scores):
    jaccard = scores["jaccard"]
    np.testing.assert_allclose(scores["dice"], 2 * jaccard / (1 + jaccard), rtol=1e-12)


def test_the_order_of_images_does_not_change_the_means(scores):
    backwards = {name: values[::-1] for name, values in scores.items()}
    assert mean_scores(backwards) == pytest.approx(mean_scores(scores), abs=1e-15)


def test_flips_of_both_masks_do_not_change_the_scores(pairs):
    prediction, truth = pairs[1]
    before = count_pixels(prediction[None], truth[None])
    np.testing.assert_array_equal(before, count_pixels(prediction[None, ::-1], truth[None, ::-1]))


def test_swapping_prediction_and_truth_swaps_only_the_kinds_of_error(pairs):
    for prediction, truth in pairs:
        tp, fp, fn, tn = count_pixels(prediction[None], truth[None])[0]
        swapped = count_pixels(truth[None], prediction[None])[0]
        assert swapped.tolist() == [tp, fn, fp, tn]


def test_an_image_s_scores_do_not_depend_on_the_batch_around_it():
    rng = np.random.default_rng(1)
    predictions, truths = rng.random((2, 5, 8, 9)) < 0.4
    together = count_pixels(predictions, truths)
    alone = [count_pixels(predictions[i : i + 1], truths[i : i + 1])[0] for i in range(5)]
    np.testing.assert_array_equal(together, alone)
    with_axis = count_pixels(predictions[:, None], truths[:, None])
    np.testing.assert_array_equal(together, with_axis)


def test_counts_agree_with_a_loop_over_pixels(pairs):
    for prediction, truth in pairs[:6] + pairs[-6:]:
        counted = {(p, t): 0 for p in (True, False) for t in (True, False)}
        for p, t in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True):
            counted[p, t] += 1
        order = [(True, True), (True, False), (False, True), (False, False)]
        counts = count_pixels(prediction[None], truth[None])[0]
        assert counts.tolist() == [counted[key] for key in order]


# The scorer calls pandas in a way that pandas 3.1 deprecates.
@pytest.mark.filterwarnings("ignore:The inplace keyword in Series.rename:DeprecationWarning")
def test_all_six_means_agree_with_the_official_scorer(tmp_path, pairs, scores):
    official = pytest.importorskip(
        "isic_challenge_scoring.segmentation", reason="the official scorer needs Python < 3.13"
    )
    for i, (prediction, truth) in enumerate(pairs):
        for folder, mask, end in (("p", prediction, ""), ("t", truth, "_Segmentation")):
            path = tmp_path / folder / f"ISIC_{i:07d}{end}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    score = official.SegmentationScore.from_dir(tmp_path / "t", tmp_path / "p")
    theirs = score.to_dict()["macro_average"]
    assert set(theirs) == set(NAMES)
    assert mean_scores(scores) == pytest.approx(theirs, abs=1e-9)


def test_scores_of_each_image_agree_with_scikit_learn(pairs, scores):
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn comes with mlflow")
    for i, (prediction, truth) in enumerate(pairs):
        p, t = prediction.ravel(), truth.ravel()
        theirs = {
            "jaccard": sklearn.jaccard_score(t, p, zero_division=1.0),
            "dice": sklearn.f1_score(t, p, zero_division=1.0),
            "accuracy": sklearn.accuracy_score(t, p),
            "sensitivity": sklearn.recall_score(t, p, zero_division=1.0),
            "specificity": sklearn.recall_score(t, p, pos_label=False, zero_division=1.0),
        }
        assert {name: scores[name][i] for name in theirs} == pytest.approx(theirs, abs=1e-12)


def column_mean(prediction: np.ndarray, truth: np.ndarray) -> float:
    """The mean over image columns of jaccard, with 1 for empty columns."""
    tp, union = (prediction & truth).sum(0), (prediction | truth).sum(0)
    return float(np.where(union > 0, tp / np.maximum(union, 1), 1.0).mean())


def test_the_wrong_formulas_of_student_projects_give_other_numbers(pairs, scores):
    ours = mean_scores(scores)["jaccard"]
    pooled = pool_scores(np.concatenate([count_pixels(p[None], t[None]) for p, t in pairs]))
    wrong = {
        "over columns": np.mean([column_mean(p, t) for p, t in pairs]),
        "last batch only": scores["jaccard"][-LAST_BATCH:].mean(),
        "pooled over images": pooled["pooled_jaccard"],
    }
    for name, value in wrong.items():
        assert abs(value - ours) > 0.02, name
    assert wrong["over columns"] > ours


def test_pooled_scores_are_those_of_all_images_laid_side_by_side():
    rng = np.random.default_rng(4)
    predictions, truths = rng.random((2, 6, 8, 9)) < 0.4
    side_by_side = (np.hstack(list(masks)).ravel() for masks in (predictions, truths))
    counts = count_pixels(*(masks[None] for masks in side_by_side))
    expected = {f"pooled_{name}": values[0] for name, values in score_images(counts).items()}
    del expected["pooled_threshold_jaccard"]
    assert pool_scores(count_pixels(predictions, truths)) == expected


def test_a_large_lesion_weighs_more_in_the_pooled_score_only():
    counts = np.array([[90, 10, 0, 100], [1, 9, 0, 190]])
    assert pool_scores(counts)["pooled_jaccard"] == pytest.approx(91 / 110)
    assert mean_scores(score_images(counts))["jaccard"] == pytest.approx((0.9 + 0.1) / 2)


def test_an_image_fails_below_065():
    assert failure_rate(np.array([0.65, 0.6499, 0.0, 1.0])) == 0.5
