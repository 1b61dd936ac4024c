"""A device of known costs is recovered from few measurements, and what is stated of the errors is true."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from edgekd.errors import DataError
from edgekd.surrogates.encodings import encode
from edgekd.surrogates.latency import choose, fit, learn_prior
from edgekd.surrogates.priors import families, prices

Floats = NDArray[np.float64]
POSITIONS, KINDS = 8, 5


def architectures(count: int = 600) -> Floats:
    rng = np.random.default_rng(1)
    return encode(rng.integers(0, KINDS, (count, POSITIONS)), [f"op{kind}" for kind in range(KINDS)])


def device(seed: int, rows: Floats, noise: float = 0.02) -> Floats:
    """Return latencies of a device: each kind has a price, each position a size, both its own in part."""
    common, own = np.random.default_rng(7), np.random.default_rng(100 + seed)
    kinds = np.exp(common.normal(size=KINDS) + 0.2 * own.normal(size=KINDS))
    sizes = np.exp(0.5 * common.normal(size=POSITIONS) + 0.15 * own.normal(size=POSITIONS))
    ms = rows @ np.outer(sizes, kinds).ravel() * np.exp(own.normal())
    return ms * np.exp(noise * own.normal(size=len(rows)))


ROWS = architectures()
OTHERS = np.array([device(seed, ROWS) for seed in range(8)])
PRIOR = learn_prior(ROWS, OTHERS, positions=POSITIONS)


def rank(forecast_ms: Floats, truth_ms: Floats) -> float:
    return float(spearmanr(forecast_ms, truth_ms).statistic)


def test_ten_measurements_and_other_devices_rank_a_new_one_that_ten_alone_do_not():
    known, alone = [], []
    for seed in range(20, 26):
        truth_ms = device(seed, ROWS)
        at = np.random.default_rng(seed).choice(len(ROWS), 10, replace=False)
        known.append(rank(fit(ROWS[at], truth_ms[at], PRIOR).forecast(ROWS).median_ms, truth_ms))
        alone.append(rank(fit(ROWS[at], truth_ms[at], None).forecast(ROWS).median_ms, truth_ms))
    assert np.mean(known) >= 0.93
    assert np.mean(alone) <= np.mean(known) - 0.1


def test_chosen_measurements_tell_more_than_drawn_ones():
    drawn, chosen = [], []
    for seed in range(20, 28):
        truth_ms = device(seed, ROWS)
        for at, ranks in (
            (np.random.default_rng(seed).choice(len(ROWS), 5, replace=False), drawn),
            (choose(PRIOR, ROWS, 5), chosen),
        ):
            ranks.append(rank(fit(ROWS[at], truth_ms[at], PRIOR).forecast(ROWS).median_ms, truth_ms))
    assert np.mean(chosen) > np.mean(drawn)


def test_the_stated_interval_holds_about_nine_in_ten():
    held = []
    for seed in range(20, 32):
        truth_ms = device(seed, ROWS)
        at = np.random.default_rng(seed).choice(len(ROWS), 12, replace=False)
        forecast = fit(ROWS[at], truth_ms[at], PRIOR).forecast(ROWS)
        held.append(
            np.mean((truth_ms >= forecast.quantile_ms(0.05)) & (truth_ms <= forecast.quantile_ms(0.95)))
        )
    assert 0.8 <= np.mean(held) <= 0.97


def test_a_device_ten_times_as_slow_is_ten_times_as_slow():
    truth_ms, at = device(30, ROWS), np.arange(10)
    one, ten = (fit(ROWS[at], factor * truth_ms[at], PRIOR).forecast(ROWS) for factor in (1.0, 10.0))
    np.testing.assert_allclose(ten.median_ms, 10 * one.median_ms, rtol=1e-6)
    np.testing.assert_allclose(ten.spread, one.spread, rtol=1e-6)


def test_many_measurements_outweigh_a_prior_that_is_wrong():
    contrary_ms = OTHERS.mean() * 2 / (1 + device(0, ROWS) / device(0, ROWS).mean())
    surrogate = fit(ROWS[:400], contrary_ms[:400], PRIOR)
    assert rank(surrogate.forecast(ROWS[400:]).median_ms, contrary_ms[400:]) >= 0.9


def test_the_line_is_what_is_forecast():
    surrogate = fit(ROWS[:10], device(30, ROWS)[:10], PRIOR)
    start_ms, slopes = surrogate.line()
    forecast = surrogate.forecast(ROWS)
    above = forecast.median_ms > forecast.median_ms.mean() / 10
    np.testing.assert_allclose((start_ms + ROWS @ slopes)[above], forecast.median_ms[above], rtol=1e-6)


def test_what_is_expected_of_a_measurement_left_out_is_what_the_others_say():
    truth_ms = device(30, ROWS)
    left_out_ms = fit(ROWS[:12], truth_ms[:12], PRIOR).left_out_ms()
    others = fit(np.delete(ROWS[:12], 4, 0), np.delete(truth_ms[:12], 4), PRIOR)
    assert left_out_ms[4] == pytest.approx(others.forecast(ROWS[4:5]).median_ms[0], rel=0.05)


def test_quantiles_are_ordered_and_positive():
    forecast = fit(ROWS[:5], device(31, ROWS)[:5], PRIOR).forecast(ROWS)
    low, high = forecast.quantile_ms(0.05), forecast.quantile_ms(0.95)
    assert (low > 0).all()
    assert (low < forecast.median_ms).all()
    assert (forecast.median_ms < high).all()


def test_what_was_not_measured_is_nan_and_teaches_nothing():
    gaps = device(30, ROWS).copy()
    gaps[3] = np.nan
    whole = fit(np.delete(ROWS[:10], 3, 0), np.delete(gaps[:10], 3), PRIOR).forecast(ROWS)
    np.testing.assert_allclose(fit(ROWS[:10], gaps[:10], PRIOR).forecast(ROWS).median_ms, whole.median_ms)


def test_a_device_measured_in_part_or_constant_does_not_spoil_a_prior():
    table = np.vstack([OTHERS, np.full(len(ROWS), 3.0), np.full(len(ROWS), np.nan)])
    table[0, 300:] = np.nan
    assert len(prices(ROWS, table, POSITIONS).each) == len(OTHERS)


def test_devices_that_rank_alike_are_one_family():
    table = np.vstack([OTHERS[:3], 2.5 * OTHERS[1]])
    found = families(prices(ROWS, table, POSITIONS).each, ROWS)
    assert any({1, 3} <= set(group.tolist()) for group in found)
    assert sorted(np.concatenate(found).tolist()) == [0, 1, 2, 3]


def test_a_choice_near_the_budget_is_near_it():
    truth_ms = device(30, ROWS)
    surrogate = fit(ROWS[:10], truth_ms[:10], PRIOR)
    expected_ms = surrogate.forecast(ROWS).median_ms
    budget_ms = float(np.quantile(expected_ms, 0.2))
    near, anywhere = (choose(surrogate, ROWS, 5, near_ms=near_ms) for near_ms in (budget_ms, None))
    assert len(set(near.tolist())) == 5

    def off(at: NDArray[np.intp]) -> float:
        return float(np.abs(np.log(expected_ms[at] / budget_ms)).mean())

    assert off(near) < 0.7 * off(anywhere)


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_a_latency_that_is_not_above_zero_is_refused(bad: float):
    with pytest.raises(DataError, match="above 0"):
        fit(ROWS[:2], np.array([1.0, bad]), PRIOR)
    with pytest.raises(DataError, match="above 0"):
        learn_prior(ROWS, np.vstack([OTHERS[:1], np.full((1, len(ROWS)), bad)]))


def test_other_features_nothing_measured_or_too_small_a_pool_are_refused():
    with pytest.raises(DataError, match="shape"):
        fit(ROWS[:3], np.ones(3), PRIOR).forecast(ROWS[:, :-1])
    with pytest.raises(DataError, match="no device"):
        learn_prior(ROWS, np.full((2, len(ROWS)), np.nan))
    with pytest.raises(DataError, match="pool"):
        choose(PRIOR, ROWS[:3], 4)
    with pytest.raises(DataError, match="nothing"):
        fit(ROWS[:0], np.zeros(0), None)
