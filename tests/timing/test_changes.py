from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_ind

from edgekd.timing.changes import change_points


def noisy(*levels: tuple[int, float], seed: int = 0, spread: float = 0.01) -> list[float]:
    rng = np.random.default_rng(seed)
    return [float(level + spread * rng.normal()) for count, level in levels for _ in range(count)]


@given(st.integers(5, 120), st.integers(5, 120), st.floats(0.001, 10))
@settings(deadline=None)
def test_a_step_without_noise_is_found_where_it_is(before: int, after: int, height: float):
    (change,) = change_points([1.0] * before + [1.0 + height] * after)
    assert change.at == before
    assert change.p < 1e-30


@given(st.lists(st.floats(0.5, 2.0), max_size=150))
@settings(deadline=None)
def test_changes_are_in_order_significant_and_at_least_a_level_apart(values: list[float]):
    found = change_points(values, p=0.01)
    edges = [0, *(change.at for change in found), len(values)]
    assert all(later - earlier >= 5 for earlier, later in itertools.pairwise(edges) if found)
    assert all(change.p < 0.01 for change in found)
    assert all(one.after == other.before for one, other in itertools.pairwise(found))


def test_a_step_has_its_place_its_levels_and_scipys_p():
    series = noisy((30, 1.0), (20, 1.05))
    (change,) = change_points(series)
    assert change.at == 30
    assert change.before == pytest.approx(np.mean(series[:30]))
    assert change.after == pytest.approx(np.mean(series[30:]))
    assert change.p == pytest.approx(ttest_ind(series[:30], series[30:]).pvalue, rel=1e-6)


def test_changes_that_cancel_and_changes_that_add_up_are_all_found():
    there_and_back = change_points(noisy((60, 1.0), (5, 1.06), (60, 1.0)))
    assert [change.at for change in there_and_back] == [60, 65]
    stairs = change_points(noisy((30, 1.0), (30, 1.05), (30, 1.1), (30, 1.15)))
    assert [change.at for change in stairs] == [30, 60, 90]


def test_five_per_cent_at_one_per_cent_of_noise_are_found_after_five_values():
    for seed in range(20):
        found = change_points(noisy((50, 1.0), (5, 1.05), seed=seed))
        assert [48 <= change.at <= 52 for change in found] == [True]


@pytest.mark.parametrize("family", ["normal", "laplace", "standard_t"])
def test_a_series_without_a_change_has_one_in_a_hundred_cases_at_most(family: str):
    rng, degrees = np.random.default_rng(11), {"standard_t": (3,)}.get(family, ())
    noise = getattr(rng, family)(*degrees, size=(500, 100))
    assert sum(bool(change_points(1.0 + 0.01 * row)) for row in noise) <= 5


def test_outliers_are_no_change():
    series = noisy((100, 1.0))
    series[20] = series[70] = series[71] = 1.2
    assert change_points(series) == ()


@given(st.floats(-1e6, 1e6), st.integers(0, 120))
@settings(deadline=None)
def test_a_constant_series_never_changes(value: float, count: int):
    assert change_points([value] * count) == ()


def test_rounding_is_no_change():
    series = [0.1 + 1e-16 * (at // 30) for at in range(60)]
    assert change_points(series) == ()


@given(st.floats(0.1, 10), st.floats(-5, 5))
@settings(deadline=None, max_examples=30)
def test_the_unit_does_not_matter(scale: float, offset: float):
    series = noisy((30, 1.0), (30, 1.05), (30, 1.0), seed=2)
    places = [change.at for change in change_points(series)]
    assert [change.at for change in change_points([scale * value + offset for value in series])] == places


def test_a_stricter_p_keeps_fewer_and_a_longer_least_asks_for_more():
    series = noisy((20, 1.0), (20, 1.02), (4, 1.06))
    assert len(change_points(series, p=1e-30)) < len(change_points(series))
    assert all(change.at <= 34 for change in change_points(series, least=10))
    assert change_points(series[:9]) == ()  # too short for two levels


def test_what_is_no_series_is_a_fault_of_the_caller():
    with pytest.raises(ValueError, match="finite"):
        change_points([1.0, float("nan")])
    with pytest.raises(ValueError, match="2 values"):
        change_points([1.0, 2.0], least=1)
