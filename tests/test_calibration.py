"""Reliability, calibration error and the curve of thresholds: against values by hand."""

import itertools

import numpy as np
import pytest

from lesionseg.evaluation.calibration import (
    NUM_BINS,
    THRESHOLDS,
    expected_calibration_error,
    reliability,
    score_thresholds,
    sum_bins,
)
from lesionseg.metrics import count_pixels, score_images


def image_of(pixels):
    """Probabilities and truth (1, N) from pairs of them."""
    probabilities, truth = zip(*pixels, strict=True)
    return np.array([probabilities], np.float32), np.array([truth], bool)


@pytest.fixture
def random_image():
    rng = np.random.default_rng(0)
    probabilities = rng.random((40, 50), dtype=np.float32)
    return probabilities, rng.random((40, 50)) < probabilities**2


def test_a_bin_has_its_pixels_their_mean_probability_and_their_share_of_lesion():
    sums = sum_bins(*image_of([(0.01, False), (0.03, True), (0.95, True), (1.0, True)]))
    rows = reliability(sums)
    assert rows[0] == {
        "probability_low": 0.0,
        "probability_high": pytest.approx(1 / 15),
        "num_pixels": 2,
        "probability": pytest.approx(0.02),
        "lesion_fraction": 0.5,
    }
    assert rows[-1]["num_pixels"] == 2
    assert rows[-1]["lesion_fraction"] == 1.0


def test_an_empty_bin_has_no_shares():
    rows = reliability(sum_bins(*image_of([(0.5, True)])))
    assert [row["num_pixels"] for row in rows].count(0) == NUM_BINS - 1
    assert rows[0]["probability"] is None
    assert rows[0]["lesion_fraction"] is None


def test_the_bins_cover_0_to_1_without_gaps_and_hold_every_pixel(random_image):
    rows = reliability(sum_bins(*random_image))
    assert rows[0]["probability_low"] == 0
    assert rows[-1]["probability_high"] == 1
    for before, after in itertools.pairwise(rows):
        assert before["probability_high"] == after["probability_low"]
    assert sum(row["num_pixels"] for row in rows) == 2000


def test_images_add_up(random_image):
    probabilities, truth = random_image
    parts = sum_bins(probabilities[:15], truth[:15]) + sum_bins(probabilities[15:], truth[15:])
    np.testing.assert_allclose(parts, sum_bins(probabilities, truth), rtol=1e-6)


def test_the_calibration_error_is_that_by_hand():
    # Two pixels at 0.9, one of them lesion: off by 0.4; two at 0.1, none: off by 0.1.
    sums = sum_bins(*image_of([(0.9, True), (0.9, False), (0.1, False), (0.1, False)]))
    assert expected_calibration_error(sums) == pytest.approx((0.4 + 0.1) / 2)


@pytest.mark.parametrize(("probability", "error"), [(0.0, 0.0), (1.0, 1.0)])
def test_certain_pixels_are_perfect_when_right_and_off_by_1_when_wrong(probability, error):
    sums = sum_bins(*image_of([(probability, False)] * 5))
    assert expected_calibration_error(sums) == error


def test_the_calibration_error_agrees_with_a_loop_over_the_bins(random_image):
    probabilities, truth = (array.ravel() for array in random_image)
    total = 0.0
    for number in range(NUM_BINS):
        inside = np.floor(probabilities * np.float32(NUM_BINS)) == number
        if inside.any():
            gap = abs(probabilities[inside].mean() - truth[inside].mean())
            total += inside.sum() / truth.size * gap
    assert expected_calibration_error(sum_bins(*random_image)) == pytest.approx(total, abs=1e-6)


def test_lesion_drawn_by_its_probability_is_well_calibrated():
    rng = np.random.default_rng(1)
    probabilities = rng.random((300, 300), dtype=np.float32)
    truth = rng.random((300, 300)) < probabilities
    assert expected_calibration_error(sum_bins(probabilities, truth)) < 0.01


def test_each_threshold_has_the_mean_over_images_of_its_scores(random_image):
    probabilities = [random_image[0], random_image[0] ** 3]
    truths = np.stack([random_image[1], random_image[1].T.reshape(40, 50)])
    rows = score_thresholds(probabilities, truths)
    assert [row["threshold"] for row in rows] == list(THRESHOLDS)
    assert 0.5 in THRESHOLDS
    for row in rows:
        predictions = np.stack([image > row["threshold"] for image in probabilities])
        scores = score_images(count_pixels(predictions, truths))
        assert row["jaccard"] == pytest.approx(scores["jaccard"].mean())
        assert row["dice"] == pytest.approx(scores["dice"].mean())
