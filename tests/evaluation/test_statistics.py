from __future__ import annotations

import numpy as np
import pytest

from fabric.evaluation.statistics import bootstrap_interval, even_chance, wilson


def test_exact_tests_have_the_values_of_the_binomial_distribution() -> None:
    assert even_chance(2, 10) == even_chance(10, 2) == pytest.approx(158 / 4096)
    assert even_chance(0, 5) == pytest.approx(1 / 16)
    assert even_chance(0, 0) == even_chance(5, 5) == even_chance(1, 0) == 1.0
    assert even_chance(401, 600) == pytest.approx(3.8e-10, rel=0.1)  # 6.26 deviations of the normal distribution
    assert 0 < even_chance(100000, 100400) < 1


def test_intervals_of_shares_are_those_of_the_books() -> None:
    assert wilson(10, 20) == pytest.approx((0.2993, 0.7007), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_a_bootstrapped_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    rows = np.random.default_rng(5).normal(0.3, 2.0, 400)
    low, high = bootstrap_interval(rows, np.ones(400))
    reach = 1.96 * rows.std() / 20
    assert (low, high) == pytest.approx((rows.mean() - reach, rows.mean() + reach), abs=0.03)
    assert bootstrap_interval(3 * rows, 3 * np.ones(400)) == pytest.approx((low, high))
    assert bootstrap_interval(rows, np.ones(400)) == (low, high)
