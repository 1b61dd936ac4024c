from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, wilcoxon

from edgekd.errors import DeviceError, UsageError
from edgekd.timing.duet import (
    decide,
    exact_alpha,
    fail_p,
    hodges_lehmann,
    holm,
    noise_floor,
    pair_log_ratio,
    pairs_needed,
    ratio_of,
    signed_rank_bounds,
    signed_rank_p,
    turn_times,
)
from edgekd.values.conditions import Conditions, Hardware, Load, Software, Trust, TrustVerdict
from edgekd.values.gate import Clock, GateRules, GateVerdict
from edgekd.values.latency import Latency, Protocol

ALPHAS = st.sampled_from([0.25, 0.05, 0.01, 0.01 / 6])
DISTINCT = st.lists(st.integers(-(10**6), 10**6), min_size=1, max_size=30, unique_by=abs)
WHOLE = st.lists(st.integers(-20, 20), min_size=1, max_size=9)  # with ties and zeros
RATIOS = st.lists(st.floats(-0.5, 0.5), min_size=1, max_size=30)


def latency(
    blocks: Sequence[Sequence[float]], *, lost: Sequence[bool] = (), cpu: Sequence[float] = ()
) -> Latency:
    samples_ms = tuple(ms for block in blocks for ms in block)
    return Latency(
        samples_ms=samples_ms,
        cpu_ms=tuple(cpu) or samples_ms,
        protocol=Protocol(launches=1),
        conditions=Conditions(
            hardware=Hardware(machine="m", processor="p", cores=2, memory_mib=1, features=()),
            software=Software(system="s", kernel="k", python="3", runtimes={}, governor="unknown"),
            load=Load(load_average=0, others_percent=0, steal_percent=0, involuntary_switches=0),
        ),
        trust=Trust(verdict=TrustVerdict.GOOD),
        preempted=tuple(lost),
        block_sizes=tuple(len(block) for block in blocks),
    )


def walsh(values: Sequence[float]) -> list[float]:
    return sorted((a + b) / 2 for a, b in itertools.combinations_with_replacement(values, 2))


def chance_of_at_most(rank_sum: int, count: int) -> float:
    """Toss every coin: the law of the signed-rank statistic by brute force."""
    sums = [
        sum(rank for rank, heads in enumerate(tosses, 1) if heads)
        for tosses in itertools.product((False, True), repeat=count)
    ]
    return sum(total <= rank_sum for total in sums) / len(sums)


@given(RATIOS)
def test_the_estimate_is_the_median_of_the_means_of_all_couples(values: list[float]):
    assert hodges_lehmann(values) == pytest.approx(median(walsh(values)), abs=1e-15)


@given(DISTINCT, st.integers(-100, 100))
def test_the_p_value_is_scipys_where_nothing_is_tied(values: list[int], shift: int):
    moved = [value - shift for value in values]
    if 0 in moved or len({abs(value) for value in moved}) < len(moved):
        moved = values
        shift = 0
    if 0 in moved:
        return
    expected = wilcoxon(moved, alternative="greater", method="exact").pvalue
    assert signed_rank_p([value + shift for value in moved], shift) == pytest.approx(expected, rel=1e-9)


@given(WHOLE, st.integers(-20, 20))
@settings(deadline=None)
def test_ties_and_zeros_never_make_the_p_value_smaller(values: list[int], shift: int):
    # Whichever way ties are broken: averages at the shift could be nudged to either side of it.
    above = sum(average > shift for average in walsh(values))
    most = len(values) * (len(values) + 1) // 2
    assert signed_rank_p(values, shift) == pytest.approx(chance_of_at_most(most - above, len(values)))
    nudged = [value - 1e-3 * (at + 1) / len(values) for at, value in enumerate(values)]
    assert signed_rank_p(values, shift) == pytest.approx(signed_rank_p(nudged, shift))  # ties fall below


@given(WHOLE, ALPHAS)
@settings(deadline=None)
def test_bounds_are_the_shifts_that_the_test_rejects_by_brute_force(values: list[int], alpha: float):
    averages = walsh(values)
    rejected_below = [
        shift
        for shift in averages
        if chance_of_at_most(sum(average <= shift for average in averages), len(values)) <= alpha
    ]
    low, high = signed_rank_bounds(values, alpha)
    least = chance_of_at_most(0, len(values))
    # Below the smallest average every shift is rejected, if any is.
    expected = (
        next((a for a in averages if a not in rejected_below), -math.inf) if least <= alpha else -math.inf
    )
    assert low == expected
    assert high == -signed_rank_bounds([-value for value in values], alpha)[0]


@given(RATIOS, ALPHAS)
def test_a_bound_and_its_p_value_say_the_same(values: list[float], alpha: float):
    low, _ = signed_rank_bounds(values, alpha)
    for shift in (low, math.nextafter(low, -math.inf), 0.0):
        if math.isfinite(shift):
            assert (low > shift) == (signed_rank_p(values, shift) <= alpha)


@given(RATIOS, ALPHAS)
def test_exchanging_the_arms_inverts_the_ratio(values: list[float], alpha: float):
    other = [-value for value in values]
    assert hodges_lehmann(other) == -hodges_lehmann(values)
    low, high = signed_rank_bounds(values, alpha)
    assert signed_rank_bounds(other, alpha) == (-high, -low)
    here, there = ratio_of(values, alpha), ratio_of(other, alpha)
    assert there.estimate == pytest.approx(1 / here.estimate, rel=1e-15)
    if here.low:
        assert there.high == pytest.approx(1 / here.low, rel=1e-15)


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=30), st.integers(-1000, 1000), ALPHAS)
def test_a_shift_of_all_pairs_shifts_estimate_and_bounds_by_as_much(
    values: list[int], shift: int, alpha: float
):
    moved = [value + shift for value in values]
    assert hodges_lehmann(moved) == hodges_lehmann(values) + shift
    before = signed_rank_bounds(values, alpha)
    assert signed_rank_bounds(moved, alpha) == tuple(bound + shift for bound in before)


def test_too_few_pairs_bound_nothing():
    assert signed_rank_bounds([0.1] * 6, 0.01) == (-math.inf, math.inf)  # 2^-6 is 1.6 %
    assert signed_rank_bounds([0.1] * 7, 0.01) == (0.1, 0.1)
    assert exact_alpha(6, 0.01) == 0.0
    found = ratio_of([0.1] * 6, 0.01)
    assert (found.low, found.high, found.confidence) == (0.0, math.inf, 0.99)


def test_the_exact_chance_to_err_is_below_the_asked_one_and_near_it_for_many_pairs():
    assert exact_alpha(10, 0.01) == 10 / 1024  # of 1024 signs, those whose rank sum is at most 5
    assert 0.0099 < exact_alpha(60, 0.01) <= 0.01


def test_many_values_have_an_exact_law_too():
    rng = np.random.default_rng(0)
    values = rng.normal(0.1, 1.0, 200)
    statistic = wilcoxon(values, alternative="greater", method="asymptotic", correction=True)
    assert signed_rank_p(list(values), 0.0) == pytest.approx(statistic.pvalue, rel=0.02)


def test_no_values_are_a_fault_of_the_caller():
    with pytest.raises(ValueError, match="no values"):
        hodges_lehmann([])


def test_a_pair_compares_turn_by_turn():
    # The machine slows down threefold meanwhile; the candidate is a tenth slower in every round.
    base = latency([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    candidate = latency([[1.1, 1.1], [2.2, 2.2], [3.3, 3.3]])
    assert pair_log_ratio(base, candidate, Clock.WALL) == pytest.approx(math.log(1.1))
    assert pair_log_ratio(candidate, base, Clock.WALL) == -pair_log_ratio(base, candidate, Clock.WALL)


def test_inferences_that_lost_the_core_do_not_count_unless_all_did():
    base = latency([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    some = latency([[1.2, 9.0, 9.0], [1.2, 9.0, 9.0]], lost=[False, True, True] * 2)
    every = latency([[1.2, 9.0, 9.0], [1.2, 9.0, 9.0]], lost=[True] * 6)
    assert pair_log_ratio(base, some, Clock.WALL) == pytest.approx(math.log(1.2))
    assert pair_log_ratio(base, every, Clock.WALL) == pytest.approx(math.log(9.0))


def test_the_clock_that_is_asked_for_decides():
    base, candidate = latency([[2.0, 2.0]]), latency([[4.0, 4.0]], cpu=[2.5, 2.5])
    assert pair_log_ratio(base, candidate, Clock.WALL) == pytest.approx(math.log(2))
    assert pair_log_ratio(base, candidate, Clock.CPU) == pytest.approx(math.log(1.25))


def test_a_turn_is_stood_for_by_the_median_of_the_wall_clock_and_the_lower_quartile_of_the_cpu_clock():
    turns = latency([[1.0, 2.0, 3.0, 4.0, 9.0], [5.0]], cpu=[1.0, 2.0, 3.0, 4.0, 9.0, 5.0])
    assert turn_times(turns, Clock.WALL) == [3.0, 5.0]
    assert turn_times(turns, Clock.CPU) == [2.0, 5.0]


def test_a_latency_without_turns_is_one_turn():
    base, candidate = latency([]), latency([[3.0]])
    whole = Latency(**{**base.__dict__, "samples_ms": (2.0, 2.0, 9.0), "cpu_ms": (1.0,) * 3})
    assert pair_log_ratio(whole, candidate, Clock.WALL) == pytest.approx(math.log(1.5))


@pytest.mark.parametrize("cpu", [(0.0, 0.0), ()])
def test_a_clock_that_showed_no_time_is_said(cpu: tuple[float, ...]):
    broken = latency([[1.0, 1.0]], cpu=cpu) if cpu else latency([[], [1.0]])
    with pytest.raises(DeviceError, match="clock showed no time"):
        pair_log_ratio(broken, latency([[1.0]] * len(broken.block_sizes)), Clock.CPU)


def test_arms_with_different_numbers_of_turns_are_no_pair():
    with pytest.raises(ValueError, match="turns"):
        pair_log_ratio(latency([[1.0]]), latency([[1.0], [1.0]]), Clock.WALL)


RULES = GateRules()
PAIRS = st.sampled_from(RULES.looks)


@given(st.data(), PAIRS)
@settings(max_examples=50)
def test_pairs_that_are_all_within_the_margin_never_fail(data: st.DataObject, pairs: int):
    within = st.floats(-0.5, math.log1p(RULES.margin))
    values = data.draw(st.lists(within, min_size=pairs, max_size=pairs))
    assert decide(values, RULES, RULES.alpha) is not GateVerdict.FAIL
    assert fail_p(values, RULES) > RULES.alpha


@given(st.data(), PAIRS, st.floats(-0.1, 0.1), st.sampled_from([RULES.alpha, RULES.alpha / 3]))
@settings(max_examples=50)
def test_a_verdict_says_on_which_side_of_the_margin_the_bounds_are(
    data: st.DataObject, pairs: int, centre: float, alpha: float
):
    noise = data.draw(st.lists(st.floats(-0.03, 0.03), min_size=pairs, max_size=pairs))
    values, margin = [centre + value for value in noise], math.log1p(RULES.margin)
    low, _ = signed_rank_bounds(values, alpha / 6)
    _, high = signed_rank_bounds(values, RULES.alpha / 6)
    undecided = GateVerdict.INCONCLUSIVE if pairs == 60 else None
    improved, passed = high < -margin, high < margin
    expected = GateVerdict.IMPROVED if improved else GateVerdict.PASS if passed else undecided
    assert decide(values, RULES, alpha) is (GateVerdict.FAIL if low > margin else expected)
    if alpha == RULES.alpha:
        assert (low > margin) == (fail_p(values, RULES) <= alpha)


@pytest.mark.parametrize(
    ("slowdown", "verdict"),
    [(0.05, GateVerdict.FAIL), (0.0, GateVerdict.PASS), (-0.2, GateVerdict.IMPROVED)],
)
def test_clear_cases_are_decided_at_the_first_look(slowdown: float, verdict: GateVerdict):
    values = [math.log1p(slowdown) + 0.001 * at for at in range(-5, 5)]
    assert decide(values, RULES, RULES.alpha) is verdict
    assert decide(values[:9], RULES, RULES.alpha) is None
    assert decide([*values, values[0]], RULES, RULES.alpha) is None  # 11 pairs are no look


def test_the_margin_itself_stays_inconclusive():
    values = [math.log1p(0.03) + 0.01 * (-1) ** at for at in range(60)]
    assert decide(values[:40], RULES, RULES.alpha) is None
    assert decide(values, RULES, RULES.alpha) is GateVerdict.INCONCLUSIVE
    assert decide([*values, *values], RULES, RULES.alpha) is GateVerdict.INCONCLUSIVE


def test_several_comparisons_make_a_fail_harder_and_a_pass_no_harder():
    slow, same = [0.05 + 0.001 * at for at in range(10)], [0.001 * at for at in range(10)]
    assert decide(slow, RULES, RULES.alpha) is GateVerdict.FAIL
    assert decide(slow, RULES, RULES.alpha / 3) is None
    assert decide(same, RULES, RULES.alpha / 3) is GateVerdict.PASS


def test_looking_six_times_at_a_candidate_on_the_margin_fails_it_no_more_often_than_alpha():
    rules, rng = GateRules(alpha=0.05), np.random.default_rng(7)
    fails = 0
    for values in math.log1p(rules.margin) + 0.01 * rng.standard_t(3, (2000, 60)):
        seen = (decide(list(values[:pairs]), rules, rules.alpha) for pairs in rules.looks)
        fails += next(verdict for verdict in seen if verdict) is GateVerdict.FAIL
    assert 0 < fails <= 0.05 * 2000


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.001, 0.5))
def test_holm_rejects_by_its_definition(p_values: list[float], alpha: float):
    found = holm(p_values, alpha)
    ordered = sorted(p_values)
    passing = [p <= alpha / (len(ordered) - at) for at, p in enumerate(ordered)]
    rejected = passing.index(False) if False in passing else len(passing)
    assert sum(found) == rejected
    assert all(p_values[at] <= alpha for at, yes in enumerate(found) if yes)
    assert sum(found) >= sum(p <= alpha / len(p_values) for p in p_values)  # as many as Bonferroni


def test_holm_stops_at_the_first_that_is_too_large():
    assert holm([0.01, 0.04, 0.03], 0.05) == (True, False, False)
    assert holm([0.01, 0.04, 0.02], 0.05) == (True, True, True)


def test_the_noise_floor_of_normal_pairs_is_their_spread_whatever_a_few_bursts_do():
    values = norm.ppf((np.arange(100) + 0.5) / 100) * 0.02 + 0.3
    assert noise_floor(list(values)) == pytest.approx(0.02, rel=0.02)
    values[-10:] += 5
    assert noise_floor(list(values)) == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize(
    ("noise", "needed"),
    [(0.0, (10, 10, 10)), (0.01, (10, 10, 10)), (0.02, (24, 10, 10)), (0.05, (149, 25, 26))],
)
def test_the_pairs_needed_are_those_of_the_published_table(noise: float, needed: tuple[int, ...]):
    questions = ((0.05, 0.03), (0.08, 0.03), (0.10, 0.05))
    assert tuple(pairs_needed(noise, effect, margin, RULES) for effect, margin in questions) == needed


def test_at_the_look_after_the_pairs_needed_a_slowdown_is_found_in_nineteen_of_twenty_cases():
    needed, rng = pairs_needed(0.02, 0.05, 0.03, RULES), np.random.default_rng(3)
    pairs = next(look for look in RULES.looks if look >= needed)
    values = math.log1p(0.05) + rng.normal(0.0, 0.02, (1000, pairs))
    verdicts = [decide(list(row), RULES, RULES.alpha) for row in values]
    assert verdicts.count(GateVerdict.FAIL) >= 950


def test_a_slowdown_within_the_margin_is_found_by_no_number_of_pairs():
    with pytest.raises(UsageError, match="within the margin"):
        pairs_needed(0.01, 0.03, 0.03, RULES)
