from __future__ import annotations

import random
from dataclasses import replace

import pytest

from edgekd.timing.trust import judge, limited
from edgekd.values.conditions import Load, Trust, TrustVerdict

QUIET = Load(load_average=0.1, others_percent=1.0, steal_percent=0.0, involuntary_switches=0)


def times(*, sigma: float = 0.02, drift: float = 0.0, count: int = 400) -> list[float]:
    rng = random.Random(0)  # noqa: S311 - a test that repeats itself
    return [(1 + drift * at / count) * rng.gauss(1.0, sigma) for at in range(count)]


def verdict(
    cpu_ms: list[float],
    *,
    waits: float = 1.0,
    load: Load = QUIET,
    cores: int = 2,
    threads: int = 1,
    blocks: int = 4,
    preempted: int = 0,
    launches: int = 1,
    steady: bool = True,
) -> Trust:
    wall_ms = [waits * time for time in cpu_ms]
    lost = [at < preempted for at in range(len(cpu_ms))]
    sizes = [len(cpu_ms) // blocks] * blocks
    return judge(
        wall_ms,
        cpu_ms,
        lost,
        block_sizes=sizes,
        load=load,
        cores=cores,
        threads=threads,
        launches=launches,
        steady=steady,
    )


def test_steady_times_on_a_quiet_machine_are_good():
    assert verdict(times()) == Trust(verdict=TrustVerdict.GOOD)


def test_what_is_limited_is_noisy_for_that_reason_and_keeps_its_own():
    found = limited(verdict(times(sigma=0.2)), "taken by another program")
    assert found.reasons[0] == "taken by another program"
    assert "CPU times vary by" in found.reasons[1]
    assert limited(verdict(times()), "taken by another program").verdict is TrustVerdict.NOISY


def test_a_few_late_samples_do_not_make_a_measurement_noisy():
    found = times()
    found[::50] = [5.0] * len(found[::50])
    assert verdict(found).verdict is TrustVerdict.GOOD


def test_cpu_times_that_vary_are_noisy():
    assert "CPU times vary by" in verdict(times(sigma=0.2)).reasons[0]


def test_a_drift_from_the_first_block_to_the_last_is_noisy():
    assert any("drifted by +" in reason for reason in verdict(times(drift=0.3)).reasons)
    assert verdict(times(drift=0.02)).verdict is TrustVerdict.GOOD


def test_stolen_time_is_noisy():
    load = Load(load_average=0.1, others_percent=1.0, steal_percent=6.0, involuntary_switches=0)
    assert verdict(times(), load=load).reasons == ("the hypervisor took 6 % of a core",)


def test_busy_neighbours_are_noisy_only_where_they_can_be_in_the_way():
    load = Load(load_average=2.0, others_percent=95.0, steal_percent=0.0, involuntary_switches=0)
    assert "other processes used 95 % of a core" in verdict(times(), load=load, cores=2).reasons
    assert verdict(times(), load=load, cores=8).verdict is TrustVerdict.GOOD
    assert verdict(times(), load=load, cores=2, threads=2).verdict is TrustVerdict.NOISY


def test_waiting_for_a_processor_is_noisy_for_one_thread():
    assert "waited for a processor" in verdict(times(), waits=1.6).reasons[0]
    assert verdict(times(), waits=1.6, threads=2, cores=4).verdict is TrustVerdict.GOOD


def test_too_few_samples_decide_nothing():
    assert verdict([1.0, 1.0], blocks=1).verdict is TrustVerdict.NOISY


def test_losing_the_core_often_is_noisy_and_seldom_is_not():
    assert verdict(times(), preempted=60).reasons == (
        "15% of the inferences lost the core to other processes",
    )
    assert verdict(times(), preempted=20).verdict is TrustVerdict.GOOD


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (replace(QUIET, throttled=1), "throttled 1 time"),
        (replace(QUIET, throttled=3), "throttled 3 times"),
        (replace(QUIET, quota_ms=41.6), "the cgroup's CPU quota stopped it for 42 ms"),
        (replace(QUIET, lowest_mhz=1500.0, highest_mhz=2400.0), "clocks moved from 1500 to 2400 MHz"),
        (replace(QUIET, temperature_c=71.0, temperature_rise_c=15.0), "temperature rose by 15 C to 71 C"),
        (replace(QUIET, memory_pressure_percent=12.0), "processes waited for memory 12 % of the time"),
        (
            replace(QUIET, governor="powersave", governor_changed=True),
            "the frequency governor changed to powersave",
        ),
    ],
)
def test_what_the_machine_did_to_itself_is_a_reason(load: Load, reason: str):
    assert verdict(times(), load=load).reasons == (reason,)


def test_small_movements_of_the_machine_are_none():
    load = replace(
        QUIET,
        lowest_mhz=2300.0,
        highest_mhz=2400.0,
        temperature_c=60.0,
        temperature_rise_c=6.0,
        memory_pressure_percent=1.0,
    )
    assert verdict(times(), load=load).verdict is TrustVerdict.GOOD


def test_an_answer_that_changed_is_the_first_reason():
    assert "another answer" in verdict(times(), steady=False).reasons[0]


def test_launches_that_disagree_more_than_their_blocks_are_noisy():
    apart = [ms * (1.0, 1.06, 1.0)[at // 134] for at, ms in enumerate(times(sigma=0.005, count=402))]
    assert any("launches disagree by 6%" in one for one in verdict(apart, blocks=12, launches=3).reasons)
    alike = times(sigma=0.03, count=402)
    assert not any("launches" in one for one in verdict(alike, blocks=12, launches=3).reasons)
    assert not any("launches" in one for one in verdict(apart, blocks=3, launches=3).reasons)


def test_slow_spells_make_samples_that_depend_on_one_another():
    spells = [ms * (1.05 if at // 25 % 2 else 1.0) for at, ms in enumerate(times())]
    assert "consecutive samples depend on one another" in verdict(spells).reasons[0]
    faint = [1 + (ms - 1) / 20 for ms in spells]  # the same order, within 2 %
    assert verdict(faint).verdict is TrustVerdict.GOOD
