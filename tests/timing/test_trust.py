from __future__ import annotations

import random

from edgekd.timing.trust import judge
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
) -> Trust:
    wall_ms = [waits * time for time in cpu_ms]
    lost = [at < preempted for at in range(len(cpu_ms))]
    return judge(wall_ms, cpu_ms, lost, blocks=blocks, load=load, cores=cores, threads=threads)


def test_steady_times_on_a_quiet_machine_are_good():
    assert verdict(times()) == Trust(verdict=TrustVerdict.GOOD)


def test_a_few_late_samples_do_not_make_a_measurement_noisy():
    found = times()
    found[::50] = [5.0] * len(found[::50])
    assert verdict(found).verdict is TrustVerdict.GOOD


def test_cpu_times_that_vary_are_noisy():
    assert "CPU times vary by" in verdict(times(sigma=0.2)).reasons[0]


def test_a_drift_from_the_first_block_to_the_last_is_noisy():
    assert "drifted by +" in verdict(times(drift=0.3)).reasons[-1]
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
