from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edgekd.timing import conditions
from edgekd.timing.conditions import Reading
from edgekd.timing.sensors import Sensed
from edgekd.values.conditions import Load

STAT = """cpu  9999 0 0 9999 0 0 0 9999 0 0
cpu0 100 10 40 800 50 5 5 30 20 0
cpu1 200 0 100 600 0 0 0 0 0 0
intr 1 2 3
"""


def reading(**changes: float) -> Reading:
    start = {"wall_s": 10.0, "busy_s": 5.0, "steal_s": 1.0, "own_s": 2.0, "involuntary_switches": 7}
    return Reading(**{**start, **changes})  # type: ignore[arg-type]


def between(old: Sensed, new: Sensed, throttles: int = 0) -> Load:
    before, after = reading(), reading(wall_s=11.0)
    return conditions.load_between(
        dataclasses.replace(before, sensed=old), dataclasses.replace(after, sensed=new), throttles
    )


def test_the_load_is_what_others_did_in_percent_of_one_core():
    load = conditions.load_between(
        reading(), reading(wall_s=12.0, busy_s=8.0, own_s=4.0, steal_s=1.1, involuntary_switches=9)
    )
    assert load.others_percent == pytest.approx(50.0)
    assert load.steal_percent == pytest.approx(5.0)
    assert load.involuntary_switches == 2


def test_coarse_ticks_never_make_a_negative_load():
    load = conditions.load_between(reading(), reading(wall_s=10.01, own_s=2.01))
    assert load.others_percent == 0.0


def test_only_the_processors_this_process_may_use_are_counted():
    ticks = conditions._TICKS_PER_S
    busy_s, steal_s = conditions._processor_times(STAT, {"0"})
    assert busy_s == pytest.approx((100 + 10 + 40 + 5 + 5) / ticks)
    assert steal_s == pytest.approx(30 / ticks)
    assert conditions._processor_times(STAT, {"0", "1"})[0] == pytest.approx(460 / ticks)


def test_a_system_without_proc_has_no_load():
    assert conditions._processor_times("", {"0"}) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("text", "cores"),
    [("150000 100000", 1.5), ("max 100000", float("inf")), ("-1", float("inf")), ("", float("inf"))],
)
def test_a_containers_quota_limits_the_cores(tmp_path: Path, text: str, cores: float):
    (tmp_path / "cpu.max").write_text(text)
    assert conditions._quota(tmp_path / "cpu.max") == cores


def test_the_older_form_of_a_quota_is_read_too(tmp_path: Path):
    (tmp_path / "cpu.cfs_quota_us").write_text("200000\n")
    (tmp_path / "cpu.cfs_period_us").write_text("100000\n")
    assert conditions._quota(tmp_path / "cpu.cfs_quota_us") == 2.0


def test_a_quota_of_one_and_a_half_counts_as_one_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "cpu.max").write_text("150000 100000")
    monkeypatch.setattr(conditions, "_CGROUPS", (tmp_path / "cpu.max",))
    monkeypatch.setattr(conditions, "_processors", lambda: set(range(8)))
    assert conditions.cores() == 1


@pytest.mark.parametrize(
    ("cpuinfo", "features"),
    [
        (
            "model name : EPYC\nflags\t: fpu avx2 avx512_vnni avx512_bf16 sse",
            ("avx2", "avx512_bf16", "avx512_vnni"),
        ),
        ("Features\t: fp asimd asimddp\n", ("asimd", "asimddp")),
        ("", ()),
    ],
)
def test_features_are_those_that_choose_kernels(cpuinfo: str, features: tuple[str, ...]):
    assert conditions._features(cpuinfo) == features


def test_this_machine_has_a_fingerprint_that_load_does_not_change():
    before = conditions.read_counters()
    quiet = conditions.conditions(conditions.load_between(before, conditions.read_counters()))
    busy = conditions.conditions(conditions.load_between(reading(), reading(wall_s=11.0, busy_s=9.0)))
    assert quiet.load != busy.load
    assert quiet.fingerprint == busy.fingerprint
    assert quiet.hardware.cores >= 1
    assert quiet.hardware.memory_mib > 100
    assert conditions.memory_mib() > 1


def test_what_held_the_processor_back_is_what_was_added_between_two_readings():
    load = between(Sensed(throttles=5, quota_ms=10.0), Sensed(throttles=7, quota_ms=130.0), throttles=1)
    assert (load.throttled, load.quota_ms) == (3, 120.0)
    assert load.throttle == "throttled 3 times; the cgroup's CPU quota stopped it for 120 ms"
    assert not between(Sensed(throttles=5, quota_ms=10.0), Sensed(throttles=5, quota_ms=10.0)).throttle


@pytest.mark.parametrize(("old", "new"), [(True, False), (False, True), (True, True)])
def test_being_slow_at_either_end_of_a_block_counts_as_once(old: bool, new: bool):  # noqa: FBT001
    assert between(Sensed(held_back=old), Sensed(held_back=new)).throttled == 1


def test_clocks_and_temperatures_are_kept_at_their_extremes():
    load = between(
        Sensed(clocks_mhz=(2000.0, 1500.0), temperature_c=50.0, governor="performance"),
        Sensed(clocks_mhz=(1800.0, 2400.0), temperature_c=64.0, governor="powersave"),
    )
    assert (load.lowest_mhz, load.highest_mhz) == (1500.0, 2400.0)
    assert (load.temperature_c, load.temperature_rise_c) == (64.0, 14.0)
    assert (load.governor, load.governor_changed) == ("powersave", True)


def test_blocks_are_put_together_by_their_lengths_and_extremes():
    quiet = Load(load_average=0.0, others_percent=0.0, steal_percent=0.0, involuntary_switches=1)
    first = dataclasses.replace(
        quiet, temperature_c=50.0, lowest_mhz=1500.0, highest_mhz=1600.0, throttled=1, quota_ms=5.0
    )
    second = dataclasses.replace(
        quiet,
        others_percent=100.0,
        temperature_c=70.0,
        temperature_rise_c=4.0,
        lowest_mhz=2000.0,
        highest_mhz=2400.0,
        throttled=2,
        governor="powersave",
    )
    found = conditions.over_blocks([first, second], [1.0, 3.0])
    assert (found.others_percent, found.involuntary_switches, found.throttled) == (75.0, 2, 3)
    assert (found.lowest_mhz, found.highest_mhz, found.quota_ms) == (1500.0, 2400.0, 5.0)
    assert (found.temperature_c, found.temperature_rise_c, found.governor_changed) == (70.0, 20.0, True)


def test_a_processors_line_ends_what_is_read_of_proc_stat():
    assert conditions._processor_times("intr 1\ncpu0 100 0 0 0 0 0 0 0\n", {"0"}) == (0.0, 0.0)
