"""The statistics over seeds against scipy, textbook values, values worked by hand, and simulated seeds."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from dsd_lab.report.statistics.intervals import (
    clopper_pearson,
    compare_paired,
    difference_range,
    estimate,
    hedges_correction,
    holm,
    seeds_needed,
    sign_flip_p,
    smallest_p,
)

SKEWED = [0.1, 0.2, 0.2, 0.3, 0.4, 0.5, 0.7, 1.1, 2.0, 4.5, 0.6, 0.9, 6.0]


# -- Means and their intervals -----------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 5, 9, 10, 13])
def test_the_interval_is_students_at_every_number_of_seeds(count):
    values = SKEWED[-count:]
    found, reference = estimate(values), stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.ci_low, found.ci_high) == pytest.approx((reference.low, reference.high), rel=1e-12)
    assert (found.mean, found.sd, found.n) == pytest.approx((np.mean(values), stats.tstd(values), count))


def test_the_interval_of_one_two_three_is_the_textbooks():
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.sd) == (2.0, 1.0)
    assert found.ci_high - 2 == pytest.approx(4.303 / math.sqrt(3), abs=1e-3)  # t(0.975, 2) = 4.303
    assert 2 - found.ci_low == pytest.approx(found.ci_high - 2)


@pytest.mark.parametrize(
    ("values", "within", "low", "high"),
    [
        ([0.9, 0.99, 1.0], (0.0, 1.0), 0.96333 - 4.30265 * 0.0550757 / math.sqrt(3), 1.0),
        ([0.01, 0.0, 0.05], (0.0, 1.0), 0.0, 0.02 + 4.30265 * 0.0264575 / math.sqrt(3)),
        ([0.1, 0.9], (0.0, 1.0), 0.0, 1.0),
        ([0.5, 4.0], (0.0, math.inf), 0.0, 2.25 + 12.7062 * 1.75),
    ],
)
def test_the_interval_of_a_bounded_quantity_ends_at_its_bound(values, within, low, high):
    found = estimate(values, within=within)
    assert (found.ci_low, found.ci_high) == pytest.approx((low, high), rel=1e-4)
    assert estimate(values).mean == found.mean


def test_a_mean_beyond_its_stated_range_is_still_in_its_own_interval():
    found = estimate([1.0, 1.0 + 1e-9], within=(0.0, 1.0))
    assert found.ci_low <= found.mean <= found.ci_high


@pytest.mark.parametrize(("within", "expected"), [((0.0, 1.0), (-1.0, 1.0)), ((0.0, math.inf), (-math.inf, math.inf))])
def test_the_difference_of_two_bounded_quantities_is_bounded_too(within, expected):
    assert difference_range(within) == expected
    found = compare_paired([0.9, -0.9], within=difference_range(within)).difference
    assert (found.ci_low, found.ci_high) == pytest.approx(
        (max(-11.4356, expected[0]), min(11.4356, expected[1])), rel=1e-4
    )


@pytest.mark.parametrize("values", [[0.3] * 4, [0.3] * 12, [0.3] * 9 + [0.1 + 0.2], [0.98 - 0.95, 0.97 - 0.94]])
def test_values_that_differ_by_rounding_alone_have_no_spread(values):
    assert len(set(values)) == 1 or np.ptp(values) > 0
    found = estimate(values)
    assert found.sd == 0
    assert found.ci_low == found.mean == found.ci_high == pytest.approx(values[0])
    assert compare_paired(values).effect is None


def test_small_differences_of_large_values_are_not_taken_for_rounding():
    assert estimate([1e6, 1e6 + 1e-3]).sd == pytest.approx(1e-3 / math.sqrt(2), rel=1e-4)


def test_one_value_has_no_interval_and_none_has_no_estimate():
    found = estimate([0.7])
    assert (found.mean, found.sd, found.ci_low, found.ci_high, found.n) == (0.7, None, None, None, 1)
    assert estimate([]) is None


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_have_no_place_in_a_mean(wrong):
    with pytest.raises(ValueError, match="not finite"):
        estimate([1.0, wrong, 2.0])


KINDS = {
    "normal": lambda r, shape: r.normal(0, 1, shape),
    "exponential": lambda r, shape: r.exponential(1, shape) - 1,
    "contaminated": lambda r, shape: r.normal(0, 1, shape) * np.where(r.random(shape) < 0.1, 10, 1),
}
"""Values of mean 0; contaminated: 10 % of the seeds have ten times the standard deviation."""
SEEDS = (3, 5, 8, 10, 20)


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize(
    ("kind", "low", "high"), [("normal", 0.95, 0.95), ("exponential", 0.88, 0.925), ("contaminated", 0.95, 0.98)]
)
def test_intervals_cover_what_the_documentation_says(kind, low, high, seeds):
    draws = KINDS[kind](np.random.default_rng(7), (3000, seeds))
    covered = np.mean([e.ci_low <= 0 <= e.ci_high for e in map(estimate, draws.tolist())])
    assert low - 0.012 < covered < high + 0.012  # 3 standard errors of 3,000 draws


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_variants_that_do_not_differ_are_found_different_no_more_often_than_5_percent(kind, seeds):
    """Six variants against a seventh that is drawn like them: a sweep in which nothing differs."""
    sweeps = KINDS[kind](np.random.default_rng(9), (500, 7, seeds))
    found = [[compare_paired(d) for d in (sweep[1:] - sweep[0]).tolist()] for sweep in sweeps]
    excluded = np.array([[p.difference.excludes_zero for p in family] for family in found])
    assert excluded.mean() < 0.05 + 0.016  # six dependent comparisons: at most 500 x 6, at least 500 draws
    assert excluded.any(1).mean() < 0.30  # below 1 - 0.95^6 = 0.265, and noise; a BCa bootstrap has 0.66 at 10
    tested = [holm([p.p for p in family]) for family in found if family[0].p is not None]
    assert (not tested) == (seeds < 6)
    if tested:
        assert np.mean([min(adjusted) <= 0.05 for adjusted in tested]) < 0.05 + 0.03


# -- Shares ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("successes", "trials"), [(0, 3), (1, 3), (3, 3), (5, 6), (7, 20)])
def test_the_interval_of_a_share_is_clopper_and_pearsons(successes, trials):
    reference = stats.binomtest(successes, trials).proportion_ci(0.95, method="exact")
    assert clopper_pearson(successes, trials) == pytest.approx((reference.low, reference.high), abs=1e-12)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(3, 10, 0.0667, 0.6525), (5, 10, 0.1871, 0.8129), (3, 3, 0.025 ** (1 / 3), 1.0), (0, 5, 0.0, 1 - 0.025**0.2)],
)
def test_the_interval_of_a_share_is_the_tables(successes, trials, low, high):
    assert clopper_pearson(successes, trials) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("trials", [3, 5, 8])
def test_the_interval_of_a_share_covers_at_least_what_it_says_whatever_the_share(trials):
    intervals = [clopper_pearson(k, trials) for k in range(trials + 1)]
    for share in np.linspace(0.01, 0.99, 99):
        weights = stats.binom.pmf(range(trials + 1), trials, share)
        assert sum(w for w, (low, high) in zip(weights, intervals, strict=True) if low <= share <= high) >= 0.95


# -- Paired differences ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "differences",
    [
        [0.5, 1.2, -0.3, 0.8, 2.0, 0.1],
        [-0.5, -1.2, 0.3, -0.8, -2.0, -0.1, -0.7],
        [1.0, 1.0, 2.0, -1.0, 0.5, 0.5, -2.0, 3.0],
        [3.0, 0.0, 1.0, 2.0, -1.0, 0.0, 4.0],
    ],
    ids=["6 seeds", "7 seeds, negative", "8 seeds with ties", "7 seeds with zeros"],
)
def test_the_sign_flip_p_is_scipys_exact_permutation_test(differences):
    reference = stats.permutation_test(
        (np.array(differences),), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert sign_flip_p(differences) == pytest.approx(reference.pvalue, abs=1e-12)


@pytest.mark.parametrize("differences", [[0.0] * 6, [0.1, 0.2, -0.3, 0.1, 0.2, -0.3], [0.1, 0.7, -0.8, 0.2, 0.6, -0.8]])
def test_differences_that_cancel_have_a_p_of_one_whatever_their_rounding(differences):
    assert sign_flip_p(differences) == 1.0


@pytest.mark.parametrize("seeds", [6, 7, 13])
def test_differences_of_one_sign_reach_the_smallest_p(seeds):
    assert sign_flip_p([1.0 + i for i in range(seeds)]) == smallest_p(seeds) == 2 / 2**seeds
    assert sign_flip_p([-1.0 - i for i in range(seeds)]) == smallest_p(seeds)


def test_above_thirteen_seeds_random_flips_come_near_the_exact_p_and_repeat():
    differences = [0.4, -0.2, 0.9, 0.1, -0.5, 0.3, 0.6, -0.1, 0.2, 0.7, -0.4, 0.5, -0.3, 0.2]
    flips = np.array(list(itertools.product((1, -1), repeat=14)))
    exact = float(np.mean(np.abs(flips @ differences) >= sum(differences) - 1e-9))
    assert 0.05 < exact < 0.3
    assert sign_flip_p(differences) == pytest.approx(exact, abs=0.015)
    assert sign_flip_p(differences) == sign_flip_p(differences)
    assert sign_flip_p([1.0] * 40) == smallest_p(40) == 1e-4


@pytest.mark.parametrize("seeds", [6, 8])
def test_the_sign_flip_test_finds_no_more_false_differences_than_it_says(seeds):
    draws = np.random.default_rng(11).normal(0, 1, (8000, seeds))
    rate = np.mean([sign_flip_p(row) <= 0.05 for row in draws.tolist()])
    attainable = math.floor(0.05 * 2 ** (seeds - 1)) / 2 ** (seeds - 1)  # p comes in steps of 2 / 2^n
    assert rate == pytest.approx(attainable, abs=0.007)
    assert rate <= 0.05


def test_five_seeds_give_no_p_and_six_do():
    assert compare_paired([1.0, 1.1, 1.2, 1.3, 1.4]).p is None
    assert compare_paired([1.0, 1.1, 1.2, 1.3, 1.4, 1.5]).p == 2 / 64


def test_a_paired_comparison_is_what_one_works_out_by_hand():
    found = compare_paired([-3.0, -4.0, -5.0])
    assert found.difference == estimate([-3.0, -4.0, -5.0])
    assert found.effect == pytest.approx(-4.0 / math.sqrt(math.pi))  # mean -4, sd 1, J(2) = 1 / sqrt(pi)
    assert (found.p, found.smallest_p) == (None, 0.25)
    assert compare_paired([1.0, 2.0]).effect is None
    assert compare_paired([1.0]).difference.ci_low is None
    assert compare_paired([]) is None


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [
        (2, 1 / math.sqrt(math.pi)),
        (4, math.sqrt(2 / math.pi)),
        (10, 24 / (math.sqrt(5) * math.gamma(4.5))),
        (2000, 1 - 3 / 7999),
    ],
)
def test_hedges_correction_is_its_formula(freedom, expected):
    assert hedges_correction(freedom) == pytest.approx(expected, abs=5e-5)


def test_hedges_correction_removes_the_bias_of_a_standardised_difference():
    draws = np.random.default_rng(12).normal(1.0, 1.0, (40_000, 6))
    raw = np.mean(draws.mean(1) / draws.std(1, ddof=1))
    assert raw > 1.1
    assert raw * hedges_correction(5) == pytest.approx(1.0, abs=0.02)


# -- Many comparisons --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # x 4, 3, 2, 1 from the smallest, never falling
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.6, 0.5, 0.9], [1.0, 1.0, 1.0]),
        ([0.03], [0.03]),
        ([], []),
    ],
)
def test_holms_correction_is_what_one_works_out_by_hand(p_values, adjusted):
    assert holm(p_values) == pytest.approx(adjusted)


@pytest.mark.parametrize(("comparisons", "seeds"), [(1, 6), (2, 7), (5, 8), (6, 8), (7, 9), (20, 10)])
def test_the_seeds_that_a_correction_needs_are_the_fewest_that_can_reach_5_percent(comparisons, seeds):
    assert seeds_needed(comparisons) == seeds
    assert smallest_p(seeds) * comparisons <= 0.05 < smallest_p(seeds - 1) * comparisons
