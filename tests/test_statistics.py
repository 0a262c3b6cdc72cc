"""Intervals of means and differences, signed ranks and seeds: against values by hand and theory."""

import functools
import itertools
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from lesionseg.evaluation.statistics import compare, compare_seeds, mean_interval, signed_ranks
from lesionseg.results.vocabulary import SCOPES

SETTINGS = {"confidence": 0.95, "num_resamples": 1000, "seed": 0}


@pytest.fixture
def differences():
    return np.random.default_rng(3).gamma(2.0, 0.05, 60) - 0.05


@pytest.mark.parametrize(("confidence", "z"), [(0.95, 1.95996), (0.8, 1.28155)])
def test_for_many_images_the_interval_is_that_of_normal_theory(confidence, z):
    values = np.random.default_rng(0).normal(0.02, 0.1, 1000)
    low, high = mean_interval(values, confidence=confidence, num_resamples=4000, seed=1)
    error = values.std(ddof=1) / np.sqrt(1000)
    assert low == pytest.approx(values.mean() - z * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + z * error, abs=0.15 * error)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another(differences):
    first = mean_interval(differences, **SETTINGS)
    assert mean_interval(differences, **SETTINGS) == first
    assert mean_interval(differences, **{**SETTINGS, "seed": 1}) != first


def test_the_interval_leaves_the_global_random_state_alone(differences):
    before = np.random.get_state()[1].tolist()
    mean_interval(differences, **SETTINGS)
    assert np.random.get_state()[1].tolist() == before


def test_swapping_the_models_mirrors_the_interval(differences):
    low, high = mean_interval(differences, **SETTINGS)
    assert mean_interval(-differences, **SETTINGS) == pytest.approx((-high, -low), abs=1e-12)


def test_adding_a_constant_moves_the_interval_by_it(differences):
    low, high = mean_interval(differences, **SETTINGS)
    moved = mean_interval(differences + 0.5, **SETTINGS)
    assert moved == pytest.approx([low + 0.5, high + 0.5], abs=1e-9)


def test_more_confidence_is_a_wider_interval(differences):
    low, high = mean_interval(differences, **SETTINGS)
    wider = mean_interval(differences, **{**SETTINGS, "confidence": 0.99})
    assert wider[0] < low < differences.mean() < high < wider[1]


@pytest.mark.parametrize("value", [0.0, -0.25])
@pytest.mark.parametrize("num_images", [1, 7])
def test_equal_differences_have_an_interval_of_no_width(value, num_images):
    assert mean_interval(np.full(num_images, value), **SETTINGS) == (value, value)


def test_two_images_are_enough_for_a_finite_interval():
    low, high = mean_interval(np.array([0.0, 0.1]), **SETTINGS)
    assert 0 <= low <= high <= 0.1


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    num_simulations, covered = 300, 0
    for seed in range(num_simulations):
        values = rng.exponential(0.1, 40)
        low, high = mean_interval(values, confidence=0.9, num_resamples=200, seed=seed)
        covered += low <= 0.1 <= high
    assert 0.84 < covered / num_simulations < 0.94


def scores_of_two_models():
    rng = np.random.default_rng(2)
    frozen = {name: rng.uniform(0.3, 0.9, 50) for name in ("jaccard", "dice")}
    return frozen, {name: values + rng.normal(0.03, 0.02, 50) for name, values in frozen.items()}


interval = functools.partial(mean_interval, **SETTINGS)


def test_the_difference_is_that_of_the_means_and_finetuned_minus_frozen():
    frozen, finetuned = scores_of_two_models()
    result = compare(frozen, finetuned, interval=interval)
    assert set(result) == {"jaccard", "dice"}
    for name, row in result.items():
        assert row.train_frozen == pytest.approx(np.mean(frozen[name]))
        assert row.train_finetuned == pytest.approx(np.mean(finetuned[name]))
        assert row.difference == pytest.approx(row.train_finetuned - row.train_frozen)
        assert row.interval == interval(finetuned[name] - frozen[name])
        assert row.train_frozen_interval == interval(frozen[name])
        assert row.train_finetuned_interval == interval(finetuned[name])


def test_images_are_paired_so_that_how_hard_they_are_does_not_widen_the_interval():
    frozen, finetuned = scores_of_two_models()
    shuffled = {name: values[::-1] for name, values in finetuned.items()}
    for name in frozen:
        paired = np.ptp(compare(frozen, finetuned, interval=interval)[name].interval)
        unpaired = np.ptp(compare(frozen, shuffled, interval=interval)[name].interval)
        assert paired < unpaired / 3


@pytest.mark.parametrize(("metric", "better"), [("jaccard", "wins"), ("hd95", "losses")])
def test_higher_is_a_win_except_where_lower_is_better(metric, better):
    frozen = np.array([0.2, 0.4, 0.6, 0.8])
    finetuned = frozen + np.array([0.1, 0.1, 0.1, 0])
    row = compare({metric: frozen}, {metric: finetuned}, interval=interval)[metric]
    assert (getattr(row, better), row.ties, row.wins + row.losses) == (3, 1, 3)
    assert row.rank_biserial == {"wins": 1.0, "losses": -1.0}[better]
    assert row.difference == pytest.approx(0.075)


def test_the_effect_size_is_that_by_hand():
    # Ranks of 1, 2, 3, 4: positive 1 + 2 + 4, negative 3.
    ranks = signed_ranks(np.array([0.1, 0.2, -0.3, 0.4]))
    assert ranks["rank_biserial"] == pytest.approx((7 - 3) / 10)


def test_the_p_value_is_the_share_of_signs_that_are_as_extreme():
    differences = np.array([0.1, 0.2, -0.3, 0.4, 0.5, 0.6])
    rank_sums = [
        sum(rank for rank, sign in zip(range(1, 7), signs, strict=True) if sign > 0)
        for signs in itertools.product((-1, 1), repeat=6)
    ]
    observed = 1 + 2 + 4 + 5 + 6
    extreme = np.mean([max(total, 21 - total) >= observed for total in rank_sums])
    assert signed_ranks(differences)["wilcoxon_p"] == pytest.approx(extreme)


def test_swapping_the_models_keeps_p_and_mirrors_the_effect(differences):
    there, back = signed_ranks(differences), signed_ranks(-differences)
    assert there["wilcoxon_p"] == pytest.approx(back["wilcoxon_p"])
    assert there["rank_biserial"] == pytest.approx(-back["rank_biserial"])


def test_images_without_a_difference_change_neither_p_nor_effect(differences):
    padded = np.append(differences, np.zeros(20))
    assert signed_ranks(padded) == signed_ranks(differences)


@pytest.mark.parametrize("num_images", [1, 5, 300])
def test_equal_models_show_nothing(num_images):
    assert signed_ranks(np.zeros(num_images)) == {"wilcoxon_p": 1.0, "rank_biserial": 0.0}


def test_one_image_is_tested_without_a_warning():
    assert signed_ranks(np.array([0.1])) == {"wilcoxon_p": 1.0, "rank_biserial": 1.0}


def table_of_seeds(frozen, finetuned, metric="jaccard"):
    return pd.DataFrame(
        [
            {"run": run, "seed": seed, "scope": scope, metric: value}
            for scope in SCOPES
            for run, values in (("train_frozen", frozen), ("train_finetuned", finetuned))
            for seed, value in enumerate(values)
        ]
    )


def test_seeds_are_summed_up_by_mean_and_sample_deviation_of_paired_differences():
    result = compare_seeds(table_of_seeds([0.80, 0.82, 0.84], [0.83, 0.83, 0.83]))
    assert result.num_seeds == 3
    row = result.test["jaccard"]
    assert asdict(row.train_frozen) == pytest.approx({"mean": 0.82, "sd": 0.02})
    assert asdict(row.train_finetuned) == pytest.approx({"mean": 0.83, "sd": 0.0})
    assert asdict(row.difference) == pytest.approx({"mean": 0.01, "sd": 0.02, "num_better": 2})


def test_for_distances_a_seed_is_better_where_they_are_lower():
    row = compare_seeds(table_of_seeds([5.0, 4.0], [3.0, 4.5], "hd95")).test["hd95"]
    assert asdict(row.difference) == pytest.approx(
        {"mean": -0.75, "sd": 2.5 / 2**0.5, "num_better": 1}
    )


def test_a_single_seed_has_no_spread():
    assert compare_seeds(table_of_seeds([0.8], [0.9])) is None
