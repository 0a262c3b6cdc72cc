"""Intervals of paired differences: their width, their symmetry, and how often they are right."""

import numpy as np
import pytest

from lesionseg.evaluation.statistics import compare, paired_interval

SETTINGS = {"confidence": 0.95, "num_resamples": 1000, "seed": 0}


@pytest.fixture
def differences():
    return np.random.default_rng(3).gamma(2.0, 0.05, 60) - 0.05


@pytest.mark.parametrize(("confidence", "z"), [(0.95, 1.95996), (0.8, 1.28155)])
def test_for_many_images_the_interval_is_that_of_normal_theory(confidence, z):
    values = np.random.default_rng(0).normal(0.02, 0.1, 1000)
    low, high = paired_interval(values, confidence=confidence, num_resamples=4000, seed=1)
    error = values.std(ddof=1) / np.sqrt(1000)
    assert low == pytest.approx(values.mean() - z * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + z * error, abs=0.15 * error)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another(differences):
    first = paired_interval(differences, **SETTINGS)
    assert paired_interval(differences, **SETTINGS) == first
    assert paired_interval(differences, **{**SETTINGS, "seed": 1}) != first


def test_the_interval_leaves_the_global_random_state_alone(differences):
    before = np.random.get_state()[1].tolist()
    paired_interval(differences, **SETTINGS)
    assert np.random.get_state()[1].tolist() == before


def test_swapping_the_models_mirrors_the_interval(differences):
    low, high = paired_interval(differences, **SETTINGS)
    assert paired_interval(-differences, **SETTINGS) == pytest.approx([-high, -low], abs=1e-12)


def test_adding_a_constant_moves_the_interval_by_it(differences):
    low, high = paired_interval(differences, **SETTINGS)
    moved = paired_interval(differences + 0.5, **SETTINGS)
    assert moved == pytest.approx([low + 0.5, high + 0.5], abs=1e-9)


def test_more_confidence_is_a_wider_interval(differences):
    low, high = paired_interval(differences, **SETTINGS)
    wider = paired_interval(differences, **{**SETTINGS, "confidence": 0.99})
    assert wider[0] < low < differences.mean() < high < wider[1]


@pytest.mark.parametrize("value", [0.0, -0.25])
@pytest.mark.parametrize("num_images", [1, 7])
def test_equal_differences_have_an_interval_of_no_width(value, num_images):
    assert paired_interval(np.full(num_images, value), **SETTINGS) == [value, value]


def test_two_images_are_enough_for_a_finite_interval():
    low, high = paired_interval(np.array([0.0, 0.1]), **SETTINGS)
    assert 0 <= low <= high <= 0.1


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    num_simulations, covered = 300, 0
    for seed in range(num_simulations):
        values = rng.exponential(0.1, 40)
        low, high = paired_interval(values, confidence=0.9, num_resamples=200, seed=seed)
        covered += low <= 0.1 <= high
    assert 0.84 < covered / num_simulations < 0.94


def scores_of_two_models():
    rng = np.random.default_rng(2)
    frozen = {name: rng.uniform(0.3, 0.9, 50) for name in ("jaccard", "dice")}
    return frozen, {name: values + rng.normal(0.03, 0.02, 50) for name, values in frozen.items()}


def test_the_difference_is_that_of_the_means_and_finetuned_minus_frozen():
    frozen, finetuned = scores_of_two_models()
    result = compare(frozen, finetuned, **SETTINGS)
    assert set(result) == {"jaccard", "dice"}
    for name, row in result.items():
        assert row["train_frozen"] == pytest.approx(np.mean(frozen[name]))
        assert row["train_finetuned"] == pytest.approx(np.mean(finetuned[name]))
        assert row["difference"] == pytest.approx(row["train_finetuned"] - row["train_frozen"])
        assert row["interval"][0] < row["difference"] < row["interval"][1]
        assert row["interval"] == paired_interval(finetuned[name] - frozen[name], **SETTINGS)


def test_images_are_paired_so_that_how_hard_they_are_does_not_widen_the_interval():
    frozen, finetuned = scores_of_two_models()
    shuffled = {name: values[::-1] for name, values in finetuned.items()}
    for name in frozen:
        paired = np.ptp(compare(frozen, finetuned, **SETTINGS)[name]["interval"])
        unpaired = np.ptp(compare(frozen, shuffled, **SETTINGS)[name]["interval"])
        assert paired < unpaired / 3
